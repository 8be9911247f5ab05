"""What workers write on stderr is distinguished: tracebacks whole, the last lines with a death."""

from __future__ import annotations

from typing import Any

import pytest


def test_a_traceback_on_stderr_is_one_record(run: Any) -> None:
    """An exception that a program prints comes as one structured record."""
    run.write(
        "app.py",
        "import sys, traceback\n"
        "def fail():\n"
        "    try:\n"
        "        {}['first']\n"
        "    except KeyError as error:\n"
        "        raise ValueError('second') from error\n"
        "print('before', file=sys.stderr)\n"
        "try:\n"
        "    fail()\n"
        "except ValueError:\n"
        "    traceback.print_exc()\n"
        "print('after', file=sys.stderr)\n",
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    found = run.records(stream="stderr")
    assert found[0]["message"] == "before"
    assert found[-1]["message"] == "after"
    (reported,) = [r for r in found if "exception" in r]
    assert reported["message"] == "ValueError: second"
    assert reported["level"] == "error"
    assert reported["exception"]["type"] == "ValueError"
    assert "KeyError: 'first'" in reported["exception"]["stack"]
    assert "direct cause" in reported["exception"]["stack"]


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

    reported = run.until_record(stream="stderr")
    assert reported["message"] == "ZeroDivisionError: division by zero"


PRINTED = """
    import sys, traceback
    error = ValueError("first line\\nsecond line")
    error.add_note("a note")
    group = ExceptionGroup("several", [error, KeyError("k")])
    ways = [
        lambda: traceback.print_exc(file=sys.stdout),
        lambda: traceback.print_exception(sys.exception(), file=sys.stdout),
        lambda: print(traceback.format_exc(), end=""),
        lambda: sys.stdout.write(traceback.format_exc()),
    ]
    for way in ways:
        for each in (error, group):
            try:
                raise each
            except Exception:
                way()
            print("after")
"""


@pytest.mark.slow
def test_an_exception_that_a_program_prints_is_one_record(run: Any) -> None:
    """With all lines of its message and its notes, in its place among other lines."""
    run.write("app.py", PRINTED)

    assert run.start("-w", 1, "app.py").wait(60) == 0

    found = run.records(stream="stdout")
    assert [(each["level"], each["message"]) for each in found] == 4 * [
        ("error", "ValueError: first line"),
        ("info", "after"),
        ("error", "ExceptionGroup: several (2 sub-exceptions)"),
        ("info", "after"),
    ]
    exceptions = [each["exception"] for each in found if "exception" in each]
    for error, group in zip(exceptions[::2], exceptions[1::2], strict=True):
        assert error["message"].startswith("first line\nsecond line")
        assert "a note" in error["stack"]
        assert group["type"] == "ExceptionGroup"
        assert "KeyError: 'k'" in group["stack"]
    for error, group in zip(exceptions[:4:2], exceptions[1:4:2], strict=True):
        assert error["notes"] == ["a note"]
        assert len(group["exceptions"]) == 2


BEFORE = """
    import subprocess, sys, traceback
    ways = [
        lambda: print("ERROR" + traceback.format_exc()),
        lambda: print("failed:", traceback.format_exc()),
        lambda: print("failed:\\n" + traceback.format_exc(), end=""),
        lambda: (print("failed: ", end=""), traceback.print_exc(file=sys.stdout)),
        lambda: print(traceback.format_exc()),
    ]
    for way in ways:
        try:
            1 / 0
        except ZeroDivisionError:
            way()
        print("after")
    code = "import logging\\ntry: 1/0\\nexcept Exception: logging.exception('child')"
    subprocess.run([sys.executable, "-I", "-c", code], stderr=sys.stdout)
"""


@pytest.mark.slow
def test_text_right_before_a_traceback_is_one_record_with_it(run: Any) -> None:
    """It is the message, of level error; the exception is structured."""
    run.write("app.py", BEFORE)

    assert run.start("-w", 1, "app.py").wait(60) == 0

    found = run.records(stream="stdout")
    error = [
        "ERROR",
        "failed:",
        "failed:",
        "failed:",
        "ZeroDivisionError: division by zero",
    ]
    expected = [pair for each in error for pair in (("error", each), ("info", "after"))]
    assert [(each["level"], each["message"]) for each in found] == [
        *expected,
        ("error", "ERROR:root:child"),
    ]
    exceptions = [each["exception"] for each in found if each["level"] == "error"]
    assert {each["type"] for each in exceptions} == {"ZeroDivisionError"}
    assert all(each["stack"].startswith("Traceback (most") for each in exceptions)


def test_a_death_is_reported_with_the_last_lines(run: Any) -> None:
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


def test_lines_of_json_are_records(run: Any) -> None:
    """A program that prints one JSON object a line has its levels and fields."""
    run.write(
        "app.py",
        """
        import json
        print(json.dumps({"level": "error", "message": "card refused", "order": 7}))
        print("ERROR shop: text")
        """,
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    first, second = run.records(stream="stdout")
    assert (first["level"], first["message"], first["order"]) == (
        "error", "card refused", 7,
    )  # fmt: skip
    assert (second["level"], second["message"]) == ("error", "ERROR shop: text")


def test_names_of_host_and_application_are_on_captured_lines(run: Any) -> None:
    """As on records; a line of JSON keeps its own."""
    run.write(
        "app.py",
        """
        import logging, sys
        print("text")
        print('{"msg": "json", "app": "own"}')
        logging.warning("record")
        """,
    )
    run.env.update(LOGAGG_APP="shop", LOGAGG_HOST="h-1")

    assert run.start("-w", 1, "app.py").wait(25) == 0

    found = {
        each["message"]: (each.get("host"), each.get("app")) for each in run.records()
    }
    assert found["text"] == found["record"] == ("h-1", "shop")
    assert found["json"] == ("h-1", "own")


def test_a_traceback_on_stdout_is_one_record(run: Any) -> None:
    """It counts as one on stderr."""
    run.write(
        "app.py",
        """
        import sys, traceback
        try:
            {}["k"]
        except KeyError:
            traceback.print_exc(file=sys.stdout)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    (found,) = run.records(stream="stdout")
    assert (found["level"], found["exception"]["type"]) == ("error", "KeyError")


def test_a_progress_bar_is_one_short_record(run: Any) -> None:
    """Its states overwrite each other, as on a terminal; it is no text before a traceback."""
    run.write(
        "app.py",
        """
        import sys, traceback
        for n in range(101):
            sys.stderr.write(f"\\r{n:3}%|{'#' * (n // 2):50}|")
            if n == 50:
                try:
                    raise ValueError("odd") from KeyError("k")
                except ValueError:
                    traceback.print_exc()
        sys.stderr.write("\\n")
        print("after", file=sys.stderr)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    found = run.records(stream="stderr")
    (odd,) = [each for each in found if "exception" in each]
    assert odd["message"] == "ValueError: odd"
    assert odd["exception"]["cause"]["type"] == "KeyError"
    bar, after = [each["message"] for each in found if each is not odd]
    assert bar == "100%|" + "#" * 50 + "|"
    assert after == "after"


def test_a_print_is_whole_though_others_print(run: Any) -> None:
    """Of threads, and of forked and spawned processes: a record for each print."""
    run.write(
        "app.py",
        """
        import multiprocessing, threading, traceback
        def work(name):
            for n in range(150):
                print(name, "piece", n, "of", name)
            try:
                raise ValueError(name)
            except ValueError:
                print(traceback.format_exc(), end="")
            print("unfinished", name, end="")
        if __name__ == "__main__":
            made = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(5)]
            for method in ("fork", "spawn"):
                context = multiprocessing.get_context(method)
                made += [context.Process(target=work, args=(method,))]
            for each in reversed(made):
                each.start()
            work("main")
            for each in made:
                each.join()
        """,
    )
    run.start("-w", 1, "--restart", "never", "app.py").wait()
    names = {f"t{n}" for n in range(5)} | {"fork", "spawn", "main"}
    found = run.records(stream="stdout")
    said = [each["message"] for each in found if "exception" not in each]
    wanted = [f"{name} piece {n} of {name}" for name in names for n in range(150)]
    assert sorted(said) == sorted(wanted + [f"unfinished {name}" for name in names])
    errors = [each["exception"]["message"] for each in found if "exception" in each]
    assert sorted(errors) == sorted(names)
