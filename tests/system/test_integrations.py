"""Frameworks as their users start them: every record arrives once, with its fields."""

from __future__ import annotations

import os
import sys
import textwrap
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import support
from harness.program import Program, free_port, records

LOGAGG = [sys.executable, "-c", "from logagg.cli.main import main; main()"]

SHOP = """
    import logging, os, sys
    import logagg
    from celery import Celery
    from celery.utils.log import get_task_logger

    if os.environ["WAY"] == "handler":
        logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")
    app = Celery("shop", broker="filesystem://")
    app.conf.broker_transport_options = {
        "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
    app.conf.beat_schedule = {
        "often": {"task": "shop.job", "schedule": 0.2, "args": (0,)}}
    app.conf.worker_hijack_root_logger = os.environ["HIJACK"] == "True"

    @app.task(ignore_result=True, bind=True)
    def job(self, n, password="hunter2"):
        logging.getLogger("shop.pay").warning("plain %d", n, extra={"order": n})
        get_task_logger("shop").info("of the task logger %d", n)
        if n == 1:
            raise ValueError("odd")
        if n == 3 and not self.request.retries:
            raise self.retry(countdown=0)

    if __name__ == "__main__":
        words = os.environ["WORDS"].split()
        if os.environ["WAY"] == "start":
            with logagg.start("file:app.log"):
                app.start(words)
        app.start(words)
"""

WSGI = """
    import logging
    def app(environ, start_response):
        logging.getLogger("shop.pay").warning("paid", extra={"order": 7})
        if environ["PATH_INFO"] == "/broken":
            raise ValueError("odd")
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]
"""

ASGI = """
    import logging
    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        logging.getLogger("shop.pay").warning("paid", extra={"order": 7})
        if scope["path"] == "/broken":
            raise ValueError("odd")
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
"""

AIOHTTP = """
    import logging, os, sys
    import logagg
    from aiohttp import web
    if "HANDLER" in os.environ:
        logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")
    else:
        logging.basicConfig(level="INFO")
    async def view(request):
        logging.getLogger("shop.pay").warning("paid", extra={"order": 7})
        if request.path == "/broken":
            raise ValueError("odd")
        return web.Response(text="ok")
    app = web.Application()
    app.add_routes([web.get("/fine", view), web.get("/broken", view)])
    if __name__ == "__main__":
        web.run_app(app, port=int(sys.argv[1]))
"""

MADE = """
    import json, logagg
    logconfig_dict = logagg.logging_config(SERVER, filename="app.log", maxBytes="10MB")
    accesslog = "-"
    if __name__ == "__main__":
        json.dump(logconfig_dict, open("log.json", "w"))
"""
ROOT_ALONE = """
    logconfig_dict = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"logagg": {"class": "logagg.Handler", "filename": "app.log"}},
        "root": {"handlers": ["logagg"], "level": "INFO"},
    }
    accesslog = "-"
"""

GUNICORN = "gunicorn -c conf.py -w 2 -b 127.0.0.1:PORT app:app"
UVICORN_WORKERS = f"{GUNICORN} -k uvicorn_worker.UvicornWorker"
SERVERS = {
    "gunicorn": ("gunicorn", WSGI, MADE, GUNICORN),
    "gunicorn, root alone": ("gunicorn", WSGI, ROOT_ALONE, GUNICORN),
    "gunicorn, root alone, run": (
        "gunicorn", WSGI, ROOT_ALONE, GUNICORN.replace("-w 2 ", ""),
    ),
    "gunicorn, uvicorn's workers": ("uvicorn", ASGI, MADE, UVICORN_WORKERS),
    "gunicorn, uvicorn's workers, root alone": (
        "uvicorn", ASGI, ROOT_ALONE, UVICORN_WORKERS,
    ),
    "uvicorn": (
        "uvicorn", ASGI, MADE,
        "uvicorn --log-config log.json --lifespan off --port PORT app:app",
    ),
    "hypercorn": (
        "hypercorn", ASGI, MADE, "hypercorn -c file:conf.py -b 127.0.0.1:PORT app:app",
    ),
    "granian": (
        "granian", ASGI, MADE,
        "granian --interface asginl --access-log --log-config log.json --port PORT app:app",
    ),
    "hypercorn, run": (
        "hypercorn", ASGI, "", "hypercorn --access-logfile - -b 127.0.0.1:PORT app:app",
    ),
    "granian, run": (
        "granian", ASGI, "", "granian --interface asginl --access-log --port PORT app:app",
    ),
    "aiohttp": ("aiohttp", AIOHTTP, "", "app PORT"),
    "aiohttp, run": ("aiohttp", AIOHTTP, "", "app -- PORT"),
}  # fmt: skip
"""By name: whose access log it is, the application, the configuration, the command."""


CELERY = [
    ("handler", "True", "prefork"),
    ("handler", "False", "prefork"),
    ("handler", "True", "threads"),
    ("start", "True", "prefork"),
    ("start", "False", "solo"),
    ("run", "True", "prefork"),
    ("run", "False", "prefork"),
    ("run", "True", "solo"),
]
"""Ways to log, `worker_hijack_root_logger`, kinds of the worker's pool."""


def _celery(folder: Path, way: str, words: str, hijack: str = "True") -> Program:
    command = [sys.executable, "shop.py"]
    if way == "handler":
        command = [sys.executable, "-m", "celery", "-A", "shop", *words.split()]
    elif way == "run":
        command = [*LOGAGG, "run", "-w", "1", "--sink", "file:app.log", "shop.py"]
    return Program(folder, command, WAY=way, HIJACK=hijack, WORDS=words)


def _shop(folder: Path) -> None:
    (folder / "shop.py").write_text(textwrap.dedent(SHOP))
    for name in ("queue", "control"):
        (folder / name).mkdir()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("way", "hijack", "pool"), CELERY)
def test_celery(tmp_path: Path, way: str, hijack: str, pool: str) -> None:
    """A worker's and its tasks' records arrive once, with the task's fields."""
    _shop(tmp_path)
    path = os.pathsep.join((str(tmp_path), os.environ["PYTHONPATH"]))
    variables = {"WAY": "client", "HIJACK": hijack, "PYTHONPATH": path}
    code = "import shop; print(*(shop.job.delay(n).id for n in range(4)))"
    sent = support.python(
        code, cwd=tmp_path, env={**os.environ, **variables}
    ).stdout.split()
    with _celery(
        tmp_path, way, f"worker -l INFO -c 2 -P {pool}", hijack=hijack
    ) as program:
        program.until(lambda found: sum(map(_ends_task, found)) == 5, "five ends")
        program.until_message(" ready.")
    found = records(tmp_path)
    for n, task in enumerate(sent[:3]):
        of_task = [each for each in found if each.get("task_id") == task]
        assert [(each["logger"], each["level"]) for each in of_task] == [
            ("celery.worker.strategy", "info"),
            ("shop.pay", "warning"),
            ("shop", "info"),
            ("celery.app.trace", "error" if n == 1 else "info"),
        ]
        assert {each["task_name"] for each in of_task} == {"shop.job"}
        assert [each["message"] for each in of_task][1:3] == [
            f"plain {n}",
            f"of the task logger {n}",
        ]
        assert of_task[1]["order"] == n
        if n == 1:
            assert of_task[3]["exception"]["type"] == "ValueError"
        else:
            assert of_task[3]["duration_ms"] > 0
    retried = [each for each in found if each.get("task_id") == sent[3]]
    assert {each["task_name"] for each in retried} == {"shop.job"}
    assert Counter(
        (e["logger"], e.get("task_retries"))
        for e in retried
        if not e["logger"].startswith("kombu")
    ) == {
        ("celery.worker.strategy", None): 2,  # it receives tasks and runs none
        **{
            (logger, retries): 1
            for logger in ("shop.pay", "shop", "celery.app.trace")
            for retries in (None, 1)
        },
    }
    assert "hunter2" not in (tmp_path / "app.log").read_text()
    ready = [each for each in found if each["message"].endswith(" ready.")]
    assert [each["level"] for each in ready] == ["info"]
    assert "task_id" not in ready[0]
    assert all(each["logger"] != "stderr" for each in found if "shop.job" in str(each))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["handler", "run"])
def test_celery_beat(tmp_path: Path, way: str) -> None:
    """Its records arrive once, also where no worker runs."""
    _shop(tmp_path)
    with _celery(tmp_path, way, "beat -l INFO -s schedule") as program:
        program.until_message("Sending due task often")
    found = [each for each in records(tmp_path) if each["logger"] == "celery.beat"]
    starts = [each for each in found if each["message"] == "beat: Starting..."]
    assert [each["level"] for each in starts] == ["info"]
    sent = [each["seq"] for each in found]
    assert len(sent) == len(set(sent))


def _ends_task(record: dict[str, Any]) -> bool:
    return record["logger"] == "celery.app.trace"


def _get(port: int, path: str) -> None:
    def answered() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    support.wait_until(answered, what="an answer of the server")


def _server(folder: Path, case: str) -> tuple[Program, int]:
    """A server's program, not started yet, and its port."""
    _, application, configuration, line = SERVERS[case]
    (folder / "app.py").write_text(textwrap.dedent(application))
    text = configuration.replace("SERVER", repr(line.split()[0]))
    (folder / "conf.py").write_text(textwrap.dedent(text))
    support.finish([sys.executable, "conf.py"], cwd=folder)
    port = free_port()
    command = ["-m", *line.replace("PORT", str(port)).split()]
    if case.endswith("run"):
        command = [*LOGAGG[1:], "run", "-w", "1", "--sink", "file:app.log", *command]
    variables = {} if case.endswith("run") else {"HANDLER": "yes"}
    return Program(folder, [sys.executable, *command], **variables), port


@pytest.mark.slow
@pytest.mark.parametrize("case", SERVERS)
def test_a_server_with_a_dictionary(tmp_path: Path, case: str) -> None:
    """Its own, its access log's and the application's records arrive once."""
    server = SERVERS[case][0]
    made, port = _server(tmp_path, case)
    with made as program:
        _get(port, "/broken?a=b")
        _get(port, "/fine?a=b")
        program.until_message("/fine")
    found = records(tmp_path)
    access = [each for each in found if each.get("path") == "/fine"]
    assert len(access) == 1, found
    assert access[0]["logger"] == f"{server}.access"
    assert (access[0]["method"], access[0]["status"]) == ("GET", 200)
    answers = [each["status"] for each in found if each.get("path") == "/broken"]
    assert answers == [500], found
    paid = [each for each in found if each["logger"] == "shop.pay"]
    assert [each["order"] for each in paid] == [7, 7]
    broken = [each for each in found if "exception" in each]
    assert [each["exception"]["type"] for each in broken] == ["ValueError"], found
    assert "paid" not in (tmp_path / "output").read_text()


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "case",
    [
        "gunicorn",
        "gunicorn, root alone, run",
        "uvicorn",
        "hypercorn, run",
        "granian, run",
    ],
)
def test_a_server_under_load(tmp_path: Path, case: str) -> None:
    """Each of 1,000 requests from eight clients at once is in the log once, whole."""
    made, port = _server(tmp_path, case)
    with made as program:
        _get(port, "/first")
        paths = [f"/{n}" for n in range(1000)]
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(lambda path: _get(port, path), paths))
        program.until(
            lambda found: sum(each.get("status") == 200 for each in found) > len(paths),
            "an access record for each request",
        )
    found = records(tmp_path)
    counted = Counter(each["path"] for each in found if each.get("status") == 200)
    assert counted == Counter(["/first", *paths])
    paid = [each for each in found if each["logger"] == "shop.pay"]
    assert len(paid) == len(paths) + 1
    assert {(each["level"], each["order"]) for each in paid} == {("warning", 7)}
    assert len({(each["worker"], each["seq"]) for each in found}) == len(found)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", ["handler", "run"])
def test_celery_under_load(tmp_path: Path, way: str) -> None:
    """Each of 300 tasks in four processes has its records once, with its identifier."""
    _shop(tmp_path)
    path = os.pathsep.join((str(tmp_path), os.environ["PYTHONPATH"]))
    variables = {"WAY": "client", "HIJACK": "True", "PYTHONPATH": path}
    code = "import shop; print(*(shop.job.delay(n).id for n in range(10, 310)))"
    sent = support.python(
        code, cwd=tmp_path, env={**os.environ, **variables}
    ).stdout.split()
    with _celery(tmp_path, way, "worker -l INFO -c 4 -P prefork") as program:
        program.until(lambda found: sum(map(_ends_task, found)) == 300, "300 ends")
    found = records(tmp_path)
    for logger, level in (("shop.pay", "warning"), ("shop", "info")):
        mine = [each for each in found if each["logger"] == logger]
        assert sorted(each["task_id"] for each in mine) == sorted(sent)
        assert {each["level"] for each in mine} == {level}
    orders = {each["task_id"]: each.get("order") for each in found if "order" in each}
    assert orders == {task: n for n, task in enumerate(sent, 10)}
