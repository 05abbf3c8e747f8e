"""Functions that call each other have 512 bytes of stack together (MAX_BPF_STACK).

Linux 6.1 rounds each function's up to 32 bytes (check_max_stack_depth, kernel/bpf/verifier.c). What
the compiler made of the sensor is looked at here, without a kernel.
"""

import struct
from functools import cache

import pytest

from tests.unit.sensor.test_loops import CALL, INSTRUCTION, OBJECT

MAX_STACK, ROUNDED_TO = 512, 32
UNDEFINED = 0
"""The section of a symbol that is defined elsewhere (SHN_UNDEF)."""
FRAME, TO_FUNCTION, TO_CALLBACK = 10, 1, 4
ADD, MOVE, LOAD, LOAD_IMM64 = 0x07, 0xBF, {0x61, 0x69, 0x71, 0x79}, 0x18
STORE = {0x62, 0x63, 0x6A, 0x6B, 0x72, 0x73, 0x7A, 0x7B, 0xC3, 0xDB}


class Program:
    """The functions of an ELF object: how much stack each takes, and which it calls."""

    def __init__(self, elf: bytes) -> None:
        (table,) = struct.unpack_from("<Q", elf, 40)
        size, count = struct.unpack_from("<HH", elf, 58)
        self.elf = elf
        self.sections = [
            struct.unpack_from("<IIQQQQIIQQ", elf, table + n * size) for n in range(count)
        ]
        (symbols,) = (section for section in self.sections if section[1] == 2)  # SHT_SYMTAB
        names = elf[self.sections[symbols[6]][4] :]
        self.symbols = []
        self.at: dict[tuple[int, int], str] = {}
        self.code: dict[str, tuple[int, int, int]] = {}
        for place in range(symbols[4], symbols[4] + symbols[5], 24):
            name, info, _, section, value, length = struct.unpack_from("<IBBHQQ", elf, place)
            self.symbols.append((section, value))
            if info & 15 == 2 and length:  # STT_FUNC
                text = names[name : names.index(b"\0", name)].decode()
                self.at[section, value] = text
                self.code[text] = (section, value, length)

    def relocations(self, section: int) -> dict[int, tuple[int, int]]:
        """Where in the section which place is meant."""
        found = {}
        for _, kind, _, _, offset, length, _, info, _, _ in self.sections:
            if kind == 9 and info == section:  # SHT_REL
                for place in range(offset, offset + length, 16):
                    where, what = struct.unpack_from("<QQ", self.elf, place)
                    found[where] = self.symbols[what >> 32]
        return found

    @cache  # noqa: B019 - one object, for these tests alone
    def frame(self, name: str) -> tuple[int, frozenset[str]]:
        """The bytes of a function's stack, and the functions that it calls."""
        section, begin, length = self.code[name]
        relocations = self.relocations(section)
        base = self.sections[section][4]
        deepest, calls, copies = 0, set(), set()
        for at in range(begin, begin + length, INSTRUCTION.size):
            opcode, registers, offset, immediate = INSTRUCTION.unpack_from(self.elf, base + at)
            to, by = registers & 15, registers >> 4
            if (opcode in STORE and to == FRAME) or (opcode in LOAD and by == FRAME):
                deepest = max(deepest, -offset)
            elif opcode == MOVE:
                copies.discard(to)
                copies |= {to} if by == FRAME else set()
            elif opcode == ADD and to in copies:
                deepest = max(deepest, -immediate)
            if opcode == CALL and by == TO_FUNCTION:
                where, value = relocations.get(at, (section, at + INSTRUCTION.size))
                value += (immediate + 1) * 8 if at in relocations else immediate * 8
                if where != UNDEFINED:  # not one of the kernel's, which has its own stack
                    calls.add(self.at[where, value])
            elif opcode == LOAD_IMM64 and at in relocations:
                where, value = relocations[at]
                if (where, value + immediate) in self.at:  # a callback
                    calls.add(self.at[where, value + immediate])
        return -(-deepest // ROUNDED_TO) * ROUNDED_TO, frozenset(calls)

    def depth(self, name: str) -> int:
        """The bytes of stack of a function and those that it calls."""
        own, calls = self.frame(name)
        return max(own, 1) + max(map(self.depth, calls), default=0)


PROGRAM = Program(OBJECT.read_bytes())


def test_it_sees_what_is_called() -> None:
    assert "send" in PROGRAM.frame("note")[1]
    assert PROGRAM.frame("send")[0] >= 64


@pytest.mark.parametrize("name", sorted(PROGRAM.code))
def test_the_stack_is_large_enough(name: str) -> None:
    assert PROGRAM.depth(name) <= MAX_STACK
