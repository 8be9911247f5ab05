"""The options of the file sink."""

from __future__ import annotations

import enum
import grp
import pwd
import re
from collections.abc import Callable

from logagg.text import Template
from logagg_sinks._compression import Compression
from logagg_sinks._sink_options import Duration, Mode, Options, Size, check_template
from logagg_sinks.file.directory import Ownership
from logagg_sinks.file.fsync import Fsync
from logagg_sinks.file.path_template import PathTemplate
from logagg_sinks.file.rotation import Schedule, When

__all__ = ["FileFormat", "FileOptions"]


class FileFormat(enum.Enum):
    """The form of records in a file."""

    JSON = "json"
    TEXT = "text"


class FileOptions(Options, frozen=True, kw_only=True):
    """The options of a file.

    Attributes:
        format: `json` (one object per line) or `text` by a template.
        template: The line of `text`, for example `{timestamp} {level} {message}`.
        max_bytes: Rotate before the file grows beyond this; 0 never does. A single
            record longer than this gets a file of its own.
        when: Rotate by time: `s`, `m`, `h`, `d` or `midnight`, `w0` (Monday) to `w6`.
        interval: How many units of `when` are one period.
        at: The time of day at which a day or week begins, `HH:MM` or `HH:MM:SS`.
        utc: Days begin in UTC instead of local time.
        backups: How many rotated files are kept; 0 keeps all.
        max_age: Remove rotated files so long after their last record; 0 never.
        max_total_bytes: Remove the oldest rotated files when they and the file (counted
            with its `max_bytes`) have more bytes than this; 0 never.
        compress: `gzip` or `zstd`; rotated files are compressed in the background.
        mode: Permission bits of a new file, in octal; a file that follows a rotated one
            gets the mode and owner of that.
        owner: The owner of a new file, a name or number (needs root).
        group: Its group, a name or number.
        fsync: `interval`, `always` or `never`: when records are forced to the disk.
        fsync_interval: Seconds between two syncs, for `interval`.
    """

    format: FileFormat = FileFormat.JSON
    template: str = Template.DEFAULT
    max_bytes: Size = 0
    when: When | None = None
    interval: int = 1
    at: str = ""
    utc: bool = False
    backups: int = 0
    max_age: Duration = 0.0
    max_total_bytes: Size = 0
    compress: Compression | None = None
    mode: Mode = 0o640
    owner: str = ""
    group: str = ""
    fsync: Fsync = Fsync.INTERVAL
    fsync_interval: Duration = 5.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "backups", "max_age", "max_total_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name} must not be negative")
        if self.interval < 1:
            raise ValueError("option interval must be 1 or more")
        if self.fsync_interval <= 0:
            raise ValueError("option fsync_interval must be positive")
        if not 0 <= self.mode <= 0o777 or not self.mode & 0o200:
            raise ValueError("option mode must let the owner write, such as 0640")
        if self.mode & 0o002:
            raise ValueError("option mode must not let everybody write")
        self._check_time()
        check_template(self.template, used=self.format is FileFormat.TEXT)

    def _check_time(self) -> None:
        if self.when is None:
            if self.interval != 1 or self.at:
                raise ValueError("options interval and at need when=")
        elif self.at and self.when.unit < 86400:
            raise ValueError("option at needs when=d, midnight or w0 to w6")
        self.at_seconds()

    def at_seconds(self) -> int:
        """`at` in seconds after midnight."""
        if not self.at:
            return 0
        match = re.fullmatch(r"(\d\d?):(\d\d)(?::(\d\d))?", self.at, re.ASCII)
        hours, minutes, seconds = map(int, match.groups("0")) if match else (24, 0, 0)
        if hours > 23 or minutes > 59 or seconds > 59:
            raise ValueError(f"option at={self.at!r}: expected a time such as 03:30")
        return hours * 3600 + minutes * 60 + seconds

    @property
    def needs_journal(self) -> bool:
        """Whether files are rotated by plan, compressed or removed."""
        limits = self.max_bytes, self.backups, self.max_age, self.max_total_bytes
        return any(limits) or self.when is not None or self.compress is not None

    def schedule(self) -> Schedule | None:
        """The rotation by time, if any."""
        if self.when is None:
            return None
        return Schedule(self.when, self.interval, self.at_seconds(), utc=self.utc)

    def ownership(self) -> Ownership:
        """Mode and owner of a new file.

        Raises:
            ValueError: There is no such user or group.
        """
        return Ownership(
            self.mode,
            _number_of(
                "owner", "user", self.owner, lambda name: pwd.getpwnam(name).pw_uid
            ),
            _number_of(
                "group", "group", self.group, lambda name: grp.getgrnam(name).gr_gid
            ),
        )

    def check_path(self, path: PathTemplate) -> None:
        """Check that the options fit the path.

        Raises:
            ValueError: They do not.
        """
        if path.dated and self.when is not None:
            raise ValueError(
                "a path with {date} gets a new file each day by itself; "
                "leave out either {date} or when="
            )


def _number_of(option: str, kind: str, name: str, known: Callable[[str], int]) -> int:
    """The number of a user or group; -1 for the empty name."""
    if not name:
        return -1
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return known(name)
    except KeyError:
        raise ValueError(f"option {option}={name!r}: there is no such {kind}") from None
