"""When descriptors or processes run out: a clear error at the start, patience later."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import termios
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from logagg.supervisor.process.consumer_process import ConsumerProcess
from logagg.supervisor.process.orphans import Guardian
from logagg.supervisor.process.spawn import Pipes

pytestmark = pytest.mark.slow  # many real processes, some seconds each

SLEEPER = """
    import resource, time
    print("up", resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
    time.sleep(60)
"""


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """A prefix for `start`: the command with these limits of open files."""
    return ("prlimit", f"--nofile={soft}:{hard}")


@contextlib.contextmanager
def scarce(pid: int) -> Iterator[None]:
    """A process that cannot open anything any more, for a while."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def waiting(stream: Any) -> int:
    """How many bytes of a process's output have not been read."""
    (count,) = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


# ---- a run --------------------------------------------------------------------------------


def test_a_run_may_have_more_workers_than_the_soft_limit_allows(run: Any) -> None:
    """The supervisor takes what the hard limit allows; workers get the user's limit."""
    run.write("app.py", SLEEPER)

    run.start("-w", 16, "app.py", prefix=limited(48, 4096))
    run.until_ready(16)

    assert run.messages(stream="stdout") == ["up 48"] * 16
    assert run.stop() == -signal.SIGTERM


def test_too_many_workers_for_the_hard_limit_are_refused(run: Any) -> None:
    """One line names the worker, the limit and what raises it; none is left running."""
    run.write("app.py", SLEEPER)

    run.start("-w", 40, "app.py", prefix=limited(64, 64))

    assert run.wait() == 10
    (line,) = run.err.splitlines()
    assert "worker 1" in line
    assert "Too many open files (the limit is 64: ulimit -Hn)" in line
    (reported,) = run.records(event="cannot_start")
    assert reported["level"] == "critical"
    assert {r["reason"] for r in run.records(event="worker_exit")} == {
        "the run is over"
    }


def test_a_cluster_that_has_no_room_raises(run: Any) -> None:
    """The `with` block is not entered, and the program goes on."""
    run.write("app.py", SLEEPER)
    run.write(
        "main.py",
        """
        import resource, logagg
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            with logagg.Cluster("app.py", workers=40, sinks=["file:l"]):
                print("entered")
        except logagg.errors.StartFailed as error:
            print("refused", error)
        """,
    )

    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=run.directory, env=run.env, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip

    assert done.stdout.startswith("refused worker 1"), done.stderr


def test_a_worker_that_cannot_be_replaced_at_once_is_replaced_later(run: Any) -> None:
    """Nothing is given up for a lack that passes; each try is reported."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    run.until_ready(2)
    victim = run.workers()[1]

    with scarce(run.pid):
        os.kill(victim, signal.SIGKILL)
        reported = run.until_record(event="start_failed")
    status = run.until_ready(2)

    assert "worker 1 cannot be started: Too many open files" in reported["message"]
    assert (
        "next try in 0." in reported["message"]
        or "next try in 1." in reported["message"]
    )
    assert status["slots"][0]["pid"] != victim
    assert run.stop() == -signal.SIGTERM


def test_what_there_is_no_room_for_is_refused_and_the_rest_goes_on(
    run: Any, tools: Any
) -> None:
    """Scaling and reloading say why not; the workers that are there stay."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    before = {slot["pid"] for slot in run.until_ready(2)["slots"]}

    def asked(signum: int, event: str) -> str:
        count = len(run.records(event=event))
        with scarce(run.pid):
            run.signal(signum)
            tools.until(lambda: len(run.records(event=event)) > count)
        return str(run.records(event=event)[-1]["message"])

    assert "worker 3 cannot be started" in asked(signal.SIGTTIN, "start_failed")
    assert "the old worker serves on" in asked(signal.SIGHUP, "reload_failed")
    assert run.records(event="handler_failed") == []
    assert {slot["pid"] for slot in run.until_ready(2)["slots"]} == before
    done = run.command("scale", 3)
    assert done.returncode == 0, done.stderr
    run.until_ready(3)
    assert run.stop() == -signal.SIGTERM


def test_a_consumer_that_cannot_be_replaced_at_once_is_replaced_later(
    run: Any, tools: Any
) -> None:
    """What workers write meanwhile is in the log when it is there again."""
    run.write(
        "app.py",
        """
        import logging, pathlib, time
        log = logging.getLogger()
        log.warning("first")
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        log.warning("second")
        print("third", flush=True)
        pathlib.Path("gone").touch()
        while True:  # a worker looks for the next consumer when it logs
            time.sleep(0.05)
            log.warning("fourth")
        """,
    )
    run.start("-w", 1, "app.py")
    run.until_record(message="first")
    consumer = run.status()["consumer"]["pid"]

    with scarce(run.pid):
        os.kill(consumer, signal.SIGKILL)
        (run.directory / "go").touch()
        tools.until((run.directory / "gone").exists)
        tools.until(lambda: waiting(run.process.stderr), what="a word about it")
    for message in ("second", "third", "fourth"):
        run.until_record(message=message)

    assert run.status()["consumer"]["restarts"] == 1
    assert run.messages(event="consumer_restart") == [
        "the consumer ended with status -9 and was restarted"
    ]
    assert run.stop() == -signal.SIGTERM
    assert run.messages()[:2] == ["first", "second"]
    (line,) = run.err.splitlines()
    assert "the consumer cannot be started again" in line
    assert "Too many open files" in line


REUSED = """
    import json, os, resource, signal, subprocess, sys, time
    from pathlib import Path

    def until(condition):
        deadline = time.monotonic() + 90
        while not (found := condition()):
            assert time.monotonic() < deadline, condition
            time.sleep(0.01)
        return found

    def has(pid, field, signum):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return bool(int(line.split()[1], 16) >> (signum - 1) & 1)

    def consumer():
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes()
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if parent == str(run.pid) and b"json.loads" in line:
                return int(entry.name)

    run = subprocess.Popen(sys.argv[1:])
    until(Path("ready").exists)
    old = until(consumer)
    limit = resource.prlimit(run.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(run.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
    os.kill(old, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{old}").exists())
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    stranger = 0
    while stranger != old:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(old - 1))
        stranger = os.fork()
        if not stranger:
            time.sleep(600)
    os.kill(run.pid, signal.SIGUSR1)
    until(lambda: not has(run.pid, "ShdPnd", signal.SIGUSR1))
    resource.prlimit(run.pid, resource.RLIMIT_NOFILE, limit)
    until(consumer)  # what the signal asked for has been done before
    print(json.dumps(has(stranger, "ShdPnd", signal.SIGUSR1)))
    os.kill(stranger, signal.SIGKILL)
    run.terminate()
    run.wait(90)
"""


def test_a_request_to_reopen_meets_no_process_with_the_pid_of_a_dead_consumer(
    run: Any, tools: Any
) -> None:
    """The consumer is dead, another cannot be started yet, and its pid is used again."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    change = "echo 100 > /proc/sys/kernel/ns_last_pid"
    able = subprocess.run(
        [*prefix, "sh", "-c", change], check=False, capture_output=True
    )
    if able.returncode:
        pytest.skip("no pid namespaces here")
    run.write(
        "app.py", "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(600)"
    )
    run.write("driver.py", REUSED)
    words = [*tools.logagg, "run", "-w", "1", "--sink", f"file:{run.log}", "app.py"]
    done = subprocess.run(
        [*prefix, sys.executable, "driver.py", *words], cwd=run.directory, env=run.env,
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.stdout == "false\n", done.stderr


def test_a_guard_that_cannot_be_replaced_at_once_is_replaced_later() -> None:
    """It dies and there is no room for another: once there is, another starts."""

    async def scene() -> None:
        guard = Guardian()
        before = guard.pid
        with scarce(os.getpid()):
            os.kill(before, signal.SIGKILL)
            while Path(f"/proc/{before}").exists():
                await asyncio.sleep(0.01)
            assert guard.pid == before
        async with asyncio.timeout(60):
            while guard.pid == before:
                await asyncio.sleep(0.01)
        os.kill(guard.pid, 0)
        guard.close()

    asyncio.run(scene())


# ---- a captured stream --------------------------------------------------------------------


def captured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scene: Callable[[ConsumerProcess, Any, int], Any],
) -> list[str]:
    """Run a scene with a real consumer; the messages that a worker's pipe brought.

    Args:
        tmp_path: For the log.
        monkeypatch: For the runtime directory.
        scene: Called with the log side, a worker to adopt, and its pipe's write end.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    log = tmp_path / "log.ndjson"

    async def play() -> None:
        logs = ConsumerProcess((f"file:{log}",), pytest.fail)
        await logs.opened()
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        err, closed = os.pipe()
        os.close(closed)
        worker = types.SimpleNamespace(
            app="", slot=1, pid=os.getpid(), exit=None, pipes=Pipes(read, err)
        )
        await scene(logs, worker, write)
        os.close(write)
        assert await logs.close(20.0)

    asyncio.run(play())
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    return [r["message"] for r in records if r.get("stream") == "stdout"]


def test_a_stream_is_handed_over_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor was free when the worker started; what it says arrives."""

    async def scene(logs: ConsumerProcess, worker: Any, write: int) -> None:
        with scarce(os.getpid()):
            logs.adopt(worker)
        os.write(write, b"said\n")
        async with asyncio.timeout(10):
            while not (tmp_path / "log.ndjson").read_bytes().count(b"said"):
                await asyncio.sleep(0.01)

    assert captured(tmp_path, monkeypatch, scene) == ["said"]


def test_a_stream_that_is_handed_over_again_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several readers would tear lines apart. A consumer's death can bring it about."""
    lines = [f"{n} {'x' * (n % 500)}" for n in range(20_000)]

    async def scene(logs: ConsumerProcess, worker: Any, write: int) -> None:
        logs.adopt(worker)
        for _ in range(40):  # the more readers, the surer would they meet
            logs._hand_off(logs._streams[0])
        data = "".join(line + "\n" for line in lines).encode()
        await asyncio.to_thread(write_all, write, data)

    def write_all(descriptor: int, data: bytes) -> None:
        for start in range(0, len(data), 101):
            os.write(descriptor, data[start : start + 101])

    assert captured(tmp_path, monkeypatch, scene) == lines
