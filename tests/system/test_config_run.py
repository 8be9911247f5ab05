"""`logagg run` by a file: its options, and its sinks changed at a reload."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
from serving import LOGAGG

pytestmark = pytest.mark.slow  # many real processes, some seconds each

APP = """\
import itertools, logging, time

log = logging.getLogger("app")
for n in itertools.count():
    log.warning("m", extra={"who": "a", "n": n})
    time.sleep(0.005)
"""


@contextmanager
def run(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `logagg run` in a directory, stopped at the end."""
    (folder / "app.py").write_text(APP)
    with subprocess.Popen([*LOGAGG, "run", *words, "app.py"], cwd=folder) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def reload(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, str]:
    """`logagg reload` for a run: its status and what it says."""
    done = support.finish(
        [*LOGAGG, "reload", "--pid", str(process.pid)], status=None, cwd=folder
    )
    return done.returncode, done.stderr


def test_workers_and_sinks_come_from_the_file(tmp_path: Path) -> None:
    """As if they stood on the command line."""
    (tmp_path / "logagg.toml").write_text(
        'sinks = ["file:a.log"]\n[run]\nworkers = 2\n'
    )
    with run(tmp_path):
        support.wait_until(
            lambda: (
                (tmp_path / "a.log").exists()
                and {"1", "2"} <= {e["worker"] for e in whole(tmp_path / "a.log")}
            ),
        )


def whole(path: Path) -> list[dict[str, object]]:
    """The whole records of a file that is being written."""
    import json

    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_a_reload_changes_the_sinks_and_loses_nothing(tmp_path: Path) -> None:
    """What the old workers said is in the old file and the new one, each once."""
    (tmp_path / "logagg.toml").write_text(
        'sinks = ["file:a.log"]\n[run]\nworkers = 1\n'
    )
    with run(tmp_path) as process:
        support.wait_until(support.have(tmp_path / "a.log", 50))
        (tmp_path / "logagg.toml").write_text(
            'sinks = ["file:b.log"]\n[run]\nworkers = 1\n'
        )
        assert reload(process, tmp_path)[0] == 0
        support.wait_until(support.have(tmp_path / "b.log", 50))

    numbers: dict[object, list[int]] = {}
    for each in support.records(tmp_path / "a.log", tmp_path / "b.log"):
        if "n" in each:
            numbers.setdefault(each["pid"], []).append(each["n"])
    assert len(numbers) == 2
    for found in numbers.values():
        assert found == list(range(len(found)))


def test_a_bad_configuration_is_refused_before_a_worker_is_replaced(
    tmp_path: Path,
) -> None:
    """The old workers and sinks go on, and the mistake is named."""
    (tmp_path / "logagg.toml").write_text(
        'sinks = ["file:a.log"]\n[run]\nworkers = 1\n'
    )
    with run(tmp_path) as process:
        support.wait_until(support.have(tmp_path / "a.log", 10))
        before = whole(tmp_path / "a.log")[-1]["pid"]
        (tmp_path / "logagg.toml").write_text('sinks = ["fiel:b.log"]\n')
        status, said = reload(process, tmp_path)
        assert status == 1
        assert "did you mean 'file'" in said
        count = len(whole(tmp_path / "a.log"))
        support.wait_until(support.have(tmp_path / "a.log", count + 20))
        pids = {e["pid"] for e in whole(tmp_path / "a.log") if "n" in e}
        assert pids == {before}


def test_sinks_behind_the_program_replace_those_of_the_file(tmp_path: Path) -> None:
    """The command line decides, wherever in it the option stands."""
    (tmp_path / "logagg.toml").write_text(
        'sinks = ["file:a.log"]\n[run]\nworkers = 1\n'
    )
    (tmp_path / "once.py").write_text("import logging\nlogging.warning('m')\n")
    support.finish(
        [*LOGAGG, "run", "once.py", "--sink", "file:b.log"], status=None, cwd=tmp_path
    )

    assert support.records(tmp_path / "b.log")
    assert not (tmp_path / "a.log").exists()
