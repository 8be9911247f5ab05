"""The date in the names of a sink's files: it never goes back, whatever the clock does.

The files that were made show it to the next process. A date is noted in the journal
before any file gets it, since the note of the file itself may be refused, and a kill
right after would leave a file that nothing proves to be the sink's own. Where the date
itself cannot be noted, the files of the day before are written on, with an alarm.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from time import CLOCK_MONOTONIC, clock_gettime

from logagg.errors import ConfigError
from logagg_sinks.file import log_file
from logagg_sinks.file.path_template import PathTemplate
from logagg_sinks.file.pieces.own_files import OwnFiles

__all__ = ["FileDate"]

SEARCHES = 3
"""How often opening is tried with a journal that cannot be used."""


class FileDate:
    """The date in the names of one sink's files. Its methods block, but not `is_due`.

    Args:
        own: The sink's files.
        paths: Their names.
        clock: Seconds since the epoch.
        utc: Days begin in UTC instead of local time.
        alarm: Called with what an operator should know; empty when it has passed.

    Attributes:
        current: The date that files are named by; empty until `open`.
    """

    def __init__(
        self,
        own: OwnFiles,
        paths: PathTemplate,
        clock: Callable[[], float],
        *,
        utc: bool,
        alarm: Callable[[str], None],
    ) -> None:
        self.current = ""
        self._own = own
        self._paths = paths
        self._clock = clock
        self._utc = utc
        self._alarm = alarm
        self._searches = 0
        self._retry_at = 0.0  # when a note that was refused is tried again

    def open(self) -> None:
        """Begin with the newest day that has a file, or with today.

        The clock may have been set back, or another starter be in another time zone. A
        journal that cannot be used fails the first calls, then the log goes on without.

        Raises:
            ConfigError, OSError: It cannot be used now.
        """
        self._searches += 1
        try:
            newest = self._own.newest_date()
            noted = self._own.journal.dates
            for path in self._paths.files(self._own.journal.base, dated=False):
                newest = max([newest, *(day for day in noted if day in path.name)])
            self.current = max(self.current, newest)
            if not self.current:
                self._note(self._today())
        except (OSError, ConfigError):
            if self._searches < SEARCHES:
                raise
        if not self.current:
            self.current = self._today()
        elif self.is_due():
            self.current = self.note_next() or self.current

    def is_due(self) -> bool:
        """Whether the day has changed, and no change was refused just now."""
        return (
            self._today() > self.current
            and clock_gettime(CLOCK_MONOTONIC) >= self._retry_at
        )

    def note_next(self) -> str:
        """Note the new date; return it, or nothing when that was refused."""
        date = self._today()
        try:
            self._note(date)
        except (OSError, ConfigError) as error:
            self._retry_at = clock_gettime(CLOCK_MONOTONIC) + log_file.RETRY_INTERVAL
            why = (isinstance(error, OSError) and error.strerror) or str(error)
            self._alarm(f"goes on in the files of {self.current}: {why}")
            return ""
        if self._retry_at:
            self._retry_at = 0.0
            self._alarm("")
        return date

    def _note(self, date: str) -> None:
        journal = self._own.journal
        with journal.transaction():
            journal.add_date(date)

    def _today(self) -> str:
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        if not self._utc:
            now = now.astimezone()
        return now.strftime("%Y-%m-%d")
