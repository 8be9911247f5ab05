"""Every error that logagg raises.

    LogaggError
     ├─ ConfigError (ValueError)          a bad option, sink or file
     ├─ WireError (ValueError)            bytes that the protocol does not allow
     ├─ ClosedError (RuntimeError)        used after its own `close()`
     ├─ ConsumerGone (ConnectionError)    the consumer ended or refused
     ├─ WouldBlock (BlockingIOError)      full, and the caller asked not to wait
     ├─ WorkerDied (RuntimeError)         a worker ended before it answered
     ├─ StartFailed (OSError)             no room for another worker
     ├─ ReloadFailed (RuntimeError)       a new worker did not become ready
     ├─ TaskFailed (RuntimeError)         a task raised in its worker
     └─ SinkError (OSError)               a sink cannot write a batch
         └─ SinkUnavailable               it may work later
             └─ TargetOwned               another consumer writes this target

Each also inherits the built-in error that fits, so callers may catch either. A message
names the problem, the thing it is about, and a remedy. `exit_status` is the exit status
of a command that the error ends; `ExitStatus` lists them all.
"""

from __future__ import annotations

import enum


class ExitStatus(enum.IntEnum):
    """The exit status of every command; 128 + N means: ended by signal N.

    Attributes:
        OK: The command did its work; the workers of a run all ended with status 0.
        FAILED: A worker failed for good, nothing matched, a target does not answer, or
            a spool could not be delivered.
        USAGE: A bad option, value, configuration or file, or an address in use.
        NO_CONSUMER: No consumer or run answers, or none could be started.
        KILLED: A worker did not end within the stop timeout and was killed.
        UNWRITTEN: Records were left unwritten at the end: the disk is full, or a sink
            does not answer.
        CANNOT_START: The program failed again and again before it was ready, or the
            system has no room for another worker.
        INTERRUPTED: Ended by Ctrl-C.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_CONSUMER = 3
    KILLED = 4
    UNWRITTEN = 5
    CANNOT_START = 10
    INTERRUPTED = 130


class LogaggError(Exception):
    """Root of all errors that logagg raises."""

    exit_status = ExitStatus.FAILED


class ConfigError(LogaggError, ValueError):
    """An option, a sink URL or a file given by the user cannot be used."""

    exit_status = ExitStatus.USAGE


class WireError(LogaggError, ValueError):
    """The sender violated the protocol."""


class ClosedError(LogaggError, RuntimeError):
    """The object was used after its own `close()`."""


class ConsumerGone(LogaggError, ConnectionError):
    """The consumer ended, could not be reached, or refused the connection."""

    exit_status = ExitStatus.NO_CONSUMER


class WouldBlock(LogaggError, BlockingIOError):
    """There is no room and the caller asked not to wait."""


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

    exit_status = ExitStatus.CANNOT_START


class ReloadFailed(LogaggError, RuntimeError):
    """A fresh worker did not become ready; the old ones stay.

    Attributes:
        trace: The traceback that ended the fresh worker; empty when there was none.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class TaskFailed(LogaggError, RuntimeError):
    """A task raised, or returned a value that JSON has no form for.

    Attributes:
        type: The name of the exception's class in the worker.
        message: Its text.
        traceback: The worker's traceback, as text.
    """

    def __init__(self, type: str, message: str, traceback: str) -> None:  # noqa: A002
        super().__init__(f"{type}: {message}")
        self.type = type
        self.message = message
        self.traceback = traceback
        self.add_note(f"in the worker:\n{traceback.rstrip()}")


class SinkError(LogaggError, OSError):
    """A sink cannot write a batch and a retry will not help."""


class SinkUnavailable(SinkError):
    """A sink cannot write a batch now; a retry may succeed.

    Attributes:
        retry_after: Least number of seconds before the next try; None when the target
            gave none.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TargetOwned(SinkUnavailable):
    """Another consumer of this host writes the target: it is the only one that may.

    Attributes:
        socket: Where the owner takes records; empty when no process of this user can
            send there.
    """

    def __init__(self, message: str, socket: str = "") -> None:
        super().__init__(message)
        self.socket = socket
