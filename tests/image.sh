#!/bin/bash
# tests/image.sh: builds deploy/Dockerfile for real, and runs what deploy/compose.yaml says in it (tests/image.py).
#
# As root on a Debian machine, with buildah, which needs no daemon and is installed if it is not there. The base image
# is pulled. Where no registry of images can be reached, PYTHON312=/usr/local says where a Python 3.12 lies that was
# built against Debian bookworm; the base is then Debian bookworm with a copy of it, by debootstrap.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "images are built as root here, and this is $(id -un): not run" >&2; exit 3; }
needed=(buildah)
[ -z "${PYTHON312:-}" ] || needed+=(debootstrap)
if ! command -v "${needed[@]}" > /dev/null || [ "$(command -v "${needed[@]}" | wc -l)" != "${#needed[@]}" ]; then
  command -v apt-get > /dev/null || { echo "no ${needed[*]}, and no apt-get to install it with: not run" >&2; exit 3; }
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${needed[@]}" > /dev/null
fi

at=$(mktemp -d /tmp/image.XXXXXX)
export BUILDAH_ISOLATION=chroot
run_buildah() { command buildah --root "$at/storage" --runroot "$at/run" --storage-driver vfs "$@"; }
end() {
  run_buildah umount --all > /dev/null 2>&1 || true
  rm -rf "$at"
}
trap end EXIT

echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$at/policy.json"
base=$(sed -n 's/^FROM //p' deploy/Dockerfile)
if [ -n "${PYTHON312:-}" ]; then
  libraries=libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libuuid1,libexpat1
  debootstrap --variant=minbase --include="ca-certificates,$libraries" bookworm "$at/root" > "$at/said" \
    || { cat "$at/said"; exit 1; }
  cp -a "$PYTHON312/bin" "$PYTHON312/lib" "$at/root/usr/local/"
  ln -sf python3.12 "$at/root/usr/local/bin/python"
  printf '#!/bin/sh\nexec python -m pip "$@"\n' > "$at/root/usr/local/bin/pip"
  chmod +x "$at/root/usr/local/bin/pip"
  chroot "$at/root" ldconfig
  made=$(run_buildah from scratch)
  run_buildah add --quiet "$made" "$at/root" / > /dev/null
  run_buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$made"
  run_buildah commit --quiet --signature-policy "$at/policy.json" "$made" "docker.io/library/$base" > /dev/null
  echo "the base is no $base, but Debian bookworm with $(chroot "$at/root" python --version)"
  rm -rf "$at/root"
fi

# Who signs for the package index, and where it is, are those of this machine
mounts=(-v /etc/ssl/certs:/etc/ssl/certs:ro)
[ ! -e /etc/pip.conf ] || mounts+=(-v /etc/pip.conf:/etc/pip.conf:ro)
run_buildah build --signature-policy "$at/policy.json" --format docker "${mounts[@]}" \
  -f deploy/Dockerfile -t dsvcca:trial . > "$at/said" 2>&1 || { tail -n 50 "$at/said"; exit 1; }
echo "built: $(grep -c ^STEP "$at/said") steps"

made=$(run_buildah from --pull-never --signature-policy "$at/policy.json" localhost/dsvcca:trial)
uid=$(sed -n 's/^ARG UID=//p' deploy/Dockerfile)
root=$(run_buildah mount "$made")
cp tests/image.py "$root/image.py"
cp deploy/compose.yaml "$root/compose.yaml"
# shellcheck disable=SC2016 # what stands in single quotes is for the other shell
unshare --mount --propagation private bash -euc '
  mount --bind "$1" "$1"
  mount -o remount,ro,bind "$1"
  mount -t tmpfs tmpfs "$1/tmp"
  mount -t tmpfs -o "uid=$2,gid=$2" tmpfs "$1/data"
  mount -t proc proc "$1/proc"
  mount --rbind /dev "$1/dev"
  exec chroot --userspec="$2:$2" "$1" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/dsvcca \
    JUPYTER_RUNTIME_DIR=/tmp JUPYTER_DATA_DIR=/tmp JUPYTER_CONFIG_DIR=/tmp IPYTHONDIR=/tmp python /image.py
' - "$root" "$uid"
