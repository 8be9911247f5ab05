"""Calls that not every system offers, each with its portable form.

Process: all of them.
Hot path: no; which form it is is decided at import.
May import: the standard library.
Never: ctypes, select or an event loop at import in what a worker loads.

The portable form is used where the system is not Linux, and anywhere with
`LOGAGG_PORTABLE=1`, so that it can be tested on Linux. All processes of a log must use
the same one. It lacks what has no counterpart: the listening sockets of processes, the
adoption of orphans, mounts of other machines, how a process that is no child has ended.
"""
