"""Handlers of `logging` that a program makes, the one on its root logger, and what
structlog hands to them.

Process: every worker and its children; the parent that called `logagg.start`; any with a
`logagg.Handler` (`rendered_messages` only).
Hot path: no; what is handled here goes on through `logagg.client`.
May import: `logagg.client`, `logagg.dialects`, `logagg.integrations.printing`.
Never: change what a handler of the program writes to its own files.
"""
