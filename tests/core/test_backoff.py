"""The one back-off: waits double up to a cap, and only what never worked is given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from logagg.core.backoff import Backoff
from logagg.supervisor.slots.slot import restart_backoff


@given(st.integers(1, 10**9), st.integers(1, 60))
def test_waits_double_up_to_the_cap(first: int, most_factor: int) -> None:
    """Without jitter the n-th wait is exactly the least of first·2ⁿ and the cap."""
    backoff = Backoff(first, first * most_factor)
    for number in range(40):
        wait = backoff.failed(100)
        assert wait == min(first * 2**number, first * most_factor)
        assert backoff.due_at == 100 + wait
    assert isinstance(wait, int), "nanoseconds stay integers"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 2))
def test_jitter_stays_in_its_range(chance: float, low: float, high: float) -> None:
    """Whatever the random number, the wait is within the range around the ceiling."""
    wait = Backoff(2.0, 60.0, jitter=(low, high)).failed(0.0, chance)
    assert 2.0 * low <= wait <= 2.0 * high * (1 + 1e-9)


def test_a_success_starts_anew() -> None:
    """After `reset` the waits begin small again, and the next try is due at once."""
    backoff = Backoff(1.0, 8.0)
    assert [backoff.failed(0.0) for _ in range(5)] == [1, 2, 4, 8, 8]
    backoff.reset()
    assert (backoff.due_at, backoff.failures) == (0, 0)
    assert backoff.failed(0.0) == 1


def test_only_failures_before_ready_exhaust() -> None:
    """Five within 60 s do; five in longer time, or after ready, never."""
    early, slow, late = (restart_backoff() for _ in range(3))
    for n in range(5):
        assert not early.exhausted
        early.failed(n * 10.0, uptime=1, ready=False)
        slow.failed(n * 16.0, uptime=1, ready=False)
        late.failed(n * 1.0, uptime=1, ready=True)
    assert early.exhausted
    assert not slow.exhausted
    assert not late.exhausted


def test_failures_of_the_system_do_not_exhaust() -> None:
    """Without `ready` a failure only makes the waits longer."""
    backoff = Backoff(1.0, 8.0, limit=2, window=60.0)
    for _ in range(10):
        backoff.failed(0.0)
    assert not backoff.exhausted


def test_the_waits_of_a_slot() -> None:
    """0.5 s, doubled, at most 30 s, ±10 %; a good run of 30 s starts anew."""
    backoff = restart_backoff()
    delays = [backoff.failed(n * 100.0, 1.0, uptime=1, ready=True) for n in range(9)]
    for delay, wanted in zip(delays, [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert wanted <= delay <= wanted * 1.1 + 1e-9
    assert backoff.failed(1000.0, uptime=31, ready=True) < 0.6
