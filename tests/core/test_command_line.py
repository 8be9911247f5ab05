"""The command line itself: help, tables, exit statuses."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from logagg.cli import help as manual
from logagg.cli.main import main
from logagg.cli.status import run_parts, show
from logagg.errors import ExitStatus

PAGES = {
    "run": "# Running programs\n\nWorkers *restart*.\n\n| a | b |\n|---|---|\n| c | d |\n",
    "sinks": "# Sinks\n\n`fsync` is a promise.\nAn fsync takes time.\n",
}


def call(*words: str) -> Result:
    """Run `logagg` with these words."""
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manual of two pages."""
    monkeypatch.setattr(manual, "topics", lambda: PAGES)


# ---- help -----------------------------------------------------------------------------


@pytest.mark.usefixtures("pages")
def test_a_topic_is_shown_as_it_is_when_no_terminal_reads_it() -> None:
    """Raw text for `grep` and `less`; the beginning of a name is enough."""
    assert call("help", "run").output == PAGES["run"]
    assert call("help", "si").output == PAGES["sinks"]


@pytest.mark.usefixtures("pages")
def test_the_topics_are_listed_with_their_titles() -> None:
    """By `--list`, and where no topic is named and there is no index."""
    expected = "run    Running programs\nsinks  Sinks\n"
    assert call("help", "--list").output == expected
    assert call("help").output == expected


@pytest.mark.usefixtures("pages")
def test_search_names_topic_and_line() -> None:
    """In any case of letters; nothing found is status 1."""
    assert call("help", "--search", "FSYNC").output == (
        "sinks:3: `fsync` is a promise.\nsinks:4: An fsync takes time.\n"
    )
    assert call("help", "--search", "zzz").exit_code == ExitStatus.FAILED


@pytest.mark.usefixtures("pages")
def test_an_unknown_topic_names_the_nearest() -> None:
    """One line, status 2."""
    result = call("help", "snks")
    assert result.exit_code == ExitStatus.USAGE
    assert result.output == (
        "logagg: no topic 'snks'; did you mean 'sinks'? (topics: run, sinks)\n"
    )


def test_on_a_terminal_a_topic_is_rendered_and_paged() -> None:
    """Through $PAGER, without the marks of Markdown."""
    code = (
        "import sys; from logagg.cli import help as manual\n"
        f"manual.topics = lambda: {PAGES!r}\n"
        "from logagg.cli.main import main; main(['help', 'run'])"
    )
    command = ["script", "-qec", f'{sys.executable} -c "{code}"', "/dev/null"]
    environment = {**os.environ, "PAGER": "sed s/^/paged:/", "COLUMNS": "80"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    )
    assert "Running programs" in done.stdout
    assert "# Running" not in done.stdout
    assert "paged:" in done.stdout
    assert "---" not in done.stdout  # of a table

    environment["PAGER"] = "there-is-no-such-pager"
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    )
    assert "Running programs" in done.stdout


def test_samples_are_copied_and_nothing_is_replaced(tmp_path: Path) -> None:
    """With their folders; a file that is there stops it."""
    target = tmp_path / "samples"
    assert call("help", "--samples", str(target)).exit_code == 0
    assert (target / "hello.py").read_text().startswith('"""')
    assert (target / "cluster" / "messages.py").exists()
    assert not list(target.rglob("__pycache__"))
    again = call("help", "--samples", str(target))
    assert again.exit_code == ExitStatus.USAGE
    assert "is there already" in again.output


# ---- tables ---------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


RUN = {
    "pid": 7, "program": "app.py", "uptime": 3700.0, "reloads": 1, "listeners": [],
    "tasks": {"queued": 0},
    "consumer": {"pid": 8, "restarts": 0, "sinks": ["file:/" + "x" * 90]},
    "slots": [
        {"slot": 1, "state": "ready", "pid": 10, "uptime": 61.0, "restarts": 0,
         "rss_bytes": 40 << 20, "last_exit": "状态 1, " + "the worker failed " * 5},
        {"slot": 2, "state": "waiting", "starts_in": 1.5, "restarts": 12,
         "last_exit": None},
    ],
}  # fmt: skip


def test_a_table_is_plain_and_whole_where_no_terminal_reads_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line per row, aligned, nothing cut, no colors."""
    show(*run_parts(RUN))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run 7: app.py  up 1h 1m, 1 reloads"
    assert lines[1].split() == (
        [
            "SLOT",
            "PID",
            "STATE",
            "UP",
            "RESTARTS",
            "RSS",
            "CONNS",
            "TASKS",
            "LAST",
            "EXIT",
        ]
    )
    assert lines[2].endswith(
        "状态 1, " + "the worker failed " * 4 + "the worker failed"
    )
    assert "waiting 1.5 s" in lines[3]
    assert lines[4].endswith("x" * 90)
    assert "\x1b" not in "".join(lines)


def test_a_table_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last column is folded; a wide character counts as two columns."""
    from rich.cells import cell_len

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    show(*(part for part in run_parts(RUN) if not isinstance(part, str)))
    text = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "".join(text.split()).count("theworkerfailed") >= 4
    assert "\x1b[1m" in terminal.getvalue()


# ---- exit statuses --------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_at_the_end_is_not_a_missing_consumer(tmp_path: Path) -> None:
    """Both have a status of their own: 5 and 3."""
    program = tmp_path / "app.py"
    program.write_text("import logging; logging.warning('lost')")
    code = (
        "from logagg.supervisor.process.consumer_process import ConsumerProcess as C\n"
        "whole = C.close\n"
        "async def close(self, timeout):\n"
        "    await whole(self, timeout)\n"
        "    return False  # the consumer could not write everything\n"
        "C.close = close\n"
        "import sys; from logagg.cli.main import main; main(sys.argv[1:])\n"
    )
    run = [sys.executable, "-c", code, "run", "-w", "1", "--sink", "file:a.log"]
    done = subprocess.run([*run, str(program)], cwd=tmp_path, check=False)
    assert done.returncode == ExitStatus.UNWRITTEN
    status = [
        sys.executable,
        "-m",
        "logagg",
        "status",
        "--socket",
        str(tmp_path / "no"),
    ]
    done = subprocess.run(status, capture_output=True, check=False)
    assert done.returncode == ExitStatus.NO_CONSUMER


def test_an_error_is_one_line_for_every_command(tmp_path: Path) -> None:
    """The status is that of its class, and no traceback is shown."""
    for words in (["scale", "x", "--pid", "1"], ["send"],
                  ["tail", "--socket", "x", "nonsense"], ["spool", "drop"]):  # fmt: skip
        result = call(*words)
        assert result.exit_code == ExitStatus.USAGE, (words, result.output)
        assert result.output.startswith("logagg: ")
        assert result.output.count("\n") == 1
