#!/usr/bin/python3
"""Prints this machine's pip settings as shell assignments, for pip in a guest's file system.

`PIP_...` holds each setting that says where packages come from, and `pip_files` the local files and
directories that those settings name, so that they can be shown to the guest's pip as well.
"""

import ast
import shlex
import subprocess
import sys
from pathlib import Path

WHERE_FROM = {
    "cert", "client-cert", "default-timeout", "extra-index-url", "find-links", "index-url",
    "no-index", "proxy", "retries", "timeout", "trusted-host",
}  # fmt: skip

listing = subprocess.run(
    [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True
)
settings: dict[str, str] = {}
for line in listing.stdout.splitlines():
    name, _, value = line.partition("=")
    name = name.rpartition(".")[2]
    if name in WHERE_FROM:
        settings[name] = " ".join(ast.literal_eval(value).split())


def local(word: str) -> Path:
    """Return the path that a word of a setting names; an index links to files beside itself."""
    return Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)


words = {word for value in settings.values() for word in value.split()}
files = {str(path) for path in map(local, words) if path.is_absolute() and path.exists()}
for name, value in settings.items():
    print(f"export PIP_{name.upper().replace('-', '_')}={shlex.quote(value)}")
print(f"export pip_files={shlex.quote(' '.join(sorted(files)))}")
