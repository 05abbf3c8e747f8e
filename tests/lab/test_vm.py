"""What `./dev vm` promises about a script, its output and its files, and what stays behind."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

VM = Path(__file__).parents[2] / "lab/vm.py"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where a guest keeps its files while it runs."""
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def vm(script: str, scratch: Path, *options: str) -> subprocess.Popen[bytes]:
    file = scratch.parent / "script"
    file.write_text(script)
    return subprocess.Popen(
        [VM, "--no-agent", "--no-policy", *options, file, "one arg", "*"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
    )


def assert_nothing_is_left(scratch: Path) -> None:
    assert list(scratch.iterdir()) == []
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(process.read_bytes())
        except OSError:  # it has ended since
            continue
    assert not [command for command in commands if os.fsencode(scratch) in command]


def test_streams_status_and_files_are_the_scripts_own(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/file").write_bytes(b"\0put\xff")
    (tmp_path / "in/link").symlink_to("deep/file")
    script = """
        printf '%s|%s|' "$@"
        head -c 3000000 /dev/zero
        cat /root/in/link /srv/new/file
        echo '<2>a kernel message' >/dev/kmsg
        printf 'to stderr\\r\\n' >&2
        sleep 1000 &  # holds stdout open and keeps nobody waiting
        mkdir /root/out && cp -a /root/in /root/out/
        kill -USR1 $$
    """
    guest = vm(
        script,
        scratch,
        f"--put={tmp_path}/in:/root/in",
        f"--put={tmp_path}/in/deep/file:/srv/new/",
        f"--get=/root/out:{tmp_path}/got",
        f"--get=/srv/new/file:{tmp_path}/got/",
        f"--get=/no/such:{tmp_path}/none",
    )
    out, err = guest.communicate(timeout=900)
    assert guest.returncode == 128 + signal.SIGUSR1, err
    assert out == b"one arg|*|" + bytes(3000000) + b"\0put\xff\0put\xff"
    own = [line for line in err.split(b"\n") if not line.startswith(b"lab: ")]
    assert own == [b"to stderr\r", b"./dev vm: --get: /no/such: No such file or directory", b""]
    assert (tmp_path / "got/in/deep/file").read_bytes() == b"\0put\xff"
    assert (tmp_path / "got/in/link").readlink() == Path("deep/file")
    assert (tmp_path / "got/file").read_bytes() == b"\0put\xff"
    assert not (tmp_path / "none").exists()
    assert_nothing_is_left(scratch)


def test_a_dead_guest_is_said_with_the_kernels_last_words(scratch: Path) -> None:
    # What is still on its way out of the guest when its kernel dies is lost.
    guest = vm("echo before; sleep 2; echo c >/proc/sysrq-trigger; sleep 600", scratch)
    out, err = guest.communicate(timeout=900)
    assert guest.returncode == 125
    assert out == b"before\n"
    assert b"./dev vm: the guest died\n" in err
    assert b"Kernel panic" in err
    assert_nothing_is_left(scratch)


def test_an_interrupted_guest_is_gone(scratch: Path) -> None:
    guest = vm("echo up; sleep 600", scratch)
    assert guest.stdout is not None
    assert guest.stdout.readline() == b"up\n"
    guest.terminate()
    assert guest.wait(30) == 128 + signal.SIGTERM
    assert_nothing_is_left(scratch)


def test_a_script_that_is_not_there_starts_no_guest(scratch: Path) -> None:
    absent = scratch.parent / "absent"
    ran = subprocess.run([VM, absent], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 125
    assert ran.stderr == f"./dev vm: {absent}: no such file\n"
