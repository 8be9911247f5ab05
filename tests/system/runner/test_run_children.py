"""What a worker's own children log arrives, however they were started."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each

POOLS = """
    import logging, multiprocessing, sys
    log = logging.getLogger("kid")
    def child(i):
        log.info("from a child", extra={"i": i})
    if __name__ == "__main__":
        SETUP
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            pool.map(child, range(20))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    "setup", ["pass", "logging.basicConfig(level='INFO', force=True)"]
)
def test_pools_of_a_worker_log_records(run: Any, method: str, setup: str) -> None:
    """Each record once, with its level and fields, and the worker's slot in its name."""
    run.write("app.py", POOLS.replace("SETUP", setup))

    assert run.start("-w", 1, "app.py", "--", method).wait(40) == 0

    found = run.records(logger="kid")
    assert Counter(r["i"] for r in found) == Counter(range(20))
    assert {(r["level"], r["message"]) for r in found} == {("info", "from a child")}
    assert all(r["worker"].startswith("1.") for r in found)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_sets_up_logging_by_itself(run: Any, method: str) -> None:
    """Level and file of its own hold, as without logagg, and each record comes once."""
    run.write(
        "app.py",
        """
        import logging, multiprocessing, sys
        def child():
            logging.basicConfig(level="DEBUG", filename="own.log")
            logging.getLogger("kid").debug("first")
            logging.basicConfig(level="DEBUG", force=True)
            logging.getLogger("kid").debug("second")
        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            process = context.Process(target=child)
            process.start()
            process.join()
        """,
    )

    assert run.start("-w", 1, "app.py", "--", method).wait(40) == 0

    found = [(r["level"], r["message"]) for r in run.records(logger="kid")]
    assert found == [("debug", "first"), ("debug", "second")]
    assert (run.directory / "own.log").read_text() == "DEBUG:kid:first\n"


def test_loky_pools_log_records(run: Any) -> None:
    """joblib's workers are started by a copy of multiprocessing's spawn."""
    run.write(
        "app.py",
        """
        import logging
        from joblib import Parallel, delayed
        def child(i):
            logging.getLogger("kid").info("from a child", extra={"i": i})
        if __name__ == "__main__":
            Parallel(n_jobs=2)(delayed(child)(i) for i in range(6))
        """,
    )

    assert run.start("-w", 1, "app.py").wait(40) == 0

    assert sorted(r["i"] for r in run.records(logger="kid")) == list(range(6))


EXECD = "import logging; L = logging.getLogger('kid'); L.info('i'); L.warning('w')"


def test_interpreters_that_a_worker_starts_log_records(run: Any) -> None:
    """A subprocess of Python needs no line of its own."""
    run.write(
        "app.py",
        f"""
        import subprocess, sys
        subprocess.run([sys.executable, "-c", {EXECD!r}], check=True)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(40) == 0

    found = run.records(logger="kid")
    assert [(r["level"], r["message"]) for r in found] == [
        ("info", "i"),
        ("warning", "w"),
    ]


def test_a_sitecustomize_of_the_users_still_runs(run: Any) -> None:
    """Ours stands in front of it and runs it; switched off, there is only theirs."""
    run.write("sitecustomize.py", "import builtins; builtins.theirs = 1\n")
    run.write(
        "app.py",
        f"""
        import os, subprocess, sys
        os.environ["PYTHONPATH"] += os.pathsep + os.getcwd()
        code = {EXECD!r} + "; assert theirs"
        subprocess.run([sys.executable, "-c", code], check=True)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(40) == 0

    assert [r["level"] for r in run.records(logger="kid")] == ["info", "warning"]


def test_children_can_be_left_alone(run: Any) -> None:
    """`LOGAGG_CHILDREN=no`: an interpreter logs as it would, its text is captured."""
    run.env["LOGAGG_CHILDREN"] = "no"
    run.write(
        "app.py",
        f"""
        import os, subprocess, sys
        assert "startup" not in os.environ.get("PYTHONPATH", "")
        subprocess.run([sys.executable, "-c", {EXECD!r}], check=True)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(40) == 0

    assert run.records(logger="kid") == []
    assert run.messages(stream="stderr") == ["w"]


def test_what_a_program_reads_from_its_child_is_all_there(run: Any) -> None:
    """A child whose stderr is a pipe of the program's prints there as without logagg."""
    run.write(
        "app.py",
        f"""
        import subprocess, sys
        code = {EXECD!r} + "; L.critical('c'); 1 / 0"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        print(done.stderr.splitlines()[:2], "ZeroDivisionError" in done.stderr)
        """,
    )

    assert run.start("-w", 1, "app.py").wait(40) == 0

    assert run.messages(stream="stdout") == ["['w', 'c'] True"]
    assert run.records(logger="kid") == []
