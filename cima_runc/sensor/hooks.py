"""Which of the sensor's programs are loaded, by what the running kernel has.

Pure: what the kernel has in, names of programs out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

Arguments = Callable[[str], int | None]
"""How many arguments a function of the kernel has; None: this kernel has no such function."""

TASKS: Final = "cima_tasks"
"""The program that is run once, over the tasks that are there already."""

_LSM: Final = "bpf_lsm_"

_NEEDED: Final = {
    "cima_task_alloc": "bpf_lsm_task_alloc",
    "cima_bprm_check": "bpf_lsm_bprm_check_security",
    "cima_execve_check": "bpf_lsm_bprm_creds_for_exec",
    "cima_committed": "bpf_lsm_bprm_committed_creds",
    "cima_mmap_file": "bpf_lsm_mmap_file",
}
"""Without these there is no sensor."""

_WRITES: Final = {
    "cima_collect_begins": "ima_collect_measurement",
    "cima_collect_ends": "ima_collect_measurement",
    "cima_file_open": "bpf_lsm_file_open",
    "cima_inode_free": "bpf_lsm_inode_free_security",
    "cima_sb_alloc": "bpf_lsm_sb_alloc_security",
    "cima_mount": "bpf_lsm_sb_kern_mount",
    "cima_remount": "bpf_lsm_sb_remount",
    "cima_file_fcntl": "bpf_lsm_file_fcntl",
    "cima_ioctl": "bpf_lsm_file_ioctl",
    "cima_sb_free": "bpf_lsm_sb_free_security",
    "cima_pages_lost": "__filemap_set_wb_err",
}
"""Without one of these nobody can say whether a file was written."""

_LATE: Final = {"cima_ima_bprm": "ima_bprm_check", "cima_ima_mmap": "ima_file_mmap"}
"""Without one of these new files are hashed twice."""

_KINDS: Final = {
    "cima_file_mprotect": "bpf_lsm_file_mprotect",
    "cima_personality": "__x64_sys_personality",
    "cima_ptrace": "bpf_lsm_ptrace_access_check",
    "cima_traceme": "bpf_lsm_ptrace_traceme",
    "cima_anon_inode": "bpf_lsm_inode_init_security_anon",
    "cima_bpf": "bpf_lsm_bpf",
    "cima_unlink": "bpf_lsm_inode_unlink",
    "cima_rename": "bpf_lsm_inode_rename",
    "cima_umount": "bpf_lsm_sb_umount",
    "cima_mount_option": "bpf_lsm_fs_context_parse_param",
    "cima_load_data": "bpf_lsm_kernel_load_data",
    "cima_read_file": "bpf_lsm_kernel_read_file",
    "cima_free_inum": "proc_free_inum",
}
"""Without one of these there is a kind of event that this kernel cannot report."""

_SCRIPTS: Final = {"cima_exit_files": "exit_files"}
"""Without it a script stays in use after its interpreter has ended."""

_CALLS: Final = {
    "cima_personality_32": ("__ia32_sys_personality", "__ia32_sys_personality"),
    "cima_pinned": ("io_pin_pages", "__x64_sys_io_uring_setup"),
    "cima_umem": ("xdp_umem_create", "xsk_create"),
    "cima_ioctl_compat": ("bpf_lsm_file_ioctl_compat", "bpf_lsm_file_ioctl_compat"),
    "cima_dedupe": ("generic_remap_file_range_prep", "vfs_dedupe_file_range"),
    "cima_uprobe": ("uprobe_register", "uprobe_register"),
    "cima_uprobe_counted": ("uprobe_register_refctr", "uprobe_register_refctr"),
    "cima_swapon": ("__x64_sys_swapon", "__x64_sys_swapon"),
    "cima_swapon_32": ("__ia32_sys_swapon", "__ia32_sys_swapon"),
}
"""What is looked at, and what a kernel has where it can be done at all."""

_CAST: Final = "bpf_rdonly_cast"
"""From Linux 6.2 on; the programs do the same without it, in more instructions."""

_SETATTR: Final = {2: "cima_setattr_2", 3: "cima_setattr_3"}
_BIRTHS: Final = {"cima_ns_born": "__ns_tree_gen_id", "cima_copy_mnt_ns": "copy_mnt_ns"}
"""The first that the kernel has is where mount namespaces are born."""
_READS: Final = {
    "cima_file_post_open": "bpf_lsm_file_post_open",
    "cima_file_open_read": "bpf_lsm_file_open",
}
"""The first that the kernel has is where reading is measured."""


@dataclass(frozen=True)
class Choice:
    """The programs for one kernel."""

    programs: frozenset[str]
    missing: tuple[str, ...]
    """The kernel's functions that it does not have, sorted."""
    sees_writes: bool
    """Whether it can be said that a file was not written since it was hashed."""
    late: bool
    """Whether IMA's own hashing can be waited for."""
    casts: bool
    """Whether programs can read the kernel's structures by their addresses without a call."""


def choose(arguments: Arguments, *, reads: bool) -> Choice:
    """Return the programs to load, ``reads`` where files that are read are measured.

    Raises:
        LookupError: the kernel lacks a function without which there is no sensor; its name.
    """
    missing = set()

    def has(function: str) -> bool:
        if arguments(function) is not None:
            return True
        missing.add(function.removeprefix(_LSM))
        return False

    for function in _NEEDED.values():
        if not has(function):
            raise LookupError(function.removeprefix(_LSM))
    programs = set(_NEEDED)
    setattr_ = _SETATTR.get(arguments("bpf_lsm_inode_setattr") or 0)
    if setattr_ is None:
        missing.add("inode_setattr")
    else:
        programs.add(setattr_)
    groups = {}
    for name, group in {"writes": _WRITES, "late": _LATE, "kinds": _KINDS}.items():
        there = {program for program, function in group.items() if has(function)}
        programs |= there
        groups[name] = len(there) == len(group)
    possible = {name for name, (_, call) in _CALLS.items() if arguments(call) is not None}
    calls = {program for program in possible if has(_CALLS[program][0])}
    programs |= calls
    programs |= {name for name, function in _SCRIPTS.items() if arguments(function) is not None}
    programs |= _first_of(_BIRTHS, arguments, missing)
    if reads:
        programs |= _first_of(_READS, arguments, missing)
    return Choice(
        frozenset(programs),
        tuple(sorted(missing)),
        sees_writes=groups["writes"] and setattr_ is not None and calls == possible,
        late=groups["late"] and groups["writes"],
        casts=arguments(_CAST) is not None,
    )


def missing_for(programs: Iterable[str]) -> tuple[str, ...]:
    """Return the kernel's functions for which there is no program among these, sorted.

    Those without which a file is hashed twice, and nothing else, are not among them.
    """
    there = set(programs)
    lacking = {
        function.removeprefix(_LSM)
        for program, function in {**_WRITES, **_KINDS}.items()
        if program not in there
    }
    if not there & set(_SETATTR.values()):
        lacking.add("inode_setattr")
    if not there & set(_BIRTHS):
        lacking.add("copy_mnt_ns")
    return tuple(sorted(lacking))


def _first_of(some: dict[str, str], arguments: Arguments, missing: set[str]) -> set[str]:
    for program, function in some.items():
        if arguments(function) is not None:
            return {program}
    missing.update(function.removeprefix(_LSM) for function in some.values())
    return set()
