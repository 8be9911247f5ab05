"""Which configuration files have their user's consent: those that were confirmed.

What a file that was found, not named, may not do unasked: `consent`. No command uses
such a file before the user has confirmed it, once, as it is: `logagg trust`. What it
states is hashed, so comments may change, and every other change asks again.

Confirmations are files with mode 0600 below `trusted` where state is kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from logagg.errors import ConfigError
from logagg.ipc.paths import make_folder, state_dir

__all__ = ["confirm", "forget", "has_changed", "is_confirmed"]

_MOST_BYTES = 1 << 16
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def is_confirmed(path: Path, data: Mapping[str, Any]) -> bool:
    """Whether the user has confirmed a file with this content."""
    return _recorded(path).get("digest") == _digest(data)


def has_changed(path: Path, data: Mapping[str, Any]) -> bool:
    """Whether the user has confirmed a file with another content."""
    return _recorded(path).get("digest", "") not in ("", _digest(data))


def confirm(path: Path, data: Mapping[str, Any]) -> None:
    """Note that the user confirms a file with this content, and no other.

    Raises:
        ConfigError, OSError: It cannot be noted.
    """
    record = _record(path)
    make_folder(record.parent)
    text = orjson.dumps({"file": _name(path), "digest": _digest(data)})
    fresh = record.with_name(f"{record.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)  # of a process that was killed
    with open(os.open(fresh, flags, 0o600), "wb") as file:
        file.write(text)
    os.replace(fresh, record)


def forget(path: Path) -> bool:
    """Take a confirmation back; False where there was none.

    Raises:
        ConfigError, OSError: It cannot be removed.
    """
    try:
        os.unlink(_record(path))
    except FileNotFoundError:
        return False
    return True


def _recorded(path: Path) -> dict[str, str]:
    """The note about a file; empty where nothing is, or another user could have."""
    try:
        with open(os.open(_record(path), _FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            own = status.st_uid == os.geteuid() and stat.S_ISREG(status.st_mode)
            if not own or status.st_mode & 0o077:
                return {}
            found = orjson.loads(file.read(_MOST_BYTES))
    except (OSError, ConfigError, ValueError):
        return {}
    right = isinstance(found, dict) and found.get("file") == _name(path)
    return {"digest": str(found.get("digest", ""))} if right else {}


def _record(path: Path) -> Path:
    name = sha256(_name(path).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(state_dir(), "trusted", name)


def _name(path: Path) -> str:
    """A file's real path, as text that JSON takes."""
    return os.fsencode(os.path.realpath(path)).decode("utf-8", "backslashreplace")


def _digest(data: Mapping[str, Any]) -> str:
    try:
        text = orjson.dumps(data, default=str, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # a number of more than 64 bits, or nested too deep
        raise ConfigError(f"the configuration file cannot be used: {error}") from None
    return sha256(text).hexdigest()
