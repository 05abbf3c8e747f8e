#!/bin/sh
# tpm.sh DIRECTORY: makes the state of a new TPM 2.0 there, with endorsement keys and certificates for
# them from an authority that this machine keeps in the cache; ca.pem there is the authority's own.
set -eu
state=$1
authority=${CIMA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cima-runc}/authority
mkdir -p "$state" "$authority"
cat >"$state/localca.conf" <<END
statedir = $authority
signingkey = $authority/signkey.pem
issuercert = $authority/issuercert.pem
certserial = $authority/certserial
END
cat >"$state/setup.conf" <<END
create_certs_tool = /usr/bin/swtpm_localca
create_certs_tool_config = $state/localca.conf
create_certs_tool_options = /etc/swtpm-localca.options
END
swtpm_setup --tpm2 --tpmstate "$state" --config "$state/setup.conf" --pcr-banks sha1,sha256 \
    --createek --create-ek-cert --create-platform-cert --lock-nvram \
    --logfile "$state/setup.log" >/dev/null || { cat "$state/setup.log" >&2; exit 1; }
cat "$authority/issuercert.pem" "$authority/swtpm-localca-rootca-cert.pem" >"$state/ca.pem"
