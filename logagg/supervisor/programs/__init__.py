"""Several programs under one process: `logagg up`.

Process: the one of `logagg up`.
Hot path: no.
May import: all of `logagg.supervisor`, and what that may import.
"""
