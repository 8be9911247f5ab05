"""What a seed's scene is like: scripts of workers, sizes, and what may go wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from logagg.client.delivery_state import Overflow

__all__ = ["CHAOS", "Draw", "Script", "draw"]

Script = list[tuple[Any, ...]]
"""Actions: ("log", bytes), ("flush", seconds), ("sleep", ns), ("close",), ("thread", …)."""

CHAOS = ["kill_consumer", "term_consumer", "kill_worker", "suspend", "clock", "signal"]

MORE_CHAOS = ["interrupt", "burst", "reload"]

CALM = {"signal", "burst", "term_consumer", "reload", "fill_disk"}
"""What delays no record so that it comes out of order unmarked."""

AT_STEPS = ["signal_here", "interrupt_here", "fork_here"]
"""What may happen to a worker in the middle of any call."""

FAULTS = [
    "connect", "spawn", "open", "descriptor", "disk", "fsync", "rename", "unlink",
]  # fmt: skip


@dataclass
class Draw:
    """One scene.

    Attributes:
        overflow: The policy of all workers.
        pipe_size: Bytes that a worker's pipe takes.
        kept_bytes: Bytes that a worker keeps unacknowledged.
        sink: Options of the file sink's URL.
        chaos: What may happen from outside.
        rates: How often, by the kind of a decision.
        scripts: By worker, what it does.
        children: Workers that are forked children of multiprocessing, by their numbers:
            they end by `_exit`, and run what is registered with multiprocessing.
        policies: The overflow policies of a worker's handlers, in their order.
        stderr_is_full: Nobody reads the stderr of the workers.
        pid_returns: The last worker has the pid of one that has left records on disk.
        refused_sink: The first worker asks for a sink that cannot be made.
        hung_sink: The first worker asks for a sink whose disk does not answer.
        stranger: A process attaches whose lines are garbage.
        fills: The disk of the log file is full at times, that of the spools is not.
        left_behind: So many consumers have each left a spool for the sink, long ago.
    """

    overflow: Overflow
    pipe_size: int
    kept_bytes: int
    sink: str
    chaos: list[str]
    rates: dict[str, float]
    scripts: list[Script]
    children: frozenset[int] = frozenset()
    policies: tuple[Overflow, ...] = ()
    stderr_is_full: bool = False
    pid_returns: bool = False
    refused_sink: bool = False
    hung_sink: bool = False
    stranger: bool = False
    fills: bool = False
    left_behind: int = 0

    @property
    def is_well(self) -> bool:
        """Whether no call of the system fails."""
        return not set(FAULTS) & set(self.rates)

    @property
    def takes_everything(self) -> bool:
        """Whether no record may be dropped: a handler wants that, and nothing fails."""
        return self.is_well and set(self.policies) != {Overflow.DROP_NEW}

    @property
    def strict_order(self) -> bool:
        """Whether nothing may delay a record so that it comes out of order unmarked."""
        calm = not set(self.chaos) - CALM and "interrupt_here" not in self.rates
        return calm and not self.hung_sink and self.is_well  # a connection may wait


def draw(seed: int) -> Draw:
    """Draw the scene of a seed."""
    rng = random.Random(seed ^ 0x5EED)
    chaos = [each for each in CHAOS if rng.random() < 0.4]
    rates = {
        "switch": rng.choice([0.0, 0.02, 0.1, 0.3]),
        "next": 0.7,
        "delay": 0.01,
        "chaos": rng.choice([0.001, 0.003, 0.01]) if chaos else 0.0,
        "cut": rng.choice([0.0, 0.3]),
    }
    if rng.random() < 0.3:
        for kind in FAULTS:
            if rng.random() < 0.5:
                rates[kind] = rng.choice([0.01, 0.1])
    drawn = Draw(
        overflow=rng.choice([Overflow.SPOOL, Overflow.SPOOL, Overflow.BLOCK]),
        pipe_size=rng.choice([4096, 4096, 16384, 65536]),
        kept_bytes=rng.choice([4_000, 40_000, 16 << 20]),
        sink=rng.choice(["", "", "?max_bytes=4kB&backups=900"]),
        chaos=chaos,
        rates=rates,
        scripts=[
            _script(rng, rng.randint(3, 40), threads=rng.random() < 0.3)
            for _ in range(rng.randint(1, 3))
        ],
    )
    _draw_circumstances(drawn, random.Random(seed ^ 0xC1C0))
    return drawn


def _draw_circumstances(drawn: Draw, rng: random.Random) -> None:
    """Draw what few scenes have."""
    drawn.chaos += [each for each in MORE_CHAOS if rng.random() < 0.25]
    for kind in AT_STEPS:
        if rng.random() < 0.2:
            drawn.rates[kind] = rng.choice([0.003, 0.02])
    if drawn.chaos and not drawn.rates["chaos"]:
        drawn.rates["chaos"] = rng.choice([0.001, 0.003, 0.01])
    numbers = range(len(drawn.scripts))
    drawn.children = frozenset(n for n in numbers if rng.random() < 0.2)
    drawn.policies = (drawn.overflow,)
    if rng.random() < 0.2:
        drawn.policies = (drawn.overflow, Overflow.DROP_NEW)
    if rng.random() < 0.1:
        drawn.policies = drawn.policies[::-1]
    drawn.stderr_is_full = rng.random() < 0.1
    drawn.pid_returns = rng.random() < 0.5
    drawn.refused_sink = rng.random() < 0.1
    hangs = rng.random() < 0.1  # for ever: nothing may wait for it
    # A consumer that is ended takes longer to close such a sink than workers wait.
    drawn.hung_sink = hangs and drawn.overflow is Overflow.SPOOL
    drawn.hung_sink &= "term_consumer" not in drawn.chaos
    drawn.stranger = rng.random() < 0.1
    chosen = rng.random()
    if chosen < 0.05:
        _draw_flushers(drawn, rng)
    elif chosen < 0.15:
        _draw_full_disk(drawn, rng)
    if drawn.is_well and not drawn.hung_sink and rng.random() < 0.03:
        drawn.left_behind = rng.randint(2, 6)


def _draw_flushers(drawn: Draw, rng: random.Random) -> None:
    """Draw workers of which one thread flushes all the time while another logs."""
    drawn.chaos, drawn.hung_sink = [], False
    for kind in (*FAULTS, *AT_STEPS):
        drawn.rates.pop(kind, None)
    drawn.rates["switch"] = rng.choice([0.1, 0.3])
    drawn.scripts = []
    for _ in range(rng.randint(2, 4)):
        script: Script = [("thread", [("flush", 0.3)] * 40)]
        for _ in range(rng.randint(10, 25)):
            script += [("log", 10)] * rng.randint(1, 4)
            script.append(("sleep", rng.choice([1, 2, 5, 20]) * 1_000_000))
        drawn.scripts.append(script)


def _draw_full_disk(drawn: Draw, rng: random.Random) -> None:
    """Draw a log file that cannot be written at times, changed options, and ends."""
    drawn.fills, drawn.hung_sink = True, False
    drawn.sink = "?policy=spool&queue_records=" + rng.choice(["5", "50", "10000"])
    drawn.chaos = ["fill_disk", "reload", "reload", "kill_consumer", "term_consumer"]
    drawn.rates["chaos"] = rng.choice([0.01, 0.03])
    for kind in (*FAULTS, *AT_STEPS):
        drawn.rates.pop(kind, None)


def _script(rng: random.Random, length: int, *, threads: bool) -> Script:
    script: Script = []
    if threads:
        script.append(("thread", _script(rng, rng.randint(2, 15), threads=False)))
    for _ in range(length):
        chosen = rng.random()
        if chosen < 0.75:
            script.append(("log", rng.choice([10, 10, 100, 1000, 5000, 9000])))
        elif chosen < 0.85:
            script.append(("sleep", rng.choice([1, 20, 300, 1500]) * 1_000_000))
        elif chosen < 0.97:
            script.append(("flush", rng.choice([0.0, 0.3, 5.0])))
        elif not threads:
            script.append(("close",))
    return script
