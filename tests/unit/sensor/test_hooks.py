"""Which programs are loaded on which kernel, by what was seen in the type information of each."""

import re
from pathlib import Path

import pytest

from cima_runc.sensor import hooks
from cima_runc.sensor.hooks import Choice, choose

SOURCES = Path(hooks.__file__).parent
COMMON = {
    **dict.fromkeys(
        {
            *hooks._NEEDED.values(),
            *hooks._WRITES.values(),
            *hooks._LATE.values(),
            *hooks._KINDS.values(),
            *hooks._SCRIPTS.values(),
            "copy_mnt_ns",
        },
        2,
    ),
}
LENT = {name: 1 for function, call in hooks._CALLS.values() for name in (function, call)}
LINUX_6_1 = {**COMMON, "bpf_lsm_inode_setattr": 2}
LINUX_6_12 = {
    **COMMON,
    "bpf_lsm_inode_setattr": 3,
    "bpf_lsm_file_post_open": 2,
    "bpf_rdonly_cast": 2,
}
LINUX_7_3 = {**LINUX_6_12, "__ns_tree_gen_id": 2}


def chosen(kernel: dict[str, int], *, without: str = "", reads: bool = True) -> Choice:
    return choose(lambda name: None if name == without else kernel.get(name), reads=reads)


@pytest.mark.parametrize(
    ("kernel", "own"),
    [
        (LINUX_6_1, {"cima_setattr_2", "cima_copy_mnt_ns", "cima_file_open_read"}),
        (LINUX_6_12, {"cima_setattr_3", "cima_copy_mnt_ns", "cima_file_post_open"}),
        (LINUX_7_3, {"cima_setattr_3", "cima_ns_born", "cima_file_post_open"}),
    ],
    ids=["6.1", "6.12", "7.3"],
)
def test_each_kernel_has_programs_of_its_own(kernel: dict[str, int], own: set[str]) -> None:
    choice = chosen(kernel)
    assert own <= choice.programs
    assert not choice.missing
    assert (choice.sees_writes, choice.late) == (True, True)
    assert choice.casts == (kernel is not LINUX_6_1)
    assert not chosen(kernel, reads=False).programs & set(hooks._READS)


@pytest.mark.parametrize("function", sorted({*hooks._WRITES.values(), "bpf_lsm_inode_setattr"}))
def test_where_writes_are_not_seen_nothing_is_believed(function: str) -> None:
    choice = chosen(LINUX_6_12, without=function)
    assert not choice.sees_writes
    assert function.removeprefix("bpf_lsm_") in choice.missing


@pytest.mark.parametrize(("function", "call"), sorted(hooks._CALLS.values()))
def test_what_can_be_done_is_looked_at_or_nothing_is_believed(function: str, call: str) -> None:
    kernel = {**LINUX_6_12, **LENT}
    assert set(hooks._CALLS) <= chosen(kernel).programs
    without = {name: count for name, count in kernel.items() if name != call}
    assert not chosen(without).missing
    assert chosen(without).sees_writes
    if function != call:
        assert chosen(kernel, without=function).missing == (function,)
        assert not chosen(kernel, without=function).sees_writes


@pytest.mark.parametrize("function", sorted(hooks._LATE.values()))
def test_without_the_end_of_ima_s_check_nothing_waits_for_it(function: str) -> None:
    choice = chosen(LINUX_6_12, without=function)
    assert (choice.sees_writes, choice.late) == (True, False)


@pytest.mark.parametrize("function", sorted(hooks._KINDS.values()))
def test_a_kind_of_event_that_a_kernel_cannot_report_is_said(function: str) -> None:
    assert chosen(LINUX_6_12, without=function).missing == (function.removeprefix("bpf_lsm_"),)


def test_where_nobody_says_that_an_interpreter_ended_its_script_stays_in_use() -> None:
    assert "cima_exit_files" in chosen(LINUX_6_12).programs
    without = chosen(LINUX_6_12, without="exit_files")
    assert "cima_exit_files" not in without.programs
    assert (without.missing, without.sees_writes) == ((), True)


@pytest.mark.parametrize("function", sorted(hooks._NEEDED.values()))
def test_without_these_there_is_no_sensor(function: str) -> None:
    with pytest.raises(LookupError, match=function.removeprefix("bpf_lsm_")):
        chosen(LINUX_6_12, without=function)


def test_every_program_in_the_sources_is_one_that_can_be_chosen() -> None:
    texts = "".join(file.read_text() for file in SOURCES.glob("*.h"))
    known = set().union(*map(set, (hooks._NEEDED, hooks._WRITES, hooks._LATE, hooks._KINDS)))
    known |= {*hooks._SETATTR.values(), *hooks._BIRTHS, *hooks._READS, *hooks._CALLS}
    known |= set(hooks._SCRIPTS)
    assert set(re.findall(r"^int BPF_PROG\((\w+)", texts, re.M)) == known
    assert f"int {hooks.TASKS}(" in texts
