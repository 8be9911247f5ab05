"""The server of the page: its routes, and its life.

One process, a viewer: it reads the log once for all pages (`log_feed`), holds the last
lines (`record_ring`) and sends each page what its filter lets through. It changes
nothing, unless `--control` was given.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import secrets
import signal
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import resources
from socket import socket
from typing import Any

import msgspec
import orjson
from aiohttp import web

from logagg.errors import ConfigError, LogaggError
from logagg.ipc.client_gate import Gate
from logagg.view import discover
from logagg.view.page import control_actions
from logagg.view.page.live_stream import LiveStream
from logagg.view.page.log_feed import LogFeed
from logagg.view.page.machinery import Machinery
from logagg.view.page.page_access import PageAccess, secure_headers
from logagg.view.page.page_filter import Counts, PageFilter
from logagg.view.page.record_answers import (
    RecordAnswers,
    event_stream,
    json_answer,
)
from logagg.view.page.record_ring import RecordRing
from logagg.view.page.search_pool import SearchPool

__all__ = ["PagePlan", "PageServer", "serve"]

MOST_PAGES = 64
REST_AFTER = 60.0  # seconds without a page after which a consumer is not read
PAST_RECORDS = 5_000
_SHUTDOWN_TIMEOUT = 0.1
_LONGEST_BODY = 4_096
_MOST_NEIGHBOURS = 200
_TYPES = {
    "html": "text/html", "css": "text/css", "js": "text/javascript",
    "svg": "image/svg+xml",
}  # fmt: skip

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PagePlan(msgspec.Struct):
    """The log to serve, and how.

    Attributes:
        paths: Files; none: a consumer.
        socket: The consumer's socket; "": the one that runs.
        control: Pages may reload, restart, scale and stop.
        version: Of the product.
    """

    paths: list[str]
    socket: str = ""
    control: bool = False
    version: str = ""


@functools.cache
def _assets() -> dict[str, bytes]:
    """The files of the page by name."""
    folder = resources.files("logagg.view.page") / "assets"
    return {each.name: each.read_bytes() for each in folder.iterdir()}


class PageServer:
    """The server's state and its answers.

    Attributes:
        gate: Lets go of connections that have shown no token.
    """

    def __init__(self, plan: PagePlan, access: PageAccess) -> None:
        """Open what is read.

        Raises:
            ConfigError: A file cannot be read.
        """
        self._plan = plan
        self._access = access
        self._loop = asyncio.get_running_loop()
        self._find = discover.finder(plan.socket or None)
        self._ring = RecordRing()
        find = self._find if not plan.paths else lambda: None
        self._machinery = Machinery(find)
        self._pool = SearchPool()
        self._pages = 0
        digest = hashlib.sha256(b"".join(v for _, v in sorted(_assets().items())))
        self._version = f"{plan.version} {digest.hexdigest()[:8]}"
        self._boot = secrets.token_hex(4)
        self._feed = LogFeed(
            plan.paths, self._find, self._post, self._add, self._ring.add_note
        )
        self._watch: asyncio.Task[None] | None = None
        self.gate: Gate | None = None
        self._resting: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to read."""
        self._feed.start()
        self._resting = self._loop.call_later(REST_AFTER, self._feed.rest)
        self._pool.start()
        if not self._plan.paths:
            self._watch = asyncio.ensure_future(self._machinery.watch())

    async def close(self) -> None:
        """End what `start` has begun."""
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.to_thread(self._feed.stop)
        await self._pool.close()

    def _post(self, function: Callable[..., None], *values: object) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, *values)

    def _add(self, lines: list[bytes], counts: Counts) -> None:
        self._ring.add(lines, counts)
        self._machinery.take(lines, counts)

    def app(self) -> web.Application:
        """The application: routes, checks before them, headers on each answer."""
        app = web.Application(
            middlewares=[self._checked], client_max_size=_LONGEST_BODY
        )

        async def prepare(_: web.Request, response: web.StreamResponse) -> None:
            secure_headers(response)

        app.on_response_prepare.append(prepare)
        answers = RecordAnswers(self._ring, self._pool, self._plan.paths, self._find)
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/assets/{name}", self._asset),
                web.get("/session", self._session),
                web.get("/check", self._check),
                web.get("/events", self._events),
                web.get("/records", answers.records),
                web.get("/record", answers.record),
                web.get("/around", answers.around),
                web.get("/past", answers.past),
                web.get("/download", answers.download),
                web.get("/machinery", self._report),
                web.post("/control", self._control),
            ]
        )
        return app

    @web.middleware
    async def _checked(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        refusal = self._access.refusal(request)
        if refusal is not None:
            return refusal
        if self.gate is not None and request.transport is not None:
            self.gate.admit(request.transport)
        try:
            return await handler(request)
        except LogaggError as error:
            return json_answer({"error": str(error)}, status=400)

    # --- the page itself ---

    async def _index(self, _: web.Request) -> web.Response:
        body = _assets()["index.html"].replace(b"@VERSION@", self._version.encode())
        return web.Response(body=body, content_type="text/html", charset="utf-8")

    async def _asset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = _assets().get(name)
        if body is None:
            raise web.HTTPNotFound
        kind = _TYPES[name.rpartition(".")[2]]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def _session(self, _: web.Request) -> web.Response:
        control = self._access.control if self._plan.control else ""
        return json_answer({"version": self._version, "control": control})

    async def _check(self, request: web.Request) -> web.Response:
        """Whether a filter can be understood; the error if not."""
        PageFilter.of_query(request.query)
        return json_answer({"error": ""})

    # --- live ---

    def _state(self) -> dict[str, Any]:
        status = self._machinery.status
        slots = self._machinery.run.get("slots")
        workers = len(status.get("workers", []))
        return {
            "connected": self._feed.connected,
            "ended": not self._feed.is_alive(),
            "error": self._feed.error,
            "run": self._feed.run_id,
            "alive": workers,
            "workers": max(workers, len(slots or ())),
            "program": self._machinery.run.get("program", ""),
            "lost": self._machinery.lost,
            "records": self._ring.records,
            "first": self._ring.first,
        }

    async def _events(self, request: web.Request) -> web.StreamResponse:
        chosen = PageFilter.of_query(request.query)
        if self._pages >= MOST_PAGES:
            return json_answer({"error": f"{MOST_PAGES} pages are open"}, status=503)
        last = request.headers.get("Last-Event-ID") or request.query.get("last", "")
        stream = LiveStream(self._ring, chosen, self._boot, self._state)
        response = event_stream()
        await response.prepare(request)
        self._open_page()
        try:
            await stream.run(response.write, last, self._hello())
        except (ConnectionError, asyncio.CancelledError):
            pass  # the page has gone, or the server ends
        finally:
            self._close_page()
        return response

    def _open_page(self) -> None:
        self._pages += 1
        if self._resting is not None:
            self._resting.cancel()
        self._feed.wake()

    def _close_page(self) -> None:
        self._pages -= 1
        if not self._pages:
            self._resting = self._loop.call_later(REST_AFTER, self._feed.rest)

    def _hello(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "version": self._version,
            "files": plan.paths,
            "control": plan.control,
            "retry": 1000,
        }

    # --- the machinery ---

    async def _report(self, _: web.Request) -> web.Response:
        return json_answer(self._machinery.report())

    async def _control(self, request: web.Request) -> web.Response:
        if not self._plan.control:
            return json_answer({"error": "this page only reads: --control"}, status=403)
        try:
            wanted = orjson.loads(await request.read())
        except orjson.JSONDecodeError:
            wanted = None
        if not isinstance(wanted, dict) or wanted.get("confirmed") is not True:
            raise ConfigError("an action has to be confirmed")
        machinery = self._machinery
        path = str(machinery.status.get("socket", ""))
        done = await asyncio.to_thread(
            control_actions.perform, wanted, machinery.address, path
        )
        return json_answer({"done": done})


async def serve(
    plan: PagePlan,
    access: PageAccess,
    listener: socket,
    tls: ssl.SSLContext | None,
    ready: Callable[[], None],
) -> None:
    """Serve until TERM or Ctrl-C.

    Args:
        plan: What is served.
        access: Who may use it.
        listener: Where.
        tls: The certificate, or None.
        ready: Called when it is served.

    Raises:
        ConfigError: A file cannot be read.
    """
    server = PageServer(plan, access)
    silent = logging.getLogger("logagg.page.clients")
    silent.setLevel(logging.CRITICAL + 1)  # any client may send what is no request
    runner = web.AppRunner(
        server.app(),
        access_log=None,
        logger=silent,
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    assert runner.server is not None
    server.gate = gate = Gate(listener, runner.server, tls)
    server.start()
    ready()
    try:
        await ended.wait()
    finally:
        gate.close()
        await server.close()
        await runner.cleanup()
