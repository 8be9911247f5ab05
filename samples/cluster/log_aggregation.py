"""Log aggregation: producers, one consumer, one file.

In the Node pattern each worker sends its log lines to the primary as messages, and the
primary writes them. Here that needs no code: workers log and print as usual.

    logagg run -w 4 --sink file:all.log --sink stdout: samples/cluster/log_aggregation.py
"""

import logging
import os

log = logging.getLogger("producer")

for number in range(100):
    log.info("item %d", number, extra={"number": number, "producer": os.getpid()})
print("printed lines are records, too")
