"""The process of a search in files: the past of a page, and what it downloads.

It reads one request, a line of JSON, from standard input, and writes the answer to
standard output as it is to be sent: the matching records as they are found, from the
oldest on, progress, and an end. It ends with its reader, at any moment. So a search in
gigabytes uses cores of its own, delays no page, and is cancelled by killing it.
"""

from __future__ import annotations

import heapq
import mmap
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec
import orjson

from logagg.core.line import TIMESTAMP, is_wire, parse_line
from logagg.core.units import iso_ns, wire_time
from logagg.errors import ConfigError, LogaggError
from logagg.filters import matcher
from logagg.render.layout import LayoutOptions
from logagg.render.markup import paint
from logagg.render.renderer import Renderer
from logagg.view import files
from logagg.view.file_ranges import FileRange
from logagg.view.files import Select
from logagg.view.page.page_events import batch_event, cells, event, record_text
from logagg.view.page.page_filter import Counts, PageFilter, counts_of
from logagg.view.sources import Cursor

__all__ = ["SearchRequest", "main", "text_of"]

_FLUSH_INTERVAL = 0.1
_FLUSH_RECORDS = 200
_AROUND = (60, 3600, 0)  # seconds before a record in which its neighbours are searched


class SearchRequest(msgspec.Struct, omit_defaults=True):
    """A search.

    Attributes:
        paths: The files.
        query: The page's filter.
        form: `page` (events), `json` or `text` (a download), `around`.
        limit: How many records at most; 0: all.
        skip: How many matching records to leave out first.
        at: With `around`: the place of the record.
    """

    paths: list[str]
    query: dict[str, str] = {}
    form: str = "page"
    limit: int = 0
    skip: int = 0
    at: str = ""


def main() -> int:
    """Answer one request; return the exit status."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    request = msgspec.json.decode(line, type=SearchRequest)
    out = sys.stdout.buffer
    try:
        if request.form == "around":
            _around(request, out)
        else:
            _FileSearch(request, out).run()
        out.flush()
    except (ConfigError, LogaggError) as error:
        out.write(event("failed", {"error": str(error)}))
        out.flush()
    except BrokenPipeError:
        return 1
    return 0


def text_of(renderer: Renderer, line: bytes) -> str:
    """A line as `logagg tail -o plain` shows it."""
    return paint(renderer.feed(parse_line(line)), False)


class _FileSearch:
    """A search through all matching records of files."""

    def __init__(self, request: SearchRequest, out: BinaryIO) -> None:
        self._request = request
        self._filter = PageFilter.of_query(request.query)
        self._out = out
        self._counts: Counts = {}
        self._records: list[tuple[int, bytes]] = []
        self._read = self._hits = self._taken = 0
        self._flushed_at = 0.0
        self._enough = mmap.mmap(-1, 1)  # shared with the helpers of a search
        self._ranges: list[FileRange] = []
        layout = LayoutOptions(format="plain", time="iso")
        self._renderer = Renderer(layout) if request.form == "text" else None

    def run(self) -> None:
        """Write the answer."""
        series = [files.open_series(path) for path in self._request.paths]
        self._ranges = [
            FileRange(each, self._filter.since_key, self._filter.until_ns)
            for each in series
        ]
        parts = [self._lines(each) for each in self._ranges]
        lines = parts[0] if len(parts) == 1 else heapq.merge(*parts, key=_time)
        for line in lines:
            self._take(line)
        if self._request.form == "page":
            self._flush()
            more = self._hits > self._request.skip + self._request.limit > 0
            end = {"hits": self._hits, "read": self._read, "more": more}
            self._out.write(event("end", end))

    def _lines(self, part: FileRange) -> Iterator[bytes]:
        """The matching lines of one series; their numbers are added up."""
        for found in part.read(Select(self._select(), spread=True)):
            if not found:
                continue
            read, counted = orjson.loads(found[0])
            self._read += read
            for *cell, number in counted:
                second, level, worker = (text.encode() for text in cell)
                key = second, level, worker
                self._counts[key] = self._counts.get(key, 0) + number
                self._hits += number if self._is_chosen(level, worker) else 0
            yield from found[1:]
            self._tick()

    def _is_chosen(self, level: bytes, worker: bytes) -> bool:
        chosen = self._filter
        return (not chosen.levels or level in chosen.levels) and (
            not chosen.workers or worker in chosen.workers
        )

    def _select(self) -> Any:
        """Make the function that selects lines, in this process and its helpers.

        The first of the lines that it returns has the numbers.
        """
        chosen, enough = self._filter, self._enough
        first = matcher.compile()
        if chosen.matches and not chosen.inverted:
            first = chosen.matches[0]
        selected = files.selector(first)
        whole = self._request.form != "page"

        def select(data: bytes) -> list[bytes]:
            base = chosen.base(selected(data))
            kept = chosen.chosen(base)
            head = orjson.dumps([data.count(b"\n"), cells(counts_of(base))])
            return [head] if enough[0] and not whole else [head, *kept]

        return select

    def _take(self, line: bytes) -> None:
        request = self._request
        if request.form == "json":
            self._out.write(line + b"\n")
            return
        if self._renderer is not None:
            self._out.write(text_of(self._renderer, line).encode("utf-8", "replace"))
            return
        self._taken += 1
        number, last = self._taken, request.skip + request.limit
        if number > request.skip and (number <= last or not request.limit):
            self._records.append((number, record_text(line)))
        if request.limit and number >= last:
            self._enough[0] = 1
        if number == request.skip + 1 or len(self._records) >= _FLUSH_RECORDS:
            self._flush()

    def _tick(self) -> None:
        if self._request.form != "page":
            return
        if time.monotonic() - self._flushed_at >= _FLUSH_INTERVAL:
            self._flush()

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        head = {
            "counts": cells(self._counts),
            "total": self._read,
            "done": sum(each.done for each in self._ranges),
            "size": sum(each.total for each in self._ranges),
        }
        self._out.write(batch_event("", head, self._records))
        self._out.flush()
        self._counts, self._records, self._read = {}, [], 0


def _time(line: bytes) -> bytes:
    return line[TIMESTAMP] if is_wire(line) else b""


# ---- the neighbours of one record -----------------------------------------------------


def _around(request: SearchRequest, out: BinaryIO) -> None:
    """Write a record and its neighbours: `{"hit": index or null, "lines": […]}`."""
    stamp, _, place = request.at.partition(",")
    instant = iso_ns(stamp)
    if instant is None:
        raise ConfigError(f"{request.at!r} is not the place of a record")
    cursor = Cursor.parse(request.at) if place.strip(",") else None
    before: list[bytes] = []
    hit: list[bytes] = []
    after: list[bytes] = []
    for seconds in _AROUND:
        since = (
            wire_time(instant - seconds * 1_000_000_000).encode() if seconds else b""
        )
        before, hit, after = _neighbours(request, since, stamp.encode(), cursor)
        if len(before) >= request.limit:
            break
    lines = [record_text(line) for line in [*before, *hit, *after]]
    head = {"hit": len(before) if hit else None}
    out.write(orjson.dumps(head) + b"\n" + b"\n".join(lines))


def _neighbours(
    request: SearchRequest, since: bytes, stamp: bytes, cursor: Cursor | None
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    before: deque[bytes] = deque(maxlen=request.limit)
    hit: list[bytes] = []
    after: list[bytes] = []
    series = [files.open_series(path) for path in request.paths]
    everything = files.selector(matcher.compile())
    parts = (
        (line for lines in FileRange(each, since).read(everything) for line in lines)
        for each in series
    )
    for line in heapq.merge(*parts, key=_time):
        if hit:
            after.append(line)
            if len(after) >= request.limit:
                break
        elif line[TIMESTAMP] == stamp and cursor in (None, Cursor.of_line(line)):
            hit = [line]
        elif is_wire(line) and line[TIMESTAMP] > stamp and len(after) == 0:
            if _is_beyond(line, stamp):
                break
            before.append(line)
        else:
            before.append(line)
    return list(before), hit, after


def _is_beyond(line: bytes, stamp: bytes) -> bool:
    """Whether a line is so much later that a record of that time is not after it."""
    here, there = (
        iso_ns(line[TIMESTAMP].decode("ascii", "replace")),
        iso_ns(stamp.decode()),
    )
    return here is not None and there is not None and here - there > 60_000_000_000


if __name__ == "__main__":
    sys.exit(main())
