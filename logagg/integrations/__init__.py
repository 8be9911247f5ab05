"""Ways for an application's records to get here without a line of its own.

Process: every worker: console handlers, children of all kinds, uncaught exceptions; and
the parent that called `logagg.start`.
Hot path: no; a record that is routed here goes on through `logagg.client`.
May import: `logagg.client`, `logagg.ipc`, `logagg.core`, `logagg.dialects`.
Never: change anything global in a process that did not ask for it; raise into the
application's import or logging.
"""
