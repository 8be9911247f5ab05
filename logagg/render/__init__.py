"""Rendering of records as text, the same for viewers and for console sinks.

Process: the viewer and the consumer (for console and text sinks).
Hot path: no.
May import: `logagg.core`, `logagg.filters`, `logagg.options`, `logagg.errors`.
Never: I/O of any kind; whether to color is passed in.
"""
