"""Every error that logagg raises on purpose.

    LogaggError
     ├─ ConfigError (ValueError)          a bad option, sink or file; names it
     ├─ WireError (ValueError)            bytes that are not what the wire allows
     ├─ ClosedError (RuntimeError)        used after *you* closed it
     ├─ ConsumerGone (ConnectionError)    the consumer went away or refused
     ├─ WouldBlock (BlockingIOError)      full, and you asked not to wait
     ├─ WorkerDied (RuntimeError)         a worker ended before its answer came
     ├─ StartFailed (OSError)             the system has no room for another worker
     └─ SinkError (OSError)               a sink could not take what it was given
         └─ SinkUnavailable               it may work later

Each also inherits the built-in that fits, so that callers may catch either. A message
says what is wrong, which thing it is about, and what to do. `exit_status` is what the
command line exits with when the error reaches it.
"""

from __future__ import annotations


class LogaggError(Exception):
    """The root of all errors that logagg raises on purpose."""

    exit_status = 1


class ConfigError(LogaggError, ValueError):
    """An option, a sink URL or a file that the user named cannot be used."""

    exit_status = 2


class WireError(LogaggError, ValueError):
    """Bytes came that the protocol does not allow: the sender's fault."""


class ClosedError(LogaggError, RuntimeError):
    """The object was used after its own `close()`."""


class ConsumerGone(LogaggError, ConnectionError):
    """The consumer ended, could not be reached, or refused the connection."""

    exit_status = 3


class WouldBlock(LogaggError, BlockingIOError):
    """There is no room now and the caller asked not to wait."""


class WorkerDied(LogaggError, RuntimeError):
    """A worker ended before it answered.

    Attributes:
        slot: The worker's slot, or None when it is not known.
        signal: The signal that ended it, or None.
    """

    slot: int | None = None
    signal: int | None = None


class StartFailed(LogaggError, OSError):
    """A worker could not be started: no descriptor, process or memory was free."""

    exit_status = 10


class SinkError(LogaggError, OSError):
    """A sink could not take a batch and trying again will not help."""


class SinkUnavailable(SinkError):
    """A sink could not take a batch now; it may later.

    Attributes:
        retry_after: Seconds to wait at least before the next try, or None when the
            target did not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
