"""The operating system as the simulated processes see it.

`install` replaces, in the namespaces of the product's modules, the modules `os`, `socket`,
`select`, `fcntl` and `time`, and functions imported from them, by what stands here. The
product knows nothing of it, and pays nothing for it: it is bound at import as always.

Each call is a step of the scheduler, may fail as the schedule has it, and is then the
kernel's own. Nothing happens in a process that was killed.
"""

from __future__ import annotations

import array
import builtins
import collections
import errno
import fcntl
import io
import os
import select
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from world import Killed, Process, World

from logagg.ipc import descriptors

__all__ = ["install"]

PIPE_BUF = 4096
HUNG = "hung"
"""The name of a directory on a disk that does not answer."""
F_DUPFD = fcntl.F_DUPFD
SECOND = 1_000_000_000

_world: World | None = None


def _process() -> Process | None:
    """The process that runs; None outside of the simulation."""
    if _world is None or _world.current is None:
        return None
    return _world.current.process


def _enter(kind: str = "", errors: tuple[int, ...] = ()) -> Process | None:
    """A step; afterwards the call may fail with one of `errors`."""
    process = _process()
    if process is None:
        return None
    assert _world is not None
    _world.step()
    if errors:
        chosen = _world.decide(kind, len(errors))
        if chosen:
            number = errors[chosen - 1]
            _world.note(f"{kind}: {errno.errorcode[number]}")
            raise OSError(number, os.strerror(number))
    return process


def _leave(process: Process | None) -> None:
    """After a call: another step, so that an end may come right behind it."""
    if process is not None and _world is not None:
        _world.step()


class _Os(types.ModuleType):
    """The module `os`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # ---- descriptors ----------------------------------------------------------------

    def open(self, path: Any, flags: int, *args: Any, **options: Any) -> int:
        errors = (errno.EMFILE,)
        if flags & os.O_CREAT:
            errors += (errno.ENOSPC, errno.EIO)
        process = _enter("open", errors)
        _hang(path)
        if process is not None and path == "/dev/fd/2" and _world is not None:
            path = f"/dev/fd/{_world.stderr}"
        found = os.open(path, flags, *args, **options)
        if process is not None:
            process.own(found)
            _leave(process)
        return found

    def close(self, descriptor: int) -> None:
        process = _enter()
        if process is not None:
            process.descriptors.discard(descriptor)
        os.close(descriptor)

    def dup(self, descriptor: int) -> int:
        process = _enter("descriptor", (errno.EMFILE,))
        found = os.dup(descriptor)
        if process is not None:
            process.own(found)
        return found

    def pipe(self) -> tuple[int, int]:
        process = _enter("descriptor", (errno.EMFILE,))
        ends = os.pipe()
        if process is not None:
            process.own(*ends)
        return ends

    def memfd_create(self, name: str, flags: int = 0) -> int:
        process = _enter("descriptor", (errno.EMFILE,))
        found = os.memfd_create(name, flags)
        if process is not None:
            process.own(found)
        return found

    def fdopen(self, descriptor: int, *args: Any, **options: Any) -> Any:
        process = _enter()
        file = os.fdopen(descriptor, *args, **options)
        if process is not None:
            process.hold(file)
        return file

    # ---- reading and writing ----------------------------------------------------------

    def write(self, descriptor: int, data: Any) -> int:
        process = _enter()
        if process is None:
            return os.write(descriptor, data)
        assert _world is not None
        if descriptor in (1, 2):
            if _world.stderr_is_full:
                _world.block(lambda: False, None)
            return len(data)
        size = len(data)
        if _is_pipe(descriptor):
            # A short write of up to PIPE_BUF bytes is whole or not at all.
            if size > PIPE_BUF and _world.decide("cut"):
                data = memoryview(data)[: 1 + (_world.steps * 31) % (size - 1)]
        elif _world.decide("disk") or _is_full(descriptor):
            _world.note("write: ENOSPC")
            part = (_world.steps * 31) % (size + 1)
            if part:
                return os.write(descriptor, memoryview(data)[:part])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            return os.write(descriptor, data)
        finally:
            _leave(process)

    def read(self, descriptor: int, size: int) -> bytes:
        _enter()
        return os.read(descriptor, size)

    def pread(self, *args: Any) -> bytes:
        _enter()
        return os.pread(*args)

    def pwrite(self, *args: Any) -> int:
        _enter("pwrite", (errno.ENOSPC,))
        return os.pwrite(*args)

    def ftruncate(self, *args: Any) -> None:
        _enter()
        os.ftruncate(*args)

    def fsync(self, *args: Any) -> None:
        _enter("fsync", (errno.EIO,))
        os.fsync(*args)

    def fdatasync(self, *args: Any) -> None:
        _enter("fsync", (errno.EIO,))
        os.fdatasync(*args)

    # ---- names ------------------------------------------------------------------------

    def unlink(self, *args: Any, **options: Any) -> None:
        process = _enter("unlink", (errno.EIO,))
        os.unlink(*args, **options)
        _leave(process)

    remove = unlink

    def rename(self, *args: Any, **options: Any) -> None:
        process = _enter("rename", (errno.EIO,))
        os.rename(*args, **options)
        _leave(process)

    replace = rename

    def link(self, *args: Any, **options: Any) -> None:
        _enter("rename", (errno.EIO,))
        os.link(*args, **options)

    def listdir(self, *args: Any) -> list[str]:
        _enter("open", (errno.EMFILE,))
        return sorted(os.listdir(*args))

    def fstat(self, descriptor: int) -> os.stat_result:
        if descriptor == 2 and _process() is not None and _world is not None:
            descriptor = _world.stderr
        return os.fstat(descriptor)

    def stat(self, *args: Any, **options: Any) -> os.stat_result:
        _enter()
        return os.stat(*args, **options)

    def lstat(self, *args: Any, **options: Any) -> os.stat_result:
        _enter()
        return os.lstat(*args, **options)

    def mkdir(self, *args: Any, **options: Any) -> None:
        _enter()
        _hang(args[0])
        os.mkdir(*args, **options)

    # ---- the rest -----------------------------------------------------------------------

    def getpid(self) -> int:
        process = _process()
        return os.getpid() if process is None else process.pid

    def urandom(self, size: int) -> bytes:
        process = _process()
        if process is None or _world is None:
            return os.urandom(size)
        return _world.steps.to_bytes(8, "big")[-size:].rjust(size, b"\1")

    def kill(self, pid: int, number: int) -> None:
        processes = _world.processes if _world is not None else []
        if not any(each.pid == pid for each in processes if each.alive):
            raise ProcessLookupError(errno.ESRCH, f"kill({pid}, {number})")

    def fork(self) -> int:
        raise AssertionError("fork of the real process")


def _hang(path: Any) -> None:
    """Wait for a disk that does not answer, as long as that is so."""
    if _world is not None and _world.hung and f"/{HUNG}" in str(path):
        _world.block(lambda: _world is None or not _world.hung, None)


def _is_full(descriptor: int) -> bool:
    """Whether a file is on the disk that is full."""
    if _world is None or _world.now >= _world.full_until or _world.calm:
        return False
    return "/app.log" in os.readlink(f"/proc/self/fd/{descriptor}")


def _is_pipe(descriptor: int) -> bool:
    import stat

    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


class _Socket(socket.socket):
    """A socket that belongs to a process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        process = _enter("descriptor", (errno.EMFILE,)) if not options else _process()
        super().__init__(*args, **options)
        if process is not None:
            process.hold(self)
            process.descriptors.discard(self.fileno())  # it owns that from here on

    def send(self, data: Any, *args: Any) -> int:
        process = _enter()
        found = super().send(data, *args)
        _leave(process)
        return found

    def sendmsg(self, *args: Any) -> int:
        process = _enter()
        found = super().sendmsg(*args)
        _leave(process)
        return found

    def recv(self, *args: Any) -> bytes:
        _enter()
        return super().recv(*args)

    def recvmsg(self, *args: Any) -> Any:
        process = _enter()
        found = super().recvmsg(*args)
        if process is not None:
            for _, _, numbers in found[1]:
                process.own(*array.array("i", numbers))
            _leave(process)
        return found

    def connect(self, *args: Any) -> None:
        process = _enter("connect", (errno.EAGAIN,))
        super().connect(*args)
        _leave(process)

    def accept(self) -> tuple[socket.socket, Any]:
        process = _enter("descriptor", (errno.EMFILE,))
        descriptor, address = self._accept()
        made = _Socket(self.family, self.type, self.proto, fileno=descriptor)
        _leave(process)
        return made, address

    def shutdown(self, *args: Any) -> None:
        _enter()
        super().shutdown(*args)

    def close(self) -> None:
        """Close; when it is interrupted too, since nobody holds the object any more."""
        process = _process()
        try:
            if process is not None and process.alive:
                _enter()
        finally:
            if process is not None and self in process.owners:
                process.owners.remove(self)
            super().close()


class _FileIO(io.FileIO):
    """A file object that belongs to a process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        process = _enter()
        super().__init__(*args, **options)
        if process is not None:
            process.hold(self)

    def write(self, data: Any) -> int:
        return OS.write(self.fileno(), data)


class _Io(types.ModuleType):
    """The module `io`."""

    FileIO = _FileIO

    def __getattr__(self, name: str) -> Any:
        return getattr(io, name)


class _SocketModule(types.ModuleType):
    """The module `socket`."""

    socket = _Socket

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def send_fds(self, connection: socket.socket, *args: Any, **options: Any) -> int:
        process = _enter()
        found = socket.send_fds(connection, *args, **options)
        _leave(process)
        return found


class _Poll:
    """`select.poll()`: waiting is the scheduler's matter."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._empty = True
        self._stderr = -1  # what stands for descriptor 2

    def register(self, descriptor: int, *args: Any) -> None:
        self._empty = False
        if descriptor == 2 and _process() is not None and _world is not None:
            descriptor = self._stderr = _world.stderr
        self._poll.register(descriptor, *args)

    def unregister(self, *args: Any) -> None:
        self._poll.unregister(*args)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        process = _enter()
        if process is None:
            return self._poll.poll(timeout)
        assert _world is not None
        found = self._poll.poll(0)
        if found or timeout == 0:
            return sorted((2 if fd == self._stderr else fd, what) for fd, what in found)
        nanoseconds = None if timeout is None or timeout < 0 else int(timeout * 1e6)
        ready = None if self._empty else lambda: self._poll.poll(0)
        _world.block(ready, nanoseconds)
        return sorted(self._poll.poll(0))


class _Select(types.ModuleType):
    """The module `select`."""

    poll = _Poll

    def __getattr__(self, name: str) -> Any:
        return getattr(select, name)

    def epoll(self, *args: Any) -> select.epoll:
        process = _enter("descriptor", (errno.EMFILE,))
        found = select.epoll(*args)
        if process is not None:
            process.hold(found)
        return found


class _Fcntl(types.ModuleType):
    """The module `fcntl`; pipes get the size that the scene wants."""

    pipe_size = 65536

    def __getattr__(self, name: str) -> Any:
        return getattr(fcntl, name)

    def fcntl(self, descriptor: Any, command: int, argument: Any = 0) -> Any:
        process = _enter()
        if process is not None and command == fcntl.F_SETPIPE_SZ:
            argument = self.pipe_size
        found = fcntl.fcntl(descriptor, command, argument)
        if process is not None and command in (F_DUPFD, fcntl.F_DUPFD_CLOEXEC):
            process.own(found)
        return found

    def flock(self, descriptor: Any, operation: int) -> None:
        process = _enter()
        if process is None or operation & (fcntl.LOCK_NB | fcntl.LOCK_UN):
            fcntl.flock(descriptor, operation)
            _leave(process)
            return
        assert _world is not None

        def locked() -> bool:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        _world.block(locked, None)


class _Time(types.ModuleType):
    """The module `time`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def clock_gettime_ns(self, clock: int) -> int:
        if _process() is None or _world is None:
            return time.clock_gettime_ns(clock)
        if _world.current is not None and not _world.current.process.alive:
            raise Killed
        _world.now += 50
        if clock == time.CLOCK_REALTIME:
            return _world.now + _world.wall_offset
        return _world.now

    def clock_gettime(self, clock: int) -> float:
        return self.clock_gettime_ns(clock) / SECOND

    def time_ns(self) -> int:
        return self.clock_gettime_ns(time.CLOCK_REALTIME)

    def time(self) -> float:
        return self.time_ns() / SECOND

    def monotonic(self) -> float:
        return self.clock_gettime_ns(time.CLOCK_MONOTONIC) / SECOND

    def monotonic_ns(self) -> int:
        return self.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def sleep(self, seconds: float) -> None:
        if _process() is None or _world is None:
            time.sleep(seconds)
        else:
            _world.block(None, int(seconds * SECOND))


class _Signal(types.ModuleType):
    """The module `signal`: masks and handlers are those of the one real process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)

    def pthread_sigmask(self, *_: Any) -> set[signal.Signals]:
        return set()

    def signal(self, *_: Any) -> Any:
        return signal.SIG_DFL

    def setitimer(self, *_: Any) -> tuple[float, float]:
        return 0.0, 0.0


class Lock:
    """A re-entrant lock between the threads of a simulated process."""

    def __init__(self) -> None:
        self._owner: Any = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = None if _world is None else _world.current
        until = None if timeout < 0 or _world is None else _world.now + timeout * SECOND
        while self._owner is not None and self._owner is not me:
            if not blocking or _world is None:
                return False
            left = None if until is None else int(until - _world.now)
            if left is not None and left <= 0:
                return False
            # A signal handler that runs meanwhile may give others the lock again.
            _world.block(lambda: self._owner is None, left)
        self._owner = me
        self._count += 1
        return True

    def release(self) -> None:
        self._count -= 1
        if not self._count:
            self._owner = None

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self._owner is not None and self._owner is (_world and _world.current)

    def _at_fork_reinit(self) -> None:
        self._owner, self._count = None, 0


class NoFork(Lock):
    """`no_fork`, a lock of each process.

    Attributes:
        held: How often, by process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: collections.Counter[Process | None] = collections.Counter()

    def acquire(self, *_: Any, **__: Any) -> bool:
        self.held[_process()] += 1
        return True

    __enter__ = acquire

    def release(self) -> None:
        self.held[_process()] -= 1


class _Threading(types.ModuleType):
    """The module `threading`; threads are the scheduler's matter."""

    Lock = RLock = Lock

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


OS = _Os("os")
SOCKET = _SocketModule("socket")
SELECT = _Select("select")
FCNTL = _Fcntl("fcntl")
TIME = _Time("time")
SIGNAL = _Signal("signal")
THREADING = _Threading("threading")
IO = _Io("io")
NO_FORK = NoFork()
_STAND_INS: dict[types.ModuleType, types.ModuleType] = {
    os: OS, socket: SOCKET, select: SELECT, fcntl: FCNTL, time: TIME, signal: SIGNAL,
    threading: THREADING, io: IO,
}  # fmt: skip


def _open(path: Any, *args: Any, **options: Any) -> Any:
    """The function `open`."""
    process = _enter("open", (errno.EMFILE,))
    file = builtins.open(path, *args, **options)  # noqa: SIM115 - as the caller has it
    if process is not None:
        process.hold(file)
    return file


def _replacements() -> dict[int, Any]:
    """By the identity of a function of the standard library, what stands in for it."""
    found: dict[int, Any] = {id(real): fake for real, fake in _STAND_INS.items()}
    for real, fake in _STAND_INS.items():
        for name in vars(type(fake)):
            if not name.startswith("_") and hasattr(real, name):
                found[id(getattr(real, name))] = getattr(fake, name)
    found[id(threading.RLock)] = Lock
    found[id(threading.Lock)] = Lock
    found[id(descriptors.no_fork)] = NO_FORK
    return found


@contextmanager
def install(world: World, extra: dict[tuple[str, str], Any]) -> Iterator[None]:
    """Redirect the product's calls to a world, for a while.

    Args:
        world: Where they go.
        extra: By module and name, further replacements.
    """
    global _world
    NO_FORK.held.clear()
    before: list[tuple[dict[str, Any], str, Any]] = []
    missing = object()
    replacements = _replacements()

    def put(namespace: dict[str, Any], name: str, value: Any) -> None:
        before.append((namespace, name, namespace.get(name, missing)))
        namespace[name] = value

    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] not in ("logagg", "logagg_sinks"):
            continue
        namespace = vars(module)
        for name, value in list(namespace.items()):
            fake = replacements.get(id(value))
            if fake is not None:
                put(namespace, name, fake)
        put(namespace, "open", _open)
    for (module_name, name), value in extra.items():
        put(vars(sys.modules[module_name]), name, value)
    _world = world
    try:
        yield
    finally:
        _world = None
        for namespace, name, value in reversed(before):
            if value is missing:
                del namespace[name]
            else:
                namespace[name] = value
