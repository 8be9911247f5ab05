"""Changes inputs as a fuzzer does: bytes, words that mean something, values in JSON."""

from __future__ import annotations

import random
from typing import Any

import orjson
from attack import SEPARATOR

WORDS = [
    b'{"timestamp":"', b'"seq":', b'"level":"', b"\n", b"\0", b"\xff", b"}", b'"', b"\\",
    b'"torn":[', b'"segments":[', b'"flush":', b'"bye":', b'"dropped":', b"h {}",
    b"l 1 5", b"l 3 1", b"g 2 3", b"z", b"x", b"e", b"c", b"Traceback (most recent call last):\n",
    b"99999999999999999999", b"-1", b"1e400", b"[" * 300, b"\xed\xa0\x80", b"\r", b"\x1b[",
]  # fmt: skip
ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**64 - 1, 1.5, "", "\0", "é" * 70, "/etc/passwd",
    "../x", [], {}, [1, 2, 3], [[1, 2]], [{"segment": "x", "first": 1}], {"a": {"b": []}},
]  # fmt: skip
KEYS = [
    "flush", "dropped", "torn", "bye", "stays", "segment", "first", "last", "hello", "kind",
    "pid", "worker", "stream", "again", "acknowledged", "settled", "told", "segments", "spool",
    "elects", "clocks", "record", "after_pid", "leave", "ack", "flushed", "switch", "match",
    "lines", "after", "grep", "level", "slot", "process",
]  # fmt: skip
MOST_BYTES = 20_000


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The input, changed in one to four places."""
    for _ in range(chance.randint(1, 4)):
        change = chance.choice(
            [_flip, _cut, _word, _word, _repeat, _splice, _steps, _json, _json]
        )
        data = change(data, others, chance)
    return data[:MOST_BYTES]


def _place(data: bytes, chance: random.Random) -> int:
    return chance.randint(0, len(data))


def _flip(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    if not data:
        return data
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + data[at + chance.randint(1, 30) :]


def _word(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + chance.choice(WORDS) + data[at:]


def _repeat(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    at = _place(data, chance)
    part = data[at : at + chance.randint(1, 100)]
    return data[:at] + part * chance.choice([2, 3, 10, 100]) + data[at:]


def _splice(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    other = chance.choice(others)
    return data[: _place(data, chance)] + other[_place(other, chance) :]


def _steps(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    steps = data.split(SEPARATOR)
    steps.insert(
        chance.randint(0, len(steps)),
        chance.choice(chance.choice(others).split(SEPARATOR)),
    )
    if chance.random() < 0.3:
        chance.shuffle(steps)
    return SEPARATOR.join(steps)


def _json(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    """Another value, or one more, in an object."""
    steps = data.split(SEPARATOR)
    at = chance.randrange(len(steps))
    head, brace, text = steps[at].partition(b"{")
    try:
        value = orjson.loads(brace + text)
    except orjson.JSONDecodeError:
        return data
    if isinstance(value, dict):
        known = [*value, *KEYS] if chance.random() < 0.5 else list(value) or KEYS
        value[chance.choice(known)] = chance.choice(ODD)
        steps[at] = head + orjson.dumps(value)
    return SEPARATOR.join(steps)
