"""A sink with `required=true` that fails for good ends the service."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import support
from serving import LOGAGG, serving

pytestmark = pytest.mark.slow

DEAD = "file:/dev/full?give_up=0.5s&policy={policy}"


@pytest.mark.parametrize("policy", ["drop_old", "spool", "block"])
def test_a_required_sink_that_fails_for_good_ends_the_service(
    tmp_path: Path, policy: str
) -> None:
    """With exit status 1, an event in the other sinks, and in the time it was given."""
    dead = DEAD.format(policy=policy) + "&required=true"
    with serving(tmp_path, "--sink", dead, "--sink", "file:well.log") as serve:
        serve.logs("a", 10)
        began = time.monotonic()
        assert serve.process.wait(20) == 1
        assert time.monotonic() - began < 15

    (event,) = support.events("sink_failed", tmp_path / "well.log")
    assert event["sink"] == "file:/dev/full"
    assert event["required"] is True
    assert "No space left" in event["message"]
    mine = [each["n"] for each in support.records(tmp_path / "well.log") if "n" in each]
    assert mine == list(range(10))


def test_another_sink_that_fails_for_good_does_not(tmp_path: Path) -> None:
    """Its records are counted as dropped; the service goes on with the others."""
    with serving(
        tmp_path, "--sink", DEAD.format(policy="drop_old"), "--sink", "file:well.log"
    ) as serve:
        serve.logs("a", 10)
        support.wait_until(lambda: serve.sink("/dev/full")["state"] == "failed")
        serve.logs("b", 10)
        sink = serve.sink("/dev/full")
        assert sink["dropped"]["sink_failed"] >= 20
        assert sink["queued_records"] == 0
        assert serve.stop() == 0

    assert len(support.events("sink_failed", tmp_path / "well.log")) == 1


FLUSHED = """
import logging, sys, logagg
handler = logagg.Handler(sinks=sys.argv[1:])
logging.basicConfig(handlers=[handler], level="INFO")
for _ in range(3):
    logging.info("x")
    print(handler.flush(60))
print(handler.flush(60))
"""


@pytest.mark.parametrize("policy", ["drop_old", "spool"])
def test_flush_is_true_only_for_what_every_durable_sink_has(
    tmp_path: Path, policy: str
) -> None:
    """What a sink dropped is not with it; what it has spooled is safe."""
    dead, well = DEAD.format(policy=policy), f"file:{tmp_path / 'well.log'}"

    done = support.python(FLUSHED, dead, well, timeout=250)
    support.settled(90)

    taken = str(policy == "spool")
    assert done.stdout.split() == [taken, taken, taken, "True"]
    assert (
        len([r for r in support.records(tmp_path / "well.log") if r["message"] == "x"])
        == 3
    )


def test_a_run_ends_when_a_required_sink_fails_for_good(tmp_path: Path) -> None:
    """Its workers are stopped; the exit status is 1, and stderr has the reason."""
    app = tmp_path / "app.py"
    app.write_text("import logging, time\nlogging.error('x')\ntime.sleep(60)\n")
    dead = DEAD.format(policy="drop_old") + "&required=true"
    command = [*LOGAGG, "run", "--sink", dead, "--sink", "file:well.log", str(app)]

    done = support.finish(command, status=1, cwd=tmp_path, timeout=90)

    assert "a required sink failed for good" in done.stderr
    assert len(support.events("sink_failed", tmp_path / "well.log")) == 1
