"""The face of the sinks: URLs, the options that all have, what is registered."""

import contextlib
import importlib.metadata
import inspect
import re
import subprocess
import sys

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import logagg.sinks
from logagg import options
from logagg.abc import Policy, Sink
from logagg.errors import ConfigError
from logagg.fanout.registry import SinkRequest
from logagg.ipc import paths
from logagg.sinks import CommonOptions, build, known, parse, wrap
from logagg.testing import MemorySink
from logagg.text import Template, inline, wants_color
from logagg_sinks.file.file_options import FileOptions
from logagg_sinks.file.path_template import safe_name
from logagg_sinks.file.rotation import Names, When, cut
from logagg_sinks.stdout import StdoutSink, StreamOptions


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("app.log", "file", "app.log"),
        ("./a:b.log", "file", "./a:b.log"),
        ("file:app.log", "file", "app.log"),
        ("file:with%20space.log", "file", "with space.log"),
        ("FILE:app.log", "file", "app.log"),
        ("stdout:", "stdout", ""),
        ("https://u:p@host/x%20y", "https", "//u:p@host/x%20y"),
    ],
)
def test_a_url_is_taken_apart(text, scheme, target):
    """What stands before the colon chooses the sink; a bare path is a file."""
    url = parse(text)

    assert (url.scheme, url.target) == (scheme, target)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "SCHEME:TARGET"),
        (":x", "SCHEME:TARGET"),
        ("file:", "SCHEME:TARGET"),
        ("file:a?level=info&level=debug", "'level' is given twice"),
        ("fiel:a.log", "did you mean 'file'"),
        ("file:a.log?levle=info", "did you mean 'level'"),
        ("file:a.log?max_byte=1", "did you mean 'max_bytes'"),
        ("file:a.log?level=loud", "level='loud'"),
        ("file:a.log?policy=none", "block, drop_old, drop_new or spool"),
        ("file:a.log?queue_records=many", "a whole number"),
        ("file:a.log?queue_bytes=0", "must be positive"),
        ("file:a.log?required=maybe", "true or false"),
        ("file:a.log?sample=0", "sample must be 1"),
        ("file:a.log?match=a==", "match"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong(text, told):
    """One error that names the option, the value and what would be right."""
    if told == "match":
        told = "sink file:a.log"
    with pytest.raises(ConfigError) as caught:
        build(text)

    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_in_a_url_are_not_in_its_errors():
    """User, password and query never show in a message."""
    for text in (
        "https://me:hunter2@host/?token=hunter2&token=hunter2",
        "nosuch://me:hunter2@host/",
    ):
        with pytest.raises(ConfigError) as caught:
            build(text)
        assert "hunter2" not in str(caught.value)


def test_the_options_that_all_sinks_have_are_taken_off():
    """The consumer's options are beside the sink, and both are in the URL again."""
    text = (
        "file:app.log?max_bytes=1MB&level=warning&policy=drop_old&match=status>=500"
        "&queue_records=7&queue_bytes=2MiB&required=true&redact=iban,none&sample=3"
        "&collapse=1m30s&fields=a,b&drop=pid"
    )

    built = build(text)

    common = built.common
    assert (common.level, common.policy) == (30, Policy.DROP_OLD)
    assert (common.queue_records, common.queue_bytes) == (7, 2 * 1024 * 1024)
    assert (common.match, common.redact) == ("status>=500", ("iban", "none"))
    assert (common.sample, common.collapse, common.required) == (3, 90.0, True)
    assert (common.fields, common.drop) == (("a", "b"), ("pid",))
    again = build(built.url)
    assert again.common == common
    assert again.sink.url == built.sink.url


def test_a_sink_object_gets_the_same_options():
    """wrap() takes Python values and checks them like a URL's."""
    built = wrap(MemorySink(), level=40, policy=Policy.DROP_NEW)

    assert built.common == CommonOptions(level=40, policy=Policy.DROP_NEW)
    with pytest.raises(ConfigError, match="did you mean 'level'"):
        wrap(MemorySink(), levle=40)


def test_every_registered_sink_is_in_the_face_and_the_other_way_round():
    """What the entry points name is importable from logagg.sinks."""
    entries = importlib.metadata.entry_points(group="logagg.sinks")
    ours = [entry for entry in entries if entry.value.startswith("logagg_sinks.")]
    classes = {entry.load() for entry in ours}
    names = {
        name
        for name in logagg.sinks.__all__
        if isinstance(getattr(logagg.sinks, name), type)
        and issubclass(getattr(logagg.sinks, name), Sink)
    }

    assert {cls.__name__ for cls in classes} == names
    assert all(getattr(logagg.sinks, name) in classes for name in names)
    assert {"file", "stdout", "stderr"} <= set(known())


def test_importing_the_face_loads_no_sink():
    """Sinks are loaded when one is asked for by name."""
    code = (
        "import sys, logagg.sinks\n"
        "bad = [m for m in sys.modules if m.startswith(('logagg_sinks', 'aiofiles',\n"
        "       'aiohttp', 'structlog'))]\n"
        "assert not bad, bad\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


# --- reading and writing options ---


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1)
NAMES = st.lists(TEXTS.map(str.strip).filter(bool), max_size=3).map(tuple)
COMMON = st.builds(
    CommonOptions,
    level=st.integers(0, 999_999),
    match=st.text(st.characters(codec="utf-8")),
    fields=NAMES,
    redact=NAMES,
    sample=st.integers(1, 10**9),
    collapse=st.integers(0, 10**6).map(float),
    queue_records=st.integers(1, 10**9),
    queue_bytes=st.integers(1, 10**12),
    policy=st.sampled_from(Policy),
    required=st.booleans(),
)


def made(kind, texts):
    """Options from texts, as a sink's URL gives them to its constructor."""
    return options.make(kind, options.from_texts(kind, texts, what="sink"), what="sink")


@given(COMMON)
def test_options_survive_the_way_to_a_url_and_back(common):
    """Whatever the texts hold, reading what was written gives the same options."""
    url = parse("file:app.log?" + options.query(common))

    assert made(CommonOptions, url.options) == common


@given(
    st.builds(
        FileOptions,
        max_bytes=st.integers(0, 10**12),
        when=st.sampled_from(When),
        interval=st.integers(1, 1000),
        utc=st.booleans(),
        backups=st.integers(0, 10**6),
        max_age=st.integers(0, 10**8).map(float),
        mode=st.sampled_from([0o600, 0o640, 0o644, 0o660]),
    )
)
def test_the_options_of_a_file_survive_the_way_to_a_url_and_back(found):
    """Sizes, durations, modes and enums come back as they were."""
    url = parse("file:app.log?" + options.query(found))

    assert made(FileOptions, url.options) == found


@given(st.dictionaries(st.sampled_from(StreamOptions.__struct_fields__), st.text()))
def test_any_text_is_read_or_refused_with_a_config_error(values):
    """No value of an option raises anything else."""
    with contextlib.suppress(ConfigError):
        found = made(StreamOptions, values)
        assert isinstance(found, StreamOptions)


def test_every_option_has_its_line_in_the_docstring():
    """The docstring of a struct of options names each of them."""
    for kind in (CommonOptions, FileOptions, StreamOptions):
        for field in msgspec.structs.fields(kind):
            assert f"\n    {field.name}: " in (inspect.getdoc(kind) or ""), field.name


# --- pure parts of the file sink ---


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(-5, 220))
def test_a_cut_is_always_at_a_line_end(data, start, room):
    """Never in a line, never before the start, never over the room."""
    start = min(start, len(data))

    end = cut(data, start, room)

    assert start <= end <= len(data)
    assert end - start <= max(room, 0)
    assert end in (start, len(data)) or data[end - 1 : end] == b"\n"


NUMBERED = st.sets(
    st.tuples(st.integers(1, 12), st.sampled_from(["", ".gz", ".zst"])), max_size=12
)


@given(NUMBERED)
def test_making_room_for_a_rotated_file_overwrites_nothing(pieces):
    """Applying the renames in order never hits a name that is taken."""
    names = {f"a.log.{number}{end}" for number, end in pieces} | {"a.log", "a.log.x"}
    count = len(names)

    for old, new in Names("a.log").moves(names):
        assert old in names
        assert new not in names
        names.remove(old)
        names.add(new)

    assert len(names) == count
    assert "a.log.1" in names
    assert "a.log" not in names


@given(st.text(), st.text())
def test_safe_names_are_safe_and_different(one, other):
    """Any text becomes one path component of its own."""
    name = safe_name(one)

    assert 0 < len(name.encode()) < 120
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith((".", "-"))
    assert (name == safe_name(other)) is (one == other)


@given(st.text(st.characters(codec=None)))
def test_visible_text_is_one_harmless_line(text):
    """Nothing that a terminal acts on and no line break is left."""
    shown = inline(text)

    assert len(shown.splitlines()) <= 1
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)
    shown.encode()


JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), st.text() | st.integers(0, 99) | JSON, max_size=6))
def test_any_record_is_one_line_of_text(record):
    """Whatever stands in a record, its line is one, and only a traceback adds more."""
    record.pop("exception", None)
    record.pop("stack", None)

    text = Template("{timestamp} {level:<8}|{message}|{extra}").render(record)

    assert text.count("\n") == 1
    assert len(text.splitlines()) == 1


WORD = r'"(?:[^"\\]|\\.)*"|[^\s"=\\]+'
LINE = re.compile(
    rf"(\S+) (\S+) +({WORD})? ({WORD})?: ((?:[^=\\]|\\.)*?)((?: (?:{WORD})=(?:{WORD}))*)"
)


def word(text):
    return orjson.loads(text) if text.startswith('"') else text


def parsed(line):
    """A line of the text format taken apart again: worker, logger, message, extras."""
    found = LINE.fullmatch(line.removesuffix("\n"))
    assert found, line
    pairs = re.findall(rf" ({WORD})=({WORD})", found[6])
    message = re.sub(
        r"\\(x..|u....|.)",
        lambda escape: {"n": "\n", "t": "\t", "r": "\r"}.get(
            escape[1],
            escape[1] if len(escape[1]) == 1 else chr(int(escape[1][1:], 16)),
        ),
        found[5],
    )
    texts = [word(text) for text in found.group(3, 4)]
    return (
        *texts,
        message,
        {word(key): value for key, value in pairs},
    )


TEXT = st.text('ab=\\"\n\x9b: |', min_size=1, max_size=8).map(lambda text: f"a{text}a")


@given(TEXT, TEXT, TEXT, st.dictionaries(TEXT, st.just(1), max_size=3))
def test_a_line_of_text_is_read_back_as_it_was(worker, logger, message, extras):
    """No text can pass for another field: what was written is all that can be read."""
    record = {
        "timestamp": "2026-11-25T01:00:00.000000000Z", "level": "info",
        "worker": worker, "seq": 1, "logger": logger, "message": message, **extras,
    }  # fmt: skip
    line = Template().render(record)

    assert parsed(line) == (worker, logger, message, dict.fromkeys(extras, "1"))


@pytest.mark.parametrize(
    ("template", "record", "line"),
    [
        ("{message} {extra}", {"message": "x user=root"}, r"x user\=root"),
        ("{message}", {"message": r"C:\new=1"}, r"C:\\new=1"),
        ("user={user} {message}", {"user": "a b", "message": "="}, r'user="a b" \='),
        ("{message}", {"message": "    | forged"}, r"\x20   | forged"),
        ("{logger}: {message}", {"logger": "a: b", "message": "c"}, '"a: b": c'),
        ("{extra}", {"a=1 b": 2, "k\\": 3}, r'"a=1 b"=2 "k\\"=3'),
    ],
)
def test_text_that_would_pass_for_a_field_or_a_line_is_escaped(template, record, line):
    """Backslash, equals sign, quoted words and the gutter."""
    assert Template(template).render(record) == line + "\n"


COLORS = [
    ("always", {"NO_COLOR": "1"}, False, True),
    ("never", {"FORCE_COLOR": "1"}, True, False),
    ("auto", {}, True, True),
    ("auto", {}, False, False),
    ("auto", {"NO_COLOR": "1"}, True, False),
    ("auto", {"NO_COLOR": ""}, True, True),
    ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
    ("auto", {"FORCE_COLOR": "1"}, False, True),
    ("auto", {"FORCE_COLOR": "0"}, True, True),
    ("auto", {"CLICOLOR_FORCE": "1", "TERM": "dumb"}, False, True),
    ("auto", {"TERM": "dumb"}, True, False),
    ("auto", {"TERM": "xterm"}, True, True),
]


@pytest.mark.parametrize(("flag", "environ", "terminal", "wanted"), COLORS)
def test_color_follows_the_flag_the_environment_and_the_terminal(
    flag, environ, terminal, wanted
):
    """The first rule that speaks decides."""
    assert wants_color(flag, environ, terminal) is wanted


# --- sinks of other authors ---


class _BannerSink(StdoutSink):
    """A console sink as another author would write it, for `banner+stderr:`."""

    scheme = "banner"


@pytest.fixture
def banner(monkeypatch):
    """Register the sink as the distribution of another author would."""
    entry = importlib.metadata.EntryPoint("banner", "banner:BannerSink", "logagg.sinks")
    monkeypatch.setattr(type(entry), "load", lambda entry: _BannerSink)
    monkeypatch.setattr(logagg.sinks, "known", lambda: {"banner": entry})


def test_a_console_sink_of_another_author_gets_the_stream_of_the_process(banner):
    """It writes to the stderr of the process that wants it, not the consumer's."""
    sink = SinkRequest("banner+stderr:", [1, 2]).build().sink
    assert isinstance(sink, _BannerSink)
    assert sink.fd == 2
    assert sink.interactive


@pytest.mark.parametrize(
    ("scheme", "stream", "file"),
    [
        ("stdout", 0, False),
        ("stderr", 1, False),
        ("banner+stdout", 0, False),
        ("loki+http", None, False),
        ("file", None, True),
        ("parquet+file", None, True),
    ],
)
def test_a_schemes_end_names_its_transport(scheme, stream, file):
    """What is known of `stdout`, `stderr` and `file` holds for every sink on them."""
    assert paths.stream_of(scheme) == stream
    assert paths.is_file(scheme) is file
