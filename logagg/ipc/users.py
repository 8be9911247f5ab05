"""Which users of this host are trusted, at either end of a connection.

Both ends check each other, by the credentials that the kernel reports:

- a consumer accepts processes of its own user, of root, and of those that
  LOGAGG_ALLOW_USERS names;
- a worker, a viewer or a command sends nothing to a listener, and shows nothing of what
  comes from it, unless that is of its own user, of root, or of one that
  LOGAGG_TRUST_USERS names. Who can write to a directory can listen at any path in it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from logagg.errors import ConfigError
from logagg.ipc.descriptors import most_clients
from logagg.platform.peers import credentials

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Protocol

    class _Worker(Protocol):
        pipe: int
        connection: socket.socket


__all__ = [
    "ALLOW_USERS", "TRUST_USERS", "Guests", "allowed_users", "check_listener",
    "is_replaceable", "is_trusted", "open_note", "read_trusted",
]  # fmt: skip

ALLOW_USERS = "LOGAGG_ALLOW_USERS"
"""The environment variable with the users, by name or number, that may send, too."""

TRUST_USERS = "LOGAGG_TRUST_USERS"
"""The environment variable with the users whose consumers are used, too."""


def allowed_users() -> frozenset[int]:
    """The uids that LOGAGG_ALLOW_USERS names.

    Raises:
        ConfigError: There is no such user.
    """
    return _users(ALLOW_USERS)


def is_trusted(uid: int, *others: int) -> bool:
    """Whether records may go to a consumer of this user, and come from it.

    Args:
        uid: The user.
        others: Users that are trusted as this one is.

    Raises:
        ConfigError: LOGAGG_TRUST_USERS names a user that is not there.
    """
    return uid in (os.geteuid(), 0, *others) or uid in _users(TRUST_USERS)


def check_listener(connection: socket.socket, path: str, *others: int) -> None:
    """Refuse a connection to a process of a user that is not trusted.

    Call it before anything is sent. The credentials are those of the process that
    began to listen.

    Args:
        connection: The connection, of the client.
        path: Where it leads.
        others: As `is_trusted`.

    Raises:
        PermissionError: It names the user and the remedy.
        OSError: The listener is gone.
    """
    uid = credentials(connection)[1]
    if not is_trusted(uid, *others):
        raise PermissionError(
            f"{path} is not used: uid {uid} listens there, not this user (uid "
            f"{os.geteuid()}) or root; to trust that user, set {TRUST_USERS}={uid}"
        )


def read_trusted(path: str, most: int) -> bytes:
    """The last bytes of a file that a trusted user has made there.

    Beside a socket in a directory like /tmp anybody may put a file. It never waits, as
    opening a FIFO would.

    Args:
        path: The file.
        most: How many bytes.

    Raises:
        PermissionError: It is another user's, no regular file, or has further names.
        OSError, ConfigError: It cannot be read; as `is_trusted`.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
        if not is_plain or not is_trusted(status.st_uid):
            raise PermissionError(f"{path} is not a file of a trusted user alone")
        return os.pread(descriptor, most, max(0, status.st_size - most))
    finally:
        os.close(descriptor)


def _users(variable: str) -> frozenset[int]:
    text = os.environ.get(variable, "")
    return frozenset(_uid(name, variable) for name in text.replace(",", " ").split())


def _uid(name: str, variable: str) -> int:
    if name.isdecimal():
        return int(name)
    import pwd  # rarely needed

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"{variable}: there is no user {name!r}") from None


class Guests:
    """Users that may send to a consumer, their workers, and how many one may have.

    However many connections one of them makes, and whatever it leaves open, descriptors
    stay for the others: all guests together may have half of what the limit of open files
    allows, each an equal part of that.

    Attributes:
        users: Their uids.
    """

    def __init__(self) -> None:
        self.users = allowed_users() - {os.geteuid(), 0}
        self._workers: dict[_Worker, int] = {}

    def add(self, worker: _Worker, sender: socket.socket) -> None:
        """Note a worker, if it is a guest's.

        Args:
            worker: The worker.
            sender: The connection that it came by: another one when it was passed on.
        """
        for connection in (sender, worker.connection):
            uid = credentials(connection)[1]
            if uid in self.users:
                self._workers[worker] = uid

    def __contains__(self, worker: object) -> bool:
        return worker in self._workers

    def has_room(self, uid: int, waiting: Iterable[socket.socket]) -> bool:
        """Whether a user may have one more connection.

        Args:
            uid: The user; one that is no guest always may.
            waiting: The connections that no hello has come from.
        """
        if uid not in self.users:
            return True
        for each in list(self._workers):
            if each.pipe < 0 and each.connection.fileno() < 0:  # all of it is closed
                del self._workers[each]
        count = list(self._workers.values()).count(uid)
        count += sum(credentials(each)[1] == uid for each in waiting)
        return count < most_clients(len(self.users))


def open_note(name: str, flags: int) -> int:
    """Open or make a file beside a socket, where others may have put something else.

    It never waits, as opening a FIFO would.

    Raises:
        PermissionError: It is no regular file, or it is another one, too (a hard link).
        OSError: It cannot be opened.
    """
    flags |= os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(name, flags, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise PermissionError(errno.EPERM, "is not a file with one name", name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_replaceable(home: str) -> bool:
    """Whether another user could replace what is made in a home's `logagg`.

    That directory must be of this user or root. Where it is missing, the home must not
    be that of the user who called sudo (`sudo -E`); others may own it, as a container's
    volume.
    """
    place = os.path.join(home, "logagg")
    made = os.path.lexists(place)
    try:
        while place and not os.path.lexists(place):
            place = os.path.dirname(place)
        owners = {os.lstat(place).st_uid, os.stat(place).st_uid} - {0, os.geteuid()}
    except OSError:  # a link to nothing, or it has just been removed
        return made
    caller = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    return bool(owners) if made else caller in map(str, owners)
