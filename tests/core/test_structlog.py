"""structlog: straight into the pipe, and through the standard library."""

import asyncio
import contextvars
import logging
import sys
import threading
import traceback

import pytest
import structlog
import support

import logagg.structlog


@pytest.fixture
def configured(shared):
    """structlog sends to the shared consumer; afterwards it is as it was."""
    structlog.contextvars.clear_contextvars()
    logagg.structlog.configure(level="debug")
    yield shared
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_an_event_is_a_record_with_its_context_as_fields(configured):
    """Bound values, contextvars and the call's own become fields."""
    structlog.contextvars.bind_contextvars(request="r1")
    logger = structlog.get_logger("app.part").bind(user=7)

    logger.warning("hello", ms=1.5, path=None)

    found = configured.record()
    assert found["level"] == "warning"
    assert found["logger"] == "app.part"
    assert found["message"] == "hello"
    assert (found["request"], found["user"], found["ms"]) == ("r1", 7, 1.5)
    assert found["path"] is None
    assert found["seq"] == 1
    assert found["thread"] == "MainThread"


def test_calls_below_the_level_do_nothing(shared):
    """The level filters in the worker."""
    logagg.structlog.configure(level="warning")
    try:
        structlog.get_logger("x").info("no")
        structlog.get_logger("x").warning("yes")
    finally:
        structlog.reset_defaults()

    assert shared.record()["message"] == "yes"


def test_an_exception_is_structured_as_in_logging(configured):
    """`logger.exception` and `exc_info=` give the same parts."""
    logger = structlog.get_logger("x")
    try:
        raise ValueError("boom")
    except ValueError as error:
        logger.exception("failed")
        logger.error("again", exc_info=error)
        logger.error("third", exc_info=True)
    logger.error("none", exc_info=True)

    found = configured.records()
    kinds = [each.get("exception", {}).get("type") for each in found]
    assert kinds == ["ValueError", "ValueError", "ValueError", None]
    assert "Traceback" in found[0]["exception"]["stack"]


def test_clashing_names_are_kept(configured):
    """A caller's field never overwrites one of ours."""
    structlog.get_logger("x").info("m", seq="mine", pid="mine", timestamp="mine")

    found = configured.record()
    assert found["seq"] == 1
    assert [name for name, value in found.items() if value == "mine"] == [
        "seq_", "pid_", "timestamp_",
    ]  # fmt: skip


def test_two_fields_that_both_would_be_renamed_are_both_kept(configured):
    """Renaming a clash does not overwrite a field of that name."""
    structlog.get_logger("x").info("m", seq_="first", seq="second")

    found = configured.record()
    assert {"first", "second"} <= set(map(str, found.values()))


def test_both_ways_share_one_order(configured):
    """Records of logging and of structlog of one process have one row of seqs."""
    handler = logagg.Handler()
    plain = logging.Logger("plain")
    plain.addHandler(handler)
    bound = structlog.get_logger("bound")
    for n in range(50):
        plain.info("x", extra={"n": 2 * n})
        bound.info("x", n=2 * n + 1)

    found = configured.records()
    assert [each["n"] for each in found] == list(range(100))
    assert [each["seq"] for each in found] == list(range(1, 101))
    handler.close()


def test_any_value_gets_through(configured):
    """What JSON lacks becomes safe text here too; a broken event does not raise."""

    class Broken:
        def __repr__(self):
            raise RuntimeError("no")

        __str__ = __repr__

    structlog.get_logger("x").info(Broken(), value=Broken(), bad="\udcff", set_={1})

    found = configured.record()
    assert "unprintable" in found["message"]
    assert "unprintable" in found["value"]
    assert found["bad"] == "\\udcff"


def test_contextvars_stand_on_records_of_logging_too(log, shared):
    """What structlog's contextvars hold is on every record of the handler."""
    logger, _ = log
    structlog.contextvars.clear_contextvars()
    with structlog.contextvars.bound_contextvars(request="r1", level="clash"):
        logger.info("in")
    logger.info("out")

    one, two = shared.records()
    assert one["request"] == "r1"
    assert one["level"] == "info"
    assert "request" not in two


def test_an_event_that_the_application_renders_has_each_field_once(log, shared):
    """As django-structlog sets it up: context merged, exception rendered, all as JSON."""
    logger, handler = log
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer()
        )
    )
    wrapped = structlog.wrap_logger(
        logger,
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    with structlog.contextvars.bound_contextvars(request_id="r1", user_id=7, token="t"):
        try:
            raise ValueError("odd")
        except ValueError:
            wrapped.exception("failed", order=42)

    found = shared.record()
    assert (found["message"], found["level"]) == ("failed", "error")
    assert (found["request_id"], found["user_id"], found["order"]) == ("r1", 7, 42)
    assert found["token"] == "[redacted]"
    assert found["exception"]["type"] == "ValueError"
    assert not [name for name in found if name.endswith("_")]


def test_an_event_that_structlog_renders_before_logging_gets_it_is_taken_apart(
    log, shared
):
    """The last processor makes JSON of it; a secret stands nowhere in the line."""
    logger, _ = log
    wrapped = structlog.wrap_logger(
        logger,
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        raise ValueError("odd")
    except ValueError:
        wrapped.exception("failed", order=42, password="hunter2")
    logger.info('{"total": 3}')

    found, other = shared.records()
    assert (found["message"], found["order"]) == ("failed", 42)
    assert found["password"] == "[redacted]"
    assert "hunter2" not in str(found)
    assert "ValueError: odd" in str(found["exception"])
    assert other["message"] == '{"total": 3}'


RENDERERS = {
    "ConsoleRenderer": structlog.dev.ConsoleRenderer,
    "KeyValueRenderer": structlog.processors.KeyValueRenderer,
    "LogfmtRenderer": structlog.processors.LogfmtRenderer,
    "JSONRenderer": structlog.processors.JSONRenderer,
    "a function": lambda: lambda _, __, event: str(sorted(event.items(), key=str)),
    "bytes": lambda: lambda _, __, event: repr(event).encode(),
}


@pytest.mark.parametrize("form", [None, "%(asctime)s %(message)s"])
@pytest.mark.parametrize("name", RENDERERS)
def test_an_event_has_its_fields_whatever_text_is_made_of_it(log, shared, name, form):
    """By the last processor, any: the fields are fields, redacted, and text is none."""
    logger, handler = log
    handler.setFormatter(logging.Formatter(form) if form else None)
    wrapped = structlog.wrap_logger(
        logger,
        processors=[
            structlog.stdlib.add_log_level,
            lambda _, __, event: {**event, "added": True},
            RENDERERS[name](),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    ).bind(user="ann")
    wrapped.info("paid", order=42, password="hunter2", of={"token": "t0psecret"})
    try:
        raise ValueError("odd")
    except ValueError:
        wrapped.exception("failed", password="hunter2")

    paid, failed = shared.records()
    assert (paid["level"], paid["message"]) == ("info", "paid")
    assert (paid["order"], paid["user"], paid["added"]) == (42, "ann", True)
    assert (paid["password"], paid["of"]) == ("[redacted]", {"token": "[redacted]"})
    assert "hunter2" not in str((paid, failed))
    assert "t0psecret" not in str(paid)
    assert (failed["level"], failed["message"]) == ("error", "failed")
    assert failed["exception"]["message"] == "odd"
    assert "exc_info" not in failed


def test_a_processor_finds_the_call_where_it_looks_for_it(log, shared):
    """Callsites and stacks are the program's, though the event is kept."""
    logger, _ = log
    structlog.configure(
        processors=[
            structlog.processors.CallsiteParameterAdder(),
            structlog.processors.StackInfoRenderer(),
            lambda _, __, event: {
                **event,
                "callers": [
                    frame.f_code.co_filename
                    for frame, _ in traceback.walk_stack(sys._getframe(1))
                ],
            },
            structlog.processors.KeyValueRenderer(),
        ],
        logger_factory=lambda *_: logger,
    )
    try:
        structlog.get_logger().info("here", stack_info=True)
    finally:
        structlog.reset_defaults()
    found = shared.record()
    assert found["func_name"] == "test_a_processor_finds_the_call_where_it_looks_for_it"
    assert __file__ in str(found), sorted(found.items())
    assert "rendered_messages" not in str(found)
    assert "logagg/integrations" not in str(found)


def test_structlog_may_be_imported_after_the_handler_was_made(tmp_path):
    """Its first event is taken apart, and pickling what it has handed over gives text."""
    code = """
import logging, pickle, sys
import logagg
logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")
assert "structlog" not in sys.modules
import structlog
kept = []
def noted(record):
    kept.append(record.msg)
    return True
logging.getLogger("shop").addFilter(noted)
structlog.configure(
    processors=[structlog.processors.LogfmtRenderer()],
    logger_factory=structlog.stdlib.LoggerFactory())
structlog.get_logger("shop").info("paid", password="hunter2")
assert kept == ["password=hunter2 event=paid"]
assert type(pickle.loads(pickle.dumps(kept[0]))) is str
"""
    support.finish([sys.executable, "-c", code], cwd=tmp_path)
    support.settled()
    (found,) = support.records(tmp_path / "app.log")
    assert (found["message"], found["password"]) == ("paid", "[redacted]")


def test_each_task_and_thread_has_its_own_context(log, shared):
    """No record ever carries another task's context: tasks, to_thread, copies."""
    logger, _ = log
    structlog.contextvars.clear_contextvars()
    bind = structlog.contextvars.bind_contextvars

    async def work(n):
        bind(request=n)
        for _ in range(5):
            logger.info("task", extra={"n": n})
            await asyncio.sleep(0)
            await asyncio.to_thread(logger.info, "thread", extra={"n": n})
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(logger.info, "copied"), kwargs={"extra": {"n": n}}
        )
        thread.start()
        thread.join()

    async def main():
        await asyncio.gather(*(work(n) for n in range(20)))

    asyncio.run(main())

    found = shared.records()
    assert len(found) == 20 * 11
    assert all(each["request"] == each["n"] for each in found)


def test_structlogs_own_stdlib_chain_works(log, shared):
    """structlog rendering to `logging` keyword arguments arrives as fields."""
    logger, _ = log
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=lambda *_: logger,
    )
    try:
        structlog.get_logger().info("hello", user=7)
    finally:
        structlog.reset_defaults()

    found = shared.record()
    assert (found["message"], found["user"]) == ("hello", 7)


def test_the_name_is_the_modules_when_none_is_given(configured):
    """`structlog.get_logger()` without a name is called as its module is."""
    structlog.get_logger().info("x")

    assert configured.record()["logger"] == __name__


def test_an_event_that_is_json_has_no_secret_in_it(configured):
    """As a message of `logging`."""
    text = '{"order": 7, "password": "hunter2"}'
    structlog.get_logger().info(text)
    structlog.get_logger().info(text, nested={"a": 1})

    for found in configured.records():
        assert found["message"] == '{"order": 7, "password": "[redacted]"}'


@pytest.mark.parametrize(
    "last",
    [
        structlog.processors.JSONRenderer(),
        structlog.processors.KeyValueRenderer(),
        structlog.stdlib.render_to_log_kwargs,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    ids=["JSON", "text", "kwargs", "formatter"],
)
def test_the_stack_of_a_call_is_the_stack_whatever_the_chain(log, shared, last):
    """`StackInfoRenderer` and `stack_info=True` of `logging` give the same field."""
    logger, _ = log
    wrapped = structlog.wrap_logger(
        logger,
        processors=[structlog.processors.StackInfoRenderer(), last],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    wrapped.info("here", stack_info=True)

    found = shared.record()
    assert found["stack"].startswith("Stack (most recent call last):")
    assert "stack_" not in found


def test_the_stack_of_a_call_straight_to_logagg_is_the_stack(shared):
    """By a processor of the program's."""
    structlog.contextvars.clear_contextvars()
    logagg.structlog.configure(processors=[structlog.processors.StackInfoRenderer()])
    structlog.get_logger().info("here", stack_info=True)
    structlog.reset_defaults()

    assert shared.record()["stack"].startswith("Stack (most recent call last):")
