import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from cima_runc.base.errors import CimaError
from cima_runc.cli.reference import app
from cima_runc.verifier.reference.file import read_reference
from tests.support.oci import Layout, archive, member


def run(*arguments: object, fails: bool = False) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if not fails and result.exception:
        raise result.exception
    assert bool(result.exit_code) == fails, result.output
    return result.output


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Path:
    layout = Layout()
    layout.image(archive(member("sh", b"x", mode=0o755)), tag="\x1b[2J")
    return layout.write_archive(tmp_path / "image.tar")


@pytest.fixture(name="keys")
def _keys(tmp_path: Path) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def test_image(image: Path, tmp_path: Path) -> None:
    output = run("image", image, "-o", tmp_path / "ref.json", "--manifests", tmp_path / "m")
    assert "1 layers, 1 paths" in output
    assert "\x1b" not in output
    reference = read_reference(tmp_path / "ref.json")
    assert reference.kind == "image"
    assert [path.name for path in (tmp_path / "m").iterdir()] == [
        f"{layer.digest[7:]}.mtree" for layer in reference.layers
    ]


def test_standard_output(image: Path) -> None:
    result = CliRunner().invoke(app, ["image", str(image)])
    assert json.loads(result.stdout)["kind"] == "image"


def test_signed(image: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    run("image", image, "-o", tmp_path / "signed.json", "--sign-key", private)
    run("image", image, "-o", tmp_path / "plain.json")
    out = tmp_path / "out.json"
    assert "signature good" in run("verify", tmp_path / "signed.json", "--key", public, "-o", out)
    assert out.read_bytes() == (tmp_path / "plain.json").read_bytes()
    other = Ed25519PrivateKey.generate().public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    (tmp_path / "other.pub").write_bytes(other)
    out.unlink()
    for arguments in (
        ("verify", tmp_path / "signed.json", "--key", tmp_path / "other.pub", "-o", out),
        ("verify", tmp_path / "plain.json", "--key", public, "-o", out),
    ):
        with pytest.raises(CimaError):
            run(*arguments)
    assert not out.exists()
    run("verify", tmp_path / "signed.json", fails=True)  # without a key, nothing is good


def test_a_bad_key_is_told_before_the_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"x")
    with pytest.raises(CimaError, match="private key"):
        run("image", tmp_path / "nothing", "--sign-key", tmp_path / "key")


def test_keylime(image: Path, tmp_path: Path) -> None:
    run("image", image, "-o", tmp_path / "ref.json")
    run("convert", tmp_path / "ref.json", "--to-keylime", tmp_path / "policy.json")
    policy = json.loads((tmp_path / "policy.json").read_bytes())
    assert list(policy["digests"]) == ["/sh"]
    policy["excludes"] = ["/tmp"]
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    output = run("host", "--from-keylime", tmp_path / "policy.json", "-o", tmp_path / "host.json")
    assert "left out: excluded paths: /tmp" in output
    assert read_reference(tmp_path / "host.json").kind == "host"
    run("convert", fails=True)
    run("convert", "--from-keylime", "a", "--to-keylime", "b", fails=True)
