"""What commands print cannot act on a terminal, whoever wrote it."""

from __future__ import annotations

import os
import pty
import re
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

import logagg.cli
from logagg.cli.command import say, say_json
from logagg.errors import ConfigError
from logagg.view.sources import Cursor
from logagg.view.terminal import Terminal

HOSTILE = "a\x1b]0;x\x07b\x9b31mc\u202ed\ud800e"
CLI = Path(logagg.cli.__file__).parent


def shown(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> bytes:
    """What a function prints on a terminal."""
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as out:
        monkeypatch.setattr("sys.stdout", out)
        do()
        out.flush()
        found = os.read(master, 65536)
    os.close(master)
    return found


@pytest.mark.parametrize("way", ["text", "json", "viewer"])
def test_nothing_printed_acts_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Control characters of both kinds and those that reorder text are escapes."""
    value = HOSTILE[:-2]  # JSON has no lone surrogates

    def do() -> None:
        if way == "text":
            say(HOSTILE)
        elif way == "json":
            say_json({"k": value})
        else:
            with Terminal("never", quiet=True) as terminal:
                terminal.write(terminal.json(orjson.dumps({"k": value})))

    found = shown(monkeypatch, do)

    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", found.decode())
    if way != "text":
        assert orjson.loads(found) == {"k": value}


def test_commands_print_by_these_functions_only() -> None:
    """Else each would have to think of it."""
    allowed = {"command.py": 2, "help.py": 2, "main.py": 1, "status.py": 1}
    allowed["query_command.py"] = 1  # a table's lines, with its colours
    for path in CLI.rglob("*.py"):
        text = path.read_text().replace("console.print(", "")
        calls = re.findall(
            r"click\.(?:echo|secho)\w*\(|(?<!\w)print\(|stdout\.write", text
        )
        assert len(calls) <= allowed.get(path.name, 0), (path.name, calls)


@pytest.mark.parametrize(
    "line",
    [
        b'"worker":"1","seq":' + b"9" * 5000 + b",",
        b'"worker":"\xff\xfe","seq":2,',
    ],
)
def test_a_line_that_no_worker_wrote_is_no_reason_to_end(line: bytes) -> None:
    """A cursor cannot stand there, or it can; it raises nothing."""
    line = b'{"timestamp":"2026-11-25T00:59:11.860666570Z","level":"info",' + line
    found = Cursor.of_line(line)
    assert found is None or found.seq == 2
    with pytest.raises(ConfigError):
        Cursor.parse("2026-11-25T00:59:11.860666570Z,1," + "9" * 5000)


def test_a_cursor_file_is_made_and_not_found(tmp_path: Path) -> None:
    """A link with a name that could be guessed leads nowhere."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f"cursor.{os.getpid()}.new").symlink_to(victim)

    Cursor("2026-11-25T00:59:11.860666570Z", "1", 7).save(str(tmp_path / "cursor"))

    assert victim.read_text() == "mine"
    assert Cursor.load(str(tmp_path / "cursor")).seq == 7  # type: ignore[union-attr]
