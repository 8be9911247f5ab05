"""Directories of what waits on disk for each sink, and their owners.

    ROOT/NAME/url                       the sink, secrets left out
    ROOT/NAME/queue-0/ …                logs of the service, for `policy=spool`
    ROOT/NAME/0/ 1/ …                   logs of a network sink
    ROOT/NAME/inbox-…/                  records put back by `logagg dlq replay`
    ROOT/NAME/dead-letters-0.ndjson     what the target refused for good; `.1` is older

Each log (`logagg.segment_log`) belongs to one process, which has locked it. A process
takes the first log that is free, and those that others left when they died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from logagg.ipc.paths import check_private, make_folder, spool_dirs, state_dir
from logagg.segment_log import SegmentLog, read_cursor, segment_paths

__all__ = [
    "DEAD_LETTERS",
    "INBOX",
    "QUEUE",
    "REST",
    "UNLIMITED",
    "Snapshot",
    "SpoolDirectory",
    "claim",
    "directories",
    "name_of",
    "roots",
    "sink_root",
    "snapshot",
    "take_over",
    "tidy",
]

DEAD_LETTERS = "dead-letters-"
INBOX = "inbox-"
QUEUE = "queue-"
REST = "rest"
"""Letters that hold no record, within an inbox; they go back to the others."""
SERVICE = "sinks"
_MOST_LOGS = 1000
UNLIMITED = 1 << 62


def sink_root() -> Path:
    """The root for sinks that have a spool of their own; not made."""
    return Path(state_dir(), "sinks")


def roots() -> list[Path]:
    """Every root that may hold something."""
    return [sink_root(), *map(Path, spool_dirs(SERVICE))]


def name_of(identity: str) -> str:
    """A directory's name for a sink: readable, and different for different targets."""
    digest = blake2b(identity.encode("utf-8", "replace"), digest_size=5).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", identity.partition("?")[0]).strip("-.")
    return f"{readable[:60]}-{digest}"


def claim(
    folder: Path, url: str, limit_bytes: int, *, prefix: str = "", **options: Any
) -> SegmentLog:
    """Take the first free log in a sink's directory.

    Args:
        folder: The sink's directory; made when it is missing.
        url: The sink, secrets left out; written into `url`.
        limit_bytes: The limit of the log.
        prefix: What the log's name begins with, before its number.
        options: As for `SegmentLog`.

    Raises:
        ConfigError: The directory is not private.
        OSError: It cannot be used.
    """
    with _made(folder):
        check_private(str(folder))
        for number in range(_MOST_LOGS):
            for pause in (0.0, 0.01):  # a reader holds a lock for a moment
                time.sleep(pause)
                with contextlib.suppress(BlockingIOError):
                    path = folder / f"{prefix}{number}"
                    log = SegmentLog(path, limit_bytes, **options)
                    try:
                        _write_url(folder / "url", url)
                    except BaseException:
                        log.close()
                        raise
                    return log
    raise BlockingIOError(f"{folder}: {_MOST_LOGS} spools are in use")


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a sink's directory, and have `tidy` leave it alone for a moment."""
    while True:
        make_folder(folder)
        try:
            descriptor = _opened(folder)
        except FileNotFoundError:
            continue  # its last user has just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, folder):
                yield
                return
        finally:
            os.close(descriptor)


def _opened(folder: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(folder, flags)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def take_over(
    folder: Path, prefix: str = "", limit_bytes: int = UNLIMITED, **options: Any
) -> list[SegmentLog]:
    """Take the logs that hold records and that no process uses.

    Args:
        folder: The sink's directory; it may be missing.
        prefix: As for `claim`; `INBOX` for what was put back.
        limit_bytes: The limit of each.
        options: As for `SegmentLog`.

    Raises:
        OSError: One cannot be read, and no other was found.
    """
    found: list[SegmentLog] = []
    failure: OSError | None = None
    for path in _logs(folder, prefix):
        try:
            log = SegmentLog(path, limit_bytes, **options)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue
        except OSError as error:
            failure = error
            continue
        if log.records:
            found.append(log)
        else:
            log.close()
    if failure is not None and not found:
        raise failure
    return found


def _logs(folder: Path, prefix: str) -> list[Path]:
    """The logs of a kind, those with the lowest number first."""
    numbered = re.compile(re.escape(prefix) + "[0-9]+(-[0-9]+)?", re.ASCII)
    try:
        paths = [path for path in folder.iterdir() if numbered.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def tidy(folder: Path) -> None:
    """Remove a sink's directory when nothing but the sink's name is left in it."""
    with contextlib.suppress(OSError):
        descriptor = _opened(folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.listdir(descriptor) == ["url"] and _is_at(descriptor, folder):
                (folder / "url").unlink()
                folder.rmdir()
        finally:
            os.close(descriptor)


def _write_url(path: Path, url: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, url.encode("utf-8", "replace") + b"\n")
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class SpoolDirectory:
    """Content of a sink's directory.

    Attributes:
        folder: The directory.
        url: The sink, secrets left out.
        queues: The logs of the service.
        spools: The logs of the sink itself, inboxes included.
        dead_letters: Its files of dead letters, the older first.
    """

    folder: Path
    url: str
    queues: tuple[Path, ...]
    spools: tuple[Path, ...]
    dead_letters: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.folder.name


def directories(bases: Iterable[Path]) -> Iterator[SpoolDirectory]:
    """The directories of all sinks below these roots."""
    for base in bases:
        if not base.is_dir():
            continue
        for folder in sorted(base.iterdir()):
            try:
                url = (folder / "url").read_text("utf-8", "replace").strip()
                letters = sorted(
                    # Those in an inbox are of a replay that was killed at its end.
                    [
                        *folder.glob(f"{INBOX}*/{REST}"),
                        *folder.glob(f"{DEAD_LETTERS}*"),
                    ],
                    key=lambda path: (path.stem.partition(".")[0], path.suffix != ".1"),
                )
            except OSError:
                continue
            spools = (*_logs(folder, ""), *_logs(folder, INBOX))
            queues = tuple(_logs(folder, QUEUE))
            yield SpoolDirectory(folder, url, queues, spools, tuple(letters))


class Snapshot(NamedTuple):
    """A log as seen by a process that does not use it.

    Attributes:
        records: How many records are not consumed.
        size_bytes: How many bytes that are.
        first: The first of them.
        user: The process that uses the log, or 0.
    """

    records: int
    size_bytes: int
    first: bytes
    user: int


def snapshot(folder: Path) -> Snapshot:
    """Read a log without changing or locking it, even while a process uses it."""
    start = 0
    with contextlib.suppress(FileNotFoundError), open(folder / "cursor", "rb") as file:
        start = read_cursor(file.fileno())[1]
    records = size = 0
    first = b""
    for path in segment_paths(folder):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            file.seek(max(0, start - int(path.stem)))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                first = first or line
                records += 1
                size += len(line)
    return Snapshot(records, size, first, _user(folder / "lock"))


def _user(path: Path) -> int:
    try:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20).strip() or 0)
    except (OSError, ValueError):  # no lock file, or a file system without locks
        pass
    return 0
