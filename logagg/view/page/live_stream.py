"""One page's live stream: the ring's lines from a place on, filtered, in batches.

Each TICK the page gets what came, at most MOST_RECORDS and MOST_BYTES of it: the newest;
of the rest it gets the numbers, and can ask for them. The stream holds no records of its
own, only its place in the ring: a page that does not read is overtaken, loses records
for itself alone, and is given their number. A page that comes back with the identity of
the last event goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from logagg.view.page.page_events import (
    batch_event,
    cells,
    comment,
    event,
    note_text,
    record_text,
)
from logagg.view.page.page_filter import Counts, PageFilter, counts_of
from logagg.view.page.record_ring import RecordRing, RingBatch

__all__ = ["LiveStream", "Write", "newest"]

TICK = 0.15
MOST_RECORDS = 1_000
MOST_BYTES = 512 << 10
FIRST_RECORDS = 2_000
_STATE_INTERVAL = 1.0
_QUIET_INTERVAL = 15.0
_SLICE = 0.005  # seconds of work after which other requests have their turn

Write = Callable[[bytes], Awaitable[None]]
State = Callable[[], dict[str, Any]]


def add_counts(counts: Counts, more: Counts) -> None:
    """Add counts to others."""
    for cell, number in more.items():
        counts[cell] = counts.get(cell, 0) + number


@dataclass(slots=True)
class _Found:
    """Lines of a part of the ring that a page shows, and numbers of all of them."""

    records: list[tuple[int, bytes]] = field(default_factory=list)
    counts: Counts = field(default_factory=dict)
    total: int = 0

    def take(self, batch: RingBatch, chosen: PageFilter) -> int:
        """Add a batch; returns how many rows that made."""
        if batch.note:
            self.records.append((batch.first, note_text(batch.note)))
            return 1
        base = chosen.base(batch.lines)
        whole = len(base) == len(batch.lines)
        add_counts(self.counts, batch.counts if whole else counts_of(base))
        self.total += len(batch.lines)
        kept = batch.numbered(chosen.chosen(base))
        self.records += kept
        return len(kept)


class LiveStream:
    """A stream, from the page's connection to its end."""

    def __init__(
        self, ring: RecordRing, chosen: PageFilter, boot: str, state: State
    ) -> None:
        """Prepare.

        Args:
            ring: The lines.
            chosen: The page's filter.
            boot: Identifies this process, in front of the numbers of its lines.
            state: What is shown of the connection.
        """
        self._ring = ring
        self._filter = chosen
        self._boot = boot
        self._state = state
        self._place = 0
        self._slice_until = 0.0

    def place_of(self, identity: str) -> int | None:
        """The number after an event's; None when it is of another process."""
        boot, _, number = identity.partition(":")
        if boot != self._boot or not number.isdecimal() or len(number) > 18:
            return None
        place = int(number) + 1
        return place if place <= self._ring.next else None

    async def run(self, write: Write, last: str, hello: dict[str, Any]) -> None:
        """Send events until the connection ends.

        Args:
            write: Sends bytes; returns when the connection takes more.
            last: The identity of the last event that the page has; "" for none.
            hello: More for the first event.
        """
        place = self.place_of(last)
        fresh = place is None
        await write(event("hello", {**hello, "boot": self._boot, "fresh": fresh}))
        await write(event("state", self._state()))
        self._place = place or 0
        if fresh:
            await self._past(write)
        sent_at = stated_at = time.monotonic()
        while True:
            if await self._step(write):
                sent_at = time.monotonic()
            now = time.monotonic()
            if now - stated_at >= _STATE_INTERVAL:
                await write(event("state", self._state()))
                stated_at = now
            elif now - sent_at >= _QUIET_INTERVAL:
                await write(comment())
                sent_at = now
            await asyncio.sleep(TICK)

    async def _past(self, write: Write) -> None:
        """Send the last records that match, then the numbers of all before them."""
        end = self._place = self._ring.next
        found, rows, sent = _Found(), 0, False
        parts: list[list[tuple[int, bytes]]] = []
        for batch in self._ring.before(end):
            rows += found.take(batch, self._filter)
            parts.append(found.records)
            found.records = []
            await self._pause()
            if not sent and rows >= FIRST_RECORDS:
                await self._send_past(write, parts, found, rows)
                found, sent = _Found(), True
            if sent:
                parts.clear()
        if not sent:
            await self._send_past(write, parts, found, rows)
        elif found.total:
            head = {"counts": cells(found.counts), "total": found.total, "more": True}
            await write(batch_event("", head, []))
        await write(event("caught_up", {}))

    async def _send_past(
        self, write: Write, parts: list[Any], found: _Found, rows: int
    ) -> None:
        records = [each for part in reversed(parts) for each in part]
        kept, _ = newest(records, FIRST_RECORDS)
        head = {
            "counts": cells(found.counts), "total": found.total,
            "more": rows > len(kept),
        }  # fmt: skip
        await write(batch_event(self._identity(), head, kept))

    async def _step(self, write: Write) -> bool:
        """Send what came since the last step; whether there was something."""
        ring, place = self._ring, self._place
        if place >= ring.next:
            return False
        skipped: dict[str, Any] | None = None
        if place < ring.first:
            skipped = {"from": place, "to": ring.first - 1, "gone": True}
            skipped["count"] = ring.first - place
        found = _Found()
        for batch in ring.since(place):
            found.take(batch, self._filter)
            self._place = batch.next
            await self._pause()
        kept, left = newest(found.records, MOST_RECORDS)
        if left:
            skipped = skipped or {"from": left[0][0], "count": 0}
            skipped["to"] = left[-1][0]
            skipped["count"] += len(left)
        head = {
            "counts": cells(found.counts), "total": found.total, "skipped": skipped,
        }  # fmt: skip
        await write(batch_event(self._identity(), head, kept))
        return True

    def _identity(self) -> str:
        return f"{self._boot}:{self._place - 1}"

    async def _pause(self) -> None:
        """Let other requests have their turn when this one has had its slice."""
        now = time.monotonic()
        if now >= self._slice_until:
            await asyncio.sleep(0)
            self._slice_until = time.monotonic() + _SLICE


def newest(
    records: list[tuple[int, bytes]], most: int
) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
    """The newest records, bounded by number and bytes, as sent; and those left out."""
    kept: list[tuple[int, bytes]] = []
    size = 0
    for number, line in reversed(records[-most:]):
        text = line if line[:1] == b"!" else record_text(line)
        size += len(text)
        if size > MOST_BYTES and kept:
            break
        kept.append((number, text))
    return kept[::-1], records[: len(records) - len(kept)]
