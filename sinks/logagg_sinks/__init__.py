"""The sinks that come with logagg; each module is one kind of target.

The core imports none of them: they are found through the entry-point group
`logagg.sinks`, the same way as anyone else's. Import them from `logagg.sinks`.
"""
