"""Units as distributions and people write them, read as systemd reads them."""

from pathlib import Path

import pytest

from cima_runc.engines.unit import command_of, flags_of

UNIT = "lib/systemd/system/docker.service"
FILE = "etc/default/docker"
START = "ExecStart=/usr/bin/dockerd"


@pytest.mark.parametrize(
    ("files", "flags"),
    [
        # systemd.unit(5): lines that go on, comments in their midst, what a file is called
        ({UNIT: f"[Service]\n{START} \\\n# a comment\n  --x=1 \\\n; another\n -H fd://\n"},
         ("--x=1", "-H", "fd://")),
        ({UNIT: f"[Service]\r\n{START} --x=1\r\n"}, ("--x=1",)),
        ({UNIT: f"\ufeff[Service]\n{START} --x=1\n"}, ("--x=1",)),
        ({UNIT: "[Service]\nExecStart = /usr/bin/dockerd --x=1 \\"}, ("--x=1",)),
        ({UNIT: f"[Service]\n{START} --x=1\n[Install]\n{START} --x=2\n"}, ("--x=1",)),
        ({UNIT: f"[Service]\n{START} $O\n",
          "etc/systemd/system/service.d/a.conf": "[Service]\nEnvironment=O=--x=1\n"}, ("--x=1",)),
        ({UNIT: f"[Service]\n{START}\n",
          "etc/systemd/system.control/docker.service.d/50-a.conf":
              f"[Service]\nExecStart=\n{START} --x=1\n"}, ("--x=1",)),
        ({UNIT: f"[Service]\n{START}\n",
          "usr/lib/systemd/system/docker.service.d/10.conf":
              f"[Service]\nExecStart=\n{START} --x=1",
          "etc/systemd/system/docker.service.d/10.conf": f"[Service]\nExecStart=\n{START} --x=2"},
         ("--x=2",)),
        # systemd.service(5): prefixes, quotes, dollars
        ({UNIT: "[Service]\nExecStart=-@/usr/bin/dockerd dockerd --x=1\n"}, ("--x=1",)),
        ({UNIT: f"[Service]\n{START} '--x' 'a b' \"--y=c d\"\n"}, ("--x", "a b", "--y=c d")),
        ({UNIT: f"[Service]\nEnvironment='O=--x=1 --y'\n{START} --l=$$O --p=100%% $O ${{O}}\n"},
         ("--l=$O", "--p=100%", "--x=1", "--y", "--x=1 --y")),
        # systemd.exec(5): files over what the unit says, in any order; what takes it back
        ({UNIT: f"[Service]\nEnvironmentFile=/{FILE}\nEnvironment=O=--own\n{START} $O\n",
          FILE: "O=--file\n"}, ("--file",)),
        ({UNIT: f"[Service]\nEnvironment=O=--own\nEnvironment=\n{START} $O\n"}, ()),
        ({UNIT: f"[Service]\nEnvironmentFile=/{FILE}\nEnvironmentFile=\n{START} $O\n",
          FILE: "O=--file\n"}, ()),
        ({UNIT: f"[Service]\nEnvironment=O=--own\nUnsetEnvironment=O\n{START} $O\n"}, ()),
        ({UNIT: f"[Service]\nEnvironmentFile=-/etc/default/dock*\n{START} $O\n",
          FILE: "O=--file\n"}, ("--file",)),
        ({UNIT: f"[Service]\nEnvironmentFile=-/no/such\n{START} $O --x\n"}, ("--x",)),
        ({UNIT: f"[Service]\nEnvironmentFile=-/etc/**x\nEnvironmentFile=-%h/[\n{START} --x\n"},
         ("--x",)),
        ({UNIT: f"[Service]\nEnvironment='O=1\nEnvironmentFile=-/../..//\n{START} '--x\n"},
         ("'--x",)),
        ({UNIT: f"[Service]\nEnvironmentFile=/{FILE}\n{START} $O\n",
          FILE: "# O=--no\n; O=--no\nO=--debug --x=1\nexport P=1\n2=3\nno assignment\n"},
         ("--debug", "--x=1")),
        ({UNIT: f"[Service]\nEnvironmentFile=/{FILE}\n{START} $O\n",
          FILE: "O=\"--debug \\\n  --x=1\"\nQ='a'\n"}, ("--debug", "--x=1")),
        ({}, ()),
    ],
)  # fmt: skip
def test_flags(files: dict[str, str], flags: tuple[str, ...], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    command = command_of("docker.service", tmp_path)
    assert flags_of(command, "dockerd") == flags
    assert not any("\ufeff" in word or "\r" in word for word in command.argv)


def test_the_files_that_say_so(tmp_path: Path) -> None:
    unit, file = tmp_path / UNIT, tmp_path / FILE
    for path, text in (
        (unit, f"[Service]\nEnvironmentFile=/{FILE}\n{START} $O $P\n"),
        (file, "O=1"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert command_of("docker.service", tmp_path).files == (unit, file)
