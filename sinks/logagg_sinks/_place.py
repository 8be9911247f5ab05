"""A directory that log files are written to, and the safe way to open one in it.

A log file is a classic target: whoever can place a symbolic link, a hard link or a FIFO
where a privileged process will write can misuse that process. So:

- The directory is opened once and everything happens relative to its descriptor, so no
  part of the path can be swapped between a check and its use.
- A directory that anybody may write to is refused, unless it is sticky (as /tmp is).
- A file is opened with O_NOFOLLOW and then looked at through its descriptor: a regular
  file, one hard link, owned by us, by root or by the directory's owner. A character
  device that belongs to root (/dev/null) will do; all else is refused with why.
- A new file is made with O_EXCL and gets its mode with fchmod, whatever the umask is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from logagg.errors import ConfigError

__all__ = ["Opened", "Ownership", "Place"]

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device that does not belong to root",
    stat.S_IFLNK: "a symbolic link",
}


class Ownership(NamedTuple):
    """What a new file gets; -1 leaves the owner or group as it comes."""

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


class Place:
    """A directory held open by its descriptor.

    Args:
        base: The directory as the user named it; what is missing is made.
        below: Further directories, made from templates: each is confined to the one
            above and never followed when it is a symbolic link.

    Raises:
        ConfigError: It cannot be had, or anybody could write to it.
    """

    def __init__(self, base: Path, below: Iterable[str] = ()) -> None:
        self.path = base
        try:
            base.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"cannot use directory {base}: {error.strerror}"
            ) from error
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
            raise ConfigError(
                f"cannot use directory {self.path}: {error.strerror}"
            ) from error
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
        """What the name stands for, links not followed; None when nothing does."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """All names in the directory."""
        return os.listdir(self.fd)

    def rename(self, old: str, new: str) -> None:
        """Rename within the directory; what the new name stood for goes."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def sync(self) -> None:
        """Make what was created and renamed here survive a power cut."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that has no such thing
                raise

    def open(self, name: str, ownership: Ownership) -> Opened:
        """Open a file for appending, or make it.

        Raises:
            ConfigError: It is not a file that it is safe to write to.
            OSError: The system said no for another reason (disk full, too many files).
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
                there = self.status(name)
                if there is None or not os.path.samestat(there, status):
                    # Replaced since, or a link to it was taken away so that it looks
                    # as if it had one name only: look again.
                    os.close(fd)
                    continue
                # One call tells that the name leads here and that there is no other.
                self._inspect(name, there, ownership)
                os.set_blocking(fd, True)
            except BaseException:
                os.close(fd)
                raise
            return Opened(fd, status, created)
        raise OSError(errno.EBUSY, f"{self.path / name} is replaced all the time")

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
        """Let go of the directory. May be called twice."""
        fd, self.fd = self.fd, -1
        if fd != -1:
            os.close(fd)
