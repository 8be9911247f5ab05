"""Task queues with real brokers: every record of a job arrives once, with its fields."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import support
from harness.program import Program, free_port, records
from redis import Redis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

JOB = """
    import logging, os, sys
    import logagg
    def job(n):
        logging.getLogger("shop.pay").warning("plain %d", n, extra={"order": n})
        logging.getLogger("shop.pay").info("more %d", n)
        if n == 1:
            raise ValueError("odd")
"""
CONFIGURE = """
    if os.environ.get("WAY") == "handler":
        logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")
"""
RQ = """
    import os
    import logagg
    if os.environ["WAY"] == "handler":
        DICT_CONFIG = logagg.logging_config(filename="app.log")
"""
RQ_SEND = """
    import os, shop
    from redis import Redis
    from rq import Queue, Retry
    queue = Queue(connection=Redis(port=int(os.environ["PORT"])))
    print(*(queue.enqueue(shop.job, n, retry=Retry(max=1)).id for n in range(3)))
"""
RQ_WORK = "-m rq.cli worker -c settings --url redis://127.0.0.1:PORT"
DRAMATIQ = """
    import os
    import dramatiq, shop
    from dramatiq.brokers.redis import RedisBroker
    dramatiq.set_broker(RedisBroker(port=int(os.environ["PORT"])))
    job = dramatiq.actor(shop.job, max_retries=1, min_backoff=1, max_backoff=1)
"""
DRAMATIQ_SEND = "import jobs; print(*(jobs.job.send(n).message_id for n in range(3)))"
HUEY = """
    import os
    import shop
    from huey import RedisHuey
    huey = RedisHuey(port=int(os.environ["PORT"]))
    job = huey.task(retries=1)(shop.job)
"""
GREEN = """
    from gevent import monkey
    monkey.patch_all()
    from huey.bin.huey_consumer import consumer_main
    consumer_main()
"""
HUEY_SEND = "import jobs; print(*(jobs.job(n).id for n in range(3)))"
HUEY_WORK = "-m huey.bin.huey_consumer jobs.huey -w 2"


class Queue(NamedTuple):
    """One library and kind of worker."""

    files: dict[str, str]
    send: str  # the program that sends the jobs and prints their ids
    work: str  # the worker's command
    options: str  # what the command needs without `logagg run`
    logger: str  # of the exception of a job
    counts: Literal["retries", "left"]  # what it knows of a job's retries


RQ_FILES = {"shop.py": JOB, "settings.py": RQ}
RQ_SPAWNED = {"shop.py": JOB + CONFIGURE, "settings.py": ""}
DRAMATIQ_FILES = {"shop.py": JOB + CONFIGURE, "jobs.py": DRAMATIQ}
HUEY_FILES = {"shop.py": JOB + CONFIGURE, "jobs.py": HUEY}
SKIP, THREAD = "--skip-logging", "dramatiq.worker.WorkerThread"
QUEUES = {
    "rq": Queue(RQ_FILES, RQ_SEND, RQ_WORK, "", "rq.worker", "left"),
    "rq, one process": Queue(
        RQ_FILES, RQ_SEND, f"{RQ_WORK} -w rq.SimpleWorker", "", "rq.worker", "left"
    ),
    "rq, spawned": Queue(
        RQ_SPAWNED, RQ_SEND, f"{RQ_WORK} -w rq.SpawnWorker", "", "rq.worker", "left"
    ),
    "dramatiq": Queue(
        DRAMATIQ_FILES,
        DRAMATIQ_SEND,
        "-m dramatiq jobs -p 2 -t 1",
        SKIP,
        THREAD,
        "retries",
    ),
    "dramatiq, spawned": Queue(
        DRAMATIQ_FILES,
        DRAMATIQ_SEND,
        "-m dramatiq jobs -p 1 -t 2 --use-spawn",
        SKIP,
        THREAD,
        "retries",
    ),
    "huey": Queue(HUEY_FILES, HUEY_SEND, HUEY_WORK, "", "huey", "left"),
    "huey, processes": Queue(
        HUEY_FILES, HUEY_SEND, f"{HUEY_WORK} -k process", "", "huey", "left"
    ),
    "huey, greenlets": Queue(
        {**HUEY_FILES, "green.py": GREEN},
        HUEY_SEND,
        "green.py jobs.huey -w 2 -k greenlet",
        "",
        "huey",
        "left",
    ),
}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis of this module's own."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed")
    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [server, "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
            cwd=folder,
            stdout=output,
        )
        yield port
        process.terminate()
        process.wait()


@pytest.mark.parametrize("way", ["handler", "run"])
@pytest.mark.parametrize("name", QUEUES)
def test_a_task_queue(tmp_path: Path, redis: int, name: str, way: str) -> None:
    """Three jobs, one of which fails twice: what they log, and its exceptions, once each.

    Every record of a job has its id, its name, and how often it was retried.
    """
    if name.endswith("greenlets"):
        pytest.importorskip("gevent", reason="gevent is not installed")
    queue = QUEUES[name]
    Redis(port=redis).flushall()
    for file, text in queue.files.items():
        (tmp_path / file).write_text(textwrap.dedent(text))
    path = os.pathsep.join((str(tmp_path), os.environ["PYTHONPATH"]))
    env = {**os.environ, "PORT": str(redis), "WAY": "send", "PYTHONPATH": path}
    sent = support.python(textwrap.dedent(queue.send), cwd=tmp_path, env=env)
    ids = sent.stdout.split()
    words = queue.work.replace("PORT", str(redis)).split()
    if way == "run":
        words = ["-m", "logagg", "run", "-w", "1", "--sink", "file:app.log", *words]
    else:
        words += queue.options.split()
    with Program(
        tmp_path, [sys.executable, *words], PORT=str(redis), WAY=way
    ) as program:
        program.until(_complete, "four runs of three jobs and two exceptions")
    found = records(tmp_path)
    mine = [each for each in found if each["logger"] == "shop.pay"]
    # One retry each: after it, it is counted, or none is left.
    counted = (1, None) if queue.counts == "left" else (None, 1)
    tries = [(0, counted[0]), (1, counted[0]), (1, counted[1]), (2, counted[0])]
    field = {"left": "task_retries_left", "retries": "task_retries"}[queue.counts]
    assert Counter(
        (e["level"], e["message"], e.get("order"), e["task_id"], e.get(field))
        for e in mine
    ) == Counter(
        (level, f"{word} {n}", order and n, ids[n], count)
        for n, count in tries
        for level, word, order in (("warning", "plain", True), ("info", "more", None))
    ), found
    task = "shop.job" if name.startswith("rq") else "job"
    assert {each["task_name"] for each in mine} == {task}
    named = {str(each.get("greenlet")).partition("-")[0] for each in mine}
    assert named == {"Greenlet" if name.endswith("greenlets") else "None"}
    broken = [each for each in found if "exception" in each]
    assert [(e["logger"], e["level"]) for e in broken] == [(queue.logger, "error")] * 2
    for each in broken:
        assert (each["task_id"], each["task_name"]) == (ids[1], task)
        error = each["exception"]
        assert (error["type"], error["message"]) == ("ValueError", "odd")
    assert not [each for each in found if each.get("stream")], found
    assert not [each for each in found if "arguments" in each or "kwargs" in each]


def _complete(found: list[dict[str, Any]]) -> bool:
    mine = [each for each in found if each["logger"] == "shop.pay"]
    return len(mine) >= 8 and len([e for e in found if "exception" in e]) >= 2
