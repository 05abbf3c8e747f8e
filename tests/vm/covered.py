"""Which lines of the agent and the tests' own sensor run in a guest.

Python 3.14 tells a program which lines and branches it takes at hardly any cost (PEP 669). Before,
each line costs a call, and an emulated processor has no time for that: guests with an older Python
are not counted. Nor is what is forked: to begin and to keep a count takes longer there than most
that a child does.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm import guest

DIRECTORY = Path("/opt/cima-test/coverage")
DATA = Path("/run/cima-lab/coverage")
DROP_IN = Path("/etc/systemd/system/cima-agent.service.d/coverage.conf")
SETTINGS = """[run]
branch = true
parallel = true
core = sysmon
source_pkgs = cima_runc
disable_warnings = no-data-collected,module-not-measured,module-not-imported
"""


def start() -> None:
    """Have the agent counted from here on, and each pytest, in a guest whose Python can."""
    if sys.version_info < (3, 14):
        return
    import coverage

    DIRECTORY.mkdir()
    DATA.mkdir(mode=0o700, exist_ok=True)
    (DIRECTORY / "settings").write_text(SETTINGS)
    (DIRECTORY / "sitecustomize.py").write_text("import coverage\n\ncoverage.process_startup()\n")
    (DIRECTORY / "coverage").symlink_to(Path(coverage.__file__).parent)
    wanted = {
        "PYTHONPATH": str(DIRECTORY),
        "COVERAGE_PROCESS_START": str(DIRECTORY / "settings"),
        "COVERAGE_FILE": str(DATA / "data"),
    }
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"Environment={name}={value}\n" for name, value in wanted.items()]
    DROP_IN.write_text("[Service]\n" + "".join(lines))
    guest.ok("systemctl", "daemon-reload")
    guest.restart_agent()


@contextmanager
def counted() -> Iterator[None]:
    """Count what this process runs meanwhile, where it is wanted."""
    if not DIRECTORY.is_dir():
        yield
        return
    import coverage

    settings, data = DIRECTORY / "settings", DATA / "data"
    counting = coverage.Coverage(config_file=str(settings), data_file=str(data))
    counting.start()
    try:
        yield
    finally:
        counting.stop()
        counting.save()
