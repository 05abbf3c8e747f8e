"""A change of an engine's settings file: worked out, shown, made, and taken back.

What a file was before the first change is kept in the state directory, so that it can be put back
byte for byte as long as nobody else has changed it; where somebody has, only ours is taken out.
"""

import base64
import difflib
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.durable import sync_directory
from cima_runc.base.replaced import replace
from cima_runc.base.text import printable
from cima_runc.engines.engine import Engine, EngineError, Wish


class _Record(BaseModel):
    """What is known of an earlier change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    before: str | None
    """What the file held before, base64; None where there was none."""
    after_sha256: str
    """Hexadecimal digest of what we made of it."""
    made: tuple[str, ...] = Field(default=(), strict=False)
    """Directories that were made for it, the outermost first: they go with it."""


@dataclass(frozen=True)
class Change:
    """A file, what it holds and what it shall hold; None stands for no file."""

    path: Path
    now: bytes | None
    then: bytes | None
    before: bytes | None
    """What it held before cima-runc ever was in it."""

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return self.now != self.then

    def diff(self) -> str:
        """Return the change as a unified diff, safe to print."""
        lines = difflib.unified_diff(
            *(_lines(self.now), _lines(self.then)),
            "/dev/null" if self.now is None else str(self.path),
            "/dev/null" if self.then is None else str(self.path),
            lineterm="",
        )
        # The backslash is TOML's and JSON's own: shown as it is.
        return "\n".join(printable(line).replace("\\\\", "\\") for line in lines)


class Changes:
    """Changes below ``root`` (``/`` but in tests), with records in ``records``."""

    def __init__(self, root: Path, records: Path) -> None:
        self._root = root
        self._records = records

    def adding(self, engine: Engine, wish: Wish) -> Change:
        """Work out the change that puts cima-runc into the engine's settings.

        Raises:
            EngineError, JsonError, OSError: the file cannot be read or edited.
        """
        record = self._read_record(engine)
        path = self._path(engine, record, wish.file)
        now = read_settings(path)
        then = engine.add(_text(now, path), wish, self._root, str(path)).encode()
        return Change(path, now, then, self._before(engine, record, now, path))

    def removing(self, engine: Engine, file: Path | None = None) -> Change:
        """Work out the change that takes cima-runc out again, of ``file`` where it is not where the
        engine has it by default.

        Raises:
            EngineError, JsonError, OSError: the file cannot be read or edited.
        """
        record = self._read_record(engine)
        path = self._path(engine, record, file)
        now = read_settings(path)
        _text(now, path)
        before = self._before(engine, record, now, path)
        return Change(path, now, before, before)

    def check(self, engine: Engine, change: Change) -> None:
        """Have the engine itself read what its file will be, where it is there and can.

        Raises:
            EngineError: it cannot read it; the engine's own words.
            OSError: the file cannot be written for it to read.
        """
        if change.then is None:
            return
        with tempfile.TemporaryDirectory(prefix="cima-configure-") as directory:
            file = Path(directory) / change.path.name
            file.write_bytes(change.then)
            for command in engine.check(self._root, file):
                program = shutil.which(command[0], path=_SBIN)
                if program is None:
                    continue
                _run(engine, [program, *command[1:]])

    def make(self, engine: Engine, change: Change) -> None:
        """Make the change, whole or not at all.

        Raises:
            OSError: a file cannot be written.
            EngineError: the file has changed since the change was worked out.
        """
        if read_settings(change.path) != change.now:
            raise EngineError(f"{change.path} has just been changed by somebody", hint="try again")
        record_path = self._record_path(engine)
        earlier = self._read_record(engine)
        made = earlier.made if earlier is not None else _missing(change.path.parent)
        taken_back = change.then == change.before
        if not taken_back and change.then is not None:
            record = _Record(
                made=made,
                path=str(change.path),
                before=None if change.before is None else base64.b64encode(change.before).decode(),
                after_sha256=hashlib.sha256(change.then).hexdigest(),
            )
            record_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_settings(record_path, record.model_dump_json().encode("ascii"), 0o600)
        if change.then is None:
            change.path.unlink(missing_ok=True)
            with suppress(OSError):  # others have put something there
                for directory in reversed(made):
                    Path(directory).rmdir()
        else:
            change.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            replace_settings(change.path, change.then, 0o644)
        if taken_back:
            record_path.unlink(missing_ok=True)

    def _path(self, engine: Engine, record: _Record | None, file: Path | None) -> Path:
        if file is not None and record is not None and record.path != str(file):
            raise EngineError(
                f"{engine.name} is configured in {record.path} already",
                hint=f"cima configure {engine.name} --remove",
            )
        return Path(record.path) if record else (file or engine.find_file(self._root)).resolve()

    def _before(
        self, engine: Engine, record: _Record | None, now: bytes | None, path: Path
    ) -> bytes | None:
        """Return what the file would be without us."""
        kept = None
        if record is not None:
            kept = base64.b64decode(record.before) if record.before is not None else None
            if now is not None and hashlib.sha256(now).hexdigest() == record.after_sha256:
                return kept
        if now is None:
            return None
        earlier = kept.decode("utf-8", "surrogateescape") if kept is not None else None
        if record is None:
            # Without a record a file that is there is a file to keep.
            earlier = now.decode("utf-8", "surrogateescape")
        text = now.decode("utf-8", "surrogateescape")
        if not text.strip():
            return now
        without = engine.remove(text, earlier, str(path))
        return None if without is None else without.encode("utf-8", "surrogateescape")

    def _record_path(self, engine: Engine) -> Path:
        return self._records / f"{engine.name}.json"

    def _read_record(self, engine: Engine) -> _Record | None:
        path = self._record_path(engine)
        raw = read_settings(path, 2 * limits.ENGINE_SETTINGS)
        if raw is None:
            return None
        try:
            return _Record.model_validate_json(raw)
        except ValidationError as error:
            raise EngineError(f"{path} is not what we wrote", hint="move it away") from error


def _missing(directory: Path) -> tuple[str, ...]:
    """Return the directories that there are not, of it and those that it is in."""
    above = [each for each in (directory, *directory.parents) if not each.exists()]
    return tuple(str(each) for each in reversed(above))


_CHECK_SECONDS = 60.0
_SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_SUCH_CHECK = ("unknown flag", "flag provided but not defined", "unknown command")
"""How an engine says that it is too old for this check."""


def _run(engine: Engine, command: list[str]) -> None:
    try:
        ran = subprocess.run(command, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return  # it has not refused
    words = ran.stderr.decode("utf-8", "replace")
    if ran.returncode == 0 or any(each in words for each in _NO_SUCH_CHECK):
        return
    last = next(iter(reversed(words.strip().splitlines())), f"status {ran.returncode}")
    raise EngineError(
        f"{engine.name} cannot read what its file would be: {printable(last[:400])}",
        hint="nothing was changed; --dry-run shows the change",
    )


def read_settings(path: Path, limit: int = limits.ENGINE_SETTINGS) -> bytes | None:
    """Return what a settings file holds, None where there is none.

    Raises:
        EngineError, OSError: it has more than ``limit`` bytes, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit:
        raise EngineError(f"{path} has more than {limit} bytes")
    return data


def _lines(data: bytes | None) -> list[str]:
    if data is None:
        return []
    return data.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")


def _text(data: bytes | None, path: Path) -> str | None:
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EngineError(f"{path} is not UTF-8", hint="mend it by hand") from error


def replace_settings(path: Path, data: bytes, mode: int) -> None:
    """Replace the file as a whole; mode and owner stay what they were."""
    owner = None
    if path.exists():
        status = path.stat()
        mode, owner = status.st_mode & 0o7777, (status.st_uid, status.st_gid)
    temporary = path.with_name(f".{path.name}.cima-{os.urandom(8).hex()}")
    replace(path, data, temporary=temporary, mode=mode, owner=owner)
    sync_directory(path.parent)
