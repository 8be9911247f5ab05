"""Libraries that set up logging, or formatters, themselves: their records come whole."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

RUN = ("-m", "logagg", "run", "-w", "1", "--restart", "never", "--sink", "file:app.log")

ALEMBIC = """
    import contextlib, logging, sys
    import logagg
    from alembic import command
    from alembic.config import Config
    from pathlib import Path
    ini = Config("alembic.ini")
    command.init(ini, "migrations")
    text = Path("alembic.ini").read_text()
    Path("alembic.ini").write_text(
        text.replace("driver://user:pass@localhost/dbname", "sqlite:///shop.db"))
    env = Path("migrations/env.py")
    assert "fileConfig(config.config_file_name)" in env.read_text()
    env.write_text(env.read_text().replace(
        "config_file_name)\\n", "config_file_name, disable_existing_loggers=False)\\n"))
    way = sys.argv[1]
    with logagg.start("file:app.log") if way == "start" else contextlib.nullcontext():
        logging.basicConfig(level="INFO", force=way != "start")
        logging.getLogger("shop").info("before", extra={"order": 1})
        command.revision(ini, message="first")
        command.upgrade(ini, "head")
        logging.getLogger("shop").info("quiet now")
        logging.getLogger("shop").warning("after", extra={"order": 2})
"""

DJANGO_STRUCTLOG = """
    import logging, sys
    import structlog
    from django.conf import settings
    shared = [
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name, structlog.processors.TimeStamper(fmt="iso")]
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "processor": structlog.processors.JSONRenderer(), "foreign_pre_chain": shared}
    handler = {"class": "logging.StreamHandler"}
    if sys.argv[1] == "handler":
        handler = {"class": "logagg.Handler", "filename": "app.log"}
    settings.configure(
        ALLOWED_HOSTS=["*"], ROOT_URLCONF="__main__", SECRET_KEY="x",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth",
                        "django_structlog"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3",
                               "NAME": ":memory:"}},
        MIDDLEWARE=["django_structlog.middlewares.RequestMiddleware"],
        LOGGING={
            "version": 1, "disable_existing_loggers": False,
            "formatters": {"json": formatter},
            "handlers": {"console": {**handler, "formatter": "json"}},
            "root": {"handlers": ["console"], "level": "INFO"}})
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info,
                    structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory())
    import django
    from django.http import HttpResponse
    from django.test import Client
    from django.urls import path
    django.setup()
    def view(request):
        structlog.get_logger("shop").info("paid", order=7, password="hunter2")
        logging.getLogger("shop.pay").warning("plain", extra={"order": 8})
        if request.path == "/broken":
            raise ValueError("odd")
        return HttpResponse("ok")
    urlpatterns = [path("fine", view), path("broken", view)]
    client = Client(raise_request_exception=False)
    client.get("/fine")
    client.get("/broken")
"""

GOOGLE = """
    import logging
    from google.cloud.logging.handlers import StructuredLogHandler, setup_logging
    setup_logging(StructuredLogHandler(project_id="p", labels={"team": "pay"}))
    log = logging.getLogger("shop")
    logging.getLogger().setLevel("INFO")
    log.info("paid", extra={"json_fields": {"order": 7, "password": "hunter2"}})
    log.warning({"message": "a dictionary", "order": 8})
    trace = "projects/p/traces/0123456789abcdef0123456789abcdef"
    log.info("traced", extra={"trace": trace, "span_id": "0123456789abcdef"})
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("broken", extra={"labels": {"shelf": "3"}})
"""

DATADOG = """
    import logging, os
    os.environ.update(
        DD_INSTRUMENTATION_TELEMETRY_ENABLED="false", DD_TRACE_ENABLED="true",
        DD_REMOTE_CONFIGURATION_ENABLED="false", DD_SERVICE="shop", DD_ENV="test")
    import ddtrace
    ddtrace.patch(logging=True, structlog=True)
    from ddtrace.trace import tracer
    import structlog
    logging.basicConfig(level="INFO", format=(
        "%(levelname)s [dd.trace_id=%(dd.trace_id)s dd.span_id=%(dd.span_id)s] %(message)s"))
    with tracer.trace("job") as span:
        logging.getLogger("shop").info("paid", extra={"order": 7})
        structlog.get_logger("shop").info("event", order=8)
        print("span", span.span_id)
    logging.shutdown()
    os._exit(0)  # without the tracer's wait for its agent
"""


LOGBOOK = """
    import logging, sys
    import logbook
    from logbook.compat import LoggingHandler, redirect_logging
    from logbook.more import ColorizedStderrHandler
    way = sys.argv[1]
    setup = {
        "stderr": lambda: logbook.StderrHandler(bubble=True),
        "stdout": lambda: logbook.StreamHandler(sys.stdout, bubble=True),
        "coloured": lambda: ColorizedStderrHandler(bubble=True),
        "redirected": lambda: redirect_logging() or logbook.StderrHandler(bubble=True),
    }[way]()
    logbook.FileHandler("own.txt", level="WARNING", bubble=True).push_application()
    setup.push_application()
    logbook.StderrHandler(level="ERROR", bubble=True).push_application()
    log = logbook.Logger("shop.pay")
    log.info("paid", extra={"order": 7, "password": "hunter2", "message": "own"})
    log.notice("noted {}", "x")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")
    logging.getLogger("std").warning("two\\nlines", extra={"order": 8})
"""

DAIQUIRI = """
    import logging, sys
    import daiquiri, logagg
    from daiquiri import formatter, output
    way = sys.argv[1]
    made = {"json": formatter.JSON_FORMATTER, "text": formatter.TEXT_FORMATTER,
            "handler": formatter.JSON_FORMATTER}[way]
    daiquiri.setup(level="INFO", outputs=[output.Stream(formatter=made)])
    if way == "handler":
        handler = logagg.Handler("app.log")
        handler.setFormatter(made)
        logging.getLogger().handlers = [handler]
    daiquiri.getLogger("shop", team="pay").info("paid", order=7, password="hunter2")
"""


def ran(
    folder: Path, program: str, words: Sequence[str] = RUN, *arguments: str
) -> list[dict[str, Any]]:
    """The program's records."""
    (folder / "app.py").write_text(textwrap.dedent(program))
    command = [sys.executable, *words, "app.py", *arguments]
    support.finish(command, cwd=folder, env=dict(os.environ), timeout=90)
    found = support.records(folder / "app.log")
    return [each for each in found if not support.of_service(each)]


@pytest.mark.parametrize("way", ["run", "start"])
def test_alembic_in_the_middle_of_a_program(tmp_path: Path, way: str) -> None:
    """Its `env.py` calls `fileConfig`: records before, of it, and after it, once each."""
    found = ran(tmp_path, ALEMBIC, RUN if way == "run" else (), way)
    mine = [(e["message"], e["level"], e.get("order")) for e in found if "order" in e]
    assert mine == [("before", "info", 1), ("after", "warning", 2)]
    assert "quiet now" not in {each["message"] for each in found}  # as its file says
    migration = [e for e in found if e["logger"] == "alembic.runtime.migration"]
    assert [each["level"] for each in migration] == ["info"] * 3
    assert migration[-1]["message"].startswith("Running upgrade  -> ")
    assert not [each for each in found if each.get("stream") == "stderr"], found


@pytest.mark.parametrize("way", ["run", "handler"])
def test_django_structlog(tmp_path: Path, way: str) -> None:
    """Its request's fields on every record, its events and their exception, once each."""
    found = ran(tmp_path, DJANGO_STRUCTLOG, RUN if way == "run" else (), way)
    first, second = dict.fromkeys(each["request_id"] for each in found)
    for each in found:
        each["request_id"] = {first: "r1", second: "r2"}[each["request_id"]]
    texts = [(each["logger"], each["message"], each["request_id"]) for each in found]
    middleware = "django_structlog.middlewares.request"
    wanted = [
        (middleware, "request_started", "r1"),
        ("shop", "paid", "r1"),
        ("shop.pay", "plain", "r1"),
        (middleware, "request_finished", "r1"),
        (middleware, "request_started", "r2"),
        ("shop", "paid", "r2"),
        ("shop.pay", "plain", "r2"),
        (middleware, "request_failed", "r2"),
        ("django.request", "Internal Server Error: /broken", "r2"),
    ]
    assert sorted(texts) == sorted(wanted)
    by_text = {(each["message"], each["request_id"]): each for each in found}
    paid = by_text["paid", "r1"]
    assert (paid["level"], paid["order"]) == ("info", 7)
    assert paid["password"] == "[redacted]"
    assert by_text["plain", "r1"]["order"] == 8
    assert by_text["request_finished", "r1"]["code"] == 200
    failed = by_text["request_failed", "r2"]
    assert (failed["level"], failed["exception"]["type"]) == ("error", "ValueError")
    assert "hunter2" not in (tmp_path / "app.log").read_text()
    own = {"_logger", "_name", "_record", "_from_structlog", "event"}
    assert not own.intersection(*map(set, found))


@pytest.mark.parametrize("way", ["stderr", "stdout", "coloured", "redirected"])
def test_handlers_of_logbook(tmp_path: Path, way: str) -> None:
    """Level, logger, fields and exception, once; its own file as it says."""
    pytest.importorskip("logbook")
    paid, noted, failed, std = ran(tmp_path, LOGBOOK, RUN, way)
    assert [e["level"] for e in (paid, noted, failed, std)] == [
        "info", "notice", "error", "warning",
    ]  # fmt: skip
    assert {each["logger"] for each in (paid, noted, failed)} == {"shop.pay"}
    assert (paid["message"], paid["order"], paid["message_"]) == ("paid", 7, "own")
    assert paid["password"] == "[redacted]"
    assert noted["message"] == "noted x"
    assert failed["message"] == "failed"
    assert failed["exception"]["type"] == "ZeroDivisionError"
    assert (std["logger"], std["message"], std["order"]) == ("std", "two\nlines", 8)
    assert not [name for name in std if name.startswith(("stack", "task"))]
    own = (tmp_path / "own.txt").read_text()
    assert "ERROR: shop.pay: failed\nTraceback" in own
    assert "paid" not in own


@pytest.mark.parametrize("way", ["json", "text", "handler"])
def test_fields_of_daiquiri(tmp_path: Path, way: str) -> None:
    """Those of its loggers; nothing that its formatters put on a record."""
    pytest.importorskip("daiquiri")
    (found,) = ran(tmp_path, DAIQUIRI, () if way == "handler" else RUN, way)
    assert (found["level"], found["logger"], found["message"]) == (
        "info",
        "shop",
        "paid",
    )
    assert (found["team"], found["order"]) == ("pay", 7)
    assert found["password"] == "[redacted]"
    assert not [name for name in found if "daiquiri" in name]


def test_handlers_of_google_cloud(tmp_path: Path) -> None:
    """Fields flat and redacted, labels, the trace by its id; nothing of the handler's own."""
    pytest.importorskip(
        "google.cloud.logging_v2", reason="google-cloud-logging is large"
    )
    found = ran(tmp_path, GOOGLE)
    assert [(e["level"], e["message"]) for e in found] == [
        ("info", "paid"),
        ("warning", "a dictionary"),
        ("info", "traced"),
        ("error", "broken"),
    ]
    paid, dictionary, traced, broken = found
    assert (paid["order"], paid["password"]) == (7, "[redacted]")
    assert paid["labels"] == {"team": "pay"}
    assert dictionary["order"] == 8
    assert traced["trace_id"] == "0123456789abcdef0123456789abcdef"
    assert traced["span_id"] == "0123456789abcdef"
    assert broken["exception"]["type"] == "ZeroDivisionError"
    assert broken["labels"] == {"team": "pay", "shelf": "3"}
    assert not [name for each in found for name in each if name.startswith("_")]
    assert not [each for each in found if "json_fields" in each or "trace" in each]
    assert "hunter2" not in (tmp_path / "app.log").read_text()


def test_fields_of_datadog(tmp_path: Path) -> None:
    """The ids that its tracer adds are fields, on records of logging and structlog."""
    pytest.importorskip("ddtrace", reason="ddtrace is large")
    found = ran(tmp_path, DATADOG)
    span = next(e["message"] for e in found if e["message"].startswith("span"))
    paid, event = (e for e in found if "order" in e)
    assert (paid["message"], paid["logger"], paid["order"]) == ("paid", "shop", 7)
    assert (event["message"], event["order"]) == ("event", 8)
    for each in (paid, event):
        assert each["level"] == "info"
        assert each["dd.span_id"] == span.split()[1]
        assert int(each["dd.trace_id"], 16) > 0
        assert (each["dd.service"], each["dd.env"]) == ("shop", "test")
