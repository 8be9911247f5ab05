"""One writer per file on a host: the locks of the files that a consumer writes.

Theory of operation
-------------------
Each consumer has an address of its own, so two of them may be given one file: two runs,
a run and a handler, users of two runtime directories. Before a sink is opened, each path
that it owns (`Sink.owned_paths`) is locked (flock) by `.NAME.owner` in its directory,
and the socket is written into that file, for the workers and consumers that come later.
The lock ends with the process, whatever ends it. A file that is released in good order
is removed; as in `logagg.ipc.launcher` a lock counts only if its name still leads to it.

    the path's owner is                    then
    this consumer                          both sinks share it: a reload, two spellings
    one that is ending                     a run, a service or `start` waits for it
    one that handlers have started         the same: it is asked to give way
    one that is being started again (its   the same
    lock is free, its socket is not)
    any other, and for handlers any        TargetOwned

In a directory where everybody may make files (/tmp) an owner file counts only if it is
of this user, root, or a user whose is the log file or the directory.

A directory that cannot be written has no such file: there the log file itself is locked,
which then cannot be rotated either, and names no socket. On a file system without locks
the file is written all the same, and an event announces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any, NamedTuple

import orjson

from logagg.abc import Alarm, Sink
from logagg.errors import ConfigError, TargetOwned
from logagg.ipc import consumer_client, launcher
from logagg.ipc.paths import FileOwner, owner_file, read_owner
from logagg.ipc.users import is_trusted

__all__ = ["GuardedSink", "TargetOwners"]

ENDING_WAIT = 12.0
"""Seconds for the owner to end: its workers' last records and its sinks' take time."""
RESTART_WAIT = 5.0
RETRY = 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class _OwnedPath:
    """A path that this consumer owns.

    Attributes:
        descriptor: It holds the lock; -1 where there are no locks.
        place: The owner file; empty where the log file itself is locked.
        users: How many sinks own it.
        problem: Why there is no lock.
    """

    def __init__(self, descriptor: int, place: str = "", problem: str = "") -> None:
        self.descriptor = descriptor
        self.place = place
        self.problem = problem
        self.users = 1

    def release(self, successor: str) -> None:
        """Let others own it; its owner file goes, or names the successor."""
        if self.descriptor < 0:
            return
        if self.place and successor:
            _write(self.descriptor, successor)
        elif self.place and _leads_to(self.place, self.descriptor):
            with contextlib.suppress(OSError):
                os.unlink(self.place)
        os.close(self.descriptor)


class _OtherOwner(NamedTuple):
    """Another consumer that owns a path, as far as it is known.

    Attributes:
        owner: The text of the owner file, None where there is none.
        locked: Whether it holds the lock; else it is being started again.
    """

    owner: FileOwner | None
    locked: bool

    @property
    def socket(self) -> str:
        """Where it takes records of this process; empty where it does not."""
        owner = self.owner
        usable = owner is not None and owner.trusted and _is_listening(owner.socket)
        return owner.socket if owner is not None and usable else ""

    def refusal(self, path: str) -> TargetOwned:
        """The error for a consumer that must not write the path."""
        who, remedy = "another consumer", ""
        if self.owner is not None:
            who = f"the consumer with pid {self.owner.pid} at {self.owner.socket}"
        socket = self.socket
        if socket:
            remedy = f"send records there, with LOGAGG_SOCKET={socket}, or "
        text = f"{path} is written by {who}; {remedy}name another file"
        return TargetOwned(text, socket)


class TargetOwners:
    """The paths that this consumer owns, each for any number of its sinks.

    Args:
        socket: Where this consumer takes records.
        outranks: Whether a consumer that handlers started gives way to this one.
        announce: Called with what is wrong with a file system.

    Attributes:
        successor: The socket of the consumer that this one gives way to.
    """

    def __init__(
        self,
        socket: str,
        outranks: Callable[[], bool],
        announce: Callable[[str], None],
    ) -> None:
        self.successor = ""
        self._socket = socket
        self._outranks = outranks
        self._announce = announce
        self._owned: dict[str, _OwnedPath] = {}

    def share(self, path: str) -> bool:
        """Own a path once more; False when this consumer does not own it."""
        owned = self._owned.get(path)
        if owned is not None:
            owned.users += 1
        return owned is not None

    async def take(self, path: str) -> None:
        """Own a path; a consumer that outranks others waits for one that ends.

        Raises:
            TargetOwned: Another consumer owns it.
            ConfigError: The owner file cannot be used.
        """
        begin = clock_gettime(CLOCK_MONOTONIC)
        while not self.share(path):
            waited = clock_gettime(CLOCK_MONOTONIC) - begin
            found = await asyncio.to_thread(_lock, path, self._socket, waited)
            if isinstance(found, _OwnedPath):
                self._owned[path] = found
                if found.problem:
                    self._announce(found.problem)
                return
            if waited > ENDING_WAIT or not self._outranks():
                raise found.refusal(path)
            if not await asyncio.to_thread(self._may_end, found):
                raise found.refusal(path)
            await asyncio.sleep(RETRY)

    def _may_end(self, other: _OtherOwner) -> bool:
        """Whether it is worth waiting for an owner; one that gives way is asked to."""
        if not other.locked or other.owner is None:
            return not other.locked
        path = other.owner.socket
        if path == self._socket or not _is_listening(path):
            return True
        if not other.owner.trusted:
            return False
        return consumer_client.give_way(path, self._socket) or not _is_listening(path)

    def release(self, path: str) -> None:
        """Own a path once less; after the last time another consumer may own it."""
        owned = self._owned[path]
        owned.users -= 1
        if not owned.users:
            del self._owned[path]
            owned.release(self.successor)


def _lock(path: str, socket: str, waited: float) -> _OwnedPath | _OtherOwner:
    """Lock a path, or find who owns it. Blocks for the file system only."""
    while True:
        stranger = _stranger(path)
        if stranger is not None:
            why = f"{owner_file(path)} belongs to uid {stranger}, who does not own it"
            return _OwnedPath(-1, problem=f"{path} is not locked: {why}; remove that")
        try:
            descriptor, place = _open(path)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return _OwnedPath(-1, problem=f"{path} is not locked: {error.strerror}")
            raise
        try:
            found = _try_lock(descriptor, place, socket, waited)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return _OwnedPath(-1, problem=f"{path} is not locked: {error.strerror}")
            raise
        if found is not None:
            if isinstance(found, _OtherOwner):
                os.close(descriptor)
            return found
        os.close(descriptor)


def _try_lock(
    descriptor: int, place: str, socket: str, waited: float
) -> _OwnedPath | _OtherOwner | None:
    """Lock an owner file; None when its name leads to another one by now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _OtherOwner(read_owner(descriptor) if place else None, locked=True)
    if not place:
        return _OwnedPath(descriptor)
    if not _leads_to(place, descriptor):
        return None
    if os.fstat(descriptor).st_nlink > 1:  # it is another file, too, maybe a user's
        try:
            os.unlink(place)
        except OSError as error:
            problem = f"{place} has more names and cannot be removed: {error.strerror}"
            return _OwnedPath(descriptor, problem=problem)
        return None
    before = _OtherOwner(read_owner(descriptor), locked=False)
    if waited < RESTART_WAIT and before.socket not in ("", socket):
        return before
    _write(descriptor, socket)
    return _OwnedPath(descriptor, place)


def _is_listening(path: str) -> bool:
    """Whether a consumer, or the process that starts it again, listens at a socket."""
    try:
        return launcher.answers(path)
    except OSError:  # there is one, for others
        return True


def _stranger(path: str) -> int | None:
    """The user that has made the owner file without any part in the log file.

    Everybody may do so in a directory like /tmp; the lock of such a file would keep the
    log from being written for good.
    """
    place = owner_file(path)
    folder = os.path.dirname(place)
    try:
        owner, directory = os.lstat(place).st_uid, os.stat(folder)
    except OSError:
        return None
    if not directory.st_mode & stat.S_ISVTX or owner == directory.st_uid:
        return None
    with contextlib.suppress(OSError):
        if os.stat(path).st_uid == owner:
            return None
    return None if is_trusted(owner) else owner


def _leads_to(place: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(place), os.fstat(descriptor))
    except OSError:
        return False


def _open(path: str) -> tuple[int, str]:
    """Open the owner file, or the log file where there can be none.

    Returns:
        The descriptor, and the path of the owner file or nothing.

    Raises:
        ConfigError, OSError: It cannot be opened.
    """
    place = owner_file(path)
    with contextlib.suppress(OSError):  # as the sink does, which states what is wrong
        os.makedirs(os.path.dirname(place), 0o750, exist_ok=True)
    try:
        return os.open(place, os.O_RDWR | os.O_CREAT | _FLAGS, 0o640), place
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ConfigError(f"{place} is not a plain file: remove it") from error
        if error.errno not in _NO_PERMISSION:
            raise
    try:
        return os.open(place, os.O_RDONLY | _FLAGS), place
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | _FLAGS), ""
    except PermissionError as error:
        raise TargetOwned(
            f"{path} may be written by another user's consumer: no permission to read "
            f"{place}; remove it when there is none"
        ) from error


def _write(descriptor: int, socket: str) -> None:
    """Write the text of an owner file; without it others wait instead of sending."""
    with contextlib.suppress(OSError, TypeError):  # a name that is not UTF-8
        text = orjson.dumps({"pid": os.getpid(), "socket": socket}) + b"\n"
        os.ftruncate(descriptor, os.pwrite(descriptor, text, 0))


class GuardedSink:
    """A sink whose paths this consumer owns while it is open; else the sink itself.

    Args:
        sink: The sink.
        owners: The paths that this consumer owns. Those of the sink that it owns by
            now stay owned until this sink is closed, too.
    """

    def __init__(self, sink: Sink, owners: TargetOwners) -> None:
        self._sink = sink
        self._owners = owners
        self._owned = [path for path in sink.owned_paths() if owners.share(path)]
        self._is_foreign = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)

    @property
    def alarm(self) -> Alarm:
        """The sink's own, so that what is set here is what the sink calls."""
        return self._sink.alarm

    @alarm.setter
    def alarm(self, alarm: Alarm) -> None:
        self._sink.alarm = alarm

    async def open(self) -> None:
        """Own the paths and open the sink.

        Raises:
            TargetOwned: Another consumer owns one of them.
        """
        try:
            for path in self._sink.owned_paths():
                if path not in self._owned:
                    await self._owners.take(path)
                    self._owned.append(path)
            await self._sink.open()
        except BaseException as error:
            self._is_foreign = isinstance(error, TargetOwned)
            self._release()
            raise
        self._is_foreign = False

    async def written_since(self, since: bytes) -> frozenset[bytes]:
        """See `Sink`.

        Raises:
            TargetOwned: Another consumer writes, maybe for long: ask once it is open.
        """
        if self._is_foreign:
            raise TargetOwned("another consumer owns the target")
        return await self._sink.written_since(since)

    async def close(self) -> None:
        """Close the sink. When that fails it may still write: the paths stay owned."""
        await self._sink.close()
        self._release()

    def _release(self) -> None:
        while self._owned:
            self._owners.release(self._owned.pop())
