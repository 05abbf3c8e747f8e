"""The root filesystem was the image, layer by layer, when the container started.

The image's layers compare by digest. The layers that engines and containers write (Docker's init
layer, the upper directory) are of no image: the record holds their manifests, and each entry is
judged. Allowed is what hides or changes nothing: a copy of the image's own entry, a mount point
and the directories that lead to it, what engines make everywhere
(:mod:`cima_runc.verifier.rules.engines`), and the lines that Podman adds for the container's user
(:mod:`cima_runc.verifier.rules.added_users`).
"""

import base64
import posixpath
import re
from collections.abc import Callable, Iterator
from functools import partial

from cima_runc.base.text import printable
from cima_runc.measure.config_summary import ConfigSummary
from cima_runc.measure.mtree import Entry, MtreeError, digest, escape, format_mode, parse_manifest
from cima_runc.measure.xattrs import OPAQUE, OVERLAY
from cima_runc.ml.contents import Layer, Rootfs
from cima_runc.verifier.pattern import exactly
from cima_runc.verifier.policy import AllowedWritten, RootfsPolicy
from cima_runc.verifier.reference.file import ImageReference, ReferenceFile
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.added_users import files_with_lines
from cima_runc.verifier.rules.below import any_below
from cima_runc.verifier.rules.image_files import ImageFiles, is_program
from cima_runc.verifier.rules.mounts import place_of
from cima_runc.verifier.toml import array, quoted

_MODE = re.compile("[0-7]{1,5}")
_MANIFESTS = "cima reference image IMAGE --manifests DIR, and compare with the host's manifest"


class RootfsRule:
    """Judges one ``rootfs`` record."""

    def __init__(
        self,
        reference: ImageReference,
        image: ImageFiles,
        config: ConfigSummary | None,
        policy: RootfsPolicy,
        record: int,
        *,
        adds_users: bool = False,
        links_zones: bool = False,
        holds_data: Callable[[str], bool] | None = None,
        rootless: bool = False,
    ) -> None:
        """``adds_users``: whether the engine adds lines for the container's user;
        ``links_zones``: whether it links to a time zone of the image's. ``holds_data``
        says of a path whether nothing looks for code there, where files may be copied in.
        ``rootless``: whether it is a user's container."""
        self._config = config
        self._adds_users = adds_users
        self._links_zones = links_zones
        self._holds_data = holds_data
        self._rootless = rootless
        self._reference = reference
        self._image = image
        self._policy = policy
        self._record = record
        self._finding = partial(Finding.unless, record=record)
        self._fail = partial(self._finding, False)
        self.compared = False
        """Whether layers were compared."""
        # Podman makes them through the image's own links.
        self._links = {image.place(at): to for at, to in engines.LINKS.items()} | engines.LINKS
        self._mount_points: set[str] = set()
        self._below: list[str] = []
        if config is not None:
            self._read_mounts(config)

    def _read_mounts(self, config: ConfigSummary) -> None:
        self._mount_points = {place_of(mount, self._image) for mount in config.mounts}
        at_zone = any(mount.destination == engines.LOCALTIME for mount in config.mounts)
        if at_zone and self._links_zones:
            self._mount_points.add(engines.LOCALTIME)  # the image's own link was removed before
        # CRI-O makes a directory where the image wants a volume (image_volumes = "mkdir").
        others = map(self._image.place, (config.cwd, *self._reference.config.volumes))
        # In order, in place of all directories that lead to them: a deep path has many of these.
        self._below = sorted(f"{path}/" for path in {*self._mount_points, *others})

    def _leads(self, path: str) -> bool:
        """Whether engines make a directory, or it leads to a mount, to where it starts, or to where
        the image wants a volume."""
        return path in engines.DIRECTORIES or any_below(self._below, f"{path}/")

    def check(self, rootfs: Rootfs) -> Iterator[Finding]:
        """Yield what is wrong with the content of a ``rootfs`` record."""
        if rootfs.mode == "off":
            yield self._finding(
                self._policy.allow_unmeasured,
                "rootfs.off",
                "the root filesystem was not measured",
                expected="mode full",
                got="mode off",
                next_='rootfs.mode = "full" in the agent\'s settings',
            )
            return
        if rootfs.format != self._reference.format:
            yield self._fail(
                "rootfs.format",
                "the manifests are of another form than the reference's",
                got=rootfs.format,
                expected=self._reference.format,
                next_="make the reference values with the host's version of cima",
            )
            return
        yield from self._root(rootfs)
        for layer in rootfs.layers:
            yield from self._changed(layer)
        if rootfs.filesystem == "tree":
            why = f": {rootfs.reason}" if rootfs.reason else ""
            yield self._finding(
                self._policy.allow_tree,
                "rootfs.tree",
                f"the root filesystem is no overlay, so its layers cannot be compared{why}",
                next_="allow_tree under [rootfs] in the policy: files that run are compared still",
            )
            return
        yield from self._layers([each for each in rootfs.layers if each.kind in {"data", "lower"}])
        for layer in rootfs.layers:
            if layer.kind not in {"data", "lower"}:
                yield from self._written(layer)

    def _root(self, rootfs: Rootfs) -> Iterator[Finding]:
        """Yield that anybody may put files beside the image's, or others in their place.

        No layer's manifest holds the root's own mode; engines take the image's, or 0755.
        """
        root = rootfs.root
        if root is not None and (not _MODE.fullmatch(root.mode) or int(root.mode, 8) & 0o002):
            yield self._finding(
                any(each.allows(b"/") for each in self._policy.allow_written),
                "rootfs.written",
                "every user may write in the root directory",
                path="/",
                got=f"mode {printable(root.mode)} owner {root.uid}:{root.gid}",
                expected="mode 0755",
                next_="find out who changed it; if that may be, in the policy: [rootfs]"
                " allow_written = ['/']",
            )

    def _changed(self, layer: Layer) -> Iterator[Finding]:
        if not layer.changed_count:
            return
        yield self._finding(
            self._policy.allow_changing,
            "rootfs.changing",
            f"{layer.changed_count} files changed while the {layer.kind} layer was measured",
            path=", ".join(layer.changed[:5]),
            next_="find out who writes there; allow_changing under [rootfs] in the policy",
        )

    def _layers(self, layers: list[Layer]) -> Iterator[Finding]:
        wanted = self._reference.layers
        self.compared = True
        name = self._reference.name or self._reference.image_id
        digests_of = [each.all_digests if self._rootless else each.digests for each in wanted]
        known = frozenset().union(*digests_of)
        if wanted and not any(layer.digest in known for layer in layers):
            yield self._fail(
                "rootfs.image",
                f"no layer is one of {name}: this is a container of another image, "
                "or every layer was changed",
                got=", ".join(layer.digest for layer in layers[:8]),
                expected=", ".join(layer.digest for layer in wanted[:8]),
                next_="docker inspect or podman inspect: which image is it of?",
            )
            return
        if len(layers) != len(wanted):
            yield self._fail(
                "rootfs.layers",
                f"the container has another number of layers than {name}",
                got=str(len(layers)),
                expected=str(len(wanted)),
                next_="docker inspect or podman inspect: which image is it of?",
            )
        for number, (layer, digests) in enumerate(zip(layers, digests_of, strict=False)):
            if layer.digest not in digests:
                yield self._fail(
                    "rootfs.layer",
                    f"layer {number} is not what the image has: it was changed on the host, "
                    "or is of another image",
                    path=f"layer {number} of {len(layers)}, from the bottom",
                    got=layer.digest,
                    expected=" or ".join(sorted(digests)),
                    next_=_MANIFESTS,
                )

    # -- layers of no image -----------------------------------------------------------------------

    def _written(self, layer: Layer) -> Iterator[Finding]:
        where = "Docker's init layer" if layer.kind == "init" else "the container's own layer"
        if layer.manifest is None:
            patterns = self._policy.allow_written
            whatever = any(each.path == "**" and each.sha256 is None for each in patterns)
            if layer.entries or whatever:
                yield self._finding(
                    whatever,
                    "rootfs.written",
                    f"{where} held {layer.entries} entries at the start, too many to be recorded",
                    got=layer.digest,
                    expected="what engines make",
                    next_="start it from the image anew; '**' in [rootfs] allow_written allows it",
                )
            return
        try:
            if digest(layer.manifest.encode("utf-8", "surrogatepass")) != layer.digest:
                raise MtreeError("its digest is another")
            entries = parse_manifest(layer.manifest.encode("ascii"))
        except (MtreeError, UnicodeEncodeError) as error:
            yield self._fail("rootfs.manifest", f"the manifest of {where} is false: {error}")
            return
        copied = {path for entry in entries if self._is_data(path := escape(path_of(entry)), entry)}
        above = {directory for path in copied for directory in _above(path)}
        for entry in entries:
            raw = path_of(entry)
            path = escape(raw)
            if self._is_engines(path, entry, layer.kind) or path in copied:
                continue
            if path in above and self._is_plain_directory(path, entry):
                continue
            by = self._allowing(entry)
            how = "path pattern alone" if by and by.sha256 is None else "path and digest"
            allowed = f": allowed by the policy's {by.path}, by {how}" if by else ""
            keys = written_keys(entry, self._image)
            hiding = " and hides what the image has there" if len(keys) > 1 else ""
            key = f"[rootfs] allow_written = [{', '.join(keys)}]"
            yield Finding(
                severity="info" if by else "fail",
                rule="rootfs.written",
                what=f"{printable(raw)} was in {where} when the container started{hiding}{allowed}",
                record=self._record,
                path=printable(raw),
                got=_describe(entry),
                expected=_expected(self._image.at(path)),
                next="" if by else f"if that may be, in the policy: {key}",
            )

    def _allowing(self, entry: Entry) -> AllowedWritten | None:
        """Return what of the policy allows an entry; None for nothing.

        Where it hides what the image has below its path, all that must be allowed to be another.
        """
        patterns = self._policy.allow_written
        for hidden in _hidden_by(entry, self._image):
            if not any(each.allows(hidden) for each in patterns):
                return None
        path, digest = path_of(entry), _plain(entry)
        return next(
            (x for x in patterns if (x.allows_file(path, digest) if digest else x.allows(path))),
            None,
        )

    def _is_engines(self, path: str, entry: Entry, kind: str) -> bool:
        """Whether an entry hides and changes nothing of the image, or is an engine's."""
        if entry.path == b".":
            return not entry.is_opaque
        image = self._image.at(path)
        if entry.is_whiteout or (entry.mode or 0) & 0o6000:
            return image is not None and _is_same(entry, image)
        if image is not None and _is_same(entry, image):
            return True
        if self._has_added_users(path, entry) or self._is_zone(path, entry):
            return True
        if entry.type == "dir":
            if image is not None and image.type == "dir":
                return path in self._mount_points and not entry.is_opaque
            if image is not None and kind == "init" and path in engines.MADE_ANEW:
                return _is_new_directory(entry)
            return image is None and self._leads(path) and not _shows_another(entry)
        if entry.type == "file" and not entry.size and not entry.xattrs:
            if image is None and path in engines.EMPTY_FILES:
                return True
            return path in self._mount_points or path in engines.REPLACED_FILES
        if entry.type == "link" and entry.link is not None:
            known = self._links if image is None else engines.LINKS
            return escape(entry.link) in known.get(path, ())
        return False

    def _is_data(self, path: str, entry: Entry) -> bool:
        """Whether it is a file that may have been copied in, as Compose copies secrets: a new one.

        In no other place: what a container left in its own layer is drift at its next start.
        """
        return (
            self._holds_data is not None
            and entry.type == "file"
            and _is_ordinary(entry)
            and posixpath.dirname(path) in engines.SECRETS
            and self._holds_data(path)
        )

    def _is_plain_directory(self, path: str, entry: Entry) -> bool:
        return entry.type == "dir" and self._image.at(path) is None and _is_ordinary(entry)

    def _is_zone(self, path: str, entry: Entry) -> bool:
        """Whether it is an engine's link to a time zone: a file that the image has among those."""
        if not self._links_zones or path != engines.LOCALTIME or entry.link is None:
            return False
        etc, own = self._image.at("/etc"), self._image.at(path)
        if (etc is not None and etc.type != "dir") or (own is not None and own.type == "dir"):
            return False
        link, top = escape(entry.link), f"..{engines.ZONES}/"
        if not link.startswith(top) or {"", ".", ".."} & {*link.removeprefix(top).split("/")}:
            return False
        leads_to = self._image.real(link.removeprefix(".."))
        zone = self._image.at(leads_to)
        is_one = leads_to.startswith(f"{self._image.real(engines.ZONES)}/")
        return is_one and zone is not None and zone.type == "file"

    def _has_added_users(self, path: str, entry: Entry) -> bool:
        if self._config is None or not self._adds_users:
            return False
        found = files_with_lines(
            path, self._image, self._reference.config, self._config, self._policy.host_users
        )
        return any(_is_same(entry, each) for each in found)


def _is_ordinary(entry: Entry) -> bool:
    """Whether it has no attributes, and nobody but its owner may write it."""
    return not (entry.is_whiteout or entry.xattrs or (entry.mode or 0) & 0o7022)


def _is_new_directory(entry: Entry) -> bool:
    """Whether it is as one that Docker makes, of which overlayfs notes that it hides a link."""
    owner = (entry.mode, entry.uid, entry.gid)
    return owner == (0o755, 0, 0) and set(entry.xattrs) <= {OPAQUE}


def _above(path: str) -> Iterator[str]:
    while (path := posixpath.dirname(path)) != "/":
        yield path


def path_of(entry: Entry) -> bytes:
    """Return where a layer's entry is in the container."""
    return b"/" if entry.path == b"." else b"/" + entry.path


def written_keys(entry: Entry, image: ImageFiles) -> list[str]:
    """Return the TOML that allows an entry of a layer that is of no image, and no other, in
    ``[rootfs] allow_written``; and one more for what it hides, where it does.

    Of a program or script its content is named, since nothing else may see what is executed.
    """
    path, digest = exactly(path_of(entry)), _plain(entry)
    below = [quoted(f"{path.rstrip('/')}/**")] if any(_hidden_by(entry, image)) else []
    if digest is not None and is_program(path, entry.mode or 0):
        return [f"{{path = {quoted(path)}, sha256 = {array([digest.hex()])}}}", *below]
    return [quoted(path), *below]


def _plain(entry: Entry) -> bytes | None:
    """Return the digest of a file that gives nobody more rights; None: it is no such file."""
    is_plain = not ((entry.mode or 0) & 0o6000 or entry.xattrs)
    return entry.sha256 if entry.type == "file" and is_plain else None


def _hidden_by(entry: Entry, image: ImageFiles) -> Iterator[bytes]:
    """Yield what an entry hides of all that the image has below its path."""
    if entry.type != "dir" or entry.is_opaque or _shows_another(entry):
        yield from image.below(escape(path_of(entry)))


def _shows_another(entry: Entry) -> bool:
    """Whether overlayfs shows something else in a directory than what the layer has there, as what
    the image has at another path (``redirect``). That it is opaque hides nothing, where nothing is.
    """
    names = {name for name, _ in entry.xattrs if name.startswith(OVERLAY)}
    return not names <= {OPAQUE[0]}


def _is_same(entry: Entry, image: ReferenceFile) -> bool:
    """Whether an entry is the image's own: a directory's copy that overlayfs made."""
    xattrs = {name: base64.b64encode(value).decode("ascii") for name, value in entry.xattrs}
    return (
        not entry.is_whiteout
        and xattrs == (image.xattrs or {})
        and entry.type == image.type
        and format_mode(entry.mode or 0) == image.mode
        and (entry.uid, entry.gid) == (image.uid, image.gid)
        and entry.device == image.device
        and (None if entry.sha256 is None else entry.sha256.hex()) == image.sha256
        and (None if entry.link is None else escape(entry.link)) == image.link
    )


def _describe(entry: Entry) -> str:
    if entry.is_whiteout:
        return "removed"
    words = [f"a {entry.type}"]
    if entry.is_opaque:
        words.append("that hides the image's")
    if entry.mode is not None:
        words.append(f"mode {format_mode(entry.mode)} owner {entry.uid}:{entry.gid}")
    if entry.sha256 is not None:
        words.append(f"of {entry.size} bytes, sha256 {entry.sha256.hex()}")
    if entry.link is not None:
        words.append(f"to {printable(entry.link)}")
    return " ".join(words)


def _expected(image: ReferenceFile | None) -> str:
    if image is None:
        return "nothing but what engines make"
    content = f", sha256 {image.sha256}" if image.sha256 else ""
    return f"the image's {image.type}, mode {image.mode} owner {image.uid}:{image.gid}{content}"
