"""`logagg spool` and `logagg dlq`: commands for what waits on disk for sinks.

That is what network sinks have not delivered, and what the service spooled for any sink
that did not keep up (`policy=spool`). The functions do the work and return values; the
commands print them. A log that a running process uses is never touched: it is locked,
and that process delivers it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import click
import msgspec

from logagg.cli.command import command, say, say_json
from logagg.cli.put_back import put_back
from logagg.core.line import timestamp_of
from logagg.errors import ConfigError, ConsumerGone, ExitStatus
from logagg.options import Duration, FilePath, Option
from logagg.segment_log import SegmentLog
from logagg.sinks import ConfiguredSink, SinkText, build
from logagg.spool_directory import (
    UNLIMITED,
    SpoolDirectory,
    directories,
    roots,
    snapshot,
    tidy,
)

__all__ = ["Row", "dlq", "drop", "replay", "rows", "spool"]


@dataclass(frozen=True, slots=True)
class Row:
    """Records on disk for one sink.

    Attributes:
        name: The name of its directory; commands take it, or a beginning of it.
        sink: Its URL, secrets left out.
        records: Records that are not delivered.
        size_bytes: How many bytes these are.
        oldest: The timestamp of the first of them, or "".
        users: The processes that use its logs now.
        dead_letters: Records that were refused for good.
        folder: Its directory.
    """

    name: str
    sink: str
    records: int
    size_bytes: int
    oldest: str
    users: tuple[int, ...]
    dead_letters: int
    folder: str


def _known(base: Path | None) -> list[SpoolDirectory]:
    return list(directories(roots() if base is None else [base]))


def rows(base: Path | None = None) -> list[Row]:
    """Everything that waits, a row a sink; reads only.

    Args:
        base: The directory to read instead of the user's own.
    """
    return [_row(one) for one in _known(base)]


def _row(one: SpoolDirectory) -> Row:
    logs = [snapshot(path) for path in (*one.queues, *one.spools)]
    oldest = [timestamp_of(found.first) for found in logs]
    letters = 0
    for path in one.dead_letters:
        with open(path, "rb") as file:
            letters += sum(1 for _ in file)
    return Row(
        one.name,
        one.url,
        sum(found.records for found in logs),
        sum(found.size_bytes for found in logs),
        min((text for text in oldest if text), default=""),
        tuple(found.user for found in logs if found.user),
        letters,
        str(one.folder),
    )


def find(name: str, base: Path | None = None) -> SpoolDirectory:
    """The sink with this name, or the only one whose name begins with it.

    Raises:
        ConfigError: There is none, or more than one.
    """
    known = _known(base)
    found = [one for one in known if one.name == name] or [
        one for one in known if one.name.startswith(name)
    ]
    if len(found) != 1:
        what = "no sink" if not found else "more than one sink"
        names = ", ".join(one.name for one in found or known) or "none"
        raise ConfigError(
            f"{what} called {name!r} has anything on disk; known: {names}"
        )
    return found[0]


def drop(one: SpoolDirectory) -> int:
    """Delete what is not delivered; return how many records that were.

    Raises:
        ConsumerGone: A running process uses the spool.
    """
    _refuse_users(one)
    dropped = 0
    for path in (*one.queues, *one.spools):
        log = SegmentLog(path, 0)
        try:
            dropped += log.drop()
        finally:
            log.close()
    tidy(one.folder)
    return dropped


def replay(
    one: SpoolDirectory, *, timeout: float, sink: str = ""
) -> tuple[int, int, str]:
    """Deliver what waits, in this process.

    Args:
        one: The sink.
        timeout: Seconds that it may take.
        sink: The sink's URL, when the one that is noted lacks a password.

    Returns:
        How many records were delivered or became dead letters, how many are left, and
        the error of the last attempt that failed.

    Raises:
        ConsumerGone: A running process uses the spool; it delivers it.
        ConfigError: The URL is not that of a sink with a spool of this kind.
    """
    _refuse_users(one)
    built = build(sink or one.url)
    before = _row(one).records
    error = asyncio.run(_deliver(one, built, timeout))
    tidy(one.folder)
    left = _row(one).records if one.folder.exists() else 0
    return before - left, left, error


async def _deliver(one: SpoolDirectory, built: ConfiguredSink, seconds: float) -> str:
    end = time.monotonic() + seconds
    error = ""
    for path in one.queues:
        if snapshot(path).records:
            error = await _deliver_queue(one, built, end) or error
    if one.spools:
        error = await _deliver_spools(one, built.sink, end) or error
    return error


async def _deliver_queue(one: SpoolDirectory, built: ConfiguredSink, end: float) -> str:
    """Write what the service spooled, as the service would."""
    from logagg.fanout.sink_runner import SinkRunner  # only this command writes
    from logagg.fanout.sink_spool import SinkSpool  # the same
    from logagg.fanout.watched_tasks import WatchedTasks  # the same

    spool = SinkSpool(one.name, UNLIMITED, one.url, one.folder.parent)
    tasks = WatchedTasks(lambda *_: None)
    runner = SinkRunner(built, lambda *_: None, lambda: None, spool, tasks)
    await runner.start()
    while not runner.idle and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await runner.close(0.1, time.time_ns())
    return runner.counters.last_error


async def _deliver_spools(one: SpoolDirectory, sink: Any, end: float) -> str:
    """Let a network sink deliver its own spools."""
    if not hasattr(sink, "spool_in"):
        raise ConfigError(f"sink {sink.url} has no spool")
    sink.spool_in(one.folder)
    await sink.open()
    try:
        while sink.health().queued_records and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    finally:
        await sink.close()
    return str(sink.health().last_error)


def _refuse_users(one: SpoolDirectory) -> None:
    users = _row(one).users
    if users:
        pids = ", ".join(map(str, users))
        raise ConsumerGone(
            f"the spool of {one.name} is in use by process {pids}, which delivers it"
        )


def _chosen(
    name: str | None, every: bool, base: Path | None
) -> Sequence[SpoolDirectory]:
    if every == (name is not None):
        raise ConfigError("name one sink, as `logagg spool ls` shows it, or give --all")
    return _known(base) if name is None else [find(name, base)]


# ---- the commands ---------------------------------------------------------------------

Directory = Annotated[
    FilePath,
    Option("Where the spools are.", "", "DIR", default="the user's state directory"),
]
Every = Annotated[bool, Option("All sinks.")]
_NAME = click.Argument(["name"], required=False)


class ListOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg spool ls`."""

    dir: Directory = ""
    json: Annotated[bool, Option("One JSON object per sink.")] = False


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg spool replay`."""

    all: Every = False
    dir: Directory = ""
    sink: Annotated[
        SinkText, Option("The sink's URL, if it needs a password.", "", "URL")
    ] = ""
    timeout: Annotated[Duration, Option("Most time for each sink.")] = 60.0


class DropOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg spool drop`."""

    all: Every = False
    dir: Directory = ""
    yes: Annotated[bool, Option("Do not ask for confirmation.")] = False


class DeadLetterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg dlq replay`."""

    all: Every = False
    dir: Directory = ""


def _base(directory: str) -> Path | None:
    return Path(directory) if directory else None


@click.group()
def spool() -> None:
    """Records on disk that sinks could not deliver yet."""


@click.group()
def dlq() -> None:
    """Dead letters: records that a target refused for good."""


@command(ListOptions)
def _ls(options: ListOptions) -> None:
    """List the spools: records, their age, dead letters, and processes that use them."""
    found = rows(_base(options.dir))
    if options.json:
        for row in found:
            say_json(asdict(row))
        return
    if not found:
        say("nothing is spooled")
    for row in found:
        users = f", in use by {', '.join(map(str, row.users))}" if row.users else ""
        since = f" since {row.oldest[:19]}Z" if row.oldest else ""
        say(row.name)
        say(f"  sink          {row.sink}")
        waiting = f"{row.records} records, {row.size_bytes} bytes{since}{users}"
        say(f"  waiting       {waiting}")
        say(f"  dead letters  {row.dead_letters}")


@command(ReplayOptions, _NAME)
def _replay(options: ReplayOptions, name: str | None) -> None:
    """Deliver the records of a spool now, when no process does it."""
    failed = False
    for one in _chosen(name, options.all, _base(options.dir)):
        delivered, left, error = replay(one, timeout=options.timeout, sink=options.sink)
        text = f"{one.name}: {delivered} records delivered, {left} left"
        say(f"{text}: {error}" if left and error else text)
        failed = failed or left > 0
    if failed:
        raise SystemExit(ExitStatus.FAILED)


@command(DropOptions, _NAME)
def _drop(options: DropOptions, name: str | None) -> None:
    """Delete the records of a spool."""
    for one in _chosen(name, options.all, _base(options.dir)):
        if not options.yes:
            question = f"{one.name}: delete {_row(one).records} records?"
            click.confirm(question, abort=True)
        say(f"{one.name}: {drop(one)} records dropped")


@command(DeadLetterOptions, _NAME)
def _dlq_replay(options: DeadLetterOptions, name: str | None) -> None:
    """Return dead letters to the sink that they belong to, to be sent again."""
    for one in _chosen(name, options.all, _base(options.dir)):
        records, stay = put_back(one)
        say(f"{one.name}: {records} records put back, {stay} letters stay")


for _each in (_ls, _replay, _drop):
    spool.add_command(_each)
dlq.add_command(_dlq_replay)
