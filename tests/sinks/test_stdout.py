"""The stdout and stderr sinks: formats, and readers that are slow, stuck or gone."""

import asyncio
import fcntl
import os
import pty
import re
import subprocess
import sys
import threading
import time

import orjson
import pytest

from logagg.errors import ConfigError, SinkUnavailable
from logagg.sinks import StderrSink, StdoutSink, build
from logagg.testing import make_batch, make_line

CONTROL = re.compile(
    rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9\xae]"
)
NASTY = 'a\r\n{"forged":1}\x1b[2J\x1b]0;title\x07\x9b31m\u2028\u202e\x85\tz\x00'
TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no'


ERROR = {
    "type": "ValueError",
    "message": "no",
    "notes": ["note"],
    "cause": {"type": "KeyError", "message": "'k'"},
}


async def put(sink, *batches):
    await sink.open()
    for batch in batches:
        await sink.write(batch)
    await sink.close()


def shown(batch, **options):
    """What a sink writes into a pipe that is read."""
    reader, writer = os.pipe()
    found = []

    def read():
        while data := os.read(reader, 65536):
            found.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    sink = StdoutSink(**options)
    sink.fd = writer
    sink.environ = {}
    asyncio.run(put(sink, batch))
    os.close(writer)
    thread.join()
    os.close(reader)
    return b"".join(found)


def record_lines(data):
    """The lines without the rule that marks a new day."""
    return [text for text in data.decode().splitlines() if not text.startswith("──")]


def test_json_is_the_line_as_it_is():
    """The json format is the very bytes that a file would get."""
    batch = make_batch(1000)

    assert shown(batch, format="json") == batch.data


def test_console_is_one_line_for_people():
    """Clock, level, worker, logger, message and the extra fields; a new day a rule."""
    batch = make_batch([make_line(message="it works", path="/x", ms=12)])

    rule, line = shown(batch).decode().splitlines()

    assert rule.startswith("── ")
    parts = ["INFO", "w1", "app", "it", "works", "path=/x", "ms=12"]
    assert line.split()[1:] == parts


EVERY_KIND = [
    make_line(0, level="debug", message="start", path="/x", ms=12, note="two words"),
    make_line(
        1, level="warning", worker="2", logger="app.database.pool", message="a\nb"
    ),
    make_line(2, level="error", worker="12", message=NASTY, **{NASTY: NASTY}),
    make_line(3, level="critical", worker="web", message="x", nested={"a": [1, None]}),
    make_line(4, level="notice", level_number=25, message="", big=2**60, empty=""),
    make_line(5, level="error", message="failed", exception={**ERROR, "stack": TRACE}),
    make_line(6, level="error", message="no stack", exception=ERROR),
    make_line(7, message="from here", stack="Stack (most recent call last):\n  x"),
    make_line(8, message="late", late=True, long="y" * 5000),
    make_line(90_000_000, worker="logagg", logger="logagg", message="the next day"),
    make_line(0, message="the day before"),
]


@pytest.mark.parametrize("color", ["never", "always"])
def test_console_is_what_tail_shows(tmp_path, color):
    """The same records through the sink and through `logagg tail`, line for line."""
    batch = make_batch(EVERY_KIND)
    file = tmp_path / "app.log"
    file.write_bytes(batch.data)
    command = [sys.executable, "-m", "logagg", "tail", "--file", str(file)]

    tail = subprocess.run(
        [*command, "-n", "all", "--no-follow", "--color", color],
        stdout=subprocess.PIPE,
        check=True,
    )

    lines = shown(batch, color=color).splitlines()
    assert lines == tail.stdout.splitlines()
    assert len(lines) >= 2 * len(EVERY_KIND)
    assert any(b"\x1b[" in line for line in lines) is (color == "always")


def test_console_is_what_tail_shows_on_a_terminal(tmp_path):
    """Colors and rules for gaps included; only the sink never cuts, as with `--full`."""
    lines = [make_line(n, message="m" * 300) for n in (0, 30_000, 100_000)]
    batch = make_batch(lines)
    file = tmp_path / "app.log"
    file.write_bytes(batch.data)
    command = [sys.executable, "-m", "logagg", "tail", "--file", str(file), "--full"]

    def sink(terminal):
        sink = StdoutSink()
        sink.fd, sink.environ = terminal, {"TERM": "xterm"}
        asyncio.run(put(sink, batch))

    def tail(terminal):
        subprocess.run(
            [*command, "-n", "all", "--no-follow"],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            env=os.environ | {"TERM": "xterm"},
            check=True,
        )

    def printed(write):
        leader, follower = pty.openpty()
        write(follower)
        data = os.read(leader, 65536)
        os.close(follower)
        os.close(leader)
        return data.splitlines()

    expected = printed(tail)
    assert printed(sink) == expected
    assert sum("of silence" in line.decode() for line in expected) == 1
    assert len(expected) == 5


@pytest.mark.parametrize("form", ["console", "text"])
def test_a_message_cannot_forge_a_line_or_move_the_cursor(form):
    """Control characters anywhere in a record come out as visible escapes."""
    line = make_line(
        message=NASTY, logger=NASTY, worker=NASTY, level=NASTY, **{NASTY: NASTY}
    )

    out = shown(make_batch([line]), format=form)

    first, *more = record_lines(out)
    assert all(re.match(r" +(\||│) ", text) for text in more)
    assert not CONTROL.search(out.replace(b"\t", b""))
    assert b"\\x1b[2J" in out


def test_json_acts_on_no_terminal_and_keeps_its_values():
    """What JSON leaves raw, C1 controls and DEL among it, is escaped as JSON does."""
    values = {"a": "\x7f\x9b31mred", "b": "\u2028\u202e", "c": "é ü 日本"}
    lines = [make_line(1, message="plain"), make_line(2, **values)]
    hostile = make_line(3, message="raw")[:-1] + b'\x1b[2J\x9b2J"'

    first, second, third = shown(
        make_batch([*lines, hostile]), format="json"
    ).splitlines()

    assert orjson.loads(first)["message"] == "plain"
    assert orjson.loads(second).items() >= values.items()
    assert "é ü 日本".encode() in second
    for line in (second, third):
        assert not CONTROL.search(line)
        assert not re.search("[\x80-\x9f]", line.decode())


@pytest.mark.parametrize("form", ["console", "text"])
def test_a_traceback_is_shown_once_after_a_gutter(form):
    """The traceback's lines follow the record and cannot be taken for records."""
    error = {"type": "ValueError", "message": "no", "stack": TRACE}
    line = make_line(message="failed", exception=error)

    head, *rest = record_lines(shown(make_batch([line]), format=form))

    assert "failed" in head
    found = [re.fullmatch(r" +(?:\||│) (.*)", text) for text in rest]
    assert "\n".join(match[1] for match in found if match) == TRACE


def test_text_follows_its_template():
    """The text format writes what the template names."""
    line = make_line(message="hi", path="/a b")

    out = shown(
        make_batch([line]), format="text", template="{level:<8}|{message}|{extra}"
    )

    assert out == b'info    |hi|path="/a b"\n'


def test_colors_are_written_to_a_terminal_only():
    """A terminal gets colors, unless NO_COLOR; a pipe none, unless asked."""
    batch = make_batch()

    def terminal(environ):
        leader, follower = pty.openpty()
        sink = StdoutSink()
        sink.fd, sink.environ = follower, environ
        asyncio.run(put(sink, batch))
        data = os.read(leader, 65536)
        os.close(follower)
        os.close(leader)
        return data

    assert b"\x1b[" in terminal({})
    assert b"\x1b[" not in terminal({"NO_COLOR": "1"})
    assert b"\x1b[" not in shown(batch)
    assert b"\x1b[" in shown(batch, color="always")


def pipe(capacity=4096):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, capacity)
    return reader, writer


def drain(reader, until):
    """Read until the text has come; fails by the test's time limit if it never does."""
    data = b""
    while until not in data:
        data += os.read(reader, 65536)
    return data


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_gets_everything(blocking):
    """Short writes, and O_NONBLOCK set by somebody else, lose and tear nothing."""
    reader, writer = pipe()
    os.set_blocking(writer, blocking)
    batches = [make_batch(100, start=100 * i) for i in range(20)]
    sink = StdoutSink(format="json")
    sink.fd = writer
    thread = threading.Thread(target=lambda: asyncio.run(put(sink, *batches)))
    thread.start()

    data = drain(reader, b'"seq":1999')
    thread.join()

    data += os.read(reader, 65536) if not data.endswith(b"\n") else b""
    assert [orjson.loads(line)["seq"] for line in data.splitlines()] == [*range(2000)]
    assert os.get_blocking(writer) is blocking
    assert sink.counters == {}
    os.close(reader)
    os.close(writer)


def test_a_stuck_reader_delays_nothing_and_every_drop_is_reported():
    """After the stall timeout records are dropped and counted until it reads again."""
    reader, writer = pipe()

    async def scenario():
        sink = StdoutSink(format="json", stall_timeout=0.2)
        sink.fd = writer
        await sink.open()
        await sink.write(make_batch(100))
        started = time.monotonic()
        for start in range(100, 1100, 100):
            await sink.write(make_batch(100, start=start))
        took = time.monotonic() - started
        assert sink.counters["dropped"] == 1000
        read = asyncio.get_running_loop().run_in_executor(None, drain, reader, b':99,"')
        data = await read
        late = make_batch(1, start=1100)
        while sink.counters["dropped"] == 1000:
            before = sink.counters["dropped"]
            await sink.write(late)
            if sink.counters["dropped"] == before:
                break
            sink.counters["dropped"] = before
        await sink.close()
        return took, data + os.read(reader, 65536)

    took, data = asyncio.run(scenario())

    records = [orjson.loads(line) for line in data.splitlines()]
    assert [r["seq"] for r in records[:100]] == [*range(100)]
    assert records[-2]["event"] == "dropped"
    assert records[-2]["dropped"] >= 1000
    assert records[-1]["seq"] == 1100
    assert took < 1.0
    os.close(reader)
    os.close(writer)


def test_a_reader_that_is_gone_is_no_error():
    """EPIPE: records are dropped and counted, and another stream can be put in."""
    reader, writer = pipe()
    other_reader, other = pipe()
    os.close(reader)

    async def scenario():
        sink = StdoutSink(format="json")
        sink.fd = writer
        await sink.open()
        await sink.write(make_batch(3))
        await sink.write(make_batch(4, start=3))
        sink.fd = other
        await sink.write(make_batch(1, start=7))
        await sink.close()
        return sink.counters

    counters = asyncio.run(scenario())

    assert counters == {"dropped": 7}
    note, record = os.read(other_reader, 65536).splitlines()
    assert orjson.loads(note)["dropped"] == 7
    assert orjson.loads(record)["seq"] == 7
    for fd in (writer, other_reader, other):
        os.close(fd)


def test_a_full_device_asks_to_be_tried_again():
    """`> /dev/full` is reported as unavailable, with the reason."""

    async def scenario():
        sink = StdoutSink(format="json")
        sink.fd = os.open("/dev/full", os.O_WRONLY)
        await sink.open()
        batch = make_batch()
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="No space left"):
                await sink.write(batch)
        os.close(sink.fd)
        sink.fd = os.open("/dev/null", os.O_WRONLY)
        await sink.write(batch)
        await sink.close()
        os.close(sink.fd)
        return sink.counters

    assert asyncio.run(scenario()) == {}


def test_closing_does_not_wait_for_a_stuck_reader():
    """A program whose reader hangs still ends."""
    code = (
        "import asyncio, os\n"
        "from logagg.sinks import StdoutSink\n"
        "from logagg.testing import make_batch\n"
        "async def main():\n"
        "    sink = StdoutSink(format='json', stall_timeout=0.1)\n"
        "    await sink.open()\n"
        "    await sink.write(make_batch(10_000))\n"
        "    await sink.close()\n"
        "asyncio.run(main())\n"
    )
    reader, writer = pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=90,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)

    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_the_url_builds_the_same_sink_again():
    """The options of a stream survive the way to a URL and back."""
    sink = StderrSink(format="text", template="{level} {message}", stall_timeout=2.0)

    again = build(sink.url).sink

    assert sink.url.startswith("stderr:?format=text&template={level}%20{message}")
    assert type(again) is StderrSink
    assert again.options == sink.options
    assert again.fd == 2


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("stdout:?format=pretty", "console, json or text"),
        ("stdout:app.log", "takes no target"),
        ("stdout:?format=text&template={message!r}", "template"),
        ("stdout:?format=text&template={a[0]}", "template"),
        ("stdout:?template={message}", "format=text"),
        ("stdout:?fromat=json", "did you mean 'format'"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong(url, hint):
    """The error names the option and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        build(url)

    assert hint in str(caught.value)


def test_a_lone_surrogate_does_not_stop_the_stream():
    """Text that is not UTF-8 comes out as a visible escape or a replacement."""
    batch = make_batch([b'{"timestamp":"","level":"info","message":"\\udcd1"'])

    out = shown(batch, format="console")

    assert len(record_lines(out)) == 1
