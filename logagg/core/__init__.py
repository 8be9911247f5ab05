"""Pure building blocks: bytes and values in, values out.

Process: all of them.
Hot path: yes; `line`, `encode` in workers; `line`, `merge`, `sequence` in the consumer.
May import: the standard library without I/O, orjson, `logagg.errors`, `logagg._native`.
Never: a socket, a file, a thread, a clock, a process.
"""
