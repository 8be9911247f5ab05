"""The merge as a model: processes, pipes and cycles, one step at a time."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from support import wire_line

from logagg.core import merge
from logagg.core.line import PREFIX, key_ns, key_of, prefix_tail, seq_of
from logagg.core.merge import LATE_MARK, MAX_WINDOW_NS, MIN_WINDOW_NS, Merger

START = 1_795_568_400 * 1_000_000_000
TICK = 3_000_000  # a step takes 3 ms, so the window spans a few steps and not all


def line_at(now_ns, worker, seq):
    """A wire line that is stamped so."""
    return wire_line(now_ns, seq, worker=str(worker))


class World:
    """Processes with pipes, and a consumer whose cycle can be stopped at any point.

    A process stamps a line, and only a later step writes it; in between it may be
    suspended for as long as it pleases. Pipes are read one by one, whole or in part.
    """

    def __init__(self, workers):
        self.now = START
        self.merger = Merger()
        self.pipes = [deque() for _ in range(workers)]
        self.stamped = [None] * workers
        self.seqs = [0] * workers
        self.stamps = {}  # line → when it was stamped
        self.writes = {}  # line → when its write was done
        self.out = []
        self.flushing = False
        self._cycle = None

    def flush(self, flushing):
        """All processes begin, or end, to wait in a flush; other threads go on."""
        self.flushing = bool(flushing % 2)

    def act(self, worker):
        """Let a process do its next step: take its time, or write."""
        self.now += TICK
        if self.stamped[worker] is None:
            self.seqs[worker] += 1
            line = line_at(self.now, worker, self.seqs[worker])
            self.stamps[line] = self.now
            self.stamped[worker] = line
        else:
            line = self.stamped[worker]
            self.stamped[worker] = None
            self.pipes[worker].append(line)
            self.writes[line] = self.now

    def consume(self, limit):
        """Let the consumer do its next step: begin, read one pipe, or release."""
        self.now += TICK
        if self._cycle is None:
            self._cycle = (self.now, deque(range(len(self.pipes))))
            return
        started, unread = self._cycle
        if unread:
            pipe = self.pipes[unread.popleft()]
            taken = [pipe.popleft() for _ in range(min(limit, len(pipe)))]
            self.merger.add(taken, drained=not pipe)
            return
        self.out += self.merger.release(started, flushing=self.flushing)
        self._cycle = None

    def finish(self):
        """Everybody writes what is stamped and leaves; the consumer takes it all."""
        for worker, line in enumerate(self.stamped):
            if line is not None:
                self.act(worker)
        while self._cycle is not None or any(self.pipes):
            self.consume(1000)
        self.out += self.merger.release(self.now + TICK, all_ended=True)


steps = st.lists(
    st.one_of(
        st.integers(0, 3).map(lambda worker: ("act", worker)),
        st.integers(1, 4).map(lambda limit: ("consume", limit)),
        st.integers(0, 1).map(lambda flushing: ("flush", flushing)),
    ),
    max_size=200,
)


def play(script):
    """Run a script to its end and return the world."""
    world = World(4)
    for what, argument in script:
        getattr(world, what)(argument)
    world.finish()
    return world


def bare(line):
    return line.removesuffix(LATE_MARK)


@given(steps)
def test_every_line_comes_out_once(script):
    """The merge neither loses nor doubles a line, whatever the schedule."""
    world = play(script)

    assert sorted(map(bare, world.out)) == sorted(world.writes)
    assert len(world.merger) == 0


@given(steps)
def test_time_never_goes_back_but_in_lines_marked_late(script):
    """Unmarked lines rise from first to last; marked ones are counted."""
    world = play(script)

    keys = [key_of(line) for line in world.out if not line.endswith(LATE_MARK)]
    assert keys == sorted(keys)
    late = [line for line in world.out if line.endswith(LATE_MARK)]
    assert len(late) == world.merger.late


@given(steps)
def test_a_late_line_really_came_too_late(script):
    """A line is only marked late when something later had been let out before it."""
    world = play(script)

    newest = b""
    for line in world.out:
        if line.endswith(LATE_MARK):
            assert key_of(line) < newest
        newest = max(newest, key_of(line))


@given(steps)
def test_a_worker_keeps_its_own_order(script):
    """The lines of one worker come out in the order of its calls, late or not."""
    world = play(script)

    for worker in range(4):
        head = prefix_tail("info", str(worker))
        seqs = [seq_of(line) for line in world.out if head in line]
        assert seqs == sorted(seqs)


@given(steps)
def test_an_effect_never_stands_before_its_cause(script):
    """What was written before another line's stamp stands before that line."""
    world = play(script)

    place = {bare(line): index for index, line in enumerate(world.out)}
    for cause, written in world.writes.items():
        for effect, stamped in world.stamps.items():
            if written < stamped:
                assert place[cause] < place[effect]


@given(steps)
def test_what_sorts_before_released_before_is_out(script):
    """After a release, everything added that sorts before `released_before` is out."""
    world = World(4)
    for what, argument in script:
        getattr(world, what)(argument)
        out = set(map(bare, world.out))
        in_pipes = {line for pipe in world.pipes for line in pipe}
        if world._cycle is None:
            for line in world.writes:
                if line not in in_pipes and key_of(line) < world.merger.released_before:
                    assert line in out


def test_nothing_waits_longer_than_the_window():
    """A line of a quiet machine is out one window after its stamp."""
    merger = Merger()
    merger.add([line_at(START, 1, 1)], drained=True)

    assert merger.release(START + merger.window_ns - 1) == []
    assert len(merger.release(START + MAX_WINDOW_NS + 1)) == 1


def test_a_pipe_that_was_not_read_empty_holds_back_what_may_follow():
    """Lines of others wait while a pipe still has lines that may precede them."""
    merger = Merger()
    merger.add([line_at(START + 5, 1, 1)], drained=False)
    merger.add([line_at(START + 7, 2, 1)], drained=True)

    out = merger.release(START + 10**12)

    assert [key_ns(line) for line in out] == []
    merger.add([line_at(START + 6, 1, 2)], drained=True)
    out = merger.release(START + 10**12)
    assert [key_ns(line) - START for line in out] == [5, 6, 7]


def test_the_window_widens_on_a_loaded_machine_and_narrows_again():
    """It follows the delays that were seen, within its two bounds."""
    merger = Merger()

    merger.observe(line_at(START, 1, 1), START + 100_000_000)
    assert merger.window_ns == 200_000_000
    merger.observe(line_at(START, 1, 1), START + 10**12)
    assert merger.window_ns == MAX_WINDOW_NS
    for cycle in range(10_000):
        merger.release(START + cycle)
    assert merger.window_ns == MIN_WINDOW_NS


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.lists(st.integers(0, 1000), max_size=8),
    st.lists(st.integers(2000, 3000), max_size=8),
)
def test_foreign_lines_are_removed(junk, good, future):
    """Garbage is taken out; the future's lines are out at once, marked; others stay."""
    merger = Merger()
    junk = [each for each in junk if not each.startswith(PREFIX)]
    right = [line_at(START + n, 1, n) for n in good]
    early = [line_at(START + n, 1, n) for n in future]
    merger.add(junk + early + right, drained=True)

    found = merger.reject_foreign(START + 1500)

    assert sorted(found) == sorted(junk)
    assert merger.release(0) == [line + LATE_MARK for line in sorted(early)]
    assert merger.late == len(early)
    assert merger.release(0, all_ended=True) == sorted(right), "judged by no early one"


def test_a_flush_waits_for_no_window():
    """What was stamped before the reading is out at once, and nothing after it."""
    merger = Merger()
    merger.add([line_at(START + n, 1, n + 1) for n in range(10)], drained=True)

    out = merger.release(START + 5, flushing=True)

    assert [seq_of(line) for line in out] == [1, 2, 3, 4, 5]
    assert merger.release(START + 5) == []


def test_a_merge_is_full_by_what_it_still_holds(monkeypatch):
    """What was released no longer counts, whatever it was said to take."""
    monkeypatch.setattr(merge, "MAX_PENDING_BYTES", 900)
    merger = Merger()
    lines = [line_at(START + n, 1, n + 1) for n in range(10)]
    for line in lines:
        merger.add([line], drained=True, size_bytes=len(line))
    assert merger.full
    merger.release(START + 8, flushing=True)
    assert not merger.full
    merger.release(START + 100, flushing=True)
    merger.add(lines[:1], drained=True, size_bytes=800)
    assert not merger.full


def test_a_flush_leaves_effects_after_their_causes():
    """Its other thread logs a cause into a pipe that was read already, then an effect."""
    world = World(2)
    world.flush(1)
    world.consume(9)  # a cycle begins
    world.consume(9)  # the first pipe is read
    world.act(0)
    world.act(0)  # the cause is written
    world.act(1)
    world.act(1)  # and then the effect is stamped
    for _ in range(10):
        world.consume(9)

    assert [seq_of(line) for line in world.out] == [1, 1]
    assert list(map(bare, world.out)) == sorted(world.writes)
    assert world.merger.late == 0
