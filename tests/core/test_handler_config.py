"""The handler in configurations that people keep in files."""

import logging
import logging.config
import os

import pytest
import support
from support import have, python, records, settled, wait_until

import logagg
from logagg.platform import system

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
    "filters": {"mine": {"name": "app"}},
    "handlers": {
        "central": {
            "class": "logagg.Handler",
            "level": "INFO",
            "formatter": "plain",
            "filters": ["mine"],
        }
    },
    "loggers": {"app": {"level": "DEBUG", "propagate": True}},
    "root": {"level": "DEBUG", "handlers": ["central"]},
}


@pytest.fixture
def clean_logging():
    """Loggers as they were, whatever a configuration did to them."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    disabled = {
        name: logger.disabled
        for name, logger in logging.Logger.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    yield
    for each in [*root.handlers, *logging.getLogger("app").handlers]:
        if each not in handlers:
            each.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("app").handlers.clear()
    for name, value in disabled.items():
        logging.getLogger(name).disabled = value


def test_dict_config_with_plain_values_works(shared, clean_logging):
    """Class, level, formatter and filters by name, as in a JSON or YAML file."""
    logging.config.dictConfig(CONFIG)

    logging.getLogger("app.part").info("yes")
    logging.getLogger("app").debug("below the level")
    logging.getLogger("other").info("filtered")

    assert shared.record()["message"] == "INFO yes"


def test_dict_config_applied_twice_leaves_one_handler(shared, clean_logging):
    """Each record is one line after each application; nothing is leaked."""
    import threading

    logging.config.dictConfig(CONFIG)
    logging.getLogger("app").info("one")
    shared.lines()
    threads, descriptors = threading.active_count(), support.descriptors()

    for _ in range(3):
        logging.config.dictConfig(CONFIG)
        logging.getLogger("app").info("again")

    assert len(shared.records()) == 4
    assert threading.active_count() == threads
    assert support.descriptors() == descriptors


def test_dict_config_takes_a_factory_and_attributes(shared, clean_logging):
    """`()`, `cfg://`, `ext://` and `.` work as the documentation of logging says."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "policy": "block",
            "handlers": {
                "central": {
                    "()": "logagg.Handler",
                    "overflow": "cfg://policy",
                    "level": "ext://logging.INFO",
                    ".": {"terminator": "x"},
                }
            },
            "root": {"handlers": ["central"], "level": "INFO"},
        }
    )

    (handler,) = [
        each for each in logging.getLogger().handlers if type(each) is logagg.Handler
    ]
    assert handler.terminator == "x"
    assert handler.level == logging.INFO
    logging.getLogger("app").info("x")
    assert shared.record()["message"] == "x"


def test_dict_config_says_what_is_wrong_with_a_value(clean_logging, tmp_path):
    """A bad option ends the configuration with its own message as the cause."""
    handler = {"class": "logagg.Handler", "filename": str(tmp_path / "no" / "x.log")}
    config = {"version": 1, "handlers": {"h": handler}}

    with pytest.raises(ValueError, match="'h'") as caught:
        logging.config.dictConfig(config)

    assert "is missing" in str(caught.value.__cause__)


def test_file_config_works(shared, clean_logging, tmp_path):
    """The old ini format, with its args and kwargs."""
    (tmp_path / "logging.ini").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=central\n[formatters]\nkeys=plain\n"
        "[logger_root]\nlevel=INFO\nhandlers=central\n"
        "[handler_central]\nclass=logagg.Handler\nformatter=plain\nargs=()\n"
        "kwargs={'overflow': 'block'}\n"
        "[formatter_plain]\nformat=%(name)s: %(message)s\n"
    )

    logging.config.fileConfig(tmp_path / "logging.ini", disable_existing_loggers=False)
    logging.getLogger("app").info("x")

    assert shared.record()["message"] == "app: x"


POSITIONAL = """\
import logging.config
logging.config.fileConfig("logging.ini", disable_existing_loggers=False)
logging.getLogger("app").info("x" * 100, extra={"n": 1})
logging.getLogger("app").info("x" * 100, extra={"n": 2})
logging.shutdown()
"""


def test_file_config_takes_positional_arguments(tmp_path):
    """Those of `RotatingFileHandler`, with only the class exchanged: they rotate."""
    (tmp_path / "logging.ini").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=file\n[formatters]\nkeys=\n"
        "[logger_root]\nlevel=INFO\nhandlers=file\n"
        "[handler_file]\nclass=logagg.Handler\nargs=('app.log', 'a', 300, 3, 'utf-8')\n"
    )
    environ = {name: v for name, v in os.environ.items() if name != "LOGAGG_SOCKET"}

    python(POSITIONAL, cwd=tmp_path, env=environ)

    settled()
    assert [each["n"] for each in records(tmp_path / "app.log.1")] == [1]
    assert [each["n"] for each in records(tmp_path / "app.log")] == [2]


def test_basic_config_with_force_replaces_the_handler(shared, clean_logging):
    """Twice with `force` is one handler; the default formatter is not obeyed."""
    for _ in range(2):
        logging.basicConfig(handlers=[logagg.Handler()], level="INFO", force=True)
        logging.getLogger("app").info("x")

    found = shared.records()
    assert [each["message"] for each in found] == ["x", "x"]


def test_basic_config_with_a_format_obeys_it(shared, clean_logging):
    """A format that the user chose makes the message."""
    logging.basicConfig(
        handlers=[logagg.Handler()],
        level="INFO",
        force=True,
        format="%(name)s>%(message)s",
    )
    logging.getLogger("app").info("x")

    assert shared.record()["message"] == "app>x"


UVICORN_LIKE = """\
import logging.config, sys, threading, os
config = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"central": {"class": "logagg.Handler", "filename": sys.argv[1]}},
    "loggers": {
        "uvicorn": {"handlers": ["central"], "level": "INFO", "propagate": True},
        "uvicorn.error": {"level": "INFO"},
        "uvicorn.access": {
            "handlers": ["central"], "level": "INFO", "propagate": False
        },
    },
    "root": {"handlers": ["central"], "level": "INFO"},
}
def descriptors():
    return len(os.listdir("/proc/self/fd"))
seen = []
for n in range(4):
    logging.config.dictConfig(config)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "other"):
        logging.getLogger(name).info("x", extra={"n": n})
    seen.append((descriptors(), threading.active_count()))
assert seen[1] == seen[-1], seen
assert threading.active_count() == 1
root = logging.getLogger()
for handler in list(root.handlers):
    root.removeHandler(handler)
logging.getLogger("uvicorn.error").info("detached from the root only")
logging.shutdown()
"""


def test_loggers_as_servers_configure_them_write_each_record_once(tmp_path):
    """Named loggers, a root handler and propagation: one line a record each time."""
    path = tmp_path / "app.log"

    done = python(UVICORN_LIKE, path)

    assert done.stderr == ""
    settled()
    found = records(path)
    seen = [(each["logger"], each.get("n")) for each in found]
    names = ("uvicorn", "uvicorn.error", "uvicorn.access", "other")
    wanted = [(name, n) for n in range(4) for name in names]
    assert seen == [*wanted, ("uvicorn.error", None)]


RECONFIGURED = """\
import logging.config, os, sys, time
level = sys.argv[2]
config = {
    "version": 1,
    "handlers": {"central": {"class": "logagg.Handler", "filename": sys.argv[1]}},
    "root": {"handlers": ["central"], "level": level},
}
for n in range(4):
    logging.config.dictConfig(config)
    logging.info("configured", extra={"n": n})
    if n == 1 and os.fork() == 0:
        logging.info("child", extra={"n": -1})
        os._exit(0)
"""


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_a_process_that_configures_logging_again_does_not_end(tmp_path, level):
    """Its seqs go on, so that (worker, seq) names one record; at INFO nothing else is
    in the file, and `os._exit` of a child in good order is no more than a debug record.
    """
    path = tmp_path / "app.log"

    python(RECONFIGURED, path, level)

    settled()
    found = [each for each in records(path) if each["n"] >= 0]
    assert [each["n"] for each in found] == [0, 1, 2, 3]
    assert [each["seq"] for each in found] == [1, 2, 3, 4]
    ids = [(each["worker"], each["seq"]) for each in records(path)]
    assert len(set(ids)) == len(ids) == 5
    own = [each for each in records(path, service=True) if support.of_service(each)]
    levels = {"debug"} if level == "DEBUG" else set()
    if not system.LINUX:  # the status of the child is not known
        levels.add("info")
    assert {each["level"] for each in own} == levels
    pid = found[0]["pid"]
    ends = [each["message"] for each in own if each["of_pid"] == pid]
    if level == "DEBUG":
        # A transport that is not flushed when its handler is replaced stays attached.
        assert set(ends[:-1]) <= {f"worker {pid} detached"}
        assert ends[-1] == f"worker {pid} ended"


def test_removing_the_handler_is_told_as_detached(tmp_path):
    """Who throws root handlers out (celery does) leaves a trace in the log."""
    path = tmp_path / "app.log"

    with support.running(
        support.BASIC
        + """
log.info("one")
root = logging.getLogger()
for handler in list(root.handlers):
    root.removeHandler(handler)
    handler.close()
log.info("never")
print("detached", flush=True)
sys.stdin.read()
""",
        path,
        stdin=support.subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "detached\n"
        wait_until(have(path, 1))
        wait_until(lambda: b"worker_exit" in path.read_bytes(), what="a notice")

    assert [each["message"] for each in records(path)] == ["one"]
