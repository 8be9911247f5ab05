"""The database of a query: DuckDB in memory, with a view `logs` over the pieces.

- The statement is one SELECT; it reads the pieces and nothing else: no other file, no
  network, no extension, no variable of this process, and it can lift none of that.
- Memory is bounded; more than that goes to the temporary directory.
- Columns and types are those of a sample. For a query that needs more (a missing column,
  a value of another type, `*`, a whole object) they are those of all records. A piece
  with a damaged line is converted first. So no record and no field is left out, and the
  result is complete before anything of it is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from logagg.core import levels
from logagg.core.units import wire_time
from logagg.errors import ConfigError
from logagg.platform.system import available_cpus
from logagg.view.files import LONGEST_BYTES
from logagg.view.query.pieces import LogPieces

try:
    import duckdb
except ImportError:
    raise ConfigError(
        "SQL needs DuckDB 2.0 or later: pip install 'logagg-service[query]'"
    ) from None

__all__ = ["Result", "run"]

_SAMPLE = 20_480  # records, DuckDB's default
_ALL = -1
_WHOLE_BYTES = 8 << 20
"""Of logs up to this size all records are the sample."""

_DEPTH = 6  # levels of nesting that have types; what is deeper is JSON
_LONGEST_TYPE = 2_000  # characters; an object with more fields is JSON
_THREAD_BYTES = 1 << 27  # of the memory, for each thread
_RESULT = "logagg_result"

_TEXT = "VARCHAR"
_STANDARD = {
    "timestamp": _TEXT, "level": _TEXT, "worker": _TEXT, "seq": "BIGINT",
    "logger": _TEXT, "message": _TEXT,
    "exception": "STRUCT(type VARCHAR, message VARCHAR, stack VARCHAR)",
}  # fmt: skip
"""Columns that every log has; the types of `exception` and `seq` are defaults."""

_FIXED = frozenset(("timestamp", "level", "worker", "logger", "message"))
_ALL_COLUMNS = re.compile(
    r"\*|^\s*(?:from|table|describe|summarize|show)\b|\bcolumns\b"
    r"|(?<!from )(?<!join )\blogs\b(?!\.)",
    re.IGNORECASE,
)
_COUNT = re.compile(r"count\s*\(\s*\*\s*\)", re.IGNORECASE)
_MALFORMED = re.compile(r"Malformed JSON|GZIP|ZSTD|zstd|maximum_object_size")
_FINAL = (duckdb.ParserException, duckdb.CatalogException, duckdb.PermissionException)


class Result:
    """The rows of a query, complete, in the database.

    Attributes:
        columns: Their names and types.
        count: How many rows.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        described = connection.execute(f"DESCRIBE {_RESULT}").fetchall()
        self.columns: list[tuple[str, str]] = [(each[0], each[1]) for each in described]
        counted = connection.execute(f"SELECT count(*) FROM {_RESULT}").fetchall()
        self.count: int = counted[0][0]

    def batches(self, limit: int | None = None) -> Iterator[list[tuple[Any, ...]]]:
        """The rows as Python's values."""
        end = "" if limit is None else f" LIMIT {limit}"
        cursor = self._connection.execute(f"FROM {_RESULT}{end}")
        while rows := cursor.fetchmany(2_000):
            yield rows

    def write_parquet(self, path: str) -> None:
        """Write the rows to a file in the directory of the pieces."""
        self._connection.execute(
            f"COPY {_RESULT} TO {_quoted(path)} (FORMAT parquet, COMPRESSION zstd)"
        )


def run(
    pieces: LogPieces,
    sql: str,
    values: Mapping[str, Any],
    *,
    memory: int,
    utc: bool,
    note: Callable[[str], None],
) -> Result:
    """Run a query.

    Args:
        pieces: The logs.
        sql: One SELECT.
        values: Its parameters, `$name`.
        memory: The bytes that the database may use.
        utc: Times are of UTC, not of this machine's zone.
        note: Takes a message.

    Raises:
        ConfigError: The query is wrong, or a piece cannot be read.
    """
    statement = _one_select(sql)
    needs_all = _ALL_COLUMNS.search(_COUNT.sub("", statement)) is not None
    sample = _ALL if needs_all or pieces.size() <= _WHOLE_BYTES else _SAMPLE
    while True:
        places = pieces.places()
        try:
            connection = _connect(memory, utc, pieces.folder)
            _create_view(connection, pieces, sample)
            if sample != _ALL and _names_object(connection, statement):
                sample = _ALL
                continue
            _lock(connection, pieces.folder, places)
            given = dict(values) or None
            create = f"CREATE TEMP TABLE {_RESULT} AS\n{statement}"
            connection.execute(create, given)
            return Result(connection)
        except duckdb.Error as error:
            if isinstance(error, duckdb.PermissionException) and (
                pieces.places() != places
            ):
                continue  # a rotation in the meantime
            if isinstance(error, _FINAL):
                raise _refused(error, pieces) from None
            piece = pieces.piece_in(str(error))
            if piece and _MALFORMED.search(str(error)) and not piece.converted:
                note(f"{piece.path}: has damaged lines; they are messages")
                pieces.convert(piece)
            elif isinstance(error, _Renamed):
                for each in pieces.pieces:
                    pieces.convert(each)
            elif sample != _ALL:
                sample = _ALL
            else:
                raise _refused(error, pieces) from None


class _Renamed(duckdb.InvalidInputException):
    """Fields have names that columns cannot have."""


def _one_select(sql: str) -> str:
    """The statement, which is one SELECT.

    Raises:
        ConfigError: It is something else.
    """
    try:
        with duckdb.connect(":memory:") as connection:
            found = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise ConfigError(f"SQL: {_line(str(error))}") from None
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        raise ConfigError(
            "SQL: expected one SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE)"
        )
    return found[0].query.strip().removesuffix(";")


def _names_object(connection: duckdb.DuckDBPyConnection, statement: str) -> bool:
    """Whether the statement names an object as a whole: a sample has not all fields."""
    described = connection.execute("DESCRIBE logs").fetchall()
    objects = [re.escape(each[0]) for each in described if "STRUCT(" in each[1]]
    named = rf'\b(?:{"|".join(objects)})\b(?!"?\s*(?:\.|is\b))'
    return bool(objects) and re.search(named, statement, re.IGNORECASE) is not None


def _connect(memory: int, utc: bool, folder: str) -> duckdb.DuckDBPyConnection:
    own = Path(folder, "memory")
    own.mkdir(mode=0o700, exist_ok=True)
    threads = max(1, min(available_cpus(), memory // _THREAD_BYTES))
    connection = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "memory_limit": f"{memory}B",
            "threads": str(threads),
            "temp_directory": str(own),
        },
    )
    connection.execute("SET enable_progress_bar = false")
    if utc:
        connection.execute("SET TimeZone = 'UTC'")
    return connection


def _lock(
    connection: duckdb.DuckDBPyConnection, folder: str, places: Sequence[str]
) -> None:
    """Allow the pieces and nothing else from here on."""
    connection.execute(f"SET allowed_paths = {_list(places)}")
    connection.execute(f"SET allowed_directories = [{_quoted(folder + os.sep)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


# ---- the view -------------------------------------------------------------------------


def _create_view(
    connection: duckdb.DuckDBPyConnection, pieces: LogPieces, sample: int
) -> None:
    names = [piece.name for piece in pieces.pieces]
    parts = []
    if names or not pieces.parquet:
        columns = _columns(connection, pieces, sample)
        parts.append(_of_ndjson(names, columns, pieces))
    if pieces.parquet:
        parts.append(_of_parquet(connection, pieces))
    connection.execute(f"CREATE VIEW logs AS {' UNION ALL BY NAME '.join(parts)}")
    cases = " ".join(
        f"WHEN {_quoted(name)} THEN {number}" for name, number in levels.NUMBERS.items()
    )
    connection.execute(
        "CREATE MACRO severity(level) AS "
        f"CASE lower(level) {cases} ELSE TRY_CAST(level AS DOUBLE) END"
    )


def _columns(
    connection: duckdb.DuckDBPyConnection, pieces: LogPieces, sample: int
) -> dict[str, str]:
    """The columns with their types: the standard ones, then those that were found.

    Raises:
        _Renamed: Fields have names that columns cannot have.
    """
    names = [piece.name for piece in pieces.pieces]
    try:
        found = _found_columns(connection, names, sample, _DEPTH)
    except duckdb.NotImplementedException:  # names in an object differ in case alone
        found = _found_columns(connection, names, sample, 1)
    except duckdb.BinderException as error:  # a name is empty
        if all(piece.converted for piece in pieces.pieces):
            raise
        raise _Renamed(str(error)) from None
    spellings = {name.lower(): name for name in found}
    clashes = {
        stem: spellings[stem]
        for stem, _, number in (name.lower().rpartition("_") for name in found)
        if number.isdecimal() and stem in spellings and stem not in pieces.spellings
    }
    if clashes:
        pieces.spellings |= clashes
        raise _Renamed(f"fields differ in case alone: {', '.join(clashes.values())}")
    columns = dict(_STANDARD)
    for name, kind in found.items():
        if name in _FIXED:
            continue
        is_known = kind != '"NULL"' and len(kind) <= _LONGEST_TYPE
        if is_known or name not in columns:
            columns[name] = kind if is_known else "JSON"
    return columns


def _found_columns(
    connection: duckdb.DuckDBPyConnection,
    names: Sequence[str],
    sample: int,
    depth: int,
) -> dict[str, str]:
    if not any(os.stat(name).st_size for name in names):
        return {}
    files = -1 if sample == _ALL else 32
    described = connection.execute(
        f"DESCRIBE FROM read_ndjson({_list(reversed(names))}, sample_size = {sample}, "
        f"maximum_sample_files = {files}, maximum_depth = {depth}, records = true, "
        "map_inference_threshold = -1, union_by_name = true, "
        f"maximum_object_size = {LONGEST_BYTES})"
    )
    return {each[0]: each[1] for each in described.fetchall()}


def _of_ndjson(
    names: Sequence[str], columns: Mapping[str, str], pieces: LogPieces
) -> str:
    wanted = [f'try_cast("timestamp" AS TIMESTAMPTZ) AS {_identifier("timestamp")}']
    wanted += [_identifier(name) for name in columns if name != "timestamp"]
    if not names:
        types = ", ".join(
            f"CAST(NULL AS {kind}) AS {_identifier(name)}"
            for name, kind in columns.items()
        )
        return f"SELECT {', '.join(wanted)} FROM (SELECT {types}) WHERE false"
    packed = ", ".join(f"{_identifier(n)} := {_quoted(k)}" for n, k in columns.items())
    return (
        f"SELECT {', '.join(wanted)} FROM read_ndjson({_list(names)}, "
        f"columns = struct_pack({packed}), maximum_object_size = {LONGEST_BYTES}) AS own"
        f"{_where(pieces, '')}"
    )


def _of_parquet(connection: duckdb.DuckDBPyConnection, pieces: LogPieces) -> str:
    """The part of the view of Parquet files; with a range of time, its rows."""
    names = _list([piece.name for piece in pieces.parquet])
    source = f"read_parquet({names}, union_by_name = true)"
    described = connection.execute(f"DESCRIBE FROM {source}").fetchall()
    if "timestamp" not in [each[0] for each in described]:
        return f"SELECT * FROM {source}"
    return f"SELECT * FROM {source} AS own{_where(pieces, 'TIMESTAMPTZ ')}"


def _where(pieces: LogPieces, kind: str) -> str:
    """The condition of the range of time on a column of texts or of another type."""
    terms = []
    if pieces.since:
        terms.append(f"own.timestamp >= {kind}{_quoted(pieces.since.decode())}")
    if pieces.until_ns is not None:
        terms.append(f"own.timestamp <= {kind}{_quoted(wire_time(pieces.until_ns))}")
    return f" WHERE {' AND '.join(terms)}" if terms else ""


# ---- text of SQL ----------------------------------------------------------------------


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(names: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, names))}]"


def _refused(error: Exception, pieces: LogPieces) -> ConfigError:
    return ConfigError(f"SQL: {_line(pieces.readable(str(error)))}")


def _line(text: str) -> str:
    """An error of the database in one line, without its place and its hints."""
    text = re.split(r"\n\s*\n?LINE \d+:|\nTry ", text)[0]
    return re.sub(r"\s+", " ", text).strip()
