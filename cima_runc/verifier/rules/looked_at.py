"""Where programs look for code and settings by themselves, by how a container was started.

Of a place that holds data by custom (``/run/secrets``), or by its name (``/my-config``), this says
whether something of the container looks there all the same: by its working directory, by the
directory that a script is in, since a variable or the image's passwd(5) names a directory there as
somebody's home, or a variable one to look for modules in. Every language has such a rule, and every
tool its own names: so what matters is the directory, not what is looked for in it.
Sources: the manuals of Python (site, sys.path), Node (modules), Ruby (Gem.user_dir), PHP (include),
Git (FILES), kubectl (exec plugins), AWS SDKs (credential_process); XDG Base Directory
Specification; runc's libcontainer/env.go and init_linux.go, crun's container.c and utils.c.
"""

# ruff: noqa: S108 - these are names in a container; nothing is written there

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.measure.config_summary import ConfigSummary
from cima_runc.measure.oci_config import hidden_value
from cima_runc.verifier.reference.file import ReferenceConfig
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.below import Below, any_below
from cima_runc.verifier.rules.image_files import ImageFiles
from cima_runc.verifier.rules.loading import makes_load

HOMES = frozenset(
    {
        "HOME",
        "TEMP",
        "TMP",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_DIRS",
        "XDG_CONFIG_HOME",
        "XDG_DATA_DIRS",
        "XDG_DATA_HOME",
        "XDG_RUNTIME_DIR",
        "XDG_STATE_HOME",
    }
)
"""Variables below whose directories programs of every kind look for code and settings: Python for
``.local/lib/python3*/site-packages/usercustomize.py``, Ruby for ``gem``, Git for ``git/config``,
D-Bus for ``dbus-1/services``. Where temporary files are, Node's loaders keep what they compiled
under names that anybody can tell (``v8-compile-cache``, ``jiti``), and run it the next time."""
SETTINGS = frozenset(
    {
        "ANSIBLE_HOME",
        "AWS_CONFIG_FILE",
        "CARGO_HOME",
        "COMPOSER_HOME",
        "CURL_HOME",
        "GRADLE_USER_HOME",
        "KUBECONFIG",
        "PIP_CONFIG_FILE",
    }
)
"""Variables that name settings of which some are commands, or name code, and that have many honest
uses: they count as :data:`HOMES` do, where they may name something that was mounted."""
OF_SYSTEMD = frozenset({"CREDENTIALS_DIRECTORY"})
"""Variables that name settings for systemd alone, which takes whole units from there, and files
that it is to write (``systemd.extra-unit.*``, ``tmpfiles.extra``: systemd.system-credentials(7)).
To other programs it is a directory of keys: they count where the image has systemd."""
FILES = frozenset({"AWS_CONFIG_FILE", "KUBECONFIG", "PIP_CONFIG_FILE"})
"""Those of them that name a file. Whoever starts a container can write one without a mount of his
own: in its environment (``/proc/self/environ``), as its input (``/dev/stdin``), or by what he calls
it (``/etc/hostname``); and call it by any name."""
PATHS = frozenset(
    {
        "AWKPATH",
        "CLASSPATH",
        "ERL_LIBS",
        "FPATH",
        "GEM_HOME",
        "GEM_PATH",
        "GUILE_LOAD_PATH",
        "JULIA_LOAD_PATH",
        "LD_LIBRARY_PATH",
        "LUA_CPATH",
        "LUA_PATH",
        "MONO_PATH",
        "NODE_PATH",
        "PERL5LIB",
        "PERLLIB",
        "PHPRC",
        "PHP_INI_SCAN_DIR",
        "PSModulePath",
        "PYTHONPATH",
        "PYTHONUSERBASE",
        "RUBYLIB",
        "R_LIBS",
        "R_LIBS_SITE",
        "R_LIBS_USER",
    }
)
"""Variables of directories that languages look for modules in, between colons; Lua's have
semicolons, and a ``?`` in each."""
_WORDS = (
    *("ca", "cert", "certificates", "certs", "cnf", "conf", "config", "configs", "configuration"),
    *("credential", "credentials", "creds", "data", "info", "key", "keys", "license", "password"),
    *("podinfo", "projected", "secret", "secrets", "settings", "ssl", "tls", "token", "tokens"),
    *("volume",),
)
_OF_DATA = re.compile(
    rf"(?:[A-Za-z0-9_-]+[-_])?(?:{'|'.join(_WORDS)})(?:[-_][A-Za-z0-9_-]+)?"
    r"|[A-Za-z0-9][A-Za-z0-9_-]*\.(?:cnf|conf|crt|key|pem|txt|yaml|yml)"
)
"""Names in the root directory that say that there is data, as swarms and pods have them."""
_USUAL = ("/", "/root", "/nonexistent", "/dev/null", "/dev/shm", "/home", "/tmp", "/var/tmp")
_OF_XDG = ("/.cache", "/.config", "/.local/share", "/.local/state")
_OF_TEMPORARY = ("/", "/.tmp", "/temp", "/tmp")
_OF_PROGRAMS = ("app", "build", "cache", "data", "work")
"""Directories that one program has among temporary files, beside its own name and its user's."""
_OF_SETTINGS = (
    *(
        "/.ansible",
        "/.aws/config",
        "/.cargo",
        "/.composer",
        "/.config/composer",
        "/.config/pip/pip.conf",
    ),
    *("/.gradle", "/.kube/config", "/.pip/pip.conf", "/admin.conf", "/config", "/kubeconfig"),
    *("/kubeconfig.yaml", "/kubeconfig.yml", "/kubernetes/admin.conf", "/pip.conf", "/value"),
)
SEARCHED = "PATH"
"""Where a program is looked for is where a shell looks for what a script is to read: POSIX.1-2017,
``dot``, of a name without a slash, which need not be executable there."""
_DEFAULT_PATHS = (
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "/usr/local/bin:/usr/bin:/bin",
    "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin",
    "/usr/sbin:/usr/bin:/sbin:/bin",
    "/usr/bin:/bin",
    "/bin:/usr/bin",
)
"""What engines set where the image does not (the first), and shells where nobody does."""
_PROGRAMS = ("", "/bin")
_OF_SYSTEM = {"/dev": "/dev/shm", "/var": "/var/run/secrets"}
"""Homes of Debian's and busybox's users sys and operator. In a home programs look for directories
called after them, as they do in ``/``: none is called ``shm`` or ``run``."""
_LISTS = ("/etc/xdg", "/usr/local/share:/usr/share", "/usr/local/share/:/usr/share/")


_NAMING = HOMES | SETTINGS | OF_SYSTEMD | {SEARCHED}
_TEMPORARY = frozenset({"TEMP", "TMP", "TMPDIR"})
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_ABSOLUTE = re.compile(r"/[^\s:;=,'\"]+")
_PROPERTY = re.compile(r"(?<!\S)-D(?!java\.)\S+")
"""A property that Java's programs read: where certificates or settings are. Its own name code."""
_PATHS_OF_RELEASES = ("LUA_CPATH_", "LUA_PATH_")


class LookedAt:
    """What looks for code and settings in one container."""

    def __init__(
        self,
        config: ConfigSummary,
        image: ImageFiles,
        values: ReferenceConfig,
        *,
        sets_home: bool,
        secret: bytes | None,
    ) -> None:
        """``sets_home``: whether the engine itself sets ``HOME``. ``secret`` is what the
        environment's values are hidden with; None where nobody told it."""
        self._config = config
        self._image = image
        self._values = values
        self._sets_home = sets_home
        self._secret = secret
        self._reals: dict[str, str] = {}

    def by_what(self, place: str, below: str) -> str:
        """Return what may look at ``place``, which is ``below`` or in it; nothing for nobody.

        Both are without the image's symbolic links, and escaped.
        """
        # A longer one is none that a container can start in, and compared with each mount.
        is_none = len(self._config.cwd) > limits.PATH
        if is_none or self._is_near(self._config.cwd, place, below):
            return "it is near the working directory"
        if self._has_programs(place, below):
            return "the image has programs beside it"
        for name, named in self._named_by_env.items():
            if (
                named is None
                or named.is_near(place, below)
                or self._is_searched(name, named, place)
            ):
                what = "something" if name in SETTINGS | OF_SYSTEMD else "a directory"
                return f"{name} is not known to name {what} elsewhere"
        # Where HOME is not set, or empty (runc), the runtime sets it by passwd(5). What becomes
        # another user (gosu, su) does so whatever it was before, so that all users' count.
        for home in self._values.homes:
            if self._is_near(home, place, below) and not self._is_systems(home, place):
                return f"{printable(home)} is a user's home in the image's /etc/passwd"
        for name, directory in (*self._paths, *self._named):
            if self._is_near(directory, place, below):
                return f"the image's {printable(name)} names {printable(directory)}"
        return ""

    def why_unknown(self, name: str) -> str:
        """Return why it counts that nobody knows what a variable names; nothing where it does not,
        or is known."""
        if self._named_by_env.get(name, ()) is not None:
            return ""
        if name in FILES:
            return (
                "names settings that may be commands, is not known to name a file of the image or"
                " of a mount"
            )
        if self._shares_processes:
            return (
                "names where programs look for code, may lead by /proc to the files of others, with"
                " whom it shares processes"
            )
        return ""

    @cached_property
    def _shares_processes(self) -> bool:
        """Whether others have processes in its /proc, each with the files that it sees (``root``,
        ``cwd``)."""
        joined = {each.type for each in self._config.joined_namespaces}
        return "pid" in joined.union(self._config.host_namespaces)

    def holds_data_by_name(self, top: str) -> bool:
        """Whether a directory or file in the root, which the image does not have, is for data.

        Where programs look for modules in the root, its name must not be one of theirs.
        """
        name = top.removeprefix("/")
        if _OF_DATA.fullmatch(name) is None or self._image.at(top) is not None:
            return False
        starts_in = self._real(self._config.cwd) == "/"
        if starts_in and name in self._image.includes:
            # PHP's include looks there before it does beside the script; so does Lua 5.1's and
            # LuaJIT's require (luaconf.h, LUA_PATH_DEFAULT), before all that is installed.
            return False
        of_root = {each for each, directory in self._paths if self._real(directory) == "/"}
        if not of_root <= {"PYTHONPATH"}:
            return False
        if not (starts_in or of_root or self._image.has_program_in("/")):
            return True
        path = {self._real(directory) for each, directory in self._paths if each == "PYTHONPATH"}
        return not self._image.has_module(name, path)

    def _real(self, directory: str) -> str:
        found = self._reals.get(directory)
        if found is None:
            found = self._image.place(directory)
            self._reals[directory] = found
        return found

    @cached_property
    def _paths(self) -> tuple[tuple[str, str], ...]:
        """What the image's own variables name to look for modules in, with these.

        The working directory that an empty or relative one is of is judged by itself.
        """
        return tuple(
            (name, posixpath.join(self._config.cwd, directory))
            for name, value in sorted(self._values.env_values.items())
            if name in PATHS or name.startswith(_PATHS_OF_RELEASES)
            for each in re.split("[:;]", value)
            if (directory := each.partition("?")[0]) not in {"", ".", "./"}
        )

    @cached_property
    def _named(self) -> tuple[tuple[str, str], ...]:
        """What the image's other variables that load code name, as ``-javaagent:/a.jar`` does."""
        return tuple(
            (name, path)
            for name, value in sorted(self._values.env_values.items())
            if makes_load(name)
            for path in _ABSOLUTE.findall(_PROPERTY.sub("", value))
        )

    def _is_near(self, directory: str, place: str, below: str) -> bool:
        if not directory.startswith("/"):
            return True
        real = self._real(directory)
        return _is_in(real, below) or (real != "/" and _is_in(place, real))

    def _is_systems(self, home: str, place: str) -> bool:
        """Whether a home is the system's own directory, as a few users have it, and the place in
        what the system keeps there."""
        kept = _OF_SYSTEM.get(self._real(home))
        return kept is not None and _is_in(place, kept)

    def _has_programs(self, place: str, below: str) -> bool:
        """Whether a script of the image may look for modules in the place by where it is itself.

        Python's own module ``secrets`` is one that ``/run/secrets`` would stand for.
        """
        directory = posixpath.dirname(place)
        if place == below:
            return posixpath.basename(below) == "secrets" and self._image.has_program_in(directory)
        while _is_in(directory, below):
            if self._image.has_program_in(directory):
                return True
            directory = posixpath.dirname(directory)
        return False

    def _is_searched(self, name: str, named: "_Named", place: str) -> bool:
        return name == SEARCHED and named.has_root and posixpath.dirname(place) == "/"

    @cached_property
    def _named_by_env(self) -> "dict[str, _Named | None]":
        """The directories that each variable names; None where they may be any."""
        found: dict[str, list[str] | None] = {}
        all_ = dict.fromkeys(self._config.hidden_env)
        times = Counter(name for name, _ in all_)
        for name, hidden in all_:
            before = found.setdefault(name, []) if self._names(name) else None
            if before is not None:
                # Nobody knows the values: of two that differ one is not what it should be.
                is_unknown = self._secret is None and times[name] > 1
                more = None if is_unknown else self._directories(name, hidden)
                if more is None:
                    found[name] = None
                else:
                    before += more
        return {name: None if all_ is None else _Named(all_) for name, all_ in found.items()}

    def _names(self, variable: str) -> bool:
        """Whether a variable names where something of this container looks for code."""
        return variable in _NAMING and (variable not in OF_SYSTEMD or self._has_systemd)

    @cached_property
    def _has_systemd(self) -> bool:
        return any(self._image.at(self._real(path)) is not None for path in _SYSTEMD)

    def _directories(self, name: str, hidden: str) -> list[str] | None:
        own = self._values.env_values.get(name)
        if name == SEARCHED and own is None and (self._secret is None or name in self._values.env):
            return []  # engines set it as well; values of earlier versions have its name alone
        if self._secret is not None:
            value = self._told.get(hidden)
        elif name in self._values.env:
            value = own or ""
        else:
            value = "" if name == "HOME" and self._sets_home else None
        if value is None:
            return None
        found = [each for each in value.split(":") if each]
        if name == SEARCHED:
            # The working directory, which an empty one is as well, was judged.
            found = [posixpath.join(self._config.cwd, each) for each in found]
        if not all(each.startswith("/") for each in found):
            return None
        found = list(map(self._real, found))
        # The image may have a link there: nginx's log is the container's output, and a terminal.
        is_written = any(_is_kernels(each) or each in self._name_files for each in found)
        return None if name in FILES and is_written else found

    @cached_property
    def _name_files(self) -> frozenset[str]:
        return frozenset(map(self._real, engines.NAME_FILES))

    @cached_property
    def _told(self) -> dict[str, str]:
        """The values of these variables that could be told, by how they are hidden."""
        assert self._secret is not None
        wanted = {hidden for name, hidden in self._config.hidden_env if name in _NAMING}
        found: dict[str, str] = {}
        for value in self._candidates():
            if len(found) == len(wanted):
                break
            hidden = hidden_value(self._secret, value)
            if hidden in wanted:
                found[hidden] = value
        return found

    def _candidates(self) -> Iterator[str]:
        yield ""
        yield from (*_LISTS, *_DEFAULT_PATHS)
        own = self._values.env_values
        yield from (value for name in sorted(_NAMING) if (value := own.get(name)))
        users = {self._values.user.partition(":")[0], self._config.user.username} - {""}
        mounts = [mount.destination for mount in self._config.mounts if _is_one(mount.destination)]
        homes = (f"/home/{user}" for user in sorted(users))
        others = filter(_is_one, (*homes, self._config.cwd))
        names_files = any(name in SETTINGS for name in self._config.env)
        parts = (*_OF_XDG, *_OF_SETTINGS) if names_files else _OF_XDG
        if not _TEMPORARY.isdisjoint(self._config.env):
            parts = (*parts, *_OF_TEMPORARY)
            called = posixpath.basename(next(iter(self._config.args), ""))
            names = filter(
                _is_one, (f"/{name}" for name in (*sorted(users), called, *_OF_PROGRAMS) if name)
            )
            yield "/usr/tmp"
            yield from (at + name for name in names for at in ("/tmp", "/var/tmp"))
        for uid in sorted({0, 1000, self._config.user.uid}):
            yield from (f"/run/user/{uid}", f"/var/run/user/{uid}", f"/tmp/runtime-{uid}")
        yield from filter(_is_one, (f"/tmp/runtime-{user}" for user in sorted({"root", *users})))
        for directory in (*_USUAL, *self._values.homes, *others, *mounts):
            yield directory
            yield from (directory.rstrip("/") + part for part in parts)
        if names_files:
            yield from ("/etc" + part for part in parts)
        yield from self._image.directories(with_files=names_files)
        searched = own.get(SEARCHED, _DEFAULT_PATHS[0])
        mounted = [mount + part for mount in mounts for part in _PROGRAMS]
        for directory in (*mounted, *self._image.directories()):
            yield from (f"{directory}:{searched}", f"{searched}:{directory}")


class _Named:
    """Directories that a variable names: as many as there are mounts, if it is there as often."""

    def __init__(self, directories: Iterable[str]) -> None:
        """They are without the image's symbolic links, and escaped."""
        found = set(directories)
        self.has_root = "/" in found
        self._above = Below(f"{one.rstrip('/')}/" for one in found - {"/"})
        self._all = sorted(f"{one}/" for one in found)

    def is_near(self, place: str, below: str) -> bool:
        """Whether one is below what a place is below, or has the place in it."""
        return any_below(self._all, f"{below.rstrip('/')}/") or self._above.has(place)


def _is_kernels(place: str) -> bool:
    """Whether what is at a place is not a file of the image or of a mount."""
    return place.startswith(("/dev/", "/proc/", "/sys/")) and place != "/dev/null"


def _is_one(path: str) -> bool:
    """Whether a variable that names a path as a tenant chose it is taken to name that: not where it
    may be many directories, each of them relative to another long one."""
    return len(path) <= limits.PATH and ":" not in path


def _is_in(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")
