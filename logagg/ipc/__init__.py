"""How processes find, start and address each other, and the messages between them.

Process: all of them.
Hot path: no; a worker is here when it attaches and every 0.2 s.
May import: `logagg.core`, `logagg.errors`, the standard library, orjson.
Never: records' content; msgspec at import in what a worker loads.
"""
