"""Places where a test makes a process die, wait or fail, chosen by the environment.

`LOGAGG_FAILPOINT=NAME:ACTION[@N]`, several separated by commas; the action is taken at
the N-th hit (default 1) of the place: `kill` (SIGKILL to itself), `sleep=SECONDS`,
`errno=NUMBER` (raises that OSError). `wall:add=SECONDS@N` shifts the wall clock as
`logagg.ipc.clock` sees it from its N-th measurement on. Without the variable `ACTIVE` is
False and no place does more than test it; none is on the path of a log call that
finds room.
"""

from __future__ import annotations

import os
import signal
import time

__all__ = ["ACTIVE", "hit", "shift_ns"]


def _read(text: str) -> dict[str, tuple[str, int]]:
    found = {}
    for part in filter(None, text.split(",")):
        name, _, action = part.partition(":")
        action, _, count = action.partition("@")
        found[name] = (action, int(count or 1))
    return found


_points = _read(os.environ.get("LOGAGG_FAILPOINT", ""))
_hits: dict[str, int] = {}
ACTIVE = bool(_points)


def hit(name: str) -> None:
    """Do what the environment asks for at this place, if anything."""
    if name not in _points:
        return
    action, count = _points[name]
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] != count:
        return
    what, _, value = action.partition("=")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "sleep":
        time.sleep(float(value))
    elif what == "errno":
        raise OSError(int(value), os.strerror(int(value)))


def shift_ns(name: str) -> int:
    """How far a clock is shifted at this place by now, in nanoseconds."""
    if name not in _points:
        return 0
    action, count = _points[name]
    _hits[name] = _hits.get(name, 0) + 1
    seconds = action.partition("=")[2]
    return int(float(seconds) * 1e9) if _hits[name] >= count else 0
