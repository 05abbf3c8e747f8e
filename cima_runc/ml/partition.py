"""A container's partition of the measurement log: its records so far and its register.

Pure: what goes in are contents, what comes out are records to store.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from cima_runc.cpcr import register
from cima_runc.ima.template import Func, pack_cima_ng, unpack_cima_ng
from cima_runc.ml.contents import Content
from cima_runc.ml.records import (
    CIMA,
    IMA_TEMPLATE,
    Record,
    RecordError,
    digest_of,
    file_content,
    template_data,
)


class Partition:
    """The register of one container, and which files it has measured already."""

    def __init__(self, container_id: str) -> None:
        self._id = container_id
        self._cpcr = register.ZERO
        self._count = 0
        self._files: set[bytes] = set()
        self._reads: set[bytes] = set()

    @classmethod
    def restore(cls, container_id: str, records: Iterable[Record]) -> Self:
        """Return the partition that these stored records leave.

        Raises:
            RecordError: a record is missing, out of order or of another container.
        """
        partition = cls(container_id)
        for record in records:
            if record.recnum != partition._count or record.cpcr != container_id:
                raise RecordError(f"expected record {partition._count} of {container_id}")
            if record.content_type == IMA_TEMPLATE:
                digest, path, _, func = unpack_cima_ng(template_data(record.content))
                partition._remember(digest, path, func)
            partition._extend(record.digest)
        return partition

    @property
    def cpcr(self) -> bytes:
        """The register's value, 32 bytes."""
        return self._cpcr

    @property
    def count(self) -> int:
        """Number of records."""
        return self._count

    def has_file(self, digest: bytes, path: bytes, func: Func) -> bool:
        """Whether this file is measured already, by whatever hook.

        One that was only read has not been executed yet, and is measured once more when it is.
        """
        key = _file_key(digest, path)
        return key in self._files or (func is Func.FILE_CHECK and key in self._reads)

    def add_file(
        self, digest: bytes, path: bytes, mntns: int, func: Func, meta: Mapping[str, Any]
    ) -> Record:
        """Measure a file: ``digest`` is IMA's SHA-256 of it, ``path`` as the kernel gave it."""
        self._remember(digest, path, func)
        data = pack_cima_ng(digest, path, mntns, func)
        measured = hashlib.sha256(data).digest()
        return self._append(IMA_TEMPLATE, file_content(data), measured, meta)

    def add(self, content: Content | Mapping[str, Any], meta: Mapping[str, Any]) -> Record:
        """Measure a content, or the object that one is written as.

        Raises:
            RecordError: the content has no canonical form; nothing was measured.
        """
        measured = content.to_json() if isinstance(content, Content) else content
        return self._append(CIMA, measured, digest_of(CIMA, measured), meta)

    def _remember(self, digest: bytes, path: bytes, func: Func) -> None:
        known = self._reads if func is Func.FILE_CHECK else self._files
        known.add(_file_key(digest, path))

    def _append(
        self, content_type: str, content: Mapping[str, Any], digest: bytes, meta: Mapping[str, Any]
    ) -> Record:
        record = Record(self._count, self._id, digest, content_type, content, meta)
        self._extend(digest)
        return record

    def _extend(self, digest: bytes) -> None:
        self._cpcr = register.extend(self._cpcr, digest)
        self._count += 1


def _file_key(digest: bytes, path: bytes) -> bytes:
    # The ELF loader maps what it executes: by which hook a file came first is in its record,
    # that it comes again by another is no second measurement.
    return hashlib.sha256(digest + path).digest()
