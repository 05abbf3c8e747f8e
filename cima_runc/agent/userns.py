"""Who has power over a namespace: the owner of the outermost user namespace around it.

The effective uid that made a user namespace has all capabilities in it and in all below it. A user
who was given subordinate ids can make namespaces below his own that these ids own; none of them is
outermost, so the answer is one uid for all that is his. Source: ioctl_ns(2), user_namespaces(7).
"""

import fcntl
import os
import struct

from cima_runc.base.errors import CimaError

_NS_GET_USERNS = 0xB701
_NS_GET_PARENT = 0xB702
_NS_GET_OWNER_UID = 0xB704


class UserNamespaceError(CimaError):
    """The namespace is in no user namespace below our own."""


def around(namespace: int) -> int:
    """Return a new descriptor of the user namespace that owns ``namespace``, which is no user's.

    Raises:
        OSError: it is not one that we may know.
    """
    return fcntl.ioctl(namespace, _NS_GET_USERNS)


def outermost(user_namespace: int) -> int:
    """Return a new descriptor of the outermost user namespace around this one, below our own.

    Raises:
        UserNamespaceError: it is our own, or not below it.
    """
    ours = os.stat("/proc/self/ns/user").st_ino
    inner = os.dup(user_namespace)
    while True:
        try:
            outer = fcntl.ioctl(inner, _NS_GET_PARENT)
        except OSError as error:
            os.close(inner)
            raise UserNamespaceError("it is in no user namespace of its own") from error
        if os.fstat(outer).st_ino == ours:
            os.close(outer)
            return inner
        os.close(inner)
        inner = outer


def owner(user_namespace: int) -> int:
    """Return the effective uid that made a user namespace, as we see it.

    Raises:
        OSError: the descriptor is not of a user namespace.
    """
    (uid,) = struct.unpack("I", fcntl.ioctl(user_namespace, _NS_GET_OWNER_UID, bytes(4)))
    return int(uid)
