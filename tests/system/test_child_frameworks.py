"""Frameworks that start processes of their own: what these log arrives once."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import support
from harness.program import records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DASK = """
    import logging, os
    import logagg
    def job(n):
        logging.getLogger("shop.pay").info("paid", extra={"order": n})
    def main():
        from dask.distributed import Client, LocalCluster
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as own:
            with Client(own) as client:
                client.gather(client.map(job, range(4)))
    if __name__ == "__main__":
        logging.basicConfig(level="INFO")
        if os.environ["WAY"] == "start":
            with logagg.start("file:app.log"):
                main()
        else:
            main()
"""

# Pools by relatives of multiprocessing, and plain interpreters: no line in the children.
POOL = """
    import logging, os
    import logagg
    def job(n):
        logging.getLogger("shop.pay").info("paid", extra={"order": n})
    def main():
        POOLED
    if __name__ == "__main__":
        logging.basicConfig(level="INFO")
        if os.environ["WAY"] == "start":
            with logagg.start("file:app.log"):
                main()
        else:
            main()
"""
POOLED = {
    "joblib": "from joblib import Parallel, delayed\n"
    "Parallel(n_jobs=2)(delayed(job)(n) for n in range(4))",
    **{
        f"{package}, {method}": f"from {package} import get_context\n"
        f"with get_context({method!r}).Pool(2) as pool: pool.map(job, range(4))"
        for package in ("multiprocess", "billiard")
        for method in ("fork", "spawn")
    },
    "subprocess": "import subprocess, sys\n"
    "for n in range(4):\n"
    "    code = f'import app; app.job({n})'\n"
    "    subprocess.run([sys.executable, '-c', code], check=True)",
}

XDIST = """
    import logging, os, pytest
    import logagg
    if os.environ["WAY"] == "start":
        logging.getLogger().addHandler(logagg.Handler("app.log"))
    @pytest.mark.parametrize("n", range(4))
    def test_pay(n):
        logging.getLogger("shop.pay").info("paid", extra={"order": n})
"""
QUIET = "-q -p no:cacheprovider -o log_level=INFO -n 2 app.py"

LAUNCHER = """
    import os, subprocess, sys
    code = '''if 1:
        import logging, os
        import logagg
        if os.environ["WAY"] == "start":
            logging.basicConfig(handlers=[logagg.Handler("app.log")])
        logging.getLogger().setLevel("INFO")
        n = int(os.environ["RANK"])
        logging.getLogger("shop.pay").info("paid", extra={"order": n})
        '''
    for n in range(4):
        place = {"RANK": str(n), "LOCAL_RANK": str(n % 2), "WORLD_SIZE": "4"}
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **place}, check=True)
"""

# One file for each task of a DAG, as a scheduler like Airflow has it: by the logger.
PER_TASK = """
    import logging, multiprocessing, os
    import logagg
    def job(n):
        logging.getLogger(f"dag.task{n}").info("paid", extra={"order": n})
    if __name__ == "__main__":
        os.mkdir("tasks")
        with logagg.start("file:app.log", "file:tasks/{logger}.log"):
            logging.getLogger().setLevel("INFO")
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                pool.map(job, range(4))
"""

ATTACHED = """
    import logging, subprocess, sys
    import logagg
    code = '''if 1:
        import logagg, logging, sys
        assert logagg.attach("INFO")
        logging.getLogger("shop.pay").info("paid", extra={"order": int(sys.argv[1])})
        '''
    with logagg.start("file:app.log"):
        for n in range(4):
            subprocess.run([sys.executable, "-c", code, str(n)], check=True)
"""


RAY = """
    import logging, os
    import logagg, ray
    def hook():
        logagg.attach("INFO")
    @ray.remote
    def job(n):
        logging.getLogger("shop.pay").info("paid", extra={"order": n})
    @ray.remote
    class Payer:
        def pay(self, n):
            logging.getLogger("shop.pay").info("paid", extra={"order": n})
    def main():
        variables = {"LOGAGG_SOCKET": os.environ["LOGAGG_SOCKET"]}
        env = {"worker_process_setup_hook": hook, "env_vars": variables}
        ray.init(num_cpus=1, include_dashboard=False, runtime_env=env,
                 object_store_memory=100_000_000)
        ray.get([job.remote(n) for n in range(3)])
        payer = Payer.remote()
        ray.get(payer.pay.remote(3))
        ray.shutdown()
    if __name__ == "__main__":
        if os.environ["WAY"] == "start":
            with logagg.start("file:app.log"):
                main()
        else:
            main()
"""


TORCH = """
    import logging
    import torch
    import torch.distributed
    logging.basicConfig(level="INFO")
    torch.distributed.init_process_group("gloo")
    total, rank = torch.ones(1), torch.distributed.get_rank()
    torch.distributed.all_reduce(total)
    logging.getLogger("shop.pay").info("paid %d", total.item(), extra={"order": rank})
    torch.distributed.destroy_process_group()
"""
STARTED = """
    import subprocess, sys
    import logagg
    with logagg.start("file:app.log"):
        subprocess.run([sys.executable, *WORDS], check=True)
"""


def _run(
    folder: Path, way: str, text: str, words: str = "app.py"
) -> list[dict[str, Any]]:
    (folder / "app.py").write_text(textwrap.dedent(text))
    command = [sys.executable, *words.split()]
    if way == "run":
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
        ]
        command = [sys.executable, *run, *words.split()]
    support.finish(command, cwd=folder, env={**os.environ, "WAY": way}, timeout=120)
    support.settled()
    return records(folder)


@pytest.mark.parametrize("way", ["start", "run"])
def test_workers_of_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """By its setup hook, in processes that ray's own daemon has started."""
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it makes a file in the home
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = _run(tmp_path, way, RAY)
    mine = [each for each in found if each["logger"] == "shop.pay"]
    assert sorted(each["order"] for each in mine) == list(range(4)), found
    assert {(each["level"], each["message"]) for each in mine} == {("info", "paid")}
    assert not [each for each in mine if any("ray" in name for name in each)]


@pytest.mark.parametrize("way", ["start", "run"])
def test_processes_of_torchrun(tmp_path: Path, way: str) -> None:
    """Real ones, that reduce a tensor together: a record of each, with its place."""
    pytest.importorskip("torch", reason="torch is not installed")
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 job.py"
    (tmp_path / "job.py").write_text(textwrap.dedent(TORCH))
    if way == "run":
        found = _run(tmp_path, way, TORCH, words)
    else:
        found = _run(tmp_path, way, STARTED.replace("WORDS", repr(words.split())))
    mine = [each for each in found if each["logger"] == "shop.pay"]
    assert sorted(each["order"] for each in mine) == [0, 1], found
    assert {(each["level"], each["message"]) for each in mine} == {("info", "paid 2")}
    for each in mine:
        assert each["rank"] == each["local_rank"] == each["order"]
        assert each["world_size"] == 2


@pytest.mark.parametrize("way", ["start", "run"])
@pytest.mark.parametrize("name", ["dask", "pytest-xdist", "a launcher", *POOLED])
def test_processes_of_a_framework(tmp_path: Path, name: str, way: str) -> None:
    """dask's workers, pytest-xdist's, and interpreters as torchrun starts them; pools of
    multiprocessing's relatives, and interpreters that a program starts by itself.
    """
    if name in POOLED:
        body = textwrap.indent(POOLED[name], "        ").lstrip()
        found = _run(tmp_path, way, POOL.replace("POOLED", body))
    elif name == "dask":
        pytest.importorskip("distributed", reason="dask's distributed is not installed")
        found = _run(tmp_path, way, DASK)
    elif name == "pytest-xdist":
        found = _run(tmp_path, way, XDIST, f"-m pytest {QUIET}")
    else:
        found = _run(tmp_path, way, LAUNCHER)
    mine = [each for each in found if each["logger"] == "shop.pay"]
    assert Counter(each["order"] for each in mine) == Counter(range(4)), found
    assert {(each["level"], each["message"]) for each in mine} == {("info", "paid")}
    if name == "a launcher":
        places = [(e["rank"], e["local_rank"], e["world_size"]) for e in mine]
        assert sorted(places) == [(0, 0, 4), (1, 1, 4), (2, 0, 4), (3, 1, 4)]


READ = """
    import logging, os, subprocess, sys
    import logagg
    before = dict(os.environ)
    code = "import logging; logging.warning('w')"
    with logagg.start("file:app.log"):
        done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE)
        assert done.stderr == b"WARNING:root:w" + os.linesep.encode(), done.stderr
        os.environ["LOGAGG_CHILDREN"] = "no"
        with logagg.start("file:app2.log"):
            subprocess.run([sys.executable, "-c", code])
        del os.environ["LOGAGG_CHILDREN"]
        code = "import logging; logging.basicConfig(); logging.warning('both')"
        subprocess.run([sys.executable, "-c", code])
    assert os.environ == before
"""


def test_what_a_program_reads_of_its_children_stays_text(tmp_path: Path) -> None:
    """A console handler of a child prints as ever, besides; nothing is left set."""
    (tmp_path / "app.py").write_text(textwrap.dedent(READ))
    done = support.finish([sys.executable, "app.py"], cwd=tmp_path)
    assert done.stderr.splitlines() == ["WARNING:root:w", "WARNING:root:both"]
    support.settled()
    found = records(tmp_path)
    assert [each["message"] for each in found] == ["both"]
    assert not [
        each for each in support.records(tmp_path / "app2.log") if "event" not in each
    ]


def test_a_file_for_each_task(tmp_path: Path) -> None:
    """By the task's logger, besides the file with all records in order."""
    found = _run(tmp_path, "start", PER_TASK)
    assert sorted(each["order"] for each in found) == list(range(4))
    for n in range(4):
        (line,) = support.records(tmp_path / "tasks" / f"dag.task{n}.log")
        assert line["order"] == n


def test_children_that_call_attach(tmp_path: Path) -> None:
    """The hook of a cluster whose workers logagg cannot reach by itself, as ray's."""
    found = _run(tmp_path, "start", ATTACHED)
    assert sorted(each["order"] for each in found) == list(range(4))
