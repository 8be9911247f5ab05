"""One condition on one record, and the bytes that tell most lines apart. Pure.

Each condition has two faces that must never disagree: `test(record)` decides; `needles`
are byte strings of which a line must contain at least one for `test` to be true. They
may let a line through that `test` then refuses, never the other way round, whichever
JSON writer made the line: a writer may escape a character (`\\u0061`), so a line with
`\\u` in it (or `\\/`, where a needle has a slash) is let through as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from logagg.view import levels, numbers, patterns
from logagg.view.grammar import Term

Record = Mapping[str, Any]
_ABSENT = object()
_PLAIN = re.compile(r"[ !#-\[\]-~]*")  # printable ASCII that JSON need not escape


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that must hold, or, when `negated`, must not.

    Attributes:
        test: Decides on a record, negation not counted.
        needles: A line without any of these fails `test`; () when nothing is known.
        fold: The needles are lower case and the line's case does not count.
        negated: The record matches when `test` is false.
        search: Finds the lines of a chunk that may pass, better than needles could.
        sure: True only for wire lines that surely pass `test`, told without parsing;
            never asked of a negated condition.
    """

    test: Callable[[Record], bool]
    needles: tuple[bytes, ...] = ()
    fold: bool = False
    negated: bool = False
    search: numbers.Search | None = None
    sure: Callable[[bytes], bool] | None = None

    def screen(self) -> Screen | None:
        """What tells lines that surely fail `test`, or None when nothing does."""
        return screen(self.needles, fold=self.fold) if self.needles else None


@dataclass(frozen=True, slots=True)
class Screen:
    """Bytes of which every line that can match holds at least one.

    Attributes:
        needles: The bytes.
        escapes: What another JSON writer could have put for a part of them.
        fold: Look for them in the line's lower case.
        odd: Characters beyond ASCII that equal one in a needle when case does not count.
    """

    needles: tuple[bytes, ...]
    escapes: re.Pattern[bytes]
    fold: bool
    odd: tuple[bytes, ...]

    def may_hold(self, line: bytes) -> bool:
        """False only for a line that surely does not match."""
        if self.fold:
            line = line.lower()
        needles = self.needles if line.isascii() else (*self.needles, *self.odd)
        for needle in needles:  # a loop: `any` costs more than a few searches
            if needle in line:
                return True
        return b"\\" in line and self.escapes.search(line) is not None

    def filter(self, lines: list[bytes]) -> list[bytes]:
        """The lines that may match."""
        if len(self.needles) == 1 and not self.fold:
            (needle,), escaped = self.needles, self.escapes.search
            return [
                line
                for line in lines
                if needle in line or (b"\\" in line and escaped(line))
            ]
        return [line for line in lines if self.may_hold(line)]

    def find(self, data: bytes, most: int) -> list[bytes] | None:
        """The lines of NDJSON that may match, in order, without their newlines.

        Costs next to nothing per line passed over but much per line found, so it gives
        up with None after `most` lines.
        """
        hay = data.lower() if self.fold else data  # of the same length: ASCII only
        starts: dict[int, int] = {}
        needles = self.needles if hay.isascii() else (*self.needles, *self.odd)
        for needle in needles:
            place = hay.find(needle)
            while place != -1:
                end = numbers.take_line(data, place, starts)
                if len(starts) > most:
                    return None
                place = hay.find(needle, end)
        found = self.escapes.search(hay)
        while found is not None:
            end = numbers.take_line(data, found.start(), starts)
            if len(starts) > most:
                return None
            found = self.escapes.search(hay, end)
        return [data[start : starts[start]] for start in sorted(starts)]


# Beyond ASCII, the only characters that equal an ASCII letter when case does not count.
_FOLDS = {b"k": "\u212a", b"s": "\u017f", b"i": "\u0130\u0131"}


def screen(needles: tuple[bytes, ...], *, fold: bool = False) -> Screen:
    """Make a screen, with what another JSON writer could have put for a needle."""
    slash = any(b"/" in needle for needle in needles)
    odd = tuple(
        other.encode()
        for letter, others in _FOLDS.items()
        if fold and any(letter in needle for needle in needles)
        for other in others
    )
    # A class of characters is searched for three times as fast as two characters.
    escapes = re.compile(rb"\\[u/]" if slash else rb"\\[u]")
    return Screen(needles, escapes, fold, odd)


def lookup(record: Any, key: str) -> Any:
    """The field that a key names, or a private mark when there is none.

    A field whose name is the whole key comes first, then the dots are tried as steps
    into nested objects.
    """
    if not isinstance(record, Mapping):
        return _ABSENT
    if key in record:
        return record[key]
    place = key.find(".")
    while place != -1:
        head = key[:place]
        if head in record:
            found = lookup(record[head], key[place + 1 :])
            if found is not _ABSENT:
                return found
        place = key.find(".", place + 1)
    return _ABSENT


def present(value: Any) -> bool:
    """Whether `lookup` found something."""
    return value is not _ABSENT


def texts(record: Record) -> Iterator[str]:
    """The texts that `--grep` searches: the message and all of the exception's."""
    message = record.get("message")
    if isinstance(message, str):
        yield message
    elif message is not None:
        yield _json(message)
    pending = [record.get("exception")]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            kind, words = item.get("type"), item.get("message")
            if isinstance(kind, str) and isinstance(words, str):
                yield f"{kind}: {words}"
            pending += [value for key, value in item.items() if key != "type"]
            if isinstance(kind, str):
                yield kind
        elif isinstance(item, list):
            pending += item


def grep(found: Sequence[patterns.Pattern], *, negated: bool) -> Condition:
    """Any of the patterns occurs in the record's texts (or none, when negated)."""

    def test(record: Record) -> bool:
        return any(p.search(text) for text in texts(record) for p in found)

    # "type: message" is put together here and so is in no line as it stands.
    literals = [
        max(re.split(": |:$|^ ", p.literal), key=len) if p.literal else ""
        for p in found
    ]
    fold = any(p.ignore_case for p in found)
    if not all(literals):
        return Condition(test, negated=negated)
    needles = tuple((s.lower() if fold else s).encode() for s in literals)
    return Condition(test, needles, fold, negated)


def who(names: Sequence[str]) -> Condition:
    """The record is of one of these workers, by number, process name, or pid."""
    wanted = frozenset(names)

    def test(record: Record) -> bool:
        return any(
            isinstance(value, (str, int)) and str(value) in wanted
            for value in map(record.get, ("worker", "process", "pid"))
        )

    if all(map(_PLAIN.fullmatch, wanted)):
        # With the key, as "2" alone is in every timestamp. That is safe: needles are
        # asked of wire lines only, and those have no white space around colons.
        shapes = ('"worker":"{}"', '"process":"{}"', '"worker":{}', '"pid":{}')
        needles = [s.format(name).encode() for name in sorted(wanted) for s in shapes]
        heads = tuple(
            f'{level}","worker":"{name}","seq":'.encode()
            for level in levels.STANDARD
            for name in sorted(wanted)
        )
        return Condition(test, tuple(needles), sure=lambda x: x.startswith(heads, 55))
    return Condition(test)


def alternatives(terms: Sequence[Term]) -> Condition:
    """Any of these `=` terms, which are all on the same key."""
    tests = [_test(term) for term in terms]
    key = _key_needle(terms[0].key)
    values = [_value_needle(term) for term in terms]
    needles = tuple(v for v in values if v) if all(values) else (key,) if key else ()

    def test(record: Record) -> bool:
        value = lookup(record, terms[0].key)
        return any(each(value) for each in tests)

    search, sure = None, None
    if _is_plain(terms[0].key):
        name = terms[0].key.encode()
        wanted = frozenset(term.number for term in terms) - {None}
        if wanted:
            search = numbers.search(name, wanted.__contains__)
            sure = numbers.sure(name, wanted.__contains__)
        elif needles and terms[0].key != "logger":
            sure = _text_sure(name, [term.value.encode() for term in terms])
    return Condition(test, needles, search=search, sure=sure)


def _is_plain(key: str) -> bool:
    """Whether a key can only be the name of a field of the record itself."""
    return "." not in key and _PLAIN.fullmatch(key) is not None


def _text_sure(name: bytes, values: Sequence[bytes]) -> Callable[[bytes], bool]:
    """Says of a flat wire line that its field of this name is one of these texts."""
    fields = [b'"%b":"%b"' % (name, value) for value in values]
    named = b'"%b"' % name

    def sure(line: bytes) -> bool:
        if not numbers.is_flat(line):
            return False
        return line.count(named) == 1 and any(field in line for field in fields)

    return sure


def single(term: Term) -> Condition:
    """One term of any operator."""
    test = _test(term)
    needle = _value_needle(term) if term.op == "=" else None
    needle = needle or _key_needle(term.key)

    def decide(record: Record) -> bool:
        return test(lookup(record, term.key))

    search, sure = None, None
    number, compare = term.number, _ORDER.get(term.op)
    ordered = number is not None and compare is not None and not term.negated
    if ordered and _is_plain(term.key):

        def accepts(value: int) -> bool:
            return compare is not None and compare(value, number)

        search = numbers.search(term.key.encode(), accepts)
        sure = numbers.sure(term.key.encode(), accepts)
    needles = (needle,) if needle else ()
    return Condition(decide, needles, negated=term.negated, search=search, sure=sure)


def level_test(term: Term) -> levels.Test:
    """A term on `level`, as a test of a level's name and number, negation counted.

    `=` and the comparisons go by severity where the name or number on the right is
    known; a name that is not known is compared as text.

    Raises:
        ConfigError: `<` or `>` with a name that is not a level.
    """
    positive = _level_test(term)
    if term.negated:
        return lambda name, number: not positive(name, number)
    return positive


def _level_test(term: Term) -> levels.Test:
    if term.op == "?":
        return lambda name, _: name is not None
    if term.op in ("~", "!~"):
        pattern = patterns.build(term.value)
        wanted = term.op == "~"
        return lambda name, _: name is not None and pattern.search(name) is wanted
    if term.op in ("=", "!="):
        same = term.op == "="
        word = term.value.lower()
        if word in levels.NUMBERS or term.number is not None:
            exact = levels.number_of(word) if word in levels.NUMBERS else term.number
            return lambda name, number: name is not None and (number == exact) is same
        return lambda name, _: name is not None and (name.lower() == word) is same
    number_wanted = term.number
    bound = levels.number_of(term.value) if number_wanted is None else number_wanted
    compare = _ORDER[term.op]
    return lambda _, number: number is not None and compare(number, bound)


_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _test(term: Term) -> Callable[[Any], bool]:
    """A term as a test of a looked-up value; a missing field never passes."""
    if term.op == "?":
        return present
    if term.op in ("=", "!="):
        equal = _under(term.value) if term.key == "logger" else _equal(term)
        if term.op == "=":
            return lambda value: value is not _ABSENT and equal(value)
        return lambda value: value is not _ABSENT and not equal(value)
    if term.op in ("~", "!~"):
        pattern = patterns.build(term.value)
        wanted = term.op == "~"
        return lambda value: value is not _ABSENT and _found(value, pattern) is wanted
    return _ordered(term)


def _under(name: str) -> Callable[[Any], bool]:
    """A logger's name, or one below it, as in Python's own hierarchy."""
    below = name + "."
    return lambda value: (
        isinstance(value, str) and (value == name or value.startswith(below))
    )


def _equal(term: Term) -> Callable[[Any], bool]:
    text, number = term.value, term.number
    word = {"true": True, "false": False, "null": None}.get(
        "" if term.quoted else text, _ABSENT
    )

    def equal(value: Any) -> bool:
        if isinstance(value, str):
            return value == text
        if value is None or isinstance(value, bool):
            return value is word
        if isinstance(value, (int, float)):
            return number is not None and value == number
        return isinstance(value, list) and any(map(equal, value))

    return equal


def _ordered(term: Term) -> Callable[[Any], bool]:
    compare, text, number = _ORDER[term.op], term.value, term.number

    def ordered(value: Any) -> bool:
        if isinstance(value, str):
            if number is None:
                return compare(value, text)
            own = Term("", "", "=", value).number
            return own is not None and compare(own, number)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return number is not None and compare(value, number)
        return isinstance(value, list) and any(map(ordered, value))

    return ordered


def _found(value: Any, pattern: patterns.Pattern) -> bool:
    if isinstance(value, str):
        return pattern.search(value)
    if isinstance(value, list):
        return any(_found(item, pattern) for item in value)
    return pattern.search(_json(value))


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _key_needle(key: str) -> bytes | None:
    """What a line with this field contains: the end of its innermost name."""
    name = key.rpartition(".")[2] + '"'
    if key.find(".") == -1:
        name = '"' + name
    return name.encode() if _PLAIN.fullmatch(name.replace('"', "")) else None


def _value_needle(term: Term) -> bytes | None:
    """What a line contains when a field equals this text; None when unknown."""
    if not _PLAIN.fullmatch(term.value):
        return None
    if term.key == "logger":
        return f'"{term.value}'.encode()
    if term.number is not None:
        return None
    if not term.quoted and term.value in ("true", "false", "null"):
        return term.value.encode()
    return f'"{term.value}"'.encode()


def positives(terms: Iterable[Term]) -> list[Condition]:
    """The conditions of these terms: `=` on one key are alternatives, the rest all."""
    conditions: list[Condition] = []
    equals: dict[str, list[Term]] = {}
    for term in terms:
        if term.op == "=" and not term.negated:
            equals.setdefault(term.key, []).append(term)
        else:
            conditions.append(single(term))
    return [*map(alternatives, equals.values()), *conditions]
