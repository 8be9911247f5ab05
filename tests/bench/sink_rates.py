"""How many records a second each sink writes, and what processor time a record costs.

    python tests/bench/sink_rates.py                       every sink (some minutes)
    python tests/bench/sink_rates.py --sinks file,loki --rounds 5
    python tests/bench/sink_rates.py --options 'compress=none&spool=off'

Batches of 500 records are given to a sink as the consumer gives them. Each measurement
is a process of its own; the rounds are interleaved and the tables give medians. Targets
are a server in another process, which reads a request whole and answers as the real one
would; a pipe is drained by another process. Counted is the time from the first `write`
until all is delivered and the sink is closed, and the processor time of the sink's
process (all threads, compression and spool included), not that of the other side.

Results go to `tests/bench/out/`: `sink_rates.md` and `sink_rates.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import report
import scene
from aiohttp import web

from logagg.abc import Batch
from logagg.sinks import build
from logagg.testing import make_batch, make_line

BATCH = 500
DIFFERENT = 40
"""So many different batches, over and over."""
SPAWN = multiprocessing.get_context("spawn")

SINKS = {
    "file": "file:{folder}/a.log",
    "file, text": "file:{folder}/a.log?format=text",
    "file, rotated at 20 MB, gzip": "file:{folder}/a.log?max_bytes=20MB&compress=gzip",
    "stdout, JSON": "stdout:?format=json",
    "stdout, console": "stdout:?format=console",
    "stdout, text": "stdout:?format=text",
    "webhook": "{server}/in?{http}",
    "webhook, gzip": "{server}/in?{http}&compress=gzip",
    "otlp, protobuf": "otlp+{server}?{http}",
    "otlp, JSON": "otlp+{server}?{http}&encoding=json",
    "loki": "loki+{server}?{http}",
    "elasticsearch": "elasticsearch+{server}?{http}",
    "splunk": "splunk+{server}?{http}",
}
HTTP = f"batch_records={BATCH}&spool={{folder}}/spool&max_age=0&dead_letter_bytes=0"

ANSWERS = {
    "_bulk": (200, b'{"errors":false}'),
    "push": (204, b""),
    "event": (200, b'{"text":"Success","code":0}'),
}


def serve(connection: Any) -> None:
    """Take every request; say on which port."""

    async def take(request: web.Request) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        status, body = ANSWERS.get(request.path.rpartition("/")[2], (200, b""))
        return web.Response(status=status, body=body)

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/{tail:.*}", take)
        runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        connection.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server in another process."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def records(start: int) -> list[bytes]:
    """Lines as an application writes them: some of it is always the same."""
    chance = random.Random(start)
    return [
        make_line(
            n,
            message=f"order {n} placed",
            request_id=f"{chance.getrandbits(64):016x}",
            **scene.fields(n % 4, n),
        )
        for n in range(start, start + BATCH)
    ]


def batches() -> list[Batch]:
    """Different batches of them."""
    return [make_batch(records(number * BATCH)) for number in range(DIFFERENT)]


def cell(url: str, count: int, connection: Any) -> None:
    """Measure one sink, in a process of its own."""
    drain = None
    if url.startswith("stdout"):
        drain = subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert drain.stdin is not None
        os.dup2(drain.stdin.fileno(), 1)
    try:
        connection.send(asyncio.run(measured(url, count)))
    except Exception as error:  # noqa: BLE001 - the row says it
        connection.send({"error": f"{type(error).__name__}: {error}"})
    if drain is not None:
        os.close(1)
        drain.communicate()


async def measured(url: str, count: int) -> dict[str, float]:
    """Write so many records; return the rate and the cost."""
    sink = build(url).sink
    await sink.open()
    ready = batches()
    began, before = time.perf_counter(), processor_seconds()
    for number in range(count // BATCH):
        batch = ready[number % DIFFERENT]
        await sink.write(Batch(batch.lines, batch.closing))
    await sink.flush()
    await sink.close()
    elapsed, spent = time.perf_counter() - began, processor_seconds() - before
    written = sink.counters.get("acked", count)
    if written != count:
        raise RuntimeError(f"{written} of {count} were delivered: {sink.counters}")
    return {
        "records_s": round(count / elapsed),
        "record_us": round(spent / count * 1e6, 2),
    }


def processor_seconds() -> float:
    """Of this process, all threads, and of what it has started and waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(each.ru_utime + each.ru_stime for each in used)


def row(name: str, place: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one sink once."""
    with scene.folder() as folder:
        http = HTTP.format(folder=folder)
        url = SINKS[name].format(folder=folder, server=place, http=http)
        if options.options:
            url += ("&" if "?" in url else "?") + options.options
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=cell, args=(url, options.records, theirs))
        process.start()
        theirs.close()
        try:
            found: dict[str, Any] = ours.recv()
        except EOFError:
            found = {"error": "it died"}
        process.join()
    return {"sink": name, **found}


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    known = result["facts"]
    size = make_batch(records(0)).size_bytes // BATCH
    text = (
        f"# Sinks, {known['date']}\n\n`{known['command']}`: {known['rounds']} rounds of "
        f"{known['records']:,} records of {size} bytes in batches of {BATCH}.\n\n"
        f"{known['cpu']}, {known['cores']} cores, Linux {known['kernel']}, "
        f"{known['file_system']}, Python {known['versions']['python']}.\n\n"
        "| sink | records/s | processor time a record, µs |\n|---|---|---|\n"
    )
    for name in dict.fromkeys(each["sink"] for each in result["rows"]):
        rows = [each for each in result["rows"] if each["sink"] == name]
        failed = [each["error"] for each in rows if "error" in each]
        if failed:
            text += f"| {name} | failed: {failed[0]} | |\n"
            continue
        rate = statistics.median(each["records_s"] for each in rows)
        cost = statistics.median(each["record_us"] for each in rows)
        text += f"| {name} | {rate:,.0f} | {cost:.2f} |\n"
    return text


def chosen(text: str) -> list[str]:
    """The sinks whose name begins with one of these words; all without any."""
    words = text.split(",")
    found = [name for name in SINKS if name.startswith(tuple(words))]
    for word in words:
        if not any(name.startswith(word) for name in SINKS):
            sys.exit(f"unknown sink {word!r}: choose from {', '.join(SINKS)}")
    return found


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sinks", default="", help="beginnings of names, with commas")
    parser.add_argument("--records", type=int, default=200_000, help="in a cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="", help="further options of each URL")
    options = parser.parse_args()
    options.records = max(options.records // BATCH, 1) * BATCH
    names = chosen(options.sinks)
    rows = []
    with server() as place:
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                rows.append({"round": turn, **row(name, place, options)})
                sys.stderr.write(f"{rows[-1]}\n")
    rows.sort(key=lambda each: list(SINKS).index(each["sink"]))
    facts = report.facts(None) | {
        "command": " ".join(["python", "tests/bench/sink_rates.py", *sys.argv[1:]]),
        "rounds": options.rounds,
        "records": options.records,
    }
    result = {"facts": facts, "rows": rows}
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "sink_rates.json").write_bytes(
        orjson.dumps(result, option=orjson.OPT_INDENT_2)
    )
    text = markdown(result)
    (out / "sink_rates.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
