"""loguru through `logagg.loguru.sink` and through a `logagg.Handler`: the same record."""

import logging
import threading
import time

import pytest

import logagg
import logagg.loguru
from logagg.client.transport import Transport

loguru = pytest.importorskip("loguru")

VARYING = ("timestamp", "seq", "received", "line", "exception")


@pytest.fixture
def logger():
    """loguru's logger without sinks."""
    loguru.logger.remove()
    yield loguru.logger
    loguru.logger.remove()
    logagg.loguru._default.clear()


def log_everything(logger):
    """Each thing that a call of loguru's can bring along."""
    logger.bind(order=7, name="n").info("inf {}", 1)
    with logger.contextualize(request="r-1"):
        logger.success("good")
        try:
            1 / 0  # noqa: B018 - raises
        except ZeroDivisionError:
            logger.exception("exc")
    logger.trace("below")


def test_a_handler_gives_the_same_record_as_the_sink(logger, shared):
    """Fields flat, the bare message, the exception structured, loguru's own levels."""
    found = []
    for sink in (logagg.loguru.sink, logagg.Handler()):
        number = logger.add(sink, level="DEBUG", format="{time} | {message}")
        shared.mark()
        log_everything(logger)
        found.append(shared.records())
        logger.remove(number)

    by_sink, by_handler = found
    assert [each["message"] for each in by_handler] == ["inf 1", "good", "exc"]
    assert [each["level"] for each in by_handler] == ["info", "success", "error"]
    assert (by_handler[0]["order"], by_handler[0]["name_"]) == (7, "n")
    assert [each.get("request") for each in by_handler] == [None, "r-1", "r-1"]
    assert by_handler[2]["exception"]["type"] == "ZeroDivisionError"
    assert by_handler[2]["exception"]["stack"].startswith("Traceback")
    for one, other in zip(by_sink, by_handler, strict=True):
        assert list(one) == list(other)
        for name in set(one).difference(VARYING):
            assert one[name] == other[name], name


def test_loguru_does_not_wait_for_the_consumer(logger, shared, monkeypatch):
    """It calls `flush` after each write; the caller's own `flush` waits as ever."""
    waited = []
    flush = Transport.flush
    monkeypatch.setattr(
        Transport, "flush", lambda *a: waited.append(time.monotonic()) or flush(*a)
    )
    handler = logagg.Handler()
    logger.add(handler, format="{message}")

    threads = [
        threading.Thread(target=lambda: [logger.info("x") for _ in range(50)])
        for _ in range(3)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    logger.info("last")

    assert waited == []
    assert handler._written == set()
    assert handler.flush() is True
    assert len(waited) == 1
    assert len(shared.records()) == 151


def test_level_of_the_handler_and_removal_are_obeyed(logger, shared):
    """`logger.remove` closes the handler, as it does with handlers of logging."""
    handler = logagg.Handler(level="WARNING")
    number = logger.add(handler)
    logger.info("below")
    logger.warning("not below")
    logger.remove(number)

    assert [each["message"] for each in shared.records()] == ["not below"]
    assert not handler._open


@pytest.mark.parametrize("way", ["sink", "handler"])
@pytest.mark.parametrize("beside", ["nothing", "before", "after"])
def test_what_logging_gives_to_loguru_is_one_record_with_its_fields(
    logger, log, shared, way, beside
):
    """By the recipe of loguru's manual; a handler of logagg may stand beside it."""

    class InterceptHandler(logging.Handler):
        def emit(self, record):
            frame, depth = logging.currentframe(), 2
            while frame and frame.f_code.co_filename == logging.__file__:
                frame, depth = frame.f_back, depth + 1
            chosen = logger.opt(depth=depth, exception=record.exc_info)
            chosen.log(record.levelname, record.getMessage())

    own, handler = log
    logger.add(logagg.loguru.sink if way == "sink" else logagg.Handler())
    own.handlers[:] = {
        "nothing": [InterceptHandler()],
        "before": [handler, InterceptHandler()],
        "after": [InterceptHandler(), handler],
    }[beside]
    for _ in range(2):
        own.warning("paid %d", 7, extra={"order": 7, "password": "hunter2"})
    try:
        raise ValueError("odd")
    except ValueError:
        own.exception("failed")
    logger.bind(order=8).info("by loguru")

    *paid, failed, last = shared.records()
    assert [(each["message"], each["order"]) for each in paid] == [("paid 7", 7)] * 2
    for each in (*paid, failed):
        assert each["logger"] == own.name
    assert failed["exception"]["message"] == "odd"
    assert (last["message"], last["order"]) == ("by loguru", 8)
    assert last["logger"] == __name__
    assert "hunter2" not in str(paid)


def test_what_loguru_passes_on_to_logging_has_its_fields(logger, log, shared, tmp_path):
    """`PropagateHandler` of its manual; other handlers get the text that loguru made."""

    class PropagateHandler(logging.Handler):
        def emit(self, record):
            own.handle(record)

    own, _ = log
    file = logging.FileHandler(tmp_path / "own.txt")
    file.setFormatter(logging.Formatter("%(levelname)s %(extra)s %(message)s"))
    own.addHandler(file)
    logger.add(PropagateHandler(), format="{message}")
    logger.bind(order=7, message="m", extra="e").info(
        "paid {}", "x", password="hunter2"
    )
    token = "hunter2"
    try:
        [][len(token)]
    except IndexError:
        logger.bind(order=8).exception("failed")
    own.removeHandler(file)
    file.close()

    paid, failed = shared.records()
    assert (paid["message"], paid["order"], paid["password"]) == (
        "paid x",
        7,
        "[redacted]",
    )
    assert (paid["message_"], paid["extra"]) == ("m", "e")
    assert (failed["message"], failed["order"]) == ("failed", 8)
    assert failed["exception"]["type"] == "IndexError"
    assert "hunter2" not in str((paid, failed))
    assert not [name for name in failed if name.startswith("extra")]
    text = (tmp_path / "own.txt").read_text()
    assert text.startswith("INFO {'order': 7, 'message': 'm'")
    assert "paid x\n" in text
    assert "hunter2" in text  # as loguru shows variables
