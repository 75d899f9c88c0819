#!/bin/bash
# tests/slurm.sh COMMAND...: runs a command where SLURM answers, one node of this machine, and takes it down.
#
# As root on a Debian machine, from nothing: slurm-wlm and munge are installed if they are not there. Nothing of a SLURM
# that this machine belongs to is touched: daemons, keys and ports are of this run's own.
set -euo pipefail

[ "$(id -u)" = 0 ] || { echo "SLURM's daemons are started as root, and this is $(id -un): not run" >&2; exit 3; }
if ! command -v slurmctld > /dev/null || ! command -v slurmd > /dev/null || ! command -v munged > /dev/null; then
  command -v apt-get > /dev/null || { echo "no slurmctld, and no apt-get to install it with: not run" >&2; exit 3; }
  apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null; }
fi

at=$(mktemp -d /tmp/slurm.XXXXXX)
host=$(hostname -s)
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
mkdir -m 700 "$at/munge" "$at/state" "$at/spool"
head -c 1024 /dev/urandom > "$at/munge/key"
chmod 400 "$at/munge/key"
chmod 711 "$at"
cat > "$at/slurm.conf" <<CONF
ClusterName=trial
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$at/munge.socket,cred_expire=5
StateSaveLocation=$at/state
SlurmdSpoolDir=$at/spool
SlurmctldPidFile=$at/slurmctld.pid
SlurmdPidFile=$at/slurmd.pid
SlurmctldLogFile=$at/slurmctld.log
SlurmdLogFile=$at/slurmd.log
SlurmctldPort=$(free)
SlurmdPort=$(free)
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerParameters=sched_interval=1
KillWait=5
MinJobAge=10
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF

export SLURM_CONF="$at/slurm.conf"
end() {
  status=$?
  scancel --quiet --user "$(id -un)" 2> /dev/null || true
  for file in slurmd.pid slurmctld.pid munge/pid; do
    pid=$(cat "$at/$file" 2> /dev/null) || continue
    kill "$pid" 2> /dev/null || true
    for _ in $(seq 20); do
      if ! ps --no-headers -o stat= -p "$pid" | grep -qv Z; then break; fi
      sleep 0.5
    done
  done
  if [ "$status" != 0 ]; then tail -n 20 "$at"/slurm*.log >&2 || true; fi
  rm -rf "$at" || true
  exit "$status"
}
trap end EXIT

munged --force --key-file="$at/munge/key" --socket="$at/munge.socket" --pid-file="$at/munge/pid" \
  --log-file="$at/munge/log" --seed-file="$at/munge/seed"
slurmctld
slurmd -N "$host"
for _ in $(seq 30); do
  if sinfo --noheader --format=%T 2> /dev/null | grep -q idle; then break; fi
  sleep 1
done
"$@"
