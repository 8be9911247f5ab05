"""Everything at once, for a long time: `pytest -m slow --chaos 600 …/test_chaos.py`.

Real servers under load while workers are killed, suspended, kept short of descriptors,
scaled and reloaded at random. Between rounds it gets calm, and everything is checked.

A request may fail only if its worker was killed after it had accepted the connection:
each kill stops the processes first and notes the connections that they hold. A client stays
with its worker while nothing takes the worker away; no process lives whom the run does
not know; and the run ends in time.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import datetime
import os
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import support

SERVERS = {
    "uvicorn": ["--policy", "kernel", "-m", "uvicorn", "web:app"],
    "uvicorn-rr": ["--policy", "rr", "-m", "uvicorn", "web:app"],
    "gunicorn": ["-m", "gunicorn", "wsgi:app", "-k", "gthread", "--threads", "4"],
    "websockets": ["--sticky", "cookie:sid", "-m", "uvicorn", "ws:app"],
}
WSGI = """
    import os
    def app(environ, start_response):
        body = f"{os.environ['LOGAGG_SLOT']} {os.environ['LOGAGG_SLOT_PID']} 0".encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
"""
WS = """
    import os
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            text = f"{os.environ['LOGAGG_SLOT']} {os.getpid()} 0"
            await send({"type": "websocket.send", "text": text})
"""
STOP_TIMEOUT = 10.0
CLIENTS = 4


class Failure(NamedTuple):
    """A request that got no answer; its client's port is 0 if there was no connection."""

    began: float
    ended: float
    sent_after: float
    port: int
    error: str


class Kill(NamedTuple):
    """A worker's end, and the ports of the clients whose connections it had accepted."""

    at: float
    ports: set[int]


class Clients:
    """A steady load of clients, each with a cookie of its own."""

    def __init__(self, port: int, talk: Callable[[socket.socket, str], str]) -> None:
        self.failures: list[Failure] = []
        self.answers = 0
        self.ended = dict.fromkeys((f"client{n}" for n in range(CLIENTS)), 0)
        self.places: dict[str, tuple[int, int]] = {}
        self.moves: list[tuple[str, tuple[int, int], tuple[int, int]]] = []
        self.port, self._talk = port, talk
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._live, args=(f"client{n}",))
            for n in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _live(self, name: str) -> None:
        while not self._over.is_set():
            began, connected, port = time.monotonic(), 0.0, 0
            try:
                with socket.create_connection(("127.0.0.1", self.port), 60) as sock:
                    connected, port = time.monotonic(), sock.getsockname()[1]
                    slot, pid, _ = self._talk(sock, name).split()
            except (OSError, ValueError) as error:
                ended = time.monotonic()
                wait = ended - connected if connected else 0.0
                self.failures.append(Failure(began, ended, wait, port, repr(error)))
                continue
            self.answers += 1
            self.ended[name] += 1
            time.sleep(0.005)  # leave something of the machine to the workers
            place = int(slot), int(pid)
            before = self.places.get(name, place)
            self.places[name] = place
            if place != before:
                self.moves.append((name, before, place))

    def stop(self) -> None:
        """End after the current requests."""
        self._over.set()
        for thread in self._threads:
            thread.join()


def http(sock: socket.socket, name: str) -> str:
    """One request and its answer."""
    head = (
        f"GET / HTTP/1.1\r\nHost: x\r\nCookie: sid={name}\r\nConnection: close\r\n\r\n"
    )
    sock.sendall(head.encode())
    with sock.makefile("rb") as answer:
        text = answer.read().decode()
    status, _, body = text.partition("\r\n\r\n")
    if not status.startswith("HTTP/1.1 200"):
        raise ValueError(text)
    return body


def websocket(sock: socket.socket, name: str) -> str:
    """A WebSocket with a few messages; a server that goes away closes it in between."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET / HTTP/1.1\r\nHost: x\r\nCookie: sid={name}\r\nUpgrade: websocket\r\n"
    head += f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
    sock.sendall(f"{head}Sec-WebSocket-Version: 13\r\n\r\n".encode())
    text = ""
    with sock.makefile("rb") as answer:
        status = answer.readline().decode()
        if not status.startswith("HTTP/1.1 101"):
            raise ValueError(status)
        while answer.readline() != b"\r\n":
            pass
        for _ in range(random.randrange(1, 30)):
            sock.sendall(b"\x81\x82\0\0\0\0hi")
            head_bytes = answer.read(2)
            if len(head_bytes) < 2 and not text:
                raise ValueError("closed without an answer")
            if len(head_bytes) < 2 or head_bytes[0] != 0x81:
                break  # it closes, as a server that ends does
            text = answer.read(head_bytes[1]).decode()
            time.sleep(0.01)
    if not text:
        raise ValueError("closed before an answer")
    return text


class Chaos:
    """One run, and the harm that is done to it."""

    def __init__(self, run: Any, tools: Any, clients: Clients, chance: Any) -> None:
        self.run, self.tools, self.clients, self.chance = run, tools, clients, chance
        self.runtime = run.env["XDG_RUNTIME_DIR"]
        self.kills: list[Kill] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.wanted = 3
        self.undo: list[tuple[float, Callable[[], None]]] = []
        self.commands: list[threading.Thread] = []
        self.descriptors: dict[int, int] = {}

    # ---- harm --------------------------------------------------------------------

    def ready(self) -> dict[int, int]:
        """The pids of workers that are ready, by slot."""
        slots = self.run.status()["slots"]
        return {s["slot"]: s["pid"] for s in slots if s["state"] == "ready"}

    def kill(self) -> None:
        """KILL a worker, if another serves on."""
        ready = self.ready()
        if len(ready) > 1:
            pid = self.chance.choice(list(ready.values()))
            group = self.stopped(pid)
            self.kills.append(Kill(time.monotonic(), held(group, self.clients.port)))
            _signal(pid, signal.SIGKILL)

    def stopped(self, pid: int) -> set[int]:
        """Stop a worker and its children, which a server may have; return them all."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGSTOP)

        def all_stopped() -> set[int]:
            found = {pid, *(p for p in workers(self.runtime) if leader(p) == pid)}
            return found if all(state(each) in "TXZ" for each in found) else set()

        return set(self.tools.until(all_stopped, what="stopped processes"))

    def suspend(self) -> None:
        """Stop a worker for a moment."""
        pid = self.chance.choice(list(self.ready().values()) or [0])
        if pid:
            _signal(pid, signal.SIGSTOP)
            after = self.chance.uniform(0.05, 1.5)
            self.later(after, lambda: _signal(pid, signal.SIGCONT))

    def scarce(self) -> None:
        """Let a worker, or the supervisor, have few descriptors left for a moment."""
        pid = self.chance.choice([*self.ready().values(), self.run.pid])
        try:
            old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = max(int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir())
            few = used + self.chance.randint(1, 4)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, old[1]))
        except OSError:
            return

        def restore() -> None:
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, old)
            except OSError:
                pass

        self.later(self.chance.uniform(0.1, 1.0), restore)

    def guard(self) -> None:
        """KILL the guard process."""
        for pid, line in children(self.run.pid).items():
            if "guard.py" in line:
                _signal(pid, signal.SIGKILL)

    def scale(self) -> None:
        """Want another number of workers."""
        self.wanted = self.chance.randint(2, 4)
        self.command("scale", self.wanted)

    def steps(self) -> None:
        """One worker more and one fewer, by signals."""
        self.run.signal(signal.SIGTTIN)
        time.sleep(0.05)  # the order of different signals is not kept
        self.run.signal(signal.SIGTTOU)

    def reload(self) -> None:
        """By command."""
        self.command("reload")

    def storm(self) -> None:
        """Several HUP."""
        for _ in range(self.chance.randint(1, 8)):
            self.run.signal(signal.SIGHUP)

    def command(self, *words: Any) -> None:
        """Run a `logagg` command beside all else."""
        thread = threading.Thread(target=self.run.command, args=words)
        thread.start()
        self.commands.append(thread)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Undo a harm."""
        self.undo.append((time.monotonic() + seconds, action))

    # ---- rounds ------------------------------------------------------------------

    def round(self, harms: list[Callable[[], None]], seconds: float) -> None:
        """Do harm for some seconds, then let it get calm."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            harm = self.chance.choice(harms)
            self.counts[harm.__name__] += 1
            harm()
            pause = time.monotonic() + self.chance.uniform(0.05, 1.0)
            while (now := time.monotonic()) < pause:
                for due in [each for each in self.undo if each[0] <= now]:
                    self.undo.remove(due)
                    due[1]()
                time.sleep(0.01)
        for _, action in self.undo:
            action()
        self.undo.clear()

    def calm(self) -> None:
        """Wait until all that was wanted is there; check what must hold then."""
        for command in self.commands:
            command.join(90)
            assert not command.is_alive(), "a command hangs"
        self.commands.clear()
        # What came while no descriptor was free was refused.
        assert self.run.command("scale", self.wanted).returncode == 0
        self.run.until_ready(self.wanted)
        self.tools.until(self.is_settled, what="each living worker is in the status")
        before = dict(self.clients.ended)

        def served_anew() -> bool:
            """Each client's second conversation began after everything was settled."""
            ended = self.clients.ended
            return all(ended[name] >= count + 2 for name, count in before.items())

        self.tools.until(served_anew, what="two more answers for each client")
        unexcused = [f for f in self.clients.failures if not self.excused(f)]
        assert not unexcused, (unexcused, self.kills, self.events())
        descriptors = len(os.listdir(f"/proc/{self.run.pid}/fd"))
        first = self.descriptors.setdefault(self.wanted, descriptors)
        assert descriptors < first + 40, "the supervisor's descriptors grow"

    def events(self) -> list[str]:
        """The supervisor's last records, with the time in seconds of `monotonic`."""
        offset = time.time() - time.monotonic()
        return [
            f"{_seconds(r['timestamp']) - offset:.3f} {r['message']}"
            for r in self.run.records()[-200:]
            if "event" in r
        ]

    def is_settled(self) -> bool:
        """Whether the workers that live are those that the run knows, without zombies."""
        known = set(self.run.workers().values())
        zombies = [s for s in states(self.run.pid) if s == "Z"]
        living = {p for p in workers(self.runtime) if p == leader(p)}
        return living == known and not zombies and len(known) == self.wanted

    def excused(self, failure: Failure) -> bool:
        """Whether a worker that was killed meanwhile had accepted its connection."""
        return any(
            failure.port in kill.ports and failure.began <= kill.at <= failure.ended
            for kill in self.kills
        )


def _seconds(timestamp: str) -> float:
    return datetime.datetime.fromisoformat(timestamp[:26] + "+00:00").timestamp()


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def leader(pid: int) -> int:
    """The leader of a process's session; 0 when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def workers(runtime: str) -> set[int]:
    """Living processes with the environment of a worker of the run."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            names = (entry / "environ").read_bytes().split(b"\0")
            if f"XDG_RUNTIME_DIR={runtime}".encode() not in names:
                continue
            slots = any(name.startswith(b"LOGAGG_SLOT=") for name in names)
            if slots and state(int(entry.name)) != "Z":
                found.add(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def held(pids: set[int], port: int) -> set[int]:
    """The ports of clients whose connections to a port these processes have accepted."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(fd.readlink()))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        here, there = (int(word.partition(":")[2], 16) for word in words[1:3])
        if here == port and f"socket:[{words[9]}]" in inodes:
            found.add(there)
    return found


def state(pid: int) -> str:
    """A process's state; X when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X"
    return text.rpartition(")")[2].split()[0]


def children(pid: int) -> dict[int, str]:
    """The children of a process, with their command lines."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = {}
    for each in map(int, pids):
        try:
            found[each] = Path(f"/proc/{each}/cmdline").read_text()
        except OSError:
            continue
    return found


def states(pid: int) -> list[str]:
    """The states of a process's children."""
    return [state(each) for each in children(pid)]


@pytest.mark.slow
@pytest.mark.timeout(86_400)
@pytest.mark.parametrize("server", SERVERS)
def test_nothing_is_lost_whatever_happens(
    run: Any, tools: Any, request: Any, server: str
) -> None:
    """See above; the seed is printed."""
    began = time.monotonic()
    asked = request.config.getoption("--chaos")
    seconds, seed = (asked or 60.0) / len(SERVERS), support.fault_seed(asked)
    print(f"{server}: {seconds} s with seed {seed}")
    chance = random.Random(seed)
    port = tools.free_port()
    for name, text in ("web.py", tools.ASGI), ("wsgi.py", WSGI), ("ws.py", WS):
        run.write(name, text)
    path = [str(run.directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    run.env["PYTHONPATH"] = os.pathsep.join(path)
    bind = ["--bind", f"127.0.0.1:{port}"]
    own = (["--bind", f"127.0.0.1:{port}"] if server == "gunicorn"
           else ["--port", port, "--log-level", "warning"])  # fmt: skip
    run.start("-w", 3, "--stop-timeout", STOP_TIMEOUT, *bind, *SERVERS[server], *own)
    run.until_ready(3)
    clients = Clients(port, websocket if server == "websockets" else http)
    chaos = Chaos(run, tools, clients, chance)
    mild = [chaos.suspend, chaos.guard]
    if server in ("uvicorn-rr", "websockets"):
        # Without a descriptor, gunicorn ends and libuv closes connections.
        mild.append(chaos.scarce)
    wild = [*mild, chaos.scale, chaos.steps, chaos.reload, chaos.storm]
    kinds = [[*wild, chaos.kill, chaos.kill], mild, wild]
    rounds = 0
    try:
        chaos.calm()
        while time.monotonic() - began < seconds or rounds < 2:
            clients.moves.clear()
            harms = kinds[rounds % len(kinds)]
            chaos.round(harms, chance.uniform(2.0, min(seconds / 4, 8.0)))
            chaos.calm()
            if harms is mild and server == "websockets":
                assert not clients.moves, clients.moves
            rounds += 1
    finally:
        clients.stop()
        print(
            f"{rounds} rounds, {clients.answers} answers, {len(chaos.kills)} killed, "
            f"{len(clients.failures)} requests with them, {dict(chaos.counts)}"
        )

    pids = workers(run.env["XDG_RUNTIME_DIR"])
    if server == "websockets":  # one that takes all the time it gets
        os.kill(chance.choice(list(run.workers().values())), signal.SIGSTOP)
    run.signal(signal.SIGTERM)
    stopping = time.monotonic()
    assert run.wait(120) != 0
    assert time.monotonic() - stopping < STOP_TIMEOUT + 30
    assert not [pid for pid in pids if state(pid) not in "XZ"]
