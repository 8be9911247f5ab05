"""Dead letters go back to their sink, each once, whatever is killed meanwhile.

Theory of operation
-------------------
    FOLDER/dead-letters-0.ndjson …      letters, which a running sink may be writing
    FOLDER/.inbox-ID/                   one replay at work: its log, and letters it took
    FOLDER/inbox-ID/                    its result, which the sink delivers
        letters-N.ndjson                letters whose records are in the log
        rest                            letters that hold no record

One rename makes `.inbox-ID` an inbox: before it the letters count and the log is nothing,
after it the log counts and the letters are nothing. Each file of letters is moved by one
rename, too, so of two replays one has it. A writer of letters holds a file's lock and
looks up its name after that; a replay moves it under the same lock, so no letter is
written into a file that was read already. What a killed replay left is put right by the
next one: letters in `.inbox-ID` return to FOLDER, those in `inbox-ID` are removed, and
its `rest` returns to FOLDER.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

import orjson

from logagg.segment_log import SegmentLog
from logagg.spool_directory import (
    DEAD_LETTERS,
    INBOX,
    REST,
    UNLIMITED,
    SpoolDirectory,
)

__all__ = ["put_back"]

_TAKEN = "letters-"


def put_back(one: SpoolDirectory) -> tuple[int, int]:
    """Give dead letters back to their sink, to be sent again.

    They go into an inbox, which the sink takes when it starts, or within ten seconds
    when it runs. Letters whose record is not JSON stay.

    Returns:
        How many records were put back, and how many letters stay.

    Raises:
        OSError: The directory cannot be written; the letters are where they were.
    """
    folder = one.folder
    _recover(folder)
    name = f"{INBOX}{time.time_ns()}-{os.getpid()}"
    work = folder / f".{name}"
    log = SegmentLog(work, UNLIMITED)
    try:
        for number, path in enumerate(sorted(folder.glob(f"{DEAD_LETTERS}*"))):
            _take(path, work / f"{_TAKEN}{number}.ndjson")
        stay = _sort_out(work, log)
        records = log.records
    except BaseException:
        _return(work, log)
        raise
    if not records:
        _return(work, log)
        return 0, stay
    log.close()
    os.rename(work, folder / name)
    _finish(folder / name)
    return records, stay


def _recover(folder: Path) -> None:
    """Put right what killed replays left."""
    for work in folder.glob(f".{INBOX}*"):
        with contextlib.suppress(BlockingIOError):  # one that runs
            _return(work, SegmentLog(work, UNLIMITED))
    for inbox in folder.glob(f"{INBOX}*"):
        _finish(inbox)


def _return(work: Path, log: SegmentLog) -> None:
    """Undo a replay: the letters that it took count again."""
    for path in work.glob(f"{_TAKEN}*"):
        os.rename(path, work.parent / f"{DEAD_LETTERS}{work.name[1:]}-{path.name}")
    (work / REST).unlink(missing_ok=True)
    log.drop()
    log.close()


def _finish(inbox: Path) -> None:
    """Remove the letters whose records are in an inbox; those without one return."""
    with contextlib.suppress(FileNotFoundError):
        name = f"{DEAD_LETTERS}{inbox.name}-{REST}.ndjson"
        os.rename(inbox / REST, inbox.parent / name)
    for path in inbox.glob(f"{_TAKEN}*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        inbox.rmdir()  # the sink has delivered what was in it


def _take(path: Path, target: Path) -> None:
    """Move a file of letters, unless another replay has it; wait for its writer."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                os.rename(path, target)
    finally:
        os.close(descriptor)


def _sort_out(work: Path, log: SegmentLog) -> int:
    """Put the records of letters into the log; return how many letters hold none.

    A letter whose record was not JSON would only come back; a torn or foreign line is
    no letter at all.
    """
    rest = 0
    with open(work / REST, "wb", opener=_private) as others:
        for path in sorted(work.glob(f"{_TAKEN}*")):
            with open(path, "rb") as file:
                for line in file:
                    record = _record(line)
                    if record is None:
                        others.write(line if line.endswith(b"\n") else line + b"\n")
                        rest += 1
                    else:
                        log.append(orjson.dumps(record) + b"\n", 1)
    if not rest:
        (work / REST).unlink()
    return rest


def _private(path: str, flags: int) -> int:
    """Open a file that others cannot read, as letters are."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _record(line: bytes) -> dict[str, object] | None:
    try:
        letter = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    record = letter.get("record") if isinstance(letter, dict) else None
    return record if isinstance(record, dict) else None
