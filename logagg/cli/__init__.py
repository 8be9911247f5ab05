"""The command line: options, configuration, help; each command loads what it needs.

Process: every `logagg` command.
Hot path: no, but `logagg --help` stays quick.
May import: everything.
Never: anything that another package wants to import.
"""
