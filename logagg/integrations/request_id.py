"""The id of a web request, on every record that is made while it is answered.

For ASGI applications (FastAPI, Starlette, Django under ASGI, …), around the whole of one:

    app = RequestIdMiddleware(app)

and for Django, as the first of its middleware:

    MIDDLEWARE = ["logagg.integrations.request_id.django_middleware", ...]

The id is the request's `X-Request-ID`, or a new one; the response has it, too. It is
bound in structlog's context variables, so that structlog's records have it as well.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from inspect import iscoroutinefunction
from typing import Any

from structlog.contextvars import bind_contextvars, reset_contextvars

__all__ = ["RequestIdMiddleware", "django_middleware"]

HEADER = "X-Request-ID"

_ACCEPTED = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_WIRE_NAME = HEADER.lower().encode()
_STARTS = ("http.response.start", "websocket.accept")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class RequestIdMiddleware:
    """ASGI middleware that puts `request_id` on records of requests and websockets.

    After an exception that leaves the application, the id stays for the rest of the
    server's task, so that the server's record about the exception has it.

    Args:
        app: The application.
    """

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """Answer as the application does, with the header added to its response."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(_WIRE_NAME, b"").decode("latin-1")
        request_id = accepted(given)

        async def send_with_id(message: Message) -> None:
            if message["type"] in _STARTS:
                headers = list(message.get("headers") or ())
                message = {
                    **message,
                    "headers": [*headers, (_WIRE_NAME, request_id.encode())],
                }
            await send(message)

        tokens = bind_contextvars(request_id=request_id)
        await self.app(scope, receive, send_with_id)
        reset_contextvars(**tokens)


def django_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Django middleware that puts `request_id` on the records of a request.

    Under WSGI and ASGI. The body of a streaming response is made afterwards, without it.
    """

    def finished(response: Any, request_id: str, tokens: Any) -> Any:
        response.headers.setdefault(HEADER, request_id)
        reset_contextvars(**tokens)
        return response

    async def answer_async(request: Any) -> Any:
        request_id = accepted(request.headers.get(HEADER, ""))
        tokens = bind_contextvars(request_id=request_id)
        return finished(await get_response(request), request_id, tokens)

    def answer(request: Any) -> Any:
        request_id = accepted(request.headers.get(HEADER, ""))
        tokens = bind_contextvars(request_id=request_id)
        return finished(get_response(request), request_id, tokens)

    return answer_async if iscoroutinefunction(get_response) else answer


django_middleware.sync_capable = django_middleware.async_capable = True  # type: ignore[attr-defined]


def accepted(given: str) -> str:
    """A request's own id if it is safe to log and to send back, else a new one."""
    return given if _ACCEPTED.fullmatch(given) else uuid.uuid4().hex
