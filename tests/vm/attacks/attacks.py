"""The attacks, where each is tried, and what of it must be seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Rights = Literal["docker", "ctr", "privileged", "privileged, cgroupns=host"]
"""Docker's defaults; the same without a seccomp filter, as ctr has it; `--privileged`, and the same
in the host's namespace of control groups."""

Place = Literal["overlay", "ext4", "xfs", "btrfs", "tmpfs"]
"""What /data is: a directory of the image, or a volume on a file system of this kind."""

DISKS: tuple[Place, ...] = ("ext4", "xfs", "btrfs")
ALL: tuple[Place, ...] = ("overlay", *DISKS, "tmpfs")

TRUE = "true digest"
"""The record of a file with the digest of what ran. All other evidence is the kind of a `violation`
or `memory` record; an attack that is denied leaves one too."""
CHANGED = frozenset({TRUE, "unstable", "unnamed", "changed"})
REACHED = frozenset({"changed", "guard"})
WRITTEN_LATER = ("changed_after_use", "changed_script", "lost_pages", "written_while_it_runs")
MEMORY = frozenset({"execmem", "execmod", "execheap", "execstack"})


@dataclass(frozen=True)
class Attack:
    """One way to have foreign code run, in one place, with these rights.

    `arguments` are the program's own; any one of `evidence` must be seen.
    """

    arguments: str
    what: str
    evidence: frozenset[str]
    rights: Rights = "docker"
    place: Place = "overlay"

    def __str__(self) -> str:
        return f"{self.arguments}, {self.place}, {self.rights}"

    @property
    def runs_where_enforced(self) -> bool:
        """Whether what runs is a good file, and what is done beside it recorded, not refused."""
        return self.name in WRITTEN_LATER or self.evidence & {"guard", "helper"} != set()

    @property
    def spoils_its_volume(self) -> bool:
        """Whether what is done to the file system shows in others' files on it."""
        return self.name in {"below_the_files", "remounted"}

    @property
    def name(self) -> str:
        return self.arguments.split()[0]


def _places(places: tuple[Place, ...], arguments: str, what: str, *seen: str) -> list[Attack]:
    return [Attack(arguments, what, frozenset(seen), "docker", place) for place in places]


def _stale() -> list[Attack]:
    changed = tuple(CHANGED)
    owned = "changed through a page that is dirty, kept by IMA's rule for our own files"
    return [
        *_places(ALL, "stale_library", "changed through a page that is dirty already", *changed),
        *_places(("overlay",), "stale_program", "the same, a program", *changed),
        *_places(("overlay",), "stale_script", "the same, a script", *changed),
        *_places(("tmpfs", "ext4"), "stale_when_owned {owner}", owned, *changed),
        *_places(
            (*DISKS, "tmpfs"), "stale_from_neighbour use", "dirty from another container", *changed
        ),
        *_places(ALL, "truncated_by_path", "cut off by truncate(2)", *changed),
        *_places(
            ("ext4",), "moved_extents after_use", "blocks moved by EXT4_IOC_MOVE_EXT", *changed
        ),
        *_places(("ext4",), "moved_extents before_use", "the same, before its first use", *changed),
        Attack("own_overlay", "the lower file of its own overlay", CHANGED, "privileged"),
        *_places(ALL, "alias hard_link", "changed by its other name", *changed),
        *_places(ALL, "past_the_end", "code behind the file's end, in its last page", "unstable"),
        *_places(
            ("overlay",), "past_the_end beyond_share", "the same, beyond 65,536 files", "unstable"
        ),
        *_places(("overlay", *DISKS), "read_in_flight", "a read from a disk lands in it", *changed),
        *_places(
            ("overlay", "ext4"), "direct_write opened", "a direct write fails half-way", "unstable"
        ),
        *_places(("overlay",), "direct_write fcntl", "the same, with F_SETFL", "unstable"),
        *_places(("xfs", "btrfs"), "deduplicated", "given another file's blocks", *changed),
        Attack("handed_through", "the pages of a file behind FUSE", CHANGED, "privileged", "ext4"),
        Attack("handed_through", "the same, an overlay's", CHANGED, "privileged"),
        Attack("lower_by_handle", "a layer's file, opened by its handle", CHANGED, "privileged"),
        Attack("pinned_pages code", "read into registered buffers", CHANGED, "ctr", "tmpfs"),
        Attack("pinned_pages program", "the same, a program", CHANGED, "ctr", "tmpfs"),
        Attack(
            "below_the_files",
            "the block device written to",
            CHANGED | REACHED,
            "privileged",
            "ext4",
        ),
        Attack("remounted read_only", "stale, then read-only", CHANGED, "privileged", "ext4"),
        *_places(("ext4", "btrfs"), "remounted verity", "stale, then under fs-verity", *changed),
        Attack("alias bind_mount", "changed through another mount", CHANGED, "privileged"),
    ]


def _changed() -> list[Attack]:
    ways = ("mapping", "aio", "io_uring", "splice", "sendfile", "copy_file_range")
    disk = ("direct_io", "clone", "collapse")
    found = _places(ALL, "changed_after_use pwrite", "written after it was mapped", *CHANGED)
    for way in ways:
        what = f"written after it was mapped, by {way}"
        found.append(Attack(f"changed_after_use {way}", what, CHANGED, "ctr"))
    for way in disk:
        places: tuple[Place, ...] = ("xfs", "btrfs") if way == "clone" else ("ext4", "xfs")
        what = f"written after it was mapped, by {way}"
        found += _places(places, f"changed_after_use {way}", what, *CHANGED)
    loop = "written after it was mapped, by a loop device"
    found.append(Attack("changed_after_use loop_device", loop, CHANGED, "privileged"))
    for place in ("ext4", "xfs"):
        lost = "cached pages lost before they are written back"
        found.append(Attack("lost_pages", lost, CHANGED, "privileged", place))
    found += _places(
        ("overlay", "tmpfs"), "changed_script", "a script, before its shell reads it", *CHANGED
    )
    stopped = "the same, while its shell is stopped"
    found += _places(("overlay", "tmpfs"), "changed_script stopped", stopped, *CHANGED)
    moded = "the same, copied up by its mode alone"
    found += _places(("overlay",), "changed_script moded", moded, *CHANGED)
    found += _places(("overlay", "ext4"), "written_while_it_runs", "a program that runs", *CHANGED)
    return found


def _memory() -> list[Attack]:
    kinds = {
        "anonymous": "mmap", "anonymous_shared": "mmap, shared", "protected_later": "mprotect",
        "protected_shared": "mprotect, shared", "bss": "mprotect, bss",
        "dev_zero": "/dev/zero", "dev_zero_shared": "/dev/zero, shared", "shmat": "shmat SHM_EXEC",
        "memfd": "memfd, mapped", "memfd_shared": "memfd, writable too",
        "memfd_two_views": "memfd, mapped twice", "file_private": "a good file, writable too",
        "vdso": "the vDSO, writable too",
    }  # fmt: skip
    found = []
    for kind, what in kinds.items():
        seen = MEMORY | {"unnamed"}
        if kind.startswith("memfd"):
            seen |= {TRUE, "unstable"}
        found.append(Attack(f"execmem {kind}", f"executable memory: {what}", seen))
    for kind in ("memfd_secret", "read_implies_exec", "by_pkey", "brk"):
        what = f"executable memory: {kind}"
        found.append(Attack(f"execmem {kind}", what, MEMORY | {"unnamed", "unstable"}, "ctr"))
    for kind in ("huge_anonymous", "huge_memfd", "huge_shm"):
        what = f"executable memory: huge pages, {kind[5:]}"
        found.append(Attack(f"execmem {kind}", what, MEMORY | {"unnamed", "unstable"}))
    for mode, what in {
        "mapping": "a good file's mapping, written to",
        "again": "a good file's code, written to",
        "text": "the program's own code, written to",
        "heap": "the heap",
        "stack": "the stack",
    }.items():
        found.append(Attack(f"execmod {mode}", f"made executable: {what}", MEMORY))
    for mode, what in {
        "private": "by mprotect",
        "shared": "by mprotect, shared",
        "personality": "by READ_IMPLIES_EXEC",
    }.items():
        seen = frozenset({TRUE, "unstable"})
        rights: Rights = "ctr" if mode == "personality" else "docker"
        attack = f"file_made_executable {mode}"
        found.append(Attack(attack, f"a file made executable {what}", seen, rights))
    found.append(
        Attack("userfault", "userfaultfd over a good file", MEMORY | REACHED, "ctr", "tmpfs")
    )
    for mode in ("packet", "io_uring"):
        rights = "docker" if mode == "packet" else "privileged"
        seen = MEMORY | {"unnamed", "unstable"}
        found.append(
            Attack(f"kernel_memory {mode}", f"memory lent by the kernel: {mode}", seen, rights)
        )
    found += [
        Attack("process_memory proc_mem", "written through /proc/self/mem", REACHED),
        Attack("process_memory ptrace", "written by ptrace", REACHED),
        Attack("traced_by_parent", "a child that asks to be traced", REACHED),
        Attack(
            "process_memory process_vm_writev",
            "written by process_vm_writev",
            MEMORY | REACHED,
        ),
    ]
    return found


def _elsewhere() -> list[Attack]:
    true, guard, helper = frozenset({TRUE}), frozenset({"guard", TRUE}), frozenset({"helper", TRUE})
    found = [
        Attack(f"nameless {mode}", f"a program without a name: {mode}", evidence)
        for mode, evidence in (
            ("memfd", true | {"unstable"}),
            ("memfd_exec", true | {"unstable"}),
            ("deleted", true),
            ("tmpfile", true),
        )
    ]
    for mode in ("rename", "exchange", "hard_link", "symlink", "reuse"):
        found += _places(ALL, f"renamed {mode}", f"another file under the name: {mode}", TRUE)
    for mode in ("vfork", "vm", "thread", "orphan"):
        found.append(Attack(f"lineage {mode}", f"executed by a task of {mode}", true))
    for mode in ("newns", "user", "cgroup", "parent", "all"):
        rights: Rights = "privileged" if mode in {"newns", "cgroup"} else "ctr"
        found.append(Attack(f"lineage {mode}", f"executed by a task of {mode}", true, rights))
    found += [
        Attack("many_namespaces 1100", "1,100 mount namespaces", true, "privileged"),
        Attack("own_user_namespace", "a user namespace of its own", true, "ctr"),
        Attack("foreign_namespace", "somebody else's namespaces, by descriptor", true, "ctr"),
        Attack("namespace_of_a_tree open_tree", "OPEN_TREE_NAMESPACE", true, "ctr"),
        Attack("namespace_of_a_tree fsmount", "FSMOUNT_NAMESPACE", true, "privileged"),
        Attack("foreign_init /sbin/docker-init", "a program under the init program's path", true),
        Attack("huge_file 6000", "a file too large to hash", frozenset({"unnamed", "unstable"})),
        Attack("run_by_kernel core", "core_pattern", helper, "privileged"),
        Attack("run_by_kernel modprobe", "modprobe", helper, "privileged"),
        Attack("run_by_kernel binfmt", "binfmt_misc", helper, "privileged"),
        *(
            Attack(f"run_by_kernel {mode}", what, helper, "privileged, cgroupns=host")
            for mode, what in (
                ("release_agent", "release_agent of control groups"),
                ("release_option", "the same, by mount(2)"),
                ("release_remount", "the same, by a remount"),
            )
        ),
        *(
            Attack(f"kernel_code {mode}", f"code for the kernel: {mode}", guard, "privileged")
            for mode in ("module", "module_file", "kexec")
        ),
        Attack("probed", "a probe keeps what the file held", guard, "privileged"),
        Attack("blinded_sensor maps", "the sensor's maps emptied", guard, "privileged"),
        Attack("blinded_sensor links", "the sensor's programs detached", guard, "privileged"),
        Attack("blinded_sensor ftrace", "the kernel's tracing off", guard, "privileged"),
        Attack("blinded_sensor kprobes", "probes off", guard, "privileged"),
    ]
    return found


ATTACKS = (*_stale(), *_changed(), *_memory(), *_elsewhere())

OPEN: frozenset[str] = frozenset()
"""Arguments of attacks that are known to get through, each a hole in what is promised."""


def went_unseen(outcome: Mapping[str, object]) -> bool:
    """Whether what is kept of an attack says that it ran and left nothing, or was trusted."""
    if "absent" in outcome or not outcome["ran"]:
        return False
    return outcome["verdict"] == "TRUSTED" or not outcome["evidence"]
