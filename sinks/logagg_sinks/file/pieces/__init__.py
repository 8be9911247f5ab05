"""The files that a sink made: how they are proven, rotated, compressed and removed.

Process: the consumer.
Hot path: no.
May import: as `logagg_sinks.file`.
Never: rename, compress or remove a file that the journal does not prove to be own.
"""
