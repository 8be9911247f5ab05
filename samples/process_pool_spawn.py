"""A ProcessPoolExecutor under spawn whose workers need no initializer.

    python samples/process_pool_spawn.py app.log

`logagg.start` passes the root logger's level, the level names and a handler to every
process that multiprocessing starts, also inside libraries.
"""

import logging
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import logagg

VERBOSE = 15


def work(number: int) -> int:
    """Log at a level of this application."""
    logging.getLogger("work").log(
        VERBOSE, "number %d", number, extra={"number": number}
    )
    return number * number


def main() -> None:
    """Square numbers in other processes."""
    path = sys.argv[1] if len(sys.argv) > 1 else "app.log"
    logging.addLevelName(VERBOSE, "VERBOSE")
    logging.getLogger().setLevel(VERBOSE)
    spawn = multiprocessing.get_context("spawn")
    with (
        logagg.start(f"file:{path}", "stdout:?format=console&level=info"),
        ProcessPoolExecutor(2, mp_context=spawn) as pool,
    ):
        logging.info("the sum is %d", sum(pool.map(work, range(10))))


if __name__ == "__main__":
    main()
