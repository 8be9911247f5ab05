"""The page: a web server that shows the log, live and past, in a browser.

Process: `logagg web`, a viewer of its own; `past_search` runs in processes of that one.
Hot path: no; a page costs the consumer what one viewer does, however many are open.
May import: `logagg.view`, `logagg.render`, `logagg.filters`, `logagg.ipc`.
Never: the supervisor, the consumer; write to a log; load anything from elsewhere.
"""
