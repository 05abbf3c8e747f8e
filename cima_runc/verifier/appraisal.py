"""Appraisal: records, reference values and a policy give findings and a verdict.

Pure: whoever calls brings the records, verified or his own, and the reference values.

The container is as the image when no finding has the severity ``fail``; TRUSTED also takes that
something was compared. What the rules are, in the order of the records:

==================  ===============================================================================
records.*           lost events, violations, missing sources (:mod:`.completeness`); records that
                    should be there and are not, or that nobody knows
config.*            :mod:`.rules.config`
rootfs.*            :mod:`.rules.rootfs`
file.*              :mod:`.rules.files`
dependency.*        :mod:`.rules.dependencies`
==================  ===============================================================================

Source: design, sections 5 and 8; RFC 9334 for the words.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cima_runc.base.text import printable
from cima_runc.ima.template import TemplateError, unpack_cima_ng
from cima_runc.measure.config_summary import ConfigSummary, summarize
from cima_runc.ml.records import CIMA, IMA_TEMPLATE, Record, RecordError, template_data
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.reference.file import HostReference, ImageReference
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules.config import ConfigRule
from cima_runc.verifier.rules.dependencies import check_dependencies
from cima_runc.verifier.rules.files import check_file
from cima_runc.verifier.rules.image_files import ImageFiles
from cima_runc.verifier.rules.mounts import EngineMounts
from cima_runc.verifier.rules.rootfs import RootfsRule

_ONCE = ("register", "config", "rootfs")
"""The types of a container's first records, in order."""
_KNOWN = frozenset({*_ONCE, "lost", "violation", "exit"})


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
) -> Appraised:
    """Appraise all records of a container, and those of its dependencies.

    The verdict is UNKNOWN where nothing could be compared with an image.
    """
    run = _Run(references, policy)
    findings = [*completeness(records, policy), *run.compare(records)]
    findings += run.check_dependencies(dependencies)
    if any(finding.severity == "fail" for finding in findings):
        verdict = Verdict.UNTRUSTED
    else:
        verdict = Verdict.TRUSTED if run.compared else Verdict.UNKNOWN
    return Appraised(verdict, tuple(findings), run.compared)


def compare(
    records: Sequence[Record],
    references: References,
    policy: Policy,
    dependencies: Sequence[Record] = (),
) -> Iterator[Finding]:
    """Yield what differs from the reference values in records that were verified.

    ``records`` may continue earlier ones, which were found good by the same values. Unlike
    :func:`appraise` this does not look for what the records themselves say is missing.
    """
    run = _Run(references, policy)
    yield from run.compare(records)
    yield from run.check_dependencies(dependencies)
    if references.image is not None and records and not records[0].recnum and not run.compared:
        yield Finding(
            severity="fail",
            rule="reference.image",
            what="nothing of the container was compared with the image",
        )


@dataclass
class _Run:
    references: References
    policy: Policy
    compared: int = 0
    relies_on: object = None
    """Number of the partition of its dependencies, as the ``register`` record says."""
    _image: ImageFiles | None = field(init=False)
    _config: ConfigSummary | None = None
    _namespaces: dict[str, Any] = field(default_factory=dict)
    _register: Mapping[str, Any] = field(default_factory=dict)
    _layers_are_the_images: bool = False

    def __post_init__(self) -> None:
        image = self.references.image
        self._image = ImageFiles(image) if image is not None else None

    def compare(self, records: Sequence[Record]) -> Iterator[Finding]:
        if self.references.image is None:
            yield Finding(
                severity="warn",
                rule="reference.image",
                what="the container was not compared: no image's reference values were given",
                next="cima reference image IMAGE -o ref.json, and give it with --reference",
            )
            return
        if not records or records[0].recnum == 0:
            yield from _order(records)
        seen: set[tuple[bytes, bytes]] = set()
        for record in records:
            if record.content_type == IMA_TEMPLATE:
                yield from self._file(record, seen)
            elif record.content_type == CIMA:
                yield from self._cima(record)

    def check_dependencies(self, records: Sequence[Record]) -> Iterator[Finding]:
        yield from check_dependencies(records, self.references.host, self.policy.dependencies)
        wanted = f"dependencies:{self.relies_on}"
        if records and self.relies_on is not None and records[0].cpcr != wanted:
            yield Finding(
                severity="fail",
                rule="dependencies.other",
                what="the records are of other services than the container relies on",
                got=printable(records[0].cpcr),
                expected=wanted,
                next="ask for evidence anew",
            )

    def _cima(self, record: Record) -> Iterator[Finding]:
        image, files = self.references.image, self._image
        assert image is not None and files is not None
        content = record.content
        match content.get("type"):
            case "register":
                namespaces = content.get("namespaces")
                self._namespaces = namespaces if isinstance(namespaces, dict) else {}
                self.relies_on = content.get("dependencies")
                self._register = content
            case "config":
                config = content.get("config")
                config = config if isinstance(config, dict) else {}
                self._config = summarize(config, self._namespaces)
                mounts = EngineMounts(self._register, self._config, files)
                policy = self.policy.config
                rule = ConfigRule(self._config, image.config, policy, record.recnum, mounts)
                yield from rule.check()
            case "rootfs":
                layers = RootfsRule(image, files, self._config, self.policy.rootfs, record.recnum)
                yield from layers.check(content)
                self.compared += layers.compared
            case "unmeasured":
                required = self.policy.dependencies.required or self.references.host is not None
                yield Finding(
                    severity="fail" if required else "warn",
                    rule="dependencies.unknown",
                    what="what it relies on is not known: " + printable(str(content.get("reason"))),
                    record=record.recnum,
                    next="see cima status, and start it anew",
                )
            case other if other not in _KNOWN:
                yield Finding(
                    severity="fail",
                    rule="records.type",
                    what=f"a record of an unknown type: {printable(str(other))}",
                    record=record.recnum,
                    next="verify with the host's version of cima",
                )

    def _file(self, record: Record, seen: set[tuple[bytes, bytes]]) -> Iterator[Finding]:
        assert self._image is not None
        try:
            digest, path, _, func = unpack_cima_ng(template_data(record.content))
        except (RecordError, TemplateError) as error:
            yield Finding(
                severity="fail",
                rule="records.file",
                what=f"a file's record cannot be read: {error}",
                record=record.recnum,
            )
            return
        if (digest, path) in seen:
            return  # in another namespace of the same container
        seen.add((digest, path))
        self.compared += 1
        yield from check_file(
            path,
            digest,
            func,
            record=record.recnum,
            image=self._image,
            host=self.references.host,
            mounts=self._config.mounts if self._config is not None else (),
            allowed=self.policy.files,
        )


def _order(records: Iterable[Record]) -> Iterator[Finding]:
    """Yield which of the records that must come once, and first, do not."""
    found = [
        str(record.content.get("type"))
        for record in records
        if record.content_type == CIMA and record.content.get("type") in _ONCE
    ]
    if found != list(_ONCE):
        yield Finding(
            severity="fail",
            rule="records.order",
            what="the records do not begin as a container's do",
            got=", ".join(found) or "none of them",
            expected=", ".join(_ONCE),
            next="this is not a whole partition: see cima log",
        )
