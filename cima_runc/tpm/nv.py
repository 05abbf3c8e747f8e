"""The NV indices of endorsement keys' certificates, read so that no authorisation can fail.

A failed authorisation counts towards the TPM's lockout, which then is everybody's. So an index's
attributes are read first, which takes none, and its content only where that cannot fail or, for
the index's own empty password, does not count. What is left is passed over by name.
Source: TPM 2.0 Library Part 2, 13.4 (TPMA_NV); Part 1, 37.7 (NV and dictionary attacks); TCG EK
Credential Profile 2.5, 2.2.1 (NV indices).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag

from tpm2_pytss import ESYS_TR, TPM2_CAP, TPM2_PT_NV, TSS2_Exception

from cima_runc.base import limits
from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.state import Permanent, StartupClear, TpmState

CERTIFICATES = range(0x01C00002, 0x01C00100)
"""Certificates, templates and nonces of endorsement keys."""
CHAIN = range(0x01C00100, 0x01C00200)
"""Certificates of their issuers."""

_HANDLES = 254
_BUFFER_DEFAULT = 512


class NvAttribute(IntFlag):
    """TPMA_NV, as far as reading goes."""

    TYPE = 0xF << 4
    OWNER_READ = 1 << 17
    AUTH_READ = 1 << 18
    NO_DA = 1 << 25
    READ_LOCKED = 1 << 28
    WRITTEN = 1 << 29


@dataclass(frozen=True)
class NvContents:
    """What was read, and what was not."""

    contents: Mapping[int, bytes]
    """Content by index, ascending."""
    passed_over: Mapping[int, str]
    """Why an index was not read, by index."""


def read_certificates(tpm: Tpm, state: TpmState) -> NvContents:
    """Read the indices that may belong to endorsement keys.

    Raises:
        TpmError: the TPM does not answer.
    """
    contents: dict[int, bytes] = {}
    passed_over: dict[int, str] = {}
    try:
        chunk = _buffer_size(tpm)
        for index in handles(tpm, CERTIFICATES.start):
            if index not in CERTIFICATES and index not in CHAIN:
                continue
            room = limits.NV_CERTIFICATES - sum(len(one) for one in contents.values())
            found = _read(tpm, state, index, chunk, room)
            if isinstance(found, str):
                passed_over[index] = found
            else:
                contents[index] = found
    except TSS2_Exception as error:
        raise TpmError(f"the TPM does not show its NV indices: {error}") from error
    return NvContents(contents, passed_over)


def handles(tpm: Tpm, first: int) -> list[int]:
    """Return the handles of the type of ``first``, from it on, ascending.

    Raises:
        TpmError: the TPM does not answer.
    """
    found: list[int] = []
    try:
        while True:
            more, data = tpm.esapi.get_capability(TPM2_CAP.HANDLES, first, _HANDLES)
            some = [int(handle) for handle in data.data.handles]
            found += some
            if not more or not some:
                return found
            first = some[-1] + 1
    except TSS2_Exception as error:
        raise TpmError(f"the TPM does not list its handles: {error}") from error


def _buffer_size(tpm: Tpm) -> int:
    wanted = int(TPM2_PT_NV.BUFFER_MAX)
    _, data = tpm.esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, wanted, 1)
    for one in data.data.tpmProperties:
        if int(one.property) == wanted:
            return min(max(int(one.value), 1), limits.NV_CERTIFICATES)
    return _BUFFER_DEFAULT


def _read(tpm: Tpm, state: TpmState, index: int, chunk: int, room: int) -> bytes | str:
    """Return the content of an index, or why it was not read."""
    try:
        handle = tpm.esapi.tr_from_tpmpublic(index)
    except TSS2_Exception as error:
        return f"it cannot be looked at: {error}"
    try:
        public, _ = tpm.esapi.nv_read_public(handle)
        attributes = NvAttribute(int(public.nvPublic.attributes) & _KNOWN)
        size = int(public.nvPublic.dataSize)
        if size > room:
            return f"it has {size} bytes, which is more than certificates take"
        reader = _reader(attributes, state, handle)
        if isinstance(reader, str):
            return reader
        data = b""
        while len(data) < size:
            part = tpm.esapi.nv_read(
                handle, min(chunk, size - len(data)), len(data), auth_handle=reader
            )
            data += bytes(part)
        return data
    except TSS2_Exception as error:
        return f"it cannot be read: {error}"
    finally:
        tpm.esapi.tr_close(handle)


_KNOWN = int(
    NvAttribute.TYPE
    | NvAttribute.OWNER_READ
    | NvAttribute.AUTH_READ
    | NvAttribute.NO_DA
    | NvAttribute.READ_LOCKED
    | NvAttribute.WRITTEN
)


def _reader(attributes: NvAttribute, state: TpmState, handle: ESYS_TR) -> ESYS_TR | str:
    """Return who reads the index, or why nobody does."""
    if not attributes & NvAttribute.WRITTEN:
        return "it was never written"
    if attributes & NvAttribute.TYPE:
        return "it is a counter or the like"
    if attributes & NvAttribute.READ_LOCKED:
        return "it is locked against reading"
    owner_open = (
        state.startup_clear & StartupClear.OWNER_ENABLED
        and not state.permanent & Permanent.OWNER_AUTH_SET
    )
    if attributes & NvAttribute.OWNER_READ and owner_open:
        return ESYS_TR.OWNER
    if attributes & NvAttribute.AUTH_READ and attributes & NvAttribute.NO_DA:
        return handle
    return "it may take a password or a policy"
