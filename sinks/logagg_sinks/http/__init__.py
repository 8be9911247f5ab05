"""The HTTP family: one spool, one delivery loop, one client for every network target.

Process: the consumer.
Hot path: per batch.
May import: `logagg.abc`, `logagg.options`, `logagg.errors`, `logagg.wireformat`.
Never: send a record to anybody but its target; show a secret.
"""
