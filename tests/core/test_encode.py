"""Any value at all becomes one line of strict JSON, and nothing is ever raised."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import sys
import threading
import traceback
import types
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strict

from logagg.core.encode import MAX_LINE_BYTES, body, safe_text
from logagg.core.exception_fields import exception_field


class Broken:
    """An object of which nothing can be asked."""

    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __eq__(self, other):
        raise RuntimeError("no eq")

    __hash__ = None


class Brittle:
    """An object that breaks when `body` looks at it, but not in a test's report."""

    armed = False

    def __repr__(self):
        if Brittle.armed:
            raise RuntimeError("no repr")
        return "Brittle()"

    __str__ = __repr__


class BrokenMapping(collections.UserDict):
    def __iter__(self):
        raise RuntimeError("no keys")


class BrokenList(list):
    def __iter__(self):
        raise RuntimeError("no elements")


class BrokenText(str):
    __slots__ = ()

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class BrokenInt(int):
    def __str__(self):
        raise RuntimeError("no digits")

    __repr__ = __index__ = __int__ = __str__


class NotText:
    def __repr__(self):
        return 7

    __str__ = __repr__


class Surrogate:
    def __repr__(self):
        return "\udc80"


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class Color(enum.Enum):
    RED = 1


class Weird(enum.Enum):
    THING = threading.Lock()


def nested(depth, make):
    value = "innermost"
    for _ in range(depth):
        value = make(value)
    return value


def looped():
    inner = []
    inner.append({"again": inner})
    return inner


NASTY = {
    "lone surrogate": "\udcd1",
    "pair of surrogates": "\ud83d\ude00",
    "emoji": "🔥",
    "NUL": "a\0b",
    "newlines": 'a\r\n{"forged":1}\n',
    "escape": "\x1b[2J\x1b]8;;x\x07\x9b",
    "separators": "\u2028\u2029\x85\u202e\t",
    "bytes": b"\xff\x00ok",
    "bytearray": bytearray(b"\xff"),
    "memoryview": memoryview(b"\xff"),
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "NaN within": [1.5, {"x": (math.nan, None)}],
    "2**70": 2**70,
    "-2**70": -(2**70),
    "2**64": 2**64,
    "-2**63": -(2**63),
    "5000 digits": 10**5000,
    "set": {1, 2},
    "set of objects": {Color.RED},
    "frozenset": frozenset("a"),
    "decimal": decimal.Decimal("1.10"),
    "decimal NaN": decimal.Decimal("NaN"),
    "fraction": fractions.Fraction(1, 3),
    "complex": 1 + 2j,
    "naive datetime": datetime.datetime(2026, 1, 1),  # noqa: DTZ001 - the point
    "odd zone": datetime.datetime(
        2026, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(seconds=1))
    ),
    "timedelta": datetime.timedelta(1),
    "path": pathlib.Path("/tmp"),
    "uuid": uuid.UUID(int=1),
    "enum": Color.RED,
    "enum of a lock": Weird.THING,
    "lock": threading.Lock(),
    "lambda": lambda: None,
    "class": Broken,
    "module": math,
    "generator": (n for n in range(3)),
    "exception": TwoArguments("a", "b"),
    "object": object(),
    "broken": Broken(),
    "broken mapping": BrokenMapping(a=1),
    "broken list": BrokenList([1]),
    "broken text": BrokenText("x"),
    "broken int": BrokenInt(3),
    "repr is no text": NotText(),
    "repr with a surrogate": Surrogate(),
    "mapping proxy": types.MappingProxyType({"a": math.nan}),
    "named tuple": collections.namedtuple("P", "x")(Broken()),
    "deque": collections.deque([1]),
    "range": range(3),
    "keys of all kinds": {1: 1, None: 2, (1, 2): 3, b"\xff": 4, "\udc80": 5, "a": 6},
    "keys that become one": {1: "int", "1": "text", 1.0: "float", True: "bool"},
    "a broken value in a dict": {"good": 1, "bad": Broken()},
    "10 MB": "x" * 10_000_000,
    "40 MB": "x" * 40_000_000,
    "20 MB of escapes": "\x01" * 20_000_000,
    "30 MB of emoji": "🔥" * 8_000_000,
    "many long strings": ["x" * 100_000] * 300,
    "deep list": nested(2000, lambda value: [value]),
    "deep dict": nested(500, lambda value: {"k": value}),
    "100 kB of nested dict": nested(60, lambda value: {"k": value, "p": "x" * 1700}),
    "in itself": looped(),
    "10,000 fields": {f"field{n}": n for n in range(10_000)},
    "a million numbers": list(range(1_000_000)),
}


def encoded(fields):
    """The body of a line, checked to be one line of strict JSON."""
    Brittle.armed = True
    try:
        raw = body(fields)
    finally:
        Brittle.armed = False
    assert b"\n" not in raw
    assert len(raw) <= MAX_LINE_BYTES
    parsed = strict(b"{" + raw + b"}")
    assert isinstance(parsed, dict)
    return parsed


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_value_becomes_one_line_of_strict_json(name):
    """Whatever the value is, the field is there, and so is its neighbor."""
    found = encoded({"before": 1, "value": NASTY[name], "after": 2})

    assert list(found) == ["before", "value", "after"]
    assert (found["before"], found["after"]) == (1, 2)
    assert found["value"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_value_costs_no_other_value_its_fidelity(name):
    """What stands beside an inexpressible value comes through as it is."""
    found = encoded(
        {"value": NASTY[name], "text": "é\n", "list": [1, {"a": None}], "x": 1.5}
    )

    if len(str(found["value"])) < 1_000_000:
        assert found["text"] == "é\n"
        assert found["list"] == [1, {"a": None}]
        assert found["x"] == 1.5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("\udcd1", "\\udcd1"),
        (b"\xffok", "\\xffok"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (2**70, str(2**70)),
        (decimal.Decimal("1.10"), "Decimal('1.10')"),
        (Broken(), "<unprintable Broken: RuntimeError in repr()>"),
        (1 + 2j, "(1+2j)"),
    ],
)
def test_what_json_lacks_becomes_text_that_says_what_it_was(value, text):
    """The safe text of each kind is the documented one."""
    assert encoded({"v": value})["v"] == text


def test_text_that_json_can_hold_comes_back_as_it_was():
    """Control characters, separators and emoji are escaped, not changed."""
    text = 'a\0\r\n\t"\\{"forged":1}\x1b[2J\x9b\u2028\u202e🔥é'

    assert encoded({"m": text}) == {"m": text}


def test_a_message_that_is_too_long_says_how_much_is_missing():
    """A cut string begins as the original and ends in a marker."""
    found = encoded({"m": "x" * 40_000_000})["m"]

    assert found.startswith("xxx")
    kept = len(found.rpartition("…")[0])
    assert found.endswith(f"…[truncated {40_000_000 - kept} characters]")


def test_ten_megabytes_come_through_whole():
    """People do log 10 MB; that is within the limit."""
    assert len(encoded({"m": "x" * 10_000_000})["m"]) == 10_000_000


class Slow:
    def __init__(self, reads):
        self.reads = reads

    def __repr__(self):
        self.reads.append(self)
        threading.Event().wait(0.03)
        return "slow"


@pytest.mark.parametrize(
    ("value", "most", "mark"),
    [
        ({f"key{n}": n for n in range(300_000)}, 5_000, "[truncated 295002 members]"),
        (list(range(300_000)), 5_000, "…[truncated 295002 elements]"),
        ([object() for _ in range(30_000)], 5_000, "…[truncated 25002 elements]"),
        ([[[0] * 100] * 100] * 100, 5_000, "…[truncated 100 elements]"),
        ([NotText()] * 3, 3, "<unprintable NotText: TypeError in repr()>"),
    ],
    ids=["members", "elements", "objects", "nested", "few"],
)
def test_the_width_of_a_record_is_bounded(value, most, mark):
    """What is cut has a mark with the number, and the exception stands beside it."""
    cause = {"type": "E", "message": "m", "cause": {"type": "F"}}

    found = encoded({"message": "m", "value": value, "n": [1, 2], "exception": cause})

    def leaves(each):
        if isinstance(each, dict):
            return sum(map(leaves, each.values()))
        return sum(map(leaves, each)) if isinstance(each, list) else 1

    assert leaves(found["value"]) <= most
    assert mark in repr(found["value"])
    assert found["n"] == [1, 2]
    assert found["exception"] == cause


def test_the_number_of_fields_is_bounded():
    """The last of them are the exception and the stack, which are there."""
    found = encoded({f"f{n}": n for n in range(20_000)} | {"exception": {"type": "E"}})

    assert len(found) == 10_001
    assert found["truncated_fields"] == "10001"
    assert found["exception"] == {"type": "E"}


def test_the_time_of_a_record_is_bounded():
    """Of a hundred objects that are slow to read, few are read; the rest has a mark."""
    reads = []

    found = encoded({"v": [Slow(reads) for _ in range(100)], "after": 1})

    assert len(reads) < 50
    assert found["v"][0] == "slow"
    assert found["v"][-1] == "<Slow, not read: the record takes too long>"
    assert found["after"] == 1


def test_the_text_of_an_object_is_bounded():
    """Text of the caller's is not: that of an object nobody has written as a text."""

    class Long:
        def __repr__(self):
            return "x" * 1_000_000

    found = encoded({"v": Long(), "text": "y" * 1_000_000})

    assert found["v"] == "x" * 65536 + "…[truncated 934464 characters]"
    assert found["text"] == "y" * 1_000_000


def test_many_small_records_with_objects_come_out_as_one_does():
    """The estimate of work changes how a record is encoded, not what is in it."""

    @dataclasses.dataclass
    class Point:
        at: pathlib.Path
        pair: tuple

    pair = collections.namedtuple("Pair", "a b")
    fields = {"path": pathlib.Path("/x"), "point": Point(pathlib.Path("/y"), (1, b"z"))}
    fields |= {"pair": pair(1, 2), "list": [decimal.Decimal(1)], "set": {1}}

    assert len({body(fields) for _ in range(2000)}) == 1


def test_no_key_is_lost_to_another_that_reads_the_same():
    """Keys whose texts are equal do not overwrite each other."""
    found = encoded({"v": {1: "int", "1": "text", None: "x", "None": "y"}})["v"]

    assert sorted(map(str, found.values())) == ["int", "text", "x", "y"]


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None)),  # surrogates too
    st.binary(),
    st.decimals(),
    st.complex_numbers(),
    st.datetimes(),
    st.timedeltas(),
    st.uuids(),
    st.builds(Brittle),
    st.just(Color.RED),
    st.sets(st.integers()),
)
keys = st.one_of(
    st.text(st.characters(codec=None)), st.integers(), st.none(), st.binary()
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(keys, inner), st.tuples(inner, inner)
    ),
    max_leaves=10,
)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.dictionaries(st.text(st.characters(codec=None)), values))
def test_any_fields_become_one_line_of_strict_json(fields):
    """Whatever Python can build gets through, and no field is missing."""
    assert len(encoded(fields)) == len(fields)


plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec="utf-8")),
    ),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.text(st.characters(codec="utf-8")), inner)
    ),
    max_leaves=10,
)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), plain))
def test_what_json_knows_comes_back_as_it_was(fields):
    """Plain values make the round trip without a change."""
    assert encoded(fields) == fields


@given(st.text(st.characters(codec=None)))
def test_safe_text_can_always_be_encoded(text):
    """Whatever the text, its safe form is UTF-8, and good text stays as it is."""
    safe = safe_text(text)

    safe.encode()
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert safe == text


# ---- exceptions ----------------------------------------------------------------------


def caught(call):
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - the point
        return type(error), error, error.__traceback__
    raise AssertionError("nothing was raised")


def chained():
    try:
        raise ValueError("first")
    except ValueError as error:
        problem = RuntimeError("second")
        problem.add_note("look here")
        raise problem from error


def test_an_exception_is_told_in_parts_and_as_python_prints_it():
    """Type, message, notes, cause, and the traceback's text with all of them."""
    info = caught(chained)

    found = exception_field(*info[1:])

    assert found["type"] == "RuntimeError"
    assert found["message"] == "second"
    assert found["notes"] == ["look here"]
    assert found["cause"] == {"type": "ValueError", "message": "first"}
    assert "context" not in found
    assert found["stack"] == "".join(traceback.format_exception(*info)).rstrip("\n")


def test_an_exception_raised_while_another_was_handled_tells_its_context():
    """Without `from`, the other one is the context; `from None` hides it."""

    def implicit():
        try:
            raise KeyError("k")
        except KeyError:
            raise OSError("o")  # noqa: B904 - the point

    def hidden():
        try:
            raise KeyError("k")
        except KeyError:
            raise OSError("o") from None

    assert exception_field(*caught(implicit)[1:])["context"]["type"] == "KeyError"
    assert exception_field(*caught(hidden)[1:]).keys() == {"type", "message", "stack"}


def test_a_group_tells_its_members():
    """Each member of an ExceptionGroup is there, groups within groups too."""

    def grouped():
        inner = ExceptionGroup("inner", [KeyError("k")])
        raise ExceptionGroup("outer", [ValueError("v"), inner])

    found = exception_field(*caught(grouped)[1:])

    assert found["type"] == "ExceptionGroup"
    assert [each["type"] for each in found["exceptions"]] == [
        "ValueError",
        "ExceptionGroup",
    ]
    assert found["exceptions"][1]["exceptions"][0]["type"] == "KeyError"
    assert "sub-exception" in found["stack"]


def test_an_exception_that_cannot_be_printed_is_told_all_the_same():
    """A broken `__str__` costs the message only."""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no")

    def mute():
        raise Mute

    found = encoded({"exception": exception_field(*caught(mute)[1:])})["exception"]

    assert found["type"].endswith("Mute")
    assert "unprintable" in found["message"]
    assert "in mute" in found["stack"]


def test_exceptions_that_cause_each_other_in_a_circle_come_to_an_end():
    """A chain that bites its own tail is cut."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one

    found = encoded({"e": exception_field(one, None)})["e"]

    assert found["message"] == "one"
    assert found["cause"]["message"] == "two"


def test_a_very_long_chain_of_causes_is_cut():
    """The newest and the first are there; a thousand causes are not a thousand levels."""
    error = ValueError(0)
    for number in range(1, 3000):
        fresh = ValueError(number)
        fresh.__cause__ = error
        error = fresh

    found = encoded({"e": exception_field(error, None)})["e"]

    assert found["message"] == "2999"
    assert found["stack"].startswith("ValueError: 0\n\nThe above exception")
    assert found["stack"].endswith("ValueError: 2998\n\n" + LINK + "ValueError: 2999")
    assert "…[truncated 2979 exceptions]" in found["stack"]
    assert found["stack"].count("ValueError") == 21


LINK = "The above exception was the direct cause of the following exception:\n\n"


def test_a_large_group_and_a_deep_recursion_are_cut():
    """With a mark, and in the form that Python gives them."""

    def deep(depth):
        if depth:
            deep(depth - 1)
        raise ValueError("at the bottom")

    group = exception_field(ExceptionGroup("g", [ValueError(1)] * 50_000), None)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        found = exception_field(*caught(lambda: deep(2000))[1:])
    finally:
        sys.setrecursionlimit(limit)

    assert group["stack"] == "ExceptionGroup: g (50000 sub-exceptions)"
    assert len(group["exceptions"]) == 100
    head = "Traceback (most recent call last):\n  …[truncated 1983 frames]\n"
    assert found["stack"].startswith(head)
    assert found["stack"].endswith("ValueError: at the bottom")
    assert found["stack"].count("in deep") < 20  # the same frames are folded
