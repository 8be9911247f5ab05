"""The peers: logagg and what people use instead, each in its best usual form.

Fairness, in rules that hold for every peer:

- it writes the same fields: timestamp, level, worker, logger, message, pid, process,
  thread, and the fields of the call, as one line of JSON for each record;
- it writes to one file for all processes, each record flushed as the library does it;
- its processes are forked from one parent, which is what all of them support;
- it is attached and warm before the measured calls begin.

A `Peer` is used in two places: `start` and `consumer` in the parent, `worker` in each
child, where it returns the call to measure.
"""

from __future__ import annotations

import importlib.util
import logging
import logging.handlers
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import measure
import orjson
import workload
from workload import Call

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """`logging`'s record as one line of JSON, by orjson, as fast as it gets simply."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline."""
        return self.encode(record, datetime.fromtimestamp(record.created, UTC))

    def encode(self, record: logging.LogRecord, stamp: Any) -> str:
        """Return the line with this timestamp."""
        fields: dict[str, Any] = {
            "timestamp": stamp,
            "level": record.levelname,
            "worker": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            "process": record.processName,
            "thread": record.threadName,
        }
        attributes = record.__dict__
        for name in attributes:  # faster than a comprehension over the items
            if name not in _STANDARD:
                fields[name] = attributes[name]
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


class FloatFormatter(JsonFormatter):
    """The same with the timestamp as a bare number: the leanest possible."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline."""
        return self.encode(record, record.created)


class Peer:
    """One way to log from several processes into one file.

    Attributes:
        title: Its name in the tables.
        needs: Modules or programs that must be there.
        writes: Whether it writes a file at all.
    """

    title = ""
    needs: tuple[str, ...] = ()
    writes = True
    style: Callable[[Any, str, int], Call] = staticmethod(workload.stdlib)

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        self.size = size

    @classmethod
    def missing(cls) -> str:
        """The first thing that it needs and that is not here."""
        for each in cls.needs:
            if importlib.util.find_spec(each) is None and shutil.which(each) is None:
                return each
        return ""

    def start(self) -> None:
        """In the parent, before the workers are forked."""

    def consumer(self) -> int:
        """The pid of the process that writes for the others; 0 when there is none."""
        return 0

    def handler(self) -> logging.Handler:
        """In a worker: the handler to log through."""
        raise NotImplementedError

    def worker(self, w: int) -> Call:
        """In a worker: attach, and return the call."""
        root = logging.getLogger()
        root.handlers[:] = [self.handler()]
        root.setLevel(logging.INFO)
        return type(self).style(logging.getLogger("bench"), self.size, w)

    def leave(self) -> None:
        """In a worker, at its end."""
        logging.shutdown()

    def stop(self) -> None:
        """In the parent, at the end."""


class Logagg(Peer):
    """This product through `logging`."""

    title = "logagg"

    def handler(self) -> logging.Handler:
        """The product's handler, with its record factory."""
        import logagg

        getattr(logagg, "install", lambda: None)()  # older checkouts lack it
        return logagg.Handler(self.path)

    def consumer(self) -> int:
        """The consumer, found by its command line."""
        found = measure.processes("logagg.consumer.consumer", str(self.path.parent))
        return found[0] if found else 0


class LogaggPlain(Logagg):
    """A handler and nothing else: `logging` is as it was."""

    title = "logagg, without install()"

    def handler(self) -> logging.Handler:
        """The product's handler."""
        import logagg

        return logagg.Handler(self.path)


class LogaggStructlog(Logagg):
    """This product through structlog."""

    title = "logagg (structlog)"

    def worker(self, w: int) -> Call:
        """Configure in one call."""
        import structlog

        import logagg.structlog

        logagg.structlog.configure(self.path)
        return workload.structured(structlog.get_logger("bench"), self.size, w)


class Unlocked(Peer):
    """Each process appends to the same file with its own FileHandler."""

    title = "FileHandler + orjson, unlocked"

    def handler(self) -> logging.Handler:
        """A file of its own, opened for appending."""
        handler = logging.FileHandler(self.path)
        handler.setFormatter(JsonFormatter())
        return handler


class UnlockedFloat(Peer):
    """The same with the leanest timestamp."""

    title = "FileHandler + orjson, unlocked, bare time"

    def handler(self) -> logging.Handler:
        """A file of its own, opened for appending."""
        handler = logging.FileHandler(self.path)
        handler.setFormatter(FloatFormatter())
        return handler


class _Locked(logging.handlers.RotatingFileHandler):
    def __init__(self, path: Path, lock: Any) -> None:
        super().__init__(path, maxBytes=1 << 40, backupCount=1)
        self._shared = lock

    def emit(self, record: logging.LogRecord) -> None:
        with self._shared:
            super().emit(record)


class Locked(Peer):
    """RotatingFileHandler, each record under a lock that all processes share."""

    title = "RotatingFileHandler + lock"

    def start(self) -> None:
        """Make the lock."""
        import multiprocessing

        self.lock = multiprocessing.get_context("fork").Lock()

    def handler(self) -> logging.Handler:
        """A file of its own, under the common lock."""
        handler = _Locked(self.path, self.lock)
        handler.setFormatter(JsonFormatter())
        return handler


class Queue(Peer):
    """QueueHandler in the workers, QueueListener in the parent, as the cookbook says."""

    title = "QueueHandler/QueueListener"

    def start(self) -> None:
        """Make the queue. The listener's thread starts once the workers are forked."""
        import multiprocessing

        self.queue = multiprocessing.get_context("fork").Queue(-1)
        self.listener: logging.handlers.QueueListener | None = None

    def consumer(self) -> int:
        """The parent itself."""
        if self.listener is None:
            handler = logging.FileHandler(self.path)
            handler.setFormatter(JsonFormatter())
            self.listener = logging.handlers.QueueListener(self.queue, handler)
            self.listener.start()
        return os.getpid()

    def handler(self) -> logging.Handler:
        """A handler that pickles records into the queue."""
        return logging.handlers.QueueHandler(self.queue)

    def stop(self) -> None:
        """End the listener."""
        if self.listener is not None:
            self.listener.stop()


class ConcurrentLogHandler(Peer):
    """A file lock for each record."""

    title = "concurrent-log-handler"
    needs = ("concurrent_log_handler",)

    def handler(self) -> logging.Handler:
        """Its handler, with a size that is never reached."""
        from concurrent_log_handler import ConcurrentRotatingFileHandler

        handler = ConcurrentRotatingFileHandler(
            str(self.path), maxBytes=1 << 40, backupCount=1
        )
        handler.setFormatter(JsonFormatter())
        return handler


class Loguru(Peer):
    """loguru with `enqueue` and `serialize`: its way for several processes."""

    title = "loguru (enqueue, serialize)"
    needs = ("loguru",)

    def start(self) -> None:
        """Add the sink in the parent; workers inherit it."""
        import multiprocessing

        from loguru import logger

        logger.remove()
        context = multiprocessing.get_context("fork")
        logger.add(self.path, enqueue=True, serialize=True, context=context)

    def consumer(self) -> int:
        """The parent itself."""
        return os.getpid()

    def worker(self, w: int) -> Call:
        """Log through the inherited logger; keywords become `extra`."""
        from loguru import logger

        return workload.structured(logger, self.size, w)


class BytesLogger(Peer):
    """structlog's own fast way, each process appending to the same file."""

    title = "structlog BytesLogger, unlocked"

    def worker(self, w: int) -> Call:
        """Configure as structlog's page on performance says, with orjson."""
        import structlog

        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=orjson.dumps),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.BytesLoggerFactory(file=self.path.open("ab")),
            cache_logger_on_first_use=True,
        )
        log = structlog.get_logger().bind(
            worker=os.getpid(),
            logger="bench",
            pid=os.getpid(),
            process="MainProcess",
            thread=threading.current_thread().name,
        )
        return workload.structured(log, self.size, w)


class Picologging(Peer):
    """picologging, each process appending to the same file; it has no `extra`."""

    title = "picologging FileHandler, unlocked"
    needs = ("picologging",)

    def worker(self, w: int) -> Call:
        """The same formatter on its classes; the fields stand in the message."""
        import picologging

        class Formatter(picologging.Formatter):
            def format(self, record: Any) -> str:
                fields = {
                    "timestamp": datetime.fromtimestamp(record.created, UTC),
                    "level": record.levelname,
                    "worker": record.process,
                    "logger": record.name,
                    "message": record.getMessage(),
                    "pid": record.process,
                    "process": record.processName,
                    "thread": record.threadName,
                }
                if record.exc_info:
                    fields["exception"] = self.formatException(record.exc_info)
                return orjson.dumps(fields, default=str).decode()

        handler = picologging.FileHandler(str(self.path))
        handler.setFormatter(Formatter())
        log = picologging.getLogger("bench")
        log.setLevel(picologging.INFO)
        log.addHandler(handler)
        return workload.text(log, self.size, w)


class Nothing(Peer):
    """`logging` with a handler that does nothing: the floor of any handler."""

    title = "(a handler that does nothing)"
    writes = False

    def handler(self) -> logging.Handler:
        """It throws records away."""
        return logging.NullHandler()


RSYSLOG = """\
module(load="imuxsock" SysSock.Use="off")
global(maxMessageSize="64k" workDirectory="{folder}"
       parser.escapeControlCharactersOnReceive="off")
template(name="raw" type="list") {{ property(name="rawmsg-after-pri") constant(value="\\n") }}
input(type="imuxsock" socket="{socket}" rateLimit.interval="0")
action(type="omfile" file="{path}" template="raw" flushOnTXEnd="on"
       asyncWriting="off")
"""


class Rsyslog(Peer):
    """A local rsyslogd over its socket, by the standard SysLogHandler."""

    title = "rsyslog (SysLogHandler)"
    needs = ("rsyslogd",)

    def start(self) -> None:
        """Start a daemon of our own with one input and one output."""
        import subprocess

        folder = self.path.parent
        self.socket = folder / "log"
        configuration = folder / "rsyslog.conf"
        configuration.write_text(
            RSYSLOG.format(folder=folder, socket=self.socket, path=self.path)
        )
        pid = str(folder / "pid")
        command = ["rsyslogd", "-n", "-f", str(configuration), "-i", pid]
        self.daemon = subprocess.Popen(command)
        deadline = time.monotonic() + 10
        while not self.socket.exists():
            if time.monotonic() > deadline or self.daemon.poll() is not None:
                raise RuntimeError("rsyslogd did not start")
            time.sleep(0.01)

    def consumer(self) -> int:
        """The daemon."""
        return self.daemon.pid

    def handler(self) -> logging.Handler:
        """The standard handler; its messages are JSON."""
        handler = logging.handlers.SysLogHandler(str(self.socket))
        handler.append_nul = False
        handler.setFormatter(JsonFormatter())
        return handler

    def stop(self) -> None:
        """End the daemon."""
        self.daemon.terminate()
        self.daemon.wait(20)


class NodeCluster(Peer):
    """Node's cluster: workers `process.send` records, the primary appends them.

    It is a program of its own (`cluster.js`), which measures as the others do.
    """

    title = "Node cluster process.send"
    needs = ("node",)


PEERS: dict[str, type[Peer]] = {
    "logagg": Logagg,
    "logagg-plain": LogaggPlain,
    "logagg-structlog": LogaggStructlog,
    "unlocked": Unlocked,
    "unlocked-bare": UnlockedFloat,
    "locked": Locked,
    "queue": Queue,
    "clh": ConcurrentLogHandler,
    "loguru": Loguru,
    "byteslogger": BytesLogger,
    "picologging": Picologging,
    "rsyslog": Rsyslog,
    "node": NodeCluster,
    "nothing": Nothing,
}

FIRST = ("logagg", "unlocked", "queue", "clh", "loguru")
"""The five that a first look compares."""
