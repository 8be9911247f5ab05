"""What a sink gets of the stream: level, match, sampling, collapsing, fields."""

import itertools
import json
import re

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import python, wire_line

from logagg.abc import Batch
from logagg.core.record import FIXED
from logagg.errors import ConfigError
from logagg.fanout.transforms import Transform, select_level
from logagg.filters.redact import Redaction
from logagg.sinks import CommonOptions
from logagg.testing import make_batch, make_line

STAMP = b"2026-11-25T02:00:00.000000000Z"
CLOSING = b',"received":"2026-11-25T02:00:00.000000000Z"}\n'


def records(batch):
    return [orjson.loads(line) for line in batch.finished()]


def shaped(lines, now=0.0, **common):
    return records(Transform(CommonOptions(**common)).apply(make_batch(lines), now))


def test_a_sink_that_asks_for_nothing_gets_the_very_batch():
    """Nothing is parsed, copied or changed on the way."""
    batch = make_batch([b"not even JSON", make_line()])

    assert Transform(CommonOptions()).apply(batch, 0.0) is batch


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        (0, ["debug", "info", "warning", "error", "critical", "verbose", "odd"]),
        (15, ["info", "warning", "error", "critical", "verbose", "odd"]),
        (16, ["info", "warning", "error", "critical", "odd"]),
        (30, ["warning", "error", "critical", "odd"]),
        (50, ["critical", "odd"]),
        (51, ["odd"]),
    ],
)
def test_the_level_is_decided_by_name_or_by_number(threshold, kept):
    """Own levels carry their number; one that tells none is rather kept."""
    lines = [
        make_line(level=name)
        for name in ("debug", "info", "warning", "error", "critical")
    ]
    lines.append(make_line(level="verbose", level_number=15))
    lines.append(make_line(level="odd"))

    found = select_level(lines, threshold)

    assert [orjson.loads(line + b"}")["level"] for line in found] == kept


def test_match_uses_the_filter_of_tail():
    """Only records that satisfy every term reach the sink."""
    lines = [
        make_line(0, status=200, path="/x"),
        make_line(1, status=503, path="/health"),
        make_line(2, status=503, path="/x", level="error"),
    ]

    found = shaped(lines, match="status>=500 -path=/health")

    assert [record["seq"] for record in found] == [2]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"match": "level=>warning"}, "level"),
        ({"redact": ("/(a+)+$/",)}, "exponential"),
        ({"redact": ("/x*/",)}, "empty text"),
        ({"drop": ("message",)}, "'message'"),
    ],
)
def test_what_cannot_be_understood_is_refused(options, told):
    """A bad filter, pattern or field is a ConfigError that names it."""
    with pytest.raises(ConfigError) as caught:
        Transform(CommonOptions(**options))

    assert told in str(caught.value)


def test_fields_keeps_the_fixed_ones_and_those_asked_for():
    """All other extra fields are left out, the order stays."""
    line = make_line(a=1, b=2, c=3, exception={"type": "E"})

    (found,) = shaped([line], fields=("c", "a"))

    assert list(found)[-4:] == ["a", "c", "exception", "received"]
    assert found["message"] == "hello"


def test_drop_leaves_the_named_fields_out():
    """Extras and those fixed fields that a record can do without."""
    (found,) = shaped([make_line(a=1, b=2)], drop=("b", "pid", "thread"))

    assert "b" not in found
    assert "pid" not in found
    assert found["a"] == 1
    assert found["process"] == "MainProcess"


def test_shaping_keeps_the_places_of_the_prefix():
    """Time and level of a changed line stand where they stand in every line."""
    batch = make_batch([make_line(level="error", password="x", b=1)])

    found = Transform(CommonOptions(drop=("b",))).apply(batch, 0.0)

    assert found.lines[0][:62] == batch.lines[0][:62]


def test_big_numbers_survive_a_change_of_the_line():
    """Integers over 64 bits and long fractions come out as they went in."""
    line = make_line(password="x") + b',"big":123456789012345678901234567890,"f":0.1'

    batch = Transform(CommonOptions(redact=("secrets",))).apply(make_batch([line]), 0.0)

    assert b'"big":123456789012345678901234567890,"f":0.1' in batch.lines[0]
    assert b'"password":"[redacted]"' in batch.lines[0]


@given(
    levels=st.lists(st.sampled_from(["debug", "info", "error"]), max_size=200),
    loggers=st.lists(st.sampled_from(["a", "b.c", 'q"uote', "ü"]), min_size=1),
    rate=st.integers(2, 7),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_sampling_counts_exactly(levels, loggers, rate, cuts):
    """Kept records and what they say was skipped add up to all; errors all stay."""
    lines = [
        make_line(i, level=level, logger=loggers[i % len(loggers)])
        for i, level in enumerate(levels)
    ]
    shaper = Transform(CommonOptions(sample=rate))
    out = []
    edges = sorted({0, len(lines), *[cut for cut in cuts if cut < len(lines)]})
    for low, high in itertools.pairwise(edges):
        out += records(shaper.apply(make_batch(lines[low:high]), 0.0))
    out += records(shaper.flush(STAMP, CLOSING, 0.0, final=True))

    kept = [record for record in out if record.get("event") != "sampled"]
    skipped = sum(record.get("skipped", 0) for record in out)
    assert len(kept) + skipped == len(lines)
    assert shaper.counters.get("sampled", 0) == skipped
    assert sum(r["level"] == "error" for r in kept) == levels.count("error")


@given(
    messages=st.lists(st.sampled_from(["x", "y", 'z"\\', "ü\n"]), max_size=60),
    pauses=st.lists(st.floats(0, 4), min_size=60, max_size=60),
)
def test_collapsing_counts_exactly(messages, pauses):
    """Records let through and those they stand for add up to all, in order of time."""
    shaper = Transform(CommonOptions(collapse=5.0))
    now, out = 0.0, []
    for number, (message, pause) in enumerate(zip(messages, pauses, strict=False)):
        now += pause
        line = make_line(
            number, message=message, worker=str(number % 3), pid=number % 3
        )
        out += records(shaper.apply(make_batch([line]), now))
    out += records(shaper.flush(STAMP, CLOSING, now, final=True))

    assert sum(record.get("repeated", 1) for record in out) == len(messages)
    for message in set(messages):
        same = [record for record in out if record["message"] == message]
        total = sum(record.get("repeated", 1) for record in same)
        assert total == messages.count(message)
    stamps = [record["timestamp"] for record in out]
    assert stamps == sorted(stamps)
    held = len(messages) - len(out)
    assert shaper.counters.get("collapsed", 0) == held


def test_collapsing_hands_out_when_the_time_is_over():
    """The record that stands for others comes when its seconds have passed."""
    shaper = Transform(CommonOptions(collapse=5.0))
    lines = [make_line(i, message="same") for i in range(4)]

    first = records(shaper.apply(make_batch(lines), 100.0))
    early = records(shaper.flush(STAMP, CLOSING, 104.9, final=False))
    (late,) = records(shaper.flush(STAMP, CLOSING, 105.0, final=False))

    assert [record["seq"] for record in first] == [0]
    assert early == []
    assert late["repeated"] == 3
    assert late["timestamp"] == STAMP.decode()
    assert late["first"].endswith("00.000000000Z")
    assert late["last"].endswith("00.003000000Z")
    assert shaper.due is None


def test_records_that_differ_in_a_field_are_not_collapsed():
    """Only time, number and who wrote it may differ."""
    lines = [make_line(0, path="/a"), make_line(1, path="/b"), make_line(2)]
    lines.append(make_line(3, level="error"))

    assert len(shaped(lines, collapse=5.0)) == 4


# --- redaction ---


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "PASSWORD",
        "db_password",
        "X-Api-Key",
        "apikey",
        "accessToken",
        "Authorization",
        "set-cookie",
        "client_secret",
        "aws_secret_access_key",
        "credentials",
        "private key",
    ],
)
def test_the_word_secrets_stands_for_the_well_known_names(name):
    """In any case, at any depth, the value gives way to the same placeholder."""
    line = make_line(
        **{"a": 1, name: "hunter2", "deep": [{"er": {name: {"x": "hunter2"}}}]}
    )
    shaper = Transform(CommonOptions(redact=("secrets",)))

    batch = shaper.apply(make_batch([make_line(), line, make_line(2)]), 0.0)

    assert b"hunter2" not in batch.data
    (_, found, _) = records(batch)
    assert found[name] == "[redacted]"
    assert found["deep"] == [{"er": {name: "[redacted]"}}]
    assert found["a"] == 1
    assert shaper.counters == {"redacted": 2}


@pytest.mark.parametrize("name", ["monkey", "tokens_used", "key", "passage", "pwd"])
def test_other_names_are_left_alone(name):
    """A name that only resembles a secret's does not lose its value."""
    line = make_line(**{name: "x"})
    batch = make_batch([line])

    assert Transform(CommonOptions(redact=("secrets",))).apply(batch, 0.0).lines == [
        line
    ]


def test_only_what_is_asked_for_is_redacted():
    """Given names count in any spelling, alone or beside the well-known ones."""
    line = make_line(password="p", Iban="i")

    batch = make_batch([line])
    assert Transform(CommonOptions()).apply(batch, 0.0).lines == [line]
    (found,) = shaped([line], redact=("iban",))
    assert (found["password"], found["Iban"]) == ("p", "[redacted]")
    (found,) = shaped([line], redact=("secrets", "iban"))
    assert (found["password"], found["Iban"]) == ("[redacted]", "[redacted]")


def test_patterns_are_redacted_in_any_text():
    """Messages, values, exceptions and nested texts are all searched."""
    card = "4111 1111 1111 1111"
    error = {"type": "E", "message": card, "stack": f"E: {card}\n"}
    line = make_line(message=f"paid with {card}!", a=[card], exception=error)

    (found,) = shaped([line], redact=(r"/\d{4}( \d{4}){3}/",))

    assert card not in str(found)
    assert found["message"] == "paid with [redacted]!"


def test_what_cannot_be_searched_is_left_out():
    """The end of an overlong text and a line that is no record do not get through."""
    line = make_line(message="a" * 20_000 + " sk-123")
    broken = make_line(password="hunter2")[:-3] + b"\x00"
    options = CommonOptions(redact=("/sk-[0-9]+/", "secrets"))

    batch = Transform(options).apply(make_batch([line, broken]), 0.0)

    assert b"sk-123" not in batch.data
    assert b"too long to be searched" in batch.data
    assert b"hunter2" not in batch.data
    assert len(records(batch)) == 2


NAMES = st.text(st.characters(codec="utf-8"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)


@example(fields={"received": 1, "late": 2}, secret="")
@given(fields=st.dictionaries(NAMES, VALUES, max_size=5), secret=st.text(max_size=5))
def test_redaction_changes_nothing_but_secrets(fields, secret):
    """Every other field of a record with a secret in it comes out as it went in."""
    extra = json.dumps({**fields, "my_token": "S" + secret}, ensure_ascii=False)
    line = make_line(0) + b"," + extra[1:-1].encode()

    batch = Transform(CommonOptions(redact=("secrets",))).apply(make_batch([line]), 0.0)

    found = json.loads(batch.finished()[0])
    assert found["my_token"] == "[redacted]"
    for name, value in fields.items():
        if name not in found or name in FIXED:
            continue  # the service's own
        plain = re.sub(r"[- ]", "_", name.lower())
        if not re.search("password|token|cookie|secret|key|credential", plain):
            assert found[name] == value or "redacted" in str(found[name])


DEEP = b'"message":"x","extra":' + b'{"y":' * 200 + b"1" + b"}" * 200
HARD = {
    "nested as far as JSON is read": DEEP,
    "nested in lists": b'"message":"x","extra":' + b"[" * 900 + b"]" * 900,
    "nested, with a long number": b'"n":12345678901234567890123,' + DEEP,
    "nested too deeply": b'"message":' + b"[" * 100_000,
    "half a character": b'"logger":"\\ud800","message":"\\ud800","extra":1',
    "no JSON": b'"message":"x"x,"extra":1',
}
OPTIONS = [
    {"match": "extra.y~x message~x"},
    {"match": "extra~x level=warning"},
    {"drop": ("extra",)},
    {"fields": ("message",)},
    {"redact": ("extra", "/[0-9]{16}/")},
    {"level": 30, "collapse": 1.0},
    {"sample": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_line_is_too_hard_and_none_disappears(options):
    """Each goes on, or a record stands for it, or it is counted; secrets never pass."""
    transform = Transform(CommonOptions(**options))
    for level in ("info", "error", "odd"):
        lines = [
            wire_line(1, n, level=level, body=body)
            for n, body in enumerate(HARD.values())
        ]
        out = transform.apply(Batch(lines * 2, b"}\n"), 0.0).lines
        if "redact" in options or "drop" in options:
            shown = [line.replace(b'"extra":"[redacted]"', b"") for line in out]
            assert not any(b'"extra":' in line for line in shown)
    transform.flush(b"2026-11-29T00:00:00.000000000Z", b"}\n", 9.0, final=True)


def test_a_secret_name_with_escaped_letters_is_redacted():
    """JSON allows any character to be escaped."""
    escaped = wire_line(1, body=b'"message":"m","p\\u0069n":"1234"')
    (out,) = Redaction(("pin",)).lines([escaped])

    assert b"1234" not in out


def test_a_pattern_redacts_numbers_too():
    """A number is text in the line; the record's own fixed numbers stay."""
    body = b'"message":"m","pid":4111111111111111,"card":4111111111111111,"x":[1.5,7]'
    (out,) = Redaction(("/[0-9]{16}/",)).lines([wire_line(1, body=body)])

    record = orjson.loads(out + b"}")
    assert record["card"] == "[redacted]"
    assert (record["pid"], record["x"]) == (4111111111111111, [1.5, 7])


LONG_MESSAGES = """
import resource
from logagg.abc import Batch
from logagg.fanout.transforms import Transform
from logagg.sinks import CommonOptions
head = b'{"timestamp":"2026-11-29T00:00:00.00000000%dZ","level":"info","worker":"1","seq":1,'
body = b'"logger":"l","message":"%b"' % (rb"x\\n" * 1_000_000)
lines = [head % n + body for n in (1, 2)]
transform = Transform(CommonOptions(collapse=1.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(transform.apply(Batch(lines, b"}\\n"), 0.0).lines) == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_collapsing_a_long_message_takes_little_memory():
    """A message of megabytes with escapes in it, as a traceback has many."""
    assert int(python(LONG_MESSAGES).stdout) < 30_000
