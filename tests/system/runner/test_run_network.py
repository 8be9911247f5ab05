"""`logagg run` with a network sink: what is shown of it, in status, at the end, to ps."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
    import logging, os, time
    for n in range(20):
        logging.warning("r", extra={"n": n})
    while not os.path.exists("go"):
        time.sleep(0.05)
    """


def test_nothing_of_a_password_is_in_a_command_line_or_in_status(
    run: Any, tools: Any
) -> None:
    """Not in that of a consumer that was started again, which opens the sinks itself."""
    url = "http://joe:pass-q7z7-word@127.0.0.1:1/in?grace=0.1s"
    run.write("logagg.toml", f'[run]\nsinks = ["file:{run.log}", "{url}"]\n')
    run.write("app.py", PROGRAM)
    run.start("-w", 2, "app.py", sink=False)
    tools.until(lambda: len(run.records(message="r")) == 40)

    def consumer() -> int:
        return run.status().get("consumer", {}).get("pid", 0)

    pid = tools.until(consumer)
    os.kill(pid, signal.SIGKILL)
    tools.until(lambda: len(run.messages(event="consumer_restart")) >= 1)
    again = tools.until(consumer)
    assert again != pid
    assert b"127.0.0.1" not in Path(f"/proc/{again}/cmdline").read_bytes()
    tools.until(lambda: "127.0.0.1:1/in" in run.command("status").stdout)
    for words in (("status",), ("status", "--json")):
        assert "q7z7" not in run.command(*words).stdout

    Path(run.directory, "go").touch()
    assert run.process is not None
    run.wait()
    assert "q7z7" not in run.log.read_text()


def test_the_end_names_what_is_not_delivered(run: Any, tools: Any) -> None:
    """With a target that is down, status has the state, stderr and the spool the count."""
    run.write("app.py", PROGRAM)
    sink = "http://127.0.0.1:1/in?grace=0.1s&batch_age=0.1s"
    run.start("-w", 1, "--sink", sink, "app.py")
    tools.until(lambda: "retrying, " in run.command("status").stdout)
    tools.until(lambda: run.messages(event="sink_error"))
    Path(run.directory, "go").touch()
    assert run.process is not None
    error = run.process.stderr.read()
    run.wait()

    (line,) = [each for each in error.splitlines() if "not delivered" in each]
    assert "wait in its spool (logagg spool ls): cannot connect" in line
    waiting = int(line.partition(" records")[0].rpartition(" ")[2])
    assert waiting >= 20
    assert f"{waiting} records" in run.command("spool", "ls").stdout
