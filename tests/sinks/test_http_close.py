"""The end of a network sink, and errors beside its batches: nothing counts twice."""

from __future__ import annotations

import asyncio
import threading

from logagg.spool_directory import INBOX
from logagg.testing import make_batch
from logagg_sinks.delivery import spools

SCHEME = ""


def hold_until_cancelled(sink, gate):
    """Open the gate when the end has cancelled the delivery, not before."""
    close = sink._client.close

    async def cancelled():
        gate.set()
        await close()

    sink._client.close = cancelled


def test_what_is_counted_as_taken_is_noted_before_the_end(target, make, tools):
    """The end comes while the disk is slow: a successor sends nothing again."""
    gate, counted = threading.Event(), asyncio.Event()
    sink = make("grace=0")
    count = sink.count

    def slow(name, number=1):
        count(name, number)
        if name == "acked":
            sink._executor.submit(gate.wait)
            counted.set()

    sink.count = slow

    async def main():
        await sink.open()
        hold_until_cancelled(sink, gate)
        await sink.write(make_batch(3))
        await counted.wait()
        await sink.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    tools.balance(sink)
    assert sink.health().queued_records == 0

    tools.send(make(), make_batch(1, start=3))
    assert target.seqs == [0, 1, 2, 3]


def test_the_end_makes_no_letter_twice(target, make, tools, letters):
    """The end comes while a dead letter is written: a successor writes no other one."""
    gate, written = threading.Event(), asyncio.Event()
    target.script = [tools.Answer(400)]
    sink = make("grace=0")

    async def main():
        loop = asyncio.get_running_loop()
        await sink.open()
        hold_until_cancelled(sink, gate)
        write = sink._letters.write

        def slow(*args):
            write(*args)
            loop.call_soon_threadsafe(written.set)
            gate.wait()

        sink._letters.write = slow
        await sink.write(make_batch(1))
        await written.wait()
        await sink.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    tools.balance(sink)
    assert sink.counters["dead_lettered"] == len(letters()) == 1

    tools.send(make(), make_batch(1, start=1))
    assert target.seqs == [0, 1]
    assert len(letters()) == 1


def test_an_error_beside_the_batches_does_not_end_the_delivery(
    target, make, tools, naps, monkeypatch
):
    """Whatever goes wrong with the inboxes is said, and the rest is delivered."""
    answers = [None, ValueError("odd")]
    take_over = spools.take_over

    def broken(folder, *prefix):
        if prefix == (INBOX,) and answers and (error := answers.pop(0)):
            raise error
        return take_over(folder, *prefix)

    monkeypatch.setattr(spools, "take_over", broken)
    tools.send(make(), make_batch(3))

    assert answers == []
    assert target.seqs == [0, 1, 2]
    assert len(naps.seconds) == 1
