"""Start a consumer: the election, the listening socket, the detached process.

Theory of operation
-------------------
A consumer never makes its own socket. Whoever needs one makes the listening socket,
gives it to the new process, and connects at once: connections, and the pipes that come
with them, wait in the socket's queue while the new process is still importing. So
the first log call need not wait for an interpreter to start, and what it logged is in
the kernel's hands even if its process dies right after.

Several processes may find nobody there at the same moment. A lock file beside the
socket elects one; it is held for the few milliseconds of a start only. It is removed by
the consumer that ends, so a lock counts only if its name still leads to it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from logagg.address import MAX_SOCKET_PATH
from logagg.clock import shared_offset
from logagg.errors import ConfigError, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "answers", "connect", "consumer_signals", "election", "ensure", "listen",
    "read_offset", "signals_kept", "spawn",
]  # fmt: skip

BACKLOG = 4096  # what /proc/sys/net/core/somaxconn allows by default since Linux 5.4

_BOOT = """\
import json, sys
config = json.loads(sys.argv[1])
sys.path += [p for p in config["path"] if p not in sys.path]
from logagg.consumer import main
main(config)
"""


def connect(path: str) -> socket.socket:
    """Connect to the consumer at a socket path, without waiting.

    Raises:
        FileNotFoundError, ConnectionRefusedError: Nobody is there.
        BlockingIOError: Someone is there and its queue is full.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def election(path: str, timeout: float) -> Iterator[None]:
    """Hold the start-up lock of a socket path.

    Raises:
        WouldBlock: Another process has held it for `timeout` seconds.
    """
    name = path + ".lock"
    deadline = time.clock_gettime(time.CLOCK_MONOTONIC) + timeout
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(name, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(lock, name):
                break
        except BlockingIOError:
            if time.clock_gettime(time.CLOCK_MONOTONIC) > deadline:
                os.close(lock)
                raise WouldBlock(f"{name} is held by another process") from None
            time.sleep(0.001)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    try:
        yield
    finally:
        os.close(lock)


def _same_file(descriptor: int, name: str) -> bool:
    try:
        there = os.stat(name, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


Offsets = tuple[int, tuple[int, int] | None]


def read_offset(path: str) -> Offsets | None:
    """The clock offset that the consumer at a socket path shares, if it is known.

    Returns:
        The offset in nanoseconds, and where one is announced the change to come: from
        which monotonic instant on, and the offset from then.
    """
    try:  # without `open`, which is gone when an interpreter is at its very end
        file = os.open(path + ".lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            numbers = [int(each) for each in os.read(file, 128).split()]
        finally:
            os.close(file)
    except (OSError, ValueError):
        return None
    if len(numbers) >= 3 and numbers[1]:
        return numbers[0], (numbers[1], numbers[2])
    return (numbers[0], None) if numbers else None


def write_offset(
    path: str, offset_ns: int, switch: tuple[int, int] | None = None
) -> None:
    """Write the clock offset into the lock file, in one call of fixed length."""
    at, then = switch or (0, 0)
    file = os.open(path + ".lock", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(file, b"%+024d %+024d %+024d\n" % (offset_ns, at, then), 0)
    finally:
        os.close(file)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Have a consumer that begins here, or is started here, keep its signals.

    Until it has its handlers (`Consumer.run`) they would end it as they end any process;
    so they wait.
    """
    import signal

    before = signal.pthread_sigmask(signal.SIG_BLOCK, consumer_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def consumer_signals() -> tuple[int, ...]:
    """The signals that a consumer handles."""
    import signal

    return (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def listen(path: str) -> socket.socket:
    """Make the listening socket of a path, replacing a dead one.

    Call it with the election held.

    Raises:
        ConfigError: The path is too long, or its directory cannot be written.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH - 4:
        raise ConfigError(
            f"socket path {path!r} is longer than {MAX_SOCKET_PATH - 4} bytes; "
            "choose a shorter one"
        )
    fresh = path + ".new"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            os.unlink(fresh)
        except FileNotFoundError:
            pass
        listener.bind(fresh)
        os.chmod(fresh, 0o600)
        listener.listen(BACKLOG)
        os.rename(fresh, path)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def spawn(listener: socket.socket, config: dict[str, Any], error_path: str) -> None:
    """Start a detached consumer on a listening socket and return at once.

    The shell in between makes it nobody's child, so the application never meets an
    unknown process in `wait`, and no zombie stays. It runs in a session of its own, so
    a Ctrl-C in the terminal does not reach it. It serves metrics where LOGAGG_METRICS
    says, and says so in the log when it cannot.

    Raises:
        OSError: No process could be started.
    """
    import subprocess

    executable = sys.executable
    if not executable:
        raise ConfigError("sys.executable is empty: cannot start a consumer")
    argument = consumer_argument(listener, config | _metrics())
    command = [executable, "-P", "-c", _BOOT, argument]
    script = 'exec >/dev/null 2>>"$0" </dev/null; "$@" &'
    shell = subprocess.Popen(
        ["/bin/sh", "-c", script, error_path, *command],
        pass_fds=(listener.fileno(),),
        start_new_session=True,
        cwd="/",
    )
    shell.wait()


def _metrics() -> dict[str, str]:
    """Where LOGAGG_METRICS wants a consumer that nobody else sets up to serve them."""
    address = os.environ.get("LOGAGG_METRICS", "")
    scheme, _, path = address.partition(":")
    if scheme == "unix" and path:
        address = f"unix:{os.path.abspath(path)}"
    return {"metrics": address} if address else {}


def consumer_argument(listener: socket.socket, config: dict[str, Any]) -> str:
    """The argument that `logagg.consumer` is started with, as JSON."""
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    path = [entry for entry in path if os.path.isdir(entry)]
    return orjson.dumps({**config, "fd": listener.fileno(), "path": path}).decode()


def ensure(path: str, timeout: float) -> socket.socket:
    """Connect to the consumer of a path; start one when nobody is there.

    Blocks for some milliseconds when it starts one, for `timeout` seconds at most when
    others are in the way.

    Args:
        path: The socket's path, in a private directory.
        timeout: Seconds to wait for another process's election.

    Raises:
        WouldBlock: Another process's start took too long.
        ConfigError, OSError: A consumer cannot be started from here.
    """
    try:
        return connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    with election(path, timeout):
        try:
            return connect(path)
        except FileNotFoundError:
            restarted = False
        except ConnectionRefusedError:
            restarted = True
        offset = shared_offset(stored_offset(path))
        write_offset(path, offset)
        with listen(path) as listener:
            config = {"socket": path, "restarted": restarted, "offset": offset}
            spawn(listener, config, path + ".err")
            return connect(path)


def answers(path: str) -> bool:
    """Whether somebody listens at a socket path."""
    try:
        connect(path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except BlockingIOError:
        pass
    return True


def stored_offset(path: str) -> int | None:
    """The offset that holds now by a lock file, left behind maybe."""
    found = read_offset(path)
    if found is None:
        return None
    offset, switch = found
    if switch is not None and time.clock_gettime_ns(time.CLOCK_MONOTONIC) >= switch[0]:
        return switch[1]
    return offset
