"""Recorded causes: whether the order of a file agrees with what happened before what.

Processes hand a word on, under a lock or in a message: the `(worker, number)` of the
record that they logged last (`producer.Chain`). Who has it, logs with it in the field `after`. So the call
that logged the cause had returned before the call that logged its effect began, and the
effect may never stand before its cause.

Two orders are checked. The stamps: the clock that all processes share must show the cause
before its effect, always. The places in the file: an effect may stand before its cause
only where the guarantees allow it and the file says so, at a line that is marked as
late, that was received earlier than a line before it (it waited in a spool), or where
another consumer went on and its first lines are older than the last ones before
(`goes_back`, which the caller bounds by the number of consumers).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import orjson

Link: TypeAlias = tuple[str, int]
"""A record: its producer's name, its number."""

TIMESTAMP = len('{"timestamp":"2026-11-25T00:59:11.860666570Z"')
RECEIVED = b'"received":"'


@dataclass(slots=True)
class Causes:
    """What was found.

    Attributes:
        pairs: How many effects have their cause in the file.
        crossed: How many of them were logged by another process than their cause.
        excused: Effects that stand before their cause, where that is allowed.
        wrong: What contradicts the recorded causes.
    """

    pairs: int = 0
    crossed: int = 0
    excused: int = 0
    wrong: list[str] = field(default_factory=list)


def goes_back(lines: Iterable[bytes]) -> Iterator[int]:
    """The places of lines that are older than the line before them, late ones apart.

    Each is where another consumer goes on: with what its workers have sent to it, or
    with what waited in its spool for the file, which a third one wrote meanwhile.
    """
    before = b""
    for place, line in enumerate(lines):
        if b',"late":true' not in line:
            if line[:TIMESTAMP] < before:
                yield place
            before = line[:TIMESTAMP]


def check_causes(lines: list[bytes]) -> Causes:
    """Compare the order of lines with the causes that they record.

    Args:
        lines: The lines of a log, its oldest piece first.
    """
    places: dict[Link, int] = {}
    effects: list[tuple[Link, Link]] = []
    for place, line in enumerate(lines):
        record = orjson.loads(line)
        if "w" not in record:
            continue
        link = record["w"], record["n"]
        places.setdefault(link, place)
        if record.get("after"):
            effects.append((link, tuple(record["after"])))
    found = Causes()
    steps = list(goes_back(lines))
    newest = list(itertools.accumulate(map(_received, lines), max))
    for effect, cause in effects:
        if cause not in places:
            continue  # lost, and counted: the judge's affair
        found.pairs += 1
        found.crossed += effect[0] != cause[0]
        waited = _received(lines[places[cause]]) < newest[places[cause]]
        _check_pair(lines, places[cause], places[effect], steps, waited, found)
    return found


def _received(line: bytes) -> bytes:
    return line[line.rindex(RECEIVED) :]


def _check_pair(
    lines: list[bytes],
    cause: int,
    effect: int,
    steps: list[int],
    waited: bool,
    found: Causes,
) -> None:
    first, second = lines[cause], lines[effect]
    shown = f"{first[:400]!r} (line {cause}) caused {second[:400]!r} (line {effect})"
    if first[:TIMESTAMP] > second[:TIMESTAMP]:
        found.wrong.append(f"stamped the wrong way round: {shown}")
    if cause < effect:
        return
    crossing = bisect.bisect_right(steps, cause) > bisect.bisect_right(steps, effect)
    was_late = b',"late":true' in first
    if was_late or waited or crossing:
        found.excused += 1
    else:
        found.wrong.append(f"an effect before its cause: {shown}")
