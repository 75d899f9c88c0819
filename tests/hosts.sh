#!/bin/bash
# tests/hosts.sh COMMAND...: runs a command beside four hosts of its own, and takes them down again.
#
# The hosts are network namespaces on a bridge, which has a namespace of its own too: nothing of this machine's network is
# touched. The command finds in DSVCCA_HOSTS what their names begin with: `ip netns exec ${DSVCCA_HOSTS}one ...` runs there,
# and `ip -n ${DSVCCA_HOSTS}net link set one down` cuts that host off.
#
#   scheduler 10.213.8.1   one 10.213.8.2   two 10.213.8.3   client 10.213.8.4
#
# As root with iproute2. Where that cannot be, it says so and ends with 3.
set -euo pipefail

not_run() { echo "$1: not run" >&2; exit 3; }
[ "$(id -u)" = 0 ] || not_run "network namespaces are made by root, and this is $(id -un)"
command -v ip > /dev/null || not_run "there is no ip command (Debian: apt-get install iproute2)"

take_down() { # every host whose name begins with $1, and what runs there
  local name
  for name in $(ip netns list | cut -d " " -f 1 | grep "^$1" || true); do
    ip netns pids "$name" | xargs --no-run-if-empty kill -9 2> /dev/null || true
    ip netns del "$name" || true
  done
}

for name in $(ip netns list | cut -d " " -f 1 | grep -E "^dsvcca[0-9]+-net$" || true); do # of runs that were killed
  pid=${name#dsvcca}
  kill -0 "${pid%-net}" 2> /dev/null || take_down "${name%net}"
done

hosts=dsvcca$$-
running=
# shellcheck disable=SC2329  # it does not see that trap calls this
end() {
  status=$?
  trap - EXIT
  [ -z "$running" ] || kill "$running" 2> /dev/null || true
  take_down "$hosts"
  exit "$status"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

ip netns add "${hosts}net" 2> /dev/null || not_run "network namespaces cannot be made here (a container without the right to?)"
ip -n "${hosts}net" link add bridge type bridge || not_run "there are no bridges in this kernel"
ip -n "${hosts}net" link set bridge up
last=0
for host in scheduler one two client; do
  last=$((last + 1))
  ip netns add "$hosts$host"
  ip -n "$hosts$host" link add eth0 type veth peer name "$host" netns "${hosts}net" || not_run "there are no veth pairs in this kernel"
  ip -n "${hosts}net" link set "$host" master bridge up
  ip -n "$hosts$host" link set lo up
  ip -n "$hosts$host" addr add "10.213.8.$last/24" dev eth0
  ip -n "$hosts$host" link set eth0 up
done

export DSVCCA_HOSTS=$hosts
"$@" & # or a signal would wait for it
running=$!
status=0
wait "$running" || status=$?
running=
exit "$status"
