"""The part inside the user's application: the handler and the way to the consumer.

Process: every worker, that is the user's own process.
Hot path: yes: `handler` and `transport` are the log call.
May import: the standard library, orjson, `logagg.core`, `logagg.ipc`, `logagg.errors`.
Never: asyncio, msgspec, importlib.metadata, a sink; a thread of its own; an exception
out of a log call.
"""
