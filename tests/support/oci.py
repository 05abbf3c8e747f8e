"""Build tar archives and images byte by byte, honest and hostile ones."""

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

BLOCK = 512


def pax(records: dict[str, bytes]) -> bytes:
    """The body of an extended header."""
    body = b""
    for key, value in records.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest)
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    return body


def header(
    name: bytes,
    kind: bytes = b"0",
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    """One ustar header block; numbers that do not fit are in base 256, as GNU and Go write them."""

    def number(value: int, width: int) -> bytes:
        if value < 8 ** (width - 1):
            return b"%0*o\0" % (width - 1, value)
        return b"\x80" + value.to_bytes(width - 1, "big")

    block = bytearray(BLOCK)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = number(mode, 8)
    block[108:116] = number(uid, 8)
    block[116:124] = number(gid, 8)
    block[124:136] = number(size, 12)
    block[136:148] = number(0, 12)
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = magic
    block[329:337] = number(device[0], 8)
    block[337:345] = number(device[1], 8)
    block[345:500] = prefix.ljust(155, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(
    name: bytes | str,
    content: bytes = b"",
    kind: bytes = b"0",
    link: bytes | str = b"",
    xattrs: dict[str, bytes] | None = None,
    records: dict[str, bytes] | None = None,
    **fields: object,
) -> bytes:
    """One member with the extended header that it needs."""
    name = name.encode() if isinstance(name, str) else name
    link = link.encode() if isinstance(link, str) else link
    records = dict(records or {})
    for key, value in (xattrs or {}).items():
        records[f"SCHILY.xattr.{key}"] = value
    if len(name) > 100:
        records["path"] = name
    if len(link) > 100:
        records["linkpath"] = link
    before = b""
    if records:
        body = pax(records)
        before = header(b"PaxHeaders/x", b"x", len(body)) + pad(body)
    size = len(content) if "size" not in fields else fields.pop("size")
    return before + header(name, kind, size, link=link, **fields) + pad(content)  # type: ignore[arg-type]


def directory(name: str | bytes, mode: int = 0o755, **fields: object) -> bytes:
    return member(name, kind=b"5", mode=mode, **fields)


def archive(*members: bytes) -> bytes:
    return b"".join(members) + bytes(2 * BLOCK)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


COMPRESS = {
    "": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


@dataclass
class Layout:
    """An OCI layout in memory: its files by path."""

    files: dict[str, bytes] = field(default_factory=dict)
    manifests: list[dict] = field(default_factory=list)

    def blob(self, data: bytes, media_type: str, **more: object) -> dict:
        digest = sha256(data)
        self.files[f"blobs/sha256/{digest[7:]}"] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def image(
        self,
        *layers: bytes,
        compression: str = "gzip",
        config: dict | None = None,
        platform: dict | None = None,
        tag: str | None = "latest",
    ) -> dict:
        suffix = f"+{compression}" if compression else ""
        blobs = [
            self.blob(
                COMPRESS[compression](layer), f"application/vnd.oci.image.layer.v1.tar{suffix}"
            )
            for layer in layers
        ]
        platform = platform or {"os": "linux", "architecture": "amd64"}
        values = {
            **platform,
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
        body = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob(
                json.dumps(values).encode(), "application/vnd.oci.image.config.v1+json"
            ),
            "layers": blobs,
        }
        descriptor = self.blob(json.dumps(body).encode(), body["mediaType"])
        if tag:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append({**descriptor, "platform": platform})
        return self.manifests[-1]

    def finish(self) -> "Layout":
        self.files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        self.files["index.json"] = json.dumps(
            {"schemaVersion": 2, "manifests": self.manifests}
        ).encode()
        return self

    def write_directory(self, path: Path) -> Path:
        for name, data in self.finish().files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path

    def write_archive(self, path: Path) -> Path:
        with tarfile.open(path, "w") as out:
            for name, data in self.finish().files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
        return path


def docker_save(
    path: Path, *layers: bytes, tag: str = "example:latest", config: dict | None = None
) -> Path:
    """An archive of `docker save` before 25: manifest.json, and layer.tar in a directory each."""
    values = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": config or {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
    ).encode()
    name = hashlib.sha256(values).hexdigest() + ".json"
    paths = [f"{number:064x}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": paths}]).encode()
    parts = [member(name, values)]
    parts += [member(each, layer) for each, layer in zip(paths, layers, strict=True)]
    path.write_bytes(archive(*parts, member("manifest.json", manifest)))
    return path
