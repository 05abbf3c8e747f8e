"""Which mount a path lies on, and which mounts are allowed."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from pydantic import ValidationError

from cima_runc.base import limits
from cima_runc.measure.config_summary import ConfigSummary, Mount
from cima_runc.measure.mtree import escape, unescape
from cima_runc.ml.contents import Engine
from cima_runc.ml.pods import Pod, pod_of
from cima_runc.verifier.pattern import ID, ID_FORM, directory, exactly, literal, matches
from cima_runc.verifier.policy import AllowedMount
from cima_runc.verifier.reference.file import ReferenceConfig
from cima_runc.verifier.reference.links import LONGEST
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.image_files import ImageFiles, path_bytes
from cima_runc.verifier.rules.looked_at import LookedAt
from cima_runc.verifier.toml import array, quoted

_NAME = re.compile(r"\{([a-z]+)\}")
_TOP = re.compile(r"\{(root|state|kubelet|rootfs)\}")
"""What a source begins with that is one of some directories."""
_BEFORE_VERSION_2 = {
    "docker": Engine(name="docker", roots=("/var/lib/docker",)),
    "podman": Engine(
        name="podman",
        roots=("/var/lib/containers/storage",),
        states=("/run/containers/storage", "/var/run/containers/storage"),
    ),
    "containerd": Engine(
        name="containerd",
        cri=True,
        roots=("/var/lib/containerd",),
        states=("/run/containerd",),
        kubelets=("/var/lib/kubelet",),
    ),
}
"""What counts for records of version 1, which do not say where engines keep their things."""
_OWN_PLACES = ("/run/secrets", "/var/run/secrets", "/etc/podinfo")
"""Directories that hold data by custom: no program looks below them by itself. Any other place may
be one for some image, but where its name in the root says that it holds data: programs start in
``/`` or look in directories of theirs there, as LinuxServer.io's do for ``/custom-cont-init.d``;
Node looks for ``node_modules``, Bundler for a ``Gemfile`` in each directory above its own."""


class EngineMounts:
    """The mounts that the engine of one container makes by itself.

    What a source may be refers to what was measured of the engine and to the container's own
    names, so that no other container's directory, nor any other path, is taken for the engine's:

    =================  ==========================================================================
    ``{root}``         a directory that the engine keeps data in (``register``, ``engine.roots``)
    ``{state}``        the same for what lasts until the next boot (``engine.states``)
    ``{id}``           the container's id, or that of one whose namespaces it shares
    ``{sandbox}``      the id of its pod's sandbox, as the engine wrote into the configuration
    ``{kubelet}``      kubelet's root directory (``engine.kubelets``)
    ``{pod}``          the pod's uid, ``{container}`` the container's name there
    ``{rootfs}``       where its root filesystem is, which was measured
    =================  ==========================================================================
    """

    def __init__(
        self,
        register: Mapping[str, Any],
        config: ConfigSummary,
        image: ImageFiles | None = None,
        *,
        values: ReferenceConfig | None = None,
        secret: bytes | None = None,
    ) -> None:
        """``register`` is the content of that record; ``image`` shows what a mount would hide,
        ``values`` what the image sets; ``secret`` is what the environment's are hidden with."""
        self._config = config
        self._image = image
        found = register.get("engine")
        is_known = found is not None or "line" in register
        self._engines = (_read(found),) if is_known else tuple(_BEFORE_VERSION_2.values())
        self._redirected = [frozenset(engine.redirected) for engine in self._engines]
        self._shares = [frozenset(engine.shares) for engine in self._engines]
        # A user's container is registered as UID/ID.
        own = str(register.get("id", "*")).rpartition("/")[2]
        self._own = literal(own.encode("utf-8", "surrogatepass")) if is_known else "*"
        self._looked_at: LookedAt | None = None
        if image is not None:
            sets_home = any(engine.name in engines.SETTING_HOME for engine in self._engines)
            self._looked_at = LookedAt(
                config, image, values or ReferenceConfig(), sets_home=sets_home, secret=secret
            )

    def makes(self, mount: Mount) -> bool:
        """Return whether it is one of them."""
        return any(not self._objection(each, mount) for each in self._of_kind(mount))

    def objection(self, mount: Mount) -> str:
        """Return why a mount that the engine makes counts as none, where it lies: or nothing."""
        found = [self._objection(each, mount) for each in self._of_kind(mount)]
        return min(found, key=len, default="")

    def why_unknown(self, variable: str) -> str:
        """Return why it counts that nobody knows what a variable of the environment names; nothing
        where it does not, or is known."""
        return self._looked_at.why_unknown(variable) if self._looked_at is not None else ""

    def _of_kind(self, mount: Mount) -> Iterator[engines.EngineMount]:
        is_empty = self._is_empty(mount)
        for each in engines.EMPTY if is_empty else engines.at(mount.destination):
            if (
                kind(mount) == each.type
                and (is_empty or matches_any(each.destinations, mount.destination))
                and (each.type != "bind" or self._is_source(each, mount))
            ):
                yield each

    def _is_empty(self, mount: Mount) -> bool:
        """Whether it lies where an engine mounts nothing but an empty file system, by another name:
        /var/run is /run, where the image has such a link."""
        is_plain = kind(mount) == "tmpfs" and ".." not in mount.destination.split("/")
        return is_plain and place_of(mount, self._image) in self._empty

    @cached_property
    def _empty(self) -> frozenset[str]:
        places = (at for each in engines.EMPTY for at in each.destinations)
        return frozenset(map(self._image.real, places) if self._image is not None else ())

    def _objection(self, of: engines.EngineMount, mount: Mount) -> str:
        if of.refused:
            return of.refused
        if of.of_image and not self._has_own(of.of_image):
            return "the image does not have that itself"
        if of.type == "tmpfs" and not _is_filled(mount) and self._hides_programs(mount):
            return "it hides programs that the image has there"
        if of.own_place and self._image is None:
            return "it is not known what the image has there"
        if self._image is None or not (of.own_place or of.chosen):
            return ""
        place = place_of(mount, self._image)
        if matches_any(("/**/..", "/**/.", "**//**"), mount.destination):
            return _MAY_LOOK
        return self._looks_for_code(place, of)

    def holds_data(self, path: str) -> bool:
        """Whether no program looks by itself at a path, without links and escaped, of which the
        image has nothing: whoever starts the container may choose what is there."""
        of = engines.EngineMount("bind", ("/**",), own_place=True)
        is_new = self._image is not None and self._image.real(path) == path
        return is_new and not self._looks_for_code(path, of)

    def _hides_programs(self, mount: Mount) -> bool:
        image = self._image
        return image is not None and image.has_program_below(place_of(mount, image))

    def _has_own(self, path: str) -> bool:
        image = self._image
        return image is not None and image.real(path) == path and image.at(path) is not None

    def _looks_for_code(self, place: str, of: engines.EngineMount) -> str:
        assert self._image is not None and self._looked_at is not None
        places = (*_OWN_PLACES, *of.places)
        below = next((each for each in places if f"{place}/".startswith(f"{each}/")), "")
        if of.chosen and not below:
            below = place.removesuffix("/kubernetes.io/serviceaccount")  # a link leads elsewhere
        top = "/" + place.split("/")[1]
        if not below and self._looked_at.holds_data_by_name(top):
            below = top
        if not below:
            return _MAY_LOOK
        if of.own_place and self._image.has_below(place):
            return "it hides what the image has there"
        by = self._looked_at.by_what(place, below)
        return f"programs may look for code there: {by}" if by else ""

    def for_the_next(self, source: str) -> str:
        """Return a pattern of a mount's source that holds for the next container of its kind.

        Ids of this container, its pod and those that it shares namespaces with become ``\\i``, and
        ``*`` where they have another form; so does what engines name at random: the 64 hex digits
        of a volume without a name, the volume that a claim made (``pvc-`` and its uid). What has a
        name is another kind, and not taken in, nor is what is named by a digest: another image.
        """
        if not source.startswith("/") or len(source) > limits.PATH:
            return exactly(path_bytes(source))
        directories = [
            directory
            for engine in self._engines
            for directory in (*engine.roots, *engine.states, *engine.kubelets)
        ]
        # cri-dockerd's pods are Docker's, which knows of no kubelet; nerdctl's place is fixed.
        usual = (*directories, _USUAL_KUBELET, _NERDCTL)
        inside = any(source.startswith(each + "/") for each in usual)
        ids = self._ids_in(source, inside)
        parts: list[str] = []
        names = source.split("/")
        for at, part in enumerate(names):
            random = _random(part, names[max(at - 2, 0) : at]) if inside else _claim(part)
            parts.append(random if random is not None else _without_ids(part, ids))
        kubelets = {_USUAL_KUBELET, *(one for engine in self._engines for one in engine.kubelets)}
        if any(_TERMINATION_LOG.fullmatch(source.removeprefix(each)) for each in kubelets):
            parts[-1] = "*"
        return "/".join(parts)

    def allowing(self, mount: Mount) -> str:
        """Return the TOML that allows a mount, and the same in the next container of its kind, in
        ``[config] mounts``."""
        parts = [f"destination = {quoted(exactly(path_bytes(mount.destination)))}"]
        is_of_something = mount.from_host or mount.type not in _OF_NOTHING
        has_source = mount.source.startswith("/") or (is_of_something and bool(mount.source))
        if has_source:
            parts.append(f"source = {quoted(self.for_the_next(mount.source))}")
        if not (mount.from_host and has_source):
            parts.append(f"type = {quoted(kind(mount))}")
        if kind(mount) == "overlay" and mount.layers:
            parts.append(f"layers = {array([self.for_the_next(one) for one in mount.layers])}")
        if mount.read_only:
            parts.append("read_only = true")
        return "{" + ", ".join(parts) + "}"

    def _ids_in(self, source: str, inside: bool) -> re.Pattern[str] | None:
        """Return what finds the ids that are in a source, of the many that there may be."""
        # A person's own directory may be called as the container is: that name is not random.
        found = [
            each
            for each in self._ids
            if each in source and (inside or _GIVEN_BY_ENGINE.fullmatch(each))
        ]
        if not found:
            return None
        ids = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
        return re.compile(f"({ids})")

    @cached_property
    def _ids(self) -> frozenset[str]:
        found = {self._own}
        for engine in self._engines:
            pod = self._pod(engine)
            found |= {pod.uid, pod.sandbox, *engine.shares}
        return frozenset(each for each in found if len(each) >= _ID_LENGTH)

    def _is_source(self, of: engines.EngineMount, mount: Mount) -> bool:
        if not {"", ".", ".."}.isdisjoint(mount.source.split("/")[1:]):
            return "**" in of.sources
        if "**" in of.sources:
            return True
        return any(
            (not of.engines or engine.name in of.engines)
            and mount.destination not in self._redirected[number]
            and any(self._is_of(number, source, mount.source) for source in of.sources)
            for number, engine in enumerate(self._engines)
        )

    def _is_of(self, number: int, template: str, source: str) -> bool:
        """Return whether a source is what a template stands for, with this engine.

        Each name stands for one thing at most, whatever a host has in its record: of directories
        in one another, for the innermost.
        """
        top, text = "", template
        if begins := _TOP.match(template):
            text = template[begins.end() :]
            top = _innermost(self._directories(number, begins[1]), source)
            if not top:
                return False
        pod, below = self._pods[number], source[len(top) :]
        values = {"sandbox": pod.sandbox, "pod": pod.uid, "container": pod.container}
        values = {name: _literal(value) for name, value in values.items()}
        values["id"] = self._id_at(number, text, below)
        if self._own == "*":
            values = dict.fromkeys(values, "*")
        names = _NAME.findall(text)
        if len(source) > limits.PATH or not all(values[name] for name in names):
            return False
        return matches_any((_NAME.sub(lambda match: values[match[1]], text),), below)

    def _directories(self, number: int, name: str) -> tuple[str, ...]:
        engine = self._engines[number]
        if name == "rootfs":
            return (self._config.root,) if self._config.root.startswith("/") else ()
        if name == "kubelet":
            return engine.kubelets if engine.cri else ()
        return engine.roots if name == "root" else engine.states

    def _id_at(self, number: int, template: str, path: str) -> str:
        """Return the container's id, or that of one that shares a namespace of its where the path
        has that in the id's place."""
        found = template.split("/")
        if "{id}" not in found:
            return self._own
        at = found.index("{id}")
        part = next(islice(path.split("/", at + 1), at, None), "")
        return _literal(part) if part in self._shares[number] else self._own

    def _pod(self, engine: Engine) -> Pod:
        """Return what the engine itself wrote of the pod, after what a tenant had it write."""
        return self._pods[self._engines.index(engine)]

    @cached_property
    def _pods(self) -> list[Pod]:
        found = [(each, pod_of(each, dict(self._config.kubernetes))) for each in self._engines]
        return [
            pod._replace(uid=pod.uid or self._only_pod(engine)) if engine.cri else pod
            for engine, pod in found
        ]

    def _only_pod(self, engine: Engine) -> str:
        """Return the uid of the one pod that mounts name; containerd 1.6 does not tell it."""
        found = {
            rest.partition("/")[0]
            for mount in self._config.mounts
            for kubelet in engine.kubelets
            if (rest := mount.source.removeprefix(f"{kubelet}/pods/")) != mount.source
        }
        return found.pop() if len(found) == 1 else ""


_MAY_LOOK = "programs may look for code there by themselves"
_PLACES, _REDIRECTED, _SHARES = 16, 256, 1_024
"""How many directories of one kind an engine has, mounts that lead elsewhere, and containers that
share something: a record has room for a million of each. Every mount is compared with all of the
directories, of which an engine has two by two names, and a host's kubelets a few."""
_USUAL_KUBELET = "/var/lib/kubelet"
_GIVEN_BY_ENGINE = re.compile(ID_FORM)
_ID_LENGTH = 8
"""Shorter ids are names that a person gave, and may be a part of any path."""
_NERDCTL = "/var/lib/nerdctl"
_HOLDING_RANDOM = frozenset({"pods", "volumes"})
"""Directories whose entries engines name at random where that is how they look. Elsewhere it may be
a digest, by which an image is told from others: ``image-volumes/SANDBOX/DIGEST`` (containerd),
``overlay/CHAIN/merged`` (Podman's ``--mount type=image``)."""
_RANDOM = (
    (re.compile(f"pvc-(?:{ID_FORM})"), f"pvc-{ID}"),
    (re.compile(r"kube-api-access-[a-z0-9]{5}"), "kube-api-access-*"),
    # kubelet's, of a volume that it writes at once
    (re.compile(r"\.\.[0-9]{4}(?:_[0-9]{2}){5}\.[0-9]+"), "..*"),
)
"""Names that engines make at random, and the pattern of the next one."""
_CLAIM = re.compile(f"pvc-(?:{ID_FORM})(_[^/]+)")
"""The local path provisioner's directory for a claim: its uid, then namespace and name of it. Where
that keeps its directories nobody knows; k3s has it below /var/lib/rancher/k3s/storage."""


def _without_ids(part: str, ids: re.Pattern[str] | None) -> str:
    pieces = ids.split(part) if ids is not None else [part]
    return "".join(
        _literal(piece) if at % 2 == 0 else ID if _GIVEN_BY_ENGINE.fullmatch(piece) else "*"
        for at, piece in enumerate(pieces)
    )


_TERMINATION_LOG = re.compile(r"/pods/[^/]+/containers/[^/]+/[^/]+")
"""Below kubelet's directory: a file whose name is random."""
_OF_NOTHING = frozenset(
    {"cgroup", "cgroup2", "devpts", "mqueue", "overlay", "proc", "ramfs", "sysfs", "tmpfs"}
)
"""Filesystems to which their source is any word. That of others is a device or a server's share."""


def _is_filled(mount: Mount) -> bool:
    """Whether a runtime puts what the image has there into an empty file system (Podman asks for
    it), or all of them hide that."""
    return "tmpcopyup" in mount.options or mount.destination == "/dev"


def _random(part: str, above: Sequence[str]) -> str | None:
    """Return the pattern of a part of a path, which is in ``above``, that an engine has named at
    random; None: it has not."""
    if above[-1:] == ["overlay"] and re.fullmatch(r"[0-9]{1,10}", part):
        return "*"  # Podman's directories for the upper layers of volumes (os.MkdirTemp)
    # nerdctl's volumes are in a namespace's directory.
    if _GIVEN_BY_ENGINE.fullmatch(part) and not _HOLDING_RANDOM.isdisjoint(above):
        return ID
    found = next((pattern for form, pattern in _RANDOM if form.fullmatch(part)), None)
    return found if found is not None else _claim(part)


def _claim(part: str) -> str | None:
    found = _CLAIM.fullmatch(part)
    return f"pvc-{ID}{_literal(found[1])}" if found is not None else None


def _read(found: object) -> Engine:
    try:
        engine = Engine.model_validate(found)
    except ValidationError:
        return Engine(name=None)  # of which no mount is
    places = max(map(len, (engine.roots, engine.states, engine.kubelets)))
    if places > _PLACES or len(engine.redirected) > _REDIRECTED or len(engine.shares) > _SHARES:
        return Engine(name=None)
    return engine


def _innermost(directories: tuple[str, ...], path: str) -> str:
    """Return the longest of some directories that a path is in; nothing where it is in none."""
    if not path.startswith(directories):
        return ""
    found = [each for each in directories if path.startswith(each) and path[len(each) :][:1] == "/"]
    return max(found, key=len, default="")


def _literal(path: str) -> str:
    return literal(path_bytes(path))


def place_of(mount: Mount, image: ImageFiles | None = None) -> str:
    """Return where a mount lies, escaped: as the kernel names it, through the image's links, where
    ``image`` is given; else as it is configured."""
    at = mount.destination
    return escape(path_bytes(at)) if image is None else image.place(at)


class Places:
    """Where the mounts of one container lie: many thousands of files may be looked up among as many
    mounts."""

    def __init__(self, mounts: Iterable[Mount], image: ImageFiles | None = None) -> None:
        """With ``image`` paths are the kernel's, else those of the configuration."""
        self._at: dict[str, tuple[int, Mount]] = {}
        for number, mount in enumerate(mounts):
            self._at[place_of(mount, image).rstrip("/")] = (number, mount)

    def over(self, path: bytes) -> Mount | None:
        """Return the mount that ``path`` lies on; None for the root filesystem.

        Mounts are made in their order, so that the last one hides those before it (config.md,
        Mounts).
        """
        at = escape(path)[:LONGEST]
        found = [self._at[at]] if at in self._at else []
        while "/" in at:
            at = at.rpartition("/")[0]
            if at in self._at:
                found.append(self._at[at])
        return max(found, key=lambda one: one[0])[1] if found else None


def kind(mount: Mount) -> str:
    """Return the filesystem's type; ``bind`` for a file or directory of the host."""
    return "bind" if mount.from_host else mount.type


def is_engines_init(mount: Mount, path: bytes, image: ImageFiles | None = None) -> bool:
    """Return whether ``path`` is an engine's init program, which this mount puts there; the path is
    as for :class:`Places`."""
    sources = engines.INIT_PROGRAMS.get(mount.destination, ())
    is_there = bool(sources) and place_of(mount, image) == escape(path)
    return is_there and matches_any(sources, mount.source)


def allows(allowed: AllowedMount, mount: Mount, image: ImageFiles | None = None) -> bool:
    """Return whether this part of the policy allows the mount, in a container of ``image``."""
    wanted = allowed.type
    if wanted is None and allowed.source is not None:
        wanted = "bind"
    return (
        matches_any((allowed.destination,), mount.destination)
        and stays(allowed.destination, path_bytes(mount.destination), image)
        and wanted in {None, kind(mount)}
        and (allowed.source is None or matches_any((allowed.source,), mount.source))
        and (allowed.layers is None or _is_of(allowed.layers, mount))
        and (mount.read_only or not allowed.read_only)
    )


def stays(pattern: str, path: bytes, image: ImageFiles | None) -> bool:
    """Return whether what a pattern stands for is still it where the image's symbolic links lead.

    Whoever starts the container chooses among all that a wildcard stands for, and one of these may
    be a link to somewhere else. Where the pattern itself names the link, its author did.
    """
    top = directory(pattern)
    if image is None or top is None or len(path) > limits.PATH:
        return True
    place, leads_to = image.real(escape(path)), image.real(escape(top) or "/").rstrip("/")
    if not f"{place}/".startswith(f"{leads_to}/"):
        return False
    return matches(pattern, top + unescape(place.removeprefix(leads_to)))


def _is_of(layers: tuple[str, ...], mount: Mount) -> bool:
    own = mount.layers
    return bool(own) and all(matches_any(layers, one) for one in own)


def matches_any(patterns: Iterable[str], path: str) -> bool:
    """Return whether a pattern is of this path; none is of one that goes up by ``..``, nor of one
    that no kernel takes, which may be as long as a record and compared over and over."""
    if len(path) > limits.PATH or "/../" in f"{path}/":
        return False
    raw = path_bytes(path)
    return any(matches(pattern, raw) for pattern in patterns)
