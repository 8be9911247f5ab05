"""One worker's lines in the order of their seqs, each once, everything counted."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from support import wire_line

from logagg.core.line import seq_of
from logagg.core.sequence import Sequence

START = 1_795_568_400 * 1_000_000_000


def line(seq, filling=b"m"):
    """The wire line with a seq."""
    return wire_line(START + seq, seq, body=b'"message":"%b"' % filling)


def seqs(lines):
    return [seq_of(each) for each in lines]


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(0, 40))
def test_split_gives_whole_lines_however_the_bytes_are_cut(cuts, count):
    """A chunk's end may be anywhere: whole lines come out, the rest waits."""
    data = b"".join(line(n) + b"\n" for n in range(1, count + 1)) + b"a torn end"
    sequence = Sequence()
    found = []
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(places):
        found += sequence.split(data[start:end])

    assert found == [line(n) for n in range(1, count + 1)]
    assert sequence.tail == b"a torn end"


@given(st.lists(st.sets(st.integers(1, 30)).map(sorted), max_size=4))
def test_ways_with_holes_and_repeats_are_counted_exactly(ways):
    """What comes again is dropped, what never comes is lost, and both are counted."""
    sequence = Sequence()
    out = []
    for way in ways:
        rest = [line(n) for n in way]
        while rest:
            chosen, rest = sequence.accept(rest)
            out += chosen
            if rest:
                sequence.give_up_before(seq_of(rest[0]))

    assert seqs(out) == sorted(set(seqs(out)))
    assert sequence.accepted == len(out)
    assert sequence.accepted + sequence.duplicates == sum(map(len, ways))
    assert sequence.lost == sequence.expected - 1 - len(out)
    assert sequence.damaged == 0


@given(st.lists(st.one_of(st.none(), st.binary(max_size=30)), max_size=20))
def test_garbage_between_lines_is_counted_and_the_lines_go_on(pieces):
    """Junk costs nothing but itself, wherever it stands."""
    sequence = Sequence()
    lines, expected, junk = [], 0, 0
    for piece in pieces:
        if piece is None:
            expected += 1
            lines.append(line(expected))
        else:
            junk += 1
            lines.append(piece.replace(b"\n", b""))

    chosen, behind = sequence.accept(lines)

    assert seqs(chosen) == list(range(1, expected + 1))
    assert behind == []
    assert sequence.damaged == junk


def test_an_announced_torn_line_is_dropped_and_its_whole_is_taken():
    """The piece in the pipe is not the record; the record comes by another way.

    Wherever it was cut, also before its seq; a later piece without a word is damage.
    """
    for size in range(1, len(line(2))):
        sequence = Sequence()
        sequence.torn.add(2)

        chosen, _ = sequence.accept([line(1), line(2)[:size]])
        whole, _ = sequence.accept([line(2)])

        assert seqs(chosen + whole) == [1, 2]
        assert whole == [line(2)]
        assert sequence.damaged == 0
        assert sequence.torn == set()
        sequence.accept([line(3)[:20]])
        assert sequence.damaged == 1


def test_a_forgiven_hole_is_no_loss():
    """What an earlier consumer has written is not counted as lost."""
    sequence = Sequence()
    sequence.excuse(3, 5)

    sequence.give_up_before(8)

    assert sequence.lost == 4
    assert sequence.expected == 8


def test_the_rest_of_a_line_is_no_damage_if_the_whole_of_it_came_another_way():
    """Also where its start, with the seq, went to an earlier consumer."""
    for tail, torn in ((line(2)[:-3], set()), (b"xx", {3}), (line(3)[:-3], {3})):
        sequence = Sequence()
        sequence.accept([line(1), line(2)], pipe=False)
        sequence.torn |= torn
        sequence.split(tail)
        sequence.end()
        assert sequence.damaged == 0


def test_a_line_left_open_at_the_end_is_torn():
    """Half a line behind the last newline is counted when its worker is gone."""
    sequence = Sequence()
    sequence.split(line(1)[:30])

    sequence.end()
    sequence.end()

    assert sequence.damaged == 1
