"""From ordered batches to sinks: a queue, a policy and a task for each sink.

Process: the consumer.
Hot path: yes, per batch.
May import: `logagg.sinks`, `logagg.filters`, `logagg.core`, `logagg.abc`,
`logagg.options`.
Never: let one sink delay another, the reading, or a log call.
"""
