"""How many records a second the webhook delivers, and what CPU a record costs.

    python tests/bench/sink_http.py [--records 200000] [--compress gzip] [--spool off]

Batches of 500 records (about 300 bytes each) are written as a consumer would; a server
in another process reads them and answers 200. Printed are the rate from the first
`write` to the last answer, and the CPU time of this process (sink, thread and loop).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import tempfile
import time

from aiohttp import web

from logagg.sinks import build
from logagg.testing import make_batch, make_line

BATCH = 500


def serve(connection) -> None:
    """Take every request; say on which port."""

    async def take(request: web.Request) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        return web.Response()

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/{tail:.*}", take)
        runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        connection.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


async def measure(url: str, records: int) -> tuple[float, float]:
    """Deliver so many records; return elapsed and CPU seconds."""
    sink = build(url).sink
    await sink.open()
    batches = [
        make_batch(
            [
                make_line(start + n, request_id="0af7651916cd43dd", path="/shop/cart")
                for n in range(BATCH)
            ]
        )
        for start in range(0, 20 * BATCH, BATCH)
    ]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    for number in range(records // BATCH):
        batch = batches[number % len(batches)]
        await sink.write(type(batch)(batch.lines, batch.closing))
    await sink.flush()
    assert sink.health().queued_records == 0, sink.health()
    elapsed = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    await sink.close()
    assert sink.counters["acked"] == records // BATCH * BATCH, sink.counters
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return elapsed, cpu


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--compress", default="none")
    parser.add_argument("--spool", default="")
    parser.add_argument("--scheme", default="", help="loki+, otlp+, splunk+")
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs,), daemon=True
    )
    server.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        spool = arguments.spool or f"{folder}/spool"
        url = (
            f"{arguments.scheme}http://127.0.0.1:{port}/in?batch_records={BATCH}"
            f"&compress={arguments.compress}&spool={spool}&max_age=0"
            "&dead_letter_bytes=0"
        )
        elapsed, cpu = asyncio.run(measure(url, arguments.records))
    server.terminate()
    count = arguments.records // BATCH * BATCH
    size = len(
        make_batch(
            [make_line(1, request_id="0af7651916cd43dd", path="/shop/cart")]
        ).data
    )
    print(
        f"{count} records of {size} bytes in {elapsed:.2f} s: "
        f"{count / elapsed:,.0f} records/s, {cpu / count * 1e6:.2f} µs CPU a record"
    )


if __name__ == "__main__":
    main()
