"""`QueueHandler`s, whose records arrive once and whole, wherever their listener is.

A record that a `QueueHandler` gets is formatted into text, and comes back at a
`QueueListener`, in another thread or process. If other handlers of its logger send it to
the log, it is sent by them before it is queued, and its copy is marked: no handler sends
the copy again. Otherwise the copy knows the record that it was made from, and is sent
where the listener's handlers get it.

A handler of the program's own kind may put the record itself into the queue, and a
`MemoryHandler` has it in its buffer until its target gets it. It is remembered then, in
this process; under `logagg run` so is what a handler of any other kind holds back.

The text that the listener's own handlers write, to files for instance, is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import wraps
from types import ModuleType
from typing import Any
from weakref import ref

from logagg.client.handler import Handler
from logagg.dialects.queued_records import QueuedText
from logagg.integrations.import_hooks import when_imported

__all__ = ["QueueHandlers", "sent_as_it_is"]


class SentRecords:
    """Records that were sent and are in a queue or a buffer, not copied: a `QueueHandler`
    of the program's own kind, for one, puts them there as they are.

    Attributes:
        refs: By id, those that exist; mostly none.
    """

    def __init__(self) -> None:
        self.refs: dict[int, ref[logging.LogRecord]] = {}

    def add(self, record: logging.LogRecord) -> None:
        """Remember a record as long as it exists."""
        key = id(record)

        def forget(_: ref[logging.LogRecord]) -> None:
            self.refs.pop(key, None)

        self.refs[key] = ref(record, forget)

    def has(self, record: logging.LogRecord) -> bool:
        """Whether a record is among them."""
        found = self.refs.get(id(record))
        return found is not None and found() is record


sent_as_it_is = SentRecords()


class QueueHandlers:
    """Replaces `prepare` of all of them until it is taken back.

    Args:
        sender: Sends to the log; its address is what a copy's mark names.
        reaches: Whether a handler's records get to that log.
    """

    def __init__(
        self, sender: Handler, reaches: Callable[[logging.Handler], bool]
    ) -> None:
        self._sender = sender
        self._reaches = reaches
        self._active = True
        self._undo: list[Callable[[], None]] = []
        when_imported("logging.handlers", self._replace)

    def take_back(self) -> None:
        """Restore what was replaced."""
        self._active = False
        while self._undo:
            self._undo.pop()()

    def _replace(self, module: ModuleType) -> None:
        if not self._active:
            return
        kind: Any = module.QueueHandler
        original = kind.prepare
        replacement = kind.prepare = self._marking(original)

        def made(cls: Any, /, **options: Any) -> None:
            super(kind, cls).__init_subclass__(**options)
            if "prepare" in vars(cls) and self._active:
                cls.prepare = self._marking(cls.prepare)

        before = vars(kind).get("__init_subclass__")
        making = kind.__init_subclass__ = classmethod(made)
        put = kind.enqueue
        putting = kind.enqueue = self._noting(put)
        buffering: Any = module.BufferingHandler
        buffer = buffering.emit
        noting = buffering.emit = self._noting(buffer)
        memory: Any = module.MemoryHandler
        flush = memory.flush
        skipping = memory.flush = self._skipping(flush)

        def undo() -> None:
            if kind.prepare is replacement:
                kind.prepare = original
            if kind.enqueue is putting:
                kind.enqueue = put
            if buffering.emit is noting:
                buffering.emit = buffer
            if memory.flush is skipping:
                memory.flush = flush
            if vars(kind).get("__init_subclass__") is making:
                del kind.__init_subclass__
                if before is not None:
                    kind.__init_subclass__ = before

        self._undo.append(undo)

    def _marking(self, original: Any) -> Any:
        @wraps(original)
        def prepare(handler: Any, record: logging.LogRecord) -> Any:
            sent = self._send(record) if self._active else ""
            made = original(handler, record)
            text = getattr(made, "msg", None)
            if self._active and made is not record and type(text) is str:
                marked = QueuedText(text)
                before = record.msg
                marked.record = before.record if type(before) is QueuedText else record
                marked.sent = sent
                made.msg = made.message = marked
            return made

        return prepare

    def _noting(self, original: Any) -> Any:
        @wraps(original)
        def take(handler: Any, record: Any) -> None:
            if self._active and isinstance(record, logging.LogRecord):
                self.note(record)
            original(handler, record)

        return take

    def note(self, record: logging.LogRecord) -> None:
        """Send a record that is held back, and remember it, if it reaches the log."""
        if type(record.msg) is not QueuedText and self._send(record):
            sent_as_it_is.add(record)

    def _skipping(self, original: Any) -> Any:
        """`flush` of a `MemoryHandler`; its target gets what was not sent yet."""

        @wraps(original)
        def flush(handler: Any) -> None:
            with handler.lock or nullcontext():
                target = handler.target
                if self._active and target is not None and self._reaches(target):
                    sent = sent_as_it_is.has
                    handler.buffer = [r for r in handler.buffer if not sent(r)]
                original(handler)

        return flush

    def _send(self, record: logging.LogRecord) -> str:
        """Let the handlers that reach the log have the record; where it is sent now."""
        if type(record.msg) is QueuedText and record.msg.sent:
            return record.msg.sent
        transport = self._sender._transport
        for each in _handlers_of(record):
            direct = self._reaches(each) and not hasattr(each, "target")
            if direct and record.levelno >= each.level:
                each.handle(record)
        last = transport.recent.get(record.thread)
        return transport.destination.path if last and last() is record else ""


def _handlers_of(record: logging.LogRecord) -> Iterator[logging.Handler]:
    """Those that `Logger.callHandlers` calls."""
    found = logging.Logger.manager.loggerDict.get(record.name)
    logger = found if isinstance(found, logging.Logger) else logging.getLogger()
    if logger is not found and record.name not in ("root", ""):
        return
    while logger is not None:
        yield from list(logger.handlers)
        logger = logger.parent if logger.propagate else None  # type: ignore[assignment]
