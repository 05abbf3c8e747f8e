"""What a guest has done before it is frozen: engines run, the tests' image is loaded, Python waits.

No measured container runs here, so that counts begin where they begin in a guest that has booted.
"""

from tests.vm import covered, guest, preloaded


def main() -> None:
    guest.ok("systemctl", "start", "docker")
    guest.load_image()
    command = ["/bin/sh", "-c", guest.COMMAND]
    for engine in (
        guest.docker("runc", "--rm", guest.IMAGE),
        guest.podman("runc", "--rm", guest.IMAGE),
    ):
        guest.run(*engine, *command)
    guest.run(*guest.ctr("runc", "warm-up"), *command)
    covered.start()
    preloaded.start()
    guest.run("cima", "ps")
    guest.ok("sync")


if __name__ == "__main__":
    main()
