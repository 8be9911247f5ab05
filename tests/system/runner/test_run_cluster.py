"""`logagg.Cluster` and `logagg.worker`: messages, events, tasks, from both sides."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each


def python(run: Any, name: str, *words: str, timeout: float = 60) -> list[Any]:
    """Run a program that is a primary; the JSON values that it printed."""
    done = subprocess.run(
        [sys.executable, name, *words],
        cwd=run.directory,
        env=run.env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "[{"]


def test_events_come_in_a_fixed_order(run: Any) -> None:
    """fork, online, ready, message, disconnect, exit; the last words before the exit."""
    run.write(
        "main.py",
        """
        import json, os, signal, logagg
        if logagg.is_primary:
            seen = []
            cluster = logagg.Cluster(__file__, workers=1, restart="never", sinks=["file:l"])
            for event in ("fork", "online", "ready", "disconnect"):
                cluster.on(event)(lambda w, event=event: seen.append(event))
            cluster.on("message")(lambda w, m: seen.append(["message", w.slot, m]))
            cluster.on("exit")(lambda w, e: seen.append(["exit", e.signal, e.voluntary]))
            cluster.serve_forever()
            print(json.dumps(seen))
        else:
            assert logagg.worker.slot == 1 and logagg.worker.pid == os.getpid()
            logagg.worker.ready()
            for n in range(50):
                logagg.worker.send({"n": n})
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )

    (seen,) = python(run, "main.py")

    assert seen[:3] == ["fork", "online", "ready"]
    assert seen[3:53] == [["message", 1, {"n": n}] for n in range(50)]
    assert seen[53:] == ["disconnect", ["exit", 9, False]]


def test_a_silent_program_is_ready_a_second_after_it_began(run: Any) -> None:
    """However long its process took to come to the program's first line."""
    run.write(
        "sitecustomize.py",
        """
        import os, time
        if "LOGAGG_SLOT" in os.environ:
            time.sleep(1.5)
        """,
    )
    run.env["PYTHONPATH"] = str(run.directory)
    run.write(
        "main.py",
        """
        import json, logagg, threading, time
        if logagg.is_primary:
            at = {}
            cluster = logagg.Cluster(__file__, workers=1, sinks=["file:l"])
            for event in ("fork", "online", "ready"):
                cluster.on(event)(lambda w, e=event: at.update({e: time.monotonic()}))
            cluster.on("ready")(lambda w: cluster.stop())
            cluster.serve_forever()
            print(json.dumps([at["online"] - at["fork"], at["ready"] - at["online"]]))
        else:
            threading.Event().wait()
        """,
    )

    ((to_begin, to_be_ready),) = python(run, "main.py")

    assert to_begin >= 1.5
    assert to_be_ready >= 1.0


def test_messages_in_all_forms(run: Any) -> None:
    """send, request and broadcast; sync and asyncio handlers; both directions."""
    run.write(
        "main.py",
        """
        import asyncio, json, logagg
        if logagg.is_primary:
            async def main():
                got = asyncio.Queue()
                cluster = logagg.Cluster(__file__, workers=3, sinks=["file:l"])
                cluster.on("message")(lambda w, m: got.put_nowait([w.slot, m]))
                @cluster.on("request")
                async def answer(worker, question):
                    await asyncio.sleep(0)
                    if question == "fail":
                        raise KeyError("no")
                    return [worker.slot, question]
                async with cluster:
                    first = sorted([await got.get() for _ in range(3)])
                    answers = [await w.request(7) for w in cluster.workers]
                    for w in cluster.workers:
                        await w.send("go")
                    second = sorted([await got.get() for _ in range(3)])
                    await cluster.broadcast({"to": "all"})
                    third = sorted([await got.get() for _ in range(3)])
                    errors = []
                    for message in (object(), "x" * 5_000_000):
                        try:
                            await cluster.workers[0].send(message)
                        except ValueError as error:
                            errors.append(str(error))
                    late = cluster.workers[0].request("slow", timeout=0.2)
                    try:
                        await late
                    except TimeoutError as error:
                        errors.append(str(error))
                    cluster.workers[0].send("relay")
                    fourth = sorted([await got.get() for _ in range(3)])
                print(json.dumps([first, answers, second, third, errors, fourth]))
            asyncio.run(main())
        else:
            async def worker():
                me = logagg.worker
                @me.on("request")
                async def answer(value):
                    if value == "slow":
                        await asyncio.sleep(60)
                    return value * me.slot
                @me.on("message")
                async def message(value):
                    if value == "go":
                        try:
                            await me.request("fail")
                        except RuntimeError as error:
                            await me.send([await me.request("q"), str(error)])
                    elif value == "relay":
                        await logagg.broadcast("hello all")
                    else:
                        me.send(value)
                await me.send("up")
                me.ready()
                await asyncio.Event().wait()
            asyncio.run(worker())
        """,
    )

    ((first, answers, second, third, errors, fourth),) = python(run, "main.py")

    assert first == [[n, "up"] for n in (1, 2, 3)]
    assert answers == [7, 14, 21]
    assert second == [[n, [[n, "q"], "KeyError: 'no'"]] for n in (1, 2, 3)]
    assert third == [[n, {"to": "all"}] for n in (1, 2, 3)]
    assert fourth == [[n, "hello all"] for n in (1, 2, 3)]
    assert "JSON" in errors[0]
    assert "4194304" in errors[1]
    assert "0.2" in errors[2]


def test_a_slow_receiver_slows_the_sender_and_loses_nothing(run: Any) -> None:
    """20,000 messages against a slow handler: all arrive in order, few are on the way."""
    run.write(
        "main.py",
        """
        import json, logagg, time
        if logagg.is_primary:
            got, most = [], 0
            cluster = logagg.Cluster(__file__, workers=1, sinks=["file:l"])
            @cluster.on("message")
            def message(worker, value):
                if value == "done":
                    return cluster.stop()
                if len(got) < 200:
                    time.sleep(0.001)
                got.append(value)
            cluster.serve_forever()
            print(json.dumps([got == list(range(20_000)), most]))
        else:
            most = 0
            for n in range(20_000):
                logagg.worker.send(n)
                most = max(most, logagg.worker.peer.unacknowledged)
            print("most", most)
            logagg.worker.send("done")
            time.sleep(60)
        """,
    )

    assert python(run, "main.py") == [[True, 0]]

    lines = (run.directory / "l").read_text().splitlines()
    (most,) = [json.loads(x)["message"] for x in lines if '"most' in x]
    assert 2 <= int(most.split()[1]) <= 1025


def test_a_socket_is_passed_with_a_message(run: Any) -> None:
    """The primary accepts and gives connections to workers of its choice."""
    run.write(
        "main.py",
        """
        import json, logagg, socket, threading
        if logagg.is_primary:
            ready = threading.Semaphore(0)
            cluster = logagg.Cluster(__file__, workers=2, sinks=["file:l"])
            cluster.on("ready")(lambda w: ready.release())
            server = socket.create_server(("127.0.0.1", 0))
            answers = []
            with cluster:
                ready.acquire(), ready.acquire()
                for n in range(6):
                    client = socket.create_connection(server.getsockname())
                    taken, _ = server.accept()
                    worker = cluster.workers[n % 2]
                    worker.send({"n": n}, taken).result(10)
                    taken.close()
                    answers.append(client.recv(100).decode())
                    client.close()
            print(json.dumps(answers))
        else:
            import time
            @logagg.worker.on("message")
            def take(message, sock):
                sock.sendall(f"{logagg.worker.slot} {message['n']}".encode())
                sock.close()
            logagg.worker.ready()
            time.sleep(60)
        """,
    )

    assert python(run, "main.py") == [["1 0", "2 1", "1 2", "2 3", "1 4", "2 5"]]


def test_shutdown_hooks_run_before_the_signal(run: Any) -> None:
    """on_shutdown gets the time that is left; TERM comes when it has returned, once."""
    run.write(
        "app.py",
        """
        import logagg, signal, sys, time
        def term(*_):
            print("term"); sys.exit(0)
        signal.signal(signal.SIGTERM, term)
        @logagg.on_shutdown
        def hook(left):
            print("hook", 5 < left <= 10)
            time.sleep(0.3)
            print("hook done")
        logagg.worker.ready()
        while True:
            time.sleep(0.1)
        """,
    )
    run.start("-w", 1, "--stop-timeout", 10, "app.py")
    run.until_ready(1)

    assert run.stop() == -signal.SIGTERM

    assert run.messages(stream="stdout") == ["hook True", "hook done", "term"]


def test_outside_a_run_there_is_no_worker(run: Any) -> None:
    """`logagg.worker` is None, `is_primary` true; also in a worker's forked child."""
    run.write(
        "app.py",
        """
        import logagg, os
        print("parent", logagg.worker is not None, logagg.is_primary)
        if os.fork() == 0:
            print("child", logagg.worker, logagg.is_primary)
            os._exit(0)
        os.wait()
        """,
    )
    code = "import logagg; assert logagg.worker is None and logagg.is_primary"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert run.start("-w", 1, "app.py").wait() == 0
    assert sorted(run.messages(stream="stdout")) == [
        "child None True",
        "parent True False",
    ]


TASKS = """
    import asyncio, json, logagg, os, signal, time

    @logagg.task()
    def square(x):
        if x == 2 and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 5:
            class Odd(Exception):
                def __init__(self, a, b):
                    super().__init__(lambda: a)
            raise Odd(1, 2)
        return x * x

    @logagg.task(retries=1)
    def fragile(x):
        with open("runs", "a") as f:
            f.write("x")
        if os.stat("runs").st_size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    @logagg.task(timeout=0.3)
    def slow(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        return "done"

    @logagg.task()
    async def later(x):
        await asyncio.sleep(0.01)
        return {"x": x, "slot": logagg.worker.slot}

    @logagg.task()
    def bad():
        return {1, 2}
"""


def test_tasks_like_an_executor(run: Any) -> None:
    """8 tasks on 3 workers, one kills its worker, one raises oddly: 6 results, 2 errors."""
    run.write("tasks.py", TASKS)
    run.write(
        "main.py",
        """
        import json, math, logagg
        import tasks
        with logagg.Cluster("tasks.py", workers=3, sinks=["file:l"]) as cluster:
            out = []
            for future in [cluster.submit(tasks.square, n) for n in range(8)]:
                try:
                    out.append(future.result(30))
                except Exception as error:
                    out.append([type(error).__name__, str(error),
                                getattr(error, "signal", None)])
            after = cluster.submit(tasks.square, 9).result(30)
            fragile = cluster.submit(tasks.fragile, "again").result(30)
            mapped = list(cluster.map(tasks.square, [3, 4, 6]))
            factorial = cluster.submit(math.factorial, 5).result(30)
            later = cluster.submit("later", 1).result(30)["x"]
            errors = []
            for call in (
                lambda: cluster.submit(tasks.bad).result(30),
                lambda: cluster.submit("none").result(30),
                lambda: cluster.submit(lambda: 1),
                lambda: cluster.submit(tasks.square, object()),
                lambda: cluster.submit(tasks.slow, 60).result(30),
            ):
                try:
                    errors.append(["no error", call()])
                except Exception as error:
                    errors.append([type(error).__name__, str(error)])
            quick = cluster.submit(tasks.square, 11).result(30)
            cancelled = cluster.submit(tasks.later, 1)
            for f in [cluster.submit("later", n) for n in range(10)]:
                f.cancel()
            progress = cluster.status()["tasks"]
            cluster.shutdown()
            print(json.dumps([out, after, fragile, mapped, factorial, later, quick]))
            print(json.dumps([errors, progress]))
        """,
    )

    (results, rest) = python(run, "main.py")

    out, after, fragile, mapped, factorial, later, quick = results
    assert out[:2] + out[3:5] + out[6:] == [0, 1, 9, 16, 36, 49]
    assert out[2][0] == "WorkerDied"
    assert out[2][2] == signal.SIGKILL
    assert "SIGKILL" in out[2][1]
    assert out[5][0] == "TaskFailed"
    assert "Odd" in out[5][1]
    assert (after, fragile, mapped, factorial) == (81, "again", [9, 16, 36], 120)
    assert (later, quick) == (1, 121)
    errors, progress = rest
    assert [name for name, _ in errors] == [
        "TaskFailed", "TaskFailed", "ConfigError", "WireError", "TimeoutError",
    ]  # fmt: skip
    assert "JSON" in errors[0][1]
    assert "none" in errors[1][1]
    assert progress["retried"] == 1
    assert progress["timed_out"] == 1


def test_tasks_in_asyncio_and_max_pending(run: Any) -> None:
    """`await cluster.run`, its timeout cancels the task; max_pending raises in a loop."""
    run.write("tasks.py", TASKS.replace("timeout=0.3", "timeout=None"))
    run.write(
        "main.py",
        """
        import asyncio, json, logagg, time
        import tasks
        async def main():
            cluster = logagg.Cluster("tasks.py", workers=1, max_pending=3, sinks=["file:l"])
            async with cluster:
                out = [await cluster.run(tasks.later, 5)]
                began = time.monotonic()
                try:
                    await cluster.run(tasks.slow, 60, timeout=0.2)
                except TimeoutError:
                    out.append("timeout")
                out.append(await cluster.run(tasks.square, 3))
                out.append(time.monotonic() - began < 10)
                futures = [cluster.submit(tasks.later, n) for n in range(3)]
                try:
                    cluster.submit(tasks.later, 4)
                except BlockingIOError as error:
                    out.append(str(error))
                out += [(await f)["x"] for f in futures]
            print(json.dumps(out))
        asyncio.run(main())
        """,
    )

    (out,) = python(run, "main.py")

    assert out[0] == {"x": 5, "slot": 1}
    assert out[1:4] == ["timeout", 9, True]
    assert "3 tasks are pending" in out[4]
    assert out[5:] == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_fork_scale_and_kill_from_a_program(run: Any, workers: int) -> None:
    """fork() opens slots, scale() too; kill() by the primary counts as asked for."""
    run.write(
        "main.py",
        """
        import json, sys, time, threading, logagg
        if logagg.is_primary:
            exits, ready = [], threading.Semaphore(0)
            cluster = logagg.Cluster(__file__, workers=int(sys.argv[1]), sinks=["file:l"])
            cluster.on("exit")(lambda w, e: exits.append([w.slot, e.voluntary]))
            cluster.on("ready")(lambda w: ready.release())
            with cluster:
                cluster.fork(2).result(10)
                for _ in range(int(sys.argv[1]) + 2):
                    ready.acquire()
                slots = [w.slot for w in cluster.workers]
                cluster.workers[-1].kill()
                while not exits:
                    time.sleep(0.01)
                cluster.scale(1).result(30)
                left = [w.slot for w in cluster.workers]
                cluster.disconnect(cluster.workers[0]).result(30)
                none = cluster.workers
            print(json.dumps([slots, sorted(exits), left, none]))
        else:
            logagg.worker.ready()
            time.sleep(60)
        """,
    )

    ((slots, exits, left, none),) = python(run, "main.py", str(workers))

    assert slots == list(range(1, workers + 3))
    assert exits == [[slot, True] for slot in slots]
    assert left == [1]
    assert none == []
