"""A WSGI application, for gunicorn, without any logagg code.

logagg run -w 4 gunicorn --chdir samples/cluster wsgi:app --bind :8000
"""

import logging
import os

log = logging.getLogger("web")


def app(environ, start_response):
    log.info("request", extra={"path": environ["PATH_INFO"]})
    body = f"worker process {os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
