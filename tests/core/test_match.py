"""The filter: its grammar, what it means, and that bytes and records agree."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logagg.core.line import parse_line
from logagg.core.units import wire_time
from logagg.errors import ConfigError
from logagg.filters import matcher, regex

BASE = 1_795_568_351_860_666_570


def record(**fields: Any) -> dict[str, Any]:
    """A record with the wire's field order."""
    body = {
        "timestamp": wire_time(BASE),
        "level": "info",
        "worker": "3",
        "seq": 17,
        "logger": "app",
        "message": "hello",
        "pid": 412,
        "process": "MainProcess",
        "thread": "MainThread",
    }
    return body | fields


def keeps(expression: str, /, **fields: Any) -> bool:
    """Whether the expression keeps such a record, by bytes and by record alike."""
    return keeps_with(matcher.compile([expression]), **fields)


def keeps_with(found: matcher.Match, **fields: Any) -> bool:
    body = record(**fields)
    line = orjson.dumps(body)
    by_record = found.record(body)
    assert found.lines([line]) == ([line] if by_record else [])
    open_line, closing = line[:-1], b',"received":"x"}\n'
    assert found.lines([open_line], closing) == ([open_line] if by_record else [])
    return by_record


@pytest.mark.parametrize(
    ("expression", "fields", "expected"),
    [
        ("level>=warning", {"level": "error"}, True),
        ("level>=warning", {"level": "info"}, False),
        ("level<info", {"level": "debug"}, True),
        ("level>=w", {"level": "warning"}, True),
        ("level=error level=critical", {"level": "critical"}, True),
        ("level=error level=critical", {"level": "warning"}, False),
        ("level!=info", {"level": "info"}, False),
        ("level~^w", {"level": "warning"}, True),
        ("level>=15", {"level": "verbose", "level_number": 15}, True),
        ("level>=16", {"level": "verbose", "level_number": 15}, False),
        ("level=verbose", {"level": "verbose", "level_number": 15}, True),
        ("level=15", {"level": "verbose", "level_number": 15}, True),
        ("level>=debug", {"level": "verbose"}, False),
        ("-level>=warning", {"level": "info"}, True),
        ("logger=app", {"logger": "app.db"}, True),
        ("logger=app", {"logger": "application"}, False),
        ("logger!=app", {"logger": "app.db"}, False),
        ("logger=app logger=web", {"logger": "web"}, True),
        ("worker=3", {}, True),
        ("worker=3 worker=4", {"worker": "4"}, True),
        ("worker>=4", {"worker": "12"}, True),
        ("status>=500", {"status": 503}, True),
        ("status>=500", {"status": "503"}, True),
        ("status>=500", {"status": 499.5}, False),
        ("status>=500", {"status": "high"}, False),
        ("status>=500", {"status": True}, False),
        ("status=500", {"status": 500.0}, True),
        ("status=500", {"status": "500"}, True),
        ('status="500"', {"status": 500}, False),
        ("status>=500", {}, False),
        ("status!=500", {}, False),
        ("status!=500", {"status": 200}, True),
        ("-status=500", {}, True),
        ("status!~5", {}, False),
        ("status!~^5", {"status": 200}, True),
        ("status~^5", {"status": 503}, True),
        ("ok=true", {"ok": True}, True),
        ('ok="true"', {"ok": True}, False),
        ("ok=null", {"ok": None}, True),
        ('message~"time.?out"', {"message": "read timed out, time-out"}, True),
        ('message="two words"', {"message": "two words"}, True),
        ("message='a\\b'", {"message": "a\\b"}, True),
        (r'message="a\\b\"c"', {"message": 'a\\b"c'}, True),
        (r'message~"\d \"x"', {"message": '7 "x'}, True),
        ("-path=/health", {"path": "/health"}, False),
        ("-path=/health", {"path": "/"}, True),
        ("-path=/health", {}, True),
        ("path=/health path=/ready", {"path": "/ready"}, True),
        ("path=/health status=1", {"path": "/health", "status": 2}, False),
        ("key?", {"key": None}, True),
        ("key?", {}, False),
        ("!key?", {}, True),
        ("-key?", {"key": 1}, False),
        ("-!key?", {"key": 1}, True),
        ("user.name=ann", {"user": {"name": "ann"}}, True),
        ("user.name=ann", {"user.name": "ann"}, True),
        ("a.b.c=1", {"a.b": {"c": 1}}, True),
        ("exception.type=KeyError", {"exception": {"type": "KeyError"}}, True),
        ("tags=red", {"tags": ["blue", "red"]}, True),
        ("tags!=red", {"tags": ["blue", "red"]}, False),
        ("size>10", {"size": 2**60}, True),
        ("name>=m", {"name": "zoe"}, True),
        ("timestamp>=2026", {}, False),  # a number is never above a date's text
        ('timestamp>="2026"', {}, True),
        ("city=Zürich", {"city": "Zürich"}, True),
        ('"odd key"=1', {"odd key": 1}, True),
        ('note=""', {"note": ""}, True),
    ],
)
def test_a_term_means_what_the_grammar_documents(
    expression: str, fields: dict[str, Any], expected: bool
) -> None:
    """Every operator, on every kind of value, decides as documented, also on bytes."""
    assert keeps(expression, **fields) is expected


@pytest.mark.parametrize(
    ("expression", "hint"),
    [
        ("level==error", "level=error"),
        ("message=~x", "message~x"),
        ("status=>5", "status>=5"),
        ("status=<5", "status<=5"),
        ("status<>5", "status!=5"),
        ("level:error", "level=error"),
        ("level>=warnign", "'warning'"),
        ("level>=verbose", "unknown level 'verbose'"),
        ("!path=/x", "path!=/x"),
        ("hello", "--grep"),
        ("status>=", "nothing stands after"),
        ("=5", "a field's name must stand before"),
        ('message="abc', "not closed"),
        ('message="a"b', "after the closing quote"),
        ("message~(", "not a regular expression"),
        ("key?x", "nothing may follow"),
    ],
)
def test_a_slip_is_refused_with_the_spelling_that_works(
    expression: str, hint: str
) -> None:
    """An error names the token and the near miss."""
    with pytest.raises(ConfigError) as caught:
        matcher.compile([expression])

    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("warning", "warning error critical"),
        ("e", "error critical"),
        ("debug..info", "debug info"),
        ("..info", "debug info"),
        ("error..", "error critical"),
        ("debug,critical", "debug critical"),
        ("30", "warning error critical"),
        ("WARN", "warning error critical"),
    ],
)
def test_level_is_a_least_a_range_or_a_set(text: str, kept: str) -> None:
    """`--level` takes all three forms."""
    found = matcher.compile(level=text)
    names = ["debug", "info", "warning", "error", "critical"]

    assert [n for n in names if keeps_with(found, level=n)] == kept.split()


@pytest.mark.parametrize("text", ["wrning", "", "error..debug", "x,error"])
def test_a_bad_level_is_refused(text: str) -> None:
    """A level that does not exist or an upside-down range is an error."""
    with pytest.raises(ConfigError):
        matcher.compile(level=text)


def test_grep_finds_text_in_message_and_exception() -> None:
    """The exception's type, message, stack, notes and causes are searched."""
    error = {
        "type": "ZeroDivisionError",
        "message": "division by zero",
        "stack": "Traceback …\n  in charge",
        "notes": ["while paying"],
        "cause": {"type": "KeyError", "message": "'order'", "stack": ""},
    }
    for text in ("hello", "charge", "while paying", "KeyError: 'order'", "division"):
        assert keeps_with(matcher.compile(grep=[text]), exception=error)
    assert not keeps_with(matcher.compile(grep=["MainProcess"]), exception=error)


def test_grep_is_any_and_exclude_is_none() -> None:
    """Repeated patterns are alternatives; one that is excluded is enough to hide."""
    assert keeps_with(matcher.compile(grep=["nope", "hel"]))
    assert not keeps_with(matcher.compile(grep=["nope", "nada"]))
    assert not keeps_with(matcher.compile(exclude=["nope", "hel"]))
    assert keeps_with(matcher.compile(exclude=["nope"]))


def test_case_counts_only_for_a_pattern_with_a_capital() -> None:
    r"""Smart case: a class such as `\S` is not a capital."""
    assert keeps_with(matcher.compile(grep=["time"]), message="TIME")
    assert not keeps_with(matcher.compile(grep=["Time"]), message="TIME")
    assert keeps_with(matcher.compile(grep=[r"\Some"]), message="A HOME")
    assert keeps_with(matcher.compile(grep=["Time"], ignore_case=True), message="TIME")
    assert not keeps_with(
        matcher.compile(grep=["time"], ignore_case=False), message="T"
    )
    assert keeps_with(matcher.compile(grep=["kelvin"]), message="\u212aelvin")


def test_fixed_text_has_no_special_characters() -> None:
    """With `fixed`, a dot is a dot."""
    assert keeps_with(matcher.compile(grep=["a.b("], fixed=True), message="a.b(c)")
    assert not keeps_with(matcher.compile(grep=["a.b"], fixed=True), message="axb")


def test_a_worker_is_named_by_number_process_or_pid() -> None:
    """`worker` takes all three and any of several."""
    for name in ("3", "412", "MainProcess"):
        assert keeps_with(matcher.compile(worker=["9", name]))
    assert not keeps_with(matcher.compile(worker=["4"]))


def test_a_range_of_time_includes_both_ends() -> None:
    """The instants given are in the range, one nanosecond outside is not."""
    for since, until, expected in [
        (BASE, BASE, True),
        (BASE + 1, None, False),
        (None, BASE - 1, False),
        (BASE - 1, BASE + 1, True),
    ]:
        found = matcher.compile(since_ns=since, until_ns=until)
        assert keeps_with(found) is expected
    with pytest.raises(ConfigError):
        matcher.compile(since_ns=2, until_ns=1)


def test_escapes_of_other_writers_are_seen_through() -> None:
    r"""A value written as `\u0061` or `\/` still matches on bytes."""
    line = orjson.dumps(record())[:-1]
    odd = line + rb',"path":"\/he\u0061lth","n\u0061me":"x"}'

    assert matcher.compile(["path=/health", "name=x"]).lines([odd]) == [odd]
    assert matcher.compile(["-path=/health"]).lines([odd]) == []


def test_a_line_that_is_not_the_wires_is_parsed() -> None:
    """Other shapes of JSON, and no JSON at all, are decided by their record."""
    other = json.dumps(record(level="error", logger="web")).encode()
    garbage = b"not json"

    assert matcher.compile(["level>=error logger=web"]).lines([other]) == [other]
    assert matcher.compile(["logger=logagg"]).lines([other, garbage]) == [garbage]


@pytest.mark.parametrize(
    "text",
    [
        r"(a+)+$",
        r"(a|a)*b",
        r"(\w+\s?)*$",
        r"(.*,)*x",
        r"(a?a)+$",
        r"(\d\w?|\w)+!",
        r"((a*)*)*",
        r"(x+x+)+y",
        r"(?i)(ka?|Ka)+z",
        r"(a*){20}b",
    ],
)
def test_a_pattern_that_could_take_exponential_time_is_refused(text: str) -> None:
    """The well-known traps do not get as far as a record."""
    with pytest.raises(ConfigError, match="exponential"):
        regex.build(text)


@pytest.mark.parametrize(
    "text",
    [
        r"time.?out",
        r"(\w+\.)*\w+@example",
        r"(?:\d{1,3}\.){3}\d{1,3}",
        r"(foo|bar)+",
        r"\bGET /api/.*HTTP/[12]",
        r"([0-9a-f]{2}:)+",
        r"(\s*\w+\s*,)*",
        r"(?:[^\"]|\\.)x*",
        r"(?>a+)+b",
        r"(a++)+b",
    ],
)
def test_a_harmless_pattern_is_taken(text: str) -> None:
    """The guard leaves usual patterns alone."""
    regex.build(text)


def test_a_hostile_text_costs_bounded_time() -> None:
    """A quadratic pattern on ten million characters answers in about a second."""
    began = time.monotonic()
    regex.build(r"\s+$").search(" " * 10_000_000 + "x")

    assert time.monotonic() - began < 10


ATOMS = st.sampled_from(["a", "b", "ab", ".", r"\w", r"\d", "[ab]", "[^a]", r"\s"])


@st.composite
def regexes(draw: st.DrawFn) -> str:
    """Patterns that nest and repeat."""
    node = draw(
        st.recursive(
            ATOMS,
            lambda inner: st.one_of(
                st.tuples(inner, inner).map("".join),
                st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
                st.tuples(inner, st.sampled_from("*+?")).map(
                    lambda p: f"(?:{p[0]}){p[1]}"
                ),
            ),
            max_leaves=6,
        )
    )
    return node + "!"


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(regexes(), st.sampled_from(["a", "ab", "1", "b", "a "]))
def test_what_the_guard_lets_through_is_never_exponential(text: str, unit: str) -> None:
    """Any pattern that is taken gives up on a long near miss in a short time."""
    try:
        pattern = regex.build(text)
    except ConfigError:
        return
    began = time.monotonic()
    pattern.search((unit * 60)[:60])

    assert time.monotonic() - began < 2


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**40), 2**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(
            ["", "a", "A", "app", "500", "app.db", "/health", "\u017f", 'q"q']
        ),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "type"]), inner, max_size=3),
    ),
    max_leaves=4,
)
NAMES = st.sampled_from(["a", "b", "a.b", "status", "path", "exception", "user-id"])
LEVELS = st.sampled_from(["debug", "info", "warning", "error", "critical", "verbose"])
LOGGERS = st.sampled_from(["app", "app.db", "application", "web", 'q"', "é"])
RECORDS = st.builds(
    lambda extra, number, **fixed: (
        record(**fixed, **extra)
        | ({"level_number": number} if fixed["level"] == "verbose" and number else {})
    ),
    extra=st.dictionaries(NAMES, VALUES, max_size=4),
    number=st.sampled_from([None, 5, 15, 35]),
    timestamp=st.integers(BASE - 3, BASE + 3).map(wire_time),
    level=LEVELS,
    worker=st.sampled_from(["1", "2", "3", "412"]),
    logger=LOGGERS,
    message=st.one_of(st.sampled_from(["time out", "Time-Out", "a/b"]), st.text()),
    pid=st.integers(1, 5),
)


def quoted(text: str) -> str:
    """The text as a quoted value of the grammar."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


TERMS = st.one_of(
    st.builds(
        lambda minus, key, op, value: f"{minus}{key}{op}{value}",
        st.sampled_from(["", "-"]),
        st.one_of(NAMES, st.sampled_from(["worker", "logger", "message", "pid"])),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.one_of(
            st.sampled_from(["1", "2", "500", "app", "true", "null", "/health", "a"]),
            VALUES.filter(lambda v: isinstance(v, str)).map(quoted),
            st.integers(-5, 600).map(str),
        ),
    ),
    st.builds(
        lambda minus, key, op, value: f"{minus}{key}{op}{value}",
        st.sampled_from(["", "-"]),
        st.one_of(NAMES, st.sampled_from(["worker", "logger", "message", "level"])),
        st.sampled_from(["~", "!~"]),
        st.sampled_from(["a", "^a", "app", "t.*t", "h/?", "[0-9]", "e$"]),
    ),
    st.builds(
        lambda mark, key: f"{mark}{key}?", st.sampled_from(["", "!", "-"]), NAMES
    ),
    st.builds(
        lambda minus, op, value: f"{minus}level{op}{value}",
        st.sampled_from(["", "-"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.sampled_from(["debug", "info", "w", "error", "15", "35"]),
    ),
)
GREPS = st.lists(st.sampled_from(["time", "Time", "a/b", "t.?o", "s", "k"]), max_size=2)


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(
    records=st.lists(RECORDS, max_size=8),
    terms=st.lists(TERMS, max_size=3),
    level=st.sampled_from([None, "warning", "debug..info", "error,debug", "16"]),
    worker=st.lists(st.sampled_from(["1", "2", "412", "MainProcess"]), max_size=2),
    logger=st.lists(LOGGERS, max_size=2),
    grep=GREPS,
    exclude=GREPS,
    since=st.one_of(st.none(), st.integers(BASE - 2, BASE)),
    until=st.one_of(st.none(), st.integers(BASE, BASE + 2)),
    ascii_only=st.booleans(),
)
def test_bytes_and_records_always_agree(
    records: list[dict[str, Any]],
    terms: list[str],
    level: str | None,
    worker: list[str],
    logger: list[str],
    grep: list[str],
    exclude: list[str],
    since: int | None,
    until: int | None,
    ascii_only: bool,
) -> None:
    """`lines` keeps exactly the lines whose record matches, in order."""
    try:
        found = matcher.compile(
            terms,
            level=level,
            worker=worker,
            logger=logger,
            grep=grep,
            exclude=exclude,
            since_ns=since,
            until_ns=until,
        )
    except ConfigError:
        return

    def dump(item: dict[str, Any]) -> bytes:
        if ascii_only:  # another JSON writer: \uXXXX for all beyond ASCII
            return json.dumps(item, separators=(",", ":")).encode()
        return orjson.dumps(item)

    lines = [dump(item)[:-1] for item in records]
    closing = b',"received":"2026-11-25T00:59:11.870000000Z"}\n'
    expected = [
        line for line, item in zip(lines, records, strict=True) if found.record(item)
    ]

    assert found.lines(lines, closing) == expected

    whole = [line + b"}" for line in lines]
    kept = [line + b"}" for line in expected]
    padding = [orjson.dumps(record(message="padding"))] * 40
    padding_kept = found.lines(padding)
    for extra, extra_kept in (([], []), ([b"", *padding], padding_kept)):
        data = b"".join(line + b"\n" for line in [*whole, *extra])
        assert found.select(data) == [*kept, *extra_kept]
        assert found.select(data[:-1]) == [*kept, *extra_kept]


FLAT = b'{"timestamp":"2026-11-25T00:59:11.860666570Z","level":"info","worker":"1",'


@pytest.mark.parametrize(
    "rest",
    [
        b'"status":500,"a":"x"',
        b'"a":"x","status":500',
        b'"status":500,"a":"x","status":200',
        b'"status":200,"status":500,"a":"y","a":"x"',
        b'"in":{"status":500,"a":"x"}',
        b'"in":{"status":500,"a":"x"},"status":200,"a":"y"',
        b'"in":["status",500,"a","x"]',
        b'"in":"status","out":"a"',
        b'"status":"500","a":["x"]',
        b'"status":[500],"a":["y","x"]',
        b'"status" : 500 , "a" : "x"',
        b'"status":500.0,"a":null',
        b'"status":5000000000000000000000,"a":"x "',
        b'"st\\u0061tus":500,"\\u0061":"x"',
        b'"message":"\\"status\\":500,\\"a\\":\\"x\\"","status":1,"a":2',
    ],
)
@pytest.mark.parametrize(
    "term", ["status>=500", "status=500", "status<9", "a=x", "a=y"]
)
def test_what_is_decided_without_parsing_is_what_parsing_decides(
    rest: bytes, term: str
) -> None:
    """Doubled, nested, escaped and spaced names, with and without a line's end."""
    found = matcher.compile([term])
    for line, closing in ((FLAT + rest, b"}"), (FLAT + rest + b"}", b"")):
        kept = [line] if found.record(orjson.loads(line + closing)) else []

        assert found.lines([line], closing) == kept
        if not closing:
            assert found.select(line + b"\n") == kept


def test_every_letter_that_folds_to_ascii_is_known() -> None:
    """No character beyond ASCII equals an ASCII one but those the search knows."""
    known = {"\u212a": "k", "\u017f": "s", "\u0130": "i", "\u0131": "i"}
    anything = re.compile("[a-z0-9 !-~]", re.IGNORECASE)
    odd = {c for c in map(chr, range(128, 0x11000)) if anything.fullmatch(c)}

    assert odd == set(known)


def test_parse_line_never_raises() -> None:
    """A line that is no record still becomes one, with the line in it."""
    for line in (b"", b"[1]", b"\xff\xfe", b'{"a":', b"null"):
        assert parse_line(line)["raw"] == line.decode("utf-8", "replace")


def test_a_viewers_hello_carries_the_whole_filter() -> None:
    """What one side compiles, the other side can rebuild from plain JSON."""
    spec = {"hello": 1, "kind": "viewer", "match": ["a=1"], "level": "error"}
    line = orjson.dumps(record(level="error", a=1))

    found = matcher.from_message(spec | {"grep": ["HELLO"], "ignore_case": True})

    assert found.lines([line]) == [line]
    assert matcher.from_message({"level": None}).everything
    assert not matcher.from_message(spec | {"worker": ["9"]}).lines([line])


@pytest.mark.parametrize(
    "spec", [{"match": "a=1"}, {"level": 3}, {"grep": [1]}, {"since_ns": "x"}]
)
def test_a_filter_of_the_wrong_shape_is_refused(spec: dict[str, Any]) -> None:
    """A client that sends something else gets an error that names the key."""
    with pytest.raises(ConfigError, match=next(iter(spec))):
        matcher.from_message(spec)
