"""Templates of file names mean the same for `logagg run`, `logagg.start` and a handler."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import support

pytestmark = pytest.mark.slow

WAYS = {
    "handler": """if 1:
        import logging, sys
        import logagg
        logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])])
        logging.getLogger("dag.load").warning("x")
        """,
    "sinks": """if 1:
        import logging, sys
        import logagg
        logging.basicConfig(handlers=[logagg.Handler(sinks=["file:" + sys.argv[1]])])
        logging.getLogger("dag.load").warning("x")
        """,
    "start": """if 1:
        import logging, sys
        import logagg
        with logagg.start("file:" + sys.argv[1]):
            logging.getLogger("dag.load").warning("x")
        """,
    "run": "import logging; logging.getLogger('dag.load').warning('x')",
}

MADE = {
    "{worker}/{logger}.log": r"\d+/dag\.load\.log",
    "all/{logger}/{worker}.log": r"all/dag\.load/\d+\.log",
    "missing/too/{worker}-{date}.log": r"missing/too/\d+-\d{4}-\d\d-\d\d\.log",
    "{{plain}}.log": r"\{plain\}\.log",
}
REFUSED = {
    "{date}/{worker}.log": "expected a path with {date} in the file's name",
    "{order}/x.log": "expected a path with no other fields than",
    "{worker}{logger}.log": "expected a path with a separator",
    "{worker": "expected a path with each { closed",
}


def log(folder: Path, way: str, path: str) -> str:
    """Log one record to a file of this name; return what stands on stderr."""
    words = ["-c", WAYS[way], path]
    if way == "run":
        (folder / "app.py").write_text(WAYS[way])
        words = ["-m", "logagg", "run", "-w", "1", "--restart", "never"]
        words += ["--sink", f"file:{path}", "app.py"]
    env = {name: v for name, v in os.environ.items() if name != "LOGAGG_SOCKET"}
    done = support.finish([sys.executable, *words], None, cwd=folder, env=env)
    support.settled()
    return done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_the_same_files_are_made(tmp_path: Path, way: str) -> None:
    """Directories too, also those before the first field."""
    for path, expected in MADE.items():
        assert log(tmp_path, way, path) == "", path
        found = {
            str(each.relative_to(tmp_path)): each
            for each in tmp_path.rglob("*.log")
            if not each.name.startswith(".") and "consumer" not in str(each)
        }
        mine = [each for name, each in found.items() if re.fullmatch(expected, name)]
        assert len(mine) == 1, (path, found)
        records = [
            each for each in support.records(mine[0]) if not support.of_service(each)
        ]
        assert [each["message"] for each in records] == ["x"]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_templates_are_refused(tmp_path: Path, way: str) -> None:
    """With the same words; nothing is made."""
    for path, reason in REFUSED.items():
        shown = log(tmp_path, way, path)
        assert reason in shown, path
        assert path in shown
    assert not list(tmp_path.rglob("*.log"))
