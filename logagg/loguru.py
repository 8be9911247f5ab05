"""loguru straight into the pipe: fields flat, the exception structured.

    from loguru import logger
    import logagg.loguru

    logger.remove()
    logger.add(logagg.loguru.sink)

`bind`, `contextualize` and keyword arguments become fields of the record; level, logger
(the module's name), thread and process are loguru's own. The text that loguru formats
is not used, so `format=`, `serialize=` and `colorize=` change nothing; `level=` and
`filter=` work as for any sink. `enqueue=True` is not needed: each call ends in one
write to this process's own pipe. `logger.add(logagg.Handler(…))` does the same.
"""

from __future__ import annotations

import threading
from typing import Any

from logagg.client.handler import Handler
from logagg.dialects.loguru_messages import log_record, with_origin

__all__ = ["LoguruSink", "sink"]


class LoguruSink:
    """A loguru sink with targets of its own: `logger.add(LoguruSink("app.log"))`.

    Args:
        arguments: As for `logagg.Handler`.
        options: As for `logagg.Handler`.

    Raises:
        ConfigError: As `logagg.Handler` does.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.handler = Handler(*arguments, **options)

    def __call__(self, message: Any) -> None:
        """Send one record; see `logagg.Handler` for what a call may cost."""
        record = log_record(message.record)
        self.handler.handle_for(record, with_origin(record))


_default: list[LoguruSink] = []
_lock = threading.Lock()


def sink(message: Any) -> None:
    """Send one record where a `logagg.Handler()` without arguments sends it.

    That is the consumer of `logagg run`, `logagg.start` or `LOGAGG_SOCKET`, else stderr.
    """
    with _lock:
        if not _default:
            _default.append(LoguruSink())
    _default[0](message)
