"""The webhook: what is sent, and that every record is settled exactly once."""

from __future__ import annotations

import asyncio

from logagg.sinks import build
from logagg.testing import check_sink, make_batch


def test_contract_of_a_sink(target, tmp_path):
    """The webhook keeps the contract that every sink has."""
    check_sink(
        lambda: build(f"{target.url}/in?batch_age=0.05&spool={tmp_path}").sink,
        lambda: [record for seen in target.seen for record in seen.records],
    )


def test_a_batch_is_posted_as_ndjson(target, tools):
    """Records come as NDJSON, whole and in order, in one POST."""

    async def main():
        async with tools.opened(build(f"{target.url}/in?batch_age=0.01").sink) as sink:
            await sink.write(make_batch(3))
            await sink.flush()
            assert sink.counters["acked"] == 3

    asyncio.run(main())

    (seen,) = target.seen
    assert (seen.method, seen.path) == ("POST", "/in")
    assert seen.headers["content-type"] == "application/x-ndjson"
    assert seen.body == make_batch(3).data
