"""Records and lines of other programs, in the shape of logagg's own.

Process: a viewer's, a worker's whose output is captured, `logagg send`.
Hot path: no; a line of a file that is read costs some microseconds.
May import: `logagg.core`, `logagg.dialects`.
Never: do I/O, raise for a line, or lose a field.
"""
