#!/bin/bash
# deploy/tls.sh FOLDER: makes an authority of a cluster's own, and certificates of it for scheduler, workers and clients.
#
#   FOLDER/ca.pem          who signed; every process needs it
#   FOLDER/ca.key          signs more of them; no process needs it: keep it off the cluster
#   FOLDER/scheduler.pem   and .key, for the scheduler's host
#   FOLDER/worker.pem      and .key, for every host with workers
#   FOLDER/client.pem      and .key, for whoever starts runs
#
# Dask looks at who signed a certificate and when it ends, at no names: so hosts are not named here, one certificate does
# for all workers, and whoever holds any of the keys can do what all of them can. They hold for DAYS=365 days.
set -euo pipefail

refuse() { echo "$0: $1" >&2; exit 1; }
[ $# = 1 ] || refuse "say in which folder: $0 FOLDER"
folder=${1%/}
days=${DAYS:-365}
[[ $days =~ ^[1-9][0-9]*$ ]] || refuse "DAYS='$days' is no number of days"
[ ! -e "$folder" ] || refuse "'$folder' is there already, and keys are not overwritten: name another folder, or remove it"
command -v openssl > /dev/null || refuse "openssl is missing (Debian: apt-get install openssl)"
[ -d "$(dirname "$folder")" ] || refuse "there is no folder '$(dirname "$folder")' to make it in"

umask 077
making=$(mktemp -d "$folder.XXXXXX") # renamed when all is there: half of it is never found
trap 'rm -rf "$making"' EXIT
cat > "$making/extensions" <<'CONF'
[req]
distinguished_name = name
prompt = no
[name]
CN = dsvcca
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[member]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CONF

ask() { # openssl, silent unless it fails
  openssl "$@" 2> "$making/said" || { cat "$making/said" >&2; refuse "openssl $1 failed"; }
}
key() { ask ecparam -name prime256v1 -genkey -noout -out "$making/$1.key"; }

key ca
ask req -new -x509 -sha256 -days "$days" -config "$making/extensions" -extensions authority -subj "/CN=dsvcca authority" \
  -key "$making/ca.key" -out "$making/ca.pem"
for member in scheduler worker client; do
  key "$member"
  ask req -new -sha256 -config "$making/extensions" -subj "/CN=dsvcca $member" -key "$making/$member.key" -out "$making/request"
  ask x509 -req -sha256 -days "$days" -in "$making/request" -CA "$making/ca.pem" -CAkey "$making/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$making/extensions" -extensions member -out "$making/$member.pem"
done
rm "$making/extensions" "$making/request" "$making/said"
chmod 644 "$making"/*.pem
chmod 755 "$making"
mv "$making" "$folder"
