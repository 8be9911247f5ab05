"""The directory of log files, and the safe way to open a file in it.

A log file is a classic target: a user who can place a symbolic link, a hard link or a
FIFO where a privileged process will write can misuse that process. So:

- The directory is opened once and everything happens relative to its descriptor, so no
  part of the path can be swapped between a check and its use.
- A directory that anybody may write to is refused, unless it is sticky (as /tmp is).
- A file is opened with O_NOFOLLOW and then checked through its descriptor: a regular
  file, one hard link, owned by this user, by root or by the directory's owner. A
  character device of root (/dev/null) is accepted; all else is refused with a reason.
- A new file is made with O_EXCL and gets its mode with fchmod, independent of the umask.
- No file is replaced by another, and no name is removed that leads to another file than
  the one that was meant: a name is moved aside before, checked there, and put back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from logagg.abc import failpoints, opened_path
from logagg.errors import ConfigError

__all__ = [
    "LogDirectory",
    "Opened",
    "Ownership",
    "probe_path",
]

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_LASTING = frozenset(
    (
        errno.EACCES, errno.EEXIST, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG,
        errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS,
    )
)  # fmt: skip
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device that does not belong to root",
    stat.S_IFLNK: "a symbolic link",
}


Aside: TypeAlias = Callable[[str, os.stat_result], str]
"""Makes a temporary name, which no other program uses, for a file that leaves a name."""


class Ownership(NamedTuple):
    """Mode, owner and group of a new file; -1 does not change the owner or group."""

    mode: int = 0o640
    uid: int = -1
    gid: int = -1


class Opened(NamedTuple):
    """A file that was opened for appending."""

    fd: int
    status: os.stat_result
    created: bool

    @property
    def regular(self) -> bool:
        """A file on disk, not a device."""
        return stat.S_ISREG(self.status.st_mode)


class LogDirectory:
    """A directory held open by its descriptor.

    Args:
        base: The directory as the user named it; missing ones are made.
        below: Further directories, made from templates: each is confined to the one
            above and never followed when it is a symbolic link.

    Raises:
        ConfigError: It is unusable, or anybody could write to it.
        OSError: It cannot be opened now.
    """

    def __init__(self, base: Path, below: Iterable[str] = ()) -> None:
        self.path = base
        try:
            base.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unusable(base, error) from error
        try:
            self._check()
            for name in below:
                self._descend(name)
        except BaseException:
            self.close()
            raise

    def _descend(self, name: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        self.path /= name
        try:
            try:
                os.mkdir(name, 0o750, dir_fd=self.fd)
            except FileExistsError:
                pass
            inner = os.open(name, flags, dir_fd=self.fd)
        except OSError as error:
            raise _unusable(self.path, error) from error
        os.close(self.fd)
        self.fd = inner
        self._check()

    def _check(self) -> None:
        status = os.fstat(self.fd)
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise ConfigError(
                f"directory {self.path} is writable by everybody, so anybody could "
                "replace the log; take that right away (chmod o-w) or choose another"
            )

    def moved(self) -> bool:
        """Whether the path leads to another directory now."""
        try:
            there = os.stat(self.path)
        except OSError:
            return True
        return not os.path.samestat(there, os.fstat(self.fd))

    def status(self, name: str) -> os.stat_result | None:
        """The status of a name, links not followed; None when it is missing."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """All names in the directory."""
        return os.listdir(self.fd)

    def rename(self, old: str, new: str) -> None:
        """Rename within the directory; replaces a file with the new name."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def link(self, old: str, new: str) -> None:
        """Give a file a second name.

        Where a file system has no links, the file is renamed.

        Raises:
            FileExistsError: The new name is taken; it is never replaced.
        """
        try:
            os.link(
                old,
                new,
                src_dir_fd=self.fd,
                dst_dir_fd=self.fd,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if self.status(new) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            self.rename(old, new)

    def remove_exactly(self, name: str, status: os.stat_result, aside: Aside) -> bool:
        """Remove a name if it leads to this file, unchanged in length.

        Args:
            name: The name.
            status: The file's status.
            aside: The file moves to this name before; a crash may leave it there.

        Returns:
            Whether it was removed; anything else than the file stays.
        """
        there = self.status(name)
        if there is None or not _is_same(there, status):
            return False
        hidden = aside(name, status)
        if self.status(hidden) is not None:
            raise FileExistsError(errno.EEXIST, f"{hidden} is in the way")
        self.rename(name, hidden)
        if failpoints.ACTIVE:
            failpoints.hit("file_aside")
        there = self.status(hidden)
        if there is not None and _is_same(there, status):
            self.remove(hidden)
            return True
        self.put_back(hidden, name)
        return False

    def put_back(self, aside: str, name: str) -> None:
        """Give a file that was moved aside its name again. Raises OSError."""
        self.link(aside, name)
        self.remove(aside)

    def move(self, old: str, new: str, status: os.stat_result, aside: Aside) -> None:
        """Rename this file; another one with the new name is never replaced.

        Args:
            old: Its name.
            new: Its new name.
            status: Its status.
            aside: As of `remove_exactly`.

        Raises:
            FileExistsError: The new name is taken.
            OSError: It was refused, or the name leads to another file now.
        """
        there = self.status(old)
        if there is None or not _is_same(there, status):
            raise OSError(errno.EBUSY, f"{self.path / old} was replaced")
        self.link(old, new)
        if failpoints.ACTIVE:
            failpoints.hit("file_two_names")
        linked = self.status(new)
        try:
            if linked is not None and _is_same(linked, status):
                renamed = self.status(old) is None  # a file system without links
                if renamed or self.remove_exactly(old, status, aside):
                    return
            raise OSError(errno.EBUSY, f"{self.path / old} was replaced")
        except OSError:
            with contextlib.suppress(OSError):
                there, linked = self.status(old), self.status(new)
                if there and linked and os.path.samestat(there, linked):
                    self.remove_exactly(new, linked, aside)
            raise

    def sync(self) -> None:
        """Make new and renamed entries survive a power cut."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without it
                raise

    def open(self, name: str, ownership: Ownership) -> Opened:
        """Open a file for appending, or create it.

        Raises:
            ConfigError: It is not safe to write to.
            OSError: Any other failure (disk full, too many files).
        """
        for _ in range(100):  # the file may come and go between the two tries
            try:
                fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self.fd)
                created = False
            except FileNotFoundError:
                try:
                    fd = self._create(name, ownership)
                    created = True
                except FileExistsError:
                    continue
            except OSError as error:
                raise self._refusal(name, error) from error
            try:
                status = os.fstat(fd)
                self._inspect(name, status, ownership)
                if not self.is_only_name(name, fd):
                    os.close(fd)
                    continue  # replaced or linked since: check again
                os.set_blocking(fd, True)
            except BaseException:
                os.close(fd)
                raise
            return Opened(fd, status, created)
        raise OSError(errno.EBUSY, f"{self.path / name} is replaced all the time")

    def is_only_name(self, name: str, fd: int) -> bool:
        """Whether a file, opened by this name, has this name and no other.

        A count of links does not show it: who takes the name away from a file between
        the look-up and the count makes its other name the only one, and can link it
        here again before the next look. What cannot come back is the directory entry
        that the descriptor was opened by: Linux marks it as deleted. Removals hold the
        directory locked until the mark is made, so the count is taken first, then the
        lock (renaming a file to its own name does nothing else), then the mark is read.
        """
        there = self.status(name)
        if there is None or not os.path.samestat(there, os.fstat(fd)):
            return False
        if there.st_nlink != 1 and stat.S_ISREG(there.st_mode):
            return False
        with contextlib.suppress(OSError):  # missing meanwhile, or a read-only mount
            self.rename(name, name)
        entry = opened_path(fd)  # empty: the two looks above are all there is
        return os.path.basename(entry) == name or not entry.endswith(" (deleted)")

    def _create(self, name: str, ownership: Ownership) -> int:
        flags = _FLAGS | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(name, flags, ownership.mode & 0o600, dir_fd=self.fd)
        except FileExistsError:
            raise
        except OSError as error:
            raise self._refusal(name, error) from error
        try:
            if ownership.uid != -1 or ownership.gid != -1:
                try:
                    os.fchown(fd, ownership.uid, ownership.gid)
                except PermissionError as error:
                    raise ConfigError(
                        f"file {self.path / name} cannot be given to "
                        f"{ownership.uid}:{ownership.gid}: only root may do that"
                    ) from error
            os.fchmod(fd, ownership.mode)
        except BaseException:
            os.close(fd)
            self.remove(name)
            raise
        return fd

    def _refusal(self, name: str, error: OSError) -> Exception:
        path = self.path / name
        if error.errno == errno.ELOOP:
            return ConfigError(
                f"file {path} is a symbolic link; name the file that it leads to"
            )
        if error.errno in (errno.EISDIR, errno.ENXIO):
            status = self.status(name)
            kind = _KINDS.get(stat.S_IFMT(status.st_mode) if status else 0, "no file")
            return ConfigError(f"file {path} is {kind}; name a file")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            return ConfigError(f"cannot open file {path}: {error.strerror}")
        return OSError(error.errno, f"cannot open file {path}: {error.strerror}")

    def _inspect(self, name: str, status: os.stat_result, ownership: Ownership) -> None:
        path = self.path / name
        if stat.S_ISCHR(status.st_mode) and status.st_uid == 0:
            return
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
            raise ConfigError(f"file {path} is {kind}; name a file")
        if status.st_nlink > 1:
            raise ConfigError(
                f"file {path} has {status.st_nlink} hard links, so writing to it would "
                "change another file as well; remove the others or name a new file"
            )
        friends = {os.geteuid(), 0, os.fstat(self.fd).st_uid, ownership.uid}
        if status.st_uid not in friends:
            raise ConfigError(
                f"file {path} belongs to user {status.st_uid}, who is neither this "
                "process's user nor the directory's; name another file"
            )

    def close(self) -> None:
        """Close the directory. May be called twice."""
        fd, self.fd = self.fd, -1
        if fd != -1:
            os.close(fd)


def _unusable(path: Path, error: OSError) -> Exception:
    """The error for a directory: of the configuration, or one that may pass."""
    text = f"cannot use directory {path}: {error.strerror}"
    return ConfigError(text) if error.errno in _LASTING else OSError(error.errno, text)


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return os.path.samestat(one, other) and one.st_size == other.st_size


def probe_path(path: Path) -> str:
    """Check whether a log file could be written, without touching it.

    Raises:
        ConfigError: It cannot.
    """
    parts = str(path).partition("{")
    fixed = Path(parts[0] + ("x" if parts[1] else "")).absolute()
    folder = fixed.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a directory")
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"directory {folder} is writable by everybody, so any user could replace "
            f"the log: chmod o-w {folder}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"no permission to write to directory {folder}")
    if not parts[1] and os.path.lexists(path):
        kind = os.lstat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISCHR(kind):
            raise ConfigError(f"{path} is not a regular file")
        if not os.access(path, os.W_OK):
            raise ConfigError(f"no permission to write to {path}")
        return "can be written"
    return f"can be created in {folder}"
