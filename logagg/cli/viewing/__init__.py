"""The commands that show a log: `tail`, `stats`, `query`, `top`, `web`.

Process: these commands.
Hot path: no, but `logagg tail` starts with it.
May import: `logagg.cli.command`, `logagg.view`, `logagg.render`, `logagg.filters`.
Never: the supervisor.
"""
