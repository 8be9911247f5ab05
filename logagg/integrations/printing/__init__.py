"""Text that a program prints on captured output, as records where it stands for one.

Process: every worker and its children whose output is captured.
Hot path: no.
May import: `logagg.client`, `logagg.core`, `logagg.dialects`.
Never: change text that is not captured.
"""
