"""Wrong usages, each with its one line: what, which, what to do, the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from logagg.cli.main import main

TOML = '[programs.web]\ncommand = "sleep 1"\n'

WRONG = [
    # commands
    ("list", "no command 'list'; did you mean 'ps'?"),
    ("ls", "no command 'ls'; did you mean 'ps'?"),
    ("log web", "no command 'log'; did you mean 'logs'?"),
    ("start web", "no command 'start'; did you mean 'up'?"),
    ("kill web", "no command 'kill'; did you mean 'stop'?"),
    ("monit", "no command 'monit'; did you mean 'top'?"),
    ("validate", "no command 'validate'; did you mean 'check'?"),
    ("statuss", "no command 'statuss'; did you mean 'status'?"),
    ("frobnicate", "no command 'frobnicate'; see logagg --help"),
    ("spool lss", "no command 'lss' of spool; did you mean 'ls'?"),
    # options
    ("--vers", "no option '--vers'; did you mean '--version'?"),
    ("tail --levl info", "no option '--levl' of tail; did you mean '--level'?"),
    ("run --worker 2 app.py", "no option '--worker' of run; did you mean '--workers'?"),
    ("ps -x", "no option '-x' of ps; see logagg ps --help"),
    ("tail -n", "-n needs a value"),
    ("up --sink", "--sink needs a value"),
    # arguments
    ("run", "run: PROGRAM is missing; see logagg run --help"),
    ("restart", "restart: NAME... is missing; see logagg restart --help"),
    ("scale", "scale: WORKERS | NAME=N... is missing; see logagg scale --help"),
    ("status extra", "status takes no more arguments, but has 'extra'; see logagg status"),
    ("scale x", "scale 'x': expected a number of workers, 0 or more, or NAME=N"),
    ("scale web=", "scale 'web=': expected a number of workers, 0 or more, or NAME=N"),
    ("scale =2", "scale '=2': expected NAME=N, as in web=4"),
    ("stop web", "no run is running (of this user)"),
    # values
    ("run -w -1 app.py", "--workers '-1': expected a number or max"),
    ("run --max-rss 5XB app.py", "--max-rss '5XB': expected a size such as 50MB"),
    ("run --policy any app.py", "--policy 'any': expected kernel, reuseport or rr"),
    ("run -b 80x app.py", "--bind '80x': expected HOST:PORT, :PORT"),
    ("run -m nosuchmodule", "no module named 'nosuchmodule'"),
    ("run nosuch.py", "no such script: 'nosuch.py'"),
    ("up -m web", "--formation 'web': expected NAME=N, as in web=4,jobs=2"),
    ("top --interval 1ms", "--interval '1ms': expected at least 100ms"),
    ("help sinkz", "no topic 'sinkz'; did you mean 'sinks'?"),
    # sinks
    ("serve --sink lokki+http://h", "unknown sink 'lokki+http'; did you mean 'loki+http'?"),
    ("serve --sink ttps://h", "unknown sink 'ttps'; did you mean 'https'?"),
    ("serve --sink file:", "--sink: expected SCHEME:TARGET, for example file:app.log"),
    ("serve --sink file:x?max_byte=5", "unknown option 'max_byte'; did you mean 'max_bytes'?"),
    # conditions
    ("tail nosuch.log", "'nosuch.log' is neither a file, nor a program that runs, nor a"),
    ("tail a&b", "did you forget quotes? to find text: -g 'a&b'"),
    ("tail status>=", "filter 'status>=': nothing stands after '>='"),
    ("tail -g (", "--grep '(': pattern '(' is not a regular expression"),
    ("tail -S yesterdy", "--since 'yesterdy': expected a date-time"),
    # programs
    ("up -f nofile", "nofile: No such file or directory"),
    ("up wob", "no program 'wob'; did you mean 'web'?"),
    ("up -m wob=2", "-m wob=2: no program 'wob'; did you mean 'web'?"),
    ("up -m web=0", "formation: every program has 0 workers; nothing would run"),
    ("up -f key.toml", "key.toml:2: [programs.web]: unknown option 'comand'"),
    ("up -f none.toml", "none.toml: no table [programs.NAME] in it"),
    ("up -f empty.toml", 'empty.toml:1: [programs.web] needs command = "…"'),
    ("up -f value.toml", "value.toml:3: [programs.web] workers = 'many': expected a"),
    ("up -f after.toml", "program web: after: no program 'wep'; did you mean 'web'?"),
    ("up -f quote.toml", "\"sleep '1\": no closing quotation"),
    ("up -f Badfile", "Badfile:1: 'web sleep 1': expected NAME: COMMAND"),
    ("up -f Twice", "Twice:2: program 'web' stands twice"),
    ("up -f Absent", "Absent:1: no such script or command: 'nosuchcommand'"),
    ("up -f Named", "Named:1: program '1web': a name is a letter, then"),
]  # fmt: skip

FILES = {
    "app.py": "",
    "logagg.toml": TOML,
    "key.toml": TOML.replace("command", "comand"),
    "none.toml": "",
    "empty.toml": "[programs.web]\n",
    "value.toml": TOML + "workers = 'many'\n",
    "after.toml": TOML + "after = ['wep']\n",
    "quote.toml": TOML.replace("sleep 1", "sleep '1"),
    "Badfile": "web sleep 1\n",
    "Twice": "web: sleep 1\nweb: sleep 2\n",
    "Absent": "web: nosuchcommand\n",
    "Named": "1web: sleep 1\n",
}


@pytest.mark.parametrize(("words", "line"), WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_usage_is_one_line(
    words: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr; the exit status is not 0, and nothing is shown besides."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    done = CliRunner().invoke(main, words.split(), prog_name="logagg")

    assert done.exit_code in (2, 3), done.output
    assert done.stdout == ""
    shown = done.stderr.rstrip("\n")
    assert "\n" not in shown
    assert shown.startswith("logagg: ")
    assert line in shown


def test_a_condition_without_quotes_is_recognized(tmp_path: Path) -> None:
    """The shell takes `>500` for a file; the question is about the word before it."""
    command = f"{sys.executable} -m logagg tail status>=500"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=90,
    )  # fmt: skip
    assert "did you forget quotes around 'status>…'?" in done.stderr


def test_a_group_without_a_command_shows_its_help() -> None:
    """Once, and not as an error of it."""
    done = CliRunner().invoke(main, ["spool"], prog_name="logagg")
    assert done.output.count("Usage:") == 1
