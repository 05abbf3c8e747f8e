"""Linux 6.1 refuses a loop that a call falls back into ("back-edge from insn N to M").

Which way round the compiler lays a loop out decides. What it made of the sensor is looked at here,
without that kernel.
"""

import struct
from pathlib import Path

import pytest

from cima_runc.sensor import hooks

OBJECT = Path(hooks.__file__).with_name("sensor.bpf.o")
INSTRUCTION = struct.Struct("<BBhi")
JMP, JMP32 = 5, 6
JA, CALL, EXIT, LD_IMM64 = 0x05, 0x85, 0x95, 0x18

Edge = tuple[int, bool]
"""Where an instruction leads to, and whether that may close a loop: a jump may."""


def edges(at: int, code: bytes) -> list[Edge]:
    """Where the instruction leads to, in the order of check_cfg (kernel/bpf/verifier.c)."""
    opcode, _, offset, _ = INSTRUCTION.unpack_from(code, at * INSTRUCTION.size)
    if opcode == EXIT:
        return []
    if opcode == JA:
        return [(at + 1 + offset, True)]
    if opcode & 7 in {JMP, JMP32} and opcode != CALL:
        return [(at + 1, True), (at + 1 + offset, True)]
    return [(at + (2 if opcode == LD_IMM64 else 1), False)]


def back_edges(code: bytes) -> list[tuple[int, int]]:
    """The edges for which Linux 6.1 refuses a function."""
    found, done, on_the_way = [], set(), {0}
    stack = [(0, iter(edges(0, code)))]
    while stack:
        at, rest = stack[-1]
        for target, may_close in rest:
            if target in on_the_way and not may_close:
                found.append((at, target))
            if target not in on_the_way and target not in done:
                on_the_way.add(target)
                stack.append((target, iter(edges(target, code))))
                break
        else:
            stack.pop()
            on_the_way.remove(at)
            done.add(at)
    return found


def functions(elf: bytes) -> dict[str, bytes]:
    """The functions of an ELF object by name."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + n * size) for n in range(count)]
    (symbols,) = (section for section in sections if section[1] == 2)  # SHT_SYMTAB
    names = elf[sections[symbols[6]][4] :]
    found = {}
    for at in range(symbols[4], symbols[4] + symbols[5], 24):
        name, info, _, section, value, length = struct.unpack_from("<IBBHQQ", elf, at)
        if info & 15 == 2 and length:  # STT_FUNC
            begin = sections[section][4] + value
            found[names[name : names.index(b"\0", name)].decode()] = elf[begin : begin + length]
    return found


def assembled(*instructions: tuple[int, int]) -> bytes:
    return b"".join(INSTRUCTION.pack(opcode, 0, offset, 0) for opcode, offset in instructions)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        # if (x) goto 3; 1: r0 = 0; 2: exit; 3: r0 = 0; 4: call; 5: if (x) goto 3; 6: exit
        (
            assembled((0x15, 2), (0xB7, 0), (EXIT, 0), (0xB7, 0), (CALL, 0), (0x15, -3), (EXIT, 0)),
            [],
        ),
        # goto 2; 1: call; 2: if (x) goto 1; 3: exit
        (assembled((JA, 1), (CALL, 0), (0x15, -2), (EXIT, 0)), [(1, 2)]),
    ],
    ids=["ends with a jump", "a call falls back into it"],
)
def test_it_tells_one_loop_from_the_other(code: bytes, found: list[tuple[int, int]]) -> None:
    assert back_edges(code) == found


@pytest.mark.parametrize("name", sorted(functions(OBJECT.read_bytes())))
def test_no_call_falls_back_into_a_loop(name: str) -> None:
    assert back_edges(functions(OBJECT.read_bytes())[name]) == []
