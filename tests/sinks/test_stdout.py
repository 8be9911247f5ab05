"""The stdout and stderr sinks: formats, and readers that are slow, stuck or gone."""

import asyncio
import contextlib
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


def test_json_is_the_line_as_it_is():
    """The json format is the very bytes that a file would get."""
    batch = make_batch(1000)

    assert shown(batch, format="json") == batch.data


def test_console_shows_what_a_person_wants():
    """One line: level, message, logger, worker and the extra fields."""
    line = shown(make_batch([make_line(message="it works", path="/x", ms=12)])).decode()

    assert "[info" in line
    for part in ("it works", "[app]", "worker=1", "path=/x", "ms=12"):
        assert part in line
    assert "pid" not in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("form", ["console", "text"])
def test_a_message_cannot_forge_a_line_or_move_the_cursor(form):
    """Control characters anywhere in a record come out as visible escapes."""
    line = make_line(
        message=NASTY, logger=NASTY, worker=NASTY, level=NASTY, **{NASTY: NASTY}
    )

    out = shown(make_batch([line]), format=form)

    assert out.count(b"\n") == 1
    assert not CONTROL.search(out)
    assert b"\\x1b[2J" in out


@pytest.mark.parametrize("form", ["console", "text"])
def test_a_traceback_is_shown_once_behind_a_gutter(form):
    """The traceback's lines follow the record and cannot be taken for records."""
    error = {"type": "ValueError", "message": "no", "stack": TRACE}
    line = make_line(message="failed", exception=error)

    lines = shown(make_batch([line]), format=form).decode().splitlines()

    assert len(lines) == 4
    assert "failed" in lines[0]
    assert [text.startswith("    | ") for text in lines] == [False, True, True, True]
    assert "\n".join(text[6:] for text in lines[1:]) == TRACE


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


def test_a_stuck_reader_holds_up_nobody_and_every_drop_is_said():
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
            timeout=20,
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
    ("url", "told"),
    [
        ("stdout:?format=pretty", "console, json or text"),
        ("stdout:app.log", "takes no target"),
        ("stdout:?format=text&template={message!r}", "template"),
        ("stdout:?format=text&template={a[0]}", "template"),
        ("stdout:?template={message}", "format=text"),
        ("stdout:?fromat=json", "did you mean 'format'"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong(url, told):
    """The error names the option and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        build(url)

    assert told in str(caught.value)


def test_a_lone_surrogate_does_not_stop_the_stream():
    """Text that is not UTF-8 comes out as a visible escape or a replacement."""
    batch = make_batch([b'{"timestamp":"","level":"info","message":"\\udcd1"'])

    out = shown(batch, format="console")

    assert out.count(b"\n") == 1
    with contextlib.suppress(UnicodeDecodeError):
        out.decode()
