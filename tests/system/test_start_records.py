"""What the parent and the children of `logagg.start` log, however they set up logging."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import support

PROGRAM = """
    import logging, logging.config, multiprocessing, sys
    import logagg

    def configure():
        WAY

    def job(number):
        configure()
        logging.getLogger("shop.pay").info("child %d", number, extra={"order": number})

    if __name__ == "__main__":
        before = logging.basicConfig, logging.config.dictConfig
        with logagg.start("file:app.log"):
            logging.getLogger("shop.pay").warning("before")
            configure()
            configure()
            logging.getLogger("shop.pay").info("parent", extra={"order": 7})
            for number, method in enumerate(("fork", "spawn")):
                child = multiprocessing.get_context(method).Process(
                    target=job, args=(number,))
                child.start()
                child.join()
        assert (logging.basicConfig, logging.config.dictConfig) == before
        assert len(logging.getLogger().handlers) <= 1
"""

DICT = """
        logging.config.dictConfig({
            "version": 1, "disable_existing_loggers": False,
            "handlers": {"h": {"class": "HANDLER"}},
            "root": {"handlers": ["h"], "level": "INFO"}})
"""

WAYS = {
    "dictConfig": DICT.replace("HANDLER", "logging.StreamHandler"),
    "dictConfig with a handler": DICT.replace("HANDLER", "logagg.Handler"),
    "basicConfig": "logging.basicConfig(level='INFO')",
    "basicConfig, force": "logging.basicConfig(level='INFO', force=True)",
    "fileConfig": "logging.config.fileConfig("
    "'logging.ini', disable_existing_loggers=False)",
}

INI = """\
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys =
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
args = ()
"""


def told(path: Path) -> list[dict[str, Any]]:
    """The program's own records."""
    return [each for each in support.records(path) if not support.of_service(each)]


@pytest.mark.parametrize("way", WAYS)
def test_records_arrive_however_logging_is_set_up_inside(
    tmp_path: Path, way: str
) -> None:
    """Once, those of children too; what the program prints is printed as ever."""
    (tmp_path / "logging.ini").write_text(INI)
    lines = textwrap.dedent(WAYS[way]).strip().replace("\n", "\n    ")
    program = textwrap.dedent(PROGRAM).replace("WAY", lines)
    (tmp_path / "app.py").write_text(program)

    done = support.finish([sys.executable, "app.py"], cwd=tmp_path, timeout=90)

    found = told(tmp_path / "app.log")
    assert Counter((e["message"], e.get("order")) for e in found) == {
        ("before", None): 1, ("parent", 7): 1, ("child 0", 0): 1, ("child 1", 1): 1,
    }  # fmt: skip
    parent = [e["seq"] for e in found if e["message"] in ("before", "parent")]
    assert parent == [1, 2]
    if way != "dictConfig with a handler":
        assert [done.stderr.count(each) for each in ("parent", "child 0", "child 1")] == [
            1, 1, 1,
        ]  # fmt: skip


QUEUED = """
    import logging, logging.handlers, multiprocessing, queue, sys, threading
    import logagg

    def log(number):
        shop = logging.getLogger("shop.pay")
        shop.info("inf %d", number, extra={"order": number})
        try:
            1 / 0
        except ZeroDivisionError:
            shop.exception("exc %d", number, extra={"order": number})

    def child(queue, number):
        root = logging.getLogger()
        root.addHandler(logging.handlers.QueueHandler(queue))
        root.setLevel("INFO")
        log(number)

    def main():
        lines = multiprocessing.get_context("spawn").Queue()
        HANDLER
        logger = logging.getLogger(LOGGER)
        logger.setLevel("INFO")
        logger.propagate = False
        logger.addHandler(logging.handlers.QueueHandler(lines))
        own = logging.FileHandler("own.txt")
        own.setFormatter(logging.Formatter("%(levelname)s|%(message)s"))
        listener = logging.handlers.QueueListener(lines, handler, own)
        listener.start()
        log(0)
        for number, method in enumerate(CHILDREN, 1):
            target = multiprocessing.get_context(method).Process(
                target=child, args=(lines, number))
            target.start()
            target.join()
        listener.stop()

    if __name__ == "__main__":
        START:
            main()
"""

WAYS_TO_QUEUE = {
    "start, root, console": ("root", "StreamHandler()", "start", 2),
    "start, root, our handler": ("root", "Handler()", "start", 2),
    "start, a logger alone, our handler": ("shop", "Handler()", "start", 0),
    "run, root, console": ("root", "StreamHandler()", "run", 2),
    "run, a logger alone, console": ("shop", "StreamHandler()", "run", 2),
    "handler, root": ("root", "Handler('app.log')", "handler", 0),
}
"""By name: the logger, the listener's handler, the way to log, how many children."""


@pytest.mark.parametrize("way", WAYS_TO_QUEUE)
def test_records_of_a_queue_handler_arrive_once_and_whole(
    tmp_path: Path, way: str
) -> None:
    """From the program and its children, with level, fields and exception."""
    logger, handler, how, children = WAYS_TO_QUEUE[way]
    module = "logagg" if handler.startswith("Handler") else "logging"
    start = "with logagg.start('file:app.log')" if how == "start" else "if True"
    program = (
        QUEUED.replace("HANDLER", f"handler = {module}.{handler}")
        .replace("LOGGER", "None" if logger == "root" else repr(logger))
        .replace("CHILDREN", repr(("fork", "spawn")[:children]))
        .replace("START", start)
    )
    (tmp_path / "app.py").write_text(textwrap.dedent(program))
    command = [sys.executable, "app.py"]
    if how == "run":
        run = "-m logagg run -w 1 --restart never --sink file:app.log app.py"
        command = [sys.executable, *run.split()]

    support.finish(command, cwd=tmp_path, timeout=90)

    found = told(tmp_path / "app.log")
    assert Counter(
        (e["level"], e["message"], e.get("order")) for e in found
    ) == Counter(
        (level, f"{text} {number}", number)
        for number in range(children + 1)
        for level, text in (("info", "inf"), ("error", "exc"))
    )
    failed = [each["exception"] for each in found if each["level"] == "error"]
    assert {each["type"] for each in failed} == {"ZeroDivisionError"}
    assert {each["message"] for each in failed} == {"division by zero"}
    assert all("Traceback" in each["stack"] for each in failed)
    own = (tmp_path / "own.txt").read_text()
    assert own.count("INFO|inf 0\n") == own.count("ERROR|exc 0\nTraceback") == 1


def test_what_a_memory_handler_passes_on_arrives_once(tmp_path: Path) -> None:
    """It reaches the log itself, however late."""
    program = """
import logging, logging.config, logging.handlers
import logagg
with logagg.start("file:app.log"):
    logging.config.dictConfig({
        "version": 1,
        "handlers": {
            "own": {"class": "logagg.Handler"},
            "buffer": {
                "class": "logging.handlers.MemoryHandler",
                "capacity": 100, "target": "own"}},
        "root": {"handlers": ["buffer"], "level": "INFO"}})
    for number in range(3):
        logging.info("n%d", number)
    logging.getLogger().handlers[0].flush()
"""
    support.finish([sys.executable, "-c", program], cwd=tmp_path)
    support.settled()
    found = told(tmp_path / "app.log")
    assert [each["message"] for each in found] == ["n0", "n1", "n2"]


def test_what_a_memory_handler_beside_the_roots_passes_on_arrives_once(
    tmp_path: Path,
) -> None:
    """The root logger's handler has sent it; what it cannot send is passed on."""
    program = """
import logging, logging.handlers
import logagg
with logagg.start("file:app.log"):
    logging.getLogger().setLevel("INFO")
    buffer = logging.handlers.MemoryHandler(100, target=logagg.Handler())
    logging.getLogger().addHandler(buffer)
    alone = logging.getLogger("alone")
    alone.addHandler(buffer)
    alone.propagate = False
    for number in range(3):
        logging.info("n%d", number)
        alone.info("a%d", number)
    buffer.flush()
    buffer.flush()
"""
    support.finish([sys.executable, "-c", program], cwd=tmp_path)
    support.settled()
    found = told(tmp_path / "app.log")
    assert [each["message"] for each in found] == ["n0", "n1", "n2", "a0", "a1", "a2"]


def test_a_handler_that_is_taken_off_by_hand_stays_off(tmp_path: Path) -> None:
    """That is what the program wants; a set-up of logging afterwards changes nothing."""
    program = """
        import logging, logagg
        with logagg.start("file:app.log"):
            logging.warning("before")
            logging.getLogger().handlers.clear()
            logging.basicConfig(level="INFO", force=True)
            assert len(logging.getLogger().handlers) == 1
            logging.warning("after")
    """
    support.python(textwrap.dedent(program), cwd=tmp_path)

    assert [each["message"] for each in told(tmp_path / "app.log")] == ["before"]


def test_starts_may_be_nested_and_leave_logging_as_it_was(tmp_path: Path) -> None:
    """The inner one adds nothing; a later one works as the first."""
    program = """
        import logging, logging.config, logging.handlers, logagg

        def state():
            kind = logging.handlers.QueueHandler
            return (logging.basicConfig, logging.config.dictConfig, kind.prepare,
                    kind.enqueue, vars(kind).get("__init_subclass__"),
                    logging.getLogger().handlers[:])

        before = state()
        with logagg.start("file:app.log"):
            logging.warning("one")
            with logagg.start("file:inner.log"):
                logging.warning("two")
            logging.warning("three")
        assert state() == before
        with logagg.start("file:app.log"):
            logging.warning("four")
        assert state() == before
    """
    support.python(textwrap.dedent(program), cwd=tmp_path)

    found = [each["message"] for each in told(tmp_path / "app.log")]
    assert found == ["one", "two", "three", "four"]
