"""Where spools and dead letters of network sinks live, and who may take them.

    ROOT/NAME/url                       the sink, secrets left out
    ROOT/NAME/0/ 1/ …                   a spool each, one for every process that uses it
    ROOT/NAME/inbox-…/                  records put back by `logagg dlq replay`
    ROOT/NAME/dead-letters-0.ndjson     what the target refused for good; `.1` is older

ROOT is `sinks` in the user's state directory (`logagg.address.state_dir`); NAME is made
from the sink's target. A sink takes the first spool that nobody has locked, and those
that others left behind when they died; an inbox is taken whenever it appears.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from logagg.address import check_private, state_dir
from logagg_sinks._spool import DiskSpool

__all__ = ["DEAD_LETTERS", "Parked", "claim", "inboxes", "name_of", "parked", "root"]

DEAD_LETTERS = "dead-letters-"
_MOST_SLOTS = 1000


def root() -> Path:
    """The directory of all spools of network sinks; not made."""
    return Path(state_dir(), "sinks")


def name_of(identity: str) -> str:
    """A directory's name for a sink: readable, and different for different targets."""
    digest = blake2b(identity.encode("utf-8", "replace"), digest_size=5).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", identity.partition("?")[0]).strip("-.")
    return f"{readable[:60]}-{digest}"


def claim(folder: Path, url: str, most_bytes: int) -> tuple[DiskSpool, list[DiskSpool]]:
    """Take a spool in a sink's directory, and those that were left behind.

    Args:
        folder: The sink's directory; made when it is missing.
        url: What to write into `url`, for whoever looks at it.
        most_bytes: How large the own spool may become.

    Returns:
        The spool to write to, and others that hold records to deliver before.

    Raises:
        ConfigError: The directory is not private.
        OSError: It cannot be used.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(str(folder))
    own: DiskSpool | None = None
    for number in range(_MOST_SLOTS):
        for pause in (0.0, 0.01):  # who only looks holds a lock for a moment
            time.sleep(pause)
            with contextlib.suppress(BlockingIOError):
                own = DiskSpool(folder / str(number), most_bytes)
                break
        if own is not None:
            break
    if own is None:
        raise BlockingIOError(f"{folder}: {_MOST_SLOTS} spools are in use")
    _write_url(folder / "url", url)
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.isdecimal() and path != own.folder:
            others += _take(path)
    return own, others + inboxes(folder)


def inboxes(folder: Path) -> list[DiskSpool]:
    """Take what was put back for the sink."""
    found = []
    for path in sorted(folder.glob("inbox-*")):
        found += _take(path)
    return found


def _take(path: Path) -> list[DiskSpool]:
    """The spool, if nobody has it and something is in it."""
    try:
        spool = DiskSpool(path, 1 << 62)
    except OSError:
        return []
    if spool.records:
        return [spool]
    spool.close()
    return []


def _write_url(path: Path, url: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, url.encode("utf-8", "replace") + b"\n")
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Parked:
    """What a sink's directory holds.

    Attributes:
        name: The directory's name.
        folder: The directory.
        url: The sink, secrets left out.
        spools: The directories of its spools and inboxes.
        dead_letters: Its files of dead letters, the older first.
    """

    name: str
    folder: Path
    url: str
    spools: tuple[Path, ...]
    dead_letters: tuple[Path, ...]


def parked(base: Path) -> Iterator[Parked]:
    """All sinks that have something parked under a directory."""
    if not base.is_dir():
        return
    for folder in sorted(base.iterdir()):
        try:
            url = (folder / "url").read_text("utf-8", "replace").strip()
            paths = sorted(folder.iterdir())
        except OSError:
            continue
        spools = [
            path
            for path in paths
            if path.is_dir()
            and (path.name.isdecimal() or path.name.startswith("inbox-"))
        ]
        letters = [path for path in paths if path.name.startswith(DEAD_LETTERS)]
        letters.sort(
            key=lambda path: (path.stem.partition(".")[0], path.suffix != ".1")
        )
        yield Parked(folder.name, folder, url, tuple(spools), tuple(letters))
