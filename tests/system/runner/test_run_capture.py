"""What workers write on stderr is told apart: tracebacks whole, last words with a death."""

from __future__ import annotations

from typing import Any


def test_a_traceback_on_stderr_is_one_record(run: Any) -> None:
    """A thread's uncaught exception, printed by Python, comes as one structured record."""
    run.write(
        "app.py",
        "import sys, threading\n"
        "def fail():\n"
        "    try:\n"
        "        {}['first']\n"
        "    except KeyError as error:\n"
        "        raise ValueError('second') from error\n"
        "print('before', file=sys.stderr)\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "print('after', file=sys.stderr)\n",
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    found = run.records(stream="stderr")
    assert found[0]["message"] == "before"
    assert found[-1]["message"] == "after"
    (told,) = [r for r in found if "exception" in r]
    assert told["message"] == "ValueError: second"
    assert told["level"] == "error"
    assert told["exception"]["type"] == "ValueError"
    assert "KeyError: 'first'" in told["exception"]["stack"]
    assert "direct cause" in told["exception"]["stack"]


def test_a_traceback_that_nothing_follows_comes_all_the_same(run: Any) -> None:
    """Its last lines are held only for a moment while the worker goes on."""
    run.write(
        "app.py",
        "import sys, time, traceback\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    traceback.print_exc()\n"
        "time.sleep(60)\n",
    )

    run.start("-w", 1, "app.py")

    told = run.until_record(stream="stderr")
    assert told["message"] == "ZeroDivisionError: division by zero"


def test_a_death_is_told_with_the_last_lines(run: Any) -> None:
    """The record of a killed worker holds what it wrote last."""
    run.write(
        "app.py",
        "import os, signal\n"
        "for n in range(9):\n"
        "    print('line', n)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
    )

    run.start("-w", 1, "--restart", "never", "app.py").wait(25)

    (death,) = run.records(event="worker_exit")
    assert death["last_lines"] == [f"line {n}" for n in range(4, 9)]
