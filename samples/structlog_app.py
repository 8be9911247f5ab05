"""structlog straight into the pipe, with contextvars, beside the standard library.

python samples/structlog_app.py app.log
"""

import logging
import sys

import structlog

import logagg
import logagg.structlog

path = sys.argv[1] if len(sys.argv) > 1 else "app.log"
logagg.structlog.configure(path)
logging.basicConfig(handlers=[logagg.Handler(path)], level="INFO")

log = structlog.get_logger("shop")
structlog.contextvars.bind_contextvars(request_id="r-17")
log.info("order placed", order=42, total=9.5)
logging.getLogger("stdlib").info("the request's id is here too")
try:
    {}["missing"]
except KeyError:
    log.exception("order failed", order=43)
