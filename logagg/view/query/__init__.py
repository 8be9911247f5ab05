"""SQL over logs: `logagg query`.

Process: `logagg query`.
Hot path: no; but it must read as fast as DuckDB's own reader.
May import: `logagg.view`, `logagg.dialects`, `logagg.render`, `logagg.core`.
Never: the consumer; write to a log.
"""
