"""Messages between supervisor and worker: frames, receipts, requests, events.

Process: the supervisor and its workers.
Hot path: no.
May import: `logagg.core`, `logagg.errors`.
Never: block the supervisor's loop; drop a message without resolving its receipt.
"""
