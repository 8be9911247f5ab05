"""One condition on one record, and the bytes that decide most lines. Pure.

Three forms of a condition must never disagree: `test(record)` decides; a line without
any of `required_bytes` fails it; a line that is `definite` passes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from logagg.core import levels
from logagg.core.line import LEVEL_START
from logagg.filters import prefilter, regex
from logagg.filters.fields import ORDER, Record, lookup, texts, value_test
from logagg.filters.grammar import Term
from logagg.filters.prefilter import ByteFilter, Definite, Search

_PLAIN = re.compile(r"[ !#-\[\]-~]*")  # printable ASCII that JSON need not escape


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that must hold, or, when `negated`, must not.

    Attributes:
        test: Decides on a record, negation not counted.
        required_bytes: A line without any of these fails `test`; () if unknown.
        fold: They are lower case and the line's case is ignored.
        negated: The record matches when `test` is false.
        search: A search for lines that may pass, better than that for the bytes.
        definite: True only for wire lines that pass; unused when negated.
    """

    test: Callable[[Record], bool]
    required_bytes: tuple[bytes, ...] = ()
    fold: bool = False
    negated: bool = False
    search: Search | None = None
    definite: Definite | None = None

    def byte_filter(self) -> ByteFilter | None:
        """The filter of lines that fail `test`, or None when there is none."""
        if not self.required_bytes:
            return None
        return ByteFilter.of(self.required_bytes, fold=self.fold)


def grep(patterns: Sequence[regex.Pattern], *, negated: bool) -> Condition:
    """Any of the patterns occurs in the record's texts (or none, when negated)."""

    def test(record: Record) -> bool:
        return any(p.search(text) for text in texts(record) for p in patterns)

    # `texts` joins "type: message", which no line holds as it stands.
    literals = [
        max(re.split(": |:$|^ ", p.literal), key=len) if p.literal else ""
        for p in patterns
    ]
    fold = any(p.ignore_case for p in patterns)
    if not all(literals):
        return Condition(test, negated=negated)
    required = tuple((s.lower() if fold else s).encode() for s in literals)
    return Condition(test, required, fold, negated)


def from_workers(names: Sequence[str]) -> Condition:
    """The record is of one of these workers, by number, process name, or pid."""
    wanted = frozenset(names)

    def test(record: Record) -> bool:
        return any(
            isinstance(value, (str, int)) and str(value) in wanted
            for value in map(record.get, ("worker", "process", "pid"))
        )

    if not all(map(_PLAIN.fullmatch, wanted)):
        return Condition(test)
    # With the key, as "2" alone is in every timestamp. Wire lines, the only ones that
    # bytes decide, have no white space around colons.
    shapes = ('"worker":"{}"', '"process":"{}"', '"worker":{}', '"pid":{}')
    required = [s.format(name).encode() for name in sorted(wanted) for s in shapes]
    heads = tuple(
        f'{level}","worker":"{name}","seq":'.encode()
        for level in levels.STANDARD
        for name in sorted(wanted)
    )
    return Condition(
        test,
        tuple(required),
        definite=lambda line: line.startswith(heads, LEVEL_START),
    )


def alternatives(terms: Sequence[Term]) -> Condition:
    """Any of these `=` terms, which are all on the same key."""
    key = terms[0].key
    tests = [value_test(term) for term in terms]
    name = _name_bytes(key)
    values = [_value_bytes(term) for term in terms]
    required = tuple(v for v in values if v) if all(values) else (name,) if name else ()

    def test(record: Record) -> bool:
        value = lookup(record, key)
        return any(each(value) for each in tests)

    search: Search | None = None
    definite: Definite | None = None
    if _is_top_level(key):
        wanted = frozenset(term.number for term in terms) - {None}
        if wanted:
            search = prefilter.number_search(key.encode(), wanted.__contains__)
            definite = prefilter.definite_number(key.encode(), wanted.__contains__)
        elif required and key != "logger":
            texts_wanted = [term.value.encode() for term in terms]
            definite = prefilter.definite_text(key.encode(), texts_wanted)
    return Condition(test, required, search=search, definite=definite)


def single(term: Term) -> Condition:
    """One term of any operator."""
    test = value_test(term)
    required = _value_bytes(term) if term.op == "=" else None
    required = required or _name_bytes(term.key)

    def decide(record: Record) -> bool:
        return test(lookup(record, term.key))

    search: Search | None = None
    definite: Definite | None = None
    number, compare = term.number, ORDER.get(term.op)
    ordered = number is not None and compare is not None and not term.negated
    if ordered and _is_top_level(term.key):

        def accepts(value: int) -> bool:
            return compare is not None and compare(value, number)

        search = prefilter.number_search(term.key.encode(), accepts)
        definite = prefilter.definite_number(term.key.encode(), accepts)
    return Condition(
        decide,
        (required,) if required else (),
        negated=term.negated,
        search=search,
        definite=definite,
    )


def all_of(terms: Iterable[Term]) -> list[Condition]:
    """The conditions of these terms: `=` on one key are alternatives, the rest all."""
    conditions: list[Condition] = []
    equals: dict[str, list[Term]] = {}
    for term in terms:
        if term.op == "=" and not term.negated:
            equals.setdefault(term.key, []).append(term)
        else:
            conditions.append(single(term))
    return [*map(alternatives, equals.values()), *conditions]


def level_test(term: Term) -> levels.Test:
    """A term on `level`, as a test of a level's name and number, negation counted.

    `=` and the comparisons go by severity where the name or number on the right is
    known; an unknown name is compared as text.

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
        pattern = regex.build(term.value)
        wanted = term.op == "~"
        return lambda name, _: name is not None and pattern.search(name) is wanted
    if term.op in ("=", "!="):
        same = term.op == "="
        word = term.value.lower()
        if word in levels.NUMBERS or term.number is not None:
            exact = levels.number_of(word) if word in levels.NUMBERS else term.number
            return lambda name, number: name is not None and (number == exact) is same
        return lambda name, _: name is not None and (name.lower() == word) is same
    bound = levels.number_of(term.value) if term.number is None else term.number
    compare = ORDER[term.op]
    return lambda _, number: number is not None and compare(number, bound)


def _is_top_level(key: str) -> bool:
    """Whether a key can only be the name of a field of the record itself."""
    return "." not in key and _PLAIN.fullmatch(key) is not None


def _name_bytes(key: str) -> bytes | None:
    """The bytes of a line with this field: the end of its innermost name."""
    name = key.rpartition(".")[2] + '"'
    if key.find(".") == -1:
        name = '"' + name
    return name.encode() if _PLAIN.fullmatch(name.replace('"', "")) else None


def _value_bytes(term: Term) -> bytes | None:
    """The bytes of a line with a field that equals this text; None if unknown."""
    if not _PLAIN.fullmatch(term.value):
        return None
    if term.key == "logger":
        return f'"{term.value}'.encode()
    if term.number is not None:
        return None
    if not term.quoted and term.value in ("true", "false", "null"):
        return term.value.encode()
    return f'"{term.value}"'.encode()
