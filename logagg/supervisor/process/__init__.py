"""Starting and ending processes: workers, the consumer, the guard against orphans.

Process: the supervisor.
Hot path: no.
May import: `logagg.ipc`, `logagg.core`, and below `logagg.supervisor`: messaging, child,
sockets, run_options.
Never: leave a process without an owner.
"""
