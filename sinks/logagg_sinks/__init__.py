"""The sinks that come with logagg; each module is one kind of target.

They are found through the entry-point group `logagg.sinks`, as every other sink is, and
import only what every other sink may import. Import the classes from `logagg.sinks`.

Process: the consumer.
Hot path: yes, per batch.
May import: `logagg.abc`, `logagg.options`, `logagg.errors`, `logagg.wireformat`,
`logagg.text`, `logagg.segment_log`, `logagg.spool_directory`.
Never: any other module of logagg.
"""
