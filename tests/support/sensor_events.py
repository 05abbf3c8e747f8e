"""Events as the sensor sends them."""

import hashlib

from cima_runc.sensor.events import SHA256, Event, Func


def event_of(registration: int, path: bytes, content: bytes | None = None) -> Event:
    """The event of a program with this content, or with its own name for content, that starts."""
    return Event(
        registration=registration,
        time_ns=0,
        cgroup_id=1,
        mntns=registration & 0xFFFFFFFF,
        pid=4242,
        uid=0,
        ino=1,
        dev=(0, 1),
        func=Func.BPRM_CHECK,
        digest=hashlib.sha256(path if content is None else content).digest(),
        hash_algo=SHA256,
        path=path,
        error=0,
        path_error=0,
    )
