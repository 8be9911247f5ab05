"""The clock: steps, freezing, and one time for all processes."""

import subprocess
import sys

import pytest
import support
from serving import LOGAGG
from support import (
    BASIC,
    events,
    python,
    records,
    running,
    settled,
    spool_files,
    wait_until,
)

from logagg.ipc import clock

pytestmark = pytest.mark.slow  # many real processes, some seconds each


def test_an_offset_that_is_known_is_kept_until_time_has_stepped():
    """A new consumer goes on with the old one's time unless the wall clock jumped."""
    measured = clock.measure_offset()

    assert clock.shared_offset(measured + 1000) == measured + 1000
    for step in (-1, 1):
        stepped = measured + step * 2 * clock.STEP_NS
        assert abs(clock.shared_offset(stepped) - measured) < clock.STEP_NS


def test_the_log_reads_as_wall_time(tmp_path):
    """A record's stamp is the time of day, within a few milliseconds."""
    path = tmp_path / "app.log"
    before = support.time.time_ns()
    python(BASIC + "log.info('x')", path)
    after = support.time.time_ns()
    settled()

    (line,) = [each for each in support.lines(path) if b'"logger":"app"' in each]
    from logagg.core.line import key_ns

    assert before - 50_000_000 < key_ns(line) < after + 50_000_000


def test_all_processes_of_a_consumer_have_one_clock_even_after_its_death(tmp_path):
    """A restarted consumer hands out the same offset: no stamp goes back."""
    path = tmp_path / "app.log"
    code = BASIC + "log.info('x')\nprint('up', flush=True)\nsys.stdin.readline()\n"
    with running(code, path, stdin=subprocess.PIPE) as one:
        assert one.stdout.readline() == "up\n"
        wait_until(support.have(path, 1))
        (name,) = [x for x in support.runtime_files() if x.endswith(".lock")]
        lock = support.Path(support.os.environ["XDG_RUNTIME_DIR"], name)
        before = lock.read_bytes()
        support.os.kill(support.consumer(), support.signal.SIGKILL)
        python(code, path, input="\n")
        assert lock.read_bytes() == before
        one.stdin.close()
        assert one.wait(20) == 0
    settled()


OFFSET = """
from logagg.client import closing
log.info("first")
(transport,) = closing.in_use.values()
log.info("offset", extra={"clock": transport.delivery.offset})
"""


def test_workers_of_a_run_and_handlers_of_its_file_have_one_clock(tmp_path):
    """Else a record would stand before one that caused it, by as much as they differ."""
    path = tmp_path / "app.log"
    url = f"file:{path}"
    app = tmp_path / "app.py"
    app.write_text("import logging\nlog = logging.getLogger('app')\n" + OFFSET)
    stay = BASIC + OFFSET + "print('up', flush=True)\nsys.stdin.readline()\n"
    with running(stay, path, stdin=subprocess.PIPE) as one:
        assert one.stdout.readline() == "up\n"
        wait_until(support.have(path, 2))  # the file has an owner
        command = [
            *LOGAGG,
            "run",
            "-w",
            "3",
            "--restart",
            "never",
            "--sink",
            url,
        ]
        done = subprocess.run([*command, str(app)], timeout=60, check=False)
        assert done.returncode == 0
        one.stdin.close()
        assert one.wait(20) == 0
    settled()
    found = [each["clock"] for each in records(path) if "clock" in each]
    assert len(found) == 4
    assert len(set(found)) == 1


STEPPED = (
    BASIC
    + """
print("up", flush=True)
for n in range(int(sys.argv[2])):
    log.info("x", extra={"who": sys.argv[3], "n": n})
    time.sleep(0.002)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["+3600", "-3600"])
def test_a_step_of_the_wall_clock_reorders_nothing(tmp_path, step):
    """The step is told as a record; stamps never go back, no record is lost."""
    path = tmp_path / "app.log"
    env = {**support.os.environ, "LOGAGG_FAILPOINT": f"wall:add={step}@2"}
    with (
        running(STEPPED, path, 1500, "a", env=env) as one,
        running(STEPPED, path, 1500, "b", env=env) as two,
    ):
        assert (one.wait(30), two.wait(30)) == (0, 0)
    settled()

    support.assert_complete(records(path), {"a": 1500, "b": 1500})
    support.assert_ordered(support.lines(path))
    (told,) = events("clock_step", path)
    assert abs(told["step_seconds"] - float(step)) < 1


def test_a_suspended_worker_is_waited_for_no_longer_than_the_window(tmp_path):
    """SIGSTOP to one worker: the records of another arrive as fast as before."""
    path = tmp_path / "app.log"
    with (
        running(STEPPED, path, 10**6, "a") as one,
        running(STEPPED, path, 600, "b") as two,
    ):
        wait_until(support.have(path, 100))
        with support.stopped(one.pid):
            size = path.stat().st_size
            wait_until(lambda: path.stat().st_size > size + 10_000, 2, "b's records")
            assert two.wait(20) == 0
            wait_until(lambda: path.read_bytes().count(b'"who":"b"') == 600, 3)
    settled()

    found = [each["n"] for each in records(path) if each["who"] == "b"]
    assert found == list(range(600))


AHEAD = (
    BASIC
    + """
for n in range(50):
    log.info("x", extra={"who": "a", "n": n})
print("up", flush=True)
sys.stdin.readline()
for n in range(50, 100):
    log.info("x", extra={"who": "a", "n": n})
"""
)


@pytest.mark.parametrize("attached", [True, False])
def test_records_from_before_a_step_back_are_no_less_records(tmp_path, attached):
    """The next consumer follows the wall clock back: what it gets lies in its future."""
    path = tmp_path / "app.log"
    socket = tmp_path / "socket"
    serve = [sys.executable, "-m", "logagg", "serve", f"--socket={socket}"]
    serve += ["--sink", f"file:{path}"]
    env = {**support.os.environ, "LOGAGG_SOCKET": str(socket)}
    ahead = {**env, "LOGAGG_FAILPOINT": "wall:add=3600@1"}
    first = subprocess.Popen(serve, env=ahead) if attached else None
    if first is not None:
        wait_until(socket.exists)
    with running(AHEAD, path, env=ahead, stdin=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == "up\n"
        if first is not None:
            wait_until(support.have(path, 50))
            first.kill()
            first.wait()
            (tmp_path / "socket.lock").unlink()
        worker.stdin.write("\n")
        worker.stdin.close()
        assert worker.wait(60) == 0
    last = subprocess.Popen(serve, env=env)
    try:
        wait_until(support.have(path, 100), 60)
    finally:
        last.terminate()
        last.wait()

    support.assert_complete(records(path), {"a": 100})
    assert not events("damaged", path)
    assert not spool_files()
