"""The one process that reads every worker's records and puts them in order.

Process: the consumer.
Hot path: yes: `consumer.cycle` and everything that it calls per batch.
May import: everything below `logagg.consumer` in the order of layers, not
`logagg.client`'s handler.
Never: parse a record to move it; block the event loop; import a sink by name.
"""
