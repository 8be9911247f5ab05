"""The command line of `logagg query`: SQL over logs."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import click
import msgspec
import orjson

from logagg.cli.command import command, say
from logagg.cli.configuration import config
from logagg.cli.viewing.view_options import Color, Instant, Positive, Socket
from logagg.core.units import parse_instant, wire_time
from logagg.errors import ConfigError, ExitStatus
from logagg.options import FilePath, Option, Size
from logagg.render.markup import inline, wants_color
from logagg.view import discover

if TYPE_CHECKING:
    from logagg.view.query.database import Result
    from logagg.view.query.pieces import LogPieces

_PARAMETER = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_LEAST_MEMORY = 64 << 20
_PIPE_WIDTH = 10_000  # columns: a table for a program is never cut


class QueryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `logagg query`."""

    since: Annotated[Instant | None, Option("10m, 14:03, today, 2026-11-25", "-S")] = (
        None
    )
    until: Annotated[Instant | None, Option("as --since", "-U")] = None
    utc: Annotated[bool, Option("times in UTC")] = False
    param: Annotated[
        tuple[str, ...], Option("the value of $NAME in the query", "-p", "NAME=VALUE")
    ] = ()
    json: Annotated[bool, Option("each row as a JSON object on a line")] = False
    csv: Annotated[bool, Option("CSV, the first line the names")] = False
    parquet: Annotated[
        FilePath | None,
        Option("write the rows to a Parquet file", "", "OUT", asks="write {}"),
    ] = None
    rows: Annotated[Positive, Option("of the table at most")] = 1000
    memory: Annotated[Size, Option("of the database; more goes to $TMPDIR")] = 10**9
    files: Annotated[tuple[FilePath, ...], Option("as FILE", long="--file")] = ()
    socket: Socket = ""
    color: Color = "auto"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Outputs that exclude each other, and too little memory."""
        given = [name for name in ("json", "csv", "parquet") if getattr(self, name)]
        if len(given) > 1:
            yield given[1], f"--{given[0]} and --{given[1]} contradict each other"
        if self.memory < _LEAST_MEMORY:
            yield "memory", "expected at least 64MiB"
        for text in self.param:
            if not _PARAMETER.fullmatch(text):
                yield "param", f"{text!r}: expected NAME=VALUE"


@command(
    QueryOptions,
    click.Argument(["sql"], metavar="SQL|NAME|.schema"),
    click.Argument(["names"], nargs=-1, metavar="[FILE]..."),
)
def query(options: QueryOptions, sql: str, names: tuple[str, ...]) -> None:
    """Ask the log in SQL: the view `logs` has a column for each field.
    Reads FILE (rotated, compressed, Parquet, of other programs), or - (stdin), or the
    file that the running consumer writes. Needs the extra `query`.

    \b
    logagg query "select level, count(*) from logs group by level" app.log
    logagg query "select * from logs where severity(level) >= 40" -S 1h --json
    logagg query slow -p ms=500      a query that [queries] of logagg.toml names
    logagg query .schema app.log     the columns and their types
    Exit status: 0, or 1 when there are no rows.
    """
    from logagg.view.query import database  # loads DuckDB
    from logagg.view.query.pieces import LogPieces  # only this command needs it

    statement = _statement(sql)
    paths = [*options.files, *names] or discover.file_of_consumer(
        options.socket or None
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # removes the directory
    with (
        tempfile.TemporaryDirectory(prefix="logagg-query-") as folder,
        contextlib.closing(LogPieces(folder, *_range(options))) as pieces,
    ):
        try:
            for path in paths:
                pieces.add(path)
            result = database.run(
                pieces,
                statement,
                dict(map(_parameter, options.param)),
                memory=options.memory,
                utc=options.utc,
                note=_note,
            )
            _note_untimed(pieces)
            _write(options, result, folder)
        except KeyboardInterrupt:
            click.get_current_context().exit(ExitStatus.INTERRUPTED)
    if not result.count:
        click.get_current_context().exit(ExitStatus.FAILED)


def _range(options: QueryOptions) -> tuple[bytes, int | None]:
    """The wire time before which no record is wanted, and the instant after which."""
    now, zone = time.time_ns(), dt.UTC if options.utc else None
    since, until = b"", None
    if options.since:
        since = wire_time(parse_instant(options.since, now, zone=zone)).encode()
    if options.until:
        until = parse_instant(options.until, now, zone=zone, end=True)
    return since, until


def _statement(sql: str) -> str:
    """The SQL that the argument is, or that it names.

    Raises:
        ConfigError: There is no query of this name.
    """
    if sql == ".schema":
        return "SELECT column_name, column_type FROM (DESCRIBE logs)"
    if not re.fullmatch(r"[\w-]+", sql):
        return sql
    named = click.get_current_context().params.get("config")
    saved = config.load(named).queries()
    if sql not in saved:
        names = f"known: {', '.join(saved)}" if saved else "there is no [queries]"
        raise ConfigError(f"{sql!r} is neither SQL nor a saved query ({names})")
    return saved[sql]


def _parameter(text: str) -> tuple[str, Any]:
    """A parameter: a number, true, false or null in JSON, a text in quotes or without."""
    found = _PARAMETER.fullmatch(text)
    assert found is not None
    name, value = found.groups()
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(value)
        if not isinstance(parsed, (dict, list)):
            return name, parsed
    return name, value


def _note(text: str) -> None:
    say(f"-- {inline(text)}", err=True)


def _note_untimed(pieces: LogPieces) -> None:
    count = pieces.untimed()
    if count and (pieces.since or pieces.until_ns is not None):
        _note(f"{count:,} records without a time that is understood: left out")


# ---- output ---------------------------------------------------------------------------


def _write(options: QueryOptions, result: Result, folder: str) -> None:
    from logagg.view.query import output  # with the database

    if options.parquet:
        _write_parquet(result, folder, options.parquet)
    elif options.json:
        _put(output.as_json(result.columns, result.batches()))
    elif options.csv:
        _put(output.as_csv(result.columns, result.batches()))
    else:
        _show_table(options, result)
        if result.count > options.rows:
            _note(f"{options.rows:,} of {result.count:,} rows; --rows N shows more")


def _put(chunks: Iterable[bytes]) -> None:
    is_terminal = sys.stdout.isatty()
    for chunk in chunks:
        if is_terminal:
            say(chunk.decode("utf-8", "replace").removesuffix("\n"))
        else:
            sys.stdout.buffer.write(chunk)
    sys.stdout.flush()


def _write_parquet(result: Result, folder: str, path: str) -> None:
    """Write the file beside its place, then rename it: it is there whole or not."""
    made = os.path.join(folder, "result.parquet")
    result.write_parquet(made)
    new = f"{path}.{secrets.token_hex(8)}.new"
    try:
        try:
            with open(made, "rb") as source, open(new, "xb") as out:
                shutil.copyfileobj(source, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(new, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    _note(f"{path}: {result.count:,} rows")


def _show_table(options: QueryOptions, result: Result) -> None:
    """A table that fits the terminal; elsewhere nothing of it is cut."""
    from rich.console import Console  # 60 ms: only where a table is shown
    from rich.table import Table  # the same
    from rich.text import Text  # the same

    from logagg.view.query.output import cells  # with the database

    terminal = sys.stdout.isatty()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, kind in result.columns:
        right = kind.startswith(_NUMBERS)
        table.add_column(
            Text(inline(name)),
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for rows in result.batches(options.rows):
        for row in rows:
            table.add_row(*(Text(inline(cell)) for cell in cells(row)))
    file = io.StringIO()
    color = wants_color(options.color, os.environ, terminal)
    console = Console(
        file=file,
        width=shutil.get_terminal_size().columns if terminal else _PIPE_WIDTH,
        highlight=False,
        force_terminal=color,
        no_color=not color,
    )
    console.print(table)
    for line in file.getvalue().splitlines():
        click.echo(line.rstrip(), color=color)


_NUMBERS = (
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT",
    "UINTEGER", "UBIGINT", "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL",
)  # fmt: skip
