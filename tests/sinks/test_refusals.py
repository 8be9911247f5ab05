"""No stream becomes dead letters, or is taken for delivered, while a sink is called ok."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from logagg.fanout.fanout import Fanout
from logagg.ownership import TargetOwners
from logagg.sinks import wrap
from logagg.testing import make_batch
from logagg_sinks.delivery.condition import SinkState

OTLP = {"Content-Type": "application/x-protobuf"}
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
SUCCESS = {
    "": (200, b"", {}),
    "otlp+": (200, b"", OTLP),
    "loki+": (204, b"", {}),
    "elasticsearch+": (200, b'{"errors":false}', {}),
    "opensearch+": (200, b'{"errors":false}', {}),
    "splunk+": (200, b'{"text":"Success","code":0}', {}),
}
KINDS = [*SUCCESS]
STATUSES = (
    203, 206, 301, 302, 307, 308, 401, 402, 403, 404, 405, 406, 407, 410, 411, 414,
    417, 421, 426, 428, 431, 451, 501, 505, 511,
)  # fmt: skip

# Every status once, the usual ones with each kind: `test_retry` has the whole table.
MISTAKES = [
    (KINDS[number % len(KINDS)], status, b"", {})
    for number, status in enumerate(STATUSES)
    if status >= 300
]
MISTAKES += [("", status, b"", {}) for status in (203, 206)]
MISTAKES += [(kind, status, b"", {}) for kind in KINDS for status in (404, 405, 415)]
MISTAKES += [(kind, 200, PAGE, HTML) for kind in KINDS]
MISTAKES += [(kind, 200, PAGE, {}) for kind in KINDS]
MISTAKES += [(kind, 200, b"Welcome", {}) for kind in KINDS if kind]
MISTAKES += [(kind, 200, b'{"login":"required"}', {}) for kind in KINDS if kind]
MISTAKES += [
    ("otlp+", 200, b'{"login":1}', {"Content-Type": "application/json"}),
    ("loki+", 260, b"", {}),
    ("loki+", 400, b"limits_config.allow_structured_metadata is off", {}),
]
MISTAKES += [
    ("splunk+", status, b'{"text":"x","code":%d,"invalid-event-number":0}' % code, {})
    for status, code in (
        (403, 1), (401, 2), (401, 3), (403, 4), (400, 7), (400, 10), (400, 11), (400, 14),
        (400, 16), (403, 21),
    )
]  # fmt: skip


@pytest.mark.parametrize(("kind", "status", "body", "headers"), MISTAKES)
def test_what_an_operator_must_repair_is_held(
    target, make, tools, kind, status, body, headers
):
    """Nothing is dropped, the sink is suspended with an alarm, and goes on afterwards."""
    target.script = [tools.Answer(status, body, headers)]
    target.default = tools.Answer(*SUCCESS[kind])
    states, alarms = [], []
    sink = make("compress=none", scheme=kind)
    sink.alarm = lambda event, level, text: alarms.append((str(event), level))

    async def nap(seconds):
        states.append((sink.health().state, seconds))

    sink.sleep = nap
    tools.send(sink, make_batch(3))

    assert states == [(SinkState.SUSPENDED, 30)]
    assert alarms == [("sink_suspended", "error"), ("sink_recovered", "info")]
    assert sink.counters["acked"] == 3
    assert sink.health().state is SinkState.OK


def refuse(kind, items):
    """The answer of a target that refuses every record of a request."""
    if kind in ("elasticsearch+", "opensearch+"):
        error = {"type": "mapper_parsing_exception", "reason": "no"}
        found = [{"create": {"status": 400, "error": error}}] * items
        return 200, orjson.dumps({"errors": True, "items": found}), {}
    if kind == "splunk+":
        return 400, b'{"text":"x","code":6,"invalid-event-number":0}', {}
    return 400, b"refused", {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_not_made_dead_letters(target, make, tools, kind):
    """When every record is refused, a few are dead letters, and the rest waits."""
    refusing = True

    def judge(seen):
        if not refusing:
            return tools.Answer(*SUCCESS[kind])
        return tools.Answer(*refuse(kind, seen.body.count(b"\n") // 2))

    target.default = judge
    states, alarms = [], []
    sink = make("compress=none", scheme=kind)
    sink.alarm = lambda event, level, text: alarms.append((str(event), text))

    async def nap(seconds):
        nonlocal refusing
        states.append((sink.health().state, seconds))
        refusing = len(states) < 5

    sink.sleep = nap
    tools.send(sink, make_batch(300))

    assert set(states) == {(SinkState.SUSPENDED, 30)}
    assert sink.counters["dead_lettered"] <= 10 + 5
    assert sink.counters["acked"] >= 285
    assert "refuses every record" in alarms[0][1]
    assert [event for event, _ in alarms] == ["sink_suspended", "sink_recovered"]


def test_giving_up_is_no_recovery(target, make, tools):
    """With `attempts=` a stream becomes dead letters by choice, and not unseen."""
    target.default = tools.Answer(503)
    alarms = []
    sink = make("attempts=2&batch_records=1", scheme="")
    sink.alarm = lambda event, level, text: alarms.append(str(event))

    tools.send(sink, make_batch(5))

    assert sink.counters["dead_lettered"] == 5
    assert sink.health().state is SinkState.RETRYING
    assert alarms == ["sink_error"]


def test_an_alarm_is_a_record_and_stands_in_status(target, make, tools):
    """The consumer puts it into the stream, and `status` has state and reason."""
    target.default = tools.Answer(403, b"no right")
    events = []
    sink = make("grace=0", scheme="")
    sink.sleep = lambda _: asyncio.sleep(3600)

    async def main():
        fanout = Fanout(
            lambda text, details: events.append((text, details)),
            lambda: None,
            owners=TargetOwners("", lambda: True, print),
        )
        await fanout.add("one", wrap(sink))
        fanout.put(make_batch(3), frozenset())
        await tools.until(lambda: bool(events))
        (found,) = fanout.statistics()
        await fanout.close(1.0)
        return found

    found = asyncio.run(asyncio.wait_for(main(), 50))

    assert found["delivery"]["state"] == "suspended"
    assert found["delivery"]["last_error"] == "status 403"
    text, details = next(each for each in events if each[1]["event"] != "alarm")
    assert text == f"sink {sink.url} is suspended, records are spooled: status 403"
    assert (details["event"], details["level"]) == ("sink_suspended", "error")
