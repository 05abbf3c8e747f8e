#!/bin/sh
# install.sh [WHEEL | CHECKOUT | --installed]: installs cima-runc on this host, as root.
#
# Without an argument it installs the checkout that it is part of; with --installed, /opt/cima is there
# already (copied from an image, see kubernetes/daemonset.yaml). Run it again to upgrade. It writes
#   /opt/cima                                  a virtual environment, owned by the system user `cima`
#   /usr/local/bin/{cima,cima-agent,cima-runc} links into it
#   /etc/ima/ima-policy                        the policy that systemd loads at boot
#   /etc/systemd/system/cima-agent.{service,socket}  the agent's units
# It changes no engine's settings: examples/ has them for Docker, containerd and Podman.
set -eu
umask 022
prefix=/opt/cima
examples=$(dirname "$(readlink -f "$0")")
source=${1:-$(dirname "$examples")}

say() { echo "install: $*"; }
fail() { echo "install: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "run this as root"
[ "$source" = --installed ] || [ -e "$source" ] || fail "$source: no such wheel or checkout"

# The kernel measures what this user owns when it is read: see examples/ima-policy. Nobody logs in as it.
if ! id cima >/dev/null 2>&1; then
    if getent passwd 990 >/dev/null || getent group 990 >/dev/null; then number=; else number="--uid 990"; fi
    # shellcheck disable=SC2086  # nothing, or an option and its value
    useradd --system --user-group $number --home-dir "$prefix" --no-create-home \
        --shell /usr/sbin/nologin --comment "owner of cima-runc's files" cima
fi
owner=$(id -u cima)

if [ "$source" != --installed ]; then
    # The interpreter is the distribution's own: its security updates arrive by themselves.
    [ -x "$prefix/bin/python3" ] || /usr/bin/python3 -m venv "$prefix" ||
        fail "python3 -m venv failed: apt install python3-venv"
    pip="$prefix/bin/python3 -m pip --quiet --disable-pip-version-check"
    $pip install "${source}[host,https]" || fail "pip could not install $source. Building from source takes:
  apt install gcc musl-tools pkg-config python3-dev libtss2-dev clang libbpf-dev"
    # The version may be the same and the code another.
    $pip install --force-reinstall --no-deps "$source"
fi
find "$prefix" ! \( -user cima -group cima \) -exec chown --no-dereference cima:cima {} +
for program in cima cima-agent cima-runc; do
    [ -x "$prefix/bin/$program" ] || fail "the package holds no program $program"
    ln -sfn "$prefix/bin/$program" "/usr/local/bin/$program"
done

policy=$(sed "s/fowner=990/fowner=$owner/" "$examples/ima-policy")
mkdir -p /etc/ima
if [ ! -e /etc/ima/ima-policy ] || grep -q 'cima-runc' /etc/ima/ima-policy; then
    echo "$policy" >/etc/ima/ima-policy
else
    say "/etc/ima/ima-policy is somebody else's and stays. Merge $examples/ima-policy into it (fowner=$owner)."
fi

for unit in cima-agent.service cima-agent.socket; do
    install -m 0644 "$examples/$unit" "/etc/systemd/system/$unit"
    systemctl --quiet enable "$unit"
done
if [ ! -d /run/systemd/system ]; then
    say "installed. The IMA policy and the agent start with the next boot."
    exit 0
fi
systemctl daemon-reload
if systemctl --quiet is-active cima-agent.service; then
    # Running containers are watched all the while: the new agent's sensor takes over from the old one.
    systemctl --quiet is-active cima-agent.socket || systemctl stop cima-agent.service
    systemctl start cima-agent.socket
    systemctl restart cima-agent.service
    say "upgraded, and the agent is started anew. Containers that run are measured on."
else
    say "installed. Reboot to load the IMA policy, or write it now and start the agent:"
    say "  echo /etc/ima/ima-policy > /sys/kernel/security/ima/policy && systemctl start cima-agent.socket cima-agent"
fi
