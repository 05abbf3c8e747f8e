"""TPMs as others have them: larger keys, foreign NV indices, locked, owned, without a bank."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from enrolled_tpm import ManufacturedTpm, manufactured_tpm
from simulated_host import SimulatedHost
from tpm2_pytss import ESYS_TR, TPM2_CAP, TPM2B_AUTH, TPM2B_NV_PUBLIC, TPMA_NV, TSS2_Exception

from cima_runc.agent import enrolment
from cima_runc.agent.sources import SourcesMissingError, open_sources
from cima_runc.cli.doctor import examine
from cima_runc.config import parse_settings
from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.keys import endorsement_key, held_certificates, load_ak, unload
from cima_runc.tpm.state import read_state
from cima_runc.verifier.enrol import accept, challenge, vouched

OWNER_READ, AUTH_READ, OWNER_WRITE, AUTH_WRITE = (
    TPMA_NV.OWNERREAD,
    TPMA_NV.AUTHREAD,
    TPMA_NV.OWNERWRITE,
    TPMA_NV.AUTHWRITE,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManufacturedTpm]:
    with manufactured_tpm(tmp_path_factory.mktemp("tpm")) as tpm:
        yield tpm


@contextmanager
def host_of(made: ManufacturedTpm, root: Path) -> Iterator[SimulatedHost]:
    host = SimulatedHost(root, made.tpm)
    yield host
    unload(made.tpm, host.attester.attestation_key())


@contextmanager
def index_of(
    tpm: Tpm, index: int, attributes: int, *, password: bytes = b"", content: bytes | None = None
) -> Iterator[None]:
    """Define an NV index while the context lasts, written with ``content`` if there is some."""
    public = TPM2B_NV_PUBLIC()
    public.nvPublic.nvIndex = index
    public.nvPublic.nameAlg = 0x000B
    public.nvPublic.attributes = attributes
    public.nvPublic.dataSize = len(content) if content is not None else 32
    handle = tpm.esapi.nv_define_space(TPM2B_AUTH(password), public)
    try:
        if content is not None:
            by = ESYS_TR.OWNER if attributes & OWNER_WRITE else handle
            tpm.esapi.tr_set_auth(handle, password)
            for at in range(0, len(content), 512):
                tpm.esapi.nv_write(handle, content[at : at + 512], at, auth_handle=by)
        yield
    finally:
        # The agent may have let go of it.
        tpm.esapi.nv_undefine_space(tpm.esapi.tr_from_tpmpublic(index))


def enrols(made: ManufacturedTpm, root: Path) -> str:
    """Enrol, and return the model of the TPM that its manufacturer vouches for."""
    with host_of(made, root) as host:
        before = read_state(made.tpm).lockout_counter
        request = enrolment.request(host.attester)
        trusted = made.root_ca + made.issuer_ca
        asked, pending = challenge(request, trusted)
        public = accept(enrolment.answer(host.attester, asked), pending)
        assert public.name == host.attester.attestation_key().name
        assert read_state(made.tpm).lockout_counter == before
        return vouched(request, trusted).model


@pytest.mark.parametrize(
    "options",
    [
        ("--ecc",),
        ("--rsa-keysize", "3072"),
        ("--rsa-keysize", "3072", "--ecc"),
    ],
    ids=" ".join,
)
def test_every_kind_of_key_is_enrolled(options: tuple[str, ...], tmp_path: Path) -> None:
    with manufactured_tpm(tmp_path, *options) as made:
        (tmp_path / "host").mkdir()
        assert enrols(made, tmp_path / "host") == "swtpm"


def test_key_that_is_not_persistent_is_made_by_the_profiles_template(tmp_path: Path) -> None:
    """The certificate's key comes out of the template of its NV index, or it is not that key."""
    for number, options in enumerate((("--ecc",), ("--rsa-keysize", "3072"), ())):
        root = tmp_path / str(number)
        (root / "host").mkdir(parents=True)
        with manufactured_tpm(root, *options) as made:
            tpm = made.tpm.esapi
            _, data = tpm.get_capability(TPM2_CAP.HANDLES, 0x81010000, 16)
            for persistent in list(data.data.handles):
                tpm.evict_control(ESYS_TR.OWNER, tpm.tr_from_tpmpublic(persistent), persistent)
            assert enrols(made, root / "host") == "swtpm"


FOREIGN = {
    "password": (AUTH_WRITE | AUTH_READ, b"secret", b"something of 16 "),
    "password, does not count": (AUTH_WRITE | AUTH_READ | TPMA_NV.NO_DA, b"secret", b"other"),
    "never written": (OWNER_WRITE | OWNER_READ | AUTH_READ, b"", None),
    "another program's": (OWNER_WRITE | OWNER_READ, b"", b"not a certificate"),
    "begins like one": (OWNER_WRITE | OWNER_READ, b"", b"\x30\x82\x03\x00 but ends soon"),
}


@pytest.mark.parametrize("index", [0x01C00003, 0x01C0000C, 0x01C00014, 0x01C0001C, 0x01C00150])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_index_costs_nothing(
    kind: str, index: int, made: ManufacturedTpm, tmp_path: Path
) -> None:
    attributes, password, content = FOREIGN[kind]
    assert index not in _indices(made.tpm)
    with index_of(made.tpm, index, attributes, password=password, content=content):
        before = read_state(made.tpm)
        held = held_certificates(made.tpm)
        assert "EK-RSA2048" in held.certificates
        assert index in held.passed_over or index in held.contents
        assert enrols(made, tmp_path) == "swtpm"
        after = read_state(made.tpm)
        assert (before.lockout_counter, before.locked_out) == (0, False)
        assert (after.lockout_counter, after.locked_out) == (0, False)


def _indices(tpm: Tpm) -> list[int]:
    _, data = tpm.esapi.get_capability(TPM2_CAP.HANDLES, 0x01000000, 254)
    return [int(one) for one in data.data.handles]


def test_counters_are_passed_over(made: ManufacturedTpm) -> None:
    public = TPM2B_NV_PUBLIC()
    public.nvPublic.nvIndex = 0x01C00151
    public.nvPublic.nameAlg = 0x000B
    public.nvPublic.attributes = OWNER_WRITE | OWNER_READ | (1 << 4)
    public.nvPublic.dataSize = 8
    handle = made.tpm.esapi.nv_define_space(TPM2B_AUTH(b""), public)
    try:
        made.tpm.esapi.nv_increment(handle, auth_handle=ESYS_TR.OWNER)
        held = held_certificates(made.tpm)
        assert "counter" in held.passed_over[0x01C00151]
    finally:
        made.tpm.esapi.nv_undefine_space(made.tpm.esapi.tr_from_tpmpublic(0x01C00151))


def test_chain_from_nv(made: ManufacturedTpm, tmp_path: Path) -> None:
    """Intermediates of the NV area: two in a row, one cut over two indices, junk between."""
    issuer = _der(made.issuer_ca)
    other = _der(made.root_ca)
    plain = OWNER_WRITE | OWNER_READ | AUTH_READ
    whole = other + issuer
    with (
        index_of(made.tpm, 0x01C00100, plain, content=whole[:900]),
        index_of(made.tpm, 0x01C00101, plain, content=whole[900:] + b"\xff" * 40),
        index_of(made.tpm, 0x01C00102, plain, content=b"junk"),
        host_of(made, tmp_path) as host,
    ):
        held = held_certificates(made.tpm)
        assert held.chain == (other, issuer)
        assert list(held.passed_over) == [0x01C00102]
        request = enrolment.request(host.attester)
        assert len(vouched(request, made.root_ca).path) == 2
        # By file, for a TPM that holds none.
        bare = request.model_copy(update={"ek_chain": [], "ek_certificate": None})
        certificate = request.ek_certificate
        found = vouched(bare, made.root_ca, between=made.issuer_ca, certificate=certificate)
        assert len(found.path) == 2


def _der(pem: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_hints(tmp_path: Path) -> None:
    """One for each cause, and none that is another's."""
    with manufactured_tpm(tmp_path) as made:
        tpm = made.tpm
        esapi = tpm.esapi

        def refusal() -> str:
            with pytest.raises(TpmError) as caught:
                load_ak(tpm)
            with pytest.raises(TpmError) as again, endorsement_key(tpm):
                pass
            assert caught.value.hint == again.value.hint
            return f"{caught.value.what}; {caught.value.hint}"

        esapi.hierarchy_change_auth(ESYS_TR.ENDORSEMENT, b"secret")
        esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, b"")
        counted = read_state(tpm).lockout_counter
        assert "endorsement hierarchy has a password" in refusal()
        assert "changeauth" in refusal()
        assert read_state(tpm).lockout_counter == counted
        esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, b"secret")
        esapi.hierarchy_change_auth(ESYS_TR.ENDORSEMENT, b"")
        esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, b"")

        esapi.hierarchy_change_auth(ESYS_TR.OWNER, b"secret")
        esapi.tr_set_auth(ESYS_TR.OWNER, b"")
        # The certificates are readable with their own empty password, and the key stays transient.
        with endorsement_key(tpm) as key:
            assert key.certificate
        with pytest.raises(TpmError, match="owner hierarchy has a password") as caught:
            load_ak(tpm, 0x81010111)
        assert "ak_handle" in caught.value.hint
        unload(tpm, load_ak(tpm))
        esapi.tr_set_auth(ESYS_TR.OWNER, b"secret")
        esapi.hierarchy_change_auth(ESYS_TR.OWNER, b"")
        esapi.tr_set_auth(ESYS_TR.OWNER, b"")

        keys = [load_ak(tpm) for _ in range(3)]
        with pytest.raises(TpmError, match="no room for another key") as caught:
            load_ak(tpm)
        assert "tpmrm0" in caught.value.hint
        for key in keys:
            unload(tpm, key)

        esapi.hierarchy_control(ESYS_TR.ENDORSEMENT, ESYS_TR.ENDORSEMENT, False)
        assert "endorsement hierarchy is disabled" in refusal()


def test_locked_out(tmp_path: Path) -> None:
    """What the agent does takes no password that a lockout would refuse."""
    (tmp_path / "host").mkdir()
    with manufactured_tpm(tmp_path) as made:
        esapi = made.tpm.esapi
        esapi.dictionary_attack_parameters(2, 1000, 1000)
        with index_of(
            made.tpm, 0x01C00150, AUTH_WRITE | AUTH_READ, password=b"right", content=b"x"
        ):
            handle = esapi.tr_from_tpmpublic(0x01C00150)
            esapi.tr_set_auth(handle, b"wrong")
            for _ in range(3):
                with pytest.raises(TSS2_Exception):
                    esapi.nv_read(handle, 1, 0)
            assert read_state(made.tpm).locked_out
            assert enrols(made, tmp_path / "host") == "swtpm"
        found = diagnosed(made)
        assert found["tpm"][0] == "fail"
        assert "locked out" in found["tpm"][1]


def diagnosed(made: ManufacturedTpm) -> dict[str, tuple[str, str]]:
    """What ``cima doctor`` finds out; swtpm has one client at a time."""
    made.tpm.close()
    settings = parse_settings({"tpm": {"tcti": made.tcti}})
    return {one.check: (one.state, f"{one.what}; {one.next}") for one in examine(settings)}


def test_doctor_tries_what_the_agent_needs(tmp_path: Path) -> None:
    with manufactured_tpm(tmp_path) as made, index_of_kept(made.tpm):
        found = diagnosed(made)
    assert found["tpm"][0] == "ok"
    assert found["tpm keys"][0] == "ok"
    assert "a quote of 13 PCRs" in found["tpm keys"][1]
    assert found["tpm certificate"][0] == "ok"
    assert "EK-RSA2048" in found["tpm certificate"][1]
    assert "0x1c00150 is passed over: it was never written" in found["tpm certificate"][1]


@contextmanager
def index_of_kept(tpm: Tpm) -> Iterator[None]:
    public = TPM2B_NV_PUBLIC()
    public.nvPublic.nvIndex = 0x01C00150
    public.nvPublic.nameAlg = 0x000B
    public.nvPublic.attributes = OWNER_WRITE | OWNER_READ
    public.nvPublic.dataSize = 8
    tpm.esapi.nv_define_space(TPM2B_AUTH(b""), public)
    yield


@pytest.mark.parametrize(
    ("banks", "pcr", "words"),
    [
        ("sha384", 12, "no SHA-256 bank"),
        ("sha1,sha384", 12, "no SHA-256 bank"),
        ("sha256", 17, "17"),
    ],
)
def test_binding_pcr(banks: str, pcr: int, words: str, tmp_path: Path) -> None:
    with manufactured_tpm(tmp_path, "--pcr-banks", banks) as made:
        found = read_state(made.tpm).binding(pcr)
        assert found is not None
        assert words in found.what
        made.tpm.close()
        settings = parse_settings(
            {
                "tpm": {"tcti": made.tcti, "pcr": pcr},
                "ima": {"required": False},
                "sensor": {"required": False},
            }
        )
        with pytest.raises(SourcesMissingError) as caught:
            open_sources(settings)
        assert words in caught.value.lines[0]
        checks = {one.check: one for one in examine(settings)}
        assert checks["tpm"].state == "fail"
        assert words in checks["tpm"].what
        assert checks["tpm"].next


def test_all_of_tpm2_tools_agrees(made: ManufacturedTpm) -> None:
    """The state is what tpm2_getcap shows."""
    state = read_state(made.tpm)
    made.tpm.close()
    command = ["tpm2_getcap", "-T", made.tcti, "properties-variable"]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert f"TPM2_PT_LOCKOUT_COUNTER: {state.lockout_counter:#x}" in shown
    for line in (
        "ownerAuthSet:              0",
        "inLockout:                 0",
        "ehEnable:                  1",
    ):
        assert line in shown
