"""Records as other programs and libraries write them, brought into logagg's fields.

Process: the viewer, the consumer (captured output), and every worker (access logs, events
that a formatter rendered).
Hot path: no; a worker gets here for records that carry a rendered event or an access log.
May import: the standard library without I/O, orjson, `logagg.core`, `logagg.errors`.
Never: I/O of any kind; raise for a line that it does not understand.
"""
