"""Random faults for a long time: `pytest tests/system/test_fault_soak.py --soak SECONDS`.

Rounds of some seconds. In each, processes log to one file, in one of several scenes
(plain handlers, `logagg run`, both, two starters, a dropped privilege, an application
that closes descriptors that are not its own), while at random consumers, workers and
supervisors are killed or suspended, descriptors run out, and the disk is full or broken.
Then all is mended, and the judge compares what the log calls accepted with the file:
nothing lost, nothing twice, nothing foreign, each process's records in order, and none
before one that caused it.

Some losses nobody can help, and the guarantees state them: a worker that is killed while
its consumer is dead, takes its pipe along. So one is killed only when its records are
being written, and its consumer lives until they are.
"""

from __future__ import annotations

import collections
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import support
from harness import faults, fresh_record, judge, producer
from harness.causes import Causes, check_causes, goes_back
from harness.judge import Sent, Verdict
from harness.producer import LEDGER
from serving import LOGAGG

from logagg.errors import ConsumerGone
from logagg.ipc import paths
from logagg.ipc.consumer_client import status
from logagg.ipc.paths import ALLOW_USERS

NOBODY = 65534
SCENES = ("handlers", "alone", "run", "both", "starters", "dropped", "closes")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not faults.possible(), reason="no compiler for the faults"),
]


class Round:
    """Processes that log to one file, and the harm that is done to them.

    Attributes:
        spool_full: Whether the disk of the spool was full, so that records could be lost.
        disk_failed: Whether the log's disk failed.
        sockets_may_stay: Whether somebody was killed whom nobody may follow.
    """

    def __init__(self, scene: str, chance: random.Random, disk: faults.Disk) -> None:
        self.scene, self.chance, self.disk = scene, chance, disk
        self.folder = Path(tempfile.mkdtemp(prefix="lgf-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.path = self.folder / "log" / "app.log"
        for name in ("log", "ledgers", "own"):
            (self.folder / name).mkdir()
        (self.folder / "own").chmod(0o777)
        self.chain = self.folder / "chain"
        self.chain.touch()
        self.chain.chmod(0o666)
        self.causes = Causes()
        self.rate = chance.choice([200, 1000, 3000])
        self.size = chance.choice([20, 20, 300, 5000])
        # Each rotation renames all pieces: some hundreds of them, no more.
        self.max_bytes = chance.choice(
            [200_000, 5_000_000] if self.size < 1000 else [5_000_000]
        )
        self.programs: list[subprocess.Popen[bytes]] = []
        self.runs: list[subprocess.Popen[bytes]] = []
        self.done: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.spool_full = self.disk_failed = self.sockets_may_stay = False
        self.began = time.monotonic()
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._harmed: dict[int, int] = {}  # what each had logged when its consumer was
        self.env = {**os.environ, **disk.env}
        if scene == "dropped":
            self.env[ALLOW_USERS] = str(NOBODY)

    # ---- those that log ------------------------------------------------------------

    def config(self, name: str, **changes: Any) -> str:
        """A producer's configuration."""
        config = {
            "path": str(self.path), "worker": name, "run": "r", "count": 10**9,
            "rate": self.rate, "size": self.size, "ledgers": str(self.folder / "ledgers"),
            "own": str(self.folder / "own"), "chain": str(self.chain),
            "options": {"maxBytes": self.max_bytes, "backupCount": 1_000_000},
        }  # fmt: skip
        return json.dumps({**config, **changes})

    def handler(self, name: str, **changes: Any) -> None:
        """Start a producer with a plain Handler."""
        runtime = changes.pop("runtime", None)
        env = {**self.env, **({"XDG_RUNTIME_DIR": str(runtime)} if runtime else {})}
        command = [support.sys.executable, producer.__file__]
        self._start(self.programs, [*command, self.config(name, **changes)], env)

    def run(self, workers: int) -> None:
        """Start a `logagg run` of producers."""
        sink = f"file:{self.path}?max_bytes={self.max_bytes}&backups=1000000"
        command = [*LOGAGG, "run", "-w", str(workers), "--sink", sink, "--stop-timeout"]
        config = self.config(f"run{len(self.runs)}-", handler=False)
        self._start(
            self.runs, [*command, "5s", producer.__file__, "--", config], self.env
        )

    def _start(self, those: list[Any], command: list[str], env: dict[str, str]) -> None:
        errors = (self.folder / f"stderr.{len(self.programs)}.{len(self.runs)}").open(
            "wb"
        )
        with errors:
            those.append(
                subprocess.Popen(
                    command, env=env, cwd=self.folder, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=errors,
                )
            )  # fmt: skip

    def begin(self) -> None:
        """Start what belongs to the scene."""
        count = self.chance.randint(1, 4)
        if self.scene in ("run", "both"):
            self.run(count)
        if self.scene == "alone":
            self.handler("h0")
        elif self.scene == "closes":
            for n in range(count):
                self.handler(f"h{n}", close_every=self.chance.choice([50, 500, 2000]))
        elif self.scene == "dropped":
            self.handler("root")
            for n in range(count):
                after = self.chance.choice([0, 1, 50, 1000])
                self.handler(f"h{n}", uid=NOBODY, drop_after=after)
        elif self.scene == "starters":
            for n in range(2 * count):
                runtime = Path(os.environ["XDG_RUNTIME_DIR"]) / str(n % 2)
                runtime.mkdir(mode=0o700, exist_ok=True)
                self.handler(f"h{n}", runtime=runtime)
            if self.chance.random() < 0.5:
                self.run(1)
        elif self.scene in ("handlers", "both"):
            for n in range(count):
                self.handler(f"h{n}")
        support.wait_until(lambda: len(self.sent()) >= 1, what="a producer")

    def sent(self) -> list[Sent]:
        """The ledgers as they are now."""
        found = []
        for each in (self.folder / "ledgers").iterdir():
            if each.suffix == ".new":
                continue
            attempted, returned, longest, slow, finished, pid = LEDGER.unpack(
                each.read_bytes()
            )
            found.append(
                Sent(each.name, pid, attempted, returned, longest / 1e9, slow, bool(finished))
            )  # fmt: skip
        return found

    def living(self) -> list[Sent]:
        """The producers that still log."""
        return [
            each
            for each in self.sent()
            if support.alive(each.pid) and not each.finished
        ]

    # ---- harm ----------------------------------------------------------------------

    def note(self, what: str, details: object) -> None:
        """Keep in mind what was done, and when."""
        self.counts[what] += 1
        self.done.append(f"{time.monotonic() - self.began:.2f} {what} {details}")

    def harm_until(self, end: float) -> None:
        """Do harm at random; mend all in the end."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.kill_consumer, 6), (self.kill_worker, 8), (self.suspend, 4),
            (self.scarce, 2), (self.broken_disk, 4), (self.calm_signal, 1),
            (self.kill_supervisor, 4 if self.runs else 0),
        ]  # fmt: skip
        try:
            while time.monotonic() < end:
                pause = time.monotonic() + self.chance.uniform(0.05, 1.0)
                while time.monotonic() < pause:
                    self._mend(time.monotonic())
                    time.sleep(0.01)
                (harm,) = self.chance.choices(*zip(*kinds, strict=True))
                harm()
        finally:
            self._mend(float("inf"))

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + seconds, action))

    def _mend(self, now: float) -> None:
        for due in [each for each in self._undo if each[0] <= now]:
            self._undo.remove(due)
            due[1]()

    def _consumers(self) -> list[int]:
        return list(consumers())

    def kill_consumer(self) -> None:
        """KILL or TERM."""
        found = self._consumers()
        if found:
            self._harmed = {each.pid: each.returned for each in self.sent()}
            number = self.chance.choice(
                [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]
            )
            pid = self.chance.choice(found)
            self.sockets_may_stay |= (
                self.scene == "starters" and number == signal.SIGKILL
            )
            self.note(f"{number.name} of a consumer", pid)
            _signal(pid, number)

    def calm_signal(self) -> None:
        """HUP: open the files again."""
        for pid in self._consumers():
            self.note("SIGHUP of a consumer", pid)
            _signal(pid, signal.SIGHUP)

    def _written(self) -> dict[int, int] | None:
        """What is known to be written of each, when nothing is wrong now."""
        return None if self._undo else acknowledged()

    def kill_worker(self) -> None:
        """KILL one, when its consumer writes what it logs, and wait for that."""
        written, living = self._written(), self.living()
        if written is None or not living:
            return
        victim = self.chance.choice(living)
        if written.get(victim.pid, 0) <= self._harmed.get(victim.pid, 0) + 1:
            return
        self.note("SIGKILL of a worker", victim.worker)
        _signal(victim.pid, signal.SIGKILL)
        self._wait_written([victim.pid])

    def kill_supervisor(self) -> None:
        """KILL the one of a run, and start another run on the file."""
        written = self._written()
        living = [n for n, run in enumerate(self.runs) if run.poll() is None]
        if not living:
            return
        number = self.chance.choice(living)
        run, name = self.runs[number], f"run{number}-"
        mine = [each for each in self.living() if each.worker.startswith(name)]
        if written is None or any(
            written.get(each.pid, 0) <= self._harmed.get(each.pid, 0) + 1
            for each in mine
        ):
            return
        self.note("SIGKILL of a supervisor", run.pid)
        self.sockets_may_stay = True
        run.kill()
        run.wait()
        support.wait_until(
            lambda: not any(support.alive(each.pid) for each in mine),
            what="the end of an orphaned run's workers",
        )
        self._wait_written([each.pid for each in mine])
        self.run(self.chance.randint(1, 3))

    def _wait_written(self, pids: list[int]) -> None:
        def written() -> bool:
            known = acknowledged()
            return not known or not any(pid in known for pid in pids)

        support.wait_until(written, what="the records of the killed")

    def suspend(self) -> None:
        """STOP a consumer, a worker or a supervisor for a moment."""
        pids = [*self._consumers(), *(each.pid for each in self.living())]
        pids += [each.pid for each in self.runs if each.poll() is None]
        if pids:
            pid = self.chance.choice(pids)
            self.note("SIGSTOP", pid)
            _signal(pid, signal.SIGSTOP)
            self._later(
                self.chance.uniform(0.01, 1.5), lambda: _signal(pid, signal.SIGCONT)
            )

    def scarce(self) -> None:
        """Let a consumer or a supervisor have few descriptors left, or none."""
        pids = [*self._consumers(), *(e.pid for e in self.runs if has_children(e.pid))]
        if not pids:
            return
        pid = self.chance.choice(pids)
        with suppress(OSError):
            old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = [int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()]
            if not used:  # it has just ended
                return
            few = max(used) + self.chance.randint(0, 3)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, old[1]))
            self.sockets_may_stay |= self.scene == "starters"  # it may just begin
            self.note("EMFILE", f"{pid} at {few}")

            def restore() -> None:
                with suppress(OSError):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, old)

            self._later(self.chance.uniform(0.1, 2.0), restore)

    def broken_disk(self) -> None:
        """ENOSPC, EIO or EMFILE where the log is, sometimes where the spool is."""
        kinds = self.chance.choice(
            [faults.WRITE, faults.WRITE, faults.WRITE | faults.OPEN, faults.OPEN, 7, 4]
        )
        error = self.chance.choice([errno.ENOSPC, errno.EIO])
        place, whom = self.folder / "log", faults.CONSUMER
        if self.chance.random() < 0.2:
            place = Path(os.environ["XDG_STATE_HOME"])
            whom = faults.CONSUMER | faults.OTHERS
            self.spool_full = True
        self.disk_failed = True
        percent = self.chance.choice([10, 50, 100])
        self.note(errno.errorcode[error], f"{kinds} {percent} % {place}")
        self.disk.fail(kinds, error, place, percent=percent, whom=whom)
        self._later(self.chance.uniform(0.1, 3.0), self.disk.heal)

    # ---- the end -------------------------------------------------------------------

    def end(self) -> None:
        """Have all end in good order, and what was spooled written."""
        for each in [*self.programs, *self.runs]:
            if each.poll() is None:
                each.terminate()
        for each in [*self.programs, *self.runs]:
            each.wait(90)
        settled()
        env = {ALLOW_USERS: self.env[ALLOW_USERS]} if ALLOW_USERS in self.env else {}
        for _ in range(5):
            fresh_record(self.path, 90, **env)
            settled()
            if not self.spooled():
                break

    def spooled(self) -> list[Path]:
        """Segments that are left, in each place where one may be."""
        names = [each.worker.encode() for each in self.sent()]
        places = [f"/var/tmp/logagg-{uid}" for uid in (os.getuid(), NOBODY)]
        places.append(os.environ["XDG_RUNTIME_DIR"])
        others = [path for place in places for path in Path(place).rglob("*.spool")]
        mine = []
        for path in others:
            with suppress(OSError):  # another test's, which is removed just now
                if any(map(path.read_bytes().__contains__, names)):
                    mine.append(path)
        return [*support.spool_files(), *mine]

    def kill_all(self) -> None:
        """Whatever happened, nobody is left."""
        self.disk.heal()
        for _ in range(20):
            left = support.processes(os.environ["XDG_RUNTIME_DIR"])
            for pid in left:
                _signal(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.1)
        for each in [*self.programs, *self.runs]:
            each.kill()
            each.wait()
        for name in support.runtime_files():
            (Path(os.environ["XDG_RUNTIME_DIR"]) / name).unlink(missing_ok=True)

    def verdict(self) -> Verdict:
        """What the judge finds."""
        return judge(support.rotated(self.path), self.sent(), spool=self.spooled())

    def most_consumers(self) -> int:
        """How many there can have been: each begins the order anew."""
        ended = sum(n for each, n in self.counts.items() if "consumer" in each)
        return (
            ended
            + self.counts["EMFILE"]
            + 2 * (len(self.programs) + len(self.runs))
            + 5
        )

    def wrong(self, verdict: Verdict) -> list[str]:
        """Every promise that was not kept."""
        found = []
        try:
            # What waited in the spool of a consumer that could not open the file stands
            # after what its workers sent to another one meanwhile.
            ordered = not (self.scene == "starters" and self.disk_failed)
            verdict.require(complete=not self.spool_full, ordered=ordered)
        except AssertionError as error:
            found.append(str(error))
        lines = support.lines(*support.rotated(self.path))
        back = list(goes_back(lines))
        if len(back) > self.most_consumers():
            found.append(f"{len(back)} times back in time: {lines[back[0]][:300]!r}")
        self.causes = check_causes(lines)
        found += self.causes.wrong[:5]
        if self.scene == "alone" and verdict.late:
            found.append(f"{verdict.late} late, though one process alone logged")
        found += [
            f"foreign bytes in {own}: {own.read_bytes()[:200]!r}"
            for own in (self.folder / "own").iterdir()
            if own.read_bytes() not in (b"", producer.OWN)
        ]
        unended = [
            each.returncode
            for each in self.programs
            if each.returncode not in (0, -signal.SIGKILL)
        ]
        if unended:
            found.append(f"producers ended with {unended}")
        errors = [each.read_text() for each in self.folder.glob("stderr.*")]
        found += [text[-2000:] for text in errors if "Traceback" in text]
        left = support.runtime_files()
        if left and not self.sockets_may_stay:
            found.append(f"left behind: {left}")
        return found


def consumers() -> Iterator[int]:
    """The consumers of this test, whatever runtime directory below its own they have."""
    mark = f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            line = Path(f"/proc/{name}/cmdline").read_bytes()
            if b"logagg.consumer.consumer" not in line or line.startswith(b"/bin/sh"):
                continue
            if mark in Path(f"/proc/{name}/environ").read_bytes() and support.alive(
                int(name)
            ):
                yield int(name)


def has_children(pid: int) -> bool:
    """Whether a process has children: a supervisor that has begun."""
    try:
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    except OSError:
        return False


def settled() -> None:
    """Wait until no consumer is left."""
    support.wait_until(lambda: not list(consumers()), 120, "the consumers' end")


def acknowledged() -> dict[int, int] | None:
    """The seq up to which each attached worker's records are written, by its pid.

    None when not each consumer answers.
    """
    found: dict[int, int] = {}
    base = os.environ["XDG_RUNTIME_DIR"]
    for runtime in (base, f"{base}/0", f"{base}/1"):
        os.environ["XDG_RUNTIME_DIR"] = runtime
        try:
            for path in paths.listening():
                for each in status(path)["workers"]:
                    found[each["pid"]] = each["acknowledged"]
        except (ConsumerGone, OSError):
            return None
        finally:
            os.environ["XDG_RUNTIME_DIR"] = base
    return found


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def play(made: Round, length: float, totals: collections.Counter[str]) -> list[str]:
    """Play a round; return what is wrong. Then its files stay."""
    try:
        made.begin()
        made.harm_until(time.monotonic() + length)
        made.end()
        verdict = made.verdict()
        totals.update(made.counts)
        totals["rounds"] += 1
        totals["records"] += sum(each.returned for each in made.sent())
        totals["counted as dropped"] += sum(verdict.dropped.values())
        totals["lost"] += sum(map(len, verdict.missing.values()))
        totals["uncounted"] += sum(map(abs, verdict.uncounted.values()))
        totals["twice"] += len(verdict.duplicates)
        totals["foreign"] += len(verdict.strangers) + len(verdict.broken)
        totals["late"] += verdict.late
        wrong = made.wrong(verdict)
        totals["causes"] += made.causes.pairs
        totals["causes in another process"] += made.causes.crossed
        totals["effects first, as the file shows"] += made.causes.excused
    except AssertionError as error:
        wrong = [repr(error)]
    finally:
        made.kill_all()
    if wrong:
        return [f"{made.scene} in {made.folder}", *wrong, *made.done]
    shutil.rmtree(made.folder)
    return []


@pytest.mark.leaves_files  # where a supervisor was killed
@pytest.mark.timeout(86_400)
def test_random_faults_lose_nothing(request: Any, tmp_path: Path) -> None:
    """See above; the seed is printed, and another one each time with `--soak`."""
    seconds = request.config.getoption("--soak")
    seed = support.fault_seed(seconds)
    seconds = seconds or 45.0
    print(f"faults for {seconds} s with seed {seed}")
    chance = random.Random(seed)
    (shared := Path(tempfile.mkdtemp(prefix="lgs-", dir="/tmp"))).chmod(0o755)
    disk = faults.Disk(shared)
    os.chmod(shared / "faults", 0o644)
    totals: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + seconds
    scenes: list[str] = []
    wrong: list[str] = []
    try:
        while time.monotonic() < until:
            if not scenes:
                scenes = chance.sample(SCENES, len(SCENES))
            scene = scenes.pop()
            if scene == "dropped" and os.getuid():
                continue
            made = Round(scene, chance, disk)
            found = play(made, chance.uniform(2, 8), totals)
            print(
                f"{scene}: {dict(made.counts)}, {totals['records']} in all", flush=True
            )
            if found:
                print(*found, sep="\n  ", flush=True)
                wrong += found
    finally:
        print(dict(totals))
        shutil.rmtree(shared, ignore_errors=True)
    assert not wrong, "\n".join(wrong)
