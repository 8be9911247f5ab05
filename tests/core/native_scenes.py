"""Log calls of all kinds, run by test_native.py once in C and once in Python.

    python native_scenes.py FILE (install | plain)

Writes the records to FILE, and to stdout what other handlers and the calls themselves
gave: both must be the same in both forms.
"""

from __future__ import annotations

import asyncio
import enum
import io
import logging
import logging.handlers
import multiprocessing.process
import os
import signal
import sys
import threading
import warnings
from unittest import mock

import logagg
from logagg.client.fast import native

FILE, FORM = sys.argv[1:]
ROOT = logging.getLogger()
HANDLER = logagg.Handler(FILE)
EXTRA = {"user_id": 42, "path": "/a", "ok": True, "part": 0.25, "none": None}
SCENES = []


def scene(function):
    SCENES.append(function)
    return function


class Text:
    """Its text is made when it is asked for, and counted."""

    count = 0

    def __str__(self):
        Text.count += 1
        return f"text {Text.count}"


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


@scene
def ordinary(log):
    for method in (log.debug, log.info, log.warning, log.error, log.critical):
        method("a call")
        method("a call with %s and %d and 100%%", "text", 7)
        method("a call with fields", extra=EXTRA)
        method(
            "both: %s",
            'ä\n"quoted"\\',
            extra={"nested": {"a": [1, (2, 3), {}], "b": []}},
        )
    log.log(20, "by number")
    log.log(logging.ERROR, "by number %d", 1, extra=EXTRA)
    log.info("")
    log.info("%")
    log.info("100%")
    log.info("no arguments: %s %d")
    log.info("ünïcode 漢字 🎉 %s", "🎉")
    log.info("control \x00\x01\x1f\x7f\u2028")
    log.info("x" * 5000)
    log.info("x" * 30_000)
    log.info("x" * 100_000)
    log.info("%s", "y" * 20_000, extra={"long": "z" * 20_000})


@scene
def numbers(log):
    for value in (
        0, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 0.0, -0.0,
        1.0, 0.1, 1e-3, 1e-7, 1e15, 1e16, 1e22, 123456.789, 1 / 3, 5e-324, 1.7e308,
        float("nan"), float("inf"), -float("inf"), True, False, None, Colour.RED,
    ):  # fmt: skip
        log.info("a value", extra={"value": value, "listed": [value]})
        log.info("formatted %s", value)
        log.info("formatted %r", value)
    log.info("%d %5d %05.1f %x", 1, 2, 3.0, 255)
    log.info("%d", 1.9)
    log.info("%d", True)
    log.info("%s", 2**70)


@scene
def arguments(log):
    log.info("%(a)s and %(b)d", {"a": 1, "b": 2})
    log.info("%s", {"a": 1})
    log.info("%s", {})
    log.info("%s", ())
    log.info("%s", (1, 2))
    log.info("%s %s", 1, {"a": 1})
    log.info("%s", Text())
    log.info("%s", [1, 2])
    log.info("%s", Name("a name"))
    log.info("%s", b"bytes")
    log.info("%s", None)
    log.info("too few %s %s", 1)
    log.info("too many %s", 1, 2)
    log.info("wrong %d", "text")
    log.info("%s", "\udcff")
    log.info("\udcff")
    log.info("%s %(a)s", 1)
    log.info("%", 1)
    log.info("%c", "a")
    log.info("%-10s|", "a")


@scene
def messages(log):
    log.info(7)
    log.info(None)
    log.info(Text())
    log.info(Name("a name"))
    log.info({"event": "of structlog", "a": 1})
    log.info('{"event": "looks like JSON"}')
    log.info('{"password": "hunter2"}')
    log.info('{"password": "%s"}', "hunter2")
    log.info("%s", '[{"password": "hunter2"}]')
    log.info("%s%s", '{"password": ', '"hunter2"}\n')
    log.info("[%s] done [%s]", "a", "b")
    log.info(b"bytes")
    log.info("%s", "{")


@scene
def fields(log):
    log.info(
        "secret", extra={"password": "hunter2", "db_password": {"a": 1}, "Api-Key": 3}
    )
    log.info("deep secret", extra={"a": {"b": [{"token": "x", "c": 1}]}})
    log.info(
        "pairs",
        extra={"headers": [["Cookie", "c"], ("X", "y")], "argv": ["--token", "x"]},
    )
    log.info(
        "named", extra={"a": {"name": "password", "value": "x"}, "b": [("password", 1)]}
    )
    log.info("named above", extra={"key": "password", "value": "x", "a": []})
    log.info("own names", extra={"logger": "x", "level": "y", "seq": 1, "received": 2})
    log.info("underscored", extra={"received_": 2, "seq__": 1})
    log.info(
        "otel", extra={"otelTraceID": "0", "otelSpanID": "abc", "otelServiceName": ""}
    )
    log.info("marks", extra={"_logger": 1, "_name": 2})
    log.info(
        "objects", extra={"a": Colour, "b": {1, 2} - {2}, "c": b"x", "d": Colour.RED}
    )
    log.info("keys", extra={"a": {1: 2, None: 3}, "b": {Name("n"): 1}})
    log.info("empty", extra={})
    log.info("none", extra=None)
    log.info("many", extra={f"field_{n}": n for n in range(300)})
    log.info("wide", extra={"wide": list(range(20_000))})
    log.info("deep", extra={"deep": deep(40)})
    log.info("deeper", extra={"deep": deep(200)})
    log.info("odd", extra={"": 1, " ": 2, 'é"\n': 3, "\udcff": 4})
    log.info("of the process", extra={"app": "mine", "rank": None})
    log.info("task", extra={"task_name": "mine", "event": "e"})
    for name in ("message", "asctime", "name", "args", "exc_info"):
        try:
            log.info("refused", extra={name: 1})
        except KeyError as error:
            print(error)
    try:
        log.info("refused", extra=["x"])
    except TypeError as error:
        print("TypeError", error)


def deep(levels):
    return {"in": deep(levels - 1)} if levels else "end"


@scene
def exceptions(log):
    try:
        raise ValueError("x")
    except ValueError as error:
        log.exception("caught %s", 1)
        log.error("caught", exc_info=True)
        log.error("caught", exc_info=error)
        log.error("not", exc_info=False)
    log.error("none there", exc_info=True)
    log.error("none", exc_info=None)
    log.info("stack", stack_info=True)
    log.info("level", stacklevel=2)


@scene
def levels(log):
    log.setLevel(logging.WARNING)
    log.info("below")
    log.warning("at")
    print(log.isEnabledFor(20), log.getEffectiveLevel())
    log.setLevel(logging.NOTSET)
    ROOT.setLevel(logging.ERROR)
    log.warning("below the root's")
    log.error("at the root's")
    ROOT.setLevel(logging.DEBUG)
    logging.disable(logging.INFO)
    log.info("disabled")
    log.warning("not disabled")
    logging.disable(logging.NOTSET)
    log.disabled = True
    log.error("a disabled logger")
    log.disabled = False
    HANDLER.setLevel(logging.ERROR)
    log.info("below the handler's")
    log.error("at the handler's")
    HANDLER.setLevel(logging.NOTSET)
    logging.addLevelName(25, "NOTICE")
    log.log(25, "notice")
    log.log(33, "no name")
    log.log(True, "a level that is a bool")
    logging.addLevelName(20, "INFORMATION")
    log.info("renamed")
    logging.addLevelName(20, "\x1b[32mINFO\x1b[0m")
    log.info("coloured")
    logging.addLevelName(20, "INFO")
    log.info("named again")
    try:
        log.log("INFO", "no number")
    except TypeError as error:
        print(error)


@scene
def filters(log):
    def odd(record):
        return record.args and record.args[0] % 2 == 1

    class Adds(logging.Filter):
        def filter(self, record):
            record.added = "by a filter"
            return True

    adds = Adds()
    for place in (log, HANDLER):
        for added in (odd, adds):
            place.addFilter(added)
            for n in range(3):
                log.info("filtered %d", n)
            place.removeFilter(added)
    log.info("not filtered %d", 2)


@scene
def others(log):
    stream = io.StringIO()
    other = logging.StreamHandler(stream)
    other.setFormatter(
        logging.Formatter(
            "%(levelname)s %(name)s %(funcName)s %(filename)s %(message)s"
        )
    )
    log.addHandler(other)
    log.info("to both")
    log.info("to both %s", 1, extra=EXTRA)
    other.setLevel(logging.ERROR)
    log.info("to ours only")
    log.error("to both again")
    log.propagate = False
    log.error("to the other only")
    log.propagate = True
    print(stream.getvalue())
    records = []

    class Keeps(logging.Handler):
        def emit(self, record):
            records.append(record)

    keeps = Keeps()
    log.addHandler(keeps)
    log.info("kept %d", 1, extra={"a": 1})
    log.warning("kept", stacklevel=1)
    adapter = logging.LoggerAdapter(log, {"adapted": True})
    adapter.info("by an adapter %d", 1)
    for record in records:
        shown = dict(vars(record))
        for name in (
            "created",
            "msecs",
            "relativeCreated",
            "lineno",
            "process",
            "thread",
        ):
            shown.pop(name)
        print(type(record), shown)
    log.removeHandler(keeps)
    log.removeHandler(other)
    twice = logagg.Handler(FILE)
    log.addHandler(twice)
    log.info("once, though two handlers take it")
    log.removeHandler(twice)
    log.info("after")
    adapter.warning("to ours by an adapter")
    lines = [record.lineno for record in records]
    print([line > records[0].lineno - 1 for line in lines])


@scene
def nowhere(log):
    ROOT.removeHandler(HANDLER)
    with warnings.catch_warnings():
        last, logging.lastResort = logging.lastResort, logging.StreamHandler(sys.stdout)
        log.warning("the last resort's")
        logging.lastResort = last
    null = logging.NullHandler()
    log.addHandler(null)
    log.warning("nobody's")
    log.removeHandler(null)
    ROOT.addHandler(HANDLER)


@scene
def subclasses(log):
    class Mine(logging.Logger):
        def makeRecord(self, *args, **options):
            record = super().makeRecord(*args, **options)
            record.msg = f"mine: {record.msg}"
            return record

    mine = Mine("mine")
    mine.parent = ROOT
    mine.info("by a subclass %d", 1)
    logging.Logger.info(mine, "called on the class")
    handler = type(
        "Mine", (logagg.Handler,), {"emit": lambda self, record: print(record.msg)}
    )
    other = handler(FILE)
    log.addHandler(other)
    log.info("to a subclass's emit")
    log.removeHandler(other)
    other.close()


@scene
def patches(log):
    for name in ("handle", "callHandlers", "_log", "makeRecord", "isEnabledFor"):
        original = getattr(logging.Logger, name)

        def patched(self, *args, _name=name, _original=original, **options):
            print("patched", _name)
            return _original(self, *args, **options)

        with mock.patch.object(logging.Logger, name, patched):
            log.info("through a patched %s", name)
        log.info("no more")
        if name in ("handle", "callHandlers", "_log"):
            with mock.patch.object(log, name, lambda *_, **__: print("mine")):
                log.info("to one of its own")
    with mock.patch.object(log, "info", print):
        log.info("not logged")
    with mock.patch.object(HANDLER, "emit", lambda record: print(record.getMessage())):
        log.info("to a patched %s", "emit")
    with mock.patch.object(HANDLER, "handle", lambda record: print(record.msg)):
        log.info("to a patched handle")
    with mock.patch.object(
        logagg.Handler, "emit", lambda self, record: print(record.msg)
    ):
        log.info("to a patched class")
    log.info("to the real one")


@scene
def factories(log):
    before = logging.getLogRecordFactory()

    def factory(*args, **options):
        record = before(*args, **options)
        record.made = "by a factory"
        return record

    logging.setLogRecordFactory(factory)
    log.info("made")
    logging.setLogRecordFactory(before)
    log.info("not made")
    logging.logThreads = False
    log.info("no threads")
    logging.logThreads = True
    logging.logProcesses = False
    log.info("no processes")
    logging.logProcesses = True
    logging.logMultiprocessing = False
    log.info("no multiprocessing")
    logging.logMultiprocessing = True
    log.info("all")


@scene
def times(log):
    from freezegun import freeze_time

    with freeze_time("2020-01-02 03:04:05"):
        log.info("frozen")
    log.info("not frozen")
    record = logging.makeLogRecord({"msg": "old", "created": 1e9, "name": "n"})
    HANDLER.handle(record)
    HANDLER.handle(logging.makeLogRecord({"msg": "incomplete"}))
    record = logging.LogRecord("n", 20, "p", 1, "twice", (), None)
    HANDLER.handle(record)
    HANDLER.handle(record)


@scene
def threads(log):
    def named():
        log.info("of a thread")
        threading.current_thread().name = "renamed"
        log.info("of a thread")

    thread = threading.Thread(target=named, name="first")
    thread.start()
    thread.join()
    thread = threading.Thread(
        target=named, name='"quoted" \u00e4 and a long name of a thread'
    )
    thread.start()
    thread.join()
    import multiprocessing

    log.info("with multiprocessing")
    multiprocessing.current_process().name = "Renamed"
    log.info("renamed")
    multiprocessing.current_process().name = "MainProcess"

    async def main():
        log.info("in a task")
        await asyncio.create_task(inner(), name="inner")

    async def inner():
        log.info("in another task")

    asyncio.run(main())
    log.info("in none")


@scene
def contextvars(log):
    import structlog

    log.info("structlog is there")
    log.info('{"event": "rendered", "a": 1}')
    with structlog.contextvars.bound_contextvars(request="r1"):
        log.info("bound")
    log.info("not bound")


@scene
def structured(log):
    import structlog

    import logagg.structlog

    logagg.structlog.configure(FILE, level="info")
    log = structlog.get_logger("events")
    log.debug("below")
    log.info("an event")
    log.warning("an event", a=1, b={"c": [1, 2.5]}, password="x")
    log.warn("an alias")  # noqa: G010 - of structlog
    log.msg("an alias")
    log.fatal("an alias")
    log.error("names", logger="mine", level="mine", event_="e", seq=3, exc_info=None)
    log.info("of the process", app="mine", rank=7)
    log.info("percent %s", 1)
    log.info("percent %s", a=1)
    log.info(7, a=1)
    log.info()
    bound = log.bind(user="u", nested={"token": 1})
    bound.info("bound")
    bound.info("over", user="v")
    bound.critical("both", more=1)
    with structlog.contextvars.bound_contextvars(request="r1"):
        bound.info("context")
    try:
        raise ValueError("x")
    except ValueError:
        bound.exception("caught")
    with structlog.testing.capture_logs() as caught:
        structlog.get_logger("events").info("captured", a=1)
    print(caught)
    try:
        log.info("event twice", event="x")
    except TypeError as error:
        print("TypeError", str(error)[-20:])


@scene
def changes(log):
    """Each thing that the C form remembers, changed after a call and put back."""
    child = log.getChild("child")
    other = logging.getLogger("elsewhere")
    output = io.StringIO()
    process = multiprocessing.process.current_process()
    thread = threading.current_thread()
    reject = lambda record: False  # noqa: E731
    places = [
        (log, "disabled", True), (log, "propagate", False), (log, "name", "renamed"),
        (log, "parent", other), (child, "parent", other), (child, "disabled", 1),
        (child, "name", "renamed.child"), (child, "_cache", {}),
        (child, "handlers", [logging.StreamHandler(output)]),
        (child, "filters", [reject]), (log, "filters", [reject]),
        (ROOT, "handlers", [HANDLER, logging.StreamHandler(output)]),
        (ROOT, "handlers", []), (ROOT, "disabled", True),
        (HANDLER, "level", logging.ERROR), (HANDLER, "filters", [reject]),
        (HANDLER, "handle", lambda record: output.write("handled\n")),
        (HANDLER, "emit", lambda record: output.write("emitted\n")),
        (HANDLER, "_redact", not HANDLER._redact),
        (logging, "logThreads", False), (logging, "logProcesses", False),
        (logging, "logMultiprocessing", False), (logging, "logAsyncioTasks", False),
        (process, "_name", "OtherProcess"), (thread, "_name", "OtherThread"),
        (threading, "get_ident", lambda: 7),
    ]  # fmt: skip
    for target, name, value in places:
        for logger in (log, child):
            logger.info("before %s", name, extra={"password": "hidden"})
        with mock.patch.object(target, name, value, create=True):
            for logger in (log, child):
                logger.info("changed %s", name, extra={"password": "hidden"})
        for logger in (log, child):
            logger.info("after %s", name)
    for n in range(100):  # often enough for the interpreter to specialize the store
        log.disabled = n % 3 == 0
        child.propagate = n % 4 != 0
        HANDLER.level = logging.ERROR if n % 5 == 0 else logging.NOTSET
        log.info("stored %d", n)
        child.info("stored in the child %d", n)
    log.disabled, child.propagate, HANDLER.level = False, True, logging.NOTSET
    for name in ("NOTE", "INFO"):
        logging.addLevelName(logging.INFO, name)
        log.info("at level %s", name)
    for level in (5, 300, 301, 5000, 5001):
        log.setLevel(300)
        log.log(level, "level %d", level)
        log.log(level + 1, "level %d", level + 1)
        log.setLevel(logging.NOTSET)
        log.log(level, "level %d again", level)
    for handlers in ([HANDLER], [HANDLER, logging.StreamHandler(output)], []):
        child.handlers[:] = handlers  # the list is the same one
        child.info("with %d handlers", len(handlers))
    for filters in ([reject], []):
        HANDLER.filters[:] = filters
        log.filters[:] = []
        log.info("with %d filters", len(filters))
        child.filters[:] = filters
        child.info("with %d filters", len(filters))
    print(output.getvalue())


@scene
def many_loggers(log):
    """More than are remembered, and new ones in the place of ended ones."""
    for _ in range(3):
        for n in range(200):
            made = logging.Logger(f"short-lived {n}", logging.DEBUG)
            made.parent = ROOT if n % 3 else log
            made.disabled = n % 5 == 0
            made.info("call %d", n)
            del made


@scene
def forks(log):
    log.info("before a fork")
    child = os.fork()
    if not child:
        log.info("in a child", extra={"is_child": os.getpid() == os.getpid()})
        log.info("in a child")
        HANDLER.flush(30)
        os._exit(0)
    os.waitpid(child, 0)
    log.info("after a fork")


@scene
def signals(log):
    def on_alarm(*_):
        log.info("of a signal handler")

    signal.signal(signal.SIGALRM, on_alarm)
    signal.raise_signal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def main():
    ROOT.addHandler(HANDLER)
    ROOT.setLevel(logging.DEBUG)
    if FORM == "install":
        assert logagg.install()
    for function in SCENES:
        print("---", function.__name__)
        log = logging.getLogger(f"scene.{function.__name__}")
        log.info("--- %s", function.__name__)
        function(log)
        if function is ordinary and native.is_used():
            sent, _ = native.emit.counts()
            assert sent >= 20, native.emit.counts()
    assert HANDLER.flush(60)
    logagg.uninstall()
    assert logging.Logger.info.__code__.co_name == "info"


main()
