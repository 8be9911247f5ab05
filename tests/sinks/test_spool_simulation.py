"""A simulation of spool, delivery and replay: killed, or refused by the disk, at any step.

Every write, rename, removal and request is a step. A process is killed before, after or
in the middle of one; then nothing that it would still do reaches the disk, its locks are
gone, and the next process takes over. The judge: no accepted record is lost, and none is
stored twice that was not in a request without an answer when that happened.

`--seeds 10000` plays so many seeds in the long test; `--first-seed 17 --seeds 1` only
that one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
import threading
from collections import Counter
from pathlib import Path
from random import Random

import orjson
import pytest

from logagg.cli.put_back import put_back
from logagg.segment_log import SegmentLog
from logagg.spool_directory import directories, tidy
from logagg.testing import make_line
from logagg_sinks.delivery.batch_work import BatchWork
from logagg_sinks.delivery.condition import SinkCondition
from logagg_sinks.delivery.delivery_loop import Delivery
from logagg_sinks.delivery.delivery_options import DeliveryOptions
from logagg_sinks.delivery.loader import Loader, Runtime
from logagg_sinks.delivery.retry import Action
from logagg_sinks.delivery.spools import Spools
from logagg_sinks.delivery.verdict import Verdict

CHUNK = 25
CURSOR_BYTES = 128
CHANGES = (
    "open", "pwrite", "write", "rename", "replace", "unlink", "rmdir", "mkdir", "ftruncate"
)  # fmt: skip


class KilledError(BaseException):
    """The process was killed."""


class Disk:
    """The calls that change a disk, each one a step at which a process can be killed."""

    def __init__(self, random: Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.random = random
        self.alive = True
        self.left = -1  # steps until the kill; negative: none comes
        self.refusals = 0.0  # how likely the disk refuses a step
        self._thread = threading.get_ident()
        self._open: set[int] = set()
        self._real = {name: getattr(os, name) for name in (*CHANGES, "close")}
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._step(name))
        monkeypatch.setattr(os, "close", self._close)

    def _close(self, descriptor):
        self._open.discard(descriptor)
        return self._real["close"](descriptor)

    def _step(self, name):
        real = self._real[name]

        def call(*args, **more):
            if threading.get_ident() != self._thread:
                return real(*args, **more)
            part = self.step()
            if part == "before":
                raise KilledError
            if part == "amid" and name in ("pwrite", "write"):
                descriptor, data, *rest = args
                cut = self.random.randrange(len(data) + 1)
                real(descriptor, bytes(data)[:cut], *rest)
                raise KilledError
            if self._refuses(name, args):
                number = self.random.choice((errno.ENOSPC, errno.EIO))
                raise OSError(number, os.strerror(number))
            found = real(*args, **more)
            if name == "open":
                self._open.add(found)
            if part:
                raise KilledError
            return found

        return call

    def _refuses(self, name, args):
        # A cursor that cannot be written makes a successor send more again: allowed, but
        # nothing that the judge could count.
        if name == "pwrite" and len(args[1]) == CURSOR_BYTES:
            return False
        return self.refusals and self.random.random() < self.refusals

    def step(self):
        """Take a step; return where in it the process is killed, or nothing."""
        if not self.alive:
            raise KilledError
        self.left -= 1
        if self.left == 0:
            self.alive = False
            return self.random.choice(("before", "amid", "after"))
        return ""

    def restart(self):
        """Let the kernel release what the killed process had."""
        for descriptor in list(self._open):
            try:
                self._close(descriptor)
            except OSError:
                self._open.discard(descriptor)
        self.alive, self.left, self.refusals = True, -1, 0.0


class Target:
    """Stores records; refuses poison; loses answers."""

    def __init__(self, random: Random, disk: Disk) -> None:
        self.random = random
        self.disk = disk
        self.by_item = random.random() < 0.3
        self.poison: set[int] = set()
        self.most = random.choice((3, 5, 1000))
        self.trouble = 0.0
        self.stored: list[int] = []
        self.refused: set[int] = set()
        self.ambiguous: set[int] = set()
        self.at_risk: set[int] = set()  # in the request, or the batch, at hand
        self.batch = "", 0
        self.numbers: dict[tuple[str, int], int] = {}  # of records, by spool

    async def send(self, items, piece):
        await asyncio.sleep(0)
        seqs = [orjson.loads(item.line)["seq"] for item in items]
        spool = piece.log  # each has positions of its own
        for number, seq in ((piece.first, seqs[0]), (piece.following - 1, seqs[-1])):
            assert self.numbers.setdefault((spool, number), seq) == seq, "number"
        batch, end = self.batch
        if not self.by_item or spool != batch or items[0].end > end:
            self.at_risk, end = set(), 0
        self.batch = spool, max(end, items[-1].end)
        self.at_risk.update(seqs)
        killed = self.disk.step()
        if killed == "before":
            raise KilledError
        verdict = self._answer(seqs)
        if killed:
            raise KilledError
        return verdict

    def _answer(self, seqs):
        if self.random.random() < self.trouble:
            kind = self.random.choice(("busy", "held", "lost", "reset"))
            if kind == "busy":
                return Verdict(Action.RETRY, "busy")
            if kind == "held":
                return Verdict(Action.HOLD, "no right")
            if not self.poison.intersection(seqs) and len(seqs) <= self.most:
                self.stored += seqs
                self.ambiguous.update(seqs)
            return Verdict(
                Action.RETRY, "lost", ambiguous=True, cut_off=kind == "reset"
            )
        if len(seqs) > self.most:
            return Verdict(Action.SPLIT, "too large")
        bad = [at for at, seq in enumerate(seqs) if seq in self.poison]
        self.refused.update(seqs[at] for at in bad)
        if not bad:
            self.stored += seqs
            return Verdict(Action.OK)
        if not self.by_item:
            return Verdict(Action.BISECT, "poison")
        again = [at for at in range(len(seqs)) if self.random.random() < self.trouble]
        again = [at for at in again if at not in bad]
        self.stored += [
            seq for at, seq in enumerate(seqs) if at not in bad and at not in again
        ]
        return Verdict(Action.OK, refused=dict.fromkeys(bad, "poison"), again=again)


class Simulation:
    """One seed: a folder, a target, and processes one after the other."""

    def __init__(self, seed: int, folder: Path, monkeypatch) -> None:
        self.random = Random(seed)
        self.folder = folder
        self.disk = Disk(self.random, monkeypatch)
        self.target = Target(self.random, self.disk)
        self.accepted: list[int] = []
        self.tried = 0
        self.options = DeliveryOptions(
            batch_records=self.random.randint(1, 12), batch_age=1e-9, max_age=0.0
        )

    def run(self) -> None:
        for _ in range(self.random.randint(1, 6)):
            self.process(kill=self.random.random() < 0.8)
        self.target.trouble, self.target.most = 0.0, 1000
        self.process(final=True)
        self.target.poison = set()
        for _ in range(self.random.randint(0, 3)):
            self.replay(kill=True)
        self.replay()
        self.process(final=True)
        self.judge()

    def process(self, *, kill: bool = False, final: bool = False) -> None:
        """The life of a process with the sink."""
        self.disk.left = self.random.randint(1, 150) if kill else -1
        if not final:
            self.disk.refusals = self.random.choice((0.0, 0.0, 0.02, 0.1))
            self.target.trouble = self.random.choice((0.0, 0.2, 0.5))
        try:
            asyncio.run(self.life(final=final))
        except (KilledError, OSError):
            pass
        if not self.disk.alive or self.target.by_item:
            # What was in the request may be final, and come again; so may what was final
            # of a batch of which an item was to be sent again.
            self.target.ambiguous |= self.target.at_risk
        self.disk.restart()

    async def life(self, *, final: bool) -> None:
        spools = Spools(self.folder, "http://h", 1 << 20, in_memory=False)
        delivery = self.delivery(spools)
        task = asyncio.create_task(delivery.run())
        try:
            if final:
                await self.wait(task, lambda: not self.waiting(delivery))
            else:
                await self.work(delivery, task)
        finally:
            delivery.finish()
            await asyncio.wait([task])
            failure = task.exception()
        if failure is not None and self.disk.alive:
            raise failure
        if not self.disk.alive:
            raise KilledError
        if final or self.random.random() < 0.8:
            spools.close()
            tidy(self.folder)

    def waiting(self, delivery) -> int:
        return sum(spool.records for spool in delivery.spools)

    async def work(self, delivery, task) -> None:
        for _ in range(self.random.randint(1, 6)):
            if self.random.random() < 0.7:
                await self.write(delivery)
            elif self.random.random() < 0.3:
                self.put_back()
                delivery.retry_now()
            steps = self.random.randint(0, 60)
            await self.wait(task, lambda: not self.waiting(delivery), steps)

    async def wait(self, task, done, steps: int = 100_000) -> None:
        for _ in range(steps):
            if done() or task.done() or not self.disk.alive:
                return
            await asyncio.sleep(0)

    async def write(self, delivery) -> None:
        count = self.random.randint(1, 20)
        seqs = range(self.tried, self.tried + count)
        self.tried += count
        self.target.poison.update(s for s in seqs if self.random.random() < 0.1)
        data = b"".join(make_line(seq) + b"}\n" for seq in seqs)
        try:
            await delivery.accept(data, count)
        except OSError:
            return
        self.accepted += seqs

    def put_back(self) -> None:
        for one in directories([self.folder.parent]):
            try:
                put_back(one)
            except OSError:
                pass

    def replay(self, *, kill: bool = False) -> None:
        """The life of `logagg dlq replay`."""
        self.disk.left = self.random.randint(1, 60) if kill else -1
        try:
            self.put_back()
        except KilledError:
            pass
        self.disk.restart()

    def delivery(self, spools: Spools) -> Delivery:
        async def run(call):
            return call()

        async def sleep(seconds):
            del seconds
            await asyncio.sleep(0)

        counts: Counter[str] = Counter()

        def count(name, number):
            counts[name] += number

        runtime = Runtime(run, count, lambda: 1e9, sleep, lambda: 0.0)
        condition = SinkCondition("sink", lambda *_: None)
        loader = Loader(
            lambda line: (line, b"", len(line)),
            lambda items, _: items,
            self.options,
            runtime,
        )

        def changed():
            delivery._changed()

        letters = spools.letters(1 << 20, "sink", lambda: 1e9, count)
        work = BatchWork(
            condition=condition,
            loader=loader,
            send=self.target.send,
            options=self.options,
            letters=letters,
            runtime=runtime,
            changed=changed,
        )
        delivery = Delivery(
            name="sink",
            condition=condition,
            loader=loader,
            work=lambda _: work,
            options=self.options,
            spools=spools.found,
            inboxes=spools.inboxes,
            runtime=runtime,
        )
        return delivery

    def judge(self) -> None:
        stored = Counter(self.target.stored)
        lost = [seq for seq in self.accepted if not stored[seq]]
        twice = [
            seq
            for seq, times in stored.items()
            if times > 1 and seq not in self.target.ambiguous
        ]
        first = dict.fromkeys(self.target.stored)
        ordered = [seq for seq in first if seq not in self.target.refused]
        assert not lost, f"lost: {lost}"
        assert not twice, f"twice: {twice}"
        if not self.target.by_item:
            assert ordered == sorted(ordered), f"order: {ordered}"
        for path in self.folder.parent.rglob("*"):
            # What may stay: the beginnings of letters whose writer was killed.
            letters = path.name.startswith("dead-letters-")
            assert letters or path.name in ("sink", "url"), f"left: {path}"
            if letters:
                for line in path.read_bytes().splitlines():
                    with pytest.raises(orjson.JSONDecodeError):
                        orjson.loads(line)


@pytest.fixture
def play(monkeypatch, caplog):
    """Plays seeds, in a file system in memory where there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    caplog.set_level(logging.CRITICAL + 1, "logagg.network")
    monkeypatch.setitem(SegmentLog.__init__.__kwdefaults__, "segment_bytes", 700)

    def run(seeds):
        for seed in seeds:
            with (
                tempfile.TemporaryDirectory(dir=memory) as folder,
                monkeypatch.context() as patch,
            ):
                try:
                    Simulation(seed, Path(folder) / "sink", patch).run()
                except BaseException as error:
                    error.add_note(f"seed {seed}")
                    raise

    return run


@pytest.mark.parametrize("first", range(0, 100, CHUNK))
def test_nothing_is_lost_and_nothing_comes_twice(play, first):
    """Whatever step of append, delivery, dead letter, replay or close is the last one."""
    play(range(first, first + CHUNK))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_is_lost_over_more_seeds(play, request):
    """The same, over more seeds."""
    first = request.config.getoption("--first-seed") or 100
    play(range(first, first + (request.config.getoption("--seeds") or 300)))
