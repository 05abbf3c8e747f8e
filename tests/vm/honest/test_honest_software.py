"""What builds, package managers and services leave in their log, from an image of Debian's own
packages: with the policy suggested for each, it is TRUSTED.

`make` makes the image, on the machine that starts the guest.
"""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.attacks import container
from tests.vm.attacks.attacks import Rights
from tests.vm.attacks.container import cima

pytestmark = [
    pytest.mark.debian(),
    pytest.mark.skipif(not Path("/root/honest").exists(), reason="no image: tests/vm/honest/make"),
]

IMAGE = Path("/root/honest")
TREE = Path("/root/honest-tree")

BUILD = (
    "cd /tmp && printf '#include <stdio.h>\\nint main(){{puts(\"built\");return 0;}}\\n' >a.c"
    " && gcc -fuse-ld={0} -o a a.c && ./a"
)
GO = (
    "mkdir /tmp/go && cd /tmp/go"
    " && printf 'package main\\nfunc main(){println(\"built\")}\\n' >m.go"
    " && HOME=/tmp GO111MODULE=off GOFLAGS=-p=1 go build -o m m.go && ./m"
)
GIT = (
    "cd /tmp && git init -q r && cd r && git config user.email a@b && git config user.name n"
    " && echo x >x && git add x && git commit -qm x && git gc -q && git log --oneline"
)
PIP = (
    "mkdir /tmp/p && cd /tmp/p && echo 'import setuptools; "
    'setuptools.setup(name="tool", version="1", py_modules=["tool"])\' >setup.py'
    " && echo 'print(\"installed\")' >tool.py"
    " && pip install -q --no-index --no-build-isolation --root-user-action ignore"
    " --target /tmp/site ."
    " && PYTHONPATH=/tmp/site python3 -c 'import tool'"
)
APT = (
    "mkdir -p /tmp/p/DEBIAN /tmp/p/opt && printf '#!/bin/sh\\necho installed\\n' >/tmp/p/opt/tool"
    " && chmod 755 /tmp/p/opt/tool && printf 'Package: tool\\nVersion: 1\\nArchitecture: all\\n"
    "Maintainer: nobody\\nDescription: none\\n' >/tmp/p/DEBIAN/control"
    " && dpkg-deb -b /tmp/p /tmp/p.deb && apt-get install -qy /tmp/p.deb && /opt/tool"
)
JAVA = (
    "keytool -genkeypair -keyalg EC -alias a -dname CN=a -keystore /tmp/k -storepass 123456"
    " && keytool -list -keystore /tmp/k -storepass 123456"
)
NODE = """exec node -e '
const http = require("http");
const server = http.createServer((request, answer) => answer.end("served"));
server.listen(8000, "127.0.0.1", () => http.get("http://127.0.0.1:8000/", answer => {
  answer.on("data", data => { console.log(String(data)); process.exit(0); });
}));'
"""
POSTGRES = (
    "install -d -o postgres /tmp/pg && PATH=/usr/lib/postgresql/15/bin:$PATH"
    " && cat >/tmp/job <<'END'\ninitdb -D /tmp/pg/d >/dev/null"
    ' && pg_ctl -D /tmp/pg/d -s -o "-k /tmp -c listen_addresses=" -w start'
    ' && psql -h /tmp -d postgres -Atc "create table t as select generate_series(1,1000) n"'
    ' && psql -h /tmp -d postgres -Atc "select sum(n) from t" && pg_ctl -D /tmp/pg/d -s stop\nEND\n'
    "setpriv --reuid=postgres --regid=postgres --clear-groups sh /tmp/job"
)
DOCKER = (
    "mount -t tmpfs none /var/lib/docker; "
    "dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs"
    " >/tmp/log 2>&1 & "
    "n=0; until docker version >/dev/null 2>&1; do sleep 1; n=$((n+1));"
    " [ $n -lt 120 ] || { cat /tmp/log; exit 1; }; done; "
    "tar -C /usr/bin -c tini-static | docker import - inner >/dev/null"
    " && docker run --rm --network none inner /tini-static --version"
)


@dataclass(frozen=True)
class Software:
    """What is run, what it says when it has worked, and what its log has besides the image's files,
    as docs/how-to/policies.md explains it."""

    script: str
    says: str
    added: frozenset[str] = frozenset()
    """Files that ran and are not the image's."""
    was_mapped: frozenset[str] = frozenset()
    """Those of them that were written through a mapping."""
    execmem: frozenset[str] = frozenset()
    """Programs that made memory executable."""
    rights: Rights = "docker"


BUILT, GO_BUILT = frozenset({"/tmp/a"}), frozenset({"/tmp/go/m"})
SOFTWARE = {
    "gcc, ld": Software(BUILD.format("bfd"), "built", BUILT),
    "gcc, gold": Software(BUILD.format("gold"), "built", BUILT, BUILT),
    "gcc, lld": Software(BUILD.format("lld"), "built", BUILT, BUILT),
    "go": Software(GO, "built", GO_BUILT, GO_BUILT),
    "git": Software(GIT, " x"),
    "pip": Software(PIP, "installed"),
    "apt": Software(APT, "installed", frozenset({"/opt/tool"})),
    "java": Software(
        JAVA,
        "PrivateKeyEntry",
        execmem=frozenset({"/usr/lib/jvm/java-17-openjdk-amd64/bin/keytool"}),
    ),
    "node": Software(NODE, "served", execmem=frozenset({"/usr/bin/node"})),
    "postgresql": Software(POSTGRES, "500500"),
    "docker in docker": Software(
        DOCKER,
        "tini version",
        frozenset({"/", "/check", "/tini-static"}),
        rights="privileged",
    ),
}


def path_of(content: dict[str, Any]) -> str:
    return bytes.fromhex(content.get("path_hex") or content.get("program_path_hex") or "").decode()


@pytest.fixture(scope="module", autouse=True)
def tree() -> Iterator[None]:
    """The image's one layer, where containers of this module have their root from."""
    container.make_image()
    TREE.mkdir(exist_ok=True)
    guest.ok("mount", "-o", "loop,ro", IMAGE / "tree.ext4", TREE)
    patch = pytest.MonkeyPatch()
    patch.setattr(container, "layer", lambda: str(TREE))
    with guest.Settings():  # the agent waits for as long as the hooks while it measures the layer
        guest.restart_agent()
        yield
    patch.undo()
    guest.ok("umount", "-l", TREE)


@pytest.mark.parametrize("name", list(SOFTWARE))
def test_honest_software_is_trusted_with_its_policy(name: str, tmp_path: Path) -> None:
    software = SOFTWARE[name]
    command = ["/bin/sh", "-c", software.script]
    with container.bundle(command, software.rights, None) as (directory, id_):
        said = container.run(directory, id_, seconds=400)
    assert software.says in said, said[-3000:]
    guest.wait_for("its end", lambda: guest.row(id_)["state"] == "stopped", 60)
    left = {
        (content["type"], content.get("kind"), content.get("why"), path_of(content))
        for kind in ("violation", "memory", "lost", "missing")
        for content in guest.contents(guest.records(id_), kind)
    }
    assert left == {
        *(("violation", "unstable", "was-mapped", path) for path in software.was_mapped),
        *(("memory", "execmem", None, program) for program in software.execmem),
    }
    policy = tmp_path / "policy.toml"
    reference = ("--reference", IMAGE / "reference.json")
    code, said = cima("policy", "suggest", id_, *reference, "-o", policy)
    assert code == 0, said
    allowed = tomllib.loads(policy.read_text())
    assert {each["path"] for each in allowed.get("files", ())} == software.added
    assert all(each["sha256"] for each in allowed.get("files", ()))
    shown = json.loads(cima("appraise", id_, *reference, "--policy", policy, "--json")[1])
    assert shown["verdict"] == "TRUSTED", (policy.read_text(), shown["findings"])
