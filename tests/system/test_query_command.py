"""`logagg query` as a command: arguments, outputs, saved queries, mistakes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import orjson
import pytest
from support import wait_until

pytestmark = pytest.mark.slow  # each starts programs

RUN = "from logagg.cli.main import main; main()"
RECORDS = [
    {
        "timestamp": f"2026-11-20T09:15:{n:02}.000000000Z",
        "level": "info" if n % 2 else "error",
        "worker": "1",
        "seq": n,
        "logger": "app",
        "message": f"message {n}",
        "ms": n * 10,
    }
    for n in range(6)
]
SAVED = """
[queries]
slow = "select seq from logs where ms >= $ms order by seq"

[query]
csv = true
"""


def command(*arguments: object, code: str = RUN) -> list[str]:
    """The command line."""
    return [sys.executable, "-c", code, "query", *map(str, arguments)]


def query(
    folder: Path,
    *arguments: object,
    status: int = 0,
    stdin: bytes = b"",
    code: str = RUN,
) -> tuple[str, str]:
    """What it prints on standard output and standard error."""
    done = subprocess.run(
        command(*arguments, code=code),
        cwd=folder,
        input=stdin,
        capture_output=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "TZ": "UTC"},
        check=False,
    )
    assert done.returncode == status, done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert not list((folder / "tmp").iterdir())  # nothing is left there
    return done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with `app.log`."""
    (tmp_path / "tmp").mkdir()
    lines = b"".join(orjson.dumps(each) + b"\n" for each in RECORDS)
    (tmp_path / "app.log").write_bytes(lines)
    return tmp_path


@pytest.mark.slow
def test_a_table_and_its_forms(folder: Path) -> None:
    """Plain in a pipe, nothing cut; JSON, CSV and Parquet have the same rows."""
    sql = "select seq, message, ms / 4 as quarter from logs where ms > 30 order by seq"
    table, _ = query(folder, sql, "app.log")
    assert [each.split() for each in table.splitlines()] == [
        ["seq", "message", "quarter"],
        ["4", "message", "4", "10.0"],
        ["5", "message", "5", "12.5"],
    ]
    rows = [
        {"seq": 4, "message": "message 4", "quarter": 10.0},
        {"seq": 5, "message": "message 5", "quarter": 12.5},
    ]
    text, _ = query(folder, sql, "app.log", "--json")
    assert [json.loads(each) for each in text.splitlines()] == rows
    text, _ = query(folder, sql, "app.log", "--csv")
    assert list(csv.DictReader(io.StringIO(text))) == [
        {name: str(value) for name, value in row.items()} for row in rows
    ]
    text, notes = query(folder, sql, "app.log", "--parquet", "out.parquet")
    assert (text, notes) == ("", "-- out.parquet: 2 rows\n")
    with duckdb.connect() as connection:
        path = folder / "out.parquet"
        found = connection.execute("from read_parquet($path)", {"path": str(path)})
        assert found.fetchall() == [tuple(row.values()) for row in rows]


@pytest.mark.slow
def test_a_long_table_is_cut_with_a_note(folder: Path) -> None:
    """Other forms are whole."""
    text, notes = query(folder, "select seq from logs", "app.log", "--rows", 2)
    assert text.split() == ["seq", "0", "1"]
    assert notes == "-- 2 of 6 rows; --rows N shows more\n"
    text, notes = query(folder, "select seq from logs", "app.log", "--rows", 2, "--csv")
    assert (len(text.splitlines()), notes) == (7, "")


def test_no_rows_are_a_status(folder: Path) -> None:
    """As with `tail` and `stats`; a range that holds nothing, too."""
    query(folder, "select 1 from logs where seq > 9", "app.log", status=1)
    query(folder, "select 1 from logs", "app.log", "-S", "2026-11-21", status=1)


def test_standard_input_and_several_files(folder: Path) -> None:
    """The log of another program, by a pipe."""
    sql = "select message from logs where level = 'error'"
    text, _ = query(folder, sql, "-", "--csv", stdin=b"level=error msg=piped\n")
    assert text == "message\npiped\n"
    (folder / "b.log").write_bytes((folder / "app.log").read_bytes())
    sql = "select count(*) from logs"
    text, _ = query(folder, sql, "app.log", "--file", "b.log", "--csv")
    assert text.split() == ["count_star()", "12"]


@pytest.mark.slow
def test_saved_queries_and_options_of_the_file(folder: Path) -> None:
    """By name, with parameters; `[query]` has the options."""
    (folder / "logagg.toml").write_text(SAVED)
    assert query(folder, "slow", "app.log", "-p", "ms=40")[0] == "seq\n4\n5\n"
    _, text = query(folder, "slwo", "app.log", status=2)
    assert text == "logagg: 'slwo' is neither SQL nor a saved query (known: slow)\n"
    _, text = query(folder, "slow", "app.log", status=2)
    assert "parameters: ms" in text


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("[queries]\nslow = 5\n", "[queries] slow = 5: expected the SQL as text"),
        ('queries = "x"\n', "expected a table [queries]"),
        ('[queries]\n"a b" = "select 1"\n', "expected letters, digits, _ and -"),
    ],
)
def test_saved_queries_are_checked(folder: Path, table: str, expected: str) -> None:
    """By `logagg check`, too."""
    (folder / "logagg.toml").write_text(table)
    assert expected in query(folder, "slow", "app.log", status=2)[1]
    checked = subprocess.run(
        [sys.executable, "-c", RUN, "check"],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 2
    assert expected in checked.stdout.decode()


def test_the_schema(folder: Path) -> None:
    """A row for each column."""
    text, _ = query(folder, ".schema", "app.log", "--csv")
    assert "timestamp,TIMESTAMP WITH TIME ZONE" in text.splitlines()
    assert "ms,BIGINT" in text.splitlines()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["select 1 from logs", "none.log"], "none.log: there is no such file"),
        (["select 1 from logs", "tmp"], "tmp: cannot be read: Is a directory"),
        (["select 1 from logs", "app.log", "-p", "x"], "'x': expected NAME=VALUE"),
        (["select x from logs", "app.log"], 'SQL: Binder Error: Referenced column "x"'),
        (["select 1 from logs", "app.log", "--json", "--csv"], "contradict each other"),
        (["select 1 from logs", "app.log", "--memory", "1MB"], "at least 64MiB"),
        (
            ["select 1 from logs", "app.log", "--parquet", "no/x.parquet"],
            "no/x.parquet: cannot be written: No such file or directory",
        ),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, arguments: list[str], expected: str
) -> None:
    """What, which, and status 2."""
    text, error = query(folder, *arguments, status=2)
    assert not text
    assert expected in error
    assert len(error.splitlines()) == 1


def test_without_duckdb(folder: Path) -> None:
    """The error names what to install."""
    code = f"import sys; sys.modules['duckdb'] = None; {RUN}"
    _, error = query(folder, "select 1 from logs", "app.log", status=2, code=code)
    assert error == (
        "logagg: SQL needs DuckDB 2.0 or later: pip install 'logagg-service[query]'\n"
    )


def test_text_of_a_log_does_nothing_to_a_terminal(folder: Path) -> None:
    """Control characters are shown as escapes, each row stays a row."""
    text = (folder / "app.log").read_text().replace("message 0", "a\\u001b[2Jb\\nc")
    (folder / "app.log").write_text(text)
    shown, _ = query(folder, "select message from logs where seq = 0", "app.log")
    assert shown.splitlines()[1] == "a\\x1b[2Jb\\nc"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(folder: Path, number: int) -> None:
    """In the middle of a query that would take hours."""
    sql = "select count(*) from range(100000000000) a, logs where a.range % 7 = seq"
    tmp = folder / "tmp"
    process = subprocess.Popen(
        command(sql, "app.log"),
        cwd=folder,
        env={**os.environ, "TMPDIR": str(tmp)},
        stderr=subprocess.PIPE,
        process_group=0,
    )
    try:
        wait_until(lambda: list(tmp.glob("logagg-query-*/memory")), timeout=60)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, error) == (130, b"")
    assert not list(tmp.iterdir())
