"""Faults of one party cost one attempt: no worker, connection or stop is lost by them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import support

from logagg.supervisor.sockets.sticky import choose_slot

pytestmark = pytest.mark.slow  # many real processes, some seconds each

SERVER = """
    import asyncio, os, pathlib, sys, time
    import logagg
    HEAD = "HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n"
    slot, port, scene = os.environ["LOGAGG_SLOT"], int(sys.argv[1]), sys.argv[2]
    held = []
    async def answer(reader, writer):
        await reader.readline()
        fd = writer.get_extra_info("socket").fileno()
        writer.write(f"{HEAD}{slot} {os.get_inheritable(fd)}".encode())
        writer.close()
    def use_up():
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            print("full", flush=True)
    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        if scene == "busy" and slot == "1":
            logagg.worker.ready()
            while not os.path.exists("go"):
                time.sleep(0.02)
        full = pathlib.Path("full")
        while True:
            if full.exists() and slot == "1" and not held:
                use_up()
            elif held and not full.exists():
                while held:
                    os.close(held.pop())
            await asyncio.sleep(0.02)
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    asyncio.run(main())
"""


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> dict[int, str]:
    """The children of a process that are no zombies, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "stat").read_text().rpartition(")")[2].split()
            if words[1] == str(pid) and words[0] != "Z":
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = line.decode()
        except (OSError, IndexError, ValueError):
            continue
    return found


def test_a_worker_out_of_descriptors_costs_no_connection(run: Any, tools: Any) -> None:
    """Its sibling serves meanwhile; when it has descriptors again, it serves again."""
    port = tools.free_port()
    run.write("app.py", SERVER)
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", "rr"]
    run.start("-w", 2, *bind, "app.py", port, "full")
    run.until_ready(2)
    (run.directory / "full").touch()
    run.until_record(message="full")

    assert {tools.get(port).split()[0] for _ in range(12)} == {"2"}
    (run.directory / "full").unlink()
    tools.until(lambda: tools.get(port).split()[0] == "1", 30, "slot 1 serves again")
    assert tools.get(port).split()[1] == "False"  # no child inherits a connection
    assert run.stop() == -signal.SIGTERM


def test_sticky_clients_of_a_worker_out_of_descriptors_wait_for_it(
    run: Any, tools: Any
) -> None:
    """For a moment; all of them are served, though nothing more comes."""
    port = tools.free_port()
    run.write("app.py", SERVER)
    bind = ["--bind", f"127.0.0.1:{port}", "--sticky", "ip"]
    run.start("-w", 2, *bind, "app.py", port, "full")
    run.until_ready(2)
    addresses = [f"127.0.0.{n}" for n in range(1, 99)]
    home = next(a for a in addresses if choose_slot(a.encode(), [1, 2]) == 1)
    (run.directory / "full").touch()
    run.until_record(message="full")
    clients = [
        socket.create_connection(("127.0.0.1", port), 60, (home, 0)) for _ in range(5)
    ]
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    tools.until(lambda: run.status()["listeners"][0]["waiting"])
    (run.directory / "full").unlink()

    for client in clients:
        with client, client.makefile("rb") as answer:
            assert answer.read().rpartition(b"\r\n\r\n")[2] == b"1 False"
    assert run.stop() == -signal.SIGTERM


def test_a_worker_that_is_busy_before_it_accepts_changes_nothing(
    run: Any, tools: Any
) -> None:
    """The policy stays, every client is served, and later the worker has its turns."""
    port = tools.free_port()
    run.write("app.py", SERVER)
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", "rr"]
    run.start("-w", 2, *bind, "app.py", port, "busy")
    run.until_ready(2)

    began = time.monotonic()
    while time.monotonic() - began < 3:  # it takes no connection for so long
        assert tools.get(port, timeout=30).split()[0] == "2"
    (run.directory / "go").touch()
    tools.until(lambda: tools.get(port, timeout=30).split()[0] == "1", 30)
    assert run.status()["listeners"][0]["policy"] == "rr"
    assert run.stop() == -signal.SIGTERM


def test_a_run_whose_sockets_directory_is_gone_can_be_stopped(
    run: Any, tools: Any
) -> None:
    """A worker's end in between is followed by another, and nothing hangs."""
    place = run.directory / "sockets"
    place.mkdir()
    run.write(
        "app.py",
        f"""
        import signal, socket
        sock = socket.socket(socket.AF_UNIX)
        sock.bind("{place}/s")
        sock.listen()
        while True:
            signal.pause()
        """,
    )
    run.start("-w", 1, "--bind", f"unix:{place}/s", "app.py")
    run.until_ready(1)
    pid = run.workers()[1]
    shutil.rmtree(place)
    os.kill(pid, signal.SIGKILL)
    run.until_record(event="worker_exit", pid=pid)

    assert run.stop(60) == -signal.SIGTERM


def test_a_reload_while_the_old_worker_ends_by_itself_loses_none(
    run: Any, tools: Any
) -> None:
    """Nobody lives whom the run does not know, and the run ends when the program has."""
    run.write(
        "app.py",
        """
        import os, pathlib, time, logagg
        slot, go = os.environ["LOGAGG_SLOT"], pathlib.Path("go")
        pathlib.Path(f"pid-{os.getpid()}").touch()
        fresh = pathlib.Path("again").exists()
        if fresh:
            time.sleep(1.5)
        logagg.worker.ready()
        while slot == "2" or fresh or not go.exists():
            time.sleep(0.02)
        """,
    )
    run.start("-w", 2, "app.py")
    run.until_ready(2)
    (run.directory / "again").touch()
    run.signal(signal.SIGHUP)
    tools.until(lambda: len(list(run.directory.glob("pid-*"))) == 3)
    (run.directory / "go").touch()  # the old one ends, the fresh one begins

    def known() -> bool:
        pids = [int(p.name[4:]) for p in run.directory.glob("pid-*")]
        living = {pid for pid in pids if tools.alive(pid)}
        return len(living) == 1 and living == set(run.workers().values())

    tools.until(known, 60, "each living worker is in the status")
    assert run.stop(60) == -signal.SIGTERM


def test_a_pause_of_the_supervisor_ends_no_worker(run: Any, tools: Any) -> None:
    """Stopped for longer than a worker may be silent, it takes their answers then."""
    run.write(
        "app.py",
        """
        import signal, logagg
        logagg.worker.ready()
        while True:
            signal.pause()
        """,
    )
    run.start("-w", 2, "--unresponsive-timeout", 2, "app.py")
    before = run.until_ready(2)
    run.signal(signal.SIGSTOP)
    time.sleep(5)  # the pause itself
    run.signal(signal.SIGCONT)
    later = before["uptime"] + 5 + 4

    def checked() -> Any:
        status = run.status()
        return status if status["slots"] and status["uptime"] > later else None

    status = tools.until(checked)
    assert [s["pid"] for s in status["slots"]] == [s["pid"] for s in before["slots"]]
    assert not run.records(event="unresponsive")
    assert run.stop() == -signal.SIGTERM


def test_a_worker_that_binds_while_the_supervisor_is_paused_waits(
    run: Any, tools: Any
) -> None:
    """However long: its program gets no error for it."""
    port = tools.free_port()
    run.write(
        "app.py",
        f"""
        import pathlib, signal, socket, time, logagg
        logagg.worker.ready()
        while not pathlib.Path("go").exists():
            time.sleep(0.02)
        pathlib.Path("binds").touch()
        server = socket.create_server(("127.0.0.1", {port}))
        print("bound", flush=True)
        while True:
            signal.pause()
        """,
    )
    run.start("-w", 1, "app.py")
    run.until_ready(1)
    before = run.workers()
    run.signal(signal.SIGSTOP)
    (run.directory / "go").touch()
    tools.until((run.directory / "binds").exists)
    time.sleep(6)  # the pause itself
    run.signal(signal.SIGCONT)
    run.until_record(message="bound")
    assert run.workers() == before
    assert run.stop() == -signal.SIGTERM


EXECS = """
    import os, sys, logagg
    @logagg.on_shutdown
    def hook():
        print("hook")
    logagg.worker.ready()
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7));"
    code += "print('there', flush=True); [signal.pause() for _ in iter(int, 1)]"
    os.execv(sys.executable, [sys.executable, "-c", code])
"""
CLOSES = """
    import os, signal, sys, logagg
    @logagg.on_shutdown
    def hook():
        print("hook")
    def end(*_):
        lengths = {os.fstat(file.fileno()).st_size for file in files}
        sys.exit(7 if lengths == {0} else 1)
    signal.signal(signal.SIGTERM, end)
    logagg.worker.ready()
    os.closerange(3, 256)
    files = [open(f"own-{number}", "w+") for number in range(40)]
    print("there", flush=True)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("program", [EXECS, CLOSES], ids=["exec", "closerange"])
def test_a_worker_that_closes_its_channel_lives_on(
    run: Any, tools: Any, program: str
) -> None:
    """It cannot be asked whether it hangs, nor for its hooks; its files are its own."""
    run.write("app.py", program)
    limits = ["--unresponsive-timeout", 2, "--stop-timeout", 60]
    run.start("-w", 1, *limits, "app.py")
    run.until_record(message="there")
    before = run.until_ready(1)
    later = before["uptime"] + 2 + 4

    def checked() -> Any:
        status = run.status()
        return status if status["slots"] and status["uptime"] > later else None

    status = tools.until(checked)
    assert [s["pid"] for s in status["slots"]] == [s["pid"] for s in before["slots"]]
    assert not run.records(event="unresponsive")
    assert run.stop() == -signal.SIGTERM
    (end,) = run.records(event="worker_exit")
    assert end["status"] == 7


EXECS_LATER = """
    import os, pathlib, socket, sys, time
    here = pathlib.Path(os.environ["LOGAGG_SLOT"] + "-execs")
    server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    server.settimeout(0.05)
    print("listens", flush=True)
    while not here.exists():
        try:
            client, _ = server.accept()
        except TimeoutError:
            continue
        client.recv(100)
        client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + str(here).encode())
        client.close()
    here.unlink()
    while os.path.exists("busy"):
        time.sleep(0.02)
    os.execvp("sleep", ["sleep", "600"])
"""


@support.linux_form  # elsewhere nobody knows what another process has open
@pytest.mark.parametrize(
    ("policy", "workers", "named"),
    [("kernel", 1, False), ("rr", 1, False), ("rr", 1, True), ("rr", 2, True)],
)
def test_a_worker_that_becomes_another_program_holds_no_client_up(
    run: Any, tools: Any, policy: str, named: bool, workers: int
) -> None:
    """As if its program had closed the port: a sibling serves, or the next, or nobody."""
    port = tools.free_port()
    run.write("app.py", EXECS_LATER)
    bind = ["--bind", f"127.0.0.1:{port}"] if named else []
    run.start("-w", workers, *bind, "--policy", policy, "app.py", port)
    run.until_ready(workers)
    (run.directory / "busy").touch()
    (run.directory / "1-execs").touch()
    tools.until(lambda: not (run.directory / "1-execs").exists())
    clients = []
    for _ in range(3):  # with rr one is given to the worker that is about to leave
        clients.append(socket.create_connection(("127.0.0.1", port), 60))
        clients[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    pid = run.workers()[1]
    (run.directory / "busy").unlink()
    tools.until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")

    server = b"2-execs"
    if workers == 1 and named:
        os.kill(pid, signal.SIGKILL)
        server = b"1-execs"
    elif workers == 1:
        tools.until(lambda: _refused(port), 60, "clients are refused")
        server = b""
    for client in clients:
        with client, client.makefile("rb") as answer:
            text = _read(answer)
            assert text.endswith(server)
            assert bool(text) is bool(server)
    if workers == 2:
        assert tools.get(port) == "2-execs"
    assert not run.records(event="unresponsive")
    assert run.stop(60) == -signal.SIGTERM


@pytest.mark.parametrize("cluster", [False, True])
def test_a_guard_that_is_killed_is_replaced(
    run: Any, tools: Any, cluster: bool
) -> None:
    """Without a zombie; and what ignores TERM ends with a killed supervisor."""
    run.write(
        "app.py",
        """
        import signal, time, logagg
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logagg.worker.ready()
        time.sleep(999)
        """,
    )
    if cluster:
        run.write(
            "main.py",
            """
            import logagg, time
            with logagg.Cluster("app.py", workers=2, sinks=["file:log.ndjson"]):
                time.sleep(999)
            """,
        )
        words = [sys.executable, "main.py"]
        run.process = subprocess.Popen(
            words, cwd=run.directory, env=run.env, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
    else:
        run.start("-w", 2, "app.py")
    run.until_ready(2)
    pids = list(run.workers().values())
    os.kill(pids[0], signal.SIGSTOP)

    def guard() -> int:
        lines = _children(run.pid).items()
        return next((pid for pid, line in lines if "guard.py" in line), 0)

    first = guard()
    os.kill(first, signal.SIGKILL)
    tools.until(lambda: guard() not in (0, first), 30, "another guard")
    assert not Path(f"/proc/{first}").exists()
    run.process.kill()
    run.process.communicate(timeout=90)
    tools.until(lambda: not any(map(tools.alive, pids)), 30, "orphans")


def test_a_half_request_costs_no_cpu(run: Any, tools: Any) -> None:
    """Of clients who have closed their side, nobody polls for more."""
    port = tools.free_port()
    run.write("app.py", SERVER)
    bind = ["--bind", f"127.0.0.1:{port}", "--sticky", "cookie:sid"]
    run.start("-w", 1, *bind, "app.py", port, "half")
    run.until_ready(1)
    before, began = _cpu(run.pid), time.monotonic()
    for _ in range(16):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(b"GET / HTTP/1.1\r\nCook")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")

    spent = _cpu(run.pid) - before
    assert spent < 0.2 + (time.monotonic() - began) / 50  # its own regular checks
    assert run.stop() == -signal.SIGTERM


def test_a_supervisor_out_of_descriptors_waits_for_some(run: Any, tools: Any) -> None:
    """It does not spin meanwhile, and who has connected is served later."""
    port = tools.free_port()
    run.write("app.py", SERVER)
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", "rr"]
    run.start("-w", 1, *bind, "app.py", port, "scarce")
    run.until_ready(1)
    tools.get(port)
    fds = [int(fd.name) for fd in Path(f"/proc/{run.pid}/fd").iterdir()]
    # Not one number below the limit is free.
    limit = next(n for n in range(max(fds) + 2) if n not in fds)
    old = resource.prlimit(run.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(run.pid, resource.RLIMIT_NOFILE, (limit, old[1]))
    before, began = _cpu(run.pid), time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.settimeout(3)
        with pytest.raises(TimeoutError):
            client.recv(1000)
        spent = _cpu(run.pid) - before
        resource.prlimit(run.pid, resource.RLIMIT_NOFILE, old)
        client.settimeout(60)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert spent < 0.1 + (time.monotonic() - began) / 50
    assert run.stop() == -signal.SIGTERM


TAKER = """
    import asyncio, os, signal, logagg
    held = []
    async def main():
        scene = os.environ["SCENE"]
        @logagg.worker.on("message")
        def received(message, sock):
            if message == "full":
                try:
                    while True:
                        held.append(os.dup(0))
                except OSError:
                    pass
            if message == "free":
                while held:
                    os.close(held.pop())
            if message == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
        @logagg.worker.on("request")
        def asked(message):
            return os.getpid()
        logagg.worker.ready()
        if scene == "full" and logagg.worker.slot == 2:
            while not os.path.exists("go"):
                await asyncio.sleep(0.02)
            receipts = []
            for n in range(20):
                receipts.append(logagg.worker.broadcast("x" * 1_000_000))
                receipts.append(logagg.worker.send(n))
            ended = await asyncio.gather(*receipts, return_exceptions=True)
            await logagg.worker.send([type(e).__name__ for e in ended])
        await asyncio.sleep(999)
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    asyncio.run(main())
"""

CLUSTER = """
    import asyncio, json, os, signal, socket, sys, threading
    import logagg
    from logagg.errors import WouldBlock

    scene = sys.argv[1]

    def cluster(workers, **options):
        c = logagg.Cluster("worker.py", workers=workers, sinks=["file:log.ndjson"],
                           env={"SCENE": scene}, stop_timeout=2, **options)
        c.ready = threading.Semaphore(0)
        c.on("ready")(lambda worker: c.ready.release())
        return c

    def descriptor():
        with cluster(1) as c:
            c.ready.acquire()
            (worker,) = c.workers
            pid = worker.request("pid", 60).result()
            worker.send("full").result()
            a, b = socket.socketpair()
            lost = worker.send("socket", a).exception(60)
            worker.send("free").result()
            kept = worker.send("socket", a).exception(60)
            return [type(lost).__name__, kept is None,
                    worker.request("pid", 60).result() == pid]

    def full():
        got, over = [], threading.Event()
        c = cluster(2, unresponsive_timeout=0)
        @c.on("message")
        def received(worker, message):
            got.append(message)
            if isinstance(message, list):
                over.set()
        with c:
            c.ready.acquire()
            c.ready.acquire()
            stopped = c.workers[0]
            stopped.send("stop")
            while "T" not in open(f"/proc/{stopped.pid}/stat").read().rpartition(")")[2]:
                pass
            try:
                while True:
                    stopped.send("y" * 1_000_000)
            except WouldBlock:
                pass
            open("go", "w").close()
            if not over.wait(90):
                return got
            ended = got.pop()
            return [got == list(range(20)), set(ended[::2]) == {"WouldBlock"},
                    set(ended[1::2]) == {"NoneType"}]

    print(json.dumps(globals()[scene]()))
"""


@pytest.mark.parametrize(
    ("scene", "outcome"),
    [("descriptor", ["WouldBlock", True, True]), ("full", [True, True, True])],
)
def test_what_a_worker_cannot_take_fails_its_receipt_alone(
    run: Any, scene: str, outcome: Any
) -> None:
    """A socket for a worker out of descriptors; broadcasts for one that takes none."""
    run.write("worker.py", TAKER)
    run.write("main.py", CLUSTER)
    done = subprocess.run(
        [sys.executable, "main.py", scene], cwd=run.directory, env=run.env,
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == outcome


def test_runs_with_the_same_pid_do_not_meet(run: Any, tools: Any) -> None:
    """Two containers that share the runtime directory: each log has its own records."""
    prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no pid namespaces here")
    run.write(
        "app.py",
        """
        import logging, pathlib, sys, time
        while not pathlib.Path("go").exists():
            time.sleep(0.02)
        for n in range(200):
            logging.warning("%s %d", sys.argv[1], n)
            print(sys.argv[1], "printed", n)
        """,
    )
    others = []
    for name in "ab":
        words = [*prefix, *tools.logagg, "run", "-w", "1", "--restart", "never"]
        sink = ["--sink", f"file:{run.directory}/{name}.log"]
        others.append(
            subprocess.Popen(
                [*words, *sink, "app.py", name], cwd=run.directory, env=run.env
            )
        )
        if name == "a":
            tools.until((run.directory / "a.log").exists)
    tools.until((run.directory / "b.log").exists)
    (run.directory / "go").touch()

    assert [other.wait(90) for other in others] == [0, 0]
    for name, stranger in ("ab", "ba"):
        text = (run.directory / f"{name}.log").read_text()
        assert text.count(f'"message":"{name} ') == 400
        assert f'"message":"{stranger} ' not in text


LEAVING = """
    import os, pathlib, signal, time, logagg
    def slow(*_):
        time.sleep(float(os.environ.get("LEAVE", "3")))
        os._exit(0)
    signal.signal(signal.SIGTERM, slow)
    pathlib.Path(f"pid-{os.getpid()}").touch()
    logagg.worker.ready()
    while True:
        time.sleep(0.05)
"""


def test_slots_on_their_way_out_are_not_counted(run: Any, tools: Any) -> None:
    """`scale 2`, then `scale 4` while two leave: four. Two TTOU at once: two fewer."""
    run.write("app.py", LEAVING)
    run.start("-w", 4, "app.py")
    run.until_ready(4)
    fewer = subprocess.Popen([*tools.logagg, "scale", "2"], cwd=run.directory,
                             env=run.env, stdout=subprocess.DEVNULL)  # fmt: skip
    tools.until(lambda: [s["state"] for s in run.status()["slots"]].count("ready") == 2)
    assert run.command("scale", 4).returncode == 0
    assert fewer.wait(90) == 0
    run.until_ready(4)
    run.signal(signal.SIGTTOU)
    run.until_record(event="scale", message="scaling to 3 workers")
    run.signal(signal.SIGTTOU)

    run.until_ready(2)
    assert run.stop(60) == -signal.SIGTERM


def test_a_second_signal_ends_the_worker_that_a_reload_replaces(
    run: Any, tools: Any
) -> None:
    """And a fresh one that dies while the old one still ends is replaced at once."""
    run.write("app.py", LEAVING)
    run.env["LEAVE"] = "120"
    run.start("-w", 1, "--level", "debug", "--stop-timeout", 100, "app.py")
    run.until_ready(1)
    old = run.workers()[1]
    run.signal(signal.SIGHUP)
    fresh = tools.until(lambda: (w := run.workers().get(1)) not in (None, old) and w)
    run.until_ready(1)
    os.kill(fresh, signal.SIGKILL)
    tools.until(
        lambda: run.workers().get(1) not in (None, old, fresh), 60, "another worker"
    )
    assert tools.alive(old)

    run.signal(signal.SIGTERM)
    run.until_record(event="stopping")
    run.signal(signal.SIGTERM)
    began = time.monotonic()
    assert run.wait(90) == -signal.SIGTERM
    assert time.monotonic() - began < 60
    pids = [int(path.name[4:]) for path in run.directory.glob("pid-*")]
    assert not any(map(tools.alive, pids))


def test_a_stop_while_workers_are_started_starts_no_more(run: Any) -> None:
    """A signal at the first worker: the others are never begun."""
    run.write("app.py", "import time; time.sleep(99)")
    run.write(
        "main.py",
        """
        import os, signal, logagg
        forks = []
        cluster = logagg.Cluster("app.py", workers=20, sinks=["file:log.ndjson"])
        @cluster.on("fork")
        def forked(worker):
            forks.append(worker)
            if len(forks) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        print(cluster.serve_forever(), len(forks))
        """,
    )
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=run.directory, env=run.env,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    status, forks = map(int, done.stdout.split())
    assert status == 128 + signal.SIGTERM
    assert forks < 20


def test_an_event_of_a_megabyte_stops_no_other(run: Any) -> None:
    """It is cut; what follows it is in the log, and the exit status is the run's."""
    run.write("app.py", "import logagg; logagg.worker.send(1).result()")
    run.write(
        "main.py",
        """
        import logagg
        cluster = logagg.Cluster("app.py", workers=1, sinks=["file:log.ndjson"])
        @cluster.on("message")
        def received(worker, message):
            raise ValueError("x" * 1_000_000)
        print(cluster.serve_forever())
        """,
    )
    run.env["LOGAGG_LEVEL"] = "debug"
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=run.directory, env=run.env,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.stdout == "0\n"
    (failed,) = run.records(event="handler_failed")
    assert failed["message"].startswith("the message handler failed: ValueError('xxx")
    assert run.records(event="worker_exit")


def test_a_worker_that_is_suspended_has_its_time_to_drain(run: Any, tools: Any) -> None:
    """It is replaced meanwhile; what it has accepted becomes a request afterwards."""
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    server = ["-m", "uvicorn", "web:app", "--loop", "asyncio", "--port", port]
    bind = ["--bind", f"127.0.0.1:{port}"]
    run.start("-w", 1, "--level", "debug", *bind, *server)
    run.until_ready(1)
    old = run.workers()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        tools.until(lambda: run.status()["slots"][0]["connections"], 60, "accepted")
        os.kill(old, signal.SIGSTOP)
        run.signal(signal.SIGHUP)
        tools.until(lambda: run.workers().get(1, old) != old)
        run.until_ready(1)
        time.sleep(2)  # longer than what drains has time for
        os.kill(old, signal.SIGCONT)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    run.until_record(event="worker_exit", pid=old)
    assert run.stop() == -signal.SIGTERM


CLOSING = """
    import asyncio, os, pathlib, sys
    slot, port = os.environ["LOGAGG_SLOT"], int(sys.argv[1])
    async def answer(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + slot.encode())
        writer.close()
    async def main():
        closed, server = pathlib.Path(f"closed-{slot}"), None
        while True:
            if server is None and not closed.exists():
                server = await asyncio.start_server(answer, "127.0.0.1", port)
            elif server is not None and closed.exists():
                server.close()
                server = None
                print("closed", flush=True)
            await asyncio.sleep(0.02)
    asyncio.run(main())
"""


CLOSING_GEVENT = """
    from gevent import monkey; monkey.patch_all()
    import gevent, os, pathlib, sys
    from gevent.pywsgi import WSGIServer
    slot, port = os.environ["LOGAGG_SLOT"], int(sys.argv[1])
    def app(environ, start_response):
        start_response("200 OK", [("Connection", "close"), ("Content-Length", "1")])
        return [slot.encode()]
    closed, server = pathlib.Path(f"closed-{slot}"), None
    while True:
        if server is None and not closed.exists():
            server = WSGIServer(("127.0.0.1", port), app, log=None)
            server.start()
        elif server is not None and closed.exists():
            server.stop()
            server = None
            print("closed", flush=True)
        gevent.sleep(0.02)
"""


@pytest.mark.parametrize("policy", ["kernel", "rr"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("program", [CLOSING, CLOSING_GEVENT], ids=["plain", "gevent"])
def test_a_port_that_the_program_closes_is_closed(
    run: Any, tools: Any, policy: str, named: bool, program: str
) -> None:
    """When all workers have; with `--bind` clients wait. It may be opened again."""
    if program is CLOSING_GEVENT:
        pytest.importorskip("gevent", reason="gevent is not installed")
    port = tools.free_port()
    run.write("app.py", program)
    bind = ["--bind", f"127.0.0.1:{port}"] if named else []
    run.start("-w", 2, *bind, "--policy", policy, "app.py", port)
    run.until_ready(2)
    (run.directory / "closed-1").touch()
    run.until_record(message="closed", worker="1")
    assert {tools.get(port) for _ in range(8)} == {"2"}
    (run.directory / "closed-2").touch()
    run.until_record(message="closed", worker="2")
    waiting = []
    if named:
        waiting.append(socket.create_connection(("127.0.0.1", port), 60))
        waiting[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    else:
        tools.until(lambda: _refused(port), 30, "clients are refused")
        assert run.status()["slots"][0]["state"] == "ready"

    (run.directory / "closed-1").unlink()
    if named:
        with waiting[0] as client, client.makefile("rb") as answer:
            assert answer.read().endswith(b"1")
    tools.until(lambda: not _refused(port))
    assert {tools.get(port, timeout=30) for _ in range(8)} == {"1"}
    assert run.stop() == -signal.SIGTERM


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _read(answer: Any) -> bytes:
    """What a server sends until it closes or breaks the connection."""
    try:
        return bytes(answer.read())
    except ConnectionResetError:
        return b""
