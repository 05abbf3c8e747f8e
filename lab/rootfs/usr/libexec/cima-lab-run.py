"""Runs one job in the guest: puts files in place, runs the script, streams what it prints.

The job arrives as a tar archive on the first disk and is extracted over `/`: the script, the files
to put, and `run/cima-lab/job.json`. Four virtio-serial ports lead out of the guest: `out` and `err`
carry the script's stdout and stderr byte for byte, `files` a tar archive of what the caller wants
back, and `control` one JSON object a line about the job itself.

A job may ask to be frozen at its end: the host then stops the guest, and each time that it is
thawed gives it the time and another job.

A script that ends with the status REBOOT has the guest restarted, and runs again after that.
"""

import json
import os
import selectors
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

CHUNK = 1 << 16
REBOOT = 75
"""The script asks for a reboot; which boot this is, is in the environment as CIMA_LAB_BOOT."""
BOOTS = Path("/var/lib/cima-lab-boots")


def open_port(name):
    """Open the virtio-serial port `name`."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == name:
            return os.open(f"/dev/{entry.name}", os.O_RDWR)
    raise SystemExit(f"cima-lab: the guest has no virtio-serial port named {name}")


def write_all(fd, data):
    """Write all of `data`, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Counted:
    """A file to write to that counts the bytes."""

    def __init__(self, fd):
        self.fd, self.sent = fd, 0

    def write(self, data):
        """Write all of `data`."""
        write_all(self.fd, data)
        self.sent += len(data)


def output_of(*command):
    """Return what a command prints, without the newline at its end."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def agent_trouble(send):
    """Return why the script cannot run with the agent, or None; a guest may have none."""
    unit = "cima-agent.service"
    load = output_of("systemctl", "show", "-P", "LoadState", unit)
    if load != "loaded":
        send(event="note", what=f"{unit} is {load}: the script runs without an agent")
        return None
    state = output_of("systemctl", "is-active", unit)
    if state == "active":
        return None
    log = output_of("journalctl", "--no-pager", "-o", "cat", "-n", "20", "-u", unit)
    return f"{unit} is {state} (--no-agent runs a script without it). Its log ends:\n{log}"


def boots():
    """Return how often the script has asked for a reboot."""
    return int(BOOTS.read_text()) if BOOTS.exists() else 0


def reboot():
    """Restart the guest, and wait for the end."""
    BOOTS.write_text(str(boots() + 1))
    subprocess.run(["systemctl", "reboot"], check=True)
    time.sleep(600)


def command_line(script, args):
    """Return the command line: the script itself, or sh for text without an interpreter line."""
    with Path(script).open("rb") as file:
        start = file.read(4)
    runnable = start.startswith((b"#!", b"\x7fELF"))
    return [script, *args] if runnable else ["/bin/sh", script, *args]


def run(job, started):
    """Run the script and stream its output; return its exit status and the bytes of each stream.

    A process that the script left behind may hold the pipes open for ever, so after the script's
    end only what is already in them is read.
    """
    selector = selectors.DefaultSelector()
    reads, sinks, sent = {}, {}, {"out": 0, "err": 0}

    def pump(name):
        try:
            data = os.read(reads[name], CHUNK)
        except BlockingIOError:
            return False
        if not data:
            selector.unregister(reads.pop(name))
            return False
        write_all(sinks[name], data)
        sent[name] += len(data)
        return True

    writes = {}
    for name in sent:
        sinks[name] = open_port(name)
        reads[name], writes[name] = os.pipe()
        os.set_blocking(reads[name], False)
        selector.register(reads[name], selectors.EVENT_READ, name)
    process = subprocess.Popen(
        command_line(job["script"], job["args"]),
        stdin=subprocess.DEVNULL,
        stdout=writes["out"],
        stderr=writes["err"],
        cwd="/root",
        start_new_session=True,
        env={**os.environ, "CIMA_LAB_BOOT": str(boots() + 1)},
    )
    started()
    for write in writes.values():
        os.close(write)
    selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ, None)
    deadline = job["timeout"] and time.monotonic() + job["timeout"]
    timed_out = False
    while process.poll() is None:
        wait = deadline and max(0, deadline - time.monotonic())
        if wait == 0 and not timed_out:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
        for key, _ in selector.select(wait):
            if key.data:
                pump(key.data)
    for name in sent:
        while name in reads and pump(name):
            pass
    for sink in sinks.values():
        os.close(sink)
    code = process.returncode
    return 124 if timed_out else 128 - code if code < 0 else code, sent


def send_files(paths):
    """Send a tar archive with each path under its index; return its size and what is missing."""
    missing, port = [], Counted(open_port("files"))
    with tarfile.open(fileobj=port, mode="w|") as archive:
        for index, path in enumerate(paths):
            try:
                archive.add(path, arcname=str(index))
            except OSError as error:
                missing.append(f"{path}: {error.strerror}")
    os.close(port.fd)
    return port.sent, missing


def receive_job():
    """Take the job from the disk; what an earlier one brought of the checkout goes."""
    for part in ("tests", "examples"):
        shutil.rmtree(Path("/opt/cima-test", part), ignore_errors=True)
    subprocess.run(["tar", "-xf", "/dev/vda", "-C", "/"], check=True)
    return json.loads(Path("/run/cima-lab/job.json").read_text())


def read_line(fd):
    """Return one line that the host sends, without anything after it."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fd, 1)
    return line


def binding_pcr():
    """Return the value of PCR 12 as the kernel shows it."""
    try:
        return Path("/sys/class/tpm/tpm0/pcr-sha256/12").read_text().strip()
    except OSError:
        return ""


def work(job, send):
    """Run one job; return whether it is done and wants to be frozen."""
    trouble = agent_trouble(send) if job["agent"] else None
    if trouble:
        send(event="refused", why=trouble)
        return False
    status, sent = run(job, lambda: send(event="started"))
    if status == REBOOT:
        send(event="rebooting", sent=sent)
        reboot()
    sent["files"], missing = send_files(job["get"]) if job["get"] else (0, [])
    freeze = job["freeze"] and status == 0
    pcr = binding_pcr() if freeze else None
    send(event="done", status=status, sent=sent, missing=missing, pcr=pcr)
    return freeze


def main():
    """Run the job on the first disk."""
    control = open_port("control")

    def send(**message):
        write_all(control, json.dumps(message).encode() + b"\n")

    try:
        job = receive_job()
        while work(job, send):
            now = json.loads(read_line(control))["time"]
            time.clock_settime(time.CLOCK_REALTIME, now)
            send(event="awake", pcr=binding_pcr())
            job = receive_job()
    except Exception as error:  # whatever it is, the host must hear of it
        send(event="refused", why=f"the guest's job failed: {error!r}")
        raise


main()
