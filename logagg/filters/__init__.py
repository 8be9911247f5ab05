"""The filter that `tail`, sinks and subscribers share: from text to a matcher of bytes.

Process: the viewer and the consumer (for sinks with `match=` or `redact=`).
Hot path: yes, for the lines that a filter decides.
May import: `logagg.core`, `logagg.options`, `logagg.errors`.
Never: I/O of any kind.
"""
