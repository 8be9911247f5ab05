"""Delivery from a spool: batches, retries, halves, refusals, dead letters.

Process: the consumer.
Hot path: per batch.
May import: `logagg.abc`, `logagg.errors`, `logagg.segment_log`, `logagg.spool_directory`,
`logagg.wireformat`.
Never: know HTTP, or a kind of target; make a record final that is neither taken nor a
dead letter.
"""
