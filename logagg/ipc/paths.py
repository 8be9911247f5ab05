"""Where a consumer is reached: the private directory, the socket's name, its safety.

An address is the path of a Unix socket. Beside it stand, while a consumer runs,
`PATH.lock` (held only while one is being started; its text is the clock's offset) and
`PATH.err` (the consumer's own stderr). All vanish when it ends.

The consumer that writes `FILE` has locked `.FILE.owner` in the same directory, whose
text names its socket (`logagg.ownership`): a process that logs to the file sends its
records there, however that consumer was started. Its own address would give the file a
second writer.

Guarantees: `runtime_dir` and `spool_dir` return directories of this user with mode
0700, reached without a symlink that another user could have planted; anything else is
an error that names the fault. Nothing here blocks.

Users of the host whom LOGAGG_ALLOW_USERS names may send to the consumers of this user:
the runtime directory is then one that they can pass through (mode 0711), and the kernel's
credentials decide who is accepted. The variable is to be the same for all processes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Container, Sequence
from typing import NamedTuple

import orjson

from logagg.errors import ConfigError
from logagg.ipc import users
from logagg.ipc.users import ALLOW_USERS, allowed_users, check_listener, is_trusted
from logagg.platform import packets
from logagg.platform.mounts import is_elsewhere
from logagg.platform.system import MAX_SOCKET_PATH, change_mode

__all__ = [
    "SPOOL_NAME", "FileOwner", "check_private", "first_file", "forget_spool_dir",
    "identifier_of", "identity", "is_file", "listening", "make_folder", "owner_file",
    "owners_of", "read_owner", "runtime_dir", "socket_path", "spool_dir", "spool_dirs",
    "spool_name", "state_dir", "stream_of",
]  # fmt: skip

_LONGEST_OWNED = 200  # of the 255 bytes of a file's name
_LASTING = "/var/tmp"  # noqa: S108 - what is made there is checked to be private
SPOOL_NAME = "LOGAGG_SPOOL"  # see `spool_name`
_LONGEST_NAME = "/logagg/start-4194304-01234567.sock.new"
_MAX_BASE = MAX_SOCKET_PATH - len(_LONGEST_NAME)
_SHARED_PLACE = re.compile(r"/(tmp|var/tmp|dev/shm)/logagg-\d+(/run)?", re.ASCII)


def runtime_dir() -> str:
    """The private directory for sockets; made when it is missing.

    `$XDG_RUNTIME_DIR/logagg` when that is a directory of this user and short enough for
    a socket's path (68 bytes); else `/tmp/logagg-<uid>` (`$TMPDIR` is not used: processes
    must agree), unless another user made that or nothing can be made there; else `run`
    below `/var/tmp/logagg-<uid>` or where state is kept, else `/dev/shm/logagg-<uid>`.

    Raises:
        ConfigError: That below XDG_RUNTIME_DIR is someone else's, a symlink, or open to
            others; or there is none.
    """
    path = _runtime_path()
    if not path:
        raise ConfigError(
            "no directory for sockets: neither /tmp, /var/tmp, /dev/shm nor a home can "
            "be written; set XDG_RUNTIME_DIR to a directory of this user that can"
        )
    mode = 0o711 if os.environ.get(ALLOW_USERS) else 0o700
    if os.path.basename(path) == "run":
        _private(os.path.dirname(path), mode)
    return _private(path, mode)


def _runtime_path() -> str:
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    uid = os.geteuid()
    fits = os.path.isabs(base) and len(os.fsencode(base)) <= _MAX_BASE
    if fits and not os.environ.get(ALLOW_USERS):  # others cannot pass through it
        try:
            status = os.stat(base)
        except OSError:
            pass
        else:
            if status.st_uid == uid and not status.st_mode & stat.S_IWOTH:
                return os.path.join(base, "logagg")
    first = f"/tmp/logagg-{uid}"  # noqa: S108 - checked to be private
    homes = [f"{home}/logagg/run" for home in _state_homes()]
    places = [first, f"{_state_beside()}/run", *homes]
    places.append(f"/dev/shm/logagg-{uid}")  # noqa: S108 - as above
    return next(filter(_may_be_had, places), "")


def _may_be_had(place: str) -> bool:
    """Whether a directory is private, or missing and can be made."""
    if len(os.fsencode(place)) > _MAX_BASE:
        return False
    try:
        check_private(place, 0o066)
    except FileNotFoundError:
        above = os.path.dirname(place)
        if os.path.basename(place) == "run":
            return _may_be_had(above)
        return os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)
    except (OSError, ConfigError):
        return False
    return os.access(place, os.W_OK | os.X_OK)


def state_dir() -> str:
    """Where this user keeps what must outlive processes, on a disk of this machine.

    `$XDG_STATE_HOME/logagg`, by default `~/.local/state/logagg`; not made. Where that
    cannot be written, is another user's or on another machine, and without a home,
    `/var/tmp/logagg-<uid>`, which outlives a start of the machine as well; made.

    Raises:
        ConfigError: There is neither; it names the remedy.
    """
    for place in _state_dirs():
        if _may_write(place):
            return _private(place) if place == _state_beside() else place
    raise ConfigError(
        "no directory for what waits on disk: set XDG_STATE_HOME to one that can be "
        "written, on a disk of this machine"
    )


def spool_dir(identifier: str, refused: Container[str] = ()) -> str:
    """The private directory where workers of an address park records; made if missing.

    The first of `spool_dirs` that can be had. The runtime directory is not needed,
    unless the others refuse.

    Args:
        identifier: The address.
        refused: Directories to leave out: nothing can be written there now.

    Raises:
        ConfigError: None can be had; the last is someone else's, or open to others.
        OSError: The last cannot be made, or nothing can be written there either.
    """
    for place in _state_dirs():
        if f"{place}/spool/{identifier}" in refused:
            continue
        try:
            if place == _state_beside():
                _private(place)
            else:
                make_folder(place)
            return _private(os.path.join(_private(f"{place}/spool"), identifier))
        except (OSError, ConfigError):
            continue
    last = _spool_beside(identifier)
    if last in refused:
        raise OSError(errno.ENOSPC, "nothing can be written", last)
    return _private(last)


def spool_dirs(identifier: str) -> list[str]:
    """Where records of an address may be parked, the best place first.

    Below `$XDG_STATE_HOME/logagg` (by default `~/.local/state/logagg`) unless that lies
    on another machine, below `/var/tmp/logagg-<uid>`, of users that are allowed to send
    too, below the runtime directory.
    """
    found = [f"{place}/spool/{identifier}" for place in _state_dirs()]
    places = [(uid, f"{_LASTING}/logagg-{uid}") for uid in allowed_users()]
    theirs = [place for uid, place in places if _is_of(uid, place)]
    found += [f"{place}/spool/{identifier}" for place in theirs]
    with contextlib.suppress(ConfigError):  # there is none, and nothing is in it
        found.append(_spool_beside(identifier))
    return found


def owners_of(segment: str) -> frozenset[int]:
    """The users whose file may stand in a spool directory under this name.

    In the place of another user, who may put links into it, only files of that user
    are taken, and none that only this user could read.
    """
    allowed = allowed_users()
    for uid in allowed - {os.geteuid()}:
        if segment.startswith(f"{_LASTING}/logagg-{uid}/"):
            return frozenset((uid,))
    return allowed | {os.geteuid()}


def _state_dirs() -> list[str]:
    """This user's places on this machine for files that must outlive processes."""
    homes = [home for home in _state_homes() if not is_elsewhere(home)]
    found = [os.path.join(home, "logagg") for home in homes if os.path.isabs(home)]
    try:
        check_private(_state_beside(), 0o066)
    except FileNotFoundError:
        pass
    except (OSError, ConfigError):
        return found
    return [*found, _state_beside()]


def _is_of(uid: int, place: str) -> bool:
    """Whether a directory is another user's, made by that user."""
    try:
        status = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid != os.geteuid()


def _state_homes() -> list[str]:
    base = os.environ.get("XDG_STATE_HOME", "")
    home = base if os.path.isabs(base) else os.path.expanduser("~/.local/state")
    return [] if users.is_replaceable(home) else [home]


def _state_beside() -> str:
    return f"{_LASTING}/logagg-{os.geteuid()}"


def _may_write(path: str) -> bool:
    """Whether a directory can be written, or made where it is missing."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def _spool_beside(identifier: str) -> str:
    return os.path.join(runtime_dir(), f"{identifier}.spool")


def forget_spool_dir(*names: str) -> None:
    """Remove the spool directories of these names if nothing is in them."""
    for folder in [each for name in names if name for each in spool_dirs(name)]:
        try:
            os.rmdir(folder)
        except OSError:
            pass


def _private(path: str, mode: int = 0o700) -> str:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    check_private(path, 0o066)
    if mode != 0o700:
        change_mode(path, mode)
    return path


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a private directory unless it is there, and those above it that are missing.

    Others may be removing it.
    """
    while not os.path.isdir(folder):
        above = os.path.dirname(os.fspath(folder))
        if above and not os.path.isdir(above):
            make_folder(above)
        with contextlib.suppress(FileNotFoundError):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise


def check_private(path: str, forbidden: int = 0o077) -> None:
    """Refuse a directory that others could tamper with.

    Args:
        path: The directory.
        forbidden: The bits of its mode that are refused.

    Raises:
        ConfigError: It names the directory and the remedy.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is not a directory; remove it")
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to uid {status.st_uid}; remove it")
    if status.st_mode & forbidden:
        raise ConfigError(f"{path} is open to other users; run: chmod 700 {path}")


def identity(sinks: Sequence[str], streams: Sequence[int] = (1, 2)) -> str:
    """A short name for what a handler logs to: equal targets have equal names.

    The first file among the sinks decides, by its absolute path with symlinks of its
    directories resolved; else what the process's stdout (or stderr) really is, for
    sinks that write there; else the sinks' URLs.

    Args:
        sinks: Sink URLs as given by the user.
        streams: The descriptors of stdout and stderr.
    """
    for sink in sinks:
        scheme, colon, rest = sink.partition(":")
        if is_file(scheme) or not colon:
            return file_identity((rest if colon else sink).partition("?")[0])
    parts = []
    for sink in sinks:
        parts.append(sink)
        stream = stream_of(sink.partition(":")[0])
        if stream is not None:
            try:
                status = os.fstat(streams[stream])
            except OSError:
                continue
            parts.append(f"{status.st_dev}:{status.st_ino}:{status.st_rdev}")
    return _digest("\0".join(parts))


def is_file(scheme: str) -> bool:
    """Whether a sink's target is the path of a file: `file`, or `NAME+file`."""
    return scheme.rpartition("+")[2] == "file"


class FileOwner(NamedTuple):
    """The text of an owner file.

    Attributes:
        pid: The consumer's process.
        socket: Where it takes records.
        uid: The user that has written the text.
    """

    pid: int
    socket: str
    uid: int

    @property
    def trusted(self) -> bool:
        """Whether this process may send records there."""
        return is_trusted(self.uid)


def owner_file(path: str) -> str:
    """The owner file of an absolute path; of a template, that of all its files."""
    folder = os.path.dirname(path.partition("{")[0]) or "/"
    name = os.path.relpath(path, folder)
    if "/" in name or len(os.fsencode(name)) > _LONGEST_OWNED:
        name = _digest(name)
    return os.path.join(folder, f".{name}.owner")


def read_owner(descriptor: int) -> FileOwner | None:
    """The consumer that an owner file names, None when it names none."""
    try:
        text = orjson.loads(os.pread(descriptor, 4096, 0))
        uid = os.fstat(descriptor).st_uid
        return FileOwner(int(text["pid"]), str(text["socket"]), uid)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def first_file(sinks: Sequence[str]) -> str:
    """The path of the first file among sink URLs; empty when there is none."""
    for sink in sinks:
        scheme, _, rest = sink.partition(":")
        if is_file(scheme):
            path = rest.partition("?")[0]
            if "%" in path:
                from urllib.parse import unquote  # rarely needed

                path = unquote(path)
            return path
    return ""


def stream_of(scheme: str) -> int | None:
    """The stream of a sink for `stdout` (0) or `stderr` (1), also as `NAME+stdout`.

    None for all other schemes.
    """
    return {"stdout": 0, "stderr": 1}.get(scheme.rpartition("+")[2])


def file_identity(path: str) -> str:
    """The name for a file, the same from every directory and through every link."""
    folder, name = os.path.split(os.path.abspath(path))
    return _digest(os.path.join(os.path.realpath(folder), name))


def _digest(text: str) -> str:
    from hashlib import sha256  # only a process that attaches needs it

    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def socket_path(identifier: str) -> str:
    """The socket of a target's consumer.

    Its directory is made when it is missing; where that fails, the attachment reports
    it, and the application goes on.
    """
    try:
        folder = runtime_dir()
    except (OSError, ConfigError):
        folder = f"/tmp/logagg-{os.geteuid()}"  # noqa: S108 - it is not used unchecked
    return os.path.join(folder, f"{identifier}.sock")


def identifier_of(path: str) -> str:
    """The short name for a socket's path, derived or chosen by a user."""
    folder, name = os.path.split(os.path.abspath(path))
    shared = _SHARED_PLACE.fullmatch(folder)  # of this user, or of one that allows it
    if name.endswith(".sock") and (shared or folder == _runtime_path()):
        return name.removesuffix(".sock")
    return file_identity(path)


def spool_name(path: str) -> str:
    """The name of the directories where this process spools records for an address.

    A run's address, or that of `logagg.start`, ends with it. Its processes spool under
    a name for what is logged to, which a later consumer of the same log finds.
    """
    name = os.environ.get(SPOOL_NAME, "")
    if path == os.environ.get("LOGAGG_SOCKET") and re.fullmatch("[0-9a-f]{20}", name):
        return name
    return identifier_of(path)


def listening() -> list[str]:
    """Sockets of consumers in the runtime directory that answer now."""
    found = []
    folder = runtime_dir()
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".sock"):
            continue
        path = os.path.join(folder, name)
        with packets.packet_socket() as probe:
            try:
                probe.connect(path)
                check_listener(probe, path)
            except OSError:
                continue
            found.append(path)
    return found
