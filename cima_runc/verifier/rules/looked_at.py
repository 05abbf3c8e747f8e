"""Where programs look for code and settings by themselves, by how a container was started.

Of a place that holds data by custom (``/run/secrets``), or by its name (``/my-config``), this says
whether something of the container looks there all the same: by its working directory, by the
directory that a script is in, or since a variable names a directory there as somebody's home. Every
language has such a rule, and every tool its own names: so what matters is the directory, not what
is looked for in it.
Sources: the manuals of Python (site, sys.path), Node (modules), Ruby (Gem.user_dir), Git (FILES);
XDG Base Directory Specification.
"""

# ruff: noqa: S108 - these are names in a container; nothing is written there

import posixpath
import re
from collections.abc import Iterator
from functools import cached_property

from cima_runc.measure.config_summary import ConfigSummary
from cima_runc.measure.mtree import escape
from cima_runc.measure.oci_config import hidden_value
from cima_runc.verifier.reference.file import ReferenceConfig
from cima_runc.verifier.rules.image_files import ImageFiles

HOMES = frozenset(
    {
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_DIRS",
        "XDG_CONFIG_HOME",
        "XDG_DATA_DIRS",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
    }
)
"""Variables below whose directories programs of every kind look for code and settings: Python for
``.local/lib/python3*/site-packages/usercustomize.py``, Ruby for ``gem``, Git for ``git/config``."""
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
_LISTS = ("/etc/xdg", "/usr/local/share:/usr/share", "/usr/local/share/:/usr/share/")


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

    def by_what(self, place: str, below: str) -> str:
        """Return what may look at ``place``, which is ``below`` or in it; nothing for nobody.

        Both are without the image's symbolic links, and escaped.
        """
        if self._is_near(self._config.cwd, place, below):
            return "it is near the working directory"
        if self._has_programs(place, below):
            return "the image has programs beside it"
        for name, hidden in self._config.hidden_env:
            if name in HOMES and not self._is_elsewhere(name, hidden, place, below):
                return f"{name} is not known to name a directory elsewhere"
        return ""

    def holds_data_by_name(self, top: str) -> bool:
        """Whether a directory or file in the root, which the image does not have, is for data.

        Where programs look for modules in the root, its name must not be one of theirs.
        """
        name = top.removeprefix("/")
        if _OF_DATA.fullmatch(name) is None or self._image.at(top) is not None:
            return False
        looks = self._image.real(escape(self._config.cwd.encode("utf-8", "surrogatepass"))) == "/"
        looks = looks or self._image.has_program_in("/")
        return not (looks and name.partition(".")[0] in self._image.modules)

    def _is_near(self, directory: str, place: str, below: str) -> bool:
        if not directory.startswith("/"):
            return True
        real = self._image.real(escape(directory.encode("utf-8", "surrogatepass")))
        return _is_in(real, below) or (real != "/" and _is_in(place, real))

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

    def _is_elsewhere(self, name: str, hidden: str, place: str, below: str) -> bool:
        """Whether a variable is known to name no directory near a place."""
        own = self._values.env_values.get(name)
        if self._secret is not None:
            value = self._told.get(hidden)
        elif name in self._values.env:
            value = own or ""
        else:
            value = "" if name == "HOME" and self._sets_home else None
        if value is None:
            return False
        return not any(self._is_near(each, place, below) for each in value.split(":") if each)

    @cached_property
    def _told(self) -> dict[str, str]:
        """The values of :data:`HOMES` that could be told, by how they are hidden."""
        assert self._secret is not None
        wanted = {hidden for name, hidden in self._config.hidden_env if name in HOMES}
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
        yield from _LISTS
        yield from (value for name in sorted(HOMES) if (value := self._values.env_values.get(name)))
        users = {self._values.user.partition(":")[0], self._config.user.username} - {""}
        mounts = (mount.destination for mount in self._config.mounts)
        homes = (f"/home/{user}" for user in sorted(users))
        for directory in (*_USUAL, *self._values.homes, *homes, self._config.cwd, *mounts):
            yield directory
            yield from (directory.rstrip("/") + part for part in _OF_XDG)
        yield from self._image.directories()


def _is_in(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")
