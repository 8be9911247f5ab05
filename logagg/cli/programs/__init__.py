"""The commands of programs: `up` and what goes with it.

Process: these commands.
Hot path: no.
May import: `logagg.cli`, and what that may import.
"""
