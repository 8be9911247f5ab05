"""What a program logs by its own means arrives as records, once, under `logagg run`."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

LOG = """
    log = logging.getLogger("shop.pay")
    log.debug("dbg")
    log.info("inf %d", 1, extra={"order": 7})
    log.error("err", extra={"order": 8})
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("exc")
"""

DICT = """
    import logging, logging.config
    logging.config.dictConfig({
        "version": 1, "disable_existing_loggers": False,
        "formatters": {"v": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "v"
                     STREAM}},
        LOGGERS,
    })
"""

WAYS = {
    "basicConfig": "import logging\nlogging.basicConfig(level='DEBUG')",
    "basicConfig on stdout": "import logging, sys\n"
    "logging.basicConfig(level='DEBUG', stream=sys.stdout)",
    "basicConfig, force": "import logging\n"
    "logging.basicConfig(level='DEBUG', force=True)",
    "basicConfig twice, with other levels, force": "import logging\n"
    "logging.basicConfig(level='WARNING')\n"
    "logging.basicConfig(level='DEBUG', format='%(message)s', force=True)",
    "dictConfig of the root": DICT.replace("STREAM", "").replace(
        "LOGGERS", "'root': {'handlers': ['console'], 'level': 'DEBUG'}"
    ),
    "dictConfig on stdout": DICT.replace(
        "STREAM", ", 'stream': 'ext://sys.stdout'"
    ).replace("LOGGERS", "'root': {'handlers': ['console'], 'level': 'DEBUG'}"),
    "dictConfig twice": 2
    * DICT.replace("STREAM", "").replace(
        "LOGGERS", "'root': {'handlers': ['console'], 'level': 'DEBUG'}"
    ),
    "a logger that does not propagate": DICT.replace("STREAM", "").replace(
        "LOGGERS",
        "'loggers': {'shop': {'handlers': ['console'], 'level': 'DEBUG',"
        " 'propagate': False}}",
    ),
    "a logger that propagates to the root": DICT.replace("STREAM", "").replace(
        "LOGGERS",
        "'loggers': {'shop': {'handlers': ['console'], 'level': 'DEBUG'}},"
        " 'root': {'handlers': ['console']}",
    ),
    "a logger set up if it has no handlers": """
    import logging
    shop = logging.getLogger("shop")
    if not shop.hasHandlers():
        shop.addHandler(logging.StreamHandler())
        shop.setLevel("DEBUG")
        shop.propagate = False
    assert shop.hasHandlers() and not logging.getLogger("other").hasHandlers()
    """,
    "basicConfig if there is no handler": """
    import logging
    if not logging.getLogger().handlers:
        logging.basicConfig(level="DEBUG", format="%(message)s")
    """,
    "a handler by hand if there is none": """
    import logging
    root = logging.getLogger()
    if len(root.handlers) == 0 and not logging.root.hasHandlers():
        root.addHandler(logging.StreamHandler())
        root.setLevel("DEBUG")
    assert [type(each) for each in root.handlers] == [logging.StreamHandler]
    """,
    "a handler added by hand": """
    import logging
    logging.getLogger().addHandler(logging.StreamHandler())
    logging.getLogger().setLevel("DEBUG")
    """,
    "handlers cleared and added by hand": """
    import logging, sys
    logging.getLogger().handlers.clear()
    logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger().setLevel("DEBUG")
    """,
    "a subclass with an emit of its own": """
    import logging
    class Mine(logging.StreamHandler):
        def emit(self, record):
            super().emit(record)
    logging.basicConfig(level="DEBUG", handlers=[Mine()])
    """,
    "configured again in mid-flight": """
    import logging, logging.config
    logging.basicConfig(level="INFO", force=True)
    logging.getLogger("early").info("before")
    logging.config.fileConfig("log.ini", disable_existing_loggers=False)
    """,
    "rich": """
    import logging
    from rich.logging import RichHandler
    logging.basicConfig(level="DEBUG", format="%(message)s", handlers=[RichHandler()])
    """,
    "a buffer before the console": """
    import logging, logging.handlers
    buffer = logging.handlers.MemoryHandler(100, target=logging.StreamHandler())
    logging.basicConfig(level="DEBUG", handlers=[buffer])
    """,
    "a buffer of a logger that does not propagate": """
    import logging, logging.handlers
    buffer = logging.handlers.MemoryHandler(2, target=logging.StreamHandler())
    logging.getLogger("shop").addHandler(buffer)
    logging.getLogger("shop").setLevel("DEBUG")
    logging.getLogger("shop").propagate = False
    """,
    "nothing but a file": """
    import logging
    logging.basicConfig(level="DEBUG", filename="own.log")
    """,
}

INI = """\
[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=
[logger_root]
level=DEBUG
handlers=console
[handler_console]
class=StreamHandler
args=(sys.stderr,)
"""


def told(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What the program logged, of the records of a run."""
    return [
        (r["level"], r["logger"], r["message"], r.get("order"), r.get("exception"))
        for r in records
        if r["logger"] not in ("logagg", "early")
    ]


QUICK = ("basicConfig, force", "dictConfig of the root", "rich")


@pytest.mark.parametrize(
    "way",
    [
        way if way in QUICK else pytest.param(way, marks=pytest.mark.slow)
        for way in WAYS
    ],
)
def test_every_way_to_configure_logging_yields_records(run: Any, way: str) -> None:
    """Levels, loggers, extras and exceptions are intact, and nothing comes twice."""
    run.write("log.ini", INI)
    program = textwrap.dedent(WAYS[way]) + "\n" + textwrap.dedent(LOG)
    (run.directory / "app.py").write_text(program)

    assert run.start("-w", 1, "app.py").wait(90) == 0

    *plain, last = told(run.records())
    assert plain == [
        ("debug", "shop.pay", "dbg", None, None),
        ("info", "shop.pay", "inf 1", 7, None),
        ("error", "shop.pay", "err", 8, None),
    ]
    assert last[:3] == ("error", "shop.pay", "exc")
    assert last[4]["type"] == "ZeroDivisionError"


@pytest.mark.slow
def test_the_programs_own_files_are_written_as_it_says(run: Any) -> None:
    """A file handler writes its text; the records come besides."""
    run.write(
        "app.py",
        """
        import logging
        logging.basicConfig(filename="own.log", format="%(levelname)s|%(message)s")
        logging.warning("here")
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    assert (run.directory / "own.log").read_text() == "WARNING|here\n"
    assert told(run.records()) == [("warning", "root", "here", None, None)]


def test_the_level_and_filter_of_a_console_handler_hold(run: Any) -> None:
    """What the program would not have printed is no record."""
    run.write(
        "app.py",
        """
        import logging
        handler = logging.StreamHandler()
        handler.setLevel("WARNING")
        handler.addFilter(lambda record: "secret" not in record.getMessage())
        logging.basicConfig(level="DEBUG", handlers=[handler])
        logging.info("no")
        logging.warning("secret")
        logging.warning("yes")
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    assert [r[2] for r in told(run.records())] == ["yes"]


@pytest.mark.slow
def test_what_a_formatter_of_the_programs_own_kind_says_arrives(run: Any) -> None:
    """What it masks does not arrive, and what it adds does; the rest is the record's."""
    run.write(
        "app.py",
        """
        import json, logging, re, sys

        class Masking(logging.Formatter):
            def format(self, record):
                return re.sub("[0-9]{16}", "****", super().format(record))

        class Coloured(logging.Formatter):
            def formatMessage(self, record):
                return f"\\x1b[1m{super().formatMessage(record)}\\x1b[0m"

        class Json(logging.Formatter):
            def format(self, record):
                return json.dumps({
                    "lvl": record.levelname, "msg": record.getMessage().replace("Bob", "?"),
                    "pid": record.process, "env": "prod", "keys": {"api_key": "K1"},
                })

        class Broken(logging.Formatter):
            def format(self, record):
                raise ValueError("broken")

        for kind in Masking, Coloured, Json, Broken:
            handler = logging.StreamHandler()
            handler.setFormatter(kind("%(asctime)s %(levelname)s %(message)s"))
            logger = logging.getLogger(f"by.{kind.__name__}")
            logger.addHandler(handler)
            logger.error("%s pays by %s", "Bob", "1234567812345678", extra={"order": 7})
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    whole = "Bob pays by 1234567812345678"
    found = [r for r in run.records() if r["logger"].startswith("by.")]
    assert [(r["logger"], r["message"]) for r in found] == [
        ("by.Masking", "Bob pays by ****"),
        ("by.Coloured", whole),
        ("by.Json", "? pays by 1234567812345678"),
        ("by.Broken", whole),
    ]
    assert {(r["level"], r["order"]) for r in found} == {("error", 7)}
    assert (found[2]["env"], found[2]["keys"]) == ("prod", {"api_key": "[redacted]"})
    assert "pid_" not in found[2]


@pytest.mark.slow
def test_a_handler_on_a_stream_of_its_own_is_left_alone(run: Any) -> None:
    """A buffer, and a file on descriptor 2, get the text that was meant for them."""
    run.write(
        "app.py",
        """
        import io, logging, os, sys
        buffer = io.StringIO()
        logging.basicConfig(handlers=[logging.StreamHandler(buffer)])
        logging.warning("buffered")
        assert buffer.getvalue() == "WARNING:root:buffered\\n"
        log = logging.getLogger("own")
        log.propagate = False
        log.addHandler(logging.StreamHandler())
        os.dup2(os.open("own.txt", os.O_CREAT | os.O_WRONLY), 2)
        log.warning("to a file")
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    assert (run.directory / "own.txt").read_text() == "to a file\n"
    assert [r[2] for r in told(run.records())] == ["buffered"]


LOGURU = """
    import sys
    from loguru import logger
    SETUP
    logger.bind(order=7).info("inf {}", 1)
    logger.debug("dbg") if DEBUG else None
    with logger.contextualize(order=8):
        try:
            1 / 0
        except ZeroDivisionError:
            logger.exception("exc")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup",
    [
        "",
        "logger.remove(0); logger.add(sys.stdout, level='INFO', serialize=True)",
        "logger.remove(); logger.add(sys.stderr, level='INFO', enqueue=True)",
        "import logagg.loguru; logger.remove(); logger.add(logagg.loguru.sink)",
        "logger.remove(); logger.add(lambda m: print(m, end=''), level='INFO')",
        "logger.remove(); logger.add(sys.stdout.write, level='INFO')",
        (
            "import functools; logger.remove()\n"
            "    logger.add(functools.partial(print, end='', flush=True), level='INFO')"
        ),
        (
            "def sink(m): sys.stdout.write(m)\n"
            "    logger.configure(handlers=[dict(sink=sink, level='INFO', colorize=True)])"
        ),
        (
            "import logging; logger.remove()\n"
            "    logger.add(logging.StreamHandler(), level='INFO')"
        ),
        (
            "import logging; handler = logging.StreamHandler(); handler.setLevel('INFO')\n"
            "    logger.remove(); logger.add(handler); logger.debug('not this')"
        ),
    ],
)
def test_loguru_yields_records(run: Any, setup: str) -> None:
    """Its default sink, one of the program's on the console, and our own, are alike."""
    program = LOGURU.replace("SETUP", setup).replace("DEBUG", "False")
    run.write("app.py", program)

    assert run.start("-w", 1, "app.py").wait(90) == 0

    first, second = told(run.records())
    assert first == ("info", "__main__", "inf 1", 7, None)
    assert second[:4] == ("error", "__main__", "exc", 8)
    assert second[4]["type"] == "ZeroDivisionError"


@pytest.mark.slow
def test_a_console_handler_with_an_emit_of_its_own_yields_records(run: Any) -> None:
    """Colours, tqdm: the record arrives, not the text; a file's handler writes on."""
    run.write(
        "app.py",
        """
        import logging, sys

        class Colour(logging.StreamHandler):
            def emit(self, record):
                self.stream.write("\\x1b[32m" + self.format(record) + "\\x1b[0m\\n")

        class Bright(Colour):
            def emit(self, record):
                super().emit(record)

        class Shout(logging.FileHandler):
            def emit(self, record):
                self.stream.write(record.getMessage().upper())

        handlers = [Bright(), Shout("own.txt")]
        logging.basicConfig(handlers=handlers, level="INFO")
        logging.info("fine", extra={"order": 1})
        try:
            1 / 0
        except ArithmeticError:
            logging.exception("bad", extra={"order": 2})
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    records = run.records()
    fine, bad = told(records)
    assert fine == ("info", "root", "fine", 1, None)
    assert bad[:4] == ("error", "root", "bad", 2)
    assert bad[4]["type"] == "ZeroDivisionError"
    assert (run.directory / "own.txt").read_text() == "FINEBAD"


@pytest.mark.slow
def test_what_loguru_prints_on_two_sinks_arrives_once(run: Any) -> None:
    """Each sink's level holds; events alike are events of their own."""
    run.write(
        "app.py",
        """
        import sys
        from loguru import logger
        logger.add(sys.stdout, level="ERROR")
        logger.warning("once", order=5)
        for _ in range(2):
            logger.error("on both", order=6)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    assert told(run.records()) == [
        ("warning", "__main__", "once", 5, None),
        ("error", "__main__", "on both", 6, None),
        ("error", "__main__", "on both", 6, None),
    ]


@pytest.mark.slow
def test_what_a_handler_passes_on_to_loguru_arrives_once(run: Any) -> None:
    """As the record of logging that it was, with what loguru adds."""
    run.write(
        "app.py",
        """
        import logging, sys
        from loguru import logger

        class Intercept(logging.Handler):
            def emit(self, record):
                at = logger.opt(depth=6, exception=record.exc_info)
                at.log(record.levelname, record.getMessage())

        logging.basicConfig(handlers=[Intercept()], level=0, force=True)
        logger.add(sys.stdout, level="WARNING")
        logger.error("its own", order=6)
        with logger.contextualize(job="j1"):
            logging.getLogger("shop.pay").warning("passed on", extra={"order": 7})
        logging.getLogger("shop.pay").error("passed on", extra={"order": 8})
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    records = run.records()
    assert told(records) == [
        ("error", "__main__", "its own", 6, None),
        ("warning", "shop.pay", "passed on", 7, None),
        ("error", "shop.pay", "passed on", 8, None),
    ]
    assert [each["job"] for each in records if "job" in each] == ["j1"]


@pytest.mark.slow
def test_a_secret_in_what_structlog_gives_to_logging_is_redacted(run: Any) -> None:
    """The text that a renderer made of an event is not sent, its fields are."""
    setup = STDLIB + "structlog.processors.JSONRenderer()])"
    program = STRUCTLOG.replace("SETUP", setup)
    run.write("app.py", program.replace("order=7", "order=7, password='hunter2'"))

    assert run.start("-w", 1, "app.py").wait(90) == 0

    first = next(each for each in run.records() if each.get("order") == 7)
    assert first["password"] == "[redacted]"
    assert "hunter2" not in str(first)


STRUCTLOG = """
    import logging, sys, structlog
    SETUP
    log = structlog.get_logger("shop.pay")
    log.info("inf", order=7)
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("exc", order=8)
"""

PRE = (
    "pre = [structlog.stdlib.add_log_level, structlog.processors.format_exc_info,"
    " structlog.processors.TimeStamper(fmt='iso')]\n    "
)

STDLIB = (
    "logging.basicConfig(format='%(message)s', level='INFO')\n    "
    + PRE
    + "structlog.configure(logger_factory=structlog.stdlib.LoggerFactory(),"
    " wrapper_class=structlog.stdlib.BoundLogger, processors=[*pre, "
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup",
    [
        "",
        PRE + "structlog.configure(processors=[*pre,"
        " structlog.processors.JSONRenderer()])",
        PRE + "structlog.configure(processors=[*pre,"
        " structlog.processors.KeyValueRenderer()],"
        " logger_factory=structlog.PrintLoggerFactory(sys.stderr))",
        "import orjson\n    " + PRE + "structlog.configure(processors=[*pre,"
        " structlog.processors.JSONRenderer(serializer=orjson.dumps)],"
        " logger_factory=structlog.BytesLoggerFactory())",
        PRE + "structlog.configure(processors=[*pre,"
        " structlog.dev.ConsoleRenderer()],"
        " logger_factory=structlog.WriteLoggerFactory())",
        STDLIB + "structlog.processors.JSONRenderer()])",
        STDLIB + "structlog.dev.ConsoleRenderer()])",
    ],
)
def test_structlog_yields_records(run: Any, setup: str) -> None:
    """Its default and every renderer on the console; the event's fields are fields."""
    run.write("app.py", STRUCTLOG.replace("SETUP", setup))

    assert run.start("-w", 1, "app.py").wait(90) == 0

    first, second = told(run.records())
    assert (first[0], first[2:]) == ("info", ("inf", 7, None))
    assert (second[0], second[2:4]) == ("error", ("exc", 8))
    assert second[4]["type"] == "ZeroDivisionError"


def test_what_the_processors_of_structlogs_formatter_do_holds(run: Any) -> None:
    """For events, and for records of `logging`; a console handler has the formatter."""
    run.write(
        "app.py",
        """
        import logging, logging.config
        import structlog
        from structlog.stdlib import ExtraAdder, ProcessorFormatter

        def mask(logger, name, event):
            event["card"] = event["card"][-1:].rjust(4, "*")
            event["service"] = "pay"
            return event

        logging.config.dictConfig({
            "version": 1, "disable_existing_loggers": False,
            "formatters": {"f": {
                "()": ProcessorFormatter,
                "foreign_pre_chain": [ExtraAdder(), structlog.stdlib.add_log_level],
                "processors": [mask, ProcessorFormatter.remove_processors_meta,
                               structlog.dev.ConsoleRenderer(colors=True)]}},
            "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
            "root": {"handlers": ["h"], "level": "DEBUG"}})
        structlog.configure(
            processors=[structlog.stdlib.add_log_level,
                        structlog.processors.TimeStamper(fmt="iso"),
                        ProcessorFormatter.wrap_for_formatter],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger)
        event, record = structlog.get_logger("event"), logging.getLogger("record")
        event.debug("inf", card="4711", pin_code="hunter2", token="hunter2")
        record.debug("inf", extra={"card": "4711", "token": "hunter2"})
        try:
            1 / 0
        except ZeroDivisionError:
            event.exception("exc", card="4711")
            record.exception("exc", extra={"card": "4711"})
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    found = run.records()
    assert [(r["logger"], r["level"], r["message"]) for r in found] == [
        ("event", "debug", "inf"), ("record", "debug", "inf"),
        ("event", "error", "exc"), ("record", "error", "exc"),
    ]  # fmt: skip
    assert {(r["card"], r["service"]) for r in found} == {("***1", "pay")}
    assert [r.get("token") for r in found] == ["[redacted]", "[redacted]", None, None]
    kinds = [r.get("exception", {}).get("type") for r in found]
    assert kinds == [None, None, "ZeroDivisionError", "ZeroDivisionError"]
    assert not {
        name for r in found for name in r if name.endswith("_") or name[:1] == "_"
    }


@pytest.mark.slow
def test_an_exception_of_a_thread_is_one_record_whatever_others_print(run: Any) -> None:
    """With its notes, its lines and its group; the printed lines stay apart."""
    run.write(
        "app.py",
        """
        import sys, threading
        def bad():
            error = ValueError("first line\\nsecond line")
            error.add_note("a note")
            raise ExceptionGroup("several", [error, KeyError("k")])
        thread = threading.Thread(target=bad)
        thread.start()
        for i in range(200):
            print("err", i, file=sys.stderr)
        thread.join()
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    (found,) = [r for r in run.records() if "exception" in r]
    assert (found["level"], found["logger"]) == ("error", "logagg")
    assert found["exception"]["type"] == "ExceptionGroup"
    first, second = found["exception"]["exceptions"]
    assert (first["message"], first["notes"]) == ("first line\nsecond line", ["a note"])
    assert second["type"] == "KeyError"
    assert run.messages(stream="stderr") == [f"err {i}" for i in range(200)]


def test_an_exception_in_a_destructor_is_a_record(run: Any) -> None:
    """What Python can only report, without stopping, is reported to the log."""
    run.write(
        "app.py",
        """
        class Resource:
            def __del__(self):
                raise OSError("still busy")
        Resource()
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    (found,) = [r for r in run.records() if "exception" in r]
    assert found["message"].endswith("OSError: still busy")
    assert "Resource.__del__" in found["message"]


def test_an_exception_of_a_task_is_one_record(run: Any) -> None:
    """asyncio reports that of a task that nobody awaits; logging need not be set up."""
    run.write(
        "app.py",
        """
        import asyncio, gc
        async def odd():
            raise LookupError("gone")
        async def main():
            task = asyncio.create_task(odd())
            await asyncio.sleep(0)
            del task
            gc.collect()
        asyncio.run(main())
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    (found,) = [r for r in run.records() if "exception" in r]
    assert (found["level"], found["logger"]) == ("error", "asyncio")
    assert found["exception"]["type"] == "LookupError"
    assert not run.records(logger="stderr")


def test_hooks_of_the_program_are_called_as_without_logagg(run: Any) -> None:
    """An error tracker's hooks get what Python would give them."""
    run.write(
        "app.py",
        """
        import sys, threading
        threading.excepthook = lambda args: print("thread", args.exc_value)
        sys.excepthook = lambda kind, error, trace: print("main", error)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start(); thread.join()
        raise ValueError("end")
        """,
    )

    run.start("-w", 1, "--restart", "never", "app.py").wait(25)

    assert run.messages(stream="stdout") == ["thread division by zero", "main end"]
    logged = [r for r in run.records(logger="logagg") if "exception" in r]
    found = [(r["level"], r["exception"]["type"]) for r in logged]
    assert found == [("error", "ZeroDivisionError"), ("critical", "ValueError")]


RICH = """
    import rich.traceback
    rich.traceback.install(show_locals=True)
    FAIL
"""

HOOK = """
    import logging, os, signal, sys, threading, traceback
    def hook(kind, error, trace):
        PRINT
    sys.excepthook = hook
    threading.excepthook = lambda args: hook(*args[:3])
    FAIL
"""

MAIN = """
    def fail(pin_code):
        raise LookupError("no order\\nof that number")
    fail(1234)
"""

THREAD = """
    import threading
    thread = threading.Thread(target=lambda: [][4711])
    thread.start()
    thread.join()
"""

HOOKS = {
    "rich": (RICH, MAIN, "logagg", ""),
    "rich in an interpreter of its own": ("""
    import subprocess, sys
    code = "import rich.traceback as r; r.install(); raise LookupError('no order')"
    subprocess.run([sys.executable, "-c", code])
    """, "", "logagg", ""),
    "rich, on demand": ("""
    from rich.console import Console
    try:
        raise LookupError("no order")
    except LookupError:
        Console(stderr=True).print_exception(show_locals=True)
    """, "", "stderr", ""),
    "traceback": (HOOK.replace("PRINT", "traceback.print_exception(error)"), MAIN, "logagg", ""),
    "a text before": (
        HOOK.replace("PRINT", "print('sorry:', file=sys.stderr); traceback.print_exception(error)"),
        MAIN, "logagg", "sorry:"),
    "a text after": (
        HOOK.replace("PRINT", "sys.__excepthook__(kind, error, trace); sys.stderr.write('bye')"),
        MAIN, "logagg", "bye"),
    "its text": (
        HOOK.replace("PRINT", "sys.stderr.write(''.join(traceback.format_exception(error)))"),
        MAIN, "logagg", ""),
    "no traceback": (HOOK.replace("PRINT", "print(type(error), file=sys.stderr)"),
        MAIN, "logagg", "<class 'LookupError'>"),
    "a record and its text": (
        HOOK.replace("PRINT", "sys.__excepthook__(kind, error, trace); "
        "logging.getLogger('shop').critical('crashed', exc_info=error)"), MAIN, "shop", ""),
    "a thread": (HOOK.replace("PRINT", "traceback.print_exception(error)"), THREAD, "logagg", ""),
    "a thread that ends the process": (
        HOOK.replace("PRINT", "traceback.print_exception(error); os._exit(3)"), THREAD, "logagg", ""),
    "a thread that kills the process": (
        HOOK.replace("PRINT", "traceback.print_exception(error); "
        "os.kill(os.getpid(), signal.SIGKILL)"), THREAD, "logagg", ""),
    "a thread with rich": (RICH.replace("FAIL", "import threading\n    "
        "threading.excepthook = lambda args: sys.excepthook(*args[:3])\n    import sys\n    FAIL"),
        THREAD, "logagg", ""),
}  # fmt: skip
"""By name: what sets a hook, what fails, the record's logger, the text that remains."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        n if n in ("rich", "a text after") else pytest.param(n, marks=pytest.mark.slow)
        for n in HOOKS
    ],
)
def test_an_exception_that_a_hook_gets_is_one_record(run: Any, name: str) -> None:
    """Whatever the hook does with it; its own text stays, without the exception."""
    set_up, fail, logger, text = HOOKS[name]
    fail = textwrap.dedent(fail)
    run.write("app.py", textwrap.dedent(set_up).replace("FAIL", fail))

    run.start("-w", 1, "--restart", "never", "app.py").wait(90)

    (found,) = [r for r in run.records() if "exception" in r]
    level = "error" if "thread" in name or "demand" in name else "critical"
    assert (found["level"], found["logger"]) == (level, logger)
    kind = "IndexError" if "thread" in name else "LookupError"
    assert found["exception"]["type"] == kind
    if fail is MAIN:
        assert found["exception"]["message"] == "no order\nof that number"
    others = [text] if text else []
    printed = [found["message"]] if logger == "stderr" else []
    assert run.messages(stream="stderr") == printed + others


PRINTING = """
    import json, logging, multiprocessing, os, subprocess, sys, traceback

    class Parts(logging.Handler):
        def emit(self, record):
            print(record.levelname, record.name, record.getMessage())
            if record.exc_info:
                traceback.print_exception(*record.exc_info)
            print("alert", os.getpid())

    class Whole(logging.Handler):
        def emit(self, record):
            sys.stderr.write(self.format(record) + "\\n")

    class Json(logging.Handler):
        def emit(self, record):
            print(json.dumps({"level": record.levelname, "msg": record.getMessage()}))

    def job(number):
        log = logging.getLogger("shop.pay")
        log.info("inf \\"%d\\"", number, extra={"order": number})
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("exc", extra={"order": number})

    def configure():
        logging.getLogger("shop").propagate = PROPAGATE
        logger = logging.getLogger("shop" if not PROPAGATE else None)
        logger.handlers[:] = [Parts(), Whole(), Json()]
        logger.setLevel("INFO")

    configure()
    if __name__ == "__main__":
        if sys.argv[1:]:
            job(3)
            sys.exit()
        print("before")
        job(0)
        for number, method in ((1, "fork"), (2, "spawn")):
            child = multiprocessing.get_context(method).Process(
                target=job, args=(number,))
            child.start(); child.join()
        subprocess.run([sys.executable, "app.py", "again"], check=True)
"""


@pytest.mark.parametrize("propagate", [True, False])
def test_what_a_handler_prints_by_itself_arrives_once(
    run: Any, propagate: bool
) -> None:
    """As the record, not as its text, in children too; other prints stay."""
    run.write("app.py", PRINTING.replace("PROPAGATE", str(propagate)))

    assert run.start("-w", 1, "--restart", "never", "app.py").wait(90) == 0

    records = [each for each in run.records() if each["logger"] != "logagg"]
    printed = [each for each in records if "stream" in each]
    assert printed.pop(0)["message"] == "before"
    assert [each["message"].split()[0] for each in printed] == ["alert"] * 8
    logged = [each for each in records if "stream" not in each]
    assert sorted((e["order"], e["level"], e["message"]) for e in logged) == [
        (number, level, text)
        for number in range(4)
        for level, text in (("error", "exc"), ("info", f'inf "{number}"'))
    ]
    failed = [each["exception"]["type"] for each in logged if "exception" in each]
    assert failed == ["ZeroDivisionError"] * 4


def test_a_handler_finds_the_caller_where_it_looks_for_it(run: Any) -> None:
    """loguru's recipe for records of logging walks the stack of a handler's call."""
    run.write(
        "app.py",
        """
        import logging, sys
        from loguru import logger

        class Intercept(logging.Handler):
            def emit(self, record):
                frame, depth = sys._getframe(0), 0
                while depth == 0 or frame.f_code.co_filename == logging.__file__:
                    frame, depth = frame.f_back, depth + 1
                at = logger.opt(depth=depth, exception=record.exc_info)
                at.log(record.levelname, record.getMessage())

        logger.remove()
        logger.add("own.txt", format="{name}|{function}|{message}")
        logging.basicConfig(handlers=[Intercept()], level="INFO")

        def pay():
            logging.warning("here")

        pay()
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    assert (run.directory / "own.txt").read_text() == "__main__|pay|here\n"
    assert told(run.records()) == [("warning", "root", "here", None, None)]


@pytest.mark.parametrize("captured", [False, True])
def test_a_warning_is_one_record(run: Any, captured: bool) -> None:
    """With its category and place; also through `logging`, and not if it is caught."""
    run.write(
        "app.py",
        f"""
        import logging, warnings
        logging.captureWarnings({captured})
        def old():
            warnings.warn("use\\n  new()", DeprecationWarning, stacklevel=2)
        old()
        warnings.warn("odd")
        with warnings.catch_warnings(record=True) as found:
            warnings.warn("seen")
        assert len(found) == 1
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    found = [each for each in run.records() if each["logger"] != "logagg"]
    places = [(each["category"], each["file"].endswith("app.py")) for each in found]
    assert [each["line"] for each in found] == [6, 7]
    assert places == [("DeprecationWarning", True), ("UserWarning", True)]
    assert [(each["logger"], each["level"], each["message"]) for each in found] == [
        ("py.warnings", "warning", "DeprecationWarning: use\n  new()"),
        ("py.warnings", "warning", "UserWarning: odd"),
    ]


def test_what_one_call_prints_is_one_record(run: Any) -> None:
    """A banner, a table; not lines that are records of their own, nor other calls."""
    run.write(
        "app.py",
        r"""
        import sys
        print("=====\n  Shop 1.0\n=====")
        sys.stderr.write("a | b\n--+--\n1 | 2\n")
        print("one")
        print("two")
        print("ERROR: bad\n  because")
        print("INFO: first\nERROR: second")
        print('{"level": "info", "msg": "third"}\n{"level": "error", "msg": "fourth"}')
        print("Traceback (most recent call last):\n  here\nValueError: a\nb")
        print('{\n  "level": "error",\n  "msg": "pretty"\n}')
        print("x" * 3000 + "\n" + "y" * 3000)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    found = [(r["level"], r["message"]) for r in run.records() if "stream" in r]
    assert sorted(found) == sorted(
        [
            ("info", "=====\n  Shop 1.0\n====="),
            ("warning", "a | b\n--+--\n1 | 2"),
            ("info", "one"),
            ("info", "two"),
            ("error", "ERROR: bad\n  because"),
            ("info", "INFO: first"),
            ("error", "ERROR: second"),
            ("info", "third"),
            ("error", "fourth"),
            ("error", "ValueError: a"),
            ("error", "pretty"),
            ("info", "x" * 3000),
            ("info", "y" * 3000),
        ]
    )


def test_records_that_are_queued_as_they_are_arrive_once(run: Any) -> None:
    """A program's own `QueueHandler` may leave out `prepare`, or copy nothing in it."""
    run.write(
        "app.py",
        """
        import logging, logging.handlers, queue

        class Direct(logging.handlers.QueueHandler):
            def emit(self, record):
                self.enqueue(record)

        class Same(logging.handlers.QueueHandler):
            def prepare(self, record):
                return record

        lines = queue.Queue()
        for name, kind in (("direct", Direct), ("same", Same)):
            log = logging.getLogger(name)
            log.addHandler(kind(lines))
            for number in range(3):
                log.warning("%s %d", name, number, extra={"order": number})
            log.propagate = False
            log.warning("alone")
        listener = logging.handlers.QueueListener(lines, logging.StreamHandler())
        listener.start()
        listener.stop()
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    found = [(each[1], each[2], each[3]) for each in told(run.records())]
    wanted = [(name, "alone", None) for name in ("direct", "same")]
    wanted += [(n, f"{n} {i}", i) for n in ("direct", "same") for i in range(3)]
    assert sorted(found, key=str) == sorted(wanted, key=str)


TEE = """
    import codecs, logging, sys, traceback, warnings
    class Tee:
        def __init__(self, *files):
            self.files = files
        def write(self, text):
            for each in self.files:
                each.write(text)
        def flush(self):
            for each in self.files:
                each.flush()
    class Passing(Tee):
        def __getattr__(self, name):
            return getattr(self.files[0], name)
    file = open("tee.txt", "a")
    sys.stderr = MADE
    LOG
    try:
        1 / 0
    except ZeroDivisionError:
        traceback.print_exc()
    warnings.warn("odd")
    sys.stderr.flush()
"""
BY_LOGGING = """
    logging.basicConfig(level="INFO", force=True, format="%(asctime)s %(message)s")
    logging.info("paid %d", 7, extra={"order": 7})
    logging.error("failed")
"""
BY_LOGURU = """
    from loguru import logger
    logger.remove()
    logger.add(sys.stderr)
    logger.bind(order=7).info("paid 7")
    logger.error("failed")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "library"),
    [
        ("Tee(sys.stderr, file)", "logging"),
        ("Passing(sys.stderr, file)", "logging"),
        ("codecs", "logging"),
        ("Passing(sys.stderr, file)", "loguru"),
    ],
)
def test_what_is_logged_on_a_stream_of_the_programs_own_arrives_once(
    run: Any, made: str, library: str
) -> None:
    """A tee, or a writer around the stream; its file has all that it has without logagg."""
    by = textwrap.dedent(BY_LOGGING if library == "logging" else BY_LOGURU)
    program = textwrap.dedent(TEE).replace("LOG\n", f"{by}\n")
    writer = 'codecs.getwriter("utf-8")(sys.stderr.buffer)'
    run.write("app.py", program.replace("MADE", writer if made == "codecs" else made))

    assert run.start("-w", 1, "app.py").wait(90) == 0

    found = [each for each in run.records() if each["logger"] != "logagg"]
    (warned,) = [each for each in found if "Warning" in each["message"]]
    said = [
        (each["level"], each["message"], each.get("order"))
        for each in found
        if each is not warned
    ]
    assert sorted(said, key=str) == sorted(
        [
            ("info", "paid 7", 7),
            ("error", "failed", None),
            ("error", "ZeroDivisionError: division by zero", None),
        ],
        key=str,
    )
    assert warned["level"] == "warning"
    assert "UserWarning: odd" in warned["message"]
    (traced,) = [each["exception"] for each in found if "exception" in each]
    assert traced["type"] == "ZeroDivisionError"
    if made != "codecs":
        text = (run.directory / "tee.txt").read_text()
        for part in ("paid 7\n", "failed\n", "Traceback (most", "UserWarning: odd\n"):
            assert text.count(part) == 1


def test_records_that_a_handler_holds_back_arrive_once(run: Any) -> None:
    """However often it gives them to a console handler; those of others as ever."""
    run.write(
        "app.py",
        """
        import logging

        class Holding(logging.Handler):
            def __init__(self, target):
                super().__init__()
                self.held, self.target = [], target
            def emit(self, record):
                self.held.append(record)
            def flush(self):
                for record in self.held:
                    self.target.handle(record)

        console = logging.StreamHandler()
        handlers = [Holding(console), Holding(console)]
        root = logging.getLogger()
        for each in handlers:
            root.addHandler(each)
        for number in range(3):
            logging.warning("held %d", number, extra={"order": number})
        for each in handlers:
            each.flush()
            each.flush()
        alone = logging.getLogger("alone")
        alone.propagate = False
        alone.addHandler(Holding(console))
        alone.warning("once")
        alone.handlers[0].flush()
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    found = [(each[2], each[3]) for each in told(run.records())]
    assert found == [("held 0", 0), ("held 1", 1), ("held 2", 2), ("once", None)]


def test_an_error_of_a_handler_is_one_record(run: Any) -> None:
    """With the exception and the place of the call; the record itself arrives too."""
    run.write(
        "app.py",
        """
        import logging

        class Broken(logging.Handler):
            def emit(self, record):
                try:
                    raise OSError("no connection")
                except OSError:
                    self.handleError(record)

        logging.basicConfig(handlers=[Broken()], level="INFO")
        logging.warning("paid %d", 7)
        logging.raiseExceptions = False
        logging.warning("paid %d", 8)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(90) == 0

    failed, *paid = [each for each in run.records() if each["logger"] != "logagg"]
    assert (failed["level"], failed["logger"]) == ("error", "logging")
    assert failed["message"] == "Broken failed: OSError: no connection"
    assert failed["exception"]["type"] == "OSError"
    assert (failed["failed_logger"], failed["failed_message"]) == ("root", "paid %d")
    assert (failed["file"].endswith("app.py"), failed["line"]) == (True, 12)
    assert [(e["logger"], e["message"]) for e in paid] == [
        ("root", "paid 7"), ("root", "paid 8"),
    ]  # fmt: skip


STACKS = """
    import json, logging, multiprocessing, sys, threading, traceback
    import structlog
    stacks = []
    class Stacks(logging.Handler):
        def emit(self, record):
            stacks.append(record.stack_info)
    logging.getLogger().addHandler(Stacks())
    structlog.configure(
        processors=[structlog.processors.StackInfoRenderer(),
                    lambda _, __, event: stacks.append(event["stack"]) or "shown"])
    def program(name):
        logging.getLogger("shop").warning("logged", stack_info=True)
        structlog.get_logger().info("x", stack_info=True)
        stacks.append("".join(traceback.format_stack()))
        stacks.append("".join(traceback.StackSummary.extract(
            traceback.walk_stack(None)).format()))
        open(sys.argv[1] + name, "w").write(json.dumps(stacks))
    if __name__ == "__main__":
        program("main")
        forked = multiprocessing.get_context("fork").Process(target=program, args=("fork",))
        thread = threading.Thread(target=program, args=("thread",))
        for each in (forked, thread):
            each.start()
            each.join()
"""


@pytest.mark.parametrize("words", [["app.py"], ["-m", "app"]])
def test_a_stack_is_that_of_the_program(run: Any, words: list[str]) -> None:
    """It begins where the one of plain Python does, in every way to ask for it."""
    run.write("app.py", STACKS)
    subprocess.run(
        [sys.executable, *words, "plain-"], cwd=run.directory, env=run.env, check=True
    )
    run.start("-w", 1, "--restart", "never", *words, "under-").wait()
    logged = [each["stack"] for each in run.records(message="logged")]
    for n, name in enumerate(("main", "fork", "thread")):
        plain = (run.directory / f"plain-{name}").read_text()
        assert (run.directory / f"under-{name}").read_text() == plain
        assert logged[n] in json.loads(plain)


def test_fields_that_a_console_handlers_filter_adds_arrive(run: Any) -> None:
    """Of a handler that is put on the root logger by hand; its level holds, too."""
    run.write(
        "app.py",
        """
        import logging
        class Request(logging.Filter):
            def filter(self, record):
                record.request = "r1"
                return True
        root = logging.getLogger()
        handler = logging.StreamHandler()
        handler.addFilter(Request())
        handler.setLevel("WARNING")
        root.addHandler(handler)
        logging.getLogger("shop").warning("with")
        logging.getLogger("shop").info("below its level")
        root.removeHandler(handler)
        logging.getLogger("shop").info("without")
        """,
    )
    run.start("-w", 1, "--restart", "never", "app.py").wait()
    found = [(r["message"], r.get("request")) for r in run.records(logger="shop")]
    assert found == [("with", "r1"), ("without", None)]
    assert run.records(stream="stderr") == []


def test_a_root_logger_that_is_cleared_has_what_the_program_puts_there(
    run: Any,
) -> None:
    """And nothing else, while records come as they do beside a file of the program's."""
    run.write(
        "app.py",
        """
        import io, logging
        root = logging.getLogger()
        root.handlers.clear()
        mine = logging.StreamHandler(io.StringIO())
        root.addHandler(mine)
        assert root.handlers == [mine], root.handlers
        logging.warning("for the buffer and the log")
        root.propagate = False
        logging.warning("again")
        root.handlers = [mine]
        root.propagate = True
        logging.warning("once more")
        assert root.handlers == [mine], root.handlers
        print(mine.stream.getvalue(), end="")
        """,
    )
    run.start("-w", 1, "--restart", "never", "app.py").wait()
    found = [(r["logger"], r["message"]) for r in run.records()]
    texts = ["for the buffer and the log", "again", "once more"]
    assert found == [*(("root", text) for text in texts), ("stdout", "\n".join(texts))]
