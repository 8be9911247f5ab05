"""Workers are replaced after so many connections or tasks, and nothing fails by it."""

from __future__ import annotations

import collections
import json
import signal
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each


@pytest.mark.parametrize("policy", ["kernel", "rr"])
def test_a_worker_is_replaced_after_its_connections(
    run: Any, tools: Any, policy: str
) -> None:
    """`--max-connections 50` under load: the fresh one is ready first, no request fails."""
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    words = ["-m", "uvicorn", "web:app", "--port", port, "--loop", "asyncio"]
    run.start(
        *("-w", 2, "--level", "debug", "--policy", policy, "--max-connections", 50),
        *words,
    )
    run.until_ready(2)

    load = tools.Load(port)
    try:
        tools.until(lambda: len(run.records(event="worker_exit")) >= 3)
    finally:
        load.stop()

    assert load.bad == []
    reasons = run.messages(event="recycle")
    assert all("took its number of connections" in reason for reason in reasons)
    assert {end["level"] for end in run.records(event="worker_exit")} == {"debug"}
    run.until_ready(2)
    assert run.stop() == -signal.SIGTERM


def test_a_small_number_of_connections_is_exact(run: Any, tools: Any) -> None:
    """`--max-connections 8`: the seventh changes nothing, the eighth is the last one."""
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    words = ["-m", "uvicorn", "web:app", "--port", port, "--loop", "asyncio"]
    run.start("-w", 1, "--level", "debug", "--max-connections", 8, *words)
    run.until_ready(1)

    first = {tools.get(port).split()[1] for _ in range(7)}
    tools.until(lambda: run.status()["slots"][0].get("connections") == 7)
    assert run.records(event="recycle") == []
    first.add(tools.get(port).split()[1])

    death = run.until_record(event="worker_exit")
    assert first == {str(death["pid"])}
    assert tools.get(port).split()[1] not in first
    assert run.stop() == -signal.SIGTERM


def test_connections_that_are_not_counted_are_said_to_be_so(
    run: Any, tools: Any
) -> None:
    """uvloop accepts in C: one line for each worker says that the limit does nothing."""
    pytest.importorskip("uvloop")
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    words = ["-m", "uvicorn", "web:app", "--port", port, "--loop", "uvloop"]
    run.start("-w", 2, "--max-connections", 50, *words)
    run.until_ready(2)

    def lines() -> list[str]:
        return [m for m in run.messages(level="warning") if "--max-conn" in m]

    tools.until(lambda: len(lines()) == 2)
    assert all("uvloop" in line and "--loop asyncio" in line for line in lines())
    assert run.stop() == -signal.SIGTERM

    done = run.command("run", "--max-connections", 5, "--", "sleep", "9")
    assert done.returncode == 2
    assert "sleep accepts connections itself" in done.stderr


def test_a_worker_is_replaced_after_its_tasks(run: Any) -> None:
    """`max_tasks=5`: no worker runs a sixth task, and every task has its result."""
    run.write(
        "tasks.py",
        "import logagg, os\n\n@logagg.task()\ndef who(n):\n    return [n, os.getpid()]\n",
    )
    run.write(
        "main.py",
        """
        import json, logagg, tasks
        deaths = []
        options = {"sinks": ["file:l"], "max_tasks": 5, "workers": 2}
        with logagg.Cluster("tasks.py", **options) as cluster:
            cluster.on("exit")(lambda worker, end: deaths.append(end.voluntary))
            futures = [cluster.submit(tasks.who, n) for n in range(40)]
            results = [future.result(30) for future in futures]
        print(json.dumps([results, deaths]))
        """,
    )

    ((results, deaths),) = python(run, "main.py")

    assert [number for number, _ in results] == list(range(40))
    counts = collections.Counter(pid for _, pid in results)
    assert max(counts.values()) == 5
    assert len(counts) >= 8
    assert all(deaths)
    assert len(deaths) >= 8


def test_a_reload_lets_tasks_finish(run: Any) -> None:
    """A worker that is replaced in the middle of a task ends it first: none fails."""
    run.write(
        "tasks.py",
        """
        import logagg, os, pathlib, time
        @logagg.task()
        def long(n):
            pathlib.Path(f"began{n}").touch()
            while not os.path.exists("go"):
                time.sleep(0.01)
            return n
        """,
    )
    run.write(
        "main.py",
        """
        import json, os, logagg, pathlib, tasks, time
        with logagg.Cluster("tasks.py", workers=2, sinks=["file:l"]) as cluster:
            futures = [cluster.submit(tasks.long, n) for n in range(2)]
            while not (os.path.exists("began0") and os.path.exists("began1")):
                time.sleep(0.01)
            reload = cluster.reload()
            while not any(worker.state == "draining" for worker in draining(cluster)):
                time.sleep(0.01)
            pathlib.Path("go").touch()
            print(json.dumps([[future.result(30) for future in futures], reload.result(30)]))
        """.replace(
            "draining(cluster)", "cluster._supervisor.context.workers.copy().values()"
        ),
    )

    ((results, replaced),) = python(run, "main.py")

    assert results == [0, 1]
    assert replaced == 2


def test_a_worker_that_cannot_be_replaced_works_on(run: Any) -> None:
    """When the fresh one fails, the one that did its share goes on: no task waits forever."""
    run.write(
        "tasks.py",
        """
        import logagg, os
        if os.path.exists("broken"):
            raise RuntimeError("broken release")
        @logagg.task()
        def double(n):
            return 2 * n
        """,
    )
    run.write(
        "main.py",
        """
        import json, logagg, pathlib, tasks
        options = {"sinks": ["file:l"], "max_tasks": 3, "workers": 1}
        with logagg.Cluster("tasks.py", **options) as cluster:
            first = cluster.submit(tasks.double, 0).result(30)
            pathlib.Path("broken").touch()
            futures = [cluster.submit(tasks.double, n) for n in range(1, 10)]
            print(json.dumps([first, *(future.result(30) for future in futures)]))
        """,
    )

    (results,) = python(run, "main.py")

    assert results == [2 * n for n in range(10)]


@pytest.mark.parametrize("name", ["--max-connections", "--max-tasks", "--max-age"])
def test_a_negative_limit_is_refused(run: Any, name: str) -> None:
    """One line names the option and the value."""
    run.write("app.py", "")

    done = run.command("run", name, "-1", "app.py")

    assert done.returncode == 2
    assert name.strip("-").replace("-", "_") in done.stderr.replace("-", "_")
    assert "-1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def python(run: Any, name: str) -> list[Any]:
    """Run a program that is a primary; the JSON values that it printed."""
    done = subprocess.run(
        [sys.executable, name],
        cwd=run.directory,
        env=run.env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "["]
