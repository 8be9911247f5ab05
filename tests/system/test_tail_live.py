"""`logagg tail` on a running consumer: at once, in order, across its restarts."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each

MAIN = [sys.executable, "-c", "from logagg.cli.main import main; main()"]

# A worker that logs what it is told to: "N [level]" logs number N and answers with it.
WORKER = """
import logging, sys, logagg
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="DEBUG")
log = logging.getLogger("app")
for line in sys.stdin:
    number, _, level = line.partition(" ")
    getattr(log, level.strip() or "info")("message", extra={"n": int(number)})
    print(number, flush=True)
"""


@pytest.fixture
def runtime(isolated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own runtime directory, in which no other consumer is met."""
    monkeypatch.chdir(tmp_path)
    return isolated / "r"


class Process:
    """A program in the background whose output is read until something is in it."""

    def __init__(self, *command: object, **options: Any) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        self.output = b""
        self.notes = b""

    def say(self, text: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def read_until(self, done: Callable[[], Any], patience: float = 15.0) -> None:
        """Read until `done()`, which must be before long."""
        assert self.reads(done, patience), (self.output[-1000:], self.notes[-1000:])

    def reads(self, done: Callable[[], Any], patience: float) -> bool:
        """Read until `done()`, for so many seconds; whether it was done."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out, err = self.process.stdout.fileno(), self.process.stderr.fileno()
        deadline = time.monotonic() + patience
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for descriptor in select.select([out, err], [], [], left)[0]:
                data = os.read(descriptor, 1 << 20)
                if descriptor == out:
                    self.output += data
                else:
                    self.notes += data
        return True

    def numbers(self) -> list[int]:
        """The numbers in the whole JSON lines of its output."""
        whole = self.output[: self.output.rfind(b"\n") + 1]
        found = [orjson.loads(line) for line in whole.splitlines()]
        return [record["n"] for record in found if "n" in record]

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return status


@contextlib.contextmanager
def running(*command: object, **options: Any) -> Iterator[Process]:
    """A process that is ended whatever happens."""
    process = Process(*command, **options)
    try:
        yield process
    finally:
        process.end()


def worker(log: Path) -> contextlib.AbstractContextManager[Process]:
    """A process that logs to that file."""
    return running(sys.executable, "-c", WORKER, log)


def tailing(*arguments: object) -> contextlib.AbstractContextManager[Process]:
    """A live viewer that prints JSON."""
    return running(*MAIN, "tail", "--json", *arguments)


def log(process: Process, number: int, level: str = "info") -> None:
    """Have a worker log a number, and wait until the call has returned."""
    process.say(f"{number} {level}")
    mark = f"{number}\n".encode()
    process.read_until(lambda: process.output.endswith(mark))


def settled(target: Path, count: int) -> None:
    """Wait until the consumer has written so many records to the file."""
    deadline = time.monotonic() + 15
    while not target.exists() or target.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def consumers(runtime: Path) -> list[Path]:
    """The sockets that exist."""
    return list(runtime.glob("logagg/*.sock"))


def consumer_pid(runtime: Path) -> int:
    """The process behind the one socket."""
    from logagg.ipc import consumer_client

    (socket_path,) = consumers(runtime)
    return int(consumer_client.status(str(socket_path))["pid"])


def test_past_lines_come_first_then_each_call_at_once(
    tmp_path: Path, runtime: Path
) -> None:
    """The backlog from the consumer's ring, then every record as it is logged."""
    with worker(tmp_path / "app.log") as app:
        for number in range(20):
            log(app, number)
        settled(tmp_path / "app.log", 20)
        with tailing("-n", 5) as viewer:
            viewer.read_until(lambda: 19 in viewer.numbers())
            log(app, 20)
            viewer.read_until(lambda: 20 in viewer.numbers())

            assert viewer.numbers() == [15, 16, 17, 18, 19, 20]
            viewer.read_until(lambda: b"-- following run" in viewer.notes)
            assert viewer.end(signal.SIGINT) == 130
        log(app, 21)  # the service does not mind


def test_a_call_is_visible_within_fifty_milliseconds(
    tmp_path: Path, runtime: Path
) -> None:
    """From before the call to the viewer's output, nearly always."""
    with worker(tmp_path / "app.log") as app:
        log(app, 0)
        with tailing("-n", 1) as viewer:
            viewer.read_until(lambda: 0 in viewer.numbers())
            delays = []
            for number in range(1, 101):
                began = time.monotonic()
                app.say(str(number))
                viewer.read_until(lambda n=number: n in viewer.numbers()[-1:])  # type: ignore[misc]
                delays.append(time.monotonic() - began)

    delays.sort()
    # The median is what a busy machine cannot spoil; the tail of it is for benchmarks.
    assert delays[50] < 0.05, delays[50:]


def test_filters_hold_while_workers_come_and_go(tmp_path: Path, runtime: Path) -> None:
    """Workers that start later are shown if they match, in time order, each line once."""
    target = tmp_path / "app.log"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(worker(target))
        log(first, 0, "warning")
        log(first, 1, "info")
        viewer = stack.enter_context(tailing("-n", 50, "--level", "warning", "n!=4"))
        viewer.read_until(lambda: 0 in viewer.numbers())
        second, third = (stack.enter_context(worker(target)) for _ in range(2))
        log(second, 2, "error")
        log(first, 3, "debug")
        log(third, 4, "error")
        log(third, 5, "critical")
        viewer.read_until(lambda: 5 in viewer.numbers())

        assert viewer.numbers() == [0, 2, 5]


def test_a_killed_consumer_is_survived_without_loss_or_repeat(
    tmp_path: Path, runtime: Path
) -> None:
    """The viewer says that it is gone, waits, reconnects, and shows each record once."""
    with worker(tmp_path / "app.log") as app:
        for number in range(10):
            log(app, number)
        with tailing("-n", "all") as viewer:
            # The past may be read from the file before the consumer has answered.
            viewer.read_until(lambda: b"-- following run" in viewer.notes)
            viewer.read_until(lambda: 9 in viewer.numbers())
            os.kill(consumer_pid(runtime), signal.SIGKILL)
            viewer.read_until(lambda: b"-- the consumer has ended" in viewer.notes)
            last = 10
            deadline = time.monotonic() + 20
            while b"-- reconnected to new run" not in viewer.notes:
                assert viewer.process.poll() is None, viewer.notes
                assert time.monotonic() < deadline, viewer.notes
                log(app, last)
                last += 1
                with contextlib.suppress(AssertionError):
                    viewer.read_until(
                        lambda: b"-- reconnected to new run" in viewer.notes, 0.1
                    )
            log(app, last)
            viewer.read_until(lambda: last in viewer.numbers())

            assert viewer.numbers() == [*range(last + 1)]


def test_the_past_beyond_the_ring_comes_from_the_file(
    tmp_path: Path, runtime: Path
) -> None:
    """More than the consumer holds is read from its files, and joined without a seam."""
    target = tmp_path / "app.log"
    burst = (
        "import logging, sys, logagg\n"
        "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level='INFO')\n"
        "for n in range(1, 30_001): logging.info('x' * 500, extra={'n': n})\n"
    )
    with worker(target) as app:
        log(app, 0)
        subprocess.run([sys.executable, "-c", burst, target], timeout=250, check=True)
        with tailing("-n", "all", "-S", "1h", "n?") as viewer:
            viewer.read_until(lambda: viewer.output.endswith(b"\n"))
            log(app, 30_001)
            viewer.read_until(lambda: b'"n":30001,' in viewer.output[-4000:], 30)

            assert sorted(viewer.numbers()) == [*range(30_002)]


def test_without_a_consumer_it_waits_or_ends_with_an_error(
    tmp_path: Path, runtime: Path
) -> None:
    """Following waits for the first one; everything else is status 3."""
    done = subprocess.run(
        [*MAIN, "tail", "--no-follow"], capture_output=True, timeout=90, check=False
    )
    assert done.returncode == 3
    assert b"no logagg is running here" in done.stderr
    with tailing("--timeout", "0.3s") as viewer:
        assert viewer.process.wait(10) == 3
    with tailing("-n", "all") as viewer:
        viewer.read_until(lambda: b"-- no logagg running here; waiting" in viewer.notes)
        with worker(tmp_path / "app.log") as app:
            log(app, 1)
            viewer.read_until(lambda: 1 in viewer.numbers())


def test_no_follow_ends_after_the_past_lines(tmp_path: Path, runtime: Path) -> None:
    """It prints what is there and leaves."""
    with worker(tmp_path / "app.log") as app:
        log(app, 1)
        log(app, 2)
        settled(tmp_path / "app.log", 2)
        done = subprocess.run(
            [*MAIN, "tail", "--no-follow", "--json"],
            capture_output=True,
            timeout=90,
            check=True,
        )

        assert [orjson.loads(each)["n"] for each in done.stdout.splitlines()] == [1, 2]


def test_of_several_consumers_the_near_one_is_meant_or_all_are_listed(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that writes below the current directory; else the user must choose."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    arguments = [*MAIN, "tail", "--no-follow", "--json"]
    with worker(here / "app.log") as one, worker(there / "app.log") as other:
        log(one, 1)
        log(other, 2)
        settled(here / "app.log", 1)
        settled(there / "app.log", 1)
        near = subprocess.run(arguments, capture_output=True, check=True, cwd=here)
        apart = subprocess.run(arguments, capture_output=True, check=False, cwd="/")

        assert orjson.loads(near.stdout)["n"] == 1
        assert apart.returncode == 2
        for socket_path in consumers(runtime):
            assert f"--socket {socket_path}".encode() in apart.stderr


def test_a_stopped_viewer_loses_only_its_own_lines(
    tmp_path: Path, runtime: Path
) -> None:
    """Calls return and the file grows while the viewer hangs; then its loss is told."""
    target = tmp_path / "app.log"
    burst = (
        "import logging, sys, logagg\n"
        "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level='INFO')\n"
        "for n in range(60_000): logging.info('x' * 500, extra={'n': n})\n"
    )
    with worker(target) as app:
        log(app, 0)
        with tailing("-n", 1) as viewer:
            viewer.read_until(lambda: 0 in viewer.numbers())
            viewer.process.send_signal(signal.SIGSTOP)
            subprocess.run(
                [sys.executable, "-c", burst, target], timeout=250, check=True
            )
            viewer.process.send_signal(signal.SIGCONT)
            settled(target, 60_001)
            for n in range(60_000, 60_030):
                log(app, n)
                mark = b'"n":%d' % n
                if viewer.reads(lambda mark=mark: mark in viewer.output[-4000:], 0.5):
                    break  # else it had not caught up: that one was skipped as well

            def seen() -> int:
                told = re.findall(rb"-- skipped (\d+) .*too slow", viewer.notes)
                return viewer.output.count(b"\n") + sum(map(int, told))

            viewer.read_until(lambda: seen() >= target.read_bytes().count(b"\n"))
            # The exit record of the burst may be with the viewer before it is in the file.
            settled(target, seen())
            assert seen() == target.read_bytes().count(b"\n")
            assert b"(viewer too slow)" in viewer.notes


def test_a_loss_is_reported_whatever_the_filter(tmp_path: Path, runtime: Path) -> None:
    """The notice of dropped records does not match, but it is told beside the stream."""
    target = tmp_path / "app.log"
    burst = (
        "import logging, sys, logagg\n"
        "handler = logagg.Handler(sys.argv[1], overflow='drop_new')\n"
        "logging.basicConfig(handlers=[handler], level='INFO')\n"
        "logging.info('up')\n"
        "sys.stdin.readline()\n"
        "for n in range(20_000): logging.info('x' * 500)\n"
        "print('logged', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with running(sys.executable, "-c", burst, target) as app:
        settled(target, 1)
        with tailing("-g", "no such text") as viewer:
            viewer.read_until(lambda: b"following run" in viewer.notes)
            pid = consumer_pid(runtime)
            os.kill(pid, signal.SIGSTOP)
            app.say("go")
            app.read_until(lambda: b"logged" in app.output)
            os.kill(pid, signal.SIGCONT)
            app.say("end")
            viewer.read_until(lambda: b"nothing could take them" in viewer.notes)

            assert viewer.output == b""


def test_stats_and_top_read_the_running_consumer(tmp_path: Path, runtime: Path) -> None:
    """Stats finds the consumer's file, top its workers and sinks."""
    with worker(tmp_path / "app.log") as app:
        for number in range(3):
            log(app, number, "error")
        settled(tmp_path / "app.log", 3)
        stats = subprocess.run(
            [*MAIN, "stats", "--json"], capture_output=True, check=True
        )
        top = subprocess.run([*MAIN, "top", "--once"], capture_output=True, check=True)

        assert orjson.loads(stats.stdout)["by"]["level"]["error"] == 3
        assert str(app.process.pid) in top.stdout.decode()
        assert "file:" in top.stdout.decode()


def test_top_shows_rates_on_a_terminal_and_ends_with_q(
    tmp_path: Path, runtime: Path
) -> None:
    """A screen that stays put, with the consumer's numbers in it."""
    import pty

    with worker(tmp_path / "app.log") as app:
        for number in range(7):
            log(app, number)
        settled(tmp_path / "app.log", 7)
        pid, terminal = pty.fork()
        if not pid:
            os.environ["TERM"] = "xterm-256color"
            os.environ["COLUMNS"], os.environ["LINES"] = "150", "30"
            os.execv(MAIN[0], [*MAIN, "top", "--interval", "100ms"])
        output = b""
        deadline = time.monotonic() + 15
        while b"written/s" not in output or str(app.process.pid).encode() not in output:
            assert time.monotonic() < deadline, output[-2000:]
            if select.select([terminal], [], [], 0.1)[0]:
                output += os.read(terminal, 1 << 16)
        os.write(terminal, b"q")
        while select.select([terminal], [], [], 5)[0]:
            try:
                output += os.read(terminal, 1 << 16)
            except OSError:
                break
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(terminal)
        assert b"\x1b[?25h" in output[-20:]  # the cursor is shown again


APP = """
import itertools, logging, os, time
log = logging.getLogger("app")
logging.getLogger().setLevel("DEBUG")
slot = os.environ["LOGAGG_SLOT"]
for n in itertools.count():
    log.warning("X marks slot %s", slot, extra={"n": n, "own": os.getpid()})
    log.warning("something else")
    log.debug("X but quiet")
    time.sleep(0.01)
"""


def test_a_replaced_worker_and_new_ones_are_shown_if_they_match(
    tmp_path: Path, runtime: Path
) -> None:
    """By slot, level and text, in order, each once; Ctrl-C leaves the run alone."""
    (tmp_path / "app.py").write_text(APP)
    command = [*MAIN, "run", "app.py", "--workers", "2", "--sink", "file:app.log"]
    with running(*command) as service:
        settled(tmp_path / "app.log", 100)
        look = subprocess.run(
            [*MAIN, "tail", "-m", "1"], check=True, capture_output=True, timeout=90
        )
        assert b", 2 workers" in look.stderr  # their captured streams are not counted
        arguments = ("-n", 50, "-f", "--worker", 2, "--level", "warning", "--grep", "X")
        with tailing(*arguments) as viewer:

            def owners() -> set[int]:
                whole = viewer.output[: viewer.output.rfind(b"\n") + 1]
                records = map(orjson.loads, whole.splitlines())
                return {record.get("own", 0) for record in records} - {0}

            viewer.read_until(lambda: len(viewer.numbers()) > 60)
            (first,) = owners()
            os.kill(first, signal.SIGKILL)
            viewer.read_until(lambda: len(owners()) == 2)
            subprocess.run(
                [*MAIN, "scale", "4"], check=True, capture_output=True, timeout=90
            )
            seen = len(viewer.numbers())
            viewer.read_until(lambda: len(viewer.numbers()) > seen + 50)
            assert viewer.end(signal.SIGINT) == 130
        assert service.process.poll() is None
    lines = [line for line in viewer.output.splitlines() if line.endswith(b"}")]
    records = [orjson.loads(line) for line in lines]
    stamps = [record["timestamp"] for record in records if not record.get("late")]
    assert stamps == sorted(stamps)
    assert len(set(lines)) == len(lines)
    shown = [record for record in records if "own" in record]
    assert {record["worker"] for record in shown} == {"2"}
    assert {record["message"] for record in shown} == {"X marks slot 2"}
    for owner in {record["own"] for record in shown}:
        numbers = [record["n"] for record in shown if record["own"] == owner]
        assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
