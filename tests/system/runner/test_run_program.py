"""A program under `logagg run` is what it is under `python`, and all it says is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from support import wait_until

pytestmark = pytest.mark.slow  # many real processes, some seconds each

SELF = """
    import json, os, sys
    import multiprocessing
    def square(x):
        return x * x
    if __name__ == "__main__":
        main = sys.modules["__main__"]
        print(json.dumps({
            "argv": sys.argv, "name": __name__, "file": __file__, "path0": sys.path[0],
            "cwd": os.getcwd(),
            "spec": main.__spec__ and [main.__spec__.name, main.__spec__.origin], "package": __package__,
            "loader": type(__loader__).__name__, "doc": __doc__,
            "keys": sorted(k for k in vars(main) if k.startswith("__")),
            "main_is_me": main.__dict__ is globals(), "safe": sys.flags.safe_path,
        }))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps({"spawned": pool.map(square, [7])}))
"""


def _by_python(run: Any, *words: str) -> dict[str, Any]:
    env = {**run.env, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=run.directory,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[0]))


def test_a_script_sees_what_python_shows_it(run: Any) -> None:
    """argv, __main__, __file__, path, cwd and spawned children are python's own."""
    run.write("app.py", SELF)
    wanted = _by_python(run, "app.py", "-v", "--x=1")

    assert run.start("-w", 1, "app.py", "--", "-v", "--x=1").wait() == 0

    lines = [json.loads(text) for text in run.messages(stream="stdout")]
    assert lines[0] == wanted
    assert lines[1] == {"spawned": [49]}


def test_a_module_sees_what_python_shows_it(run: Any) -> None:
    """`-m package.module` is as with python -m."""
    (run.directory / "pack").mkdir()
    run.write("pack/__init__.py", "")
    run.write("pack/tool.py", SELF)
    wanted = _by_python(run, "-m", "pack.tool", "a")

    assert run.start("-w", 1, "-m", "pack.tool", "a").wait() == 0

    assert json.loads(run.messages(stream="stdout")[0]) == wanted


def test_a_directory_with_main_runs(run: Any) -> None:
    """`logagg run DIR` runs its __main__.py as python does."""
    (run.directory / "prog").mkdir()
    run.write("prog/__main__.py", "import sys; print(sys.argv, sys.path[0])")

    assert run.start("-w", 1, "prog", "x").wait() == 0

    assert run.messages(stream="stdout") == ["['prog', 'x'] prog"]


def test_a_command_that_is_not_python_runs(run: Any) -> None:
    """`logagg run -w 2 -- sh -c …` captures both streams of each worker, {slot} filled."""
    script = "echo out {slot} $LOGAGG_SLOT; echo err >&2"

    assert run.start("-w", 2, "--", "sh", "-c", script).wait() == 0

    assert sorted(run.messages(stream="stdout")) == ["out 1 1", "out 2 2"]
    assert run.messages(stream="stderr") == ["err", "err"]


def test_logging_needs_no_code_in_the_program(run: Any) -> None:
    """The root logger is wired, at INFO by default, and basicConfig can set the level."""
    run.write(
        "app.py",
        """
        import logging
        logging.getLogger().debug("no")
        logging.getLogger("a.b").info("yes", extra={"n": 1})
        logging.basicConfig(level="DEBUG")
        logging.debug("now")
        """,
    )

    assert run.start("-w", 1, "app.py").wait() == 0

    assert [r["n"] for r in run.records(message="yes", logger="a.b", worker="1")] == [1]
    assert run.messages(level="debug", worker="1") == ["now"]
    assert "no" not in run.messages()


def test_every_byte_of_the_streams_is_kept(run: Any) -> None:
    """print, os.write, C level, a partial last line before KILL; the streams are real."""
    run.write(
        "app.py",
        """
        import ctypes, os, signal, sys
        print("enc", sys.stdout.encoding, sys.stdout.isatty(), sys.stdout.fileno())
        os.write(1, b"raw\\n")
        ctypes.CDLL(None).puts(b"from C"); ctypes.CDLL(None).fflush(None)
        sys.stderr.write("bad\\n")
        os.write(1, b"partial")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )

    assert run.start("-w", 2, "--restart", "never", "app.py").wait() == 1

    for slot in ("1", "2"):
        out = run.records(stream="stdout", worker=slot)
        texts = [record["message"] for record in out]
        assert texts == ["enc utf-8 False 1", "raw", "from C", "partial"]
        assert [r.get("partial") for r in out] == [None, None, None, True]
        assert run.messages(stream="stderr", worker=slot) == ["bad"]
    assert "closed file" not in run.log.read_text()


@pytest.mark.parametrize("size", [100, 6000])
@pytest.mark.parametrize("flush", ["print", "buffered"])
def test_lines_of_four_workers_are_whole(run: Any, size: int, flush: str) -> None:
    """4 × 3,000 printed lines: none torn, each worker's numbers without a gap."""
    run.write(
        "app.py",
        f"""
        import io, os, sys
        out = sys.stdout
        if {flush!r} == "buffered":
            out = io.TextIOWrapper(open(1, "wb", closefd=False), write_through=False)
        for n in range(3000):
            print(f"{{n:05d}}", "x" * {size}, file=out)
        out.flush()
        """,
    )

    assert run.start("-w", 4, "app.py").wait(50) == 0

    for slot in "1234":
        texts = run.messages(stream="stdout", worker=slot)
        assert texts == [f"{n:05d} " + "x" * size for n in range(3000)]


def test_long_lines_are_whole_or_marked(run: Any) -> None:
    """1,000 JSON lines at once, one of 200 KB and one of 2 MB: all there, memory flat."""
    run.write(
        "app.py",
        """
        import json, os, sys
        lines = [json.dumps({"n": n}) for n in range(1000)]
        lines += ["a" * 200_000, "b" * 2_000_000, "end"]
        data = ("\\n".join(lines) + "\\n").encode()
        while data:
            data = data[os.write(1, data):]
        """,
    )

    assert run.start("-w", 1, "app.py").wait() == 0

    records = run.records(stream="stdout")
    assert [json.loads(r["message"])["n"] for r in records[:1000]] == list(range(1000))
    rest = records[1000:]
    assert (
        "".join(r["message"] for r in rest) == "a" * 200_000 + "b" * 2_000_000 + "end"
    )
    for record in rest:
        assert record.get("partial") or record["message"][-1] in "abd"


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os._exit(1)", "status 1"),
        ("faulthandler._sigsegv()", "SIGSEGV"),
        ("raise ValueError('boom')", "status 1"),
    ],
)
def test_the_death_record_follows_the_last_words(
    run: Any, how: str, shown: str
) -> None:
    """Five lines and then the death: all five are there, then one record naming it."""
    run.write(
        "app.py",
        f"""
        import faulthandler, os, signal, sys
        for n in range(5):
            print("line", n)
        {how}
        """,
    )

    assert run.start("-w", 1, "--restart", "never", "app.py").wait() == 1

    records = run.records()
    lines = [i for i, r in enumerate(records) if r["message"].startswith("line ")]
    deaths = [
        i
        for i, r in enumerate(records)
        if r.get("event") == "worker_exit" and r.get("slot") == 1
    ]
    assert len(lines) == 5
    assert len(deaths) == 1
    assert deaths[0] > max(lines)
    death = records[deaths[0]]
    assert shown in death["message"]
    assert death["pid"] == death.get("pid")
    assert death["uptime"] > 0
    assert death["rss_bytes"] > 1_000_000
    if "sigsegv" in how:
        stderr = "\n".join(run.messages(stream="stderr"))
        assert "Fatal Python error: Segmentation fault" in stderr
        assert max(i for i, r in enumerate(records) if r.get("stream")) < deaths[0]
    if "boom" in how:
        (crash,) = [r for r in records if "exception" in r]
        assert crash["exception"]["type"] == "ValueError"
        assert "bootstrap" not in crash["exception"]["stack"]
        assert "boom" in death["message"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["missing.py"], "missing.py"),
        (["no-such-command-at-all"], "no-such-command-at-all"),
        (["-m", "no_such_module_at_all"], "no_such_module_at_all"),
        (["-w", "many", "app.py"], "many"),
        (["-w", "-1", "app.py"], "-1"),
        (["--bind", "nonsense", "app.py"], "nonsense"),
        (["--sticky", "color", "app.py"], "color"),
        (["--level", "LOUD", "app.py"], "LOUD"),
        (["--max-rss", "big", "app.py"], "big"),
        (["--policy", "rr", "--", "sh", "-c", "true"], "rr"),
        (["-m", "uvicorn", "app:app", "--workers", "2"], "workers"),
    ],
)
def test_bad_input_gives_one_clear_line(run: Any, words: list[str], part: str) -> None:
    """The line names what is wrong, nothing is started, the status is 2."""
    run.write("app.py", "print('ran')")

    assert run.start(*words, sink=False).wait() == 2

    (line,) = run.err.strip().splitlines()[-1:]
    assert part in line
    assert "Traceback" not in run.err
    assert run.out == ""


def test_a_program_that_cannot_start_is_given_up(run: Any) -> None:
    """Raising at import: few tries, growing delays, one trace with a count, status 10."""
    run.write("app.py", "import sys\nprint('try')\nraise RuntimeError('no config')")

    assert run.start("-w", 4, "app.py").wait(25) == 10

    tries = len(run.messages(stream="stdout"))
    assert 5 <= tries <= 20
    traces = [r for r in run.records() if "exception" in r]
    assert len(traces) == 1
    # Some tries are ended by the giving up, whose reason names the failure too.
    deaths = [m for m in run.messages(event="worker_exit") if " died: " in m]
    assert tries - 4 <= len(deaths) <= tries
    counts = [int(number) for each in deaths for number in re.findall(r"×(\d+)", each)]
    assert len(deaths) - 4 <= max(counts) <= len(deaths), deaths
    assert "no config" in run.until_record(event="cannot_start")["message"]


def test_the_default_sink_is_the_console(run: Any) -> None:
    """Without --sink records go to stdout in the console form, in order."""
    run.write("app.py", "import logging; logging.warning('seen %d', 5)")

    assert run.start("-w", 1, "app.py", sink=False).wait() == 0

    line = next(line for line in run.out.splitlines() if "seen 5" in line)
    assert line.split()[1:4] == ["WARN", "w1", "root"]


@support.linux_form  # other systems bind no process to a core
def test_workers_max_obeys_affinity(run: Any) -> None:
    """Under an affinity of one core there is one worker; slots are 1…N."""
    run.write("app.py", "print('hi')")

    run.start("--workers", "max", "app.py", prefix=("taskset", "-c", "0"))

    assert run.wait() == 0
    assert [r["worker"] for r in run.records(message="hi")] == ["1"]
    assert Path(run.log).exists()


@pytest.mark.parametrize(
    ("sink", "part"),
    [
        ("nonsense:x", "nonsense"),
        ("file:/proc/none/app.log", "/proc/none"),
        ("file:app.log?max_bytes=many", "max_bytes"),
    ],
)
def test_a_sink_that_cannot_work_is_refused(run: Any, sink: str, part: str) -> None:
    """Before any worker starts: one line naming it, status 2."""
    run.write("app.py", "print('ran')")

    assert run.start("-w", 1, "--sink", sink, "app.py", sink=False).wait() == 2

    assert part in run.err
    assert len(run.err.strip().splitlines()) == 1
    assert "ran" not in run.out


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_workers_that_makes_no_sense_is_refused(
    run: Any, count: str
) -> None:
    """One line names it, status 2."""
    run.write("app.py", "print('ran')")

    assert run.start("-w", count, "app.py").wait() == 2

    (line,) = run.err.strip().splitlines()
    assert "workers" in line
    assert "number" in line or "less than 0" in line


def test_a_run_that_a_daemon_of_a_worker_holds_up_says_so(run: Any) -> None:
    """It ends all the same, with the status of records that may be unwritten."""
    run.write(
        "app.py",
        """
        import subprocess
        daemon = subprocess.Popen(["sleep", "300"], start_new_session=True)
        print("daemon", daemon.pid, flush=True)
        """,
    )
    started = run.start("-w", 1, "app.py")
    printed = started.until_record(stream="stdout")["message"]
    try:
        wait_until(lambda: started.process.poll() is not None, 90)
    finally:
        os.kill(int(printed.split()[1]), signal.SIGKILL)

    assert started.wait() == 5
    assert "keeps its stdout or stderr open" in started.err
