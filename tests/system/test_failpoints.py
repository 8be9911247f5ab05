"""Deaths at chosen moments, of workers and of consumers: failpoints make them certain."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import support
from harness import Fleet, fresh_record, plugin_path
from support import have, stopped, wait_until

from logagg.ipc.consumer_client import status

pytestmark = pytest.mark.slow  # many real processes, some seconds each


@contextmanager
def serving(path, socket, limit=None, **env):
    """A consumer in the foreground; ended by SIGTERM unless it is gone before.

    With a limit no file may become longer: a line that is longer is refused.
    """
    command = [sys.executable, "-m", "logagg", "serve", "--socket", socket]
    command += ["--sink", f"file:{path}"]
    if limit is not None:
        command = ["prlimit", f"--fsize={limit}", *command]
    with subprocess.Popen(command, env={**os.environ, **env}) as consumer:
        try:
            yield consumer
        finally:
            if consumer.poll() is None:
                consumer.terminate()


@pytest.mark.parametrize("point", ["torn", "spool"])
def test_a_worker_killed_while_it_leaves_a_full_pipe_loses_no_finished_record(
    tmp_path, point
):
    """Between pipe and spool: all that was promised is there, the torn part is not."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": f"{point}:kill"}
    with (
        Fleet(
            path, workers=1, count=10**9, size=20_000, rate=300, env=env
        ) as victim,  # so fast that the pipe is full soon, not that it is left before
        Fleet(path, workers=1, count=10**9, rate=500, run="good") as other,
    ):
        other.progress(100)
        victim.progress(1)
        with stopped(support.consumer()):
            wait_until(lambda: victim.ended, what="the worker's death")
        other.progress(100)
        other.stop()
        other.join()

    victim.judge().require()
    other.judge().require(longest=1.0)


def test_a_worker_killed_before_its_hello_disturbs_nobody(tmp_path):
    """A connection that says nothing and vanishes: the others go on."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "hello:kill"}
    with Fleet(path, workers=2, count=500, rate=500) as other:
        other.progress(50)
        with Fleet(path, workers=2, count=10, run="v", env=env) as victims:
            wait_until(lambda: victims.ended, what="their deaths")
        other.join()

    other.judge().require(longest=1.0)
    assert victims.returned == 0


def test_a_worker_killed_as_the_elected_one_leaves_a_consumer_behind(tmp_path):
    """Whoever started the consumer may die before it says hello: others use it."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "hello:kill"}
    with Fleet(path, workers=1, count=10, run="v", env=env) as victim:
        wait_until(lambda: victim.ended, what="its death")

    assert fresh_record(path) < 5


def test_a_spool_that_refuses_costs_counted_records_only(tmp_path):
    """ENOSPC for one record: it is dropped and counted, the next ones are parked."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "spool:errno=28@3"}
    with Fleet(path, workers=1, count=10_000, size=500, env=env, wait=True) as fleet:
        fleet.ready()
        with stopped(support.consumer()):
            fleet.go()
            wait_until(lambda: fleet.returned == 10_000, what="the last call")
        (err,) = fleet.join()

    verdict = fleet.judge().require(complete=False)
    assert sum(map(len, verdict.missing.values())) == 1
    assert "1 records dropped" in err
    assert "No space left" in err


def test_a_consumer_killed_at_its_start_is_replaced(tmp_path):
    """Records and connections wait for it; the next one gets them all."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "start:kill"}
    with Fleet(
        path, workers=2, count=2000, rate=2000, env=env, wait=True,
        forget=["LOGAGG_FAILPOINT"],
    ) as fleet:  # fmt: skip
        fleet.ready()
        fleet.go()
        fleet.join()

    fleet.judge().require(longest=1.5)


def test_a_consumer_killed_while_it_ends_has_written_everything(tmp_path):
    """After the last worker has gone: the file is complete, the next start works."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "closing:kill"}
    with Fleet(path, workers=2, count=1000, env=env) as fleet:
        fleet.join()
    wait_until(lambda: not support.consumers(), what="the consumer's death")

    fleet.judge(settle=None).require()
    assert fresh_record(path) < 5


@pytest.mark.parametrize("point", ["file_opened", "before_write", "after_write"])
def test_a_kill_while_the_spool_is_taken_in_leaves_each_record_once(tmp_path, point):
    """Between opening the file, writing and removing: a second start finishes it."""
    path = tmp_path / "app.log"
    socket = str(tmp_path / "address.sock")
    with Fleet(path, workers=3, count=400, env={"LOGAGG_SOCKET": socket}) as fleet:
        fleet.join()
    assert len(support.spool_files()) == 3

    with serving(path, socket, LOGAGG_FAILPOINT=f"{point}:kill") as consumer:
        assert consumer.wait(15) == -signal.SIGKILL
    assert support.spool_files()
    with serving(path, socket) as consumer:
        wait_until(lambda: not support.spool_files(), what="an empty spool")
    assert consumer.returncode == 0

    fleet.judge().require(ordered=False)


@pytest.mark.slow
def test_a_kill_before_a_taken_segment_is_removed_leaves_each_record_once(tmp_path):
    """Acknowledged, not yet removed: the next consumer knows that it has it."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "unlink:kill"}
    with Fleet(
        path, workers=2, count=20_000, size=300, env=env, wait=True,
        forget=["LOGAGG_FAILPOINT"],
    ) as fleet:  # fmt: skip
        fleet.ready()
        first = support.consumer()
        with stopped(first):
            fleet.go()
            wait_until(lambda: fleet.returned == 40_000, what="the last call")
            assert support.spool_files()
        fleet.join()
        wait_until(lambda: not support.alive(first), what="the failpoint's kill")

    fresh_record(path)  # the kill may come behind the workers' end: the next start
    fleet.judge().require()


def test_what_was_parked_stays_on_disk_until_it_is_written(tmp_path):
    """Read, offered, and the file refuses it: a kill then loses none of it."""
    path = tmp_path / "app.log"
    socket = str(tmp_path / "address.sock")
    with Fleet(path, workers=3, count=400, env={"LOGAGG_SOCKET": socket}) as fleet:
        fleet.join()
    parked = support.spool_files()
    assert len(parked) == 3

    def tried():
        (sink,) = status(socket)["sinks"]
        return sink["offered"] >= 1200 and sink["retries"] >= 3

    with serving(path, socket, limit=100) as consumer:
        wait_until(lambda: os.path.exists(socket), what="a consumer")
        wait_until(tried, what="three tries")
        consumer.kill()
    assert support.spool_files() == parked
    with serving(path, socket):
        wait_until(lambda: not support.spool_files(), what="an empty spool")

    fleet.judge().require(ordered=False)


FILE_POINTS = {
    "before the shift of old pieces ends": ("file_rename:kill@3", "max_bytes=50000"),
    "between rename and create": ("file_renamed:kill@2", "max_bytes=50000"),
    "after the new file was opened": ("file_opened:kill@3", "max_bytes=50000"),
    "before fsync=always": ("file_sync:kill@20", "fsync=always"),
    "before fsync=interval": ("file_sync:kill@3", "fsync_interval=0.05"),
    "in fsync=always while it rotates": (
        "file_sync:kill@30",
        "fsync=always&max_bytes=20000",
    ),
}


@pytest.mark.parametrize("moment", FILE_POINTS)
def test_a_kill_at_each_moment_of_the_file_leaves_each_record_once(tmp_path, moment):
    """While it rotates or is synced: the next start goes on, once, whole, in order."""
    point, options = FILE_POINTS[moment]
    path = tmp_path / "app.log"
    with Fleet(
        path, target="", sinks=[f"file:{path}?{options}"], workers=2, count=10**6,
        rate=2000, env={"LOGAGG_FAILPOINT": point}, wait=True,
        forget=["LOGAGG_FAILPOINT"],
    ) as fleet:  # fmt: skip
        fleet.ready()
        first = support.consumer()
        fleet.go()
        wait_until(lambda: not support.alive(first), what="the failpoint's kill")
        fleet.progress(1000)
        if "max_bytes" in options:
            wait_until(lambda: len(support.rotated(path)) > 10, what="ten rotations")
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=1.5)


def test_a_kill_in_the_middle_of_a_write_leaves_no_torn_line(tmp_path):
    """Half a line is in the file: it is mended and told, its record comes once."""
    path = tmp_path / "app.log"
    with Fleet(
        path, workers=2, count=1500, rate=2000,
        env={"LOGAGG_FAILPOINT": "file_part:kill"}, wait=True,
        forget=["LOGAGG_FAILPOINT"],
    ) as fleet:  # fmt: skip
        fleet.ready()
        first = support.consumer()
        # The kernel takes the part of a write up to here: not where a line ends.
        resource.prlimit(first, resource.RLIMIT_FSIZE, (50_001, -1))
        fleet.go()
        wait_until(lambda: not support.alive(first), what="the failpoint's kill")
        fleet.join()

    verdict = fleet.judge().require(longest=1.5)
    assert [each["event"] for each in verdict.events].count("truncated_line") == 1


def test_a_slow_sink_is_waited_for_when_the_service_is_asked_to_end(tmp_path):
    """SIGTERM, twice, with 2,000 records on their way to a slow sink: all written."""
    slow = tmp_path / "slow.log"
    socket = str(tmp_path / "address.sock")
    command = [sys.executable, "-m", "logagg", "serve", "--socket", socket]
    command += ["--sink", f"slow:{slow}?seconds=0.001"]
    env = {**os.environ, **plugin_path()}
    with subprocess.Popen(command, env=env) as consumer:
        wait_until(lambda: os.path.exists(socket), what="the socket")
        with Fleet(slow, target="", count=500, env={"LOGAGG_SOCKET": socket}) as fleet:
            wait_until(lambda: fleet.returned == 2000, what="the last call")
            consumer.terminate()
            wait_until(have(slow, 100))
            consumer.terminate()
            fleet.join()
        assert consumer.wait(15) == 0

    fleet.judge([slow]).require()
