"""The fleet's transport: messages of a NATS JetStream stream, and the connection to it.

Process: the consumer of a host (sink `nats:`), and the collector.
Hot path: per batch.
May import: `logagg.errors`, `logagg.filters`, `logagg.wireformat`.
Never: know sinks, or how records are ordered.
"""
