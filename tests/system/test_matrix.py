"""Libraries × ways to configure them × ways to start children, against plain Python.

The same program runs twice: as it is, where its own handlers print one line a record in
a form that can be read back, and under `logagg run`. What was printed and what arrived
must be the same records, each once: level, logger, fields, message and exception.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Told = tuple[str, str, str, Any, str]

MANUAL = Path(__file__).parents[2] / "logagg" / "docs" / "integrations.md"

CHILDREN = ("none", "fork", "spawn", "forkserver", "loky", "exec")

# Every process imports `jobs`, which configures logging, except for a forked one.
JOBS = """
    import logging, logging.config, sys
    from libraries import LOG
    class Format(logging.Formatter):
        def format(self, record):
            kind = record.exc_info[0].__name__ if record.exc_info else ""
            order = getattr(record, "order", None)
            entry = (record.levelname.lower(), record.name, record.getMessage(), order, kind)
            return "MARK" + repr(entry)
    CONFIGURE
    def job(child):
        LOG.info("inf %s", child, extra={"order": child})
        LOG.debug("dbg")
        try:
            1 / 0
        except ZeroDivisionError:
            LOG.exception("exc")
"""
APP = """
    import multiprocessing, subprocess, sys
    from jobs import job
    if __name__ == "__main__":
        if sys.argv[1:]:
            job("exec")
            sys.exit()
        job("none")
        for method in ("fork", "spawn", "forkserver"):
            child = multiprocessing.get_context(method).Process(target=job, args=(method,))
            child.start()
            child.join()
        from joblib import Parallel, delayed
        Parallel(n_jobs=2)(delayed(job)(child) for child in ("loky", "loky"))
        subprocess.run([sys.executable, "app.py", "exec"], check=True)
"""

STDLIB = """
    import logging
    LOG = logging.getLogger("shop.pay")
"""

STRUCTLOG = """
    import structlog
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger)
    class Log:
        def __init__(self):
            self.log = structlog.get_logger("shop.pay")
        def info(self, text, *arguments, extra):
            self.log.info(text % arguments, **extra)
        def debug(self, text):
            self.log.debug(text)
        def exception(self, text):
            self.log.exception(text)
    LOG = Log()
"""

LOGURU = """
    import sys
    from loguru import logger
    def form(record):
        kind = record["exception"].type.__name__ if record["exception"] else ""
        entry = (record["level"].name.lower(), record["name"], record["message"],
                 record["extra"].get("order"), kind)
        record["extra"]["_line"] = "MARK" + repr(entry)
        return "{extra[_line]}\\n"
    logger.remove()
    logger.add(sys.stderr, level="INFO", format=form)
    class Log:
        def info(self, text, *arguments, extra):
            logger.bind(**extra).info(text % arguments)
        def debug(self, text):
            logger.debug(text)
        def exception(self, text):
            logger.exception(text)
    LOG = Log()
"""

BASIC = """
    handler = logging.StreamHandler(STREAM)
    handler.setFormatter(Format())
    logging.basicConfig(level="INFO", handlers=[handler], force=True)
"""
UNLESS = """
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Format())
        logging.basicConfig(level="DEBUG", handlers=[handler])
"""
DICT = """
    logging.config.dictConfig({
        "version": 1, "disable_existing_loggers": False,
        "formatters": {"f": {"()": Format}},
        "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
        LOGGERS})
"""
FILE = """
    import os
    logging.config.fileConfig(
        os.path.join(os.path.dirname(__file__), "logging.ini"),
        disable_existing_loggers=False)
"""
INI = """
    [loggers]
    keys = root, pay
    [handlers]
    keys = console
    [formatters]
    keys = mark
    [formatter_mark]
    class = jobs.Format
    [handler_console]
    class = StreamHandler
    formatter = mark
    args = %s
    [logger_root]
    level = INFO
    handlers = %s
    [logger_pay]
    qualname = shop.pay
    level = INFO
    propagate = %s
    handlers = %s
"""
BY_HAND = """
    handler = logging.StreamHandler()
    handler.setFormatter(Format())
    if not LOG_LOGGER.handlers:
        LOG_LOGGER.addHandler(handler)
    LOG_LOGGER.setLevel("INFO")
    LOG_LOGGER.propagate = False
"""

CONFIGURATIONS = {
    "basicConfig": BASIC.replace("STREAM", ""),
    "basicConfig on stdout": BASIC.replace("STREAM", "sys.stdout"),
    "basicConfig if there is no handler": UNLESS,
    "dictConfig, root": DICT.replace(
        "LOGGERS", "'root': {'handlers': ['h'], 'level': 'INFO'}"
    ),
    "dictConfig, a logger alone": DICT.replace(
        "LOGGERS",
        "'loggers': {'shop': {'handlers': ['h'], 'level': 'INFO', 'propagate': False}}",
    ),
    "fileConfig on stdout": FILE,
    "fileConfig, a logger alone": FILE,
    "by hand": BY_HAND.replace("LOG_LOGGER", "logging.getLogger('shop.pay')"),
}

INI_FILES = {
    "fileConfig on stdout": ("(sys.stdout,)", "console", "1", ""),
    "fileConfig, a logger alone": ("()", "", "0", "console"),
}
"""By configuration: arguments, handlers of the root, `propagate` and handlers of shop.pay."""


def ini_of(configuration: str) -> str:
    """The file that `fileConfig` reads, or nothing."""
    values = INI_FILES.get(configuration)
    return textwrap.dedent(INI % values) if values else ""


CASES = [
    *(("logging", STDLIB, name) for name in CONFIGURATIONS),
    ("structlog", STRUCTLOG, "dictConfig, root"),
    ("loguru", LOGURU, "none"),
]


def printed(text: str) -> list[Told]:
    """The records that the program printed, read back."""
    lines = [line.partition("MARK") for line in text.splitlines()]
    return [eval(entry) for _, mark, entry in lines if mark]


def arrived(path: Path) -> list[Told]:
    """The records of the log, in the same form."""
    found = [each for each in support.records(path) if not support.of_service(each)]
    return [
        (
            each["level"],
            each["logger"],
            each["message"],
            each.get("order"),
            each.get("exception", {}).get("type", ""),
        )
        for each in found
    ]


ROWS = {
    "Celery": ("test_integrations", "test_celery"),
    "rq": ("test_task_queues", '"rq, spawned"'),
    "dramatiq": ("test_task_queues", '"dramatiq, spawned"'),
    "huey": ("test_task_queues", '"huey, processes"'),
    "gunicorn": ("test_integrations", '"gunicorn, root alone, run"'),
    "gunicorn, uvicorn's workers": (
        "test_integrations",
        '"gunicorn, uvicorn\'s workers, root alone"',
    ),
    "uvicorn": ("test_integrations", '"uvicorn --log-config'),
    "hypercorn": ("test_integrations", '"hypercorn -c'),
    "granian": ("test_integrations", '"granian --interface'),
    "aiohttp": ("test_integrations", '"aiohttp, run"'),
    "Django": ("test_web_frameworks", '"Django, ASGI"'),
    "Flask": ("test_web_frameworks", '"Flask"'),
    "FastAPI, Starlette": ("test_web_frameworks", "astapi"),
    "dask, pytest-xdist": ("test_child_frameworks", '"dask", "pytest-xdist"'),
    "torchrun": ("test_child_frameworks", "test_processes_of_torchrun"),
    "ray": ("test_child_frameworks", "test_workers_of_ray"),
}
"""By row of the manual's overview: the file of its test, and what stands in it."""


def test_the_manual_has_these_tables() -> None:
    """Each row of its overview has a test, and its matrix is the one of this file."""
    page = MANUAL.read_text()
    overview = page.partition("## Overview")[2].partition("\n\nNot installed")[0]
    rows = [
        line.split(" | ")[0].removeprefix("| ") for line in overview.splitlines()[8:]
    ]
    assert rows == list(ROWS)
    for file, text in ROWS.values():
        assert text in (Path(__file__).parent / f"{file}.py").read_text(), (file, text)
    ways: dict[str, list[str]] = {}
    for library, _, name in CASES:
        ways.setdefault(library, []).append("its own `add`" if name == "none" else name)
    for library, names in ways.items():
        assert f"| {library} | {'; '.join(names)} |\n" in page
    here = "the program" if CHILDREN[0] == "none" else ""
    assert f"in {here} and in\nchildren" in page or f"in {here} and in children" in page
    assert f"by {', '.join(CHILDREN[1:])}:\n" in page


@pytest.mark.parametrize(
    ("library", "made", "configuration"),
    CASES,
    ids=[f"{library}, {name}" for library, _, name in CASES],
)
def test_what_is_printed_arrives(
    tmp_path: Path, library: str, made: str, configuration: str
) -> None:
    """Every record once, from the program and from all kinds of children."""
    configure = textwrap.indent(
        textwrap.dedent(CONFIGURATIONS.get(configuration, "")), "    "
    )
    jobs = JOBS.replace("    CONFIGURE\n", configure)
    (tmp_path / "jobs.py").write_text(textwrap.dedent(jobs))
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    (tmp_path / "logging.ini").write_text(ini_of(configuration))
    (tmp_path / "libraries.py").write_text(textwrap.dedent(made))
    path = os.pathsep.join((str(tmp_path), os.environ["PYTHONPATH"]))
    env = {**os.environ, "PYTHONPATH": path}

    plain = support.finish(
        [sys.executable, "app.py"], cwd=tmp_path, env=env, timeout=120
    )
    run = [
        "-m",
        "logagg",
        "run",
        "-w",
        "1",
        "--restart",
        "never",
        "--sink",
        "file:app.log",
        "app.py",
    ]
    support.finish([sys.executable, *run], cwd=tmp_path, env=env, timeout=120)

    wanted = printed(plain.stdout + plain.stderr)
    children = {order for _, _, _, order, _ in wanted} - {None}
    assert children == set(CHILDREN), json.dumps([plain.stdout, plain.stderr])
    assert Counter(arrived(tmp_path / "app.log")) == Counter(wanted)
