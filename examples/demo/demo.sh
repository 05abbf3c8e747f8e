#!/bin/sh
# demo.sh: the main job, in a guest that `./dev demo` starts. Two containers of one image run under
# cima-runc; each gets a log and a register of its own, and the TPM's PCR 12 vouches for both.
set -eu
here=$(dirname "$0")
image=$(mktemp -d) && chmod 755 "$image"
records=/sys/kernel/security/ima/ascii_runtime_measurements

heading() { printf '\n%s\n' "== $*"; }
note() { printf '   %s\n' "$@"; }
indent() { sed -u 's/^/     /'; }
# A digest is recognised by its beginning; the rest would only fill the screen.
shorten() { sed -E 's/([0-9a-f]{16})[0-9a-f]{20,}/\1.../g'; }
heading "An image: a shell, a script, and a program with its libraries"
mkdir -p "$image"/bin "$image"/tmp
cp /bin/busybox "$image"/bin/busybox
for applet in sh cp echo; do ln -s busybox "$image"/bin/$applet; done
cat >"$image"/bin/hello <<'END'
#!/bin/sh
echo "hello, I am user $(/bin/id -u)"
END
chmod 755 "$image"/bin/hello
cp /usr/bin/id "$image"/bin/id
for library in $(ldd /usr/bin/id | grep -o '/[^ ]*'); do
    mkdir -p "$image${library%/*}"
    cp "$library" "$image$library"
done
tar -C "$image" -c . | docker import - demo >/dev/null
find "$image" -type f -printf '/%P ' | fold -s -w 90 | indent
echo

heading "Two containers of it, one after the other"
run() { docker run --runtime=cima-runc --network=none "$@" 2>&1 | indent; }
note "$ docker run --runtime=cima-runc --name=alice demo hello"
run --name=alice demo hello
note "$ docker run --runtime=cima-runc --name=bobby demo sh -c 'hello; cp /bin/id /tmp/tool; /tmp/tool'"
run --name=bobby demo sh -c 'hello; cp /bin/id /tmp/tool; /tmp/tool'
alice=$(docker inspect --format '{{.Id}}' alice)
bobby=$(docker inspect --format '{{.Id}}' bobby)

heading "Each has a measurement log and a register (cPCR) of its own"
until [ "$(cima ps | grep -cE '(alice|bobby) .* stopped')" = 2 ]; do :; done
note "$ cima ps"
cima ps | indent
echo
note "alice's: the configuration, the root filesystem, and each file that ran, with IMA's digest of it"
note "$ cima log alice"
cima log alice | indent
echo
note "bobby's: the same files again, and /tmp/tool, which came with no image"
note "$ cima log bobby"
cima log bobby | indent
echo
note "The kernel's own log could not tell: it has $(grep -c ' /bin/id ' $records) line for /bin/id, which ran in both, and names no container."

heading "The TPM vouches for both"
note "$ cima status"
cima status | grep -E '^(tpm|pcr_value|bind|lost)' | shorten | indent
note "PCR 12 was extended with what covers a table of both registers (host); history is its value before."

heading "The same once more, with nothing but SHA-256 and tpm2_pcrread (examples/demo/recompute.py)"
/usr/bin/python3 -I "$here/recompute.py" "$alice" "$bobby"
