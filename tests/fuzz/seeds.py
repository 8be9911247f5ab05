"""Inputs to begin with: each form of message and line once, well formed."""

from __future__ import annotations

import orjson
import support
from attack import SEPARATOR

from logagg.supervisor.messaging.frames import encode
from logagg.supervisor.sockets.handoff import packet

START = 1_795_568_400 * 1_000_000_000


def script(*steps: str | bytes) -> bytes:
    """A script of these steps."""
    return SEPARATOR.join(
        each.encode() if isinstance(each, str) else each for each in steps
    )


def _line(seq: int, **how: str) -> bytes:
    return support.wire_line(START + seq, seq, **how) + b"\n"  # type: ignore[arg-type]


SOCKET = {
    "worker": script("h {}", "l 1 20", "z", 'm {"flush":20}', "z", 'm {"bye":20}', "e"),
    "flush": script("h {}", 'm {"flush":5}', "z", "l 1 5", "z", "x", "z"),
    "drops": script("h {}", 'm {"dropped":3,"torn":2}', "l 1 1", "l 4 2", "z", "e"),
    "segment": script("h {}", "l 1 2", "g 3 4", "z", "l 7 2", "z", 'm {"bye":8}', "e"),
    "torn": script("h {}", "w {\"timestamp\":\"2026", "z", "e", "z"),
    "again": script(
        'h {"again":true,"acknowledged":5,"torn":[6],"clocks":[[5,0],[9,1000]]}',
        "l 6 4", "z", 'h {"again":true}', "l 1 3", "z",
    ),
    "adopt": script("a {}", "l 1 3", "z", "e", "z"),
    "status": script('p  {"hello":1,"kind":"status"}', "z"),
    "reload": script('p  {"hello":1,"kind":"reload"}', "z"),
    "hold": script(
        'p  {"hello":1,"kind":"hold","own":true}', "z",
        'm {"record":{"level":"info","event":"x","message":"m"},"after_pid":1}', "z",
        'm {"leave":1}', "z",
    ),
    "stream": script(
        'p r {"hello":1,"kind":"stream","slot":1,"pid":1,"stream":"stderr"}',
        'w Traceback (most recent call last):\n  File "x", line 1\nValueError: x\n', "z",
        'w {"level":"error","message":"m"}\n2026-11-30 10:00:00 WARNING x\n', "e", "z",
    ),
    "viewer": script(
        'p w {"hello":1,"kind":"viewer","lines":10,"match":["level>=info"],'
        '"grep":["a.*b"],"after":["2026-11-30T10:00:00.000000000Z","1",4]}',
        "z", "h {}", "l 1 9", "z", "x", "z",
    ),
    "give_way": script('p  {"hello":1,"kind":"give_way","successor":"/x"}', "z"),
    "descriptors": script('p rrnnfdsw {"hello":1,"kind":"status"}', "c", "p dd x", "z"),
    "kept": script(
        'p rnnf {"hello":1,"kind":"records","pid":1,"worker":"f","stream":"1-f",'
        '"segments":[{"segment":"/x","first":1,"last":2}],"spool":"s"}', "z",
    ),
}  # fmt: skip
PIPE = {
    "lines": b"".join(map(_line, range(1, 9))),
    "gap": _line(1) + _line(5) + _line(3) + _line(3),
    "torn": _line(1)[:40] + b"\n" + _line(2) + _line(3)[:90],
    "levels": _line(1, level="critical") + _line(2, level="x") + b"\n\n{}\n",
    "future": support.wire_line(START * 2, 1) + b"\n" + _line(2),
}
OUTPUT = {
    "traceback": b"Traceback (most recent call last):\n"
    b'  File "x.py", line 1, in <module>\n    f()\n    ~^^\nValueError: x\n',
    "group": b"  + Exception Group Traceback (most recent call last):\n"
    b'  |   File "x.py", line 1\n  | ExceptionGroup: g (1 sub-exception)\n'
    b"  +-+---------------- 1 ----------------\n    | ValueError: x\n"
    b"    +------------------------------------\n",
    "json": b'{"level":"error","msg":"m","time":"2026-11-30T10:00:00Z"}\n{"a":\n',
    "text": b"2026-11-30 10:00:00,123 - app - WARNING - m\r 10%\r 20%\n\x1b[31mred\x1b[0m\n",
    "access": b'127.0.0.1 - - [30/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 200 5\n',
}
CLIENT = {
    "all": orjson.dumps(
        {
            "ack": 1,
            "flushed": 2,
            "told": 3,
            "switch": [4, 5],
            "error": "e",
            "welcome": 1,
        }
    ),
    "wrong": orjson.dumps({"ack": -1, "flushed": True, "told": 2.5, "switch": [1]}),
    "list": b"[1,2]",
}
METRICS = {
    "numbers": b"GET /metrics HTTP/1.1\r\nHost: h\r\nAccept: text/plain\r\n\r\n",
    "health": b"HEAD /health HTTP/1.0\r\n\r\nGET /health HTTP/1.0\r\n\r\n",
    "body": b"POST /metrics?a=b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    "chunks": b"PUT /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "upgrade": b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "tls": b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
}

CONTROL = {
    "status": b'{"hello":1,"kind":"status"}', "scale": b'{"hello":1,"kind":"scale","workers":4}',
    "reload": b'{"hello":1,"kind":"reload"}', "stop": b'{"hello":1,"kind":"stop"}',
    "reply": b'{"error":"x","trace":"y","status":{"pid":1},"replaced":2,"workers":3,"stopping":true}',
}  # fmt: skip


def _frames(*frames: dict[str, object]) -> bytes:
    return b"".join(map(encode, frames))


FRAMES = {
    "talk": _frames(
        {"k": "online"},
        {"k": "message", "id": 1, "b": {"a": [1]}},
        {"k": "ack", "id": 1},
    ),
    "socket": b"\x80" + _frames({"k": "message", "id": 1, "fd": True}),
    "bind": _frames(
        {"k": "bind", "q": 1, "family": 2, "host": "h", "port": 80}, {"k": "ready"}
    ),
    "answers": _frames(
        {"k": "answer", "q": 1, "b": None},
        {"k": "crash", "q": 2, "summary": "s", "trace": "t"},
    ),
}

HANDOVER = {
    "life": b"".join(
        map(packet, (b"open", b"ack", b"here", b"full", b"shut", b"open"))
    ),
    "eager": b"".join(map(packet, (b"open", *[b"ack"] * 20))),
    "full": b"".join(map(packet, (b"open", *[b"full", b"here"] * 9))),
    "torn": b"openack\0\0\0",
}

SEEDS = {
    "socket": SOCKET, "pipe": PIPE, "output": OUTPUT, "client": CLIENT,
    "metrics": METRICS, "control": CONTROL, "frames": FRAMES, "handover": HANDOVER,
}  # fmt: skip
