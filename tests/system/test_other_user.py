"""Processes that become another user, and users that get in each other's way."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.program import free_port
from harness.readable import copy_distribution
from support import PREAMBLE, have, records, wait_until

from logagg.ipc.paths import owner_file
from logagg.ipc.users import ALLOW_USERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user"),
]


@pytest.fixture
def uid(request: pytest.FixtureRequest) -> Iterator[int]:
    """A user of the test's own, whose directories are removed in the end."""
    number = 54001 + sum(map(ord, request.node.name)) % 900
    bases = ("/tmp", "/var/tmp", "/dev/shm")
    places = [Path(f"{base}/logagg-{number}") for base in bases]
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    yield number
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A file's path that every user can reach, in a directory of root's."""
    folder = Path("/tmp", f"lgu-{os.getpid()}-{tmp_path.name}")
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    yield folder / "app.log"
    shutil.rmtree(folder)


Run = Callable[..., str]


@pytest.fixture
def run(interpreter: str, packages: Path) -> Run:
    """Run a program to its end; return what it wrote to stderr."""
    return functools.partial(run_with, interpreter, packages)


def run_with(
    interpreter: str, packages: Path, code: str, *args: object, **environment: str
) -> str:
    done = subprocess.run(
        [interpreter, "-c", code, *map(str, args)],
        env=os.environ | environment | {"PYTHONPATH": str(packages)},
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


DROP = (
    PREAMBLE
    + """
path, uid, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
handler = logagg.Handler(path)
logging.basicConfig(handlers=[handler], level="INFO")
if mode == "after":
    logging.info("", extra={"n": -1})
    assert handler.flush(60)
if mode in ("fork", "after") and os.fork():
    status = os.waitstatus_to_exitcode(os.wait()[1])
    handler.flush(60)
    sys.exit(status)
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
for n in range(200):
    logging.info("", extra={"n": n})
print(handler.flush(60 if mode != "away" else 0.5))
logging.shutdown()
os._exit(0)
"""
)


@pytest.mark.parametrize("mode", ["before", "fork"])
def test_a_handler_that_root_made_works_for_whom_the_process_becomes(
    run: Run, uid: int, log: Path, mode: str
) -> None:
    """Before its first record, or in a fork: a consumer of that user writes the file."""
    os.chown(log.parent, uid, uid)

    run(DROP, log, uid, mode)

    wait_until(have(log, 200), 60)
    assert [each["n"] for each in records(log)] == list(range(200))
    assert log.stat().st_uid == uid


def test_a_consumer_takes_records_of_users_that_it_allows(
    run: Run, uid: int, log: Path
) -> None:
    """Root's consumer writes what the child logs, in a directory that is root's."""
    run(DROP, log, uid, "after", **{ALLOW_USERS: str(uid)})

    wait_until(have(log, 201), 60)
    assert [each["n"] for each in records(log)] == list(range(-1, 200))
    assert log.stat().st_uid == 0


KILLED = (
    PREAMBLE
    + """
path, uid = sys.argv[1], int(sys.argv[2])
handler = logagg.Handler(path)
logging.basicConfig(handlers=[handler], level="INFO")
logging.info("", extra={"n": -1})
assert handler.flush(60)
from logagg.ipc import consumer_client
consumer = consumer_client.status(handler._transport.destination.path)["pid"]
dropped, wait_dropped = os.pipe()[::-1]
wait_killed, killed = os.pipe()
if os.fork():
    os.read(wait_dropped, 1)
    os.kill(consumer, signal.SIGKILL)
    logging.info("", extra={"n": -2})
    assert handler.flush(60)
    os.write(killed, b"x")
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
for n in range(100):
    logging.info("", extra={"n": n})
os.write(dropped, b"x")
os.read(wait_killed, 1)
for n in range(100, 200):
    logging.info("", extra={"n": n})
assert handler.flush(60)
logging.shutdown()
os._exit(0)
"""
)


def test_the_next_consumer_takes_records_of_users_that_it_allows(
    run: Run, uid: int, log: Path
) -> None:
    """Root's first one is killed: root starts another, and the child goes on with it."""
    run(KILLED, log, uid, **{ALLOW_USERS: str(uid)})

    wait_until(have(log, 202), 60)
    found = [each["n"] for each in records(log)]
    assert [n for n in found if n >= 0] == list(range(200))
    assert sorted(n for n in found if n < 0) == [-2, -1]


GUEST = """
import os, sys, orjson
from logagg.platform import packets
path, uid, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
evil = [f"file:{folder}/evil{n}?format=text&template={{message}}" for n in range(9)]

def say(hello, *fds, connection=None):
    made = connection
    if made is None:
        made = packets.packet_socket()
        made.connect(path)
    made.settimeout(60)
    packets.send(made, orjson.dumps({"hello": 1, **hello}), fds)
    return made

def answer(made):
    try:
        return packets.receive(made, 1 << 18)[0]
    except OSError as error:
        return repr(error).encode()

def worker(n):
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    about = {"kind": "records", "pid": os.getpid(), "worker": f"g{n}", "stream": f"{os.getpid()}-{n}"}
    return about, (read, null, null), write

about, fds, keep = worker(1)
made = say(about | {"sinks": [evil[0]]}, *fds)
assert b"not open here" in answer(made)
packets.send(made, orjson.dumps({"sinks": [evil[1]]}))
while b"not open here" not in (got := answer(made)):
    assert got, "it hung up"

about, fds, _ = worker(2)  # a connection to root, as if root had made it
lent = packets.packet_socket()
lent.connect(path)
adopt = {"kind": "adopt", "worker": about | {"sinks": [evil[2]]}}
made = say(adopt)
assert b"welcome" in answer(made)
say(adopt, lent.fileno(), *fds, connection=made)
answer(made)

null = os.open("/dev/null", os.O_RDWR)
read, write = os.pipe()
for hello, fds in (
    ({"kind": "hold", "sinks": [evil[3]]}, (null, null)),
    ({"kind": "hold", "own": True, "sinks": [evil[4]]}, ()),
    ({"kind": "reload", "sinks": [evil[5]]}, ()),
    ({"kind": "give_way", "successor": "/tmp/x"}, ()),
    ({"kind": "viewer"}, (write,)),
    ({"kind": "status"}, ()),
    ({"kind": "stream", "slot": 1, "pid": 1, "stream": "stderr"}, (read,)),
):
    said = answer(say(hello, *fds))
    assert b"send records only" in said, (hello, said)
print("refused")
"""


def test_a_user_that_may_send_may_do_nothing_else(
    run: Run, uid: int, log: Path, interpreter: str, packages: Path
) -> None:
    """No file is opened for it as root, and nothing is shown, changed or ended."""
    (log.parent / "own").mkdir(mode=0o755)
    path = str(log.parent / "own" / "s.sock")
    environment = {ALLOW_USERS: str(uid), "PYTHONPATH": str(packages)}
    command = [
        interpreter, "-c", "from logagg.cli.main import main; main()", "serve",
        "--socket", path, "--sink", f"file:{log}",
    ]  # fmt: skip
    server = subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    try:
        assert "listening" in server.stderr.readline()
        os.chmod(path, 0o666)
        run(GUEST, path, uid, log.parent / "own", **environment)
        assert server.poll() is None
        code = PREAMBLE + (
            "h = logagg.Handler(sys.argv[1]); logging.basicConfig(handlers=[h])\n"
            "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
            "logging.error('mine'); assert h.flush(60)\n"
        )
        run(code, log, uid, **environment, LOGAGG_SOCKET=path)
    finally:
        server.terminate()
        server.wait(60)
        server.stderr.close()
    assert [each["message"] for each in records(log)].count("mine") == 1
    assert not list((log.parent / "own").glob("evil*"))


GUNICORN = """
import logging, os
logging.getLogger("app").warning("loaded", extra={"uid": os.getuid()})
def app(environ, start_response):
    logging.getLogger("app").warning("request", extra={"uid": os.getuid()})
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_a_server_that_drops_its_privileges_logs_on(
    run: Run, uid: int, log: Path, interpreter: str, packages: Path
) -> None:
    """gunicorn as root with --user and --preload, under `logagg run`."""
    if not (packages / "gunicorn").exists():
        copy_distribution("gunicorn", packages, set())
    (log.parent / "wsgi.py").write_text(GUNICORN)
    port = free_port()
    command = [
        interpreter, "-c", "from logagg.cli.main import main; main()", "run",
        "--sink", f"file:{log}", "-w", "1", "-m", "gunicorn", "wsgi:app", "--preload",
        "-u", str(uid), "-g", str(uid), "-b", f"127.0.0.1:{port}",
        "--worker-tmp-dir", "/tmp",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(packages), ALLOW_USERS: str(uid)}
    server = subprocess.Popen(command, env=environment, cwd=log.parent)
    try:
        for _ in range(6):
            wait_until(lambda: answers(port), 60, "an answer")
    finally:
        server.terminate()
        server.wait(60)
    found = [(each["message"], each.get("uid")) for each in records(log)]
    assert found.count(("loaded", 0)) == 1
    assert found.count(("request", uid)) == 6


def answers(port: int) -> bool:
    """Whether a server answers a request."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_what_another_user_spooled_is_taken_in_by_the_next_consumer(
    run: Run, uid: int, log: Path
) -> None:
    """Without a consumer that lets it in, and no right to the file: one line on stderr."""
    err = run(DROP, log, uid, "away")
    assert not log.exists()
    assert "records are spooled" in err
    assert f"{ALLOW_USERS}={uid}" in err

    once = PREAMBLE + "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])])\n"
    run(once + "logging.error('root')", log, **{ALLOW_USERS: str(uid)})

    wait_until(have(log, 201), 60)
    found = [each["n"] for each in records(log) if "n" in each]
    assert found == list(range(200))


SQUATTED = (
    PREAMBLE
    + """
del os.environ["XDG_RUNTIME_DIR"]
os.setuid(int(sys.argv[2]))
handler = logagg.Handler(sys.argv[1])
logging.basicConfig(handlers=[handler], level="INFO")
logging.info("here")
assert handler.flush(60)
"""
)


def test_a_directory_that_another_user_made_first_is_not_used(
    run: Run, uid: int, log: Path
) -> None:
    """The application starts, and its records arrive by another place."""
    os.chown(log.parent, uid, uid)
    Path(f"/tmp/logagg-{uid}").mkdir(mode=0o777)

    run(SQUATTED, log, uid)

    assert [each["message"] for each in records(log)] == ["here"]
    assert not any(Path(f"/tmp/logagg-{uid}").iterdir())


STARTS = (
    PREAMBLE
    + """
for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"):
    os.environ.pop(name, None)
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
os.environ["HOME"] = "/nonexistent"
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="INFO")
began = time.monotonic()
logging.info("here")
logging.shutdown()
assert time.monotonic() - began < 20
"""
)


def test_an_application_starts_though_every_place_is_taken(
    run: Run, uid: int, log: Path
) -> None:
    """Another user has made all directories: one line on stderr, no exception."""
    os.chown(log.parent, uid, uid)
    for base in ("/tmp", "/var/tmp", "/dev/shm"):
        Path(f"{base}/logagg-{uid}").mkdir(mode=0o777)

    err = run(STARTS, log, uid)

    assert "Traceback" not in err
    assert "logagg: " in err


def test_an_owner_file_of_a_stranger_keeps_nobody_from_logging(
    run: Run, uid: int, log: Path
) -> None:
    """In a directory like /tmp a stranger has made and locked it: it does not count."""
    log.parent.chmod(0o1777)
    stranger = uid + 1000
    place = Path(owner_file(str(log)))
    code = (
        "import fcntl, os, sys\n"
        f"os.setuid({stranger})\n"
        "file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(place)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        run(SQUATTED, log, uid)
        holder.kill()

    assert "here" in [each["message"] for each in records(log)]


ROTATES = SQUATTED.replace(
    "logagg.Handler(sys.argv[1])",
    "logagg.Handler(sys.argv[1], maxBytes=20_000, backupCount=3)",
).replace('logging.info("here")', 'for n in range(100): logging.info("x" * 500)')


@pytest.mark.parametrize("name", ["app.log.1", ".app.log.journal"])
def test_a_name_that_a_stranger_took_stops_no_rotation_and_no_log(
    run: Run, uid: int, log: Path, name: str
) -> None:
    """In a directory like /tmp: an empty file with the name of a rotated one."""
    log.parent.chmod(0o1777)
    code = "import os, sys; os.setuid(int(sys.argv[2])); open(sys.argv[1], 'x').close()"
    run(code, log.parent / name, uid + 1000)

    run(ROTATES, log, uid)

    files = [path for path in log.parent.iterdir() if path.stat().st_uid == uid]
    assert sum(path.read_bytes().count(b'xxx"') for path in files) == 100
    assert (log.parent / name).read_bytes() == b""


UWSGI = """
import logging, os
import logagg
logging.basicConfig(handlers=[logagg.Handler(os.environ["LOG"])], level="INFO")
log = logging.getLogger("app")
if os.environ["WHEN"] == "after":
    log.info("loaded", extra={"uid": os.getuid()})
def application(environ, start_response):
    log.info("request", extra={"uid": os.getuid()})
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def uwsgi(folder: Path) -> str:
    """The program, if it is here; its Python must be one that every user can read."""
    beside = os.path.dirname(sys.executable)
    found = shutil.which("uwsgi", path=f"{beside}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("uWSGI is not installed")
    probe = folder / "probe.py"
    probe.write_text(
        "import os, sys\nos.write(1, b'in ' + sys.base_prefix.encode())\nos._exit(0)"
    )
    words = [found, "--socket", "127.0.0.1:0", "--wsgi-file", str(probe)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60
    )
    prefix = done.stdout.partition("in ")[2] or done.stdout
    code = "import os, sys; os.setuid(54000); sys.exit(not os.path.isdir(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"{prefix}/lib"]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("another user cannot read the Python of uWSGI")
    return found


@pytest.mark.parametrize("when", ["before", "after"])
def test_uwsgi_logs_on_as_the_user_that_it_becomes(
    uid: int, log: Path, packages: Path, tmp_path: Path, when: str
) -> None:
    """`drop-after-apps`: the handler is root's, before or after its first record.

    Before it the new user's own consumer writes; after it root's, which lets it in.
    """
    command = uwsgi(tmp_path)
    environment = {"PYTHONPATH": str(packages), "LOG": str(log), "WHEN": when}
    if when == "before":
        os.chown(log.parent, uid, uid)
    else:
        environment[ALLOW_USERS] = str(uid)
    (log.parent / "wsgi.py").write_text(UWSGI)
    port = free_port()
    words = [
        command, "--http-socket", f"127.0.0.1:{port}", "--wsgi-file", "wsgi.py",
        "--master", "--processes", "2", "--uid", str(uid), "--gid", str(uid),
        "--drop-after-apps", "--die-on-term", "--need-app",
    ]  # fmt: skip
    server = subprocess.Popen(words, env=os.environ | environment, cwd=log.parent)
    try:
        for _ in range(20):
            wait_until(lambda: answers(port), 60, "an answer")
    finally:
        server.terminate()
        server.wait(60)
    first = when == "after"
    wait_until(have(log, 20 + first), 60)
    found = [(each["message"], each["uid"]) for each in records(log)]
    assert found.count(("loaded", 0)) == first
    assert found.count(("request", uid)) == 20
    assert len(found) == 20 + first


CELERY = """
import logging, os
import celery, logagg
logging.basicConfig(handlers=[logagg.Handler(os.environ["LOG"])], level="INFO")
app = celery.Celery("jobs", broker="filesystem://")
folder = os.path.dirname(os.environ["LOG"]) + "/queue"
names = ("data_folder_in", "data_folder_out", "control_folder")
app.conf.broker_transport_options = dict.fromkeys(names, folder)
app.conf.worker_hijack_root_logger = False
log = logging.getLogger("app")
if os.environ["WHEN"] == "after" and os.getuid() == 0:
    log.info("loaded", extra={"uid": 0})
@app.task
def job(n):
    log.warning("job", extra={"uid": os.getuid(), "n": n})
"""


@pytest.fixture
def nobody() -> Iterator[pwd.struct_passwd]:
    """A user with a name; directories that it had not before are removed in the end."""
    user = pwd.getpwnam("nobody")
    bases = ("/tmp", "/var/tmp", "/dev/shm")
    places = [Path(f"{base}/logagg-{user.pw_uid}") for base in bases]
    new = [each for each in places if not each.exists()]
    yield user
    for each in new:
        shutil.rmtree(each, ignore_errors=True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_celery_logs_on_as_the_user_that_it_becomes(
    nobody: pwd.struct_passwd, log: Path, interpreter: str, packages: Path, when: str
) -> None:
    """`celery worker --uid`, with two processes: each job's record arrives once."""
    pytest.importorskip("celery")
    if not (packages / "celery").exists():
        copy_distribution("celery", packages, set())
    user = nobody
    queue = log.parent / "queue"
    queue.mkdir()
    environment = {"PYTHONPATH": str(packages), "LOG": str(log), "WHEN": when}
    for each in (queue, *([log.parent] if when == "before" else [])):
        os.chown(each, user.pw_uid, user.pw_gid)
    if when == "after":
        environment[ALLOW_USERS] = "nobody"
    (log.parent / "jobs.py").write_text(CELERY)
    send = "import jobs\nfor n in range(20): jobs.job.delay(n)\n"
    subprocess.run(
        [interpreter, "-c", send], cwd=log.parent, check=True, timeout=120,
        env=os.environ | environment | {"WHEN": "", "LOG": f"{log.parent}/sender.log"},
    )  # fmt: skip
    for each in queue.iterdir():
        os.chown(each, user.pw_uid, user.pw_gid)
    words = [
        interpreter, "-m", "celery", "-A", "jobs", "worker", "--uid", "nobody",
        "--gid", str(user.pw_gid), "-c", "2", "--without-gossip", "--without-mingle",
    ]  # fmt: skip
    worker = subprocess.Popen(words, env=os.environ | environment, cwd=log.parent)

    def jobs() -> list[tuple[int, int]]:
        found = records(log) if log.exists() else []
        return [(each["n"], each["uid"]) for each in found if each["message"] == "job"]

    try:
        wait_until(lambda: len(jobs()) >= 20, 90, "the records of the jobs")
    finally:
        worker.terminate()
        worker.wait(60)
    assert sorted(jobs()) == [(n, user.pw_uid) for n in range(20)]
    loaded = [each for each in records(log) if each["message"] == "loaded"]
    assert len(loaded) == (when == "after")
