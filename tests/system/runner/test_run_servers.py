"""Real servers, unmodified, share a port under `logagg run`."""

from __future__ import annotations

import collections
import os
import signal
import socket
import subprocess
import threading
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each

WSGI = """
    import os
    def app(environ, start_response):
        text = f"{os.environ['LOGAGG_SLOT']} {os.getpid()} 0".encode()
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]
"""
HTTP = """
    import http.server, os, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = f"{os.environ['LOGAGG_SLOT']} {os.getpid()} 0".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        def log_message(self, *a): pass
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

SERVERS = {
    "uvicorn": ["-m", "uvicorn", "web:app", "--port", "{port}"],
    "uvicorn-script": ["uvicorn", "web:app", "--port", "{port}"],
    "gunicorn": ["gunicorn", "wsgi:app", "--bind", "127.0.0.1:{port}"],
    "gunicorn-gthread": [
        "gunicorn", "wsgi:app", "-k", "gthread", "--bind", "127.0.0.1:{port}",
    ],
    "hypercorn": ["-m", "hypercorn", "web:app", "-w", "0", "--bind", "127.0.0.1:{port}"],
    "http.server": ["server.py", "{port}"],
}  # fmt: skip


@pytest.fixture
def web(run: Any, tools: Any) -> Any:
    """A run whose directory has the three apps."""
    run.write("web.py", tools.ASGI)
    run.write("wsgi.py", WSGI)
    run.write("server.py", HTTP)
    run.env["PYTHONPATH"] = str(run.directory)
    return run


def _words(name: str, port: int) -> list[str]:
    return [word.replace("{port}", str(port)) for word in SERVERS[name]]


@pytest.mark.parametrize("policy", ["kernel", "rr"])
@pytest.mark.parametrize("bind", ["asked", "shared"])
@pytest.mark.parametrize("name", SERVERS)
def test_unmodified_servers_share_a_port(
    web: Any, tools: Any, name: str, policy: str, bind: str
) -> None:
    """Two workers answer on one port, with --bind and without; rr alternates strictly."""
    port = tools.free_port()
    asked = ["--bind", f"127.0.0.1:{port}"] if bind == "asked" else []
    web.start(
        *("-w", 2, "--level", "debug", "--policy", policy, *asked, *_words(name, port))
    )
    web.until_ready(2)

    answers = [tools.get(port).split()[0] for _ in range(20)]

    assert set(answers) <= {"1", "2"}
    if policy == "rr":
        assert collections.Counter(answers) == {"1": 10, "2": 10}
    assert web.stop() == -signal.SIGTERM
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    deaths = [r for r in web.records(event="worker_exit") if "slot" in r]
    assert len(deaths) == 2
    assert {record["level"] for record in deaths} <= {"debug", "info"}
    assert web.records(event="stop_timeout") == []


SOON = ["--graceful-timeout", "3"]
"""A child of gunicorn that gets TERM before it has set its own handlers ignores it, and
gunicorn waits this long before it kills it: less than a run waits for gunicorn.
"""


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "uvicorn", "web:app", "--fd", "{fd}"],
        ["-m", "uvicorn", "web:app", "--host", "{host}", "--port", "{port}"],
        ["gunicorn", "wsgi:app", *SOON, "--bind", "fd://{fd}"],
        ["gunicorn", "wsgi:app", *SOON],
        ["-m", "hypercorn", "web:app", "-w", "0", "--bind", "fd://{fd}"],
    ],
    ids=[
        "uvicorn-fd",
        "uvicorn-port",
        "gunicorn-fd",
        "gunicorn-systemd",
        "hypercorn-fd",
    ],
)
@pytest.mark.parametrize("policy", ["kernel", "rr"])
def test_placeholders_and_systemd_variables(
    web: Any, tools: Any, words: list[str], policy: str
) -> None:
    """`{fd}`, `{host}`, `{port}` and LISTEN_FDS lead to the shared port as well."""
    port = tools.free_port()
    bind = ["--bind", f"127.0.0.1:{port}"]
    web.start("-w", 2, "--policy", policy, *bind, *words)
    web.until_ready(2)

    answers = {tools.get(port).split()[0] for _ in range(20)}

    assert answers <= {"1", "2"}
    if policy == "rr":
        assert answers == {"1", "2"}
    assert web.stop() == -signal.SIGTERM


def test_children_inherit_no_number_of_a_descriptor(web: Any, tools: Any) -> None:
    """The program has `LOGAGG_FD_WEB` and what it names; its children have neither."""
    web.write(
        "app.py",
        """
        import os, socket, subprocess, sys
        code = "import os; print([n for n in os.environ if n.startswith('LOGAGG_FD')])"
        child = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True)
        name = socket.socket(fileno=int(os.environ["LOGAGG_FD_WEB"])).getsockname()
        print(name[1], child.stdout.decode().strip())
        """,
    )
    port = tools.free_port()
    web.start("-w", 1, "--bind", f"127.0.0.1:{port}", "app.py")

    assert web.wait() == 0
    assert web.messages(stream="stdout") == [f"{port} []"]


def test_a_node_server_takes_the_socket(web: Any, tools: Any) -> None:
    """A command that is not Python listens on `{fd}`."""
    port = tools.free_port()
    web.write(
        "server.js",
        """
        require("http").createServer((q, a) => a.end(process.env.LOGAGG_SLOT + " x"))
          .listen({fd: Number(process.argv[2])});
        process.on("SIGTERM", () => process.exit(0));
        """,
    )
    bind = ["--bind", f"127.0.0.1:{port}"]
    web.start("-w", 2, *bind, "--", "node", "server.js", "{fd}")
    web.until_ready(2)

    assert {tools.get(port).split()[0] for _ in range(10)} <= {"1", "2"}
    assert web.stop() == -signal.SIGTERM


UNIX_SERVERS = {
    "uvicorn": ["-m", "uvicorn", "web:app", "--uds", "s"],
    "gunicorn": ["gunicorn", "wsgi:app", "-k", "gthread", "--bind", "unix:s"],
    "hypercorn": ["-m", "hypercorn", "web:app", "-w", "0", "--bind", "unix:s"],
}


@pytest.mark.parametrize("policy", ["kernel", "rr"])
@pytest.mark.parametrize("name", UNIX_SERVERS)
def test_a_unix_socket_is_shared_and_its_path_stays(
    web: Any, tools: Any, name: str, policy: str
) -> None:
    """Servers that remove and bind the path themselves come and go; no client misses it."""
    path = web.directory / "s"
    bind = ["--bind", f"unix:{path}", "--policy", policy]
    web.start("-w", 2, "--level", "debug", *bind, *UNIX_SERVERS[name])
    web.until_ready(2)
    answers: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(20)
                    sock.connect(str(path))
                    sock.sendall(
                        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                    )
                    answers.append(sock.recv(4096)[:12].decode())
            except OSError as error:
                answers.append(repr(error))

    client = threading.Thread(target=ask)
    client.start()
    try:
        assert web.command("reload").returncode == 0
        assert set(answers) == {"HTTP/1.1 200"}
        pid = web.workers()[1]
        os.kill(pid, signal.SIGTERM)
        web.until_record(event="worker_exit", pid=pid)
        web.until_ready(2)
        count = len(answers)
        tools.until(lambda: len(answers) > count + 20)
    finally:
        stop.set()
        client.join()

    # What a server has accepted when TERM comes from outside it may close unanswered;
    # but there always is somebody to connect to.
    assert not [text for text in answers if "NotFound" in text or "Refused" in text]
    assert web.stop() == -signal.SIGTERM
    assert not path.exists()


MIXED = """
    import asyncio, os, pathlib, socket, sys, time
    import logagg
    HEAD = b"HTTP/1.1 200 OK\\r\\n\\r\\n"
    port = int(sys.argv[1])
    async def serve():
        async def answer(reader, writer):
            await reader.readline()
            writer.write(HEAD + b"loop")
            writer.close()
        await (await asyncio.start_server(answer, "127.0.0.1", port)).serve_forever()
    def block():
        sock = socket.socket()
        sock.bind(("127.0.0.1", port))
        logagg.worker.ready()
        print("bound", flush=True)
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        sock.listen()
        assert sock.getblocking()
        while True:
            connection, _ = sock.accept()
            assert connection.getblocking()
            connection.recv(1000)
            connection.sendall(HEAD + b"blocking")
            connection.close()
    asyncio.run(serve()) if os.environ["LOGAGG_SLOT"] == "1" else block()
"""


def test_a_socket_that_blocks_does_not_block_the_siblings(web: Any, tools: Any) -> None:
    """Binding anew, as a fresh worker does, holds up no event loop on the same port."""
    port = tools.free_port()
    web.write("mixed.py", MIXED)
    web.start("-w", 2, "--bind", f"127.0.0.1:{port}", "mixed.py", port)
    web.until_ready(2)
    web.until_record(message="bound")

    assert {tools.get(port) for _ in range(20)} == {"loop"}

    (web.directory / "go").touch()
    tools.until(lambda: tools.get(port) == "blocking")
    assert {tools.get(port) for _ in range(100)} <= {"loop", "blocking"}
    assert web.stop() == -signal.SIGTERM


@pytest.mark.parametrize("policy", ["kernel", "rr"])
def test_accepted_connections_have_no_delay(web: Any, tools: Any, policy: str) -> None:
    """Nagle's algorithm is off also where a server takes the fd for a Unix socket."""
    port = tools.free_port()
    web.write(
        "app.py",
        """
        import socket, sys
        s = socket.fromfd(int(sys.argv[1]), socket.AF_UNIX, socket.SOCK_STREAM)
        s.listen()
        while True:
            c, _ = s.accept()
            nodelay = c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            text = f"{nodelay} {s.getsockname()[1]}".encode()
            c.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + text)
            c.shutdown(socket.SHUT_WR); c.close()
        """,
    )
    bind = ["--bind", f"127.0.0.1:{port}"]
    web.start("-w", 1, "--policy", policy, *bind, "app.py", "{fd}")
    web.until_ready(1)

    assert tools.get(port) == f"1 {port}"
    assert web.stop() == -signal.SIGTERM


@pytest.mark.parametrize("policy", ["kernel", "rr", "reuseport"])
@pytest.mark.parametrize("bind", ["asked", "shared"])
def test_a_shared_socket_is_inheritable_if_the_program_made_it_so(
    web: Any, tools: Any, bind: str, policy: str
) -> None:
    """What the program has chosen for children stays when its socket is replaced."""
    port = tools.free_port()
    web.write(
        "app.py",
        """
        import socket, sys
        for chosen in True, False:
            with socket.socket() as sock:
                sock.set_inheritable(chosen)
                sock.bind(("127.0.0.1", int(sys.argv[1])))
                sock.listen()
                print(sock.get_inheritable())
        """,
    )
    asked = ["--bind", f"127.0.0.1:{port}"] if bind == "asked" else []
    once = ["--restart", "never", "app.py", port]
    web.start("-w", 1, "--policy", policy, *asked, *once)

    assert web.wait() == 0
    assert web.messages(stream="stdout") == ["True", "False"]


def test_reuseport_gives_each_worker_its_own_socket(web: Any, tools: Any) -> None:
    """Policy reuseport: both workers listen; the kernel spreads."""
    port = tools.free_port()
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", "reuseport"]
    web.start("-w", 2, *bind, *_words("uvicorn", port))
    web.until_ready(2)

    answers = {tools.get(port).split()[0] for _ in range(60)}

    assert answers == {"1", "2"}
    assert web.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("policy", "server"),
    [
        ("rr", "gevent"),
        ("kernel", "gevent"),
        ("rr", "gunicorn"),
        ("reuseport", "http"),
    ],
)
def test_ports_that_the_program_binds_are_shared(
    run: Any, tools: Any, policy: str, server: str
) -> None:
    """Without `--bind`: sockets of gevent, also gunicorn's, and each worker's own."""
    pytest.importorskip("http.server" if server == "http" else "gevent")
    port = tools.free_port()
    run.write("wsgi.py", WSGI)
    run.write(
        "gevent.app.py",
        f"""
        from gevent import monkey; monkey.patch_all()
        import os
        from gevent.pywsgi import WSGIServer
        def app(environ, start_response):
            start_response("200 OK", [])
            return [os.environ["LOGAGG_SLOT"].encode()]
        WSGIServer(("127.0.0.1", {port}), app, log=None).serve_forever()
        """,
    )
    run.write(
        "http.app.py",
        f"""
        import os
        from http.server import BaseHTTPRequestHandler, HTTPServer
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(os.environ["LOGAGG_SLOT"].encode())
        HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
        """,
    )
    words = [f"{server}.app.py"]
    if server == "gunicorn":
        address = f"127.0.0.1:{port}"
        words = ["gunicorn", "wsgi:app", "-k", "gevent", *SOON, "--bind", address]
    run.start("-w", 2, "--policy", policy, *words)
    run.until_ready(2)
    answers = {tools.get(port, timeout=60).split()[0] for _ in range(60)}
    assert answers <= {"1", "2"}
    assert len(answers) == 2 or policy == "kernel"  # there the kernel may choose one
    assert run.stop() == -signal.SIGTERM


@pytest.mark.parametrize("seen", ["by the loop", "by silence", "with its descriptor"])
def test_uvloop_is_never_a_silent_hang(web: Any, tools: Any, seen: str) -> None:
    """rr with uvloop: one line that names it, and the server answers all the same."""
    pytest.importorskip("uvloop")
    port = tools.free_port()
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", "rr"]
    if seen == "by the loop":
        words = ["-m", "uvicorn", "web:app", "--loop", "uvloop", "--port", str(port)]
    elif seen == "with its descriptor":
        words = ["-m", "uvicorn", "web:app", "--loop", "uvloop", "--fd", "{fd}"]
    else:
        web.write(
            "app.py",
            f"""
            import asyncio, socket, uvloop, uvicorn
            sock = socket.socket()
            sock.bind(("127.0.0.1", {port}))
            config = uvicorn.Config("web:app", loop="uvloop")
            config.load()
            server = uvicorn.Server(config)
            sock.listen()
            uvloop.run(server.serve(sockets=[sock]))
            """,
        )
        words = ["app.py"]
    web.start("-w", 2, *bind, *words)
    web.until_ready(2)

    def answers() -> bool:
        try:
            return tools.get(port, timeout=10).split()[0] in ("1", "2")
        except TimeoutError:
            raise  # that is the hang
        except (OSError, AssertionError):
            return False

    tools.until(answers, what="an answer")
    assert all(answers() for _ in range(10))
    tools.until(lambda: [m for m in web.messages() if "uvloop" in m and "kernel" in m])
    assert web.status()["listeners"][0]["policy"] == "kernel"
    assert web.stop() == -signal.SIGTERM


def _answer(sock: socket.socket) -> bytes:
    """The body of one answer on a connection that stays open."""
    data = b""
    while data.count(b" ") < 5 or not data.rpartition(b"\r\n\r\n")[2].endswith(b" 0"):
        chunk = sock.recv(4096)
        assert chunk, data
        data += chunk
    return data.rpartition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("policy", ["rr", "kernel"])
@pytest.mark.parametrize("burst", [False, True])
def test_two_hundred_long_lived_connections(
    web: Any, tools: Any, policy: str, *, burst: bool
) -> None:
    """Under rr each of four workers has 50 ± 1 of 200 connections that stay open."""
    port = tools.free_port()
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", policy]
    web.start("-w", 4, *bind, *_words("uvicorn", port))
    web.until_ready(4)

    socks = []
    for _ in range(200):
        sock = socket.create_connection(("127.0.0.1", port))
        socks.append(sock)
        if not burst:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            _answer(sock)
    slots = []
    for sock in socks:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        slots.append(_answer(sock).split()[0])

    counts = collections.Counter(slots)
    assert sum(counts.values()) == 200
    if policy == "rr":
        assert all(49 <= count <= 51 for count in counts.values()), counts
        shown = [slot["connections"] for slot in web.status()["slots"]]
        assert shown == [50, 50, 50, 50] or all(49 <= n <= 51 for n in shown)
    for sock in socks:
        sock.close()
    assert web.stop() == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_fifty_kills_during_hand_over(web: Any, tools: Any) -> None:
    """Workers are killed again and again under load; the supervisor and the port live."""
    port = tools.free_port()
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", "rr"]
    web.start("-w", 13, "--stop-timeout", 5, *bind, *_words("http.server", port))
    web.until_ready(13, 90)
    stop = threading.Event()
    good = collections.Counter()

    def load() -> None:
        while not stop.is_set():
            try:
                tools.get(port, timeout=20)
                good["yes"] += 1
            except (OSError, AssertionError):
                good["no"] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    kills = 0
    deadline = time.monotonic() + 90
    while kills < 50 and time.monotonic() < deadline:
        for slot in web.status()["slots"]:
            if slot["state"] == "ready":
                os.kill(slot["pid"], signal.SIGKILL)
                kills += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert kills >= 50, good

    web.until_ready(13, 90)
    assert len({tools.get(port).split()[0] for _ in range(13)}) == 13
    assert good["yes"] > 0
    assert web.stop() == -signal.SIGTERM


@pytest.mark.parametrize("policy", ["kernel", "rr"])
@pytest.mark.parametrize("named", [False, True])
def test_an_address_of_a_link_is_shared(
    run: Any, tools: Any, policy: str, named: bool
) -> None:
    """`[fe80::1%lo]:PORT`, and what the program binds: the interface belongs to it."""
    alone = "ip link set lo up && ip -6 addr add fe80::1/64 dev lo nodad"
    prefix = ("unshare", "--net", "sh", "-c", f'{alone} && exec "$@"', "sh")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces with IPv6 here")
    run.write(
        "app.py",
        """
        import os, socket, threading, time
        name = ("fe80::1", 8000, 0, socket.if_nametoindex("lo"))
        server = socket.create_server(name, family=socket.AF_INET6)
        def serve():
            while True:
                client, _ = server.accept()
                client.sendall(os.environ["LOGAGG_SLOT"].encode())
                client.close()
        threading.Thread(target=serve).start()
        while True:  # only here is the network that has the address
            with socket.socket(socket.AF_INET6) as client:
                client.connect(name)
                print("answer of", client.recv(9).decode(), flush=True)
            time.sleep(0.1)
        """,
    )
    bind = ["--bind", "[fe80::1%lo]:8000"] if named else []
    run.start("-w", 2, *bind, "--policy", policy, "app.py", prefix=prefix)
    run.until_ready(2)
    run.until_record(message="answer of 1")
    run.until_record(message="answer of 2")
    assert run.status()["listeners"][0]["address"] == "[fe80::1%lo]:8000"
    assert run.stop() == -signal.SIGTERM
