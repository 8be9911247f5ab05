"""An ASGI application, for uvicorn or hypercorn, without any logagg code.

logagg run -w 4 uvicorn asgi:app --app-dir samples/cluster --port 8000
logagg run -w 4 --policy rr hypercorn samples/cluster/asgi:app -w 0 --bind :8000
"""

import logging
import os

log = logging.getLogger("web")


async def app(scope, receive, send):  # noqa: ARG001 - the protocol's signature
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    log.info("request", extra={"path": scope["path"]})
    body = f"worker process {os.getpid()}\n".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
