"""The hot paths in C, where they were built: `emit` the log call, `merge` the lines.

Process: `emit` in every worker; `merge` in the consumer.
Hot path: yes, all of it.
May import: the standard library; `logagg.client.fast.native` gives `emit` what it needs,
and `blocks` here is the Python form of `merge` and the choice between the two.
Never: anything that the Python code does not do; a call or a line that it finds unusual.
"""
