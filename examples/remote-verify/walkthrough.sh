#!/bin/sh
# Two tenants, Alice and Bob, each with a container on the same host; Alice verifies hers from
# elsewhere. README.md explains every step.
#
#   walkthrough.sh URL CA START [OPTION...]
#
# URL is the host's endpoint and CA the file that its certificate is checked with. START is a
# command that starts a container on the host: it gets a name and the owner's public key, and
# prints the container's id. What the host does itself is done here, too: run it there. OPTIONs are given to cima verify: with --reference the container is
# appraised. Files are left in the working directory.
set -eu

url=$1 ca=$2 start=$3
shift 3
case " $* " in *" --reference "*) verdict=0 ;; *) verdict=2 ;; esac

step() { printf '\n# %s\n' "$*"; }
as() { # as WHO COMMAND...: show the command and run it
    printf '%s$ ' "$1"
    shift
    printf '%s\n' "$*"
    "$@"
}
expect() { # expect STATUS COMMAND...
    wanted=$1
    shift
    status=0
    "$@" || status=$?
    [ "$status" = "$wanted" ] || { echo "exit status $status, expected $wanted" >&2; exit 1; }
    echo "(exit status $status)"
}

step "Each tenant makes a key pair; the private key stays at home."
as alice cima keygen alice
as bob cima keygen bob

step "The host starts a container for each of them."
as host "$start" alices-web "$(cat alice.pub)" >alices.txt
as host "$start" bobs-web "$(cat bob.pub)" >bobs.txt
cat alices.txt bobs.txt
alices=$(tail -n 1 alices.txt) bobs=$(tail -n 1 bobs.txt)

step "The host lets verifiers enrol for a while: over HTTPS it is closed otherwise."
as host cima enroll open --minutes 10

step "Alice enrols the host's attestation key, once. (--any-ek: this TPM may be a simulated one.)"
as alice cima enroll request --url "$url" --ca "$ca" -o host.json
as alice cima enroll challenge host.json --any-ek -o challenge.json
as alice cima enroll activate challenge.json --url "$url" --ca "$ca" -o answer.json
as alice cima enroll accept answer.json -o ak.pem

step "Alice asks for evidence with a nonce of her own, and verifies it."
nonce=$(openssl rand -hex 32)
as alice cima attest "$alices" --nonce "$nonce" --url "$url" --ca "$ca" \
    -o evidence.json --tpm2-files quote 2>quote.txt
sed -n 's/^cima: in quote: //p' quote.txt >quote.cmd
expect "$verdict" as alice cima verify evidence.json --nonce "$nonce" --ak ak.pem \
    --container "$alices" --owner-key alice.key --state seen "$@"

step "tpm2-tools agree about the quote."
(cd quote && sh ../quote.cmd >/dev/null && echo "tpm2_checkquote: accepted")

step "Bob cannot read it."
expect 2 as bob cima verify evidence.json --nonce "$nonce" --ak ak.pem --owner-key bob.key

step "Yesterday's evidence does not answer today's nonce."
expect 2 as alice cima verify evidence.json --nonce "$(openssl rand -hex 32)" --ak ak.pem \
    --owner-key alice.key

step "Nothing of Bob's container is in it."
if grep -q -e "$bobs" -e bobs-web evidence.json; then exit 1; fi
echo "nothing of bobs-web in evidence.json"
