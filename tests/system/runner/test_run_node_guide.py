"""The examples of guides to Node's cluster module, written line for line in Python.

a basic cluster               test_a_basic_cluster_restarts_its_workers[kernel]
round-robin                   test_a_basic_cluster_restarts_its_workers[rr]
a worker to the primary       test_a_worker_sends_to_the_primary
the primary to a worker       test_the_primary_sends_to_a_worker
log aggregation               test_workers_log_by_messages
a task queue                  test_a_task_queue_of_messages
passing sockets               test_a_connection_is_passed_with_a_message
a worker that crashes         test_a_worker_that_crashes_is_followed_by_another
"""

from __future__ import annotations

import datetime
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # real processes


class Primary:
    """A program that is a primary, and what it prints."""

    def __init__(self, run: Any, program: str, **env: Any) -> None:
        run.write("main.py", program)
        self.process = subprocess.Popen(
            [sys.executable, "-u", "main.py"],
            cwd=run.directory,
            env={**run.env, **{name: str(value) for name, value in env.items()}},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line.rstrip())

    def line(self) -> str:
        """The next line."""
        return self.lines.get(timeout=90)


@contextmanager
def primary(run: Any, program: str, **env: Any) -> Iterator[Primary]:
    """Start a program, and stop it with TERM."""
    started = Primary(run, program, **env)
    try:
        yield started
    finally:
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(90)


BASIC = """
    import os
    from http.server import BaseHTTPRequestHandler, HTTPServer
    import logagg

    CPU_COUNT = 2

    if logagg.is_primary:
        cluster = logagg.Cluster(__file__, policy=os.environ["POLICY"], sinks=["file:l"])
        print(f"Primary {os.getpid()} running")

        for i in range(CPU_COUNT):
            cluster.fork()

        @cluster.on("exit")
        def died(worker):
            print(f"Worker {worker.pid} died. Restarting...")
            cluster.fork()

        @cluster.on("listening")
        def listening(worker):
            print(worker.pid)

        cluster.serve_forever()
    else:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(f"Handled by worker {os.getpid()}".encode())

        HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.mark.parametrize("policy", ["kernel", "rr"])
def test_a_basic_cluster_restarts_its_workers(
    run: Any, tools: Any, policy: str
) -> None:
    """As many workers as were forked, before and after a death: no more, no fewer."""
    port = tools.free_port()
    with primary(run, BASIC, PORT=port, POLICY=policy) as node:
        assert node.line() == f"Primary {node.process.pid} running"
        pids = {int(node.line()), int(node.line())}
        handled = tools.get(port, timeout=60)
        assert handled in {f"Handled by worker {pid}" for pid in pids}

        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)

        assert node.line() == f"Worker {victim} died. Restarting..."
        fresh = int(node.line())
        assert fresh not in (victim, *pids)
        children = run.command("status", "--json").stdout
        assert children.count('"state":"ready"') == 2
        assert children.count('"slot":') == 2


READY = """
    import threading
    import logagg

    if logagg.is_primary:
        cluster = logagg.Cluster(__file__, workers=2, sinks=["file:l"])

        @cluster.on("message")
        def received(worker, msg):
            print(f"From {worker.pid}:", msg)

        cluster.serve_forever()
    else:
        process = logagg.worker

        process.send({
            "type": "READY",
            "pid": process.pid,
        })
        threading.Event().wait()
"""


def test_a_worker_sends_to_the_primary(run: Any) -> None:
    """The primary knows of whom each message is."""
    with primary(run, READY) as node:
        lines = {node.line(), node.line()}
    pids = {line.split()[1].rstrip(":") for line in lines}
    assert len(pids) == 2
    assert lines == {f"From {pid}: {{'type': 'READY', 'pid': {pid}}}" for pid in pids}


SHUTDOWN = """
    import sys, threading
    import logagg

    if logagg.is_primary:
        cluster = logagg.Cluster(__file__, workers=1, sinks=["file:l"])

        @cluster.on("ready")
        def ready(worker):
            worker.send({
                "type": "SHUTDOWN",
            })

        @cluster.on("exit")
        def ended(worker, exit):
            print("ended with", exit.code)

        sys.exit(cluster.serve_forever())
    else:
        process = logagg.worker

        @process.on("message")
        def received(msg):
            if msg["type"] == "SHUTDOWN":
                sys.exit(0)

        process.ready()
        threading.Event().wait()
"""


def test_the_primary_sends_to_a_worker(run: Any) -> None:
    """`sys.exit` in the handler ends the worker, and with the last one the run."""
    node = Primary(run, SHUTDOWN)
    assert node.line() == "ended with 0"
    assert node.process.wait(90) == 0


LOGS = """
    import datetime, os, threading, time
    import logagg

    if logagg.is_primary:
        cluster = logagg.Cluster(__file__, workers=2, sinks=["file:l"])

        @cluster.on("message")
        def received(worker, msg):
            if msg["type"] == "LOG":
                print(
                    f"[{datetime.datetime.fromtimestamp(msg['time']).isoformat()}]",
                    f"Worker {msg['pid']}:",
                    msg["message"],
                )

        cluster.serve_forever()
    else:
        process = logagg.worker

        def log(message):
            process.send({
                "type": "LOG",
                "pid": os.getpid(),
                "message": message,
                "time": time.time(),
            })

        for n in range(100):
            log(f"message {n}")
        threading.Event().wait()
"""


def test_workers_log_by_messages(run: Any) -> None:
    """The primary writes all of them, each worker's in order."""
    with primary(run, LOGS) as node:
        lines = [node.line() for _ in range(200)]
    texts: dict[str, list[str]] = {}
    for line in lines:
        time, text = line[1:].split("] ", 1)
        datetime.datetime.fromisoformat(time)
        worker, _, message = text.partition(": ")
        texts.setdefault(worker, []).append(message)
    assert list(texts.values()) == [[f"message {n}" for n in range(100)]] * 2


TASKS = """
    import logagg

    if logagg.is_primary:
        cluster = logagg.Cluster(__file__, workers=2, sinks=["file:l"])
        task_queue = list(range(6))
        idle_workers = []
        results = []

        def assign_task(task):
            if idle_workers:
                worker = idle_workers.pop()
                worker.send({"type": "TASK", "task": task})
            else:
                task_queue.append(task)

        @cluster.on("message")
        def received(worker, msg):
            if msg["type"] == "TASK_RESULT":
                results.append(msg["result"])
            idle_workers.append(worker)
            if task_queue:
                assign_task(task_queue.pop(0))
            if len(results) == 6:
                print(sorted(results))
                cluster.stop()

        cluster.serve_forever()
    else:
        import asyncio

        async def main():
            process = logagg.worker
            done = asyncio.Event()

            @process.on("message")
            async def received(msg):
                if msg["type"] == "TASK":
                    result = msg["task"] ** 2
                    process.send({"type": "TASK_RESULT", "result": result})

            process.send({"type": "IDLE"})
            await done.wait()

        asyncio.run(main())
"""


def test_a_task_queue_of_messages(run: Any) -> None:
    """The primary hands out each task once, to workers that are idle."""
    node = Primary(run, TASKS)
    assert node.line() == "[0, 1, 4, 9, 16, 25]"
    assert node.process.wait(90) == 0


SOCKETS = """
    import os, socket, threading
    import logagg

    if logagg.is_primary:
        cluster = logagg.Cluster(__file__, workers=1, sinks=["file:l"])
        server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))

        @cluster.on("ready")
        def ready(worker):
            def accept():
                sock, _ = server.accept()
                worker.send({"type": "socket"}, sock)
                sock.close()
            threading.Thread(target=accept).start()

        cluster.serve_forever()
    else:
        @logagg.worker.on("message")
        def received(msg, sock):
            sock.sendall(f"{msg['type']} of {os.getpid()}".encode())
            sock.close()

        logagg.worker.ready()
        threading.Event().wait()
"""


def test_a_connection_is_passed_with_a_message(run: Any, tools: Any) -> None:
    """The worker answers on it."""
    import socket

    port = tools.free_port()
    with primary(run, SOCKETS, PORT=port):

        def connected() -> socket.socket | None:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=60)
            except ConnectionRefusedError:
                return None

        with tools.until(connected) as client:
            assert client.recv(100).startswith(b"socket of ")


CRASHES = """
    import os, signal
    import logagg

    if logagg.is_primary:
        cluster = logagg.Cluster(__file__, sinks=["file:l"])
        for i in range(2):
            cluster.fork()

        @cluster.on("exit")
        def ended(worker):
            cluster.fork()

        @cluster.on("message")
        def received(worker, msg):
            print(msg["pid"])

        cluster.serve_forever()
    else:
        logagg.worker.send({"pid": os.getpid()})
        logagg.worker.ready()
        signal.pause()
"""


def test_a_worker_that_crashes_is_followed_by_another(run: Any) -> None:
    """The primary and the other worker live on, as often as one crashes."""
    with primary(run, CRASHES) as node:
        pids = {int(node.line()), int(node.line())}
        lives = pids.pop()
        for number in (signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT):
            victim = pids.pop()
            os.kill(victim, number)
            pids.add(int(node.line()))
            assert victim not in pids
        os.kill(lives, 0)
