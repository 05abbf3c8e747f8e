"""Appraisal: records, reference values and a policy give findings and a verdict.

Pure: whoever calls brings the records, verified or his own, and the reference values.

The container is as the image when no finding has the severity ``fail``; TRUSTED also takes that
something was compared. What the rules are, in the order of the records:

==================  ===============================================================================
records.*           lost events, missing sources, violations and executable memory
                    (:mod:`.completeness`); records that should be there and are not
config.*            :mod:`.rules.config`
rootfs.*            :mod:`.rules.rootfs`
file.*              :mod:`.rules.files`
dependency.*        :mod:`.rules.host_services`
==================  ===============================================================================

Source: design, sections 5 and 8; RFC 9334 for the words.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cima_runc.base.text import printable
from cima_runc.ima.template import Func
from cima_runc.measure.config_summary import ConfigSummary, summarize
from cima_runc.ml.contents import (
    Config,
    Content,
    File,
    Measured,
    Register,
    RegisterV1,
    Rootfs,
    Service,
    ServicesRegister,
    Unmeasured,
    ViolationV1,
    measured,
)
from cima_runc.ml.records import Record
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.reference.file import HostReference, ImageReference
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.added_users import groups_of_a_restart
from cima_runc.verifier.rules.config import ConfigRule
from cima_runc.verifier.rules.files import check_file
from cima_runc.verifier.rules.host_services import check_host_services
from cima_runc.verifier.rules.image_files import ImageFiles
from cima_runc.verifier.rules.mounts import EngineMounts, Places
from cima_runc.verifier.rules.rootfs import RootfsRule
from cima_runc.verifier.rules.unstable import unstable_file

_ONCE = (RegisterV1, Config, Rootfs)
"""A container's first records, in order."""


@dataclass(frozen=True)
class References:
    """What the container, and the host that it runs on, should be."""

    image: ImageReference | None = None
    host: HostReference | None = None


@dataclass(frozen=True)
class Appraised:
    """What an appraisal came to."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    compared: int
    """Layers' and files' records that were compared with the image."""


def appraise(
    records: Sequence[Record],
    references: References,
    policy: Policy,
    dependencies: Sequence[Record] = (),
    secret: bytes | None = None,
) -> Appraised:
    """Appraise all records of a container, and those of its host services.

    With the container's ``secret`` the values of its environment are compared. The verdict is
    UNKNOWN where nothing could be compared with an image.

    Raises:
        ContentError: a record is of no type that we know, or not of the shape that its type has.
    """
    run = _Run(references, policy, secret)
    own = [measured(record) for record in records]
    findings = [*completeness(own, policy), *run.compare(own)]
    if references.image is not None and (not own or own[0].number):
        findings += _order(own)
    findings += run.check_host_services([measured(record) for record in dependencies])
    if any(finding.severity == "fail" for finding in findings):
        verdict = Verdict.UNTRUSTED
    else:
        verdict = Verdict.TRUSTED if run.compared else Verdict.UNKNOWN
    return Appraised(verdict, tuple(findings), run.compared)


def compare(
    records: Sequence[Measured],
    references: References,
    policy: Policy,
    dependencies: Sequence[Measured] | None = (),
    secret: bytes | None = None,
) -> Iterator[Finding]:
    """Yield what differs from the reference values in records of one run that were verified.

    ``records`` may continue earlier ones, which were found good by the same values; there may be
    none then. ``dependencies`` is None for a run of which they are not shown. With the container's
    ``secret`` the values of its environment are compared. Unlike :func:`appraise` this does not
    look for what the records themselves say is missing.
    """
    run = _Run(references, policy, secret)
    yield from run.compare(records)
    if dependencies is not None:
        yield from run.check_host_services(dependencies)
    if references.image is not None and records and not records[0].number and not run.compared:
        yield Finding(
            severity="fail",
            rule="reference.image",
            what="nothing of the container was compared with the image",
        )


@dataclass
class _Run:
    references: References
    policy: Policy
    secret: bytes | None = None
    compared: int = 0
    relies_on: int | None = None
    """Number of the partition of its dependencies, as the ``register`` record says."""
    _image: ImageFiles | None = field(init=False)
    _config: ConfigSummary | None = None
    _mounts: EngineMounts | None = None
    _places: Places = field(default_factory=lambda: Places(()))
    _register: RegisterV1 | None = None
    _init: tuple[bytes, bytes] | None = None
    """Path and digest of what ran first at the path of the container's first argument."""

    def __post_init__(self) -> None:
        image = self.references.image
        self._image = ImageFiles(image) if image is not None else None

    def compare(self, records: Sequence[Measured]) -> Iterator[Finding]:
        if self.references.image is None:
            yield Finding(
                severity="warn",
                rule="reference.image",
                what="the container was not compared: no image's reference values were given",
                next="cima reference image IMAGE -o ref.json, and give it with --reference",
            )
            return
        if records and not records[0].number:
            yield from _order(records)
        seen: set[tuple[bytes, bytes]] = set()
        for number, content in records:
            if isinstance(content, File):
                digest, path, _, func = content
                yield from self._file(number, path, digest, func, seen)
            elif isinstance(content, ViolationV1) and (file := unstable_file(content)):
                yield from self._file(number, file.path, file.digest, file.func, seen)
            else:
                yield from self._cima(number, content)

    def check_host_services(self, records: Sequence[Measured]) -> Iterator[Finding]:
        yield from check_host_services(records, self.references.host, self.policy)
        first = records[0].content if records else None
        if isinstance(first, ServicesRegister) and self.relies_on not in {None, first.registration}:
            yield Finding(
                severity="fail",
                rule="dependencies.other",
                what="the records are of other services than the container relies on",
                got=printable(first.id),
                expected=f"dependencies:{self.relies_on}",
                next="ask for evidence anew",
            )

    def _cima(self, number: int, content: Content) -> Iterator[Finding]:
        image, files = self.references.image, self._image
        assert image is not None and files is not None
        match content:
            case RegisterV1():
                self._register = content
                self.relies_on = content.dependencies
            case Config():
                register = self._register
                self._config = summarize(content.config, register.namespaces if register else {})
                self._places = Places(self._config.mounts, files)
                made = register.to_json() if register is not None else {}
                self._mounts = mounts = EngineMounts(
                    made, self._config, files, values=image.config, secret=self.secret
                )
                groups: frozenset[int] = frozenset()
                if (
                    self._is_of(engines.ADDING_USERS)
                    and isinstance(register, Register)
                    and register.run > 1
                ):
                    groups = groups_of_a_restart(files, self._config)
                rule = ConfigRule(
                    self._config,
                    image.config,
                    self.policy.config,
                    number,
                    mounts=mounts,
                    files=files,
                    groups=groups,
                    secret=self.secret,
                )
                yield from rule.check()
            case Rootfs():
                layers = RootfsRule(
                    image,
                    files,
                    self._config,
                    self.policy.rootfs,
                    number,
                    adds_users=self._is_of(engines.ADDING_USERS),
                    links_zones=self._is_of(engines.LINKING_ZONES),
                    holds_data=self._mounts.holds_data
                    if self._mounts is not None and self._is_of(engines.COPYING_IN)
                    else None,
                    rootless=self._register is not None and self._register.uid is not None,
                )
                yield from layers.check(content)
                self.compared += layers.compared
            case Unmeasured():
                required = self.policy.dependencies.required or self.references.host is not None
                yield Finding(
                    severity="fail" if required else "warn",
                    rule="dependencies.unknown",
                    what="what it relies on is not known: " + printable(content.reason),
                    record=number,
                    next="see cima status, and start it anew",
                )
            case Service() | ServicesRegister():
                yield Finding(
                    severity="fail",
                    rule="records.order",
                    what="a record of the host services stands among the container's",
                    record=number,
                    next="this is no container's partition: see cima log",
                )

    def _is_of(self, names: Collection[str]) -> bool:
        """Whether the container is known to be of one of these engines."""
        engine = self._register.engine if self._register is not None else None
        return engine is not None and engine.name in names

    def _file(
        self, number: int, path: bytes, digest: bytes, func: Func, seen: set[tuple[bytes, bytes]]
    ) -> Iterator[Finding]:
        assert self._image is not None
        if (digest, path) in seen:
            return  # in another namespace of the same container
        seen.add((digest, path))
        self.compared += 1
        if self._init is None and func is Func.BPRM_CHECK and self._is_first(path):
            self._init = (path, digest)
        yield from check_file(
            path,
            digest,
            func,
            record=number,
            image=self._image,
            host=self.references.host,
            places=self._places,
            allowed=self.policy.files,
            init=self._init,
        )

    def _is_first(self, path: bytes) -> bool:
        """Whether it can be the program of the first argument; its directory may be a link."""
        args = self._config.args if self._config is not None else ()
        return bool(args) and Path(args[0]).name == Path(os.fsdecode(path)).name


def _order(records: Iterable[Measured]) -> Iterator[Finding]:
    """Yield which of the records that must come once, and first, do not."""
    names = {kind: kind.__name__.removesuffix("V1").lower() for kind in _ONCE}
    found = [
        name for _, content in records for kind, name in names.items() if isinstance(content, kind)
    ]
    # Others' hooks may change the root filesystem before the start: then it is there again.
    if found[:3] != list(names.values()) or set(found[3:]) - {"rootfs"}:
        yield Finding(
            severity="fail",
            rule="records.order",
            what="the records do not begin as a container's do",
            got=", ".join(found) or "none of them",
            expected=", ".join(names.values()),
            next="this is not a whole partition: see cima log",
        )
