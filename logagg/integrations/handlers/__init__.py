"""Handlers of `logging` that a program makes, and the one on its root logger.

Process: every worker and its children; the parent that called `logagg.start`.
Hot path: no; what is handled here goes on through `logagg.client`.
May import: `logagg.client`, `logagg.dialects`, `logagg.integrations.printing`.
Never: change what a handler of the program writes to its own files.
"""
