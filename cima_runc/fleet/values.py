"""Which policy and which reference values a container is compared with, and reading them.

The policy is the one that the most exact assignment names, of those that fit the container by its
image, its owners, its host's labels and its namespace; of equally exact ones the newest. The image
is the one whose layers the container has, as they were measured, so that no tenant chooses what he
is compared with. Source: fleet, section 5.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zstandard
from sqlalchemy import Connection, Table, func, select
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base import limits
from cima_runc.fleet.database import batched
from cima_runc.fleet.schema import (
    Assignment,
    Owner,
    Policy,
    Reference,
    ReferenceLayer,
    table_of,
)
from cima_runc.ml.contents import Layer
from cima_runc.verifier.reference.file import ImageReference
from cima_runc.verifier.reference.layer import ENGINES
from cima_runc.verifier.values import Values, identity_of, read_values

Mode = Literal["enforce", "observe"]
_IMAGES = 4_096
"""Images that one process remembers of whether there are reference values of them."""
_KEPT = 32
"""Sets of values that one process keeps ready."""


@dataclass(frozen=True)
class Choice:
    """What a container is compared with."""

    mode: Mode
    policy: int
    policy_name: str
    """``name@version``."""
    reference: int | None = None
    """None: there are no reference values of its image."""
    reference_name: str | None = None
    image: str | None = None
    host_reference: int | None = None
    digests: tuple[str, ...] = ()
    """SHA-256 of the policy and of these reference values, as they were given: what stays of them
    in memory goes by it, for the numbers of rows are others after a database was put back."""
    names: frozenset[str] = frozenset()
    """What the assignment goes by: ``image``, ``owner``, ``namespace``, ``label``."""

    @property
    def identity(self) -> str:
        """What identifies these values where there are an image's, as :meth:`ValuesCache.get` does;
        nothing is read for it."""
        kinds = ("policy", "image", "host")
        known = zip(kinds, map(bytes.fromhex, self.digests), strict=False)
        return identity_of(known).hex()


def layers_key(digests: Iterable[str]) -> str:
    """Return what containers of one image have in common: SHA-256 over their layers' digests,
    bottom to top, a line each."""
    return hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()


def measured_layers(layers: Sequence[Layer]) -> str | None:
    """Return the key of a measured root filesystem, None where it has no image's layers."""
    own = [layer.digest for layer in layers if layer.kind in {"data", "lower"}]
    return layers_key(own) if own else None


def keys_of(reference: ImageReference) -> set[str]:
    """Return the keys that containers of an image may have, by engine, root's and users'."""
    keys: set[str] = set()
    for engine in ENGINES:
        own = [
            layer.digest if engine == "docker" else layer.other_digests.get(engine, layer.digest)
            for layer in reference.layers
        ]
        rootless = [
            (layer.rootless_digests or {}).get(engine, digest)
            for layer, digest in zip(reference.layers, own, strict=True)
        ]
        keys |= {layers_key(own), layers_key(rootless)}
    mounted = [
        (layer.rootless_digests or {}).get("mounted", layer.digest) for layer in reference.layers
    ]
    return keys | {layers_key(mounted)}


class Read:
    """What was read of assignments, policies and references; good until somebody changes one."""

    def __init__(self) -> None:
        self.assigned: Sequence[Any] | None = None
        self.images: dict[str, list[Any]] = {}
        self.latest: dict[str, Any | None] = {}
        self.policies: dict[str, Any | None] = {}


class Choosing:
    """Finds what containers may be compared with; for one transaction. What changes meanwhile is
    seen by the work that each such change leaves behind."""

    def __init__(
        self, connection: Connection, containers: Iterable[int], read: Read | None = None
    ) -> None:
        """Look for what goes for any of ``containers``, by their rows' numbers.

        ``read``: what was read before, in any transaction, of what is still as it was.
        """
        self._connection = connection
        self._read = read = read or Read()
        if read.assigned is None:
            read.assigned = connection.execute(select(table_of(Assignment))).all()
        self._assigned = read.assigned
        self._owners: dict[int, set[str]] = {}
        if any("owner" in one.match for one in self._assigned):
            self._owners = _owners(connection, sorted(containers))

    def of(
        self, container: Mapping[str, Any], labels: Mapping[str, Any]
    ) -> dict[Mode, list[Choice]]:
        """Return what a container may be compared with, to enforce and to observe.

        ``container`` is its row, ``labels`` are its host's. More than one choice there is only
        where images have the same layers, and nothing says which of them is meant: the container
        is to be as one of them.
        """
        if not self._assigned:
            return {}
        owners = self._owners.get(container["id"], set())
        candidates = self._candidates(container)
        best: dict[Mode, tuple[tuple[int, int], Any]] = {}
        for one in self._assigned:
            rank = (len(one.match) + len(one.match.get("label", ())), one.id)
            if _fits(one.match, container, owners, labels, candidates) and (
                one.mode not in best or best[one.mode][0] < rank
            ):
                best[one.mode] = (rank, one)
        return {mode: self._choices(mode, one, candidates) for mode, (_, one) in best.items()}

    def _choices(self, mode: Mode, assigned: Any, candidates: Sequence[Any]) -> list[Choice]:
        policy = self._policy(assigned.policy)
        if policy is None:
            return []
        name = f"{policy.name}@{policy.version}"
        images = [one for one in candidates if _is_image(assigned.match, one)]
        if assigned.image_reference is not None:
            wanted = self._newest(assigned.image_reference)
            images = [wanted] if wanted is not None else []
        host = None
        if assigned.host_reference is not None:
            host = self._newest(assigned.host_reference)
            if host is None:
                images = []  # what was to be compared is not there: nothing is TRUSTED without it
        # Reference values that are named are an image that is named.
        names = frozenset(key for key, value in assigned.match.items() if value)
        if assigned.image_reference is not None:
            names |= {"image"}
        if not images:
            return [Choice(mode, policy.id, name, digests=(policy.sha256,), names=names)]
        of_host = () if host is None else (host.sha256,)
        return [
            Choice(
                mode,
                policy.id,
                name,
                reference=image.id,
                reference_name=f"{image.name}@{image.version}",
                image=image.image,
                host_reference=host.id if host is not None else None,
                digests=(policy.sha256, image.sha256, *of_host),
                names=names,
            )
            for image in images
        ]

    def _candidates(self, container: Mapping[str, Any]) -> list[Any]:
        """Return the images whose layers the container has; where the host enforces one, that
        one."""
        layers = container["layers"]
        if layers is None:
            return []
        images = self._read.images
        if layers not in images:
            if len(images) >= _IMAGES:
                images.clear()
            table, layer = table_of(Reference), table_of(ReferenceLayer).c
            rows = self._connection.execute(
                select(*_of_reference(table))
                .select_from(table)
                .join(table_of(ReferenceLayer), layer.reference == table.c.id)
                .where(layer.key == layers, table.c.retired.is_(None))
                .order_by(table.c.name, table.c.version)
            )
            images[layers] = list(rows)
        found = images[layers]
        return [one for one in found if one.image == container["enforced"]] or found

    def _newest(self, name: str) -> Any | None:
        if name not in self._read.latest:
            table = table_of(Reference)
            self._read.latest[name] = self._connection.execute(
                select(*_of_reference(table))
                .where(table.c.name == name, table.c.retired.is_(None))
                .order_by(table.c.version.desc())
                .limit(1)
            ).first()
        return self._read.latest[name]

    def _policy(self, name: str) -> Any | None:
        if name not in self._read.policies:
            table = table_of(Policy)
            newest = select(func.max(table.c.version)).where(table.c.name == name)
            self._read.policies[name] = self._connection.execute(
                select(table.c.id, table.c.name, table.c.version, table.c.sha256).where(
                    table.c.name == name, table.c.version == newest.scalar_subquery()
                )
            ).first()
        return self._read.policies[name]


def _of_reference(table: Table) -> tuple[ColumnElement[Any], ...]:
    column = table.c
    return column.id, column.name, column.version, column.image, column.sha256


def _fits(
    match: Mapping[str, Any],
    container: Mapping[str, Any],
    owners: set[str],
    labels: Mapping[str, Any],
    candidates: Sequence[Any],
) -> bool:
    if "image" in match and not any(_is_image(match, one) for one in candidates):
        return False
    if "owner" in match and match["owner"] not in owners:
        return False
    if "namespace" in match and match["namespace"] != container["namespace"]:
        return False
    return all(labels.get(key) == value for key, value in match.get("label", {}).items())


def _is_image(match: Mapping[str, Any], candidate: Any) -> bool:
    return "image" not in match or match["image"] in {candidate.image, candidate.name}


def _owners(connection: Connection, containers: Sequence[int]) -> dict[int, set[str]]:
    owner = table_of(Owner).c
    found: dict[int, set[str]] = {}
    for some in batched(containers):
        rows = connection.execute(
            select(owner.container, owner.key).where(owner.container.in_(some))
        )
        for container, key in rows:
            found.setdefault(container, set()).add(key)
    return found


class ValuesCache:
    """Policies and reference values that were read; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], tuple[Values, str]] = OrderedDict()

    def get(self, connection: Connection, choice: Choice) -> tuple[Values, str]:
        """Return the values of a choice, and what identifies them, hexadecimal."""
        key = choice.digests
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        policy = table_of(Policy).c
        text = connection.execute(
            select(policy.content).where(policy.id == choice.policy)
        ).scalar_one()
        raw = [
            reference_file(connection, number)
            for number in (choice.reference, choice.host_reference)
            if number is not None
        ]
        values = read_values(raw, text.encode("utf-8"))
        appraisal = values.appraisal
        identity = appraisal.identity.hex() if appraisal is not None else _without_reference(values)
        with self._lock:
            self._kept[key] = (values, identity)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return values, identity


def reference_file(connection: Connection, number: int) -> bytes:
    """Return a file of reference values as it was given."""
    reference = table_of(Reference).c
    stored = connection.execute(
        select(reference.content).where(reference.id == number)
    ).scalar_one()
    return zstandard.ZstdDecompressor().decompress(stored, max_output_size=limits.REFERENCE)


def _without_reference(values: Values) -> str:
    digests = b"".join(source.sha256 for source in values.sources)
    return hashlib.sha256(b"cima-values-none\0" + digests).hexdigest()
