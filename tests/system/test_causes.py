"""The order of a log agrees with what is known to have happened before what."""

import json
import os
import signal
import subprocess
import sys

import orjson
import pytest
import support
from harness import Fleet
from harness.causes import check_causes

LINKS = 400


def line(worker, n, ns, after=None, *, late=False, received=None):
    """A line of a log; `ns` is its stamp, and when it was received unless that is said."""
    moment = "2026-11-25T00:59:11.{:09d}Z".format
    record = {"timestamp": moment(ns), "w": worker, "n": n}
    record |= {"after": after} if after else {}
    record |= {"late": True} if late else {}
    record["received"] = moment(ns if received is None else received)
    return orjson.dumps(record)


def test_the_checker_is_content_with_an_order_that_agrees():
    """Causes before effects; what was lost is another judge's affair."""
    found = check_causes(
        [line("a", 0, 1), line("b", 0, 2, ["a", 0]), line("a", 1, 3, ["c", 7])]
    )

    assert (found.pairs, found.crossed, found.excused, found.wrong) == (1, 1, 0, [])


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([line("b", 0, 1, ["a", 0]), line("a", 0, 2)], "stamped the wrong way round"),
        ([line("b", 0, 1, ["a", 0]), line("a", 0, 1)], "an effect before its cause"),
        (
            [line("b", 0, 2, ["a", 0]), line("a", 0, 3, late=True)],
            "stamped the wrong way round",
        ),
    ],
)
def test_the_checker_finds_what_contradicts_the_causes(lines, complaint):
    """Stamps and places, each for itself."""
    assert complaint in "\n".join(check_causes(lines).wrong)


@pytest.mark.parametrize(
    "after",
    [
        [line("a", 0, 2, late=True, received=5)],
        [line("a", 0, 2, received=1)],
        [line("a", 0, 2, received=5)],
        [line("c", 0, 1, received=1), line("a", 0, 2, received=5)],
    ],
    ids=["late", "spooled", "another consumer", "another consumer after its spool"],
)
def test_the_checker_excuses_what_the_file_shows(after):
    """A late line, one that waited in a spool, the first lines of another consumer."""
    found = check_causes([line("b", 0, 3, ["a", 0], received=3), *after])

    assert (found.excused, found.wrong) == (1, [])


def test_records_under_a_lock_stand_in_the_order_of_the_lock(tmp_path):
    """Four processes hand a lock round; nothing is excused by the consumer's death."""
    path, chain = tmp_path / "app.log", tmp_path / "chain"
    chain.write_bytes(b"")
    config = {"chain": str(chain), "chain_every": 1, "count": LINKS, "rate": 1000}
    with Fleet(path, workers=4, **config) as fleet:
        fleet.progress(LINKS // 4)
        os.kill(support.consumer(), signal.SIGKILL)
        fleet.join()
    fleet.judge().require()

    found = check_causes(support.lines(path))

    assert found.pairs == 4 * LINKS - 1
    assert found.crossed > 4
    assert not found.wrong, found.wrong


PRIMARY = """
import asyncio, itertools, logging, logagg
log = logging.getLogger("causes")
async def main():
    got = asyncio.Queue()
    cluster = logagg.Cluster(__file__, workers=3, sinks=["file:app.log"])
    cluster.on("message")(lambda worker, word: got.put_nowait(word))
    async with cluster:
        for _ in range(3):
            await got.get()
        word = None
        for worker in itertools.islice(itertools.cycle(cluster.workers), 400):
            worker.send(["after", word])
            word = await got.get()
async def work():
    me, number = logagg.worker, itertools.count()
    @me.on("message")
    async def message(value):
        mine = [f"w{me.slot}", next(number)]
        log.warning("got", extra={"w": mine[0], "n": mine[1], "after": value[1]})
        await me.send(mine)
    await me.send("up")
    me.ready()
    await asyncio.Event().wait()
asyncio.run(main() if logagg.is_primary else work())
"""


@pytest.mark.slow
def test_records_stand_in_the_order_of_messages(tmp_path):
    """A word goes from a worker to the primary and on to the next one, 400 times."""
    (tmp_path / "main.py").write_text(PRIMARY)

    subprocess.run([sys.executable, "main.py"], cwd=tmp_path, check=True, timeout=120)

    found = check_causes(support.lines(tmp_path / "app.log"))
    assert found.pairs == found.crossed == LINKS - 1, json.dumps(found.wrong)
    assert not found.wrong, found.wrong
