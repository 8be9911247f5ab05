"""The thread that reads the log for all pages, as `logagg tail` does.

It reads without a filter, from one subscription, so a consumer has one viewer however
many pages are open. At most MOST_WAITING batches wait for the server's loop; then it
reads no more, and the consumer drops records for this viewer alone, which a note in
their place announces. While no page is open it can rest: a consumer has then no viewer,
and a note stands where records were not read.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from logagg.core.units import span_text
from logagg.errors import ConfigError, LogaggError
from logagg.filters import matcher
from logagg.view import discover, files
from logagg.view.live import Live, LiveSource
from logagg.view.page.page_filter import Counts, counts_of
from logagg.view.sources import FileSource, TailSource

__all__ = ["LogFeed"]

MOST_WAITING = 64
_REST_CHECK = 0.05  # seconds
PAST_OF_FILES = 20_000
"""How many past lines of files are held for the live view."""

Add = Callable[[list[bytes], Counts], None]
Post = Callable[..., object]


class LogFeed(threading.Thread):
    """Reader of a consumer, or of files.

    Attributes:
        connected: A consumer is connected, or files are read.
        error: Why it has ended; "" while it reads.
    """

    def __init__(
        self,
        paths: Sequence[str],
        find: Callable[[], str | None],
        post: Post,
        add: Add,
        add_note: Callable[[str], None],
    ) -> None:
        """Open the files; with none, connect to a consumer later.

        Args:
            paths: The files; none: the consumer that `find` names.
            find: The path of its socket, or None when there is none now.
            post: Has the server's loop call a function with arguments.
            add: Takes lines and their counts, in the loop.
            add_note: Takes a note, in the loop.

        Raises:
            ConfigError: A file cannot be read.
        """
        super().__init__(name="logagg-web-feed", daemon=True)
        self._paths = list(paths)
        self._find = find
        self._post = post
        self._add = add
        self._add_note = add_note
        self._room = threading.Semaphore(MOST_WAITING)
        self._wake, self._woken = os.pipe()
        self._ended = False
        self._rests = False
        self.connected = False
        self.error = ""
        self._live: Live | None = None
        self._source = self._open()

    def _open(self) -> TailSource:
        everything = matcher.compile()
        if self._paths:
            return FileSource(
                self._paths, files.selector(everything), self._note, follow=True
            )

        def history(after: Any) -> Iterator[list[bytes]]:
            source = FileSource(
                discover.complete_files(self._find),
                files.selector(everything),
                self._note,
                follow=True,
                after=after,
            )
            try:
                yield from source.past(None)
            finally:
                source.close()

        self._live = Live(self._found, {"lines": None}, self._note)
        return LiveSource(self._live, everything, follow=True, history=history)

    def _found(self) -> str | None:
        """The consumer to connect to; that several run is reported as a note."""
        try:
            return self._find()
        except ConfigError as error:
            self.error = str(error).partition("\n")[0]
            return None

    @property
    def run_id(self) -> str:
        """The run of the consumer that was connected last."""
        return self._live.run or "" if self._live is not None else ""

    def run(self) -> None:
        """Read until `stop`."""
        try:
            for lines in self._source.past(PAST_OF_FILES if self._paths else 0):
                self._put(lines)
            while not self._ended:
                self._poll()
        except LogaggError as error:
            self.error = str(error)
            self._note(self.error)
        finally:
            self.connected = False
            self._source.close()

    def _poll(self) -> None:
        if self._rests and self._live is not None:
            self._rest(self._live)
            return
        lines = self._source.poll()
        self.connected = self._source.reachable()
        if self.connected:
            self.error = ""
        if lines:
            self._put(lines)
            if not self._source.descriptors():
                time.sleep(0)  # files: the loop's turn
            return
        ready = [self._wake, *self._source.descriptors()]
        select.select(ready, [], [], self._source.pause())

    def _rest(self, live: Live) -> None:
        """Leave the consumer until `wake`."""
        live.close()
        begun = time.monotonic()
        while self._rests and not self._ended:
            select.select([self._wake], [], [], _REST_CHECK)
        seconds = span_text(time.monotonic() - begun)
        self._note(f"not read for {seconds}, while no page was open: see the past")

    def rest(self) -> None:
        """Read no more until `wake`. Files are always read."""
        self._rests = True

    def wake(self) -> None:
        """Read on."""
        self._rests = False

    def _put(self, lines: list[bytes]) -> None:
        if not lines:
            return
        while not self._room.acquire(timeout=1.0):
            if self._ended:
                return
        self._post(self._take, lines, counts_of(lines))

    def _take(self, lines: list[bytes], counts: Counts) -> None:
        self._room.release()
        self._add(lines, counts)

    def _note(self, text: str) -> None:
        self._post(self._add_note, text)

    def stop(self) -> None:
        """Have the thread end, and wait for it, 2 s at most."""
        self._ended = True
        os.write(self._woken, b".")
        self.join(2.0)
