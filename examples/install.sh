#!/bin/sh
# Installs cima-runc on this host, or takes it away. install.sh --help says how.
set -eu
umask 022
prefix=/opt/cima
examples=$(dirname "$(readlink -f "$0")")
policy=/etc/ima/ima-policy

say() { echo "install: $*"; }
fail() { echo "install: $*" >&2; exit 2; }

usage() {
    cat <<'END'
install.sh [SOURCE]            install on this host, or upgrade; running containers are measured on
install.sh --installed         /opt/cima is there already, copied from an image: do the rest
install.sh --policy [PREFIX]   write the IMA policy only
install.sh --uninstall         take it away; settings, records and keys stay
install.sh --uninstall --purge take those away too
install.sh --removable [PREFIX] whether it may be taken away: no measured container runs

SOURCE is a bundle (cima-runc-VERSION-debianN.tar.gz: everything, for a host without network or
compilers), a wheel, or a checkout; without one, the checkout that install.sh is part of. From a wheel
or a checkout the dependencies come from where pip is set up to find them, and what PyPI has no wheel of
(tpm2-pytss) or what a checkout holds (the sensor, the launcher) is compiled here.

Written are
  /opt/cima                                  a virtual environment, owned by the system user cima
  /usr/local/bin/{cima,cima-agent,cima-runc} links into it
  /etc/ima/ima-policy                        the policy that systemd loads at boot
  /etc/systemd/system/cima-agent.{service,socket}
Engines stop a measured container with the launcher that started it, so nothing is taken away while one
runs, unless CIMA_REMOVE=anyway is in the environment. No engine's settings are changed: cima configure does that. An installation that fails leaves what was
there before. Exit status: 0 done, 2 not done.
END
}

booted_with_systemd() { [ -d /run/systemd/system ]; }

# The kernel measures what this user owns when it is read: see examples/ima-policy. Nobody logs in as it.
make_user() {
    if ! id cima >/dev/null 2>&1; then
        if getent passwd 990 >/dev/null || getent group 990 >/dev/null; then number=; else number="--uid 990"; fi
        say "making the system user cima"
        # shellcheck disable=SC2086  # nothing, or an option and its value
        useradd --system --user-group $number --home-dir "$prefix" --no-create-home \
            --shell /usr/sbin/nologin --comment "owner of cima-runc's files" cima
    fi
}

write_policy() {
    owner=$(id -u cima) || fail "there is no user cima: run install.sh first"
    if [ -e "$policy" ] && ! grep -q 'cima-runc' "$policy"; then
        say "$policy is somebody else's and stays. Merge $examples/ima-policy into it (fowner=$owner)."
        return
    fi
    mkdir -p "$(dirname "$policy")"
    # A container can give a file of its own to any user, but cannot put it on another file system.
    uuid=$(findmnt --noheadings --output UUID --target "$prefix" 2>/dev/null || true)
    [ -n "$uuid" ] || say "the file system of $prefix has no UUID: the policy measures what the user cima owns on any"
    sed "s/fowner=990/fowner=$owner${uuid:+ fsuuid=$uuid}/" "$examples/ima-policy" >"$policy.new"
    # An upgrade with the same rules leaves the file as the kernel read it.
    if cmp -s "$policy.new" "$policy"; then rm "$policy.new"; return; fi
    mv "$policy.new" "$policy"
    say "wrote $policy"
}

# Runs with the new environment's directory mounted at $prefix, where its programs will find themselves.
fill() {
    # The interpreter is the distribution's own: its security updates arrive by themselves.
    [ -x "$prefix/bin/python3" ] || /usr/bin/python3 -m venv "$prefix" || fail "python3 -m venv failed: apt install python3-venv"
    pip="$prefix/bin/python3 -m pip --quiet --disable-pip-version-check"
    case $1 in
        *.tar.gz)
            unpacked=$(mktemp -d)
            trap 'rm -rf "$unpacked"' EXIT
            tar -xf "$1" -C "$unpacked" || fail "$1 is no bundle"
            say "installing what the bundle holds"
            $pip install --no-index --find-links "$unpacked/wheels" --require-hashes --requirement "$unpacked/requirements.txt"
            ;;
        *)
            say "installing $1 and what it needs (a minute or two)"
            $pip install "${1}[host,https]" || fail "pip could not install $1. Where something is compiled, that takes:
  apt install gcc musl-tools pkg-config python3-dev libtss2-dev clang libbpf-dev
A bundle takes none of it."
            # The version may be the same and the code another.
            $pip install --force-reinstall --no-deps "$1"
            ;;
    esac
    for program in cima cima-agent cima-runc; do
        [ -x "$prefix/bin/$program" ] || fail "the package holds no program $program: it is a verifier's, for any machine"
    done
    chown --recursive --no-dereference cima:cima "$prefix"
}

# A new environment beside the old one, which takes its place when it is whole.
install_from() {
    new=$prefix.new fresh=
    rm -rf "$new"
    [ -d "$prefix" ] || { mkdir "$prefix"; fresh=1; }
    if [ -n "$fresh" ]; then mkdir "$new"; else cp -a "$prefix" "$new"; fi
    # shellcheck disable=SC2016  # the inner shell expands it
    if ! unshare --mount --propagation private sh -euc 'mount --bind "$1" "$2"; shift 2; exec "$@"' \
        sh "$new" "$prefix" "$0" --fill "$1"; then
        rm -rf "$new"
        [ -z "$fresh" ] || rmdir "$prefix"
        fail "nothing was installed; what was there before is as it was"
    fi
    mv "$prefix" "$prefix.old"
    mv "$new" "$prefix"
    rm -rf "$prefix.old"
    say "installed $prefix"
}

start() {
    for program in cima cima-agent cima-runc; do
        ln -sfn "$prefix/bin/$program" "/usr/local/bin/$program"
    done
    for unit in cima-agent.service cima-agent.socket; do
        install -m 0644 "$examples/$unit" "/etc/systemd/system/$unit"
        systemctl --quiet enable "$unit"
    done
    if ! booted_with_systemd; then
        say "installed. The IMA policy and the agent start with the next boot."
        return
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
        say "  echo $policy > /sys/kernel/security/ima/policy && systemctl start cima-agent.socket cima-agent"
        say "then: cima doctor"
    fi
}

# Engines kill and delete a container with the launcher that started it: without it nobody could stop one.
removable() {
    [ "${CIMA_REMOVE:-}" != anyway ] && [ -x "$prefix/bin/cima" ] || return 0
    # shellcheck disable=SC2016  # Python's, not the shell's
    living=$("$prefix/bin/cima" ps --json 2>/dev/null | /usr/bin/python3 -I -c '
import json, sys
def unmeasured_lives(row):
    try:
        with open("/proc/%d/cgroup" % row["pid"]) as file:
            return row["id"] in file.read()
    except (OSError, TypeError):
        return False
for row in json.load(sys.stdin):
    if row["state"] in ("created", "running") or row["state"] == "unmeasured" and unmeasured_lives(row):
        print(" ", *(ascii(word)[1:-1] for word in (row["id"][:12], row["name"])))' 2>/dev/null || true)
    [ -z "$living" ] || fail "these containers run, and their engines need $prefix/bin/cima-runc to stop them:
$living
Stop them first. CIMA_REMOVE=anyway in the environment removes it all the same."
}

uninstall() {
    removable
    [ -d "$prefix" ] || say "$prefix is not there; taking away what else there is"
    for engine in docker containerd podman crio; do
        [ ! -x "$prefix/bin/cima" ] || "$prefix/bin/cima" configure "$engine" --remove || true
    done
    for unit in cima-agent.service cima-agent.socket; do
        ! booted_with_systemd || systemctl --quiet disable --now "$unit" 2>/dev/null || true
        rm -f "/etc/systemd/system/$unit" "/etc/systemd/system/"*.wants/"$unit"
    done
    ! booted_with_systemd || systemctl daemon-reload
    # The sensor that outlives the agent: with its pins it is gone.
    rm -rf /sys/fs/bpf/cima /run/cima
    for program in cima cima-agent cima-runc; do
        [ "$(readlink "/usr/local/bin/$program" || true)" != "$prefix/bin/$program" ] || rm "/usr/local/bin/$program"
    done
    if grep -qs 'cima-runc' "$policy"; then rm "$policy"; rmdir --ignore-fail-on-non-empty "$(dirname "$policy")"; fi
    rm -rf "$prefix" "$prefix.new" "$prefix.old"
    if [ "$1" = purge ]; then
        rm -rf /etc/cima /var/lib/cima
        ! id cima >/dev/null 2>&1 || userdel cima
        say "removed, with settings, records and keys."
    else
        say "removed. /etc/cima and /var/lib/cima stay: settings, records and keys; --uninstall --purge takes them away."
    fi
    say "The policy that the kernel has loaded stays until the next boot. Restart engines whose settings were changed."
}

case ${1:-} in
    -h | --help) usage; exit 0 ;;
    --uninstall | --removable | --policy | --installed | --fill) ;;
    -*) usage >&2; fail "there is no option $1" ;;
esac
[ "$(id -u)" = 0 ] || fail "run this as root"
case ${1:-} in
    --fill) fill "$2" ;;
    --policy) prefix=${2:-$prefix}; write_policy ;;
    --removable) prefix=${2:-$prefix}; removable ;;
    --uninstall) case ${2:-} in "") uninstall keep ;; --purge) uninstall purge ;; *) fail "there is no option $2" ;; esac ;;
    --installed)
        make_user
        chown --recursive --no-dereference cima:cima "$prefix"
        write_policy
        start
        ;;
    *)
        source=${1:-$(dirname "$examples")}
        [ -e "$source" ] || fail "$source: no such bundle, wheel or checkout"
        make_user
        install_from "$(readlink -f "$source")"
        write_policy
        start
        ;;
esac
