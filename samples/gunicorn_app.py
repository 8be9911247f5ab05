"""gunicorn: all workers and the master write one ordered file, `--preload` included.

    gunicorn --workers 4 --config samples/gunicorn_conf.py --preload \
        --chdir samples gunicorn_app:app

The handler is made once, in the master; each forked worker attaches when it logs for
the first time.
"""

import logging
from collections.abc import Callable, Iterable

log = logging.getLogger("web")
log.info("the application is loaded")


def app(
    environ: dict[str, str], start_response: Callable[..., object]
) -> Iterable[bytes]:
    """Answer every request with its path."""
    path = environ["PATH_INFO"]
    log.info("request for %s", path, extra={"path": path})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"you asked for {path}\n".encode()]
