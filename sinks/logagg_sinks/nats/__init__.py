"""The sink `nats:`: a host's records into a stream of NATS JetStream.

Process: the consumer.
Hot path: per batch.
May import: the public face, `logagg.fleet`, `logagg_sinks.delivery`.
Never: read a stream.
"""
