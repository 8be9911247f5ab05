"""No command shows text that hides or reorders: records, names, errors, arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import PREAMBLE, finish, have, wait_until

LOGAGG = (sys.executable, "-m", "logagg")
HIDDEN = "pay\u200bpal \u202egpj.exe \u2066x\u2069\u200e \ufeffy\u00ad \U000e0041\ufe0f \x1b[2J\x9b"
BAD = "\u200b\u202e\u2066\u2069\u200e\ufeff\u00ad\U000e0041\ufe0f\x1b\x9b"
EMOJI = "👩🏽\u200d💻"
PROGRAM = PREAMBLE + (
    "import multiprocessing\n"
    f"hidden = {HIDDEN!r}\n"
    "multiprocessing.current_process().name = hidden\n"
    f"logging.getLogger(hidden).error(hidden + {EMOJI!r}, extra={{hidden: hidden}})\n"
    "print(hidden, flush=True)\n"
    "signal.pause()\n"
)


def is_clean(text: str) -> bool:
    """Whether nothing in it acts on a terminal."""
    return not set(BAD) & set(text)


@pytest.mark.slow
def test_no_command_shows_hidden_text(tmp_path: Path) -> None:
    """`run`, `status`, `top`, `tail` and `stats`, of records and of a process's name."""
    program, log = tmp_path / "app.py", tmp_path / "app.log"
    program.write_text(PROGRAM)
    command = [*LOGAGG, "run", program, "--workers", "1", "--sink", f"file:{log}"]
    command += ["--sink", "stdout:?format=console"]
    shown: dict[str, str] = {}
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, text=True,
        cwd=tmp_path,
    ) as run:  # fmt: skip
        try:
            wait_until(have(log, 2))
            for arguments in (
                "status",
                "top --once",
                f"tail --no-follow {log}",
                f"stats {log}",
            ):
                done = finish([*LOGAGG, *arguments.split()])
                shown[arguments] = done.stdout + done.stderr
        finally:
            run.terminate()
            shown["run"] = run.communicate(timeout=90)[0]

    assert {name: text for name, text in shown.items() if not is_clean(text)} == {}
    assert "pay\\u200bpal \\u202egpj.exe" in shown["run"]
    assert EMOJI in shown["run"]
    assert "pay\\u200bpal" in shown["status"]
    assert "pay\\u200bpal" in shown["top --once"]
    assert "pay\\u200bpal" in shown[f"tail --no-follow {log}"]
    assert "pay\\u200bpal" in shown[f"stats {log}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "a", HIDDEN),
        ("tail", HIDDEN),
        ("stats", "-g", "(" + HIDDEN),
        ("run", HIDDEN),
        ("check", "--config", HIDDEN),
        ("serve", "--once", "--sink", "file:/nowhere/" + HIDDEN),
        (HIDDEN,),
    ],
    ids=lambda given: given[0][:6],
)
def test_an_error_that_quotes_an_argument_is_escaped(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """A script may have passed a file's name on."""
    done = subprocess.run(
        [*LOGAGG, *arguments], check=False, capture_output=True, text=True, timeout=90,
        cwd=tmp_path, stdin=subprocess.DEVNULL,
    )  # fmt: skip

    assert done.returncode != 0
    assert "pay" in done.stdout + done.stderr
    assert is_clean(done.stdout + done.stderr)
