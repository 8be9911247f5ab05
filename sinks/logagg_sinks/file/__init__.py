"""The file sink: records appended to files that rotate without losing or splitting any.

Process: the consumer.
Hot path: yes, per batch.
May import: `logagg.abc`, `logagg.options`, `logagg.errors`, `logagg.wireformat`,
`logagg.text`.
Never: rename, compress or remove a file that this sink did not make.
"""
