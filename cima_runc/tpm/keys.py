"""The keys that attestation needs: the attestation key (AK) and the endorsement key (EK).

The AK is a primary key of the endorsement hierarchy with a fixed template, so the same TPM gives
the same key after every restart and nothing of it is stored. Under the owner hierarchy the TPM
would obscure resetCount.
Source: TPM 2.0 Library Part 1, sections 23 (restricted keys) and 27 (primary objects); Part 2,
section 14 (obfuscation); TCG EK Credential Profile 2.5, B.3 (templates L-1, L-2), 2.2.1 (NV).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_ECC,
    TPM2_RH,
    TPM2B_ECC_PARAMETER,
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMS_ECC_POINT,
    TSS2_Exception,
)
from tpm2_pytss.utils import NVReadEK, create_ek_template

from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.structures import StructureError, parse_public

_UNIQUE = hashlib.sha256(b"cima-ak-v1").digest()
_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
)
_PERSISTENT = range(0x81000000, 0x81800000)
_PERSISTENT_EK = range(0x81010001, 0x81010003)
"""TCG TPM v2.0 Provisioning Guidance, 7.8: the EKs by the templates L-1 and L-2."""
_EK_CHAIN = range(0x01C00100, 0x01C00200)


@dataclass(frozen=True)
class AttestationKey:
    """An AK that is loaded, or persistent."""

    handle: ESYS_TR
    public: bytes
    """Its TPMT_PUBLIC, marshalled."""

    @property
    def name(self) -> bytes:
        """Its name, 34 bytes."""
        return parse_public(self.public).name


@dataclass(frozen=True)
class EndorsementKey:
    """An EK that is loaded."""

    handle: ESYS_TR
    public: bytes
    """Its TPMT_PUBLIC, marshalled."""
    certificate: bytes | None
    """The manufacturer's certificate (DER), None where the TPM holds none."""
    chain: tuple[bytes, ...]
    """Certificates of its issuers (DER) that the TPM holds, often none."""


def load_ak(tpm: Tpm, persistent: int | None = None) -> AttestationKey:
    """Return this TPM's AK: ECC P-256, or RSA-2048 where the TPM has no such curve.

    Given a ``persistent`` handle (0x81000000 to 0x817FFFFF), the key there is used, and put there
    if there is none. Else it is a transient object until the connection closes.

    Raises:
        TpmError: the TPM refuses, or another kind of key is at the handle.
    """
    if persistent is not None:
        found = _persistent_ak(tpm, persistent)
        if found is not None:
            return found
    esapi = tpm.esapi
    try:
        handle, public, _, _, _ = esapi.create_primary(
            TPM2B_SENSITIVE_CREATE(), _ak_template(tpm), ESYS_TR.ENDORSEMENT
        )
        key = AttestationKey(handle, public.publicArea.marshal())
        if persistent is None:
            return key
        try:
            kept = esapi.evict_control(ESYS_TR.OWNER, handle, persistent)
        finally:
            esapi.flush_context(handle)
    except TSS2_Exception as error:
        raise TpmError(
            f"the TPM makes no attestation key: {error}",
            hint="the endorsement and owner hierarchies must have no password",
        ) from error
    return AttestationKey(kept, key.public)


def unload(tpm: Tpm, key: AttestationKey | EndorsementKey) -> None:
    """Free the slot of a key that is a transient object."""
    try:
        tpm.esapi.flush_context(key.handle)
    except TSS2_Exception as error:
        raise TpmError(f"the TPM does not let go of a key: {error}") from error


@contextmanager
def endorsement_key(tpm: Tpm) -> Iterator[EndorsementKey]:
    """Load the EK while the context lasts: the one with a certificate, RSA-2048 before ECC P-256.

    Where it is persistent already it is used from there: some TPMs take many seconds to make it.

    Raises:
        TpmError: the TPM refuses.
    """
    esapi = tpm.esapi
    nv = NVReadEK(esapi)
    kept = None
    try:
        choices = [create_ek_template(kind, nv) for kind in ("EK-RSA2048", "EK-ECC256")]
        certificate, template = next((some for some in choices if some[0]), choices[0])
        chain = _ek_chain(tpm, nv)
        kept = _persistent_ek(tpm, bytes(certificate)) if certificate else None
        handle, public = kept or _make_ek(tpm, template)
    except TSS2_Exception as error:
        raise TpmError(
            f"the TPM makes no endorsement key: {error}",
            hint="the endorsement hierarchy must have no password",
        ) from error
    key = EndorsementKey(
        handle,
        public.publicArea.marshal(),
        _one_der(bytes(certificate)) if certificate else None,
        chain,
    )
    try:
        yield key
    finally:
        if kept is None:
            unload(tpm, key)


def _make_ek(tpm: Tpm, template: TPM2B_PUBLIC) -> tuple[ESYS_TR, TPM2B_PUBLIC]:
    handle, public, _, _, _ = tpm.esapi.create_primary(
        TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT
    )
    return handle, public


def _persistent_ek(tpm: Tpm, certificate: bytes) -> tuple[ESYS_TR, TPM2B_PUBLIC] | None:
    """Return the key of this certificate, where it is at the handle that TCG has for it."""
    try:
        spki = x509.load_der_x509_certificate(_one_der(certificate)).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    for number in _handles(tpm, _PERSISTENT_EK.start, 2):
        if number in _PERSISTENT_EK:
            handle = tpm.esapi.tr_from_tpmpublic(number)
            public, _, _ = tpm.esapi.read_public(handle)
            if serialization.load_der_public_key(public.to_der()) == spki:
                return handle, public
    return None


def _persistent_ak(tpm: Tpm, persistent: int) -> AttestationKey | None:
    if persistent not in _PERSISTENT:
        raise TpmError(
            f"{persistent:#x} is no persistent handle of the owner",
            hint="set attestation.ak_handle between 0x81000000 and 0x817FFFFF",
        )
    if persistent not in _handles(tpm, persistent, 1):
        return None
    try:
        handle = tpm.esapi.tr_from_tpmpublic(persistent)
        public, _, _ = tpm.esapi.read_public(handle)
    except TSS2_Exception as error:
        raise TpmError(f"the TPM does not show the key at {persistent:#x}: {error}") from error
    data = public.publicArea.marshal()
    try:
        usable = not parse_public(data).missing_attributes()
    except StructureError:
        usable = False
    if not usable:
        raise TpmError(
            f"the key at {persistent:#x} is no attestation key",
            hint="set attestation.ak_handle to a free handle",
        )
    return AttestationKey(handle, data)


def _ak_template(tpm: Tpm) -> TPM2B_PUBLIC:
    if _has_p256(tpm):
        template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=_ATTRIBUTES)
        template.publicArea.unique.ecc = TPMS_ECC_POINT(
            x=TPM2B_ECC_PARAMETER(_UNIQUE), y=TPM2B_ECC_PARAMETER(bytes(32))
        )
    else:
        template = TPM2B_PUBLIC.parse("rsa2048:rsassa-sha256:null", objectAttributes=_ATTRIBUTES)
        template.publicArea.unique.rsa = TPM2B_PUBLIC_KEY_RSA(_UNIQUE.ljust(256, b"\0"))
    template.publicArea.nameAlg = TPM2_ALG.SHA256
    return template


def _has_p256(tpm: Tpm) -> bool:
    try:
        _, data = tpm.esapi.get_capability(TPM2_CAP.ECC_CURVES, 0, 64)
    except TSS2_Exception:
        return False  # A TPM without ECC does not know the question.
    return TPM2_ECC.NIST_P256 in list(data.data.eccCurves)


def _ek_chain(tpm: Tpm, nv: NVReadEK) -> tuple[bytes, ...]:
    handles = _handles(tpm, _EK_CHAIN.start, 64)
    return tuple(
        certificate
        for handle in handles
        if handle in _EK_CHAIN
        for certificate in _all_der(bytes(nv(TPM2_RH(handle))))
    )


def _one_der(data: bytes) -> bytes:
    """Return the first DER object of an NV index, which may be filled up behind it."""
    return next(_all_der(data), data)


def _all_der(data: bytes) -> Iterator[bytes]:
    """Yield the DER sequences with a length of two bytes, as certificates are."""
    while data[:2] == b"\x30\x82":
        size = 4 + int.from_bytes(data[2:4], "big")
        yield data[:size]
        data = data[size:]


def _handles(tpm: Tpm, first: int, count: int) -> list[int]:
    try:
        _, data = tpm.esapi.get_capability(TPM2_CAP.HANDLES, first, count)
    except TSS2_Exception as error:
        raise TpmError(f"the TPM does not list its handles: {error}") from error
    return [int(handle) for handle in data.data.handles]
