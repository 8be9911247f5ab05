"""Messages to runs and projects, and finding those that a name means.

Process: commands of `logagg`, and the supervisor.
Hot path: no.
May import: `logagg.ipc`, `logagg.platform`, `logagg.core`, `logagg.errors`.
"""
