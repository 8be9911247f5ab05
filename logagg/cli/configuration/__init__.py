"""Options from files and the environment, and which files may use secrets.

Process: every `logagg` command that takes options from a file.
Hot path: no, but `logagg tail` starts with it.
May import: `logagg.options`, `logagg.ipc`, `logagg.render`; `logagg.sinks` where a file
names some.
Never: run or send anything that a file names.
"""
