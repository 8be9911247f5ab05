"""The handler as the standard library's users know handlers: its contract.

All of it runs against a real consumer; what counts is what stands in the file.
"""

import asyncio
import builtins
import gc
import json
import logging
import sys
import threading
import warnings

import pytest
import support

import logagg
from logagg.core.record import RESERVED
from logagg.errors import ConfigError


def test_a_record_has_the_documented_fields_in_their_order(log, shared):
    """The first fields are always the same, so that people can read raw lines."""
    logger, _ = log

    logger.info("hello %s", "world", extra={"user": 7})

    found = shared.record()
    assert list(found) == [
        "timestamp", "level", "worker", "seq", "logger", "message", "pid", "process",
        "thread", "user", "received",
    ]  # fmt: skip
    import os

    assert found["level"] == "info"
    assert found["worker"] == str(os.getpid())
    assert found["seq"] == 1
    assert found["logger"] == logger.name
    assert found["message"] == "hello world"
    assert found["pid"] == os.getpid()
    assert found["process"] == "MainProcess"
    assert found["thread"] == "MainThread"
    assert found["user"] == 7
    assert found["timestamp"] < found["received"]


def test_every_call_has_the_next_seq_and_a_later_stamp(log, shared):
    """Within a process numbers and times rise strictly, over all threads."""
    logger, _ = log

    def work():
        for _ in range(500):
            logger.info("x")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    found = shared.records()
    assert [each["seq"] for each in found] == list(range(1, 2001))
    stamps = [each["timestamp"] for each in found]
    assert stamps == sorted(set(stamps))
    assert {each["thread"] for each in found} == {each.name for each in threads}


@pytest.mark.parametrize("name", ["debug", "info", "warning", "error", "critical"])
def test_the_five_levels_have_their_names_and_no_number(log, shared, name):
    """A standard level is its name in lower case."""
    logger, _ = log

    getattr(logger, name)("x")

    found = shared.record()
    assert found["level"] == name
    assert "level_number" not in found


def test_a_custom_level_has_its_name_and_number(log, shared):
    """Levels of the application keep both, named or not."""
    logger, _ = log
    logging.addLevelName(15, "VERBOSE")

    logger.log(15, "named")
    logger.log(17, "unnamed")

    one, two = shared.records()
    assert (one["level"], one["level_number"]) == ("verbose", 15)
    assert (two["level"], two["level_number"]) == ("level 17", 17)


@pytest.mark.parametrize("name", ["\x1b[1;31mERROR\x1b[0m", "[ERROR]", "ERROR   "])
def test_a_level_whose_name_is_decorated_is_that_level(log, shared, name):
    """By `addLevelName`, or by a formatter that another handler has."""
    logger, _ = log
    logging.addLevelName(40, name)
    try:
        logger.error("x")
    finally:
        logging.addLevelName(40, "ERROR")

    found = shared.record()
    assert found["level"] == "error"
    assert "level_number" not in found


def test_a_level_renamed_by_the_user_keeps_its_number(log, shared):
    """`addLevelName(30, "WARN")` shows as warn, and is still a warning by number."""
    logger, _ = log
    logging.addLevelName(30, "WARN")
    try:
        logger.warning("x")
    finally:
        logging.addLevelName(30, "WARNING")

    found = shared.record()
    assert (found["level"], found["level_number"]) == ("warn", 30)


@pytest.mark.parametrize("level", ['a"b', "a\\b", "a\nb", "é" * 100, "", "\udcff"])
def test_no_name_of_a_level_can_damage_a_line(log, shared, level):
    """A level's name may be anything; the line stays one line of JSON."""
    logger, _ = log
    record = logger.makeRecord("n", 33, "f", 1, "m", (), None)
    record.levelname = level

    logger.handle(record)

    assert shared.record()["level_number"] == 33


def test_level_of_handler_and_logger_are_decided_in_the_worker(log, shared):
    """What is not enabled is not sent."""
    logger, handler = log
    handler.setLevel("WARNING")
    logger.info("no")
    logger.warning("yes")
    logger.setLevel("ERROR")
    assert not logger.isEnabledFor(logging.WARNING)
    logger.warning("no")

    assert shared.record()["message"] == "yes"


def test_filters_decide_and_may_add_fields(log, shared):
    """A handler's filters see the record first; what they set is sent."""
    logger, handler = log

    def keep(record):
        record.tenant = "t1"
        return "no" not in record.getMessage()

    handler.addFilter(keep)
    logger.info("no")
    logger.info("yes")
    handler.removeFilter(keep)
    logger.info("no filter")

    one, two = shared.records()
    assert (one["message"], one["tenant"]) == ("yes", "t1")
    assert two["message"] == "no filter"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12")
def test_a_filter_may_return_another_record(log, shared):
    """The record that a filter returns is the one that is sent."""
    logger, handler = log

    def replace(record):
        return logging.makeLogRecord({**record.__dict__, "msg": "other"})

    handler.addFilter(replace)
    logger.info("original")

    assert shared.record()["message"] == "other"


def test_a_logging_filter_object_works(log, shared):
    """`logging.Filter(name)` selects by logger as everywhere."""
    logger, handler = log
    handler.addFilter(logging.Filter(logger.name + ".a"))

    logger.getChild("a").info("yes")
    logger.getChild("b").info("no")

    assert shared.record()["logger"] == logger.name + ".a"


def test_the_record_is_never_changed(log, shared):
    """Other handlers find the record as logging made it."""
    logger, handler = log
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    seen = []

    class Spy(logging.Handler):
        def emit(self, record):
            seen.append(dict(record.__dict__))

    before, after = Spy(), Spy()
    logger.handlers.insert(0, before)
    logger.addHandler(after)
    try:
        try:
            raise ValueError("x")
        except ValueError:
            logger.exception("%s", {"a": 1}, stack_info=True, extra={"k": "\udcff"})
    finally:
        logger.removeHandler(before)
        logger.removeHandler(after)

    assert seen[0] == seen[1]
    assert seen[1]["exc_text"] is None
    assert len(shared.records()) == 1


def test_another_handlers_traceback_style_does_not_leak(log, shared):
    """The text that another formatter cached on the record is not taken over."""
    logger, _ = log

    class Short(logging.Formatter):
        def formatException(self, info):  # noqa: N802 - logging's name
            return "short!"

    other = logging.StreamHandler(open("/dev/null", "w"))  # noqa: SIM115
    other.setFormatter(Short())
    logger.handlers.insert(0, other)
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("failed")
    finally:
        logger.removeHandler(other)
        other.stream.close()

    assert "Traceback" in shared.record()["exception"]["stack"]


class Unprintable:
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("%d apples", ("three",)),
        ("%s %s", ("one",)),
        ("no place", ("extra",)),
        ("%s", (Unprintable(),)),
        (Unprintable(), ()),
        ("%(name)s", ({"other": 1},)),
        ("%", ("x",)),
    ],
)
def test_a_call_that_cannot_be_formatted_is_sent_all_the_same(
    log, shared, capsys, message, args
):
    """The text and the arguments arrive apart, with what went wrong; nothing raises."""
    logger, _ = log

    logger.info(message, *args)

    found = shared.record()
    assert "format_error" in found
    if args:
        assert "args" in found
    assert capsys.readouterr().err == ""


def test_what_goes_wrong_in_emit_goes_to_handle_error(log, capsys, monkeypatch):
    """`logging.raiseExceptions` decides whether it is shown; it is never raised."""
    logger, handler = log

    class Nasty(logging.LogRecord):
        @property
        def name(self):
            raise RuntimeError("nasty record")

        @name.setter
        def name(self, value):
            pass

    record = Nasty("n", 20, "f", 1, "m", (), None)
    handler.handle(record)
    assert "nasty record" in capsys.readouterr().err
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler.handle(record)

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_passes_through(log, kind):
    """Ctrl-C during a log call is not swallowed, and the handler still works."""
    logger, _ = log

    class Stop:
        def __str__(self):
            raise kind

    with pytest.raises(kind):
        logger.info("%s", Stop())
    logger.info("goes on")


def test_a_dictionary_as_message_becomes_fields(log, shared):
    """`logger.info({...})` is structured: its event is the message."""
    logger, _ = log

    logger.info({"event": "login", "user": 7, "level": "clash"})
    logger.info({"no": "text"})

    one, two = shared.records()
    assert (one["message"], one["user"]) == ("login", 7)
    assert one["level"] == "info"
    assert one["level_"] == "clash"
    assert (two["message"], two["no"]) == ("", "text")


def test_any_object_may_be_the_message(log, shared):
    """Exceptions, numbers, None and bytes are logged by people; all arrive as text."""
    logger, _ = log

    for message in (ValueError("boom"), 7, None, b"\xff", ["a"], object):
        logger.info(message)

    found = [each["message"] for each in shared.records()]
    assert found[:3] == ["boom", "7", "None"]
    assert len(found) == 6
    assert all(type(text) is str for text in found)


def test_a_mapping_as_argument_formats_by_name(log, shared):
    """`%(key)s` with one dictionary works as in logging."""
    logger, _ = log

    logger.info("%(who)s did it", {"who": "I"})

    assert shared.record()["message"] == "I did it"


def test_clashing_names_are_kept_under_others(log, shared):
    """An extra that has a name of ours gets underscores; ours stays."""
    logger, _ = log
    own = ["timestamp", "level", "worker", "seq", "logger", "pid", "received", "late"]

    logger.info("x", extra=dict.fromkeys(own, "mine") | {"level_": "also"})

    found = shared.record()
    assert found["level"] == "info"
    assert found["logger"] == logger.name
    mine = [name for name, value in found.items() if value == "mine"]
    assert len(mine) == len(own)
    assert "also" in found.values()


def _by_extra(logger, _, fields):
    taken = ("process", "thread")  # logging refuses these
    logger.info("x", extra={n: fields[n] for n in fields if n not in taken})
    logger.info("x", extra={f"{n}_": fields[n] for n in taken})


def _by_mapping(logger, _, fields):
    logger.info({"event": "x", **fields})


def _by_formatter(logger, handler, fields):
    class Formatter(logging.Formatter):
        def format(self, record):
            return json.dumps({"message": record.getMessage(), **fields})

    handler.setFormatter(Formatter())
    logger.info("x")


def _by_contextvars(logger, _, fields):
    structlog = pytest.importorskip("structlog")
    with structlog.contextvars.bound_contextvars(**fields):
        logger.info("x")


def _by_loguru(_logger, handler, fields):
    loguru = pytest.importorskip("loguru").logger
    number = loguru.add(handler, format="{message}")
    loguru.bind(**fields).info("x")
    loguru.remove(number)


def _by_structlog(_logger, _, fields):
    import logagg.structlog

    found = logagg.structlog.LoggerFactory()("test")
    found.info(
        {"event": "x", **fields, "logger": "test"}
    )  # that is its own name for it
    found.info({"event": "x", "logger_": fields["logger"]})


@pytest.mark.parametrize(
    "way",
    [_by_extra, _by_mapping, _by_formatter, _by_contextvars, _by_loguru, _by_structlog],
)
def test_every_field_named_as_one_of_the_services_keeps_its_value(log, shared, way):
    """Whichever way it came; under another name, and what the service sets stays."""
    own = sorted(RESERVED - {"message", "exception", "stack"})
    fields = {name: f"my {name}" for name in own}
    fields |= {f"{name}_": f"my other {name}" for name in own}

    way(*log, fields)

    found = shared.records()
    values = [value for record in found for value in record.values()]
    assert set(fields.values()) <= set(values)
    for record in found:
        assert not set(own) & {n for n, v in record.items() if str(v).startswith("my ")}


def test_keys_of_any_kind_are_kept(log, shared):
    """Non-string and odd keys of `extra` arrive as text."""
    logger, _ = log

    logger.info("x", extra={1: "one", None: "none", "\udcff": "bad", 'a"\n': "q"})

    found = shared.record()
    assert (found["1"], found["None"]) == ("one", "none")
    assert found["\\udcff"] == "bad"
    assert found['a"\n'] == "q"


def test_nothing_in_a_record_can_forge_another(log, shared):
    """Newlines and quotes anywhere leave one line, with the original text in it."""
    logger, _ = log
    forged = 'x\r\n{"forged":1}\n\x1b[2J\u2028\x85'

    def work():
        logger.getChild(forged).info(forged, extra={"value": forged, forged: 1})

    thread = threading.Thread(target=work, name=forged)
    thread.start()
    thread.join()

    found = shared.record()
    assert found["message"] == found["value"] == found["thread"] == forged
    assert found["logger"].endswith(forged)
    assert found[forged] == 1


def test_a_logger_adapter_adds_its_fields(log, shared):
    """`LoggerAdapter` works as with every handler."""
    logger, _ = log

    logging.LoggerAdapter(logger, {"request": "r1"}).info("x")

    assert shared.record()["request"] == "r1"


SECRET = json.dumps({"order": 7, "password": "hunter2"})
WHOLE = {
    "the message": (SECRET,),
    "an argument": ("%s", SECRET),
    "of arguments": ('{"password": "%s"}', "hunter2"),
    "in two arguments": ("%s%s", '{"password": ', '"hunter2"}'),
    "a list": (f"[{SECRET}]",),
    "a list as an argument": ("%s", f"[{SECRET}]"),
    "with an end of line": (SECRET + "\n",),
    "NaN and a large integer": (
        f'{{"a": NaN, "n": {2**80}, "pin": {{}}, "token": "hunter2"}}',
    ),
    "an object": (None,),
}
"""Messages that are JSON as a whole, with a secret in it."""


@pytest.mark.parametrize("form", [None, "%(levelname)s %(message)s", "json"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_message_that_is_json_has_no_secret_in_it(log, shared, name, form):
    """With and without a formatter; what is no secret stays, and so does the text."""
    logger, handler = log
    if form is not None:
        if form == "json":
            formatter = pytest.importorskip("pythonjsonlogger.json").JsonFormatter()
        else:
            formatter = logging.Formatter(form)
        handler.setFormatter(formatter)
    message, *arguments = WHOLE[name]
    if name == "an object":

        class Request:
            def __str__(self):
                return SECRET

        message = Request()
    try:
        logger.info(message, *arguments)
        logger.info('{"order":  7}')
    finally:
        handler.setFormatter(None)

    found, other = shared.records()
    assert "hunter2" not in str(found)
    assert "[redacted]" in found["message"]
    assert other["message"].endswith('{"order":  7}')


def test_a_message_of_json_is_left_alone_without_redaction(shared):
    """`redact=False` is the caller's word."""
    handler = logagg.Handler(redact=False)
    logger = logging.getLogger("json")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        logger.warning(SECRET)
        logger.warning("%s", SECRET)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        handler.close()

    assert [each["message"] for each in shared.records()] == [SECRET, SECRET]


def test_a_stack_that_structlog_has_found_is_the_stack(log, shared):
    """`StackInfoRenderer` has it under that name; a value of the caller's own does not."""
    logger, _ = log
    stack = "Stack (most recent call last):\n  File ..."
    logger.info("by structlog", extra={"stack": stack})
    logger.info("own", extra={"stack": ["a"]})
    logger.info("both", extra={"stack": "mine"}, stack_info=True)
    logger.info("twice", extra={"stack": stack}, stack_info=True)

    found, own, both, twice = shared.records()
    assert (found["stack"], own["stack_"], both["stack_"]) == (stack, ["a"], "mine")
    assert "stack" not in own
    assert both["stack"].startswith("Stack (most recent call last):")
    assert twice["stack_"] == stack
    assert twice["stack"] != stack


def test_stack_info_is_a_field(log, shared):
    """`stack_info=True` sends the stack, apart from the message."""
    logger, _ = log

    logger.info("here", stack_info=True)

    found = shared.record()
    assert found["message"] == "here"
    assert found["stack"].startswith("Stack (most recent call last)")
    assert "test_stack_info_is_a_field" in found["stack"]


def test_an_exception_is_sent_in_parts(log, shared):
    """The message stays one line; type, message, stack, notes and cause are apart."""
    logger, _ = log

    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            second = ValueError("second")
            second.add_note("a note")
            raise second from error
    except ValueError:
        logger.exception("it failed")

    found = shared.record()
    assert found["message"] == "it failed"
    assert found["level"] == "error"
    exception = found["exception"]
    assert exception["type"] == "ValueError"
    assert exception["message"] == "second"
    assert exception["notes"] == ["a note"]
    assert exception["cause"]["type"] == "KeyError"
    assert exception["stack"].count("Traceback (most recent call last)") == 2
    assert exception["stack"].endswith("a note")


def test_an_exception_may_be_given_in_every_form(log, shared):
    """`exc_info` takes True, an exception or a triple; True without one is nothing."""
    logger, _ = log
    try:
        raise ValueError("x")
    except ValueError as caught:
        error = caught
        logger.error("a", exc_info=True)
    logger.error("b", exc_info=error)
    logger.error("c", exc_info=(type(error), error, error.__traceback__))
    logger.error("d", exc_info=True)

    found = shared.records()
    kinds = [each.get("exception", {}).get("type") for each in found]
    assert kinds == ["ValueError", "ValueError", "ValueError", None]


def test_location_is_sent_on_request(shared):
    """`location=True` adds file, line and function, with `stacklevel` obeyed."""
    handler = logagg.Handler(location=True)
    logger = logging.Logger("located")
    logger.addHandler(handler)

    def helper():
        logger.info("x", stacklevel=2)

    helper()

    found = shared.record()
    assert found["file"] == __file__
    assert found["function"] == "test_location_is_sent_on_request"
    assert found["line"] > 0
    handler.close()


def test_the_task_of_asyncio_is_named_where_python_names_it(log, shared):
    """`taskName` (3.12+) arrives as `task_name`."""
    import asyncio

    logger, _ = log

    async def work():
        task = asyncio.current_task()
        assert task is not None
        task.set_name("my-task")
        logger.info("x")

    asyncio.run(work())

    found = shared.record()
    if sys.version_info >= (3, 12):
        assert found["task_name"] == "my-task"
    assert "taskName" not in found


def test_a_record_of_another_factory_is_sent_with_its_fields(log, shared):
    """Custom record factories are in use; their attributes are extras."""
    logger, _ = log
    original = logging.getLogRecordFactory()

    class Record(logging.LogRecord):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.tenant = "t1"

    logging.setLogRecordFactory(Record)
    try:
        logger.info("x")
    finally:
        logging.setLogRecordFactory(original)

    assert shared.record()["tenant"] == "t1"


def test_one_handler_at_two_loggers_writes_a_record_once(log, shared):
    """A record that reaches the consumer twice by propagation is one line."""
    logger, handler = log
    child = logger.getChild("child")
    child.addHandler(handler)
    try:
        child.info("once")
        child.info("once")
    finally:
        child.removeHandler(handler)

    assert len(shared.records()) == 2


def test_a_record_that_logs_another_while_it_is_read_is_sent_once(log, shared):
    """Both reach two handlers; each is one line."""
    logger, handler = log

    class Talkative:
        def __str__(self):
            logger.info("inner")
            return "outer"

    child = logger.getChild("child")
    child.addHandler(handler)
    try:
        child.info("%s", Talkative())
    finally:
        child.removeHandler(handler)

    # The text is made for each handler, and each time it logs.
    messages = [found["message"] for found in shared.records()]
    assert messages.count("outer") == 1
    assert messages[:2] == ["inner", "outer"]


def test_a_message_of_very_many_fields_is_cut(log, shared):
    """A dictionary as the message, or as extras: 10,000 fields at most, and a mark."""
    logger, _ = log
    many = {f"f{n}": n for n in range(12_000)}

    logger.info({"event": "x", **many})
    logger.info("x", extra=many)

    for found in shared.records():
        assert 9_800 < len(found) < 10_100
        assert int(found["truncated_fields"]) >= 2_000


def test_equal_records_are_not_taken_for_one(log, shared):
    """The same text in a tight loop, from a reused record object too, all arrives."""
    logger, _ = log
    for _ in range(2000):
        logger.info("same")

    assert len(shared.records()) == 2000


def test_a_replayed_record_object_is_sent_each_time(log, shared):
    """Handing the same record over again on purpose sends it again."""
    logger, _ = log
    one = logger.makeRecord("n", 20, "f", 1, "one", (), None)
    two = logger.makeRecord("n", 20, "f", 1, "two", (), None)

    for record in (one, two, one, two):
        logger.handle(record)

    assert [each["message"] for each in shared.records()] == ["one", "two"] * 2


def test_warnings_are_captured(shared):
    """`logging.captureWarnings` sends warnings as records of py.warnings."""
    handler = logagg.Handler()
    logger = logging.getLogger("py.warnings")
    logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("look out", UserWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)

    found = shared.record()
    assert found["logger"] == "py.warnings"
    assert found["level"] == "warning"
    assert "look out" in found["message"]
    handler.close()


# ---- time ------------------------------------------------------------------------------


def test_a_frozen_clock_does_not_disturb_the_order(log, shared):
    """freezegun freezes `created`; stamps go on, and the frozen time is kept."""
    import freezegun

    logger, _ = log
    logger.info("before")
    with freezegun.freeze_time("2001-02-03T04:05:06Z"):
        logger.info("frozen")
        logger.info("frozen")
    logger.info("after")

    found = shared.records()
    stamps = [each["timestamp"] for each in found]
    assert stamps == sorted(set(stamps))
    assert stamps[1] > "2020"
    assert "created" not in found[0]
    assert found[1]["created"].startswith("2001-02-03T04:05:06")
    assert found[2]["created"].startswith("2001-02-03T04:05:06")
    assert "created" not in found[3]


def test_no_record_is_lost_while_the_clock_stands_still(log, shared):
    """Records with equal times are all different records."""
    import freezegun

    logger, _ = log
    with freezegun.freeze_time("2001-02-03T04:05:06Z"):
        for _ in range(1000):
            logger.info("frozen")

    assert len(shared.records()) == 1000


def test_a_record_that_is_replayed_later_keeps_its_time(log, shared):
    """What a QueueHandler passes on hours later still says when it happened."""
    import logging.handlers
    import queue

    logger, handler = log
    waiting = queue.SimpleQueue()
    other = logging.Logger("queued")
    other.addHandler(logging.handlers.QueueHandler(waiting))
    try:
        raise ValueError("x")
    except ValueError:
        other.exception("failed %s", "badly")
    record = waiting.get()
    record.created = 1_000_000_000.25

    handler.handle(record)

    found = shared.record()
    assert found["created"] == "2001-09-09T01:46:40.250000000Z"
    assert found["logger"] == "queued"
    assert found["message"].startswith("failed badly")
    assert "ValueError: x" in str(found)


@pytest.mark.parametrize(
    "created", [float("nan"), float("inf"), -1.0, 1e300, "x", None]
)
def test_a_record_with_an_impossible_time_is_sent(log, shared, created, capsys):
    """Whatever a factory put into `created`, the record arrives."""
    logger, _ = log
    record = logger.makeRecord("n", 20, "f", 1, "odd", (), None)
    record.created = created

    logger.handle(record)

    assert shared.record()["message"] == "odd"


# ---- the rest of what a handler can do ------------------------------------------------


@pytest.mark.parametrize("form", [None, "%(levelname)s %(message)s", "JSON"])
def test_no_record_but_the_first_meets_an_import_statement(
    log, shared, monkeypatch, form
):
    """Not with a formatter of the application's, fields as the message, or exceptions."""
    logger, handler = log
    formatter = logging.Formatter(form if form != "JSON" else None)
    if form == "JSON":
        formatter.format = lambda record: json.dumps({"message": record.getMessage()})
    handler.setFormatter(formatter if form else None)

    def log_all():
        logger.info("text %s", 1)
        logger.info({"event": "fields", "order": 42})
        logger.error("exc", exc_info=ValueError("odd"))
        logger.warning("again %d%%", 5)

    log_all()
    names = []
    imported = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest, **options: (
            names.append(name) or imported(name, *rest, **options)
        ),
    )
    log_all()
    monkeypatch.undo()
    assert not [name for name in names if name.startswith("logagg")]
    assert len(shared.records()) == 8


def test_formatters_of_all_styles_make_the_message(log, shared):
    """`%`, `{` and `$`, defaults and dates: the formatter decides the text."""
    logger, handler = log
    forms = [
        ("%(levelname)s|%(message)s", "%"),
        ("{levelname}|{message}", "{"),
        ("$levelname|$message", "$"),
    ]
    for text, style in forms:
        handler.setFormatter(logging.Formatter(text, style=style))
        logger.info("a %s", "b")
    handler.setFormatter(
        logging.Formatter("%(tenant)s|%(message)s", defaults={"tenant": "none"})
    )
    logger.info("x")
    handler.setFormatter(None)
    logger.info("bare")

    found = [each["message"] for each in shared.records()]
    assert found == ["INFO|a b", "INFO|a b", "INFO|a b", "none|x", "bare"]


def test_a_formatted_message_holds_no_traceback(log, shared):
    """The exception stays apart from the formatted text."""
    logger, handler = log
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("failed")

    found = shared.record()
    assert found["message"] == "ERROR failed"
    assert found["exception"]["type"] == "ValueError"


def test_a_formatter_that_raises_costs_its_text_only(log, shared):
    """The plain message is sent instead, with what went wrong."""
    logger, handler = log
    handler.setFormatter(logging.Formatter("%(missing)s"))

    logger.info("a %s", "b")

    found = shared.record()
    assert found["message"] == "a b"
    assert "missing" in found["format_error"]


def test_a_formatter_may_decide_how_exceptions_read(log, shared):
    """`formatException` of the handler's own formatter makes the stack's text."""
    logger, handler = log

    class Short(logging.Formatter):
        def formatException(self, info):  # noqa: N802 - logging's name
            return f"short: {info[1]}"

    handler.setFormatter(Short())
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("failed")

    assert shared.record()["exception"]["stack"] == "short: x"


def test_flush_means_that_the_records_are_in_the_file(log, shared):
    """When `flush` has said yes, the file has them."""
    logger, handler = log
    for n in range(100):
        logger.info("x", extra={"n": n})

    assert handler.flush() is True
    assert shared.path.read_bytes().count(logger.name.encode()) == 100
    assert handler.flush(timeout=0) is True


def test_flush_of_a_handler_that_never_logged_is_done(shared):
    """Nothing to wait for: nothing is started, nothing waits."""
    handler = logagg.Handler()

    assert handler.flush() is True
    handler.close()


def test_close_may_be_called_twice_and_a_later_record_still_arrives(log, shared):
    """Code that logs after `logging.shutdown` is not lost."""
    logger, handler = log
    logger.info("one")
    handler.close()
    handler.close()

    logger.info("two")

    assert [each["message"] for each in shared.records()] == ["one", "two"]


def test_closing_one_handler_leaves_the_others_at_work(log, shared):
    """Handlers of one process share a pipe; each can go for itself."""
    logger, _ = log
    other = logagg.Handler()
    logger.info("one")

    other.close()
    logger.info("two")

    assert [each["seq"] for each in shared.records()] == [1, 2]


def test_a_handler_has_a_name_like_all(log):
    """`name` and `logging.getHandlerByName` work, and `repr` says where it goes."""
    _, handler = log
    handler.name = "central"

    assert handler.get_name() == "central"
    if sys.version_info >= (3, 12):
        assert logging.getHandlerByName("central") is handler
    assert "Handler" in repr(handler)
    assert ".sock" in repr(handler)
    assert type(handler).__module__ == "logagg"


def test_a_dropped_handler_takes_its_descriptors_along(shared):
    """Making, using and closing many handlers leaks neither descriptor nor thread."""
    threads = threading.active_count()
    for round_ in range(12):
        handler = logagg.Handler()
        logger = logging.Logger("leak")
        logger.addHandler(handler)
        logger.info("x")
        handler.close()
        if round_ == 1:
            gc.collect()
            before = support.descriptors()

    gc.collect()
    assert support.descriptors() == before
    assert threading.active_count() == threads


def test_no_thread_is_started_by_logging(log, shared):
    """A worker has exactly the threads that it had before."""
    logger, handler = log
    before = threading.active_count()

    logger.info("x")
    handler.flush()

    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"filename": "/nowhere/at/all/x.log"}, "directory /nowhere/at/all is missing"),
        ({"filename": "/tmp/\udcff.log"}, "name is not UTF-8"),
        ({"filename": "/tmp"}, "it is a directory"),
        ({"filename": ""}, "expected the path of a file"),
        ({"filename": "a\0b"}, "expected the path of a file"),
        ({"overflow": "explode"}, "choose one of spool, block, drop_new"),
        ({"maxBytes": 5}, "need a filename"),
        ({"filename": "x.log", "maxBytes": -1}, "maxBytes=-1"),
        ({"filename": "x.log", "backupCount": -1}, "backup"),
        ({"sinks": ["nosuch:x"]}, "unknown sink 'nosuch'"),
        ({"sinks": [":x"]}, "SCHEME:TARGET"),
        ({"sinks": ["file:x.log?level=info&level=info"]}, "'level' is given twice"),
        ({"sinks": ["file:x.log?level=loud"]}, "loud"),
    ],
)
def test_a_bad_argument_is_one_clear_error(arguments, said, tmp_path, monkeypatch):
    """It names what is wrong, at the place where the handler is made."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError) as caught:
        logagg.Handler(**arguments)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.skipif(
    not hasattr(__import__("os"), "geteuid") or __import__("os").geteuid() == 0,
    reason="root may write anywhere",
)
def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    """It is named, with what is missing."""
    tmp_path.chmod(0o500)

    with pytest.raises(ConfigError, match="no permission to write"):
        logagg.Handler(tmp_path / "x.log")


@pytest.mark.parametrize(
    "message", [{"message": "m" * 200, "x": float("nan")}, {"x": float("nan"), "m": 1}]
)
def test_a_nan_beside_a_long_message_is_kept(log, shared, message):
    """What JSON cannot express is found wherever it stands in the record."""
    logger, handler = log

    logger.info(message)
    handler.flush()

    assert shared.record()["x"] == "nan"


def test_no_field_of_the_caller_is_overwritten(shared):
    """The record's own file, line and function move the caller's aside; a task's name
    of the caller's stays in the place of asyncio's."""
    handler = logagg.Handler(location=True)
    logger = logging.Logger("extras")
    logger.addHandler(handler)
    own = {
        "file": "F", "line": "LN", "function": "FN", "task_name": "app.job",
        "logger": "L", "pid": 5, "event": "E", "host": "H", "file_": "F2",
    }  # fmt: skip

    async def main():
        logger.info("x", extra=own)

    asyncio.run(main())
    handler.flush()
    handler.close()

    found = shared.record()
    for name, value in own.items():
        assert value in (found.get(name), found.get(f"{name}_"), found.get(f"{name}__"))
    assert found["function"] == "main"
    assert found["line"] != "LN"
    if sys.version_info >= (3, 12):
        assert found["task_name"] == "app.job"


def test_a_field_of_the_message_and_one_of_extra_are_both_kept(log, shared):
    """A structured message and `extra` may use the same name."""
    logger, _ = log
    for _ in range(2):  # the second time the name is known
        logger.info({"event": "x", "user": 1}, extra={"user": 2})

    for found in shared.records():
        assert (found["user"], found["user_"]) == (1, 2)


def test_a_structured_message_is_redacted_as_the_handler_says(shared):
    """`redact=False` holds for a message that is a dictionary, too."""
    for redact in (True, False):
        handler = logagg.Handler(redact=redact)
        logger = logging.Logger("structured")
        logger.addHandler(handler)
        logger.info({"event": "x", "password": "p"})
        handler.flush()
        handler.close()

    assert [each["password"] for each in shared.records()] == ["[redacted]", "p"]


def test_a_misspelt_option_of_a_sink_is_reported_and_costs_that_sink_only(tmp_path):
    """The consumer checks the options; its complaint is on stderr, once."""
    good, bad = tmp_path / "good.log", tmp_path / "bad.log"
    code = """
import logging, sys, logagg
sinks = [f"file:{sys.argv[2]}?max_byte=1"]
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1], sinks=sinks)], level="INFO")
for n in range(3):
    logging.info("x")
    logging.getLogger().handlers[0].flush()
"""
    done = support.python(code, good, bad)

    (complaint,) = done.stderr.splitlines()
    assert "max_byte" in complaint
    assert "did you mean" in complaint
    assert "max_bytes" in complaint
    assert str(bad) in complaint
    assert len(support.records(good)) == 3
    assert not bad.exists()
