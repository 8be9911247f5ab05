"""The viewer: reading records from a consumer or files, and showing them.

Process: `logagg tail`, `stats` and `top`.
Hot path: no; but a filter over 1 GB of files must be quick.
May import: `logagg.render`, `logagg.filters`, `logagg.ipc`, `logagg.core`.
Never: the supervisor, the consumer; write to a log.
"""
