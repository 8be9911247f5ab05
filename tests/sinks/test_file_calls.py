"""What a log call notes of the file's rotation and compression: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import support

HEAD = """\
import logging, os, sys, time
import logagg
sink, stop = sys.argv[1:]
logging.basicConfig(handlers=[logagg.Handler(sinks=[sink])], level="INFO")
log = logging.getLogger("app")
"""

FILLER = (
    HEAD
    + """\
while not os.path.exists(stop):  # 20 MB a second, which compress badly
    log.info(os.urandom(20_000).hex())
    time.sleep(0.002)
"""
)

STEADY = (
    HEAD
    + """\
def waited():  # for a processor that other programs had, in ns
    with open("/proc/self/schedstat") as file:
        return int(file.read().split()[1])

log.info("attached")
longest = calls = 0
while not os.path.exists(stop):
    busy, began = waited(), time.perf_counter_ns()
    log.info("steady", extra={"n": calls})
    took = time.perf_counter_ns() - began
    longest = max(longest, took - (waited() - busy))
    calls += 1
    time.sleep(0.001)
print(calls, longest / 1e6)
"""
)


def longest_call(folder: Path, kind: str) -> float:
    """Milliseconds of the longest call while two files of 50 MB are compressed."""
    folder.mkdir()
    stop, suffix = folder / "stop", {"gzip": ".gz", "zstd": ".zst"}[kind]
    sink = f"file:{folder}/app.log?max_bytes=50MB&backups=9&compress={kind}"
    with (
        support.running(STEADY, sink, stop) as steady,
        support.running(FILLER, sink, stop) as filler,
    ):
        support.wait_until(
            lambda: len(list(folder.glob(f"app.log.?{suffix}"))) >= 2,
            what="two compressed files",
        )
        stop.touch()
        out, errors = steady.communicate(timeout=90)
        assert (steady.returncode, errors) == (0, "")
        filler.communicate(timeout=90)
    support.settled()
    calls, longest = out.split()
    assert int(calls) > 500
    return float(longest)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_no_log_call_waits_for_rotation_or_compression(
    tmp_path: Path, kind: str
) -> None:
    """While files of 50 MB are rotated and compressed, no call takes over 10 ms.

    Not counted is the time in which other programs had the processors. What a machine
    does beneath us (a host that takes the processor away) is seen by nobody here, so
    the best of three tries counts: a call that waits for a file does so in each.
    """
    tries: list[float] = []
    while not tries or (min(tries) > 10 and len(tries) < 3):
        tries.append(longest_call(tmp_path / str(len(tries)), kind))

    assert min(tries) <= 10, f"longest calls: {tries} ms"
