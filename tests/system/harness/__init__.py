"""The fault harness: producers that number what they log, and a judge of what came.

    with Fleet(path, workers=4, count=5000) as fleet:
        os.kill(support.consumer(), signal.SIGKILL)
        fleet.join()
    fleet.judge().require()

Each record carries (run, worker, n, sum): which run and worker, the number of the call,
and a checksum of the payload. Each producer keeps a ledger in shared memory, so that
what it had been promised is known even when it was killed in the middle of a call. The
judge reads files and spool and checks, in the terms of the names used here,

- conservation: what a call was promised (it returned) is delivered, still spooled, or
  counted as dropped; an uncounted loss is always a failure;
- payload: what came is what was sent;
- order: each worker's numbers rise strictly in the files;
- duplicates, torn lines, lines that do not parse;
- latency: how long the longest call took.

The package needs nothing but the standard library, orjson and logagg, so benchmarks and
other tests can use it: put `tests/system` on `sys.path` and import `harness`.
"""

from harness.fleet import Fleet, fresh_record
from harness.jail import jailed
from harness.judge import Sent, Verdict, judge
from harness.plugins import plugin_path
from harness.scene import Scene, besieged

__all__ = [
    "Fleet", "Scene", "Sent", "Verdict", "besieged", "fresh_record", "jailed", "judge",
    "plugin_path",
]  # fmt: skip
