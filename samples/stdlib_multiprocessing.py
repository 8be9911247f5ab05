"""multiprocessing with the standard library's logging: one handler, one ordered file.

    python samples/stdlib_multiprocessing.py app.log

Under fork the workers need no set-up; under spawn and forkserver the module is imported
again, and with it the two lines at the top.
"""

import logging
import multiprocessing
import sys

import logagg

path = sys.argv[1] if len(sys.argv) > 1 else "app.log"
logging.basicConfig(handlers=[logagg.Handler(path)], level="INFO")


def work(number: int) -> None:
    """Log from the process that runs the task."""
    logging.getLogger("work").info("task %d is done", number, extra={"task": number})


if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool:
        pool.map(work, range(100))
    logging.info("all done")
