"""A network sink whose own disk is full, or whose secret is not there yet."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from logagg.fanout.fanout import Fanout
from logagg.sinks import build
from logagg.testing import make_batch


def test_a_sink_that_cannot_open_now_is_tried_again(target, tools, tmp_path):
    """It is in status, with an event; what comes waits, and is delivered afterwards."""
    secret = tmp_path / "token"
    url = f"{target.url}/in?batch_age=0.01&max_age=0&token=file:{secret}"
    events = []

    async def main():
        fanout = Fanout(lambda text, details: events.append(details), lambda: None)
        await fanout.add("one", build(url))
        fanout.put(make_batch(5), frozenset())
        await tools.until(lambda: fanout.statistics()[0]["retries"] > 1)
        (found,) = fanout.statistics()
        assert "cannot read the secret in" in found["error"]
        assert fanout.failing
        (tmp_path / "new").write_text("let-me-in")
        (tmp_path / "new").rename(secret)  # it is whole at once
        await tools.until(lambda: len(target.seqs) == 5)
        await tools.until(lambda: not fanout.statistics()[0]["error"])
        assert await fanout.close(5.0) == 0

    asyncio.run(asyncio.wait_for(main(), 50))
    assert events[0]["event"] == "sink_error"
    assert target.seen[0].headers["authorization"] == "Bearer let-me-in"


FULL = """
import asyncio, os, sys
from pathlib import Path
from logagg.fanout.fanout import Fanout
from logagg.sinks import build
from logagg.testing import make_batch

disk, url = Path(sys.argv[1]), sys.argv[2]

async def main():
    full_at_start = sys.argv[3] == "start"
    ballast = disk / "ballast"
    if full_at_start:
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
    events = []
    fanout = Fanout(lambda text, details: events.append(details), lambda: None)
    await fanout.add("one", build(url + "/in?max_age=0&batch_age=0.01&policy=block"))
    if full_at_start:
        while fanout.statistics()[0]["retries"] < 2:
            await asyncio.sleep(0.01)
        assert "No space left" in fanout.statistics()[0]["error"]
        ballast.unlink()
    for number in range(0, 20_000, 100):  # some 5 MB on a disk of 1 MiB
        while fanout.blocked:
            await asyncio.sleep(0.001)
        fanout.put(make_batch(100, start=number), frozenset())
    while (found := fanout.statistics()[0])["delivery"].get("queued_records", 1) or (
        found["written"] < 20_000
    ):
        await asyncio.sleep(0.01)
    assert found["counters"]["acked"] == 20_000, found
    assert not found["dropped"], found
    await fanout.close(5.0)
    if full_at_start:
        assert events[0]["event"] == "sink_error", events

asyncio.run(asyncio.wait_for(main(), 100))
print("delivered")
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("when", ["start", "later"])
def test_a_full_state_disk_holds_up_nothing_that_is_delivered(target, tmp_path, when):
    """Five times what fits goes through; a disk that is full at the start is waited for."""
    script = (
        'mount -t tmpfs -o size=1m,mode=700 none "$1" && export XDG_STATE_HOME="$1" '
        '&& exec "$2" -c "$3" "$1" "$4" "$5"'
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [str(disk), sys.executable, FULL, target.url, when]
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "jail", *arguments],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount in a namespace here: {done.stderr.strip()}")

    assert done.stdout == "delivered\n", done.stderr[-3000:]
    assert sorted(set(target.seqs)) == list(range(20_000))
