"""Fuzzing of parsers: sink URLs, configuration files, heads of requests, targets' answers.

Each target takes any bytes and raises nothing; what is wrong with an input is an error
of logagg's own. As in `test_fuzz`, the same inputs each time, or others for as long as
`--fuzz SECONDS` asks for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutate import mutated
from parsers import PARSER_SEEDS, PARSERS

CHANGED = 300
SLOWEST = 5.0  # seconds: an input that takes longer does harm


def corpus(target: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    folder = Path(__file__).parent / "corpus" / target
    kept = sorted(folder.iterdir()) if folder.exists() else []
    return [*PARSER_SEEDS[target], *(path.read_bytes() for path in kept)]


def inputs(request: pytest.FixtureRequest, target: str) -> Iterator[bytes]:
    """Those that are kept; then changed ones."""
    seconds = request.config.getoption("--fuzz")
    seed = random.randrange(2**32) if seconds else 1
    print(f"{target}: seed {seed}")
    chance, kept = random.Random(seed), corpus(target)
    yield from kept
    until = time.monotonic() + (seconds or 3600)
    number = 0
    while number < CHANGED or (seconds and time.monotonic() < until):
        number += 1
        yield mutated(chance.choice(kept), kept, chance)


@pytest.mark.timeout(86_400)
@pytest.mark.parametrize("target", PARSERS)
def test_a_parser_takes_any_input(request: pytest.FixtureRequest, target: str) -> None:
    """It raises nothing but errors of logagg's own, and takes no time worth naming."""
    for data in inputs(request, target):
        start = time.process_time()
        try:
            PARSERS[target](data)
        except Exception as error:
            raise AssertionError(f"{target} with {data!r}") from error
        assert time.process_time() - start < SLOWEST, f"{target} with {data!r}"
