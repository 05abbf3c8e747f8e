import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.evidence.owner import (
    OwnerError,
    generate,
    owner_keys,
    parse_private,
    parse_public,
    public_text,
    variable_owner,
)

_, KEY = generate()
_, OTHER = generate()
TEXT = public_text(KEY)


def config(annotation: str | None = None, env: list[str] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"process": {"env": env or []}}
    if annotation is not None:
        made["annotations"] = {"io.cima.owner": annotation}
    return made


def test_pair_belongs_together() -> None:
    pem, public = generate()
    assert parse_private(pem).public_key().public_bytes_raw() == public
    assert parse_public(public_text(public)) == public


def test_no_owner(tmp_path: Path) -> None:
    for empty in ({}, {"process": None}, {"process": {}}, config(), config(env=["CIMA_OWNERS=x"])):
        assert owner_keys(empty, tmp_path) == ()


def test_annotation_goes_before_the_image(tmp_path: Path) -> None:
    both = config(TEXT, ["CIMA_OWNER=" + public_text(OTHER)])
    assert owner_keys(both, tmp_path, variable=True) == (TEXT,)
    assert owner_keys(both, tmp_path) == (TEXT,)
    assert variable_owner(config(env=["CIMA_OWNER=a", "CIMA_OWNER=b=c"])) == "b=c"


def test_an_image_names_no_owner_unless_the_host_lets_it(tmp_path: Path) -> None:
    of_image = config(env=["CIMA_OWNER=" + TEXT])
    assert owner_keys(of_image, tmp_path) == ()
    assert owner_keys(of_image, tmp_path, variable=True) == (TEXT,)
    nonsense = config(env=["CIMA_OWNER=../nobody"])
    assert owner_keys(nonsense, tmp_path) == ()


def test_file_of_several(tmp_path: Path) -> None:
    (tmp_path / "tenant-a").write_text(f"# keys\n{TEXT}\n\n{public_text(OTHER)}\n")
    assert owner_keys(config("tenant-a"), tmp_path) == (TEXT, public_text(OTHER))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/shadow", "", ".", "..", "a/b", "a\0b", "x" * 99]
)
def test_no_path_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path.parent / "secret").write_text(TEXT)
    with pytest.raises(OwnerError):
        owner_keys(config(name), tmp_path)


def test_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text(TEXT)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OwnerError):
        owner_keys(config("link"), tmp_path)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "many").write_text((TEXT + "\n") * 9)
    (tmp_path / "long").write_text((TEXT + "\n") * 1000)
    (tmp_path / "binary").write_bytes(b"\xff" * 10)
    for name in ("empty", "many", "long", "binary", "missing"):
        with pytest.raises(OwnerError):
            owner_keys(config(name), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "x25519:",
        "x25519:AAAA",
        "x25519:" + base64.b64encode(bytes(32)).decode(),
        "x25519:" + base64.b64encode(b"\x01" + bytes(31)).decode(),
        "X25519:" + TEXT[7:],
        TEXT + " ",
    ],
    ids=["empty", "short", "zero", "of low order", "upper case", "followed by a space"],
)
def test_bad_keys(text: str) -> None:
    with pytest.raises(OwnerError):
        parse_public(text)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(OwnerError):
        parse_public(text)
