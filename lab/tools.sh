#!/bin/sh
# tools.sh REQUIREMENT...: run in a guest's file system, installs there what builds this checkout and
# makes wheels of what it depends on, in /wheels.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q install -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
    gcc libc6-dev pkg-config python3-dev libtss2-dev clang libbpf-dev musl-tools
python3 -m venv /opt/build
/opt/build/bin/pip wheel --wheel-dir /wheels "$@"
/opt/build/bin/pip install --no-index --find-links /wheels hatchling
