"""The answers with records: from the ring, or from files of the past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson
from aiohttp import web

from logagg.core.line import TIMESTAMP, record_id
from logagg.errors import ConfigError, LogaggError
from logagg.render.layout import LayoutOptions
from logagg.render.renderer import Renderer
from logagg.view import discover
from logagg.view.page.live_stream import MOST_RECORDS, Write, newest
from logagg.view.page.page_events import (
    batch_event,
    cells,
    event,
    note_text,
    record_text,
)
from logagg.view.page.page_filter import PageFilter, counts_of
from logagg.view.page.past_search import SearchRequest, text_of
from logagg.view.page.record_ring import RecordRing
from logagg.view.page.search_pool import SearchPool

__all__ = ["RecordAnswers", "event_stream", "json_answer"]

PAST_RECORDS = 5_000
_MOST_NEIGHBOURS = 200


class RecordAnswers:
    """The handlers of requests for records that are not new."""

    def __init__(
        self,
        ring: RecordRing,
        pool: SearchPool,
        named: Sequence[str],
        find: Callable[[], str | None],
    ) -> None:
        """Prepare.

        Args:
            ring: The last lines.
            pool: Searches in files.
            named: The files that were named; none: those of the consumer.
            find: The path of its socket, or None when there is none now.
        """
        self._ring = ring
        self._pool = pool
        self._named = list(named)
        self._find = find

    async def records(self, request: web.Request) -> web.Response:
        """Records of the ring: those from `from` to `to`, or the last before `to`."""
        chosen = PageFilter.of_query(request.query)
        first, last = _number(request, "from", 0), _number(request, "to", 1 << 60)
        found: list[tuple[int, bytes]] = []
        parts = []
        rows = 0
        for batch in self._ring.before(last):
            if batch.next <= first or rows >= MOST_RECORDS:
                break
            if batch.note:
                found = [(batch.first, note_text(batch.note))]
            else:
                found = batch.numbered(chosen.chosen(chosen.base(batch.lines)))
            parts.append(found)
            rows += len(found)
            await asyncio.sleep(0)
        listed = [each for part in reversed(parts) for each in part if each[0] >= first]
        kept, left = newest(listed, MOST_RECORDS)
        oldest = kept[0][0] if kept else first
        more = bool(left) or rows >= MOST_RECORDS
        return _listed({"more": more, "oldest": oldest}, kept)

    async def record(self, request: web.Request) -> web.Response:
        """A whole line, by its number."""
        line = self._ring.line(_number(request, "n", 0))
        if line is None:
            raise ConfigError("this record has left the server's memory")
        return web.Response(body=line, content_type="application/json")

    async def around(self, request: web.Request) -> web.Response:
        """A record and its neighbours, unfiltered: by number, or by its place."""
        at = request.query.get("at", "")
        number = _number(request, "n", 0) or self._located(at)
        count = min(_number(request, "count", 50), _MOST_NEIGHBOURS)
        if number and self._ring.line(number) is not None:
            first = max(number - count, 1)
            found = [
                (n, note_text(batch.note) if batch.note else line)
                for batch in self._ring.since(first)
                for n, line in batch.numbered(batch.lines) or [(batch.first, b"")]
                if n <= number + count
            ]
            kept, _ = newest(found, 2 * count + 1)
            return _listed({"hit": number, "live": True}, kept)
        paths = await self._paths()
        if not at or not paths:
            return _listed({"hit": None}, [])
        search = SearchRequest(paths, form="around", limit=count, at=at)
        async with aclosing(self._pool.run(search)) as pieces:
            answer = b"".join([piece async for piece in pieces])
        head, *lines = answer.split(b"\n")
        hit = orjson.loads(head)["hit"]
        numbered = list(enumerate((line for line in lines if line), 1))
        return _listed({"hit": None if hit is None else hit + 1}, numbered)

    def _located(self, at: str) -> int:
        """The number of the record of a place, `TIME,WORKER,SEQ`; 0: it is not held."""
        stamp, _, rest = at.partition(",")
        worker, _, seq = rest.rpartition(",")
        mark = f'"worker":"{worker}","seq":{seq}'.encode() if rest.strip(",") else b""
        key = stamp.encode()
        for batch in self._ring.before(self._ring.next):
            for number, line in enumerate(batch.lines, batch.first):
                if line[TIMESTAMP] == key and mark in record_id(line):
                    return number
        return 0

    async def _paths(self) -> list[str]:
        """The files in which the past stands; none when a consumer writes no file."""
        if self._named:
            return self._named
        try:
            return await asyncio.to_thread(discover.complete_files, self._find)
        except LogaggError:
            return []

    async def past(self, request: web.Request) -> web.StreamResponse:
        """Matching records of a range of time, from files, as they are found."""
        query = dict(request.query)
        chosen = PageFilter.of_query(query)
        paths = await self._paths()
        response = event_stream()
        await response.prepare(request)
        skip = _number(request, "skip", 0)
        if not paths:
            with suppress(ConnectionError):
                await self._past_held(chosen, skip, response.write)
            return response
        search = SearchRequest(paths, query, limit=PAST_RECORDS, skip=skip)
        await self._pipe(search, response)
        return response

    async def _past_held(self, chosen: PageFilter, skip: int, write: Write) -> None:
        """The same from the server's memory, for a consumer that writes no file."""
        first, end = self._ring.first, self._ring.next
        hits = 0
        for batch in self._ring.since(first):
            base = chosen.base(batch.lines)
            kept = chosen.chosen(base)
            numbers = range(hits + 1, hits + len(kept) + 1)
            listed = [
                (number, record_text(line))
                for number, line in zip(numbers, kept, strict=True)
                if skip < number <= skip + PAST_RECORDS
            ]
            hits += len(kept)
            head = {
                "counts": cells(counts_of(base)), "total": len(batch.lines),
                "done": batch.next - first, "size": end - first,
            }  # fmt: skip
            if base or batch.next >= end:
                await write(batch_event("", head, listed))
            await asyncio.sleep(0)
        more = hits > skip + PAST_RECORDS
        await write(event("end", {"hits": hits, "more": more, "held": True}))

    async def _pipe(self, search: SearchRequest, response: web.StreamResponse) -> None:
        with suppress(ConnectionError):  # the page has gone
            async with aclosing(self._pool.run(search)) as pieces:
                async for piece in pieces:
                    await response.write(piece)

    async def download(self, request: web.Request) -> web.StreamResponse:
        """All records that match: of the files, or of what the server holds."""
        query = dict(request.query)
        chosen = PageFilter.of_query(query)
        form = "text" if query.get("form") == "text" else "json"
        paths = await self._paths() if query.get("past") == "1" else []
        name = f"logagg.{'txt' if form == 'text' else 'jsonl'}"
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f'attachment; filename="{name}"',
            }
        )
        await response.prepare(request)
        if paths:
            await self._pipe(SearchRequest(paths, query, form), response)
        else:
            with suppress(ConnectionError):
                async for piece in self._held(chosen, form):
                    await response.write(piece)
        return response

    async def _held(self, chosen: PageFilter, form: str) -> AsyncIterator[bytes]:
        """The records that the server holds, as a download."""
        renderer = Renderer(LayoutOptions(format="plain", time="iso"))
        for batch in self._ring.since(0):
            lines = chosen.chosen(chosen.base(batch.lines))
            if form == "json":
                yield b"".join(line + b"\n" for line in lines)
            else:
                text = "".join(text_of(renderer, line) for line in lines)
                yield text.encode("utf-8", "replace")
            await asyncio.sleep(0)


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    return (
        int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else default
    )


def json_answer(value: Any, status: int = 200) -> web.Response:
    body = orjson.dumps(value)
    return web.Response(body=body, status=status, content_type="application/json")


def _listed(head: dict[str, Any], records: list[tuple[int, bytes]]) -> web.Response:
    """A head, then a record per line: its number and its line."""
    lines = [orjson.dumps(head), *(b"%d %b" % each for each in records)]
    return web.Response(body=b"\n".join(lines), content_type="text/plain")


def event_stream() -> web.StreamResponse:
    """The answer to a page that listens."""
    return web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
    )
