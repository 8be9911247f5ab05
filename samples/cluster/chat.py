"""A WebSocket chat over several workers: sticky sessions, and broadcast between them.

    logagg run -w 4 --bind 127.0.0.1:8080 --sticky query:room samples/cluster/chat.py

Connect clients to ws://127.0.0.1:8080/chat?room=NAME. The clients of a room share a
worker. A text reaches every client of every worker once: the worker broadcasts it, and
each worker (this one too) sends it to its own clients.
"""

import asyncio
import logging

from aiohttp import WSMsgType, web

import logagg

log = logging.getLogger("chat")
clients = set()


async def chat(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    clients.add(socket)
    log.info("joined", extra={"room": request.query.get("room")})
    await socket.send_json({"worker": logagg.worker.slot})
    try:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await logagg.broadcast({"text": message.data})
    finally:
        clients.discard(socket)
    return socket


async def start(_app):
    @logagg.worker.on("message")
    async def deliver(message):
        await asyncio.gather(
            *(client.send_json(message) for client in list(clients)),
            return_exceptions=True,
        )


app = web.Application()
app.router.add_get("/chat", chat)
app.on_startup.append(start)
web.run_app(app, host="127.0.0.1", port=8080, print=None)
