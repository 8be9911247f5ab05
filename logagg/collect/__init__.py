"""The collector: one ordered stream out of the messages of all hosts.

Process: the collector (`logagg collect`).
Hot path: yes, per message.
May import: `logagg.fanout`, `logagg.fleet`, `logagg.sinks`, `logagg.ownership`,
`logagg.core`.
Never: acknowledge what the durable sinks do not have.
"""
