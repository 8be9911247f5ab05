"""The first run: a program without any logagg code.

Run it on two workers, with one ordered file for all of them:

    logagg run samples/hello.py --workers 2 --sink stdout: --sink file:hello.log
"""

import logging
import os

log = logging.getLogger("hello")

print(f"hello from process {os.getpid()}")
for number in range(3):
    log.info("step %d of 3", number + 1, extra={"step": number + 1})
try:
    1 / 0  # noqa: B018 - the point is the exception
except ZeroDivisionError:
    log.exception("this went wrong")
