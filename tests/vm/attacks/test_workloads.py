"""What honest software leaves in its log: with the policy suggested for it, it is trusted."""

import json
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.attacks.container import cima
from tests.vm.images import archive

pytestmark = pytest.mark.debian()  # every attack takes minutes a release: --everything

WEB = """
import http.server, threading, urllib.request
server = http.server.HTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert urllib.request.urlopen('http://127.0.0.1:8000/etc/hostname').status == 200
"""
DATABASE = """
import sqlite3
with sqlite3.connect('/tmp/data') as base:
    base.execute('create table t (n integer)')
    base.executemany('insert into t values (?)', [(n,) for n in range(1000)])
    assert base.execute('select sum(n) from t').fetchone() == (499500,)
"""
PACKAGE = (
    "mkdir -p /tmp/p/DEBIAN /tmp/p/opt && "
    "printf '#!/bin/sh\\necho packaged\\n' >/tmp/p/opt/tool && "
    "chmod 755 /tmp/p/opt/tool && printf 'Package: tool\\nVersion: 1\\nArchitecture: all\\n"
    "Maintainer: nobody\\nDescription: none\\n' >/tmp/p/DEBIAN/control && "
    "dpkg-deb --build /tmp/p /tmp/p.deb && dpkg -i --force-all /tmp/p.deb && /opt/tool"
)
WORKLOADS = {
    "web service": (["python3", "-c", WEB], set()),
    "database": (["python3", "-c", DATABASE], set()),
    "batch job": (
        [
            "sh",
            "-c",
            "tar -c /etc | gzip | sha256sum; find /usr/bin | sort | awk '{n++} END {print n}'",
        ],
        set(),
    ),
    "dpkg": (["sh", "-c", PACKAGE], {"file.added"}),
}
"""The command, and what is found without a policy for it beside the command itself."""


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_honest_software_is_trusted_with_its_policy(workload: str, tmp_path: Path) -> None:
    command, expected = WORKLOADS[workload]
    saved = archive("debian")
    reference, policy = tmp_path / "reference.json", tmp_path / "policy.toml"
    cima("reference", "image", saved, "-o", reference)
    ran = guest.run(*guest.docker("cima-runc", "--rm", "debian", *command))
    assert ran.code == 0, ran
    container = guest.ps()[-1]["id"]
    any_args = tmp_path / "args.toml"
    any_args.write_text("[config]\nallow_any_args = true\n")
    options = ("--reference", reference)
    shown = json.loads(cima("appraise", container, *options, "--policy", any_args, "--json")[1])
    failed = {each["rule"] for each in shown["findings"] if each["severity"] == "fail"}
    assert failed == expected, shown
    assert cima("policy", "suggest", container, *options, "-o", policy)[0] == 0
    shown = json.loads(cima("appraise", container, *options, "--policy", policy, "--json")[1])
    assert shown["verdict"] == "TRUSTED", (policy.read_text(), shown)
