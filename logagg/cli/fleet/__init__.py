"""The commands of a fleet.

Process: the command line.
Hot path: no.
May import: everything but `logagg_sinks`.
Never: hold logic that another command needs.
"""
