"""The file sink under faults, crashes and other programs, each course from a seed.

`--seeds 10000` plays so many seeds in the long test; `--first-seed 17 --seeds 1` only
that one.
"""

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from file_world import FAULTS, STARTS, STEPS, TARGETS, USER_ACTS, ZONES, Simulation

OPERATIONS = 40
ALWAYS_DRAWN = {
    *(f"start {start}" for start in STARTS),
    *(f"zone {zone}" for zone in ZONES),
    *(f"step {step}" for step in (60, 1800, 3600, 86400, -60, -3600, -86400)),
    *(f"target {target}" for target in TARGETS),
    *(f"user {act}" for act in USER_ACTS),
    *(f"when {when}" for when in ("h", "d", "midnight")),
    "services 2",
    "utc True",
    "foreign file",
    "killed amid a write",
    "killed outside a call",
    "amid its own process",
    "amid another process",
    "removed by a limit",
}


def run(seeds, operations):
    """Run the seeds in a file system in memory, where there is one; count the draws."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    drawn = Counter()
    for seed in seeds:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            simulation = Simulation(Path(folder), seed)
            try:
                simulation.run(operations)
            except BaseException as error:
                error.add_note(f"seed {seed}, {operations} operations")
                raise
        drawn += simulation.world.drawn
    return drawn


@pytest.mark.parametrize("first", range(0, 200, 40))
def test_a_short_course_destroys_nothing(first):
    """200 seeds: no record goes unless it is safe, no foreign file is touched."""
    run(range(first, first + 40), 8)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_long_course_destroys_nothing(request):
    """The same, with more of everything in each seed; and everything is drawn."""
    first = request.config.getoption("--first-seed") or 1000
    count = request.config.getoption("--seeds") or 150
    drawn = run(range(first, first + count), OPERATIONS)

    rare = {f"killed in {call}" for call in STEPS} | {
        f"refused {call}" for call in FAULTS
    }
    assert count < 150 or drawn.keys() >= ALWAYS_DRAWN, ALWAYS_DRAWN - drawn.keys()
    assert count < 1500 or drawn.keys() >= rare, rare - drawn.keys()
