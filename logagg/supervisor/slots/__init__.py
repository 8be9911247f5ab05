"""Slots: which workers there are to be, and how that comes about.

Process: the supervisor.
Hot path: no.
May import: `logagg.core`, `logagg.errors`, `logagg.supervisor`.
Never: do I/O but through the workers; wait for anything while it compares.
"""
