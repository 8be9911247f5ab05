"""Ways to search for a pattern in a time that grows with the text only.

Process: the viewer and the consumer, as `logagg.filters`.
Hot path: yes, for long texts.
May import: `logagg.filters.charsets`, `logagg.errors`.
Never: I/O of any kind.
"""
