"""The supervisor: the process behind `logagg run` that starts, watches, stops workers.

It routes messages, sockets and tasks, and never touches log data: the read ends of the
workers' pipes go to the consumer unread.
"""
