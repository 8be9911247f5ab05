"""The process of `logagg run`: it starts, watches, replaces and stops workers.

Process: the supervisor; `child` is loaded into its workers.
Hot path: no; log data never passes through it.
May import: `logagg.ipc`, `logagg.core`, `logagg.options`, `logagg.client` (in `child`).
Never: read or write a record; wait for a consumer while clients wait.
"""
