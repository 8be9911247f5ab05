"""`logagg spool` and `logagg dlq`: look after what network sinks have parked on disk.

The functions do the work and return values; the commands print them. A spool that a
running process uses is never touched: it is locked, and that process delivers it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from logagg.errors import ConfigError, ConsumerGone

if TYPE_CHECKING:
    from logagg_sinks._parked import Parked

__all__ = ["Row", "dlq", "drop", "put_back", "replay", "rows", "spool"]


@dataclass(frozen=True, slots=True)
class Row:
    """What a sink has parked.

    Attributes:
        name: The name of its directory; commands take it, or a beginning of it.
        sink: Its URL, secrets left out.
        records: Records that are not delivered.
        size_bytes: How many bytes these are.
        oldest: The timestamp of the first of them, or "".
        users: The processes that use its spools now.
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


def rows(base: Path | None = None) -> list[Row]:
    """Everything that is parked, a row a sink; reads only.

    Args:
        base: Where to look instead of the user's state directory.
    """
    from logagg_sinks._parked import parked, root

    return [_row(one) for one in parked(base or root())]


def _row(one: Parked) -> Row:
    from logagg_sinks._spool import look

    looks = [look(path) for path in one.spools]
    oldest = [found.first[14:44].decode("ascii", "replace") for found in looks]
    letters = 0
    for path in one.dead_letters:
        with open(path, "rb") as file:
            letters += sum(1 for _ in file)
    return Row(
        one.name,
        one.url,
        sum(found.records for found in looks),
        sum(found.size_bytes for found in looks),
        min((text for text in oldest if text), default=""),
        tuple(found.user for found in looks if found.user),
        letters,
        str(one.folder),
    )


def find(name: str, base: Path | None = None) -> Parked:
    """The sink with this name, or the only one whose name begins like that.

    Raises:
        ConfigError: There is none, or more than one.
    """
    from logagg_sinks._parked import parked, root

    known = list(parked(base or root()))
    found = [one for one in known if one.name == name] or [
        one for one in known if one.name.startswith(name)
    ]
    if len(found) != 1:
        what = "no sink" if not found else "more than one sink"
        names = ", ".join(one.name for one in found or known) or "nothing"
        raise ConfigError(f"{what} called {name!r} has parked anything; known: {names}")
    return found[0]


def drop(one: Parked) -> int:
    """Throw away what is not delivered; return how many records that were.

    Raises:
        ConsumerGone: A running process uses the spool.
    """
    from logagg_sinks._spool import DiskSpool

    _refuse_users(one)
    dropped = 0
    for path in one.spools:
        parked = DiskSpool(path, 0)
        try:
            dropped += parked.drop()
        finally:
            parked.close()
    _clean(one)
    return dropped


def replay(one: Parked, *, timeout: float, sink: str = "") -> tuple[int, int, str]:
    """Deliver what is parked, here and now.

    Args:
        one: The sink.
        timeout: Seconds that it may take.
        sink: The sink's URL, when the one that is noted lacks a password.

    Returns:
        How many records were delivered or became dead letters, how many are left, and
        what failed last.

    Raises:
        ConsumerGone: A running process uses the spool; it delivers it.
        ConfigError: The URL is not that of a network sink.
    """
    from logagg.sinks import build
    from logagg_sinks._network import NetworkSink

    _refuse_users(one)
    made = build(sink or one.url).sink
    if not isinstance(made, NetworkSink):
        raise ConfigError(f"sink {made.url} has no spool")
    made.park_in(one.folder)
    before = _row(one).records
    left, error = asyncio.run(_deliver(made, timeout))
    _clean(one)
    return before - left, left, error


async def _deliver(sink: object, seconds: float) -> tuple[int, str]:
    from logagg_sinks._network import NetworkSink

    assert isinstance(sink, NetworkSink)
    await sink.open()
    end = time.monotonic() + seconds
    try:
        while sink.health().queued_records and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    finally:
        await sink.close()
    health = sink.health()
    return health.queued_records, health.last_error


_REPLAYING = ".replaying-"


def put_back(one: Parked) -> tuple[int, int]:
    """Give dead letters back to their sink, to be sent again.

    They go into an inbox, which the sink takes when it starts, or within ten seconds
    when it runs. Letters whose record is not JSON stay.

    Returns:
        How many records were put back, and how many letters stay.
    """
    from logagg_sinks._deadletter import read_letters
    from logagg_sinks._spool import DiskSpool

    inbox = one.folder / f"inbox-{time.time_ns()}-{os.getpid()}"
    hidden = one.folder / f".{inbox.name}"
    records = stay = 0
    taken = [
        (mine, mine.with_name(mine.name.removeprefix(_REPLAYING)))
        for mine in one.folder.glob(f"{_REPLAYING}*")  # of one that was killed
    ]
    parked = DiskSpool(hidden, 1 << 62)
    try:
        for path in one.dead_letters:
            mine = path.with_name(f"{_REPLAYING}{path.name}")
            if mine.exists():
                _append(path, [mine.read_bytes()])
                taken.remove((mine, path))
            os.rename(path, mine)  # whoever writes letters makes a new file
            taken.append((mine, path))
        for mine, path in taken:
            lines, rest = read_letters(mine)
            if rest:
                _append(path, rest)
                stay += len(rest)
            for line in lines:
                parked.append(line, 1)
                records += 1
        os.rename(hidden, inbox)
        parked.folder = inbox
    except BaseException:
        parked.drop()
        for mine, path in taken:
            if mine.exists():
                _append(path, [mine.read_bytes()])
                mine.unlink()
        raise
    finally:
        parked.close()
    for mine, _ in taken:
        mine.unlink()
    return records, stay


def _append(path: Path, lines: Iterable[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "ab") as file:
        file.writelines(lines)


def _refuse_users(one: Parked) -> None:
    users = _row(one).users
    if users:
        pids = ", ".join(map(str, users))
        raise ConsumerGone(
            f"the spool of {one.name} is in use by process {pids}, which delivers it"
        )


def _clean(one: Parked) -> None:
    """Remove the directory when nothing but the sink's name is left in it."""
    if [path.name for path in one.folder.iterdir()] == ["url"]:
        shutil.rmtree(one.folder, ignore_errors=True)


def _chosen(name: str | None, every: bool, base: Path | None) -> Sequence[Parked]:
    from logagg_sinks._parked import parked, root

    if every == (name is not None):
        raise ConfigError("say which sink, by its name in `logagg spool ls`, or --all")
    return list(parked(base or root())) if name is None else [find(name, base)]


_DIR = click.option(
    "--dir",
    "base",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where sinks park records, instead of the user's state directory.",
)
_ALL = click.option("--all", "every", is_flag=True, help="All sinks.")


@click.group()
def spool() -> None:
    """Records that network sinks could not deliver yet."""


@spool.command("ls")
@_DIR
@click.option("--json", "as_json", is_flag=True, help="One JSON object a sink.")
def _ls(base: Path | None, as_json: bool) -> None:
    """List what is parked: records, their age, dead letters, and who uses the spool."""
    found = rows(base)
    if as_json:
        for row in found:
            click.echo(orjson.dumps(asdict(row)))
        return
    if not found:
        click.echo("nothing is parked")
    for row in found:
        users = f", in use by {', '.join(map(str, row.users))}" if row.users else ""
        since = f" since {row.oldest[:19]}Z" if row.oldest else ""
        click.echo(row.name)
        click.echo(f"  sink          {row.sink}")
        waiting = f"{row.records} records, {row.size_bytes} bytes{since}{users}"
        click.echo(f"  waiting       {waiting}")
        click.echo(f"  dead letters  {row.dead_letters}")


@spool.command("replay")
@click.argument("name", required=False)
@_ALL
@_DIR
@click.option("--sink", default="", help="The sink's URL, if it needs a password.")
@click.option(
    "--timeout", default=60.0, show_default=True, help="Seconds for each sink."
)
def _replay(
    name: str | None, every: bool, base: Path | None, sink: str, timeout: float
) -> None:
    """Deliver now what a sink has parked, when no process does it."""
    failed = False
    for one in _chosen(name, every, base):
        delivered, left, error = replay(one, timeout=timeout, sink=sink)
        text = f"{one.name}: {delivered} records delivered, {left} left"
        click.echo(f"{text}: {error}" if left and error else text)
        failed = failed or left > 0
    if failed:
        raise SystemExit(1)


@spool.command("drop")
@click.argument("name", required=False)
@_ALL
@_DIR
@click.option("--yes", is_flag=True, help="Do not ask.")
def _drop(name: str | None, every: bool, base: Path | None, yes: bool) -> None:
    """Throw away what a sink has not delivered."""
    for one in _chosen(name, every, base):
        records = _row(one).records
        if not yes:
            click.confirm(f"{one.name}: throw away {records} records?", abort=True)
        click.echo(f"{one.name}: {drop(one)} records dropped")


@click.group()
def dlq() -> None:
    """Dead letters: records that a target refused for good."""


@dlq.command("replay")
@click.argument("name", required=False)
@_ALL
@_DIR
def _dlq_replay(name: str | None, every: bool, base: Path | None) -> None:
    """Put dead letters back, to be sent again by the sink that they belong to."""
    for one in _chosen(name, every, base):
        records, stay = put_back(one)
        click.echo(f"{one.name}: {records} records put back, {stay} letters stay")
