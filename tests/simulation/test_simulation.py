"""Simulated runs: every interleaving that a seed draws keeps the product's promises.

A failing seed prints the shortest schedule that was found and its story. `--seeds N`
plays so many more. `--mutations` puts old faults back, and has them found.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("greenlet")
sys.path.insert(0, str(Path(__file__).parent))

import mutations
import scene
from draws import draw

FOUND = (2846, 3300, 7252, 7562, 9360, 9443, 14056, 54072, 164346, 165377)
QUICK = 10
SEEDS = 2_000
CHUNK = 50
MOST_MUTATED = 10_000


def explain(outcome: scene.Outcome) -> str:
    """The shortest schedule that breaks the same promise, and its story."""
    short = scene.shrink(outcome)
    story = "\n".join(short.story[-60:])
    return (
        f"seed {outcome.seed}: {short.fault}\nschedule: {short.schedule}\n"
        f"scene: {draw(outcome.seed)}\n{story}"
    )


def faults(first: int, count: int) -> str:
    """Play seeds; what is wrong with the first one that fails, or nothing."""
    outcomes = map(scene.run, range(first, first + count))
    return next((explain(each) for each in outcomes if each.fault), "")


def play(first: int, count: int) -> None:
    """Play seeds and report the first one that fails."""
    found = faults(first, count)
    if found:
        pytest.fail(found, pytrace=False)


def test_a_few_seeds() -> None:
    """The quick part: enough to see that the simulation runs."""
    play(0, QUICK)


@pytest.mark.parametrize("seed", FOUND)
def test_a_seed_that_found_a_fault(seed: int) -> None:
    """They are beyond those of every check, and each of those faults is gone."""
    play(seed, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(QUICK, QUICK + SEEDS, CHUNK))
def test_seeds(first: int) -> None:
    """The seeds that every change must pass, each time alike: in a process of their own."""
    program = (
        "import sys; sys.path[:0] = sys.argv[3:]; import test_simulation; "
        "sys.exit(test_simulation.faults(int(sys.argv[1]), int(sys.argv[2])) or 0)"
    )
    command = [sys.executable, "-c", program, str(first), str(CHUNK)]
    done = subprocess.run(
        [*command, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-20_000:]  # what it ends with


@pytest.mark.timeout(0)
def test_more_seeds(request: pytest.FixtureRequest) -> None:
    """As many more as `--seeds` says, from `--first-seed` on."""
    count = request.config.getoption("--seeds")
    if not count:
        pytest.skip("without --seeds")
    play(request.config.getoption("--first-seed") or QUICK + SEEDS, count)


def test_the_same_seed_plays_the_same_run() -> None:
    """A schedule repeats its run call by call."""
    first = scene.run(3)
    second = scene.run(3, first.schedule)

    assert (first.steps, first.seconds) == (second.steps, second.seconds)
    assert first.story == second.story


def fingerprint(seed: int) -> str:
    """What tells two runs apart."""
    outcome = scene.run(seed)
    story = "\n".join([*outcome.story, str(outcome.steps), repr(outcome.schedule)])
    return hashlib.sha256(story.encode()).hexdigest()


ALIKE = """
import sys
sys.path[:0] = sys.argv[2:]
import test_simulation
print(test_simulation.fingerprint(int(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 8, 26])
def test_a_seed_plays_the_same_run_in_every_process(seed: int) -> None:
    """Whatever its hash seed, and whatever it has open."""
    here = Path(__file__).parent
    prints = set()
    for hash_seed, count in (("0", 1), ("1", 7), ("random", 12)):
        taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        try:
            found = subprocess.run(
                [sys.executable, "-c", ALIKE, str(seed), str(here)],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                pass_fds=taken, capture_output=True, text=True, timeout=200, check=True,
            )  # fmt: skip
        finally:
            for each in taken:
                os.close(each)
        prints.add(found.stdout.split()[-1])
    assert len(prints) == 1


def test_every_old_fault_can_still_be_put_back() -> None:
    """The texts that are changed stand in the product, once each."""
    for changes in mutations.MUTATIONS.values():
        mutations.check(changes)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_an_old_fault_is_found(request: pytest.FixtureRequest, name: str) -> None:
    """Put back into the product, it breaks a promise within some thousand seeds."""
    if not request.config.getoption("--mutations"):
        pytest.skip("without --mutations")
    done = subprocess.run(
        [sys.executable, mutations.__file__, name, "--seeds", str(MOST_MUTATED)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} | {found['seeds']} seeds | {found['fault']}")
    assert found["fault"]
