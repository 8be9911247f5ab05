"""Code inside a worker, before and beside the program.

Process: every worker of `logagg run` and `logagg.Cluster`.
Hot path: no.
May import: `logagg.client`, `logagg.ipc`, `logagg.core`, `logagg.supervisor.messaging`.
Never: asyncio at import; change what the program sees beyond what its docstrings name.
"""
