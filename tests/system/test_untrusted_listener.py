"""A stranger listens where a consumer is expected: nothing is sent, nothing is shown."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import BASIC, PREAMBLE, consumers, finish, linux_form, python, wait_until

from logagg.ipc.users import TRUST_USERS
from logagg.platform.packets import packet_socket

root = pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")

UID = 54321

STRANGER = f"""
import os, sys, time
from logagg.platform import packets
os.setgroups([])
os.setgid({UID})
os.setuid({UID})
listener = packets.packet_socket()
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen(100)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    try:
        data, fds, _ = packets.receive(connection, 1 << 17, 10)
        if data or fds:
            print("got", len(data), len(fds), flush=True)
        for each in fds:
            os.close(each)
        packets.send(connection, sys.argv[2].encode())
    except OSError:
        pass
    connection.close()
"""

STATUS = '{"workers":[],"pid":1,"sinks":[{"url":"\\u001b]0;pwned\\u0007"}]}'


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory in which everybody may make files, as /tmp is."""
    folder = Path("/tmp", f"lgs-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def stranger(path: Path, answer: str = STATUS) -> Iterator[subprocess.Popen[str]]:
    """Another user's process that listens at a path, and prints what it gets."""
    command = [sys.executable, "-c", STRANGER, str(path), answer]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def received(process: subprocess.Popen[str]) -> str:
    """Everything that a stranger got. It is ended by this."""
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    return process.stdout.read()


@root
def test_a_worker_sends_nothing_to_a_stranger(shared: Path) -> None:
    """Neither its hello nor a descriptor; it runs on, and stderr has the reason."""
    with stranger(shared / "s.sock") as other:
        code = BASIC + "log.info('mine')\nprint(logagg.__name__)"
        env = os.environ | {"LOGAGG_SOCKET": str(shared / "s.sock")}
        done = python(code, shared / "app.log", env=env)

        assert done.stdout == "logagg\n"
        assert f"uid {UID} listens there" in done.stderr
        assert f"{TRUST_USERS}={UID}" in done.stderr
        assert "records are spooled" in done.stderr
        assert received(other) == ""


@pytest.mark.slow
@root
def test_a_user_that_is_named_is_trusted(shared: Path) -> None:
    """With LOGAGG_TRUST_USERS the hello goes out, with its descriptors."""
    with stranger(shared / "s.sock") as other:
        socket_there = {"LOGAGG_SOCKET": str(shared / "s.sock")}
        env = os.environ | socket_there | {TRUST_USERS: f"nobody,{UID}"}
        python(BASIC + "log.info('mine')", shared / "app.log", env=env)

        assert "got" in received(other)


@root
@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("tail", "--no-follow"),
        ("stats",),
        ("top", "--once"),
        ("reload",),
    ],
)
def test_a_command_shows_nothing_of_a_stranger(
    shared: Path, words: tuple[str, ...]
) -> None:
    """It ends with one line that names the user, and has sent nothing."""
    with stranger(shared / "s.sock") as other:
        command = [sys.executable, "-m", "logagg", *words, "--socket"]
        done = finish([*command, str(shared / "s.sock")], status=None)

        assert done.returncode in (2, 3), done
        assert f"uid {UID} listens there" in done.stderr
        assert "Traceback" not in done.stderr
        assert "pwned" not in done.stdout + done.stderr
        assert received(other) == ""


@root
@pytest.mark.parametrize("what", ["socket", "lock", "fifo"])
def test_serve_names_who_has_taken_its_place(
    shared: Path,
    what: str,
    interpreter: str,
    packages: Path,
) -> None:
    """A listener, a lock file or a FIFO for it, of another user: one line, status 2."""
    path = shared / "s.sock"
    with contextlib.ExitStack() as stack:
        if what == "socket":
            stack.enter_context(stranger(path))
        else:
            lock = shared / "s.sock.lock"
            if what == "fifo":
                os.mkfifo(lock)
                lock.chmod(0o666)
            else:
                lock.touch(0o600)
            os.chown(lock, UID, UID)
            stack.callback(lock.unlink)
        command = [sys.executable, "-m", "logagg", "serve", "--socket", str(path)]
        if what != "socket":
            command[0] = interpreter
            command[0:0] = ["setpriv", "--reuid=54322", "--clear-groups"]
        env = os.environ | {"PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1"}
        done = finish(command, status=None, cwd="/", env=env)

    assert done.returncode == 2, done
    assert f"cannot listen at {path}" in done.stderr
    assert "Traceback" not in done.stderr


@linux_form
def test_the_consumer_cannot_read_the_terminal(tmp_path: Path) -> None:
    """A terminal on stdout is passed on to be written only."""
    code = PREAMBLE + (
        "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level='INFO')\n"
        "logging.info('here')\n"
        "sys.stderr.write('ready')\n"
        "sys.stderr.flush()\n"
        "sys.stdin.readline()\n"
    )
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    command = [sys.executable, "-c", code, str(tmp_path / "app.log")]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=subprocess.PIPE
    )
    os.close(slave)
    try:
        assert process.stderr is not None
        assert process.stderr.read(5) == b"ready"
        (consumer,) = wait_until(consumers)
        modes = wait_until(lambda: terminal_modes(consumer, name))
        assert set(modes) == {os.O_WRONLY}
    finally:
        os.write(master, b"\n")
        process.wait(30)
        process.stderr.close()
        os.close(master)


def terminal_modes(pid: int, terminal: str) -> list[int]:
    """How a process has opened a terminal, once for each descriptor."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link) == terminal:
                info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
                flags = next(x for x in info.splitlines() if x.startswith("flags:"))
                found.append(int(flags.split()[1], 8) & os.O_ACCMODE)
    return found


@root
@pytest.mark.parametrize("what", ["fifo", "link", "stranger's"])
def test_what_lies_beside_a_socket_delays_nobody_and_is_not_shown(
    shared: Path, what: str
) -> None:
    """Where a consumer's notes would be, beside one that ends again and again."""
    (shared / "note").write_text("1 0 0\n\x1b[2Jpwned")
    for suffix in (".err", ".lock"):
        planted = shared / f"s.sock{suffix}"
        if what == "fifo":
            os.mkfifo(planted)
        elif what == "link":
            planted.symlink_to(shared / "note")
        else:
            planted.write_text("1 0 0\n\x1b[2Jpwned")
            os.chown(planted, UID, UID)
    with packet_socket() as listener:
        listener.bind(str(shared / "s.sock"))
        listener.listen(100)
        hanging_up = threading.Thread(target=hang_up, args=[listener])
        hanging_up.start()
        code = BASIC + "for _ in range(9): log.info('mine'); time.sleep(0.1)\n"
        env = os.environ | {"LOGAGG_SOCKET": str(shared / "s.sock")}
        try:
            done = python(code, shared / "app.log", env=env)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            hanging_up.join()

    assert "it wrote no error" in done.stderr
    assert "pwned" not in done.stderr


def hang_up(listener: socket.socket) -> None:
    """Close each connection."""
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()
