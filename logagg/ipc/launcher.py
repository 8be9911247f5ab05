"""Start a consumer: the election, the listening socket, the detached process.

Theory of operation
-------------------
A consumer never makes its own socket. The process that needs one makes the listening
socket, passes it to the new process, and connects at once: connections, and the pipes
that come with them, wait in the socket's queue while the new process is still importing.
So the first log call need not wait for an interpreter to start, and its record is in
the kernel even if its process dies right after.

Several processes may find no consumer at the same moment. A lock file beside the
socket elects one; it is held for the few milliseconds of a start only. It is removed by
the consumer that ends, so a lock counts only if its name still leads to it.

A child that is forked meanwhile must keep neither the lock nor the socket: it closes
both, and the lock is released, not only closed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import orjson

from logagg.errors import ConfigError, LogaggError, WouldBlock
from logagg.ipc.clock import shared_offset, stored_offset, write_offset
from logagg.ipc.descriptors import OwnDescriptor, check_limit, no_fork
from logagg.ipc.paths import (
    first_file,
    owner_file,
    read_owner,
)  # fmt: skip
from logagg.ipc.users import allowed_users, check_listener, open_note
from logagg.platform.packets import packet_socket
from logagg.platform.system import MAX_SOCKET_PATH, bind_with_mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "answers", "choose_offset", "connect", "connect_to_owner", "election", "ensure",
    "launch", "listen", "remove_dead", "spawn",
]  # fmt: skip

SINK_FAILED = 12
"""Exit status of a consumer that was spawned: a required sink has failed for good."""
BACKLOG = 4096  # what net.core.somaxconn allows by default since Linux 5.4

_SHELL = "/bin/sh"
_USUAL_FILES = 32  # a shell puts descriptors that it saves at 10 and above
_IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE and SIGXFSZ, without the module, for its cost
_SCRIPT = 'cd /; exec >/dev/null 2>>"$0" </dev/null; "$@" &'

_DETACH = """\
import os, sys
if os.fork():
    os._exit(0)
os.chdir("/")
flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
for number, path in enumerate([os.devnull, os.devnull, sys.argv[2]]):
    try:
        os.dup2(os.open(path, flags if number else os.O_RDONLY, 0o600), number)
    except OSError:
        pass
"""

_CLOSE = """\
import os
os.closerange(3, %d)
os.closerange(%d, os.sysconf("SC_OPEN_MAX"))
"""

_BOOT = """\
import json, sys
config = json.loads(sys.argv[1])
if config.pop("more_on_stdin", False):
    config |= json.load(sys.stdin)
sys.path += [p for p in config["path"] if p not in sys.path]
from logagg.consumer.consumer import main
main(config)
"""


def connect(path: str, *users: int) -> socket.socket:
    """Connect to the consumer at a socket path, without waiting.

    Args:
        path: The path.
        users: Whose consumers are used, besides those of `logagg.ipc.users`.

    Raises:
        FileNotFoundError, ConnectionRefusedError: There is none.
        BlockingIOError: There is one, and its queue is full.
        PermissionError: A process of a user that is not trusted listens there.
    """
    connection = packet_socket()
    try:
        connection.setblocking(False)
        connection.connect(path)
        check_listener(connection, path, *users)
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
        with no_fork:
            lock = OwnDescriptor(open_note(name, os.O_RDWR), high=False)
        try:
            fcntl.flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(lock.number, name):
                break
        except BlockingIOError:
            if time.clock_gettime(time.CLOCK_MONOTONIC) > deadline:
                lock.close()
                raise WouldBlock(f"{name} is held by another process") from None
            time.sleep(0.001)
        except BaseException:
            lock.close()
            raise
        lock.close()
    try:
        yield
    finally:
        if lock.is_own:  # else this is a child, which was forked in between
            fcntl.flock(lock.number, fcntl.LOCK_UN)
        lock.close()


def _same_file(descriptor: int, name: str) -> bool:
    try:
        there = os.stat(name, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


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
    listener = packet_socket()
    try:
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        bind_with_mode(listener, fresh, 0o666 if allowed_users() else 0o600)
        listener.listen(BACKLOG)
        os.rename(fresh, path)
    except BaseException as error:
        listener.close()
        with suppress(OSError):
            os.unlink(fresh)
        if isinstance(error, OSError):
            raise ConfigError(f"cannot listen at {path}: {error.strerror}") from error
        raise
    return listener


def spawn(listener: socket.socket, config: dict[str, Any], error_path: str) -> None:
    """Start a detached consumer on a listening socket and return at once.

    The shell in between makes it no child of this process, so the application never
    meets an unknown process in `wait`, and no zombie stays; where there is no shell, an
    interpreter stands in, which takes some 20 ms. It runs in a session of its own, so a
    Ctrl-C in the terminal does not reach it. It serves metrics at LOGAGG_METRICS, and
    logs an event when it cannot. Nothing is imported here: the process may have changed
    its root directory or its user, so that no module can be found any more.

    Raises:
        OSError, ConfigError: No process could be started.
    """
    number = 3 if listener.fileno() != 3 else 4  # equal ones stay close-on-exec
    argument = consumer_argument(number, config | _metrics())
    with suppress(
        OSError
    ):  # private, whatever the umask by which the shell would make it
        os.close(os.open(error_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    program = _CLOSE % (number, number + 1) + _BOOT
    command = [_interpreter(), "-P", "-c", program, argument]
    if os.access(_SHELL, os.X_OK) and os.sysconf("SC_OPEN_MAX") >= _USUAL_FILES:
        command = [_SHELL, "-c", _SCRIPT, error_path, *command]
    else:
        command = [*command[:3], _DETACH + program, argument, error_path]
    child = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, listener.fileno(), number)],
        setsid=True,
        setsigdef=_IGNORED_BY_PYTHON,
    )
    try:
        # Not `waitpid`, which gevent replaces by one that waits for its event loop.
        os.waitid(os.P_PID, child, os.WEXITED)
    except ChildProcessError:  # the application ignores SIGCHLD, or waits for all
        pass


def _interpreter() -> str:
    """The Python to start: `sys.executable`, unless a program embeds this one (uWSGI).

    Raises:
        ConfigError: This user, in this root directory, cannot start one, or it could not
            open enough files.
    """
    if os.sysconf("SC_OPEN_MAX") < _USUAL_FILES:
        check_limit()
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own = sys.executable
    found = [own] if "py" in os.path.basename(own or "") else []
    found += [
        f"{place}/bin/{name}" for place in (sys.exec_prefix, sys.base_exec_prefix)
    ]
    for path in found:
        if os.access(path, os.X_OK):
            return path
    reason = "is empty" if not own else f"{own!r} cannot be started from here"
    raise ConfigError(f"cannot start a consumer: sys.executable {reason}")


def _metrics() -> dict[str, str]:
    """The setting for metrics of a consumer that a worker starts (LOGAGG_METRICS)."""
    address = os.environ.get("LOGAGG_METRICS", "")
    scheme, _, path = address.partition(":")
    if scheme == "unix" and path:
        address = f"unix:{os.path.abspath(path)}"
    return {"metrics": address} if address else {}


def consumer_argument(number: int, config: dict[str, Any]) -> str:
    """The argument that `logagg.consumer.consumer` is started with, as JSON.

    Args:
        number: The descriptor of its listening socket.
        config: Its settings besides.
    """
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    path = [entry for entry in path if os.path.isdir(entry)]
    return orjson.dumps({**config, "fd": number, "path": path}).decode()


def ensure(
    path: str, timeout: float, sinks: Sequence[str] = (), known: int = 0
) -> socket.socket:
    """Connect to the consumer of a path; start one when there is none.

    Blocks for some milliseconds when it starts one, for `timeout` seconds at most when
    others are in the way.

    Args:
        path: The socket's path, in a private directory.
        timeout: Seconds to wait for another process's election.
        sinks: As `choose_offset` takes them; also `known`.

    Raises:
        WouldBlock: Another process's start took too long.
        ConfigError, OSError: A consumer cannot be started from here.
    """
    try:
        return connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    _interpreter()  # before anything is made
    with election(path, timeout):
        try:
            return connect(path)
        except FileNotFoundError:
            restarted = False
        except ConnectionRefusedError:
            restarted = True
        offset = choose_offset(path, sinks, known)
        return launch(path, {"restarted": restarted, "offset": offset})


def launch(path: str, config: dict[str, Any]) -> socket.socket:
    """Start a consumer at a path and connect to it. Call it with the election held.

    Args:
        path: The socket's path.
        config: Its settings besides the path.

    Raises:
        ConfigError, OSError: It cannot be started.
    """
    with no_fork:
        listener = listen(path)
        kept = OwnDescriptor(listener.fileno(), high=False)
    with listener:
        try:
            spawn(listener, {"socket": path, **config}, path + ".err")
            return connect(path)
        finally:
            kept.forget()


def connect_to_owner(sinks: Sequence[str]) -> tuple[socket.socket, str] | None:
    """Connect to the consumer of this host that writes the first file among sinks.

    Args:
        sinks: Their URLs, with absolute paths.

    Returns:
        The connection and the socket's path; None when there is no file among them, and
        when its owner does not exist or cannot be reached.
    """
    owner = _owner(sinks)
    try:
        return (connect(owner), owner) if owner else None
    except OSError:
        return None


def _owner(sinks: Sequence[str]) -> str:
    """The socket of the consumer that writes the first file among sinks; "": none."""
    path = first_file(sinks)
    if not path:
        return ""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(owner_file(path), flags)
    except OSError:
        return ""
    try:
        owner = read_owner(descriptor)
    finally:
        os.close(descriptor)
    return owner.socket if owner is not None and owner.trusted else ""


def choose_offset(path: str, sinks: Sequence[str] = (), known: int = 0) -> int:
    """Choose the clock offset of a new consumer, and write it for its workers.

    Consumers that write one file after each other have one clock, or records that stand
    next to each other there could not be compared: the offset is that of the consumer
    that owns the first file, else that of the process that starts this one, else that of
    the last one at this path; or measured, also where the wall clock has been stepped.

    Args:
        path: The consumer's socket.
        sinks: Their URLs, with absolute paths.
        known: The offset by which the calling process stamps; 0: it has none.
    """
    owner = _owner(sinks)
    stored = stored_offset(owner) if owner else None
    if stored is None:
        stored = known or stored_offset(path)
    offset = shared_offset(stored)
    write_offset(path, offset)
    return offset


def answers(path: str) -> bool:
    """Whether a consumer listens at a socket path.

    Raises:
        OSError: Something is there, for others.
    """
    try:
        connect(path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except BlockingIOError:
        pass
    return True


def remove_dead(path: str) -> None:
    """Remove what a killed consumer left at its socket path, unless another has it.

    Blocks for a second at most, when one is being started there just now.
    """
    with suppress(OSError, LogaggError), election(path, 1.0):
        for suffix in () if answers(path) else ("", ".new", ".err", ".lock"):
            with suppress(FileNotFoundError):
                os.unlink(path + suffix)
