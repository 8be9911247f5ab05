"""CPython's own tests of `logging` pass in a process that logs through logagg."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import support

PROGRAM = """
import logging, os, sys, unittest
import celery.app.log, dramatiq, huey, loguru, rich.logging, rq, structlog
import logagg
import test.test_logging
assert logagg.install(excepthooks=True)
logagg.Handler("h.log", location=True)
if os.environ["WAY"] == "start":
    logagg.start("file:app.log").__enter__()
# The tests begin with a logger that nobody has configured, and check that.
logging.getLogger().handlers.clear()
logging.getLogger().setLevel("WARNING")
suite = unittest.TestSuite()
def add(tests):
    for each in tests:
        if isinstance(each, unittest.TestSuite):
            add(each)
        elif not each.id().endswith(tuple(sys.argv[1:])):
            suite.addTest(each)
add(unittest.defaultTestLoader.loadTestsFromModule(test.test_logging))
assert suite.countTestCases() > 190
with open("result", "w") as result:
    done = unittest.TextTestRunner(stream=result).run(suite)
if not done.wasSuccessful():
    os._exit(7)
os._exit(0)
"""

LEFT_OUT = ("LastResortTest.test_last_resort",)
"""It wants a record that no handler takes on stderr, where a run takes it."""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    importlib.util.find_spec("test.test_logging") is None,
    reason="this interpreter is installed without CPython's own tests",
)
@pytest.mark.parametrize("way", ["handler", "start", "run"])
def test_the_tests_of_logging_pass(tmp_path: Path, way: str) -> None:
    """With a handler made, records made faster, uncaught exceptions logged, and all that
    is installed for libraries, for children and under a run.
    """
    (tmp_path / "program.py").write_text(PROGRAM)
    words = ["program.py"]
    if way == "run":
        words = ["-m", "logagg", "run", "-w", "1", "--restart", "never", "--sink"]
        words += ["file:run.log", "program.py", "--", *LEFT_OUT]
    done = support.finish(
        [sys.executable, *words],
        None,
        300,
        cwd=tmp_path,
        env={**os.environ, "WAY": way},
    )
    assert done.returncode == 0, (tmp_path / "result").read_text() + done.stderr
