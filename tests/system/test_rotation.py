"""Somebody else rotates the log while workers write: logrotate, mv, rm, truncation."""

import collections
import os
import shutil
import signal
import subprocess

import pytest
import support
from harness import Fleet
from support import (
    events,
    have,
    lines,
    log_files,
    python,
    records,
    settled,
    wait_until,
)

SINKS = """\
import logging, sys
import logagg
sinks = [f"file:{sys.argv[1]}", "stdout:?format=text"]
logging.basicConfig(handlers=[logagg.Handler(sinks=sinks)], level="INFO")
def fail():
    try:
        raise KeyError("cause")
    except KeyError as error:
        problem = ValueError("effect")
        problem.add_note("a note")
        raise problem from error
try:
    fail()
except ValueError:
    logging.exception("it failed")
try:
    raise ExceptionGroup("many", [OSError("one"), TypeError("two")])
except ExceptionGroup:
    logging.exception("they failed")
"""


@pytest.mark.slow
def test_a_traceback_is_structured_in_the_file_and_printed_once_as_text(tmp_path):
    """JSON has type, message, stack, cause, note and members; text has it once."""
    path = tmp_path / "app.log"

    done = python(SINKS, path)
    settled()

    one, two = records(path)
    assert one["message"] == "it failed"
    assert one["exception"]["type"] == "ValueError"
    assert one["exception"]["message"] == "effect"
    assert one["exception"]["notes"] == ["a note"]
    assert one["exception"]["cause"]["type"] == "KeyError"
    assert [each["type"] for each in two["exception"]["exceptions"]] == [
        "OSError",
        "TypeError",
    ]
    text = done.stdout
    assert text.count("KeyError: 'cause'") == 1
    assert text.count("ValueError: effect") == 1
    assert text.count("a note") == 1
    assert text.count("it failed") == text.count("they failed") == 1
    assert text.count("ExceptionGroup: many") == 1


def judged(fleet, folder):
    """All that was logged stands once in the files of a folder, in order by worker."""
    settled(90)
    files = sorted(log_files(folder), key=lambda each: each.stat().st_mtime_ns)
    return fleet.judge([each for each in files if each.is_file()])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("logrotate") is None, reason="needs logrotate")
@pytest.mark.parametrize(
    "options",
    [
        "create\npostrotate\nkill -HUP $(cat {pid})\nendscript",
        "create",
        "create\nolddir {old}",
    ],
)
def test_logrotate_loses_nothing(tmp_path, options):
    """With a signal, without one, into another directory: each record once."""
    logs, old = tmp_path / "logs", tmp_path / "logs" / "old"
    old.mkdir(parents=True)
    os.chmod(logs, 0o755)
    path, pid_file = logs / "app.log", tmp_path / "pid"
    text = options.format(pid=pid_file, old=old)
    (tmp_path / "conf").write_text(f"{path} {{\nrotate 100\nmissingok\n{text}\n}}\n")
    rotate = ["logrotate", "-f", "-s", str(tmp_path / "state"), str(tmp_path / "conf")]
    with Fleet(path, workers=2, count=10**9, rate=2000) as fleet:
        for _ in range(5):
            wait_until(have(path, 300))
            pid_file.write_text(str(support.consumer()))
            subprocess.run(rotate, check=True)
        wait_until(have(path, 300))
        fleet.stop()
        fleet.join()
    settled(90)

    files = [*old.iterdir(), *(each for each in logs.iterdir() if each.is_file())]
    assert len(files) == 6
    fleet.judge(files).require(ordered=False, longest=1.0)


@pytest.mark.slow
def test_a_hundred_moves_lose_nothing(tmp_path):
    """`mv` and the reopen signal a hundred times under load: each record once."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=2, count=10**9, rate=3000) as fleet:
        for n in range(100):
            wait_until(lambda: path.exists() and path.stat().st_size > 2000)
            os.rename(path, tmp_path / f"old{n:03}.log")
            os.kill(support.consumer(), signal.SIGHUP)
        fleet.stop()
        fleet.join()
    settled(90)

    old = sorted(tmp_path.glob("old*.log"))
    fleet.judge([*old, path]).require(longest=1.0)


@pytest.mark.slow
def test_a_truncated_file_gets_no_hole(tmp_path):
    """copytruncate: what follows begins at the new end; no NULs, whole lines."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=2, count=10**9, rate=1000) as fleet:
        for n in range(3):
            wait_until(have(path, 200))
            shutil.copy(path, tmp_path / f"copy{n}.log")
            os.truncate(path, 0)
        wait_until(have(path, 100))
        fleet.stop()
        fleet.join()
    settled()

    assert b"\0" not in path.read_bytes()
    found = collections.Counter((each["w"], each["n"]) for each in records(path))
    assert set(found.values()) == {1}
    assert not events("damaged", path)
    assert lines(path)


@pytest.mark.slow
def test_a_deleted_file_comes_back(tmp_path):
    """`rm app.log` under load: a new file appears within two seconds."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=1, count=10**9, rate=1000) as fleet:
        wait_until(have(path, 200))
        os.unlink(path)
        wait_until(have(path, 100), 3, "a new file")
        fleet.stop()
        fleet.join()
    settled()

    numbers = [each["n"] for each in records(path)]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[-1] == fleet.returned - 1


TWO = """\
import logging, sys
import logagg
first = logagg.Handler(sys.argv[1], maxBytes=1_000_000, backupCount=3)
second = logagg.Handler(sys.argv[1], when="midnight")
logging.basicConfig(handlers=[first, second], level="INFO")
for n in range(3):
    logging.info("m")
"""


@pytest.mark.slow
def test_two_handlers_with_different_rotation_on_one_file_are_reported(tmp_path):
    """In one line on stderr and one record; each record is in the file once."""
    path = tmp_path / "app.log"
    (line,) = python(TWO, path).stderr.splitlines()
    assert "when=midnight is not used" in line
    settled()
    assert [each["message"] for each in records(path)] == ["m"] * 3
    assert [each["level"] for each in events("sink_options", path)] == ["warning"]
