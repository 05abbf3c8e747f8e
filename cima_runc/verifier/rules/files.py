"""Every file that ran is in the image, at that path and with that content, or allowed."""

from collections.abc import Iterator

from cima_runc.base.text import printable
from cima_runc.ima.template import Func
from cima_runc.verifier.pattern import exactly
from cima_runc.verifier.policy import AllowedFile
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.result import Finding, brief
from cima_runc.verifier.rules.image_files import ImageFiles
from cima_runc.verifier.rules.mounts import Places, is_engines_init
from cima_runc.verifier.toml import quoted

_DONE = {
    Func.BPRM_CHECK: "executed",
    Func.MMAP_CHECK: "mapped as a library",
    Func.FILE_CHECK: "read",
}


def check_file(
    path: bytes,
    digest: bytes,
    func: Func,
    *,
    record: int,
    image: ImageFiles,
    host: HostReference | None,
    places: Places,
    allowed: tuple[AllowedFile, ...],
    init: tuple[bytes, bytes] | None,
) -> Iterator[Finding]:
    """Yield what is wrong with a file that ran: nothing, where the image has it as it is.

    ``path`` is the kernel's, ``digest`` SHA-256 of the content (32 bytes). ``places`` are
    its mounts'. ``init`` is path and digest of what ran as the container's first process, where
    that is to be an engine's init.
    """
    got, shown, done = digest.hex(), printable(path), _DONE[func]
    found = image.resolve(path) if path.startswith(b"/") else None
    if found is not None and found.type == "file" and found.sha256 == got:
        return
    by_policy = next((each for each in allowed if each.allows(path, digest)), None)
    if by_policy is not None:
        yield _allowed(by_policy, shown, got, done, record)
        return
    mount = places.over(path)
    if mount is not None and is_engines_init(mount, path, image) and init == (path, digest):
        yield from _engines_init(mount.source, shown, got, record, host)
        return
    key = f"[[files]] path = {quoted(exactly(path))}, sha256 = ['{got}']"
    expected = "no such file"
    if found is not None and found.type == "file":
        rule, expected = "file.changed", found.sha256 or ""
        what = f"{shown} was {done}, and is not what the image has there: drift, it was written"
    elif found is not None:
        rule, expected = "file.changed", f"a {found.type}"
        what = f"{shown} was {done}, where the image has a {found.type}: drift, it was written"
    else:
        rule = "file.added"
        what = f"{shown} was {done}, and the image has no such file: drift, it was written"
    if mount is not None:
        rule = "file.mounted"
        source = brief(mount.source)
        what = f"{shown} was {done} from the mount {brief(mount.destination)} of {source}"
    else:
        what += " since the image was made"
    copy = image.with_content(got)
    if copy is not None:
        what += f"; its content is that of the image's {copy}"
    yield Finding(
        severity="fail",
        rule=rule,
        what=what,
        record=record,
        path=shown,
        got=got,
        expected=expected,
        next=f"if it may run, in the policy: {key}",
    )


def _allowed(by: AllowedFile, shown: str, got: str, done: str, record: int) -> Finding:
    how = "path pattern alone, whatever its content" if by.sha256 is None else "path and digest"
    return Finding(
        severity="info",
        rule="file.allowed",
        what=f"{shown} was {done}: allowed by the policy's {by.path}, by {how}",
        record=record,
        path=shown,
        got=got,
    )


def _engines_init(
    source: str, shown: str, got: str, record: int, host: HostReference | None
) -> Iterator[Finding]:
    """Yield whether the engine's init program is what the host should have."""
    known = host.digests(source.encode()) or None if host is not None else None
    if known is not None and got in known:
        return
    what = f"the engine's init program {printable(source)}"
    yield Finding(
        severity="warn" if known is None else "fail",
        rule="file.init",
        what=f"{what} was not compared" if known is None else f"{what} is not the reference's",
        record=record,
        path=shown,
        got=got,
        expected=", ".join(known or ()),
        next="cima reference host, on a host that is known to be good",
    )
