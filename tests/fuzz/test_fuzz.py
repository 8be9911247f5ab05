"""Fuzzing of what strangers can send: kept inputs, changed ones, a consumer at work.

`--fuzz SECONDS` fuzzes that long in each test, with other inputs each time; `fuzz.py`
finds new ones by coverage.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from attack import Attacker
from harness import besieged
from mutate import mutated
from seeds import SEEDS
from targets import TARGETS, close_scene

CHANGED = 200
MOST_MEMORY = 250_000_000


def corpus(target: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    folder = Path(__file__).parent / "corpus" / target
    kept = sorted(folder.iterdir()) if folder.exists() else []
    return [*SEEDS[target].values(), *(path.read_bytes() for path in kept)]


@pytest.fixture(autouse=True)
def scene() -> Iterator[None]:
    """The consumer in this process ends with each test."""
    yield
    close_scene()


def changed(request: pytest.FixtureRequest, target: str) -> Iterator[bytes]:
    """Changed inputs: the same ones each time, or others for as long as is asked for."""
    seconds = request.config.getoption("--fuzz")
    seed = random.randrange(2**32) if seconds else 1
    print(f"{target}: seed {seed}")
    chance, inputs = random.Random(seed), corpus(target)
    until = time.monotonic() + (seconds or 3600)
    number = 0
    while number < CHANGED or (seconds and time.monotonic() < until):
        number += 1
        yield mutated(chance.choice(inputs), inputs, chance)
    print(f"{target}: {number} inputs")


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_were_kept_do_no_harm(target: str) -> None:
    """Each reached something that the others do not."""
    for data in corpus(target):
        TARGETS[target](data)


@pytest.mark.timeout(86_400)
@pytest.mark.parametrize("target", TARGETS)
def test_changed_inputs_do_no_harm(request: pytest.FixtureRequest, target: str) -> None:
    """Nothing is raised, and no part of a consumer fails."""
    for data in changed(request, target):
        try:
            TARGETS[target](data)
        except Exception as error:
            raise AssertionError(f"{target} with {data!r}") from error


@pytest.mark.slow
@pytest.mark.timeout(86_400)
def test_a_consumer_that_is_attacked_serves_the_others(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It lives, answers, stays small, and each record of a good worker is written."""
    with besieged(tmp_path / "app.log") as found:
        attacker = Attacker(found.socket, lambda: None, ["give_way", "hold"])
        for number, data in enumerate(changed(request, "socket")):
            attacker.play(data)
            if number % 50 == 0:
                found.status()
                assert support.memory_bytes(found.consumer) < MOST_MEMORY
        found.judge()
