"""Listening addresses and how workers share them: kernel, reuseport, round robin, sticky.

Process: the supervisor.
Hot path: no.
May import: `logagg.core`, `logagg.errors`, `logagg.supervisor.messaging`.
Never: read from an accepted connection, except to peek at its head (`sticky`).
"""
