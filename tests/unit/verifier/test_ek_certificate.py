"""Certificates of endorsement keys: what manufacturers issue is taken, and nothing forged."""

import itertools
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import keys as asn1_keys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import x509_by_hand as by_hand
from support.x509_by_hand import Certificate, pem

from cima_runc.evidence.enrolment import EnrolmentRequest, parse
from cima_runc.tpm.credential import ek_public_pem
from cima_runc.verifier import ek_ways
from cima_runc.verifier.certificate import read_bundle
from cima_runc.verifier.ek_certificate import EkCertificateError, check_ek_certificate

SHARED = Path(__file__).parents[4] / "shared"
VENDORS = sorted((SHARED / "data/tpm-ca").glob("*.pem"))
CASES = sorted((SHARED / "cases/ek-certificates").glob("*.json"))

CA_KEY = ec.generate_private_key(ec.SECP256R1())
ROOT_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_CA_KEY = rsa.generate_private_key(65537, 2048)
EK = rsa.generate_private_key(65537, 2048)
EK_PEM = EK.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
EMPTY = by_hand.tlv(0x30)
CA_NAME = by_hand.common_name("Manufacturing CA")
ROOT_NAME = by_hand.common_name("Root CA")
PROFILE = (
    by_hand.tpm_name(),
    by_hand.basic_constraints(ca=False),
    by_hand.key_usage(by_hand.KEY_ENCIPHERMENT),
    by_hand.purposes(by_hand.EK_PURPOSE),
)
LEAF = Certificate(EMPTY, CA_NAME, EK, CA_KEY, PROFILE)
CA = Certificate(
    CA_NAME,
    ROOT_NAME,
    CA_KEY,
    ROOT_KEY,
    (by_hand.basic_constraints(ca=True, path=0), by_hand.key_usage(by_hand.CERT_SIGN)),
)
ROOT = Certificate(
    ROOT_NAME,
    ROOT_NAME,
    ROOT_KEY,
    ROOT_KEY,
    (by_hand.basic_constraints(ca=True), by_hand.key_usage(by_hand.CERT_SIGN)),
)


def check(leaf: bytes, trusted: bytes, *between: bytes) -> str:
    """The refusal, empty where there is none."""
    try:
        check_ek_certificate(leaf, between, EK_PEM, trusted)
    except EkCertificateError as error:
        return error.what
    return ""


def openssl_takes(directory: Path, leaf: bytes, trusted: bytes, *between: bytes) -> bool:
    for name, data in (("leaf", pem(leaf)), ("trusted", trusted)):
        (directory / name).write_bytes(data)
    (directory / "between").write_bytes(b"".join(pem(one) for one in between))
    command = ["openssl", "verify", "-partial_chain", "-CAfile", directory / "trusted"]
    command += ["-no-CApath", "-no-CAstore"]
    command += ["-untrusted", directory / "between"] if between else []
    command += [directory / "leaf"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda path: path.stem)
def test_every_manufacturers_authority_may_issue(vendor: Path, tmp_path: Path) -> None:
    """The authority rebuilt with the same subject and extensions, under a key of ours."""
    original = x509_der(vendor.read_bytes())
    subject, extensions = by_hand.subject_and_extensions(original)
    anchor = Certificate(subject, ROOT_NAME, CA_KEY, ROOT_KEY, extensions).der()
    leaf = Certificate(EMPTY, subject, EK, CA_KEY, PROFILE).der()
    assert openssl_takes(tmp_path, leaf, pem(anchor))
    assert check(leaf, pem(anchor)) == ""
    # Under our root it may stand between, unless it names the key of another issuer.
    fits = openssl_takes(tmp_path, leaf, pem(ROOT.der()), anchor)
    assert not fits or check(leaf, pem(ROOT.der()), anchor) == ""
    # Not one bit of what is forged under the same names.
    forged = replace(LEAF, issuer=subject, signer=OTHER_KEY).der()
    assert "signature" in check(forged, pem(anchor))
    # Beside all the real ones.
    bundle = b"".join(one.read_bytes() for one in VENDORS)
    assert check(leaf, bundle + pem(anchor)) == ""
    assert check(leaf, bundle) != ""


def x509_der(data: bytes) -> bytes:
    bundle = read_bundle(data, "file")
    assert not bundle.unreadable
    return bundle.readable[0].der


def test_all_manufacturers_are_there() -> None:
    if not SHARED.exists():
        pytest.skip("no ../shared")
    assert len(VENDORS) == 51
    assert len(CASES) == 4


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_recorded_requests(case: Path) -> None:
    request = parse(EnrolmentRequest, case.read_bytes(), case.name)
    trusted = case.with_name(f"{case.stem}-ca.pem").read_bytes()
    assert request.ek_certificate is not None
    key = ek_public_pem(request.ek_public)
    found = check_ek_certificate(request.ek_certificate, request.ek_chain, key, trusted)
    assert found.manufacturer == "id:53544D20"
    with pytest.raises(EkCertificateError):
        check_ek_certificate(request.ek_certificate, request.ek_chain, EK_PEM, trusted)


def extended(certificate: Certificate, *more: bytes) -> Certificate:
    return replace(certificate, extensions=(*certificate.extensions, *more))


SDA_PROFILE = by_hand.directory_attributes("2.23.133.2.16", "2.23.133.2.18", critical=True)
SDA_OTHER = by_hand.directory_attributes("2.23.133.2.16", "1.2.3.4", critical=True)
UNKNOWN = by_hand.extension("1.2.3.4.5", by_hand.tlv(0x05), critical=True)
TAKEN: dict[str, tuple[Certificate, Certificate]] = {
    "plain": (LEAF, CA),
    "cA FALSE written out": (
        replace(
            LEAF, extensions=(by_hand.basic_constraints(ca=False, explicit=True), *PROFILE[::2])
        ),
        CA,
    ),
    "no basic constraints": (replace(LEAF, extensions=PROFILE[::2]), CA),
    "subject directory attributes, critical": (extended(LEAF, SDA_PROFILE), CA),
    "other names of a directory, critical": (
        extended(
            LEAF,
            by_hand.extension(
                "2.5.29.18", by_hand.tlv(0x30, by_hand.tlv(0x82, b"x")), critical=True
            ),
        ),
        CA,
    ),
    "policies, critical": (
        extended(LEAF, by_hand.policies("1.2.3")),
        extended(CA, by_hand.policies("2.5.29.32.0")),
    ),
    "purpose on the authority, critical": (
        LEAF,
        extended(CA, by_hand.purposes(by_hand.EK_PURPOSE, critical=True)),
    ),
    "any purpose": (LEAF, extended(CA, by_hand.purposes("2.5.29.37.0"))),
    "no purpose, but a TPM's name": (replace(LEAF, extensions=PROFILE[:3]), CA),
    "purpose, but no TPM's name": (replace(LEAF, extensions=PROFILE[1:]), CA),
    "SHA-1 of old authorities": (LEAF, replace(CA, hash=hashes.SHA1())),
}


@pytest.mark.parametrize("name", TAKEN)
def test_profile_is_taken(name: str, tmp_path: Path) -> None:
    leaf, ca = TAKEN[name]
    assert check(leaf.der(), pem(ROOT.der()), ca.der()) == ""
    assert check(leaf.der(), pem(ca.der())) == ""
    assert check(leaf.der(), pem(ROOT.der()) + pem(ca.der())) == ""
    if "critical" not in name or "directory" not in name:  # which OpenSSL does not know
        assert openssl_takes(tmp_path, leaf.der(), pem(ROOT.der()), ca.der())


def test_order_in_names_is_not_ours_to_judge(tmp_path: Path) -> None:
    name = by_hand.name([("2.5.4.3", "NPCT"), ("2.5.4.10", "Nuvoton"), ("2.5.4.6", "TW")])
    ca = replace(CA, subject=name).der()
    leaf = replace(LEAF, issuer=name).der()
    with pytest.raises(ValueError, match="SetOrdering"):
        x509.load_der_x509_certificate(ca)  # else this test shows nothing
    assert openssl_takes(tmp_path, leaf, pem(ROOT.der()), ca)
    assert check(leaf, pem(ROOT.der()), ca) == ""


EXPIRED = datetime(2021, 1, 1, tzinfo=UTC)
FUTURE = datetime(2999, 1, 1, tzinfo=UTC)
NOT_CA = (by_hand.basic_constraints(ca=False), by_hand.key_usage(by_hand.CERT_SIGN))
REFUSED: dict[str, tuple[Certificate, Certificate, str]] = {
    "leaf's signature": (replace(LEAF, damage=True), CA, "signature"),
    "authority's signature": (LEAF, replace(CA, damage=True), "signature"),
    "leaf by another key of that name": (replace(LEAF, signer=OTHER_KEY), CA, "signature"),
    "authority by another key of that name": (LEAF, replace(CA, signer=OTHER_KEY), "signature"),
    "another issuer": (replace(LEAF, issuer=by_hand.common_name("x")), CA, "nobody"),
    "leaf expired": (replace(LEAF, ends=EXPIRED), CA, "expired"),
    "leaf not yet": (replace(LEAF, begins=FUTURE), CA, "not yet"),
    "authority expired": (LEAF, replace(CA, ends=EXPIRED), "expired"),
    "issuer is no authority": (LEAF, replace(CA, extensions=NOT_CA), "CA|authority"),
    "issuer says nothing of authority": (LEAF, replace(CA, extensions=()), "CA|authority"),
    "issuer says nothing but key usage": (
        LEAF,
        replace(CA, extensions=(by_hand.key_usage(by_hand.CERT_SIGN),)),
        "CA|authority",
    ),
    "issuer may sign no certificates": (
        LEAF,
        replace(CA, extensions=(CA.extensions[0], by_hand.key_usage(by_hand.DIGITAL_SIGNATURE))),
        "CA|authority|usage",
    ),
    "critical on the leaf": (extended(LEAF, UNKNOWN), CA, "critical"),
    "critical on the authority": (LEAF, extended(CA, UNKNOWN), "critical"),
    "attributes, critical": (extended(LEAF, SDA_OTHER), CA, "critical"),
    "authority for the web": (
        LEAF,
        extended(CA, by_hand.purposes("1.3.6.1.5.5.7.3.1")),
        "purposes",
    ),
    "leaf for the web": (
        replace(LEAF, extensions=(*PROFILE[:3], by_hand.purposes("1.3.6.1.5.5.7.3.1"))),
        CA,
        "not one of an endorsement key",
    ),
    "leaf of an attestation key": (
        replace(LEAF, extensions=(*PROFILE[:3], by_hand.purposes("2.23.133.8.3"))),
        CA,
        "not one of an endorsement key",
    ),
    "leaf of anything": (replace(LEAF, extensions=PROFILE[1:3]), CA, "names neither"),
    "leaf is an authority": (
        replace(LEAF, extensions=(PROFILE[0], by_hand.basic_constraints(ca=True), PROFILE[3])),
        CA,
        "authority",
    ),
    "leaf signs": (
        replace(LEAF, extensions=(*PROFILE[:2], by_hand.key_usage(by_hand.DIGITAL_SIGNATURE))),
        CA,
        "key usage",
    ),
    "leaf of another key": (replace(LEAF, key=OTHER_KEY), CA, "another endorsement key"),
    "MD5": (
        replace(LEAF, signer=RSA_CA_KEY, hash=hashes.MD5()),
        replace(CA, key=RSA_CA_KEY),
        "md5",
    ),
    "a short key": (
        replace(LEAF, signer=(short := rsa.generate_private_key(65537, 1024))),
        replace(CA, key=short),
        "too short",
    ),
}


@pytest.mark.parametrize("for_oaep", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_forged_is_refused(name: str, for_oaep: bool) -> None:
    leaf, ca, words = REFUSED[name]
    if for_oaep:  # of which OpenSSL does not check the leaf
        leaf = replace(leaf, key=oaep(EMPTY)) if leaf.key is EK else leaf
        words += "|nobody|md5"
    for trusted, between in ((ROOT, [ca.der()]), (ROOT, [ca.der(), CA.der()])):
        refusal = check(leaf.der(), pem(trusted.der()), *between)
        if between[1:] and check(leaf.der(), pem(trusted.der()), CA.der()) == "":
            assert not refusal  # the good one beside it is what counts then
            continue
        assert refusal
        assert any(word in refusal for word in words.split("|")), refusal


def test_path_length() -> None:
    below = replace(CA, subject=by_hand.common_name("Below"), issuer=CA_NAME, key=OTHER_KEY)
    below = replace(below, signer=CA_KEY)
    leaf = replace(LEAF, issuer=below.subject, signer=OTHER_KEY).der()
    assert "path length" in check(leaf, pem(ROOT.der()), CA.der(), below.der())
    open_end = replace(CA, extensions=(by_hand.basic_constraints(ca=True), CA.extensions[1]))
    assert check(leaf, pem(ROOT.der()), open_end.der(), below.der()) == ""


def test_one_of_two_with_a_name() -> None:
    """Two authorities of one name, as after a renewal: the order is nothing."""
    renewed = replace(CA, key=OTHER_KEY)
    for order in ((CA, renewed), (renewed, CA)):
        assert check(LEAF.der(), b"".join(pem(one.der()) for one in order)) == ""


def test_each_way_up_is_tried() -> None:
    """Kind: of issuers with one name OpenSSL tries one, whichever comes first."""
    stranger = replace(ROOT, key=RSA_CA_KEY, signer=RSA_CA_KEY)
    nobody = replace(ROOT, key=(key := ec.generate_private_key(ec.SECP384R1())), signer=key)
    name = by_hand.common_name("Another")
    cases: list[tuple[Certificate, ...]] = [
        (CA, replace(CA, key=OTHER_KEY)),  # its key was renewed
        (CA, replace(CA, signer=OTHER_KEY)),  # a forgery beside it
        (CA, replace(CA, ends=EXPIRED)),
        (CA, replace(CA, ends=EXPIRED, key=OTHER_KEY)),
        # Two authorities have certified it, and one of them is not trusted.
        (CA, replace(CA, issuer=name, signer=RSA_CA_KEY)),
        (CA, replace(CA, issuer=name, signer=RSA_CA_KEY), replace(stranger, subject=name)),
        (CA, stranger, ROOT),
    ]
    for leaf in (LEAF, replace(LEAF, key=oaep(EMPTY))):
        for case in cases:
            for order in itertools.permutations(case):
                between = [one.der() for one in order]
                assert check(leaf.der(), pem(ROOT.der()), *between) == ""
                assert check(leaf.der(), pem(nobody.der()), *between) != ""


def test_ways_without_an_end() -> None:
    """Certificates that certify each other: a host hands them on, and they take no time."""
    ring = [
        replace(CA, issuer=CA_NAME, signer=CA_KEY, serial=serial).der() for serial in range(1, 9)
    ]
    began = time.process_time()
    assert check(LEAF.der(), pem(ROOT.der()), *ring) != ""
    assert time.process_time() - began < 5


def test_who_signed_whom_is_looked_at_once_for_all_anchors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A service takes requests from anybody, and trusts hundreds of authorities: keys may be so
    long that each signature takes milliseconds."""
    looked_at: list[tuple[bytes, bytes]] = []

    def has_signed(issuer: Any, one: Any) -> bool:
        looked_at.append((issuer.der, one.der))
        return real(issuer, one)

    real = ek_ways.has_signed
    monkeypatch.setattr(ek_ways, "has_signed", has_signed)
    ring = [
        replace(CA, issuer=CA_NAME, signer=CA_KEY, serial=serial).der() for serial in range(1, 9)
    ]
    trusted = [pem(replace(ROOT, serial=serial).der()) for serial in range(1, 11)]
    for leaf in (LEAF, replace(LEAF, key=oaep(EMPTY))):
        looked_at.clear()
        assert check(leaf.der(), b"".join(trusted), *ring) != ""
        assert len(looked_at) == len(set(looked_at))


def test_unreadable_is_named_and_spoils_nothing() -> None:
    good = pem(CA.der())
    broken = pem(CA.der()[:100])
    no_base64 = b"-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"
    other = pem(b"\x30\x03\x02\x01\x01")
    for bundle in (broken + good, good + no_base64, b"text\r\n" + other + good + broken):
        found = check_ek_certificate(LEAF.der(), [b"junk", b""], EK_PEM, bundle)
        assert len(found.passed_over) == 2 + bundle.count(b"BEGIN") - 1
        assert all("cannot be read" in line for line in found.passed_over)
    refusal = check(LEAF.der(), broken)
    assert "the manufacturers' file: certificate 1 cannot be read" in refusal
    assert "the endorsement key's certificate cannot be read" in check(b"", good)
    assert check(LEAF.der(), b"") != ""


@pytest.mark.parametrize(
    "wrap",
    [
        lambda der: by_hand.tlv(0x04, der),
        lambda der: b"\x10\x01\0" + (len(der) + 2).to_bytes(2, "big") + b"\x10\x02" + der,
        lambda der: der + b"\xff" * 300,
        lambda der: der + bytes(7),
        lambda der: by_hand.tlv(0x04, der) + bytes(50),
        pem,
    ],
    ids=["OCTET STRING", "TCG header", "filled with FF", "filled with 00", "both", "PEM"],
)
def test_as_tpms_hold_it(wrap: Callable[[bytes], bytes]) -> None:
    assert check(wrap(LEAF.der()), pem(ROOT.der()), wrap(CA.der())) == ""
    assert check(LEAF.der(), CA.der()) == ""  # one authority, not armoured


CA_EXTENSIONS = st.sampled_from(
    [
        by_hand.basic_constraints(ca=True),
        by_hand.basic_constraints(ca=True, path=0),
        by_hand.basic_constraints(ca=False, explicit=True),
        by_hand.key_usage(by_hand.CERT_SIGN),
        by_hand.key_usage(by_hand.DIGITAL_SIGNATURE),
        by_hand.purposes(by_hand.EK_PURPOSE),
        by_hand.policies("2.5.29.32.0"),
        by_hand.extension("2.5.29.14", by_hand.tlv(0x04, b"key id")),
        by_hand.extension("1.2.3.4.5", by_hand.tlv(0x05)),
        UNKNOWN,
    ]
)


@given(
    ca_extensions=st.lists(CA_EXTENSIONS, max_size=4, unique=True),
    root_extensions=st.lists(CA_EXTENSIONS, max_size=3, unique=True),
    leaf_by=st.sampled_from([CA_KEY, OTHER_KEY]),
    ca_by=st.sampled_from([ROOT_KEY, OTHER_KEY]),
    ends=st.sampled_from([EXPIRED, FUTURE]),
    trusted=st.sampled_from(["ca", "root", "both"]),
)
@settings(max_examples=120)
def test_nothing_is_taken_that_openssl_refuses(
    tmp_path_factory: pytest.TempPathFactory,
    ca_extensions: list[bytes],
    root_extensions: list[bytes],
    leaf_by: ec.EllipticCurvePrivateKey,
    ca_by: ec.EllipticCurvePrivateKey,
    ends: datetime,
    trusted: str,
) -> None:
    """And what it takes is refused for what it does not look at only."""
    leaf = replace(LEAF, signer=leaf_by).der()
    ca = replace(CA, extensions=ca_extensions, signer=ca_by, ends=ends).der()
    root = replace(ROOT, extensions=root_extensions).der()
    anchors = {"ca": pem(ca), "root": pem(root), "both": pem(root) + pem(ca)}[trusted]
    refusal = check(leaf, anchors, ca)
    taken = openssl_takes(tmp_path_factory.mktemp("chain"), leaf, anchors, ca)
    if taken:
        assert refusal == "" or "no certificate of an authority" in refusal
    else:
        assert refusal != ""


def test_a_request_cannot_be_made_to_fail_otherwise() -> None:
    """Bytes from a host are refused by name, whatever they are."""
    good = LEAF.der()

    @given(st.integers(0, len(good) - 1), st.integers(0, 255))
    @settings(max_examples=400)
    def turned(at: int, value: int) -> None:
        look_at(good[:at] + bytes([value]) + good[at + 1 :])

    def look_at(changed: bytes) -> None:
        assert (check(changed, pem(CA.der())) == "") == (changed == good)
        check(good, pem(ROOT.der()), changed)
        check(good, changed)

    turned()
    # What names are made of is read as late as they are compared: tags of all of their values.
    names = [at for at in range(len(good)) if good[at : at + 3] == b"\x06\x03\x55"]
    assert names
    for at in names:
        for tag in (0x05, 0x30, 0x31, 0x80, 0xA0, 0xFF):
            look_at(good[: at + 5] + bytes([tag]) + good[at + 6 :])


def test_json_of_the_cases_is_of_this_form() -> None:
    for case in CASES:
        assert json.loads(case.read_bytes())["type"] == "cima-enrolment"


def oaep(parameters: bytes) -> bytes:
    """The endorsement key under the algorithm that it is used by."""
    numbers = EK.public_key().public_numbers()
    key = asn1_keys.RSAPublicKey({"modulus": numbers.n, "public_exponent": numbers.e}).dump()
    algorithm = by_hand.tlv(0x30, by_hand.oid("1.2.840.113549.1.1.7"), parameters)
    return by_hand.tlv(0x30, algorithm, by_hand.tlv(0x03, b"\0", key))


LABELLED = by_hand.tlv(
    0x30,
    by_hand.tlv(
        0xA2,
        by_hand.tlv(0x30, by_hand.oid("1.2.840.113549.1.1.9"), by_hand.tlv(0x04, b"TCPA")),
    ),
)
"""Parameters of RSAES-OAEP, as Infineon's certificates have them."""


@pytest.mark.parametrize("parameters", [b"", EMPTY, LABELLED])
def test_keys_named_by_their_use(parameters: bytes) -> None:
    """Of early TPMs. OpenSSL does not know them (and so takes none)."""
    leaf = replace(LEAF, key=oaep(parameters))
    assert check(leaf.der(), pem(ROOT.der()), CA.der()) == ""
    assert check(leaf.der(), pem(CA.der())) == ""
    below = replace(CA, subject=by_hand.common_name("Below"), issuer=CA_NAME, key=OTHER_KEY)
    below = replace(below, signer=CA_KEY)
    leaf = replace(leaf, issuer=below.subject, signer=OTHER_KEY)
    assert "path length" in check(leaf.der(), pem(ROOT.der()), CA.der(), below.der())
    open_end = replace(CA, extensions=(by_hand.basic_constraints(ca=True), CA.extensions[1]))
    assert check(leaf.der(), pem(ROOT.der()), open_end.der(), below.der()) == ""
    named = by_hand.extension("2.5.29.30", by_hand.tlv(0x30), critical=True)
    between = extended(open_end, named).der(), below.der()
    assert "names" in check(leaf.der(), pem(ROOT.der()), *between)


def test_keys_that_cannot_be_read() -> None:
    """Kind: what the library raises beside ValueError. OpenSSL takes none of these either."""
    curve = by_hand.tlv(0x30, by_hand.oid("1.2.840.10045.2.1"), by_hand.oid("1.2.3.4"))
    for key in (
        by_hand.tlv(0x30, by_hand.tlv(0x30, by_hand.oid("1.2.3.4")), by_hand.tlv(0x03, b"\0x")),
        by_hand.tlv(0x30, curve, by_hand.tlv(0x03, b"\0\x04" + bytes(64))),
        oaep(by_hand.tlv(0x05)),
        EMPTY,
    ):
        assert "cannot be read" in check(replace(LEAF, key=key).der(), pem(CA.der()))
