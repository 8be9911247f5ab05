"""Where a consumer is reached: the private directory, the socket's name, its safety.

An address is the path of a Unix socket. Beside it stand, while a consumer runs,
`PATH.lock` (held only while one is being started; its text is the clock's offset) and
`PATH.err` (what the consumer's own stderr says). All vanish when it ends.

Guarantees: `runtime_dir` and `spool_dir` return directories that we own, with mode
0700, reached without a symlink that someone else could have planted; anything else is
an error that says what is wrong. Nothing here blocks.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Sequence

from logagg.errors import ConfigError
from logagg.mounts import is_elsewhere

__all__ = [
    "MAX_SOCKET_PATH",
    "check_private",
    "forget_spool_dir",
    "identifier_of",
    "identity",
    "is_pid_of",
    "listening",
    "peer",
    "runtime_dir",
    "socket_path",
    "spool_dir",
    "spool_dirs",
    "state_dir",
]

MAX_SOCKET_PATH = 107  # sun_path of unix(7) has 108 bytes with its NUL
_LASTING = "/var/tmp"  # noqa: S108 - what is made there is checked to be private
_MAX_BASE = MAX_SOCKET_PATH - len("/logagg/0123456789abcdef0123.sock")


def runtime_dir() -> str:
    """The private directory for sockets; made when it is missing.

    `$XDG_RUNTIME_DIR/logagg` when that is a directory of ours and short enough for a
    socket's path (74 bytes), else `/tmp/logagg-<uid>` (`$TMPDIR` is not used: processes
    must agree).

    Raises:
        ConfigError: It is someone else's, a symlink, or open to others.
    """
    return _private(_runtime_path())


def _runtime_path() -> str:
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    uid = os.getuid()
    if os.path.isabs(base) and len(os.fsencode(base)) <= _MAX_BASE:
        try:
            status = os.stat(base)
        except OSError:
            pass
        else:
            if status.st_uid == uid and not status.st_mode & stat.S_IWOTH:
                return os.path.join(base, "logagg")
    return f"/tmp/logagg-{uid}"  # noqa: S108 - checked to be private


def state_dir() -> str:
    """Where this user keeps what must outlive processes, on a disk of this machine.

    `$XDG_STATE_HOME/logagg`, by default `~/.local/state/logagg`; not made. Where that
    cannot be written or lies on another machine, and where there is no home,
    `/var/tmp/logagg-<uid>`, which outlives a start of the machine as well; made.

    Raises:
        ConfigError: There is neither; it says what to do.
    """
    for place in _state_dirs():
        if _may_write(place):
            return _private(place) if place == _state_beside() else place
    raise ConfigError(
        "no directory for what waits on disk: set XDG_STATE_HOME to one that can be "
        "written, on a disk of this machine"
    )


def spool_dir(identifier: str) -> str:
    """The private directory where workers of an address park records; made if missing.

    The first of `spool_dirs` that can be had. The runtime directory is not needed,
    unless the others refuse.

    Raises:
        ConfigError: None can be had; the last is someone else's, or open to others.
        OSError: The last cannot be made.
    """
    for place in _state_dirs():
        try:
            if place == _state_beside():
                _private(place)
            else:
                os.makedirs(place, mode=0o700, exist_ok=True)
            return _private(os.path.join(_private(f"{place}/spool"), identifier))
        except (OSError, ConfigError):
            continue
    return _private(_spool_beside(identifier))


def spool_dirs(identifier: str) -> list[str]:
    """Where records of an address may be parked, the best place first.

    Below `$XDG_STATE_HOME/logagg` (by default `~/.local/state/logagg`) unless that lies
    on another machine, below `/var/tmp/logagg-<uid>`, below the runtime directory.

    Raises:
        ConfigError: As `runtime_dir`.
    """
    found = [f"{place}/spool/{identifier}" for place in _state_dirs()]
    return [*found, _spool_beside(identifier)]


def _state_dirs() -> list[str]:
    """Places for what must outlive processes that are ours and of this machine."""
    found = []
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.local/state")
    if os.path.isabs(base) and not is_elsewhere(base):
        found.append(os.path.join(base, "logagg"))
    try:
        check_private(_state_beside())
    except FileNotFoundError:
        pass
    except (OSError, ConfigError):
        return found
    return [*found, _state_beside()]


def _state_beside() -> str:
    return f"{_LASTING}/logagg-{os.getuid()}"


def _may_write(path: str) -> bool:
    """Whether a directory can be written, or made where it is missing."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def _spool_beside(identifier: str) -> str:
    return os.path.join(runtime_dir(), f"{identifier}.spool")


def forget_spool_dir(identifier: str) -> None:
    """Remove the spool directories of an address if nothing is in them."""
    for folder in spool_dirs(identifier):
        try:
            os.rmdir(folder)
        except OSError:
            pass


def _private(path: str) -> str:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    check_private(path)
    return path


def check_private(path: str) -> None:
    """Refuse a directory that others could tamper with.

    Raises:
        ConfigError: It says which directory and what to do.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is not a directory; remove it")
    if status.st_uid != os.getuid():
        raise ConfigError(f"{path} belongs to uid {status.st_uid}; remove it")
    if status.st_mode & 0o077:
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
        if scheme == "file" or not colon:
            return file_identity((rest if colon else sink).partition("?")[0])
    parts = []
    for sink in sinks:
        parts.append(sink)
        scheme = sink.partition(":")[0]
        if scheme in ("stdout", "stderr"):
            try:
                status = os.fstat(streams[scheme == "stderr"])
            except OSError:
                continue
            parts.append(f"{status.st_dev}:{status.st_ino}:{status.st_rdev}")
    return _digest("\0".join(parts))


def file_identity(path: str) -> str:
    """The name for a file, the same from every directory and through every link."""
    folder, name = os.path.split(os.path.abspath(path))
    return _digest(os.path.join(os.path.realpath(folder), name))


def _digest(text: str) -> str:
    from hashlib import sha256  # only a process that attaches needs it

    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def socket_path(identifier: str) -> str:
    """The socket of a target's consumer."""
    return os.path.join(runtime_dir(), f"{identifier}.sock")


def identifier_of(path: str) -> str:
    """The short name behind a socket's path, whoever chose the path."""
    folder, name = os.path.split(os.path.abspath(path))
    if name.endswith(".sock") and folder == _runtime_path():
        return name.removesuffix(".sock")
    return file_identity(path)


def listening() -> list[str]:
    """Sockets of consumers in the runtime directory that answer now."""
    found = []
    folder = runtime_dir()
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".sock"):
            continue
        path = os.path.join(folder, name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(path)
            except OSError:
                continue
            found.append(path)
    return found


def peer(connection: socket.socket) -> tuple[int, int, int]:
    """The pid, uid and gid of the process at the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, gid = struct.unpack("3i", raw)
    return pid, uid, gid


def is_pid_of(pid: int, peer_pid: int) -> bool:
    """Whether a process may call itself `pid`, in whatever pid namespace it lives.

    Args:
        pid: What it says.
        peer_pid: Its pid by the kernel's word, 0 when that is not visible from here.
    """
    if peer_pid in (pid, 0):
        return True
    try:
        with open(f"/proc/{peer_pid}/status", "rb") as file:
            words = next(line for line in file if line.startswith(b"NSpid:")).split()
    except (OSError, StopIteration):
        return True  # it has ended meanwhile; its records count all the same
    return str(pid).encode() in words[1:]
