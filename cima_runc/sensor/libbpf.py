"""What the loader uses of libbpf.so.1 (1.0 or later), through ctypes.

The functions keep libbpf's names and order of arguments. Those that fail raise OSError.
"""

import ctypes
import errno
import os
from collections import deque
from collections.abc import Collection, Iterator
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Final

BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
_BPF_MAP_TYPE_HASH: Final = 1
_BTF_KIND_FUNC: Final = 12

_PRINT_FUNCTION: Final = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_MESSAGE_SIZE: Final = 1 << 20
"""Bytes of one message of libbpf that are kept; a verifier's log comes as one message."""


_messages: deque[str] = deque(maxlen=64)
_vsnprintf = ctypes.CDLL(None).vsnprintf
_vsnprintf.argtypes = (c_void_p, c_size_t, c_char_p, c_void_p)


def _keep_message(level: int, text: bytes, arguments: int) -> int:
    """Take a message of libbpf; ``arguments`` is the va_list, on x86-64 a pointer."""
    if level == 0:  # LIBBPF_WARN
        buffer = ctypes.create_string_buffer(_MESSAGE_SIZE)
        _vsnprintf(buffer, _MESSAGE_SIZE, text, arguments)
        _messages.append(buffer.value.decode(errors="replace"))
    return 0


_print: Final = _PRINT_FUNCTION(_keep_message)


class _ProgInfo(ctypes.Structure):
    """The start of ``struct bpf_prog_info`` (include/uapi/linux/bpf.h), up to what is read here."""

    _fields_ = (
        ("_before", ctypes.c_uint8 * 208),
        ("recursion_misses", c_uint64),
    )


class _MapInfo(ctypes.Structure):
    """The start of ``struct bpf_map_info`` (include/uapi/linux/bpf.h), up to what is read here."""

    _fields_ = (
        ("_before", c_uint32 * 3),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
    )


class _BtfType(ctypes.Structure):
    """``struct btf_type`` (include/uapi/linux/btf.h)."""

    _fields_ = (("name_off", c_uint32), ("info", c_uint32), ("type", c_uint32))


class Libbpf:
    """libbpf.so.1, with the types of its functions. Raises OSError where it is not installed."""

    def __init__(self) -> None:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        self._lib = lib
        for name, result, arguments in _FUNCTIONS:
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
        self.messages = _messages
        """The last warnings that libbpf gave in this process, oldest first."""
        lib.libbpf_set_print(_print)

    def object_open(self, elf: bytes) -> int:
        """Open the BPF object in ``elf``; returns a ``struct bpf_object *``."""
        return self._pointer("bpf_object__open_mem", elf, len(elf), None)

    def object_load(self, obj: int) -> None:
        """Create the maps and have the kernel verify and load the programs."""
        self._status("bpf_object__load", obj)

    def object_close(self, obj: int) -> None:
        """Free the object; its maps and programs live on while something else holds them."""
        self._lib.bpf_object__close(obj)

    def map(self, obj: int, name: str) -> int:
        """Return the ``struct bpf_map *`` of that name."""
        return self._pointer("bpf_object__find_map_by_name", obj, name.encode())

    def map_fd(self, map_: int) -> int:
        """Return the map's file descriptor, which stays libbpf's."""
        return int(self._lib.bpf_map__fd(map_))

    def map_set_max_entries(self, map_: int, entries: int) -> None:
        """Size a map before its object is loaded."""
        self._status("bpf_map__set_max_entries", map_, entries)

    def map_set_initial_value(self, map_: int, value: bytes) -> None:
        """Set the content of a data section's map before its object is loaded."""
        self._status("bpf_map__set_initial_value", map_, value, len(value))

    def programs(self, obj: int) -> Iterator[tuple[str, int]]:
        """Yield the name and the ``struct bpf_program *`` of each program."""
        program = self._lib.bpf_object__next_program(obj, None)
        while program:
            yield self._lib.bpf_program__name(program).decode(), program
            program = self._lib.bpf_object__next_program(obj, program)

    def program_fd(self, program: int) -> int:
        """Return the loaded program's file descriptor, which stays libbpf's."""
        return int(self._lib.bpf_program__fd(program))

    def program_load_too(self, program: int) -> None:
        """Have a program loaded whose section begins with ``?``, before its object is loaded."""
        self._status("bpf_program__set_autoload", program, True)

    def program_leave_out(self, program: int) -> None:
        """Have a program not loaded, before its object is loaded."""
        self._status("bpf_program__set_autoload", program, False)

    def map_reuse(self, map_: int, fd: int) -> None:
        """Take the map ``fd`` instead of a new one, before its object is loaded."""
        self._status("bpf_map__reuse_fd", map_, fd)

    def kernel_types(self) -> int:
        """Return the running kernel's type information, a ``struct btf *``, which stays."""
        return self._pointer("btf__load_vmlinux_btf")

    def arguments(self, types: int, function: str) -> int | None:
        """Return how many arguments a function of the kernel has; None: there is none."""
        number = int(self._lib.btf__find_by_name_kind(types, function.encode(), _BTF_KIND_FUNC))
        if number < 0:
            return None
        prototype = self._lib.btf__type_by_id(types, number).contents.type
        return int(self._lib.btf__type_by_id(types, prototype).contents.info) & 0xFFFF

    def run_iterator(self, link: int) -> None:
        """Run an iterator program, attached as ``link``, over all that it iterates over."""
        result = int(self._lib.bpf_iter_create(self.link_fd(link)))
        if result < 0:
            raise OSError(-result, os.strerror(-result), "bpf_iter_create")
        try:
            while os.read(result, 4096):
                pass
        finally:
            os.close(result)

    def program_attach(self, program: int) -> int:
        """Attach a program where its section says; returns a ``struct bpf_link *``."""
        return self._pointer("bpf_program__attach", program)

    def link_fd(self, link: int) -> int:
        """Return the link's file descriptor, which stays libbpf's."""
        return int(self._lib.bpf_link__fd(link))

    def link_destroy(self, link: int) -> None:
        """Free the link; what it attached is detached where no other descriptor or pin holds it."""
        self._status("bpf_link__destroy", link)

    def pin(self, fd: int, path: bytes) -> None:
        """Give a map, program or link a name in a BPF file system, which then holds it too."""
        self._status("bpf_obj_pin", fd, path)

    def open_pinned(self, path: bytes) -> int:
        """Return a new file descriptor of what is pinned at ``path``; it is the caller's."""
        result = int(self._lib.bpf_obj_get(path))
        if result < 0:
            raise OSError(-result, os.strerror(-result), os.fsdecode(path))
        return result

    def map_max_entries(self, fd: int) -> int:
        """Return how many entries the map ``fd`` has room for; of a ring buffer: its bytes."""
        return int(self._map_info(fd).max_entries)

    def map_value_size(self, fd: int) -> int:
        """Return how many bytes a value of the map ``fd`` has."""
        return int(self._map_info(fd).value_size)

    def _map_info(self, fd: int) -> _MapInfo:
        info = _MapInfo()
        size = c_uint32(ctypes.sizeof(info))
        self._status("bpf_obj_get_info_by_fd", fd, byref(info), byref(size))
        return info

    def recursion_misses(self, program_fd: int) -> int:
        """Return how often the kernel skipped the program because it was running on that CPU."""
        info = _ProgInfo()
        size = c_uint32(ctypes.sizeof(info))
        self._status("bpf_obj_get_info_by_fd", program_fd, byref(info), byref(size))
        return int(info.recursion_misses)

    def open_map(self, map_id: int) -> int:
        """Return a new file descriptor of the map with this number; it is the caller's."""
        result = int(self._lib.bpf_map_get_fd_by_id(map_id))
        if result < 0:
            raise OSError(-result, os.strerror(-result), "bpf_map_get_fd_by_id")
        return result

    def hash_of(self, name: str, keys: Collection[bytes]) -> int:
        """Return the descriptor of a new hash map of these keys, each with one byte; the caller's.

        ``keys`` are of one size, at least one.
        """
        size = len(next(iter(keys)))
        fd = self._lib.bpf_map_create(_BPF_MAP_TYPE_HASH, name.encode(), size, 1, len(keys), None)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), "bpf_map_create")
        count = c_uint32(len(keys))
        values = bytes(len(keys))
        try:
            self._status("bpf_map_update_batch", fd, b"".join(keys), values, byref(count), None)
        except OSError:
            os.close(fd)
            raise
        return int(fd)

    def update(self, fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Set ``key`` of the map ``fd``."""
        self._status("bpf_map_update_elem", fd, key, value, flags)

    def lookup(self, fd: int, key: bytes, value_size: int) -> bytes | None:
        """Return the value of ``key`` in the map ``fd``, or None."""
        return self._value("bpf_map_lookup_elem", fd, key, value_size)

    def take(self, fd: int, key: bytes, value_size: int) -> bytes | None:
        """Remove ``key`` from the map ``fd`` and return what its value was, or None."""
        return self._value("bpf_map_lookup_and_delete_elem", fd, key, value_size)

    def delete(self, fd: int, key: bytes) -> bool:
        """Remove ``key`` from the map ``fd``; returns whether it was there."""
        try:
            self._status("bpf_map_delete_elem", fd, key)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def keys(self, fd: int, key_size: int, limit: int) -> set[bytes]:
        """Return the keys of the hash map ``fd``, after at most ``limit`` steps.

        Where entries go while it walks, the kernel may start over: hence a set, and the limit.
        """
        found: set[bytes] = set()
        key, after = None, ctypes.create_string_buffer(key_size)
        for _ in range(limit):
            try:
                self._status("bpf_map_get_next_key", fd, key, after)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    break
                raise
            key = after.raw
            found.add(key)
        return found

    def _value(self, function: str, fd: int, key: bytes, value_size: int) -> bytes | None:
        value = ctypes.create_string_buffer(value_size)
        try:
            self._status(function, fd, key, value)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def _status(self, function: str, *arguments: object) -> None:
        result = getattr(self._lib, function)(*arguments)
        if result < 0:
            raise OSError(-result, os.strerror(-result), function)

    def _pointer(self, function: str, *arguments: object) -> int:
        result = getattr(self._lib, function)(*arguments)
        if not result:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), function)
        return int(result)


_FUNCTIONS: Final[tuple[tuple[str, Any, list[Any]], ...]] = (
    ("libbpf_set_print", c_void_p, [_PRINT_FUNCTION]),
    ("bpf_object__open_mem", c_void_p, [c_char_p, c_size_t, c_void_p]),
    ("bpf_object__load", c_int, [c_void_p]),
    ("bpf_object__close", None, [c_void_p]),
    ("bpf_object__find_map_by_name", c_void_p, [c_void_p, c_char_p]),
    ("bpf_object__next_program", c_void_p, [c_void_p, c_void_p]),
    ("bpf_map__fd", c_int, [c_void_p]),
    ("bpf_map__set_max_entries", c_int, [c_void_p, c_uint32]),
    ("bpf_map__set_initial_value", c_int, [c_void_p, c_char_p, c_size_t]),
    ("bpf_program__name", c_char_p, [c_void_p]),
    ("bpf_program__fd", c_int, [c_void_p]),
    ("bpf_program__set_autoload", c_int, [c_void_p, c_bool]),
    ("bpf_program__attach", c_void_p, [c_void_p]),
    ("bpf_link__fd", c_int, [c_void_p]),
    ("bpf_link__destroy", c_int, [c_void_p]),
    ("bpf_map__reuse_fd", c_int, [c_void_p, c_int]),
    ("bpf_iter_create", c_int, [c_int]),
    ("btf__load_vmlinux_btf", c_void_p, []),
    ("btf__find_by_name_kind", c_int, [c_void_p, c_char_p, c_uint32]),
    ("btf__type_by_id", POINTER(_BtfType), [c_void_p, c_uint32]),
    ("bpf_obj_pin", c_int, [c_int, c_char_p]),
    ("bpf_obj_get", c_int, [c_char_p]),
    ("bpf_obj_get_info_by_fd", c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    ("bpf_map_get_fd_by_id", c_int, [c_uint32]),
    ("bpf_map_create", c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
    ("bpf_map_update_batch", c_int, [c_int, c_char_p, c_char_p, c_void_p, c_void_p]),
    ("bpf_map_update_elem", c_int, [c_int, c_char_p, c_char_p, c_uint64]),
    ("bpf_map_lookup_elem", c_int, [c_int, c_char_p, c_void_p]),
    ("bpf_map_lookup_and_delete_elem", c_int, [c_int, c_char_p, c_void_p]),
    ("bpf_map_delete_elem", c_int, [c_int, c_char_p]),
    ("bpf_map_get_next_key", c_int, [c_int, c_char_p, c_void_p]),
)
