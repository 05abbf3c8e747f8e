"""A host's state, backed up and restored by what the page says, with a real agent and real runc.

Run as a program: ``restore_natively PREFIX DIRECTORY`` prints what it saw, as JSON. The host that
the state comes back to has another TPM.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import native_host

PAGE = native_host.TOP / "docs/how-to/back-up.md"


def commands(directory: Path) -> list[str]:
    """The page's blocks, for a state in ``directory``; there is no systemd here."""
    blocks = [part.partition("```")[0] for part in PAGE.read_text().split("```sh\n")[1:]]
    lines = [
        [line for line in block.splitlines() if not line.startswith("systemctl")]
        for block in blocks
    ]
    state = str(directory / "state")
    return [
        "\n".join(each)
        .replace("/var/lib/cima", state)
        .replace(" var/lib/cima", f" {state[1:]}")
        .replace("cima-backup", f"{directory}/cima-backup")
        for each in lines
    ]


def look(prefix: Path, name: str) -> dict[str, Any]:
    log = subprocess.run(
        [prefix / "bin/python3", "-m", "cima_runc.cli.main", "log", name, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {"code": log.returncode, "records": log.stdout.splitlines()}


def main(prefix: Path, directory: Path) -> None:
    native_host.private_mounts(directory)
    back_up, restore = commands(directory)
    bundle = native_host.make_bundle(directory / "bundle", "/bin/true")

    def run(name: str) -> None:
        command = [prefix / "bin/cima-runc", "run", "--bundle", bundle, name]
        subprocess.run(command, check=True, stdout=sys.stderr)

    seen = {}
    with native_host.agent(prefix, directory):
        run("restored-kept")
        seen["before"] = look(prefix, "restored-kept")
    subprocess.run(["sh", "-euc", back_up], check=True, stdout=sys.stderr)
    subprocess.run(["rm", "-r", directory / "state"], check=True)
    with native_host.agent(prefix, directory):
        run("restored-between")
        seen["lost"] = look(prefix, "restored-kept")
    subprocess.run(["sh", "-euc", restore], check=True, stdout=sys.stderr)
    with native_host.agent(prefix, directory):
        run("restored-after")
        for name in ("kept", "between", "after"):
            seen[name] = look(prefix, f"restored-{name}")
        seen["status"] = json.loads(native_host.ask(prefix, "status"))
        seen["ps"] = json.loads(native_host.ask(prefix, "ps", "--all"))
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
