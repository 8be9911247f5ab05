"""Faster forms of a log call: the same records, the same lines.

Process: every worker.
Hot path: yes: the record factory, and what the C code of `logagg._native` is given.
May import: `logagg.client`, `logagg.core`, `logagg._native`.
Never: change what is logged; change anything global in `logging` but by `install`.
"""
