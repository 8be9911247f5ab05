"""Unacknowledged and dropped records: what a new consumer gets and must know."""

from hypothesis import given
from hypothesis import strategies as st
from support import wire_line

from logagg.client.resend_buffer import DropLedger, ResendBuffer
from logagg.core.line import seq_of

START = 1_795_568_400 * 1_000_000_000


def line(seq):
    return wire_line(START + seq, seq, body=b'"message":""') + b"\n"


def append(buffer, *seqs):
    for seq in seqs:
        buffer.open_lines.append(line(seq))
        buffer.open_bytes += len(line(seq))


@given(
    st.lists(st.one_of(st.integers(1, 5), st.integers(-20, -1)), max_size=30),
)
def test_kept_records_are_those_that_are_not_acknowledged(script):
    """Generations go when their last record is safe, never before, in order.

    A positive number seals so many records; a negative one acknowledges some.
    """
    kept = ResendBuffer()
    seq = 0
    safe = 0
    for step in script:
        if step > 0:
            fresh = [line(seq + n) for n in range(1, step + 1)]
            seq += step
            kept.open_lines += fresh
            kept.open_bytes += sum(map(len, fresh))
            kept.seal()
        else:
            safe = max(safe, min(seq, safe - step))
            kept.acknowledge(safe)

    found = [seq_of(each) for each in kept.lines()]
    assert found == list(range(found[0], seq + 1)) if found else safe == seq
    assert not found or found[0] <= safe + 1
    assert kept.sealed_bytes == sum(map(len, kept.lines()))
    file = kept.file()
    if file is None:
        assert not found
    else:
        with open(file, "rb") as opened:
            assert opened.read() == b"".join(kept.lines())


def test_the_newest_line_can_be_taken_out_again():
    """Open or sealed meanwhile: it goes another way, and its bytes with it."""
    buffer = ResendBuffer()
    append(buffer, 1, 2)
    buffer.remove_newest()
    assert [seq_of(each) for each in buffer.open_lines] == [1]
    append(buffer, 3)
    buffer.seal()
    buffer.remove_newest()

    assert [seq_of(each) for each in buffer.lines()] == [1]
    assert buffer.sealed_bytes == len(line(1))


def test_an_empty_buffer_has_no_file():
    """Nothing is passed on for nothing, and what was cleared is gone."""
    buffer = ResendBuffer()
    assert not buffer
    append(buffer, 1)
    assert buffer
    buffer.clear()

    assert not buffer
    assert buffer.file() is None


@given(st.lists(st.booleans(), max_size=60), st.data())
def test_drops_are_counted_on_both_sides_of_any_acknowledgement(dropped, data):
    """`up_to` is what a count by hand gives, also after gaps were forgotten."""
    ledger = DropLedger()
    seqs = [seq for seq, drop in enumerate(dropped, 1) if drop]
    for seq in seqs:
        ledger.add(seq)
    forgotten = data.draw(st.integers(0, len(dropped)))
    acknowledged = data.draw(st.integers(forgotten, len(dropped)))
    ledger.acknowledge(forgotten)

    assert ledger.count == len(seqs)
    assert ledger.up_to(acknowledged) == sum(seq <= acknowledged for seq in seqs)


def test_a_gap_before_the_acknowledged_seq_counts_once_unless_forgotten() -> None:
    """The count up to a seq does not depend on gaps having been forgotten first."""
    ledger = DropLedger()
    ledger.add(1)
    assert ledger.up_to(2) == 1
