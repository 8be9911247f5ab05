"""SQL over logs: every record and field is there, and nothing else can be read."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from logagg.core.units import parse_instant, wire_time
from logagg.errors import ConfigError
from logagg.view.query import database
from logagg.view.query import pieces as query_pieces
from logagg.view.query.output import as_csv, as_json
from logagg.view.query.pieces import LogPieces

BASE = parse_instant("2026-11-20T09:15:00Z", 0)
SECOND = 1_000_000_000


def line(number: int, **fields: Any) -> bytes:
    """A finished line, `number` seconds after BASE."""
    record = {
        "timestamp": wire_time(BASE + number * SECOND),
        "level": ("debug", "info", "warning", "error")[number % 4],
        "worker": str(number % 2 + 1),
        "seq": number,
        "logger": "app.db",
        "message": f"message {number}",
    }
    return orjson.dumps(record | fields) + b"\n"


def lines(*numbers: int, **fields: Any) -> bytes:
    """Several of them."""
    return b"".join(line(number, **fields) for number in numbers)


class Asked:
    """What a query returned.

    Attributes:
        rows: As Python's values.
        columns: Names and types.
        notes: The messages.
        pieces: The files that were read.
    """

    def __init__(
        self,
        folder: Path,
        sql: str,
        *paths: Path,
        since: str = "",
        until: str = "",
        memory: int = 256 << 20,
        before: Any = None,
        **values: Any,
    ) -> None:
        start = wire_time(parse_instant(since, 0)).encode() if since else b""
        end = parse_instant(until, 0, end=True) if until else None
        own = folder / "tmp"
        own.mkdir(exist_ok=True)
        self.notes: list[str] = []
        self.pieces = LogPieces(str(own), start, end)
        try:
            for path in paths:
                self.pieces.add(str(path))
            if before is not None:
                before()
            result = database.run(
                self.pieces,
                sql,
                values,
                memory=memory,
                utc=True,
                note=self.notes.append,
            )
            self.columns = result.columns
            self.rows = [row for rows in result.batches() for row in rows]
            self.json = b"".join(as_json(result.columns, result.batches()))
            self.csv = b"".join(as_csv(result.columns, result.batches()))
        finally:
            self.pieces.close()
            shutil.rmtree(own)

    def column(self) -> list[Any]:
        """The values of the first column."""
        return [row[0] for row in self.rows]


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types come from ten records, whatever the size."""
    monkeypatch.setattr(database, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(database, "_SAMPLE", 10)


# ---- all pieces, with their types -----------------------------------------------------


def test_all_pieces_of_a_log_are_one_view(tmp_path: Path) -> None:
    """Rotated ones, gzip and zstd, oldest first."""
    log = tmp_path / "app.log"
    packed = zstandard.ZstdCompressor().compress(lines(0, 1))
    (tmp_path / "app.log.3.zst").write_bytes(packed)
    (tmp_path / "app.log.2.gz").write_bytes(gzip.compress(lines(2, 3)))
    (tmp_path / "app.log.1").write_bytes(lines(4, 5))
    log.write_bytes(lines(6, 7))

    assert Asked(tmp_path, "select seq from logs", log).column() == list(range(8))


def test_columns_have_the_types_of_their_values(tmp_path: Path) -> None:
    """Those of every log are always there."""
    log = tmp_path / "app.log"
    log.write_bytes(line(0, status=500, ms=1.5, ok=True, place={"x": 1}, tags=["a"]))

    kinds = dict(Asked(tmp_path, "from logs", log).columns)

    assert kinds == {
        "timestamp": "TIMESTAMP WITH TIME ZONE",
        "level": "VARCHAR",
        "worker": "VARCHAR",
        "seq": "BIGINT",
        "logger": "VARCHAR",
        "message": "VARCHAR",
        "exception": 'STRUCT("type" VARCHAR, message VARCHAR, stack VARCHAR)',
        "status": "BIGINT",
        "ms": "DOUBLE",
        "ok": "BOOLEAN",
        "place": "STRUCT(x BIGINT)",
        "tags": "VARCHAR[]",
    }


def test_an_empty_log_has_the_columns(tmp_path: Path) -> None:
    """No rows, and no error."""
    log = tmp_path / "app.log"
    log.touch()
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(b""))
    query = "select timestamp, exception.type from logs"
    assert Asked(tmp_path, query, log).rows == []


def test_severity_is_the_number_of_a_level(tmp_path: Path) -> None:
    """Custom levels have numbers for names."""
    log = tmp_path / "app.log"
    log.write_bytes(line(3) + line(4, level="35") + line(1))
    query = "select severity(level) from logs where severity(level) > 30"
    assert Asked(tmp_path, query, log).column() == [40, 35]


def test_lines_of_other_programs_are_records(tmp_path: Path) -> None:
    """JSON, logfmt, text; after a prefix; in a compressed piece."""
    log = tmp_path / "other.log"
    (tmp_path / "other.log.1.gz").write_bytes(
        gzip.compress(
            b'{"time":1795166102100,"level":50,"msg":"pino","hostname":"h"}\n'
        )
    )
    log.write_bytes(
        b"level=error ts=2026-11-20T09:15:02.1Z msg=logfmt order=7\n"
        b'web-1  | {"level":"error","ts":"2026-11-20T09:15:02.1Z","msg":"compose"}\n'
        b"2026-11-20T09:15:02.1Z ERROR shop: text\n"
    )
    query = (
        "select message, \"order\" from logs where level = 'error' and timestamp = $at"
    )
    asked = Asked(tmp_path, query, log, at="2026-11-20 09:15:02.1+00")

    assert asked.rows[:3] == [("pino", None), ("logfmt", 7), ("compose", None)]
    assert [row[0][-4:] for row in asked.rows] == ["pino", "gfmt", "pose", "text"]


def test_parquet_and_lines_are_one_view(tmp_path: Path) -> None:
    """A file that a query wrote has the same columns."""
    log, archive = tmp_path / "app.log", tmp_path / "tmp" / "x.parquet"
    log.write_bytes(lines(0, 1, status=200))
    own = tmp_path / "tmp"
    own.mkdir()
    with contextlib.closing(LogPieces(str(own))) as pieces:
        pieces.add(str(log))
        result = database.run(
            pieces, "from logs", {}, memory=1 << 28, utc=True, note=print
        )
        result.write_parquet(str(archive))
    kept = archive.rename(tmp_path / "day.parquet")
    other = tmp_path / "other.log"
    other.write_bytes(line(9, extra="x", exception={"type": "E", "message": "m"}))

    query = (
        "select seq, status, extra, exception.type, timestamp from logs order by seq"
    )
    both = Asked(tmp_path, query, kept, other, since="2026-11-20T09:15:01Z")
    alone = Asked(tmp_path, "select seq from logs", kept, until="2026-11-20T09:15:00Z")

    assert [row[:4] for row in both.rows] == [(1, 200, None, None), (9, None, "x", "E")]
    assert alone.column() == [0]


# ---- nothing is left out --------------------------------------------------------------


def test_a_damaged_line_is_a_message(tmp_path: Path) -> None:
    """A torn one in the middle, one at the end, and the rest stay; a note names it."""
    log = tmp_path / "app.log"
    log.write_bytes(line(0) + line(1)[:70] + b"\n" + line(2) + line(3)[:-20])

    asked = Asked(tmp_path, "select message, timestamp from logs", log)
    middle = tmp_path / "middle.log"
    middle.write_bytes(line(0) + line(1)[:70] + b"\n" + line(2))
    noted = Asked(tmp_path, "select message from logs", middle)

    messages = asked.column()
    assert messages[0::2] == ["message 0", "message 2"]
    assert messages[1::2] == [line(1)[:70].decode(), line(3)[:-20].decode()]
    assert None not in [row[1] for row in asked.rows]
    assert len(noted.rows) == 3
    assert noted.notes == [f"{middle}: has damaged lines; they are messages"]


def test_a_compressed_piece_that_was_cut_gives_its_beginning(tmp_path: Path) -> None:
    """As `tail` shows it."""
    log = tmp_path / "app.log.1.gz"
    whole = gzip.compress(b"".join(line(n, pad=str(n * 7919)) for n in range(3000)))
    log.write_bytes(whole[: len(whole) // 2])
    count = Asked(tmp_path, "select count(*) from logs", tmp_path / "app.log").column()[
        0
    ]
    assert 1000 < count < 3000


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select late from logs where late is not null", [7]),
        ("select place.b from logs where place.b is not null", ["x"]),
        ("select place from logs where seq = 99", [{"a": 1, "b": "x"}]),
        ("select count(mixed) from logs", [100]),
        ("select mixed from logs where seq = 99", ["text"]),
    ],
)
def test_what_a_sample_lacks_is_there(
    tmp_path: Path, query: str, expected: list[Any]
) -> None:
    """A field that comes late, one of an object, a value of another type."""
    log = tmp_path / "app.log"
    early = b"".join(line(n, place={"a": 1}, mixed=1) for n in range(99))
    log.write_bytes(early + line(99, late=7, place={"a": 1, "b": "x"}, mixed="text"))

    found = Asked(tmp_path, query, log).column()

    assert [str(each).strip('"') for each in found] == list(map(str, expected))


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("query", ["select * from logs", "from logs", "table logs"])
def test_all_columns_are_those_of_all_records(tmp_path: Path, query: str) -> None:
    """Not those of a sample."""
    log = tmp_path / "app.log"
    log.write_bytes(lines(*range(99)) + line(99, late=7))
    assert "late" in dict(Asked(tmp_path, query, log).columns)


def test_names_that_columns_cannot_have(tmp_path: Path) -> None:
    """Empty ones, and those that differ in case alone, in a record and between two."""
    log = tmp_path / "app.log"
    log.write_bytes(
        line(0, Status=1, status=2) + line(1, STATUS=3) + line(2, **{"": 4, "a b": 5})
    )
    query = 'select "Status", "Status_", "_", "a b" from logs'
    assert Asked(tmp_path, query, log).rows == [
        (1, 2, None, None),
        (None, 3, None, None),
        (None, None, 4, 5),
    ]


def test_names_within_an_object_that_differ_in_case(tmp_path: Path) -> None:
    """Both values are there."""
    log = tmp_path / "app.log"
    log.write_bytes(line(0, place={"A": 1, "a": 2}))
    found = Asked(tmp_path, "select place from logs", log)
    assert json.loads(found.json) == {"place": {"A": 1, "a": 2}}


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    """NaN of other programs and lone surrogates cost no record."""
    log = tmp_path / "other.log"
    log.write_bytes(
        b'{"level":"error","msg":"nan","n":NaN}\n{"level":"error","msg":"\\ud800"}\n'
    )
    assert len(Asked(tmp_path, "select message from logs", log).rows) == 2


def test_a_time_that_is_not_understood(tmp_path: Path) -> None:
    """It stays as text; a range leaves its record out and counts it."""
    log = tmp_path / "other.log"
    log.write_bytes(b'{"ts":"half past nine","msg":"a"}\n{"msg":"b"}\n' + line(5))
    query = "select timestamp, timestamp_text from logs limit 1"
    assert Asked(tmp_path, query, log).rows == [(None, "half past nine")]
    ranged = Asked(tmp_path, "select seq from logs", log, since="2026-11-20")
    assert ranged.column() == [5]
    assert ranged.pieces.untimed() == 2


# ---- ranges of time -------------------------------------------------------------------


def test_a_range_reads_only_what_can_hold_it(tmp_path: Path) -> None:
    """Both ends are within; pieces outside are not opened."""
    log = tmp_path / "app.log"
    (tmp_path / "app.log.2").write_bytes(lines(*range(100)))
    (tmp_path / "app.log.1").write_bytes(lines(*range(100, 200)))
    log.write_bytes(lines(*range(200, 300)))
    end = "2026-11-20T09:17:05Z"

    asked = Asked(
        tmp_path, "select seq from logs", log, since="2026-11-20T09:17:00Z", until=end
    )

    assert asked.column() == list(range(120, 126))
    assert str(tmp_path / "app.log.2") not in [
        each.path for each in asked.pieces.pieces
    ]


def test_of_a_big_file_only_the_part_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is as small as the part."""
    monkeypatch.setattr(query_pieces, "_LEAST_CUT", 1 << 20)
    log = tmp_path / "app.log"
    log.write_bytes(b"".join(line(n, pad="x" * 400) for n in range(8_000)))
    sizes: list[int] = []
    own = tmp_path / "tmp"
    own.mkdir()
    start = wire_time(BASE + 7_990 * SECOND).encode()
    with contextlib.closing(LogPieces(str(own), start)) as pieces:
        pieces.add(str(log))
        sizes.append(pieces.size())
        result = database.run(
            pieces, "select seq from logs", {}, memory=1 << 28, utc=True, note=print
        )
        found = [row[0] for rows in result.batches() for row in rows]

    assert found == list(range(7_990, 8_000))
    assert sizes[0] < log.stat().st_size / 4


# ---- files ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["renamed", "removed"])
def test_a_rotation_during_the_query_changes_nothing(tmp_path: Path, kind: str) -> None:
    """What was open is read, once."""
    log = tmp_path / "app.log"
    log.write_bytes(lines(0, 1))

    def rotate() -> None:
        if kind == "renamed":
            log.rename(tmp_path / "app.log.1")
        else:
            log.unlink()
        log.write_bytes(lines(2))

    asked = Asked(tmp_path, "select seq from logs", log, before=rotate)
    assert asked.column() == [0, 1]


def test_a_path_means_itself(tmp_path: Path) -> None:
    """Quotes, brackets and stars are characters."""
    log = tmp_path / "a*'b[0]\"?.log"
    log.write_bytes(lines(0))
    (tmp_path / "ax'b0\"y.log").write_bytes(lines(1, 2))
    assert Asked(tmp_path, "select seq from logs", log).column() == [0]


# ---- the statement --------------------------------------------------------------------


def test_parameters_have_their_types(tmp_path: Path) -> None:
    """A number is compared as one; a missing or unknown one is an error."""
    log = tmp_path / "app.log"
    log.write_bytes(lines(1, 2, 10))
    query = "select seq from logs where seq > $least and worker = $worker"
    assert Asked(tmp_path, query, log, least=1, worker="1").column() == [2, 10]
    for values in ({"least": 1}, {"least": 1, "worker": "1", "more": 2}):
        with pytest.raises(ConfigError, match=r"^SQL: .*(worker|more)"):
            Asked(tmp_path, query, log, **values)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('{secret}')",
        "select * from read_blob('{secret}')",
        "select * from read_csv('{secret}', columns={{'a': 'VARCHAR'}})",
        "select * from read_ndjson_objects('{secret}')",
        "select * from '{secret}'",
        "select * from glob('{folder}/*')",
        "select * from read_text('{folder}/tmp/../secret.txt')",
        "select * from read_text('{folder}/tmp/../*.txt')",
        "select * from sniff_csv('{secret}')",
        "select * from query('select * from read_text(''{secret}'')')",
        "select getenv('HOME')",
        "select * from secret_rows",
        "attach '{folder}/x.db'",
        "copy logs to '{folder}/out.csv'",
        "copy (select 1) to '{folder}/out.csv'",
        "create table t as select 1",
        "set enable_external_access = true",
        "select 1; copy logs to '{folder}/out.csv'",
        "install httpfs",
        "load '{secret}'",
        "pragma enable_profiling",
        "call pragma_version()",
        "export database '{folder}/out'",
        "",
        "-- nothing",
    ],
)
def test_a_query_reads_the_logs_alone(tmp_path: Path, sql: str) -> None:
    """It fails in one line, shows nothing and writes nothing."""
    secret_rows = [("top secret",)]  # DuckDB can read variables of its caller
    secret = tmp_path / "secret.txt"
    secret.write_text("top secret\n")
    log = tmp_path / "app.log"
    log.write_bytes(lines(0))
    before = set(tmp_path.iterdir())

    with pytest.raises(ConfigError) as raised:
        Asked(tmp_path, sql.format(secret=secret, folder=tmp_path), log)

    assert "\n" not in str(raised.value)
    assert "top secret" not in str(raised.value)
    assert set(tmp_path.iterdir()) == before
    assert secret_rows


def test_the_bounds_cannot_be_lifted(tmp_path: Path) -> None:
    """Of memory, extensions, files; all in force when the statement runs."""
    log = tmp_path / "app.log"
    log.write_bytes(lines(0))
    names = (
        "memory_limit", "enable_external_access", "lock_configuration",
        "autoload_known_extensions", "python_enable_replacements",
    )  # fmt: skip
    shown = ", ".join(f"current_setting('{name}')::text" for name in names)
    (row,) = Asked(tmp_path, f"select {shown} from logs", log, memory=100 << 20).rows
    assert row == ("100.0 MiB", "false", "true", "false", "false")


def test_mistakes_are_one_line_that_names_them(tmp_path: Path) -> None:
    """With the nearest names, without the place of temporary files."""
    log = tmp_path / "app.log"
    log.write_bytes(lines(0, status=1))
    with pytest.raises(
        ConfigError, match=r'^SQL: .*"statsu" not found.*"status"'
    ) as bad:
        Asked(tmp_path, "select statsu from logs", log)
    assert "\n" not in str(bad.value)
    assert "LINE" not in str(bad.value)
    with pytest.raises(ConfigError, match="syntax error"):
        Asked(tmp_path, "selec 1", log)
    with pytest.raises(ConfigError, match=re.escape(f"{log}x: there is no such file")):
        Asked(tmp_path, "select 1", Path(f"{log}x"))


# ---- output ---------------------------------------------------------------------------


def test_values_as_json_and_csv(tmp_path: Path) -> None:
    """Objects stay objects, also those of mixed type; times have their offset."""
    log = tmp_path / "app.log"
    log.write_bytes(
        line(0, place={"x": [1, 2]}, mixed=1) + line(1, mixed={"y": "é,\n"})
    )
    query = (
        "select timestamp, place, mixed, sum(seq) over () as big, 1.5::decimal(9, 2) as d, "
        "170141183460469231731687303715884105727 as huge, date '2026-01-02' as day, "
        "'a'::blob as bytes, interval 1 second as span, map {1: 'x'} as m, nan::double "
        "as n from (select *, 'nan' as nan from logs) order by seq"
    )

    asked = Asked(tmp_path, query, log)

    first, second = map(json.loads, asked.json.splitlines())
    assert first["timestamp"] == "2026-11-20T09:15:00+00:00"
    assert first["place"] == {"x": [1, 2]}
    assert (first["mixed"], second["mixed"]) == (1, {"y": "é,\n"})
    assert (first["big"], first["d"], first["day"]) == (1, 1.5, "2026-01-02")
    assert first["huge"] == str(2**127 - 1)
    assert (first["m"], first["n"]) == ({"1": "x"}, None)
    rows = asked.csv.decode().splitlines()
    assert rows[0].startswith("timestamp,place,mixed,big")
    assert rows[1].startswith(
        '2026-11-20 09:15:00.000000+00:00,"{""x"":[1,2]}",1,1,1.5'
    )


@pytest.fixture(autouse=True)
def _no_file_is_left_open() -> Iterator[None]:
    """The pieces close what they opened."""
    before = {each.name for each in Path("/dev/fd").iterdir()}
    yield
    left = {each.name for each in Path("/dev/fd").iterdir()} - before
    assert not [name for name in left if Path("/dev/fd", name).exists()]
