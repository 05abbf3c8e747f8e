"""A process of the host's in namespaces of its own, who gives them away."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.vm import guest

KINDS = ("user", "mnt")


@contextmanager
def namespaces(directory: Path) -> Iterator[None]:
    """Whoever connects to the socket `namespaces` there gets a user and a mount namespace."""
    directory.mkdir(exist_ok=True)
    path = directory / "namespaces"
    path.unlink(missing_ok=True)
    command = ["unshare", "--user", "--map-root-user", "--mount", "sleep", "600"]
    other = subprocess.Popen(command)
    of_other = Path(f"/proc/{other.pid}/ns")

    def is_there() -> bool:
        return not any((of_other / kind).samefile(f"/proc/self/ns/{kind}") for kind in KINDS)

    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as files:
        listener.bind(str(path))
        listener.listen()
        guest.wait_for("namespaces", is_there)
        opened = [files.enter_context((of_other / kind).open()) for kind in KINDS]

        def give() -> None:
            with suppress(OSError):
                channel, _ = listener.accept()
                socket.send_fds(channel, [b"x"], [file.fileno() for file in opened])

        threading.Thread(target=give, daemon=True).start()
        try:
            yield
        finally:
            other.kill()
            other.wait()
