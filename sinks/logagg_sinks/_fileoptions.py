"""The options of the file sink."""

from __future__ import annotations

import enum
import grp
import pwd
import re

from logagg_sinks._archive import Compression
from logagg_sinks._naming import PathTemplate
from logagg_sinks._options import Duration, Mode, Options, Size
from logagg_sinks._place import Ownership
from logagg_sinks._rotation import Schedule, When
from logagg_sinks._sync import Fsync
from logagg_sinks._text import Template

__all__ = ["FileOptions", "Format"]


class Format(enum.Enum):
    """How records look in a file."""

    JSON = "json"
    TEXT = "text"


class FileOptions(Options, frozen=True, kw_only=True):
    """The options of a file.

    Attributes:
        format: `json` (one object a line) or `text` by a template.
        template: The line of `text`, for example `{timestamp} {level} {message}`.
        max_bytes: Rotate before the file grows beyond this; 0 never does. A single
            record longer than this gets a file of its own.
        when: Rotate by time: `s`, `m`, `h`, `d` or `midnight`, `w0` (Monday) to `w6`.
        interval: How many units of `when` are one period.
        at: The time of day at which a day or week begins, `HH:MM` or `HH:MM:SS`.
        utc: Days begin in UTC instead of local time.
        backups: How many rotated files are kept; 0 keeps all.
        max_age: Rotated files go so long after their last record; 0 never.
        max_total_bytes: The oldest rotated files go before the file (counted with its
            `max_bytes`) and they have more bytes than this; 0 never.
        compress: `gzip` or `zstd`; rotated files are compressed in the background.
        mode: Permission bits of a new file, in octal; a file that follows a rotated one
            gets the mode and owner of that.
        owner: Who a new file belongs to, a name or number (needs root).
        group: Its group, a name or number.
        fsync: `interval`, `always` or `never`: when records are forced to the disk.
        fsync_interval: Seconds between two of them, for `interval`.
    """

    format: Format = Format.JSON
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
        self._check_template()

    def _check_time(self) -> None:
        if self.when is None:
            if self.interval != 1 or self.at:
                raise ValueError("options interval and at need when=")
        elif self.at and self.when.unit < 86400:
            raise ValueError("option at needs when=d, midnight or w0 to w6")
        self.at_seconds()

    def _check_template(self) -> None:
        if self.template != Template.DEFAULT and self.format is not Format.TEXT:
            raise ValueError("option template needs format=text")
        try:
            Template(self.template)
        except ValueError as error:
            raise ValueError(
                f"option template={self.template!r} is not right; expected {error}"
            ) from None

    def at_seconds(self) -> int:
        """`at` in seconds after midnight."""
        if not self.at:
            return 0
        match = re.fullmatch(r"(\d\d?):(\d\d)(?::(\d\d))?", self.at, re.ASCII)
        hours, minutes, seconds = map(int, match.groups("0")) if match else (24, 0, 0)
        if hours > 23 or minutes > 59 or seconds > 59:
            raise ValueError(
                f"option at={self.at!r} is not right; expected a time such as 03:30"
            )
        return hours * 3600 + minutes * 60 + seconds

    def schedule(self) -> Schedule | None:
        """When the file rotates by time."""
        if self.when is None:
            return None
        return Schedule(self.when, self.interval, self.at_seconds(), utc=self.utc)

    def ownership(self) -> Ownership:
        """What a new file gets.

        Raises:
            ValueError: There is no such user or group.
        """
        return Ownership(self.mode, _user(self.owner), _group(self.group))

    def check_path(self, path: PathTemplate) -> None:
        """Check that the options fit the path.

        Raises:
            ValueError: They do not; the message says why.
        """
        if path.dated and self.when is not None:
            raise ValueError(
                "a path with {date} gets a new file each day by itself; "
                "leave out either {date} or when="
            )


def _user(name: str) -> int:
    if not name:
        return -1
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ValueError(f"option owner={name!r}: there is no such user") from None


def _group(name: str) -> int:
    if not name:
        return -1
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"option group={name!r}: there is no such group") from None
