"""The keys that attestation needs: the attestation key (AK) and the endorsement key (EK).

The AK is a primary key of the endorsement hierarchy with a fixed template, so the same TPM gives
the same key after every restart and nothing of it is stored. Under the owner hierarchy the TPM
would obscure resetCount.
Source: TPM 2.0 Library Part 1, sections 23 (restricted keys) and 27 (primary objects); Part 2,
section 14 (obfuscation); TCG EK Credential Profile 2.5, B.3 (templates L-1, L-2), 2.2.1 (NV).
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_ECC,
    TPM2B_ECC_PARAMETER,
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMS_ECC_POINT,
    TPMT_PUBLIC,
    TSS2_Exception,
)
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from cima_runc.base import limits
from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.nv import CHAIN, handles, read_certificates
from cima_runc.tpm.state import read_state
from cima_runc.tpm.stored_certificate import is_certificate, join_chain, unwrap
from cima_runc.tpm.structures import StructureError, parse_public
from cima_runc.tpm.trouble import refused, require

_log = logging.getLogger(__name__)

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
_PERSISTENT_EK = range(0x81010000, 0x81020000)
"""Where endorsement keys are kept (TCG TPM v2.0 Provisioning Guidance, 7.8; Registry of
Reserved TPM 2.0 Handles, 2.3.1)."""
_EK_CERTIFICATES = {
    "EK-RSA2048": 0x01C00002,
    "EK-ECC256": 0x01C0000A,
    "EK-HIGH-RSA2048": 0x01C00012,
    "EK-HIGH-ECC256": 0x01C00014,
    "EK-HIGH-ECC384": 0x01C00016,
    "EK-HIGH-RSA3072": 0x01C0001C,
    "EK-HIGH-ECC521": 0x01C00018,
    "EK-HIGH-RSA4096": 0x01C0001E,
}
"""The profile's templates L-1, L-2, H-1 to H-4, H-6 and H-7 and the NV indices of their
certificates, in the order in which they are wanted. H-5 is of SM2, which verifiers lack."""
_KEY_BYTES = 20
"""A coordinate or modulus that is shorter tells nothing."""
_CODE_BITS = 0x0BF
_NO_SUCH_KEYS = frozenset({0x081, 0x082, 0x084, 0x08A, 0x096, 0x0A6})
"""TPM_RC_ASYMMETRIC, _ATTRIBUTES, _VALUE, _TYPE, _SYMMETRIC, _CURVE."""


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
    what = "the TPM makes no attestation key"
    state = read_state(tpm)
    require(what, state.endorsement())
    if persistent is not None:
        require(what, state.owner())
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
        raise refused(what, error) from error
    return AttestationKey(kept, key.public)


def unload(tpm: Tpm, key: AttestationKey | EndorsementKey) -> None:
    """Free the slot of a key that is a transient object."""
    try:
        tpm.esapi.flush_context(key.handle)
    except TSS2_Exception as error:
        raise TpmError(f"the TPM does not let go of a key: {error}") from error


@dataclass(frozen=True)
class HeldCertificates:
    """What the TPM's NV memory holds of certificates."""

    certificates: Mapping[str, bytes]
    """Certificates (DER) of endorsement keys, by the name of the template."""
    chain: tuple[bytes, ...]
    """Certificates of issuers, at most :data:`limits.EK_CHAIN`."""
    passed_over: Mapping[int, str]
    """NV indices in the certificates' ranges that are none of these, and why."""
    contents: Mapping[int, bytes]
    """Everything that was read, templates and nonces too."""


def held_certificates(tpm: Tpm) -> HeldCertificates:
    """Read the certificates that the TPM holds, so that no authorisation can fail.

    Raises:
        TpmError: the TPM does not answer.
    """
    nv = read_certificates(tpm, read_state(tpm))
    certificates: dict[str, bytes] = {}
    passed_over = dict(nv.passed_over)
    for name, index in _EK_CERTIFICATES.items():
        if index in nv.contents:
            certificate = unwrap(nv.contents[index])
            if is_certificate(certificate):
                certificates[name] = certificate
            else:
                passed_over[index] = "it holds no certificate"
    chain, foreign = join_chain(
        (index, nv.contents[index]) for index in nv.contents if index in CHAIN
    )
    passed_over |= dict.fromkeys(foreign, "it holds no certificate")
    if len(chain) > limits.EK_CHAIN:
        _log.warning("of %d certificates of issuers %d are taken", len(chain), limits.EK_CHAIN)
    return HeldCertificates(certificates, tuple(chain[: limits.EK_CHAIN]), passed_over, nv.contents)


@contextmanager
def endorsement_key(tpm: Tpm) -> Iterator[EndorsementKey]:
    """Load the EK while the context lasts: one with a certificate, RSA-2048 before others.

    Where it is persistent already it is used from there: some TPMs take many seconds to make it.
    Nothing that the TPM holds is read in a way that could fail an authorisation.

    Raises:
        TpmError: the TPM refuses.
    """
    what = "the TPM makes no endorsement key"
    state = read_state(tpm)
    require(what, state.endorsement())
    held = held_certificates(tpm)
    for index, reason in held.passed_over.items():
        _log.warning("NV index %#x is passed over: %s", index, reason)
    try:
        found = _find_ek(tpm, held)
    except TSS2_Exception as error:
        raise refused(what, error) from error
    key = EndorsementKey(found.handle, found.public, found.certificate, held.chain)
    try:
        yield key
    finally:
        if not found.persistent:
            unload(tpm, key)


@dataclass(frozen=True)
class _Found:
    handle: ESYS_TR
    public: bytes
    certificate: bytes | None
    persistent: bool


def _find_ek(tpm: Tpm, stored: HeldCertificates) -> _Found:
    """Return the key that a certificate is of, else the first of the templates that works."""
    held, contents = list(stored.certificates.items()), stored.contents
    for _, certificate in held:
        kept = _persistent_ek(tpm, certificate)
        if kept is not None:
            return kept
    spare: _Found | None = None
    for name, certificate in held:
        made = _make_ek(tpm, name, contents, certificate)
        if made is None:
            continue
        if _is_of(certificate, made.public):
            if spare is not None:
                tpm.esapi.flush_context(spare.handle)
            return made
        _log.warning("NV index %#x holds a certificate of another key", _EK_CERTIFICATES[name])
        if spare is None:
            spare = made
        else:
            tpm.esapi.flush_context(made.handle)
    if spare is not None:
        return spare
    for name in _EK_CERTIFICATES:
        made = _make_ek(tpm, name, contents, None)
        if made is not None:
            return made
    raise TpmError("the TPM makes no endorsement key of the kinds that the TCG's profile has")


def _make_ek(
    tpm: Tpm, name: str, contents: Mapping[int, bytes], certificate: bytes | None
) -> _Found | None:
    """Make the key of a template of the profile; None where the TPM has no such keys."""
    try:
        _, template = create_ek_template(name, _nv_reader(name, contents))
    except (TSS2_Exception, ValueError):
        # What is where a template or a nonce would be is something else.
        _, template = create_ek_template(name, _nv_reader(name, {}))
    try:
        handle, public, _, _, _ = tpm.esapi.create_primary(
            TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT
        )
    except TSS2_Exception as error:
        if error.rc & _CODE_BITS in _NO_SUCH_KEYS:
            return None
        raise
    return _Found(handle, public.publicArea.marshal(), certificate, persistent=False)


def _nv_reader(name: str, contents: Mapping[int, bytes]) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        if index == _EK_CERTIFICATES[name]:
            return b""  # Whether there is a certificate is known by now.
        if index not in contents:
            raise NoSuchIndex(index)
        return contents[index]

    return read


def _persistent_ek(tpm: Tpm, certificate: bytes) -> _Found | None:
    """Return the key of this certificate, where it is persistent."""
    for number in handles(tpm, _PERSISTENT_EK.start):
        if number not in _PERSISTENT_EK:
            continue
        handle = tpm.esapi.tr_from_tpmpublic(number)
        public, _, _ = tpm.esapi.read_public(handle)
        area = public.publicArea.marshal()
        if _is_of(certificate, area):
            return _Found(handle, area, certificate, persistent=True)
    return None


def _is_of(certificate: bytes, public: bytes) -> bool:
    """Whether a certificate has the key of a public area in it: the verifier looks closer."""
    area, _ = TPMT_PUBLIC.unmarshal(public)
    if area.type == TPM2_ALG.RSA:
        numbers = [bytes(area.unique.rsa)]
    else:
        numbers = [bytes(area.unique.ecc.x), bytes(area.unique.ecc.y)]
    return all(len(one) >= _KEY_BYTES and one in certificate for one in numbers)


def _persistent_ak(tpm: Tpm, persistent: int) -> AttestationKey | None:
    if persistent not in _PERSISTENT:
        raise TpmError(
            f"{persistent:#x} is no persistent handle of the owner",
            hint="set attestation.ak_handle between 0x81000000 and 0x817FFFFF",
        )
    if persistent not in handles(tpm, persistent):
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
