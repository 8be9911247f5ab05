"""Log aggregation: producers, one consumer, one file. Compare the Node pattern:

there, each worker sends its log lines to the primary as messages, which writes them.
Here nothing is written for it: workers log as they always did, and print too.

    logagg run -w 4 --sink file:all.log --sink stdout: samples/cluster/log_aggregation.py
"""

import logging
import os

log = logging.getLogger("producer")

for number in range(100):
    log.info("item %d", number, extra={"number": number, "pid_said": os.getpid()})
print("also printed lines are records")
