"""The parsers of everything that comes from outside, one function each: any bytes in, and either
they are read or refused with an error of ours. Whatever else is raised is a finding."""

import base64
import hashlib
import io
import json
import os
import struct
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cima_runc.base import jsonio, limits
from cima_runc.base.errors import CimaError
from cima_runc.config import parse_settings
from cima_runc.cpcr import journal
from cima_runc.cpcr.status import Status
from cima_runc.engines.containerd import CONTAINERD
from cima_runc.engines.crio import CRIO
from cima_runc.engines.docker import DOCKER
from cima_runc.engines.engine import Wish
from cima_runc.engines.podman import PODMAN
from cima_runc.evidence import enrolment, models, owner, request
from cima_runc.ima import entry, template
from cima_runc.measure import (
    config_summary,
    idmap,
    mtree,
    oci_config,
    overlay,
    override,
    procfs,
    xattrs,
)
from cima_runc.ml import contents, records
from cima_runc.runtime import agent_socket, hook_state, oci_hooks
from cima_runc.sensor import events
from cima_runc.tpm import structures
from cima_runc.verifier import boot_log, enrolled, policy, verify
from cima_runc.verifier.reference import dsse, file, image, keylime, layer, tar

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"


def ima_ascii(data: bytes) -> None:
    found = entry.parse_ascii(data)
    assert found is None or found.checked


def ima_binary(data: bytes) -> None:
    _read_binary_log(data)
    # Guessing a hash takes too long: the same once more with the right one.
    if len(data) >= 4:
        name, content = b"ima-ng", data
        digest = hashlib.sha1(content).digest()
        _read_binary_log(
            struct.pack("<I20sI", 10, digest, len(name))
            + name
            + struct.pack("<I", len(content))
            + content
        )


def _read_binary_log(data: bytes) -> None:
    at = 0
    while (found := entry.parse_binary(data, at)) is not None:
        assert found[1] > at
        at = found[1]


def event_log(data: bytes) -> None:
    boot_log.replay(data)


def sensor_event(data: bytes) -> None:
    events.parse(data)


def hook_request(data: bytes) -> None:
    """What a hook sends: a header line and the state that the runtime gave it."""
    head, newline, body = data.partition(b"\n")
    with suppress(CimaError):
        agent_socket.parse_header(head + newline, limit=limits.REQUEST)
    hook_state.parse_hook_state(body)


def oci(data: bytes) -> None:
    """A bundle's configuration: hooks put in by the shim, then measured, then appraised."""
    config = jsonio.load_object(data, what="config.json", limit=limits.CONFIG_JSON)
    before = json.dumps(config)
    with suppress(CimaError):
        owner.annotated_owner(config)
        owner.variable_owner(config)
    config_summary.summarize(config)
    measured = oci_config.measured_config(config, secret=bytes(32), hooks_dir="/hooks")
    records.digest_of(records.CIMA, contents.Config(config=measured).to_json())
    assert json.dumps(config) == before
    oci_hooks.inject(
        config, hooks_dir="/hooks", create_stage="createRuntime", timeout_seconds=1, env=[]
    )
    injected = json.loads(json.dumps(config))
    oci_hooks.inject(
        config, hooks_dir="/hooks", create_stage="createRuntime", timeout_seconds=1, env=[]
    )
    assert config == injected


def record(data: bytes) -> None:
    with suppress(CimaError):
        assert template.pack_cima_ng(*template.unpack_cima_ng(data)) == data
    found = records.parse_line(data)
    with suppress(CimaError):
        content = contents.read(found)
        if isinstance(content, contents.Content):
            assert content.to_json() == found.content
    assert records.parse_line(found.to_line()) == found
    if found.content_type == records.IMA_TEMPLATE:
        template.unpack_cima_ng(records.template_data(found.content))


def binding_journal(data: bytes) -> None:
    state = journal.JournalState(Status.begin())
    for line in data.splitlines():
        value = jsonio.load_object(line, what="the journal", limit=limits.JOURNAL_ENTRY)
        state = journal.apply(state, value)
    counters = state.counters or (1, 0)
    found = journal.Found(bytes(32), counters, "2026-01-01T13:00:00Z")
    for _ in range(3):
        entry = journal.reconcile(state, found)
        if entry is None:
            return
        state = journal.apply(state, entry)
    raise AssertionError("the journal explains nothing")


def evidence(data: bytes) -> None:
    """Evidence as the verifier takes it: what it is not is a result, not an error."""
    wanted = verify.Expectation(_NONCE, enrolled.parse_enrolled_ak(_AK))
    verify.verify(data, wanted, appraisal=_APPRAISAL)


_AK = (HERE / "evidence-ak.pem").read_bytes()
_NONCE = bytes(32)
_APPRAISAL = verify.Appraisal(lambda *_: [], None, bytes(32))


def owner_key(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with suppress(CimaError):
        assert owner.parse_public(owner.public_text(owner.parse_public(text)))
    owner.parse_private(data)


def messages(data: bytes) -> None:
    """What else goes between host, owner and verifier."""
    for kind in (enrolment.EnrolmentRequest, enrolment.Challenge, enrolment.EnrolmentAnswer):
        with suppress(CimaError):
            enrolment.parse(kind, data, "a message")
    for parse in (enrolled.parse_enrolled_ak, request.parse_request, models.parse_owner_part):
        with suppress(CimaError):
            parse(data)


def tpm(data: bytes) -> None:
    for parse in (structures.parse_quote, structures.parse_public, structures.parse_signature):
        with suppress(CimaError):
            parse(data)


def manifest(data: bytes) -> None:
    found = mtree.parse_manifest(data)
    assert mtree.format_manifest(found) == data


def tar_layer(data: bytes) -> None:
    """A layer's archive, with the checksums made right: guessing them takes too long."""
    mended = bytearray(data)
    for at in range(0, len(mended) - tar.BLOCK + 1, tar.BLOCK):
        block = mended[at : at + tar.BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            mended[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    tree = layer.read_layer(tar.read_tar(io.BytesIO(bytes(mended))))
    for engine in ("docker", "containerd", "podman"):
        mtree.format_manifest(layer.entries(tree, engine))


def saved_image(data: bytes) -> None:
    """An archive of `docker save`, or an OCI layout in a tar."""
    handle, path = tempfile.mkstemp(dir="/dev/shm")
    try:
        with open(handle, "wb") as out:
            out.write(data)
        file.format_reference(image.read_image(Path(path)).reference)
    finally:
        os.unlink(path)


def reference(data: bytes) -> None:
    found = file.parse_reference(data)
    assert file.parse_reference(file.format_reference(found)) == found


def envelope(data: bytes) -> None:
    """An envelope, and a statement in one that is well signed."""
    with suppress(CimaError):
        dsse.verify(data, [_KEY])
    with suppress(CimaError):
        dsse.load_public_key(data)
    signature = _PRIVATE.sign(dsse.pae(dsse.PAYLOAD_TYPE.encode(), data))
    outer = {
        "payload": base64.b64encode(data).decode(),
        "payloadType": dsse.PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    dsse.verify(json.dumps(outer).encode(), [_KEY])


_PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(32))
_KEY = _PRIVATE.public_key()


def keylime_policy(data: bytes) -> None:
    converted = keylime.from_keylime(data)
    keylime.to_keylime(converted.reference)


def verifier_policy(data: bytes) -> None:
    policy.parse_policy(data)


def settings(data: bytes) -> None:
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return
    parse_settings(values)


def engine_settings(data: bytes) -> None:
    """What an engine's file says otherwise must be the same with the runtime in it, and without."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return
    wish = Wish(runtime="/usr/local/bin/cima-runc", default=True)
    for engine in (CONTAINERD, CRIO, DOCKER, PODMAN):
        with suppress(CimaError):
            added = engine.add(text, wish, HERE, "the file")
            assert engine.add(added, wish, HERE, "the file") == added
            engine.remove(added, text, "the file")


def kernel(data: bytes) -> None:
    """Files in /proc, and extended attributes."""
    with suppress(CimaError):
        for mount in overlay.parse_mountinfo(data):
            assert overlay.find_mount([mount], b"/") in {None, mount}
    for parse in (
        lambda: overlay.split_lowerdir(data),
        lambda: procfs.parse_maps(data),
        lambda: procfs.parse_unix_listeners(data, b"/run/docker.sock"),
        lambda: idmap.parse_id_maps(data, data),
        lambda: override.parse_override(data),
        lambda: xattrs.capability(data),
        lambda: xattrs.acl_access(data, 0o644),
        lambda: xattrs.acl_default(data),
    ):
        with suppress(CimaError):
            parse()


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(ima_ascii, ima_binary, event_log, sensor_event),
        *(hook_request, oci, record, binding_journal),
        *(evidence, messages, owner_key, tpm),
        *(manifest, tar_layer, saved_image),
        *(reference, envelope, keylime_policy, verifier_policy),
        *(settings, engine_settings, kernel),
    )
}


def check(name: str, data: bytes) -> None:
    """Run a target once; raises what is a finding."""
    with suppress(CimaError):
        TARGETS[name](data)
