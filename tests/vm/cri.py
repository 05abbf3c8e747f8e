"""A client of the Kubernetes Container Runtime Interface, as far as tests need it.

gRPC with messages written by hand: (field number, value) pairs out, {field number: values} in.
Numbers from api.proto of k8s.io/cri-api, package runtime.v1; encoding from protobuf.dev.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import grpc

from tests.vm import guest

SOCKET = "unix:///run/containerd/containerd.sock"
POD, CONTAINER, NODE, TARGET = 0, 1, 2, 3
RUNNING, EXITED = 1, 2

Message = Sequence[tuple[int, Any]]


def encode(message: Message) -> bytes:
    """Values are whole numbers, texts, or messages again."""
    out = b""
    for number, value in message:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else encode(value)
            out += _varint(number << 3 | 2) + _varint(len(raw)) + raw
    return out


def decode(raw: bytes) -> dict[int, list[Any]]:
    """What is a message or a text is left as bytes; signed numbers are not looked for."""
    fields = defaultdict(list)
    at = 0
    while at < len(raw):
        key, at = _read_varint(raw, at)
        value: Any
        value, at = _read_varint(raw, at)
        if key & 7 == 2:
            value, at = raw[at : at + value], at + value
        fields[key >> 3].append(value)
    return fields


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if raw[at - 1] < 0x80:
            return value, at


class Cri:
    """containerd's CRI plugin."""

    def __init__(self) -> None:
        # Go's gRPC takes no socket path for an authority.
        self._channel = grpc.insecure_channel(SOCKET, [("grpc.default_authority", "localhost")])
        guest.wait_for("containerd's CRI plugin", self._is_ready, 300)

    def _is_ready(self) -> bool:
        """The plugin is up some time after containerd itself, which refuses calls until then."""
        try:
            self.call("Status")
        except grpc.RpcError:
            return False
        return True

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, *message: tuple[int, Any]) -> dict[int, list[Any]]:
        service = "ImageService" if "Image" in method else "RuntimeService"
        ask = self._channel.unary_unary(f"/runtime.v1.{service}/{method}")
        return decode(ask(encode(message), timeout=300, wait_for_ready=True))

    def run_pod(self, pod: Message, handler: str) -> str:
        (made,) = self.call("RunPodSandbox", (1, pod), (2, handler))[1]
        return str(made.decode())

    def create(self, pod_id: str, pod: Message, container: Message) -> str:
        (made,) = self.call("CreateContainer", (1, pod_id), (2, container), (3, pod))[1]
        return str(made.decode())

    def status(self, container_id: str) -> dict[int, list[Any]]:
        return decode(self.call("ContainerStatus", (1, container_id))[1][0])

    def state(self, container_id: str) -> tuple[int, int]:
        """The container's state and exit code."""
        status = self.status(container_id)
        return status.get(3, [0])[0], status.get(7, [0])[0]

    def exec(self, container_id: str, *command: str) -> tuple[int, bytes, bytes]:
        words = [(2, word) for word in command]
        done = self.call("ExecSync", (1, container_id), *words, (3, 120))
        out, err, code = (done.get(number, [b""])[0] for number in (1, 2, 3))
        return code or 0, out, err
