"""Random kills for a long time: `pytest -m slow --soak SECONDS tests/system/test_soak.py`."""

import os
import random
import signal
import time

import pytest
import support
from harness import Fleet, fresh_record, judge

from logagg.errors import ConsumerGone
from logagg.ipc import paths
from logagg.ipc.consumer_client import status


@pytest.mark.slow
@pytest.mark.timeout(86_400)
def test_random_kills_and_stops_lose_nothing(tmp_path, request):
    """Consumer and workers are killed and suspended at random; the judge is content."""
    asked = request.config.getoption("--soak")
    seconds, seed = asked or 120.0, support.fault_seed(asked)
    print(f"soak of {seconds} s with seed {seed}")
    chance = random.Random(seed)
    path = tmp_path / "app.log"
    until = time.monotonic() + seconds
    fleets = []
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
        run = f"s{rounds}-"
        config = {
            "rate": chance.choice([200, 1000, 3000]),
            "size": chance.choice([20, 20, 300, 5000]),
            "options": {"maxBytes": 5_000_000},
        }
        with Fleet(
            path, workers=chance.randint(1, 5), count=10**9, run=run, **config
        ) as fleet:
            fleets.append(fleet)
            round_until = min(time.monotonic() + chance.uniform(3, 10), until)
            harm = Harm(chance, fleet)
            while time.monotonic() < round_until:
                time.sleep(chance.uniform(0.05, 1.0))
                harm.do()
            fleet.stop()
            fleet.join(60)
            sent = sum(each.returned for each in fleet.sent())
            print(f"round {rounds}: {sent} records, {harm.killed} killed, {config}")
    fresh_record(path, 10)
    support.settled(90)

    # All at once: after a long soak there are gigabytes to read.
    sent = [each for fleet in fleets for each in fleet.sent()]
    runs = {fleet.run for fleet in fleets}
    verdict = judge(support.rotated(path), sent, runs=runs, spool=support.spool_files())
    verdict.require(longest=2.0)


class Harm:
    """Does terrible things, but none that nobody could survive.

    A worker that is killed while there is no consumer takes the pipe along, and with it
    what nobody has read; so does a consumer that is killed before it has written what a
    killed worker left. Those losses are stated. So here a worker is killed only when its
    consumer is known to write what it logs, and then the consumer gets the time it needs.
    """

    def __init__(self, chance, fleet):
        self._chance = chance
        self._fleet = fleet
        self.killed = 0
        self._logged = [0] * len(fleet.processes)  # when a consumer was last harmed

    def do(self):
        """Do one of them."""
        consumers = support.consumers()
        what = self._chance.random()
        if what < 0.15:
            self._kill_worker()
        elif what < 0.35:
            victim = self._chance.choice(self._fleet.processes)
            if victim.poll() is None:
                _suspend(self._chance, victim.pid)
        elif not consumers:
            return
        elif what < 0.45:
            _suspend(self._chance, consumers[0])
        elif what < 0.55:
            _signal(consumers[0], signal.SIGHUP)
        else:
            _signal(consumers[0], signal.SIGKILL if what < 0.9 else signal.SIGTERM)
            self._logged = [each.returned for each in self._fleet.sent()]

    def _kill_worker(self):
        number = self._chance.randrange(len(self._fleet.processes))
        pid = self._fleet.processes[number].pid
        acknowledged = _acknowledged()
        if acknowledged is None or acknowledged.get(pid, 0) <= self._logged[number]:
            return
        self._fleet.kill(number)
        self.killed += 1

        def written():
            known = _acknowledged()
            return pid not in known if known is not None else not support.consumers()

        support.wait_until(written, what="the records of a killed worker")


def _acknowledged():
    """The seq up to which each attached worker's records are written, by its pid.

    None when no consumer answers.
    """
    for path in paths.listening():
        try:
            workers = status(path)["workers"]
        except ConsumerGone:
            continue
        return {each["pid"]: each["acknowledged"] for each in workers}
    return None


def _suspend(chance, pid):
    if support.alive(pid):
        with support.stopped(pid):
            time.sleep(chance.uniform(0.01, 0.5))


def _signal(pid, sign):
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        pass
