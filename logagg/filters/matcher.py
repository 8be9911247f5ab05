"""The filter of `tail`, of sinks and of subscribers: lines or records in, matches out.

Guarantee: for every wire line, `Match.lines` keeps it exactly when `Match.record` is
true for its record. Most lines are decided without parsing:

1. Level and time have fixed places in a wire line: slices are compared.
2. `worker` and `logger` come next: one match of the head, remembered for each pair.
3. For every other condition the line is searched for bytes that a match must contain
   (`logagg.filters.prefilter`). Most lines that do not match end here.
4. In a flat line the bytes also prove that it matches. Most lines that match end here.
5. Only the rest, and lines without the wire's shape, are parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from logagg.core import levels
from logagg.core.line import (
    LEVEL_MARK,
    LEVEL_START,
    MARK,
    TIMESTAMP,
    parse_line,
)
from logagg.core.units import iso_ns, wire_time
from logagg.errors import ConfigError
from logagg.filters import conditions, grammar, regex
from logagg.filters.conditions import Condition
from logagg.filters.grammar import Term
from logagg.filters.prefilter import ByteFilter, head_search

__all__ = ["Match", "compile", "from_message"]

_HEAD = re.compile(rb'([^"\\]*)","worker":"([^"\\]*)","seq":\d+,"logger":"([^"\\]*)"')
_REMEMBERED = 4_096  # pairs of worker and logger; programs have far fewer
_SPARSE = 1_024  # bytes per line found from which searching the whole at once pays
_SKIPPED = 15  # chunks not tried after one in which too many lines were found


class Match:
    """A compiled filter. Make one with `compile`.

    Safe to share: it changes only a cache of its own.

    Attributes:
        everything: There is no condition: all records match.
    """

    def __init__(
        self,
        level_tests: Sequence[levels.Test],
        head: Sequence[Condition],
        others: Sequence[Condition],
        since_ns: int | None,
        until_ns: int | None,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._level_tests = level_tests
        self._head_conditions = head
        self._others = others
        self._all = [*head, *others]
        self._since = wire_time(since_ns) if since_ns is not None else ""
        self._until = wire_time(until_ns) if until_ns is not None else "~"
        self._timed = since_ns is not None or until_ns is not None
        self._accepted, self._rejected = self._level_prefixes()
        self._filters = _byte_filters(c for c in others if not c.negated)
        self._negated_filters = _byte_filters(c for c in others if c.negated)
        self._all_negated = len(self._negated_filters) == len(others)
        definite = [c.definite for c in others if c.definite and not c.negated]
        self._definite = definite if len(definite) == len(others) else []
        self._searches = [c.search for c in others if c.search is not None]
        self._searches += [each.find for each in self._filters]
        heads = head_search(self._rejected, names or {})
        if heads is not None:
            self._searches.append(heads)
        self._skip_searches = 0
        self._heads: dict[tuple[bytes, bytes], bool] = {}
        self.everything = not (level_tests or self._all or self._timed)

    def lines(self, lines: list[bytes], closing: bytes = b"") -> list[bytes]:
        """The lines that match, in their order, each as it was given.

        Args:
            lines: JSON objects, or wire lines without their end, which is `closing`.
            closing: The missing end of wire lines: `,"received":"…"}` and a newline.
        """
        if self.everything:
            return lines
        wire = [line for line in lines if line[MARK] == LEVEL_MARK]
        if len(wire) == len(lines):
            return self._wire(wire, closing)
        kept = []
        for line in lines:
            if line[MARK] == LEVEL_MARK:
                kept += self._wire([line], closing)
            elif line and self.record(parse_line(line + closing)):
                kept.append(line)
        return kept

    def candidates(self, lines: list[bytes]) -> list[bytes]:
        """The wire lines that may match, by level, time and required bytes only.

        No line is parsed and no pattern of a user runs, so the time that it takes
        depends on the length of the lines alone. None that matches is left out.
        """
        if self._level_tests:
            rejected = self._rejected
            lines = [
                line for line in lines if not line.startswith(rejected, LEVEL_START)
            ]
        if self._timed:
            since, until = self._since.encode(), self._until.encode()
            lines = [line for line in lines if since <= line[TIMESTAMP] <= until]
        for each in self._filters:
            lines = each.filter(lines)
        return lines

    def select(self, data: bytes) -> list[bytes]:
        """The lines of NDJSON that match, in order, without their newlines.

        The same answer as `lines` on the split data. When few lines hold what a match
        must contain, those are searched for in the whole at once, which is quicker.
        """
        if self._skip_searches:
            self._skip_searches -= 1
        else:
            for search in self._searches:
                found = search(data, len(data) // _SPARSE)
                if found is not None:
                    return self.lines(found)
            if self._searches:
                self._skip_searches = _SKIPPED
        lines = data.split(b"\n")
        if self.everything:
            return [line for line in lines if line]
        return self.lines(lines[:-1] if not lines[-1] else lines)

    def record(self, record: Mapping[str, Any]) -> bool:
        """Whether a parsed record matches; one that cannot be decided does."""
        return (
            (not self._level_tests or self._level(record))
            and (not self._timed or self._time(record))
            and _all_hold(self._all, record)
        )

    # --- on bytes ---

    def _wire(self, lines: list[bytes], closing: bytes) -> list[bytes]:
        if self._level_tests:
            accepted, rejected = self._accepted, self._rejected
            lines = [
                line
                for line in lines
                if line.startswith(accepted, LEVEL_START)
                or (
                    not line.startswith(rejected, LEVEL_START)
                    and self._level(parse_line(line + closing))
                )
            ]
        if self._timed:
            since, until = self._since.encode(), self._until.encode()
            lines = [line for line in lines if since <= line[TIMESTAMP] <= until]
        for each in self._filters:
            lines = each.filter(lines)
        if self._head_conditions:
            lines = [line for line in lines if self._head(line, closing)]
        return self._decide_others(lines, closing) if self._others else lines

    def _decide_others(self, lines: list[bytes], closing: bytes) -> list[bytes]:
        others, definite = self._others, self._definite
        filters, all_negated = self._negated_filters, self._all_negated
        kept = []
        for line in lines:
            if definite and all(passes(line) for passes in definite):
                kept.append(line)
                continue
            if all_negated and not any(each.may_match(line) for each in filters):
                kept.append(line)
                continue
            if _all_hold(others, parse_line(line + closing)):
                kept.append(line)
        return kept

    def _head(self, line: bytes, closing: bytes) -> bool:
        found = _HEAD.match(line, LEVEL_START)
        if found is None:
            record = parse_line(line + closing)
            return self._holds(record)
        pair = (found[2], found[3])
        known = self._heads.get(pair)
        if known is None:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            worker, logger = (part.decode("utf-8", "replace") for part in pair)
            known = self._holds({"worker": worker, "logger": logger})
            self._heads[pair] = known
        return known

    def _holds(self, record: Mapping[str, Any]) -> bool:
        return _all_hold(self._head_conditions, record)

    def _level_prefixes(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        accepted: list[bytes] = []
        rejected: list[bytes] = []
        for name, number in levels.STANDARD.items():
            holds = all(test(name, number) for test in self._level_tests)
            (accepted if holds else rejected).append(f'{name}"'.encode())
        return tuple(accepted), tuple(rejected)

    # --- on records ---

    def _level(self, record: Mapping[str, Any]) -> bool:
        name = record.get("level")
        number = levels.number_in(record)
        text = name if isinstance(name, str) or name is None else ""
        if isinstance(name, (int, float)):
            text = str(name)
        return all(test(text, number) for test in self._level_tests)

    def _time(self, record: Mapping[str, Any]) -> bool:
        text = record.get("timestamp")
        if not isinstance(text, str):
            return False
        if len(text) != 30 or text[-1:] != "Z":
            instant = iso_ns(text)
            if instant is None:
                return False
            text = wire_time(instant)
        return self._since <= text <= self._until


def _all_hold(conditions: Iterable[Condition], record: Mapping[str, Any]) -> bool:
    """Whether all conditions hold; a record that cannot be decided is let through.

    Such as one that is nested too deeply, or takes too long to search.
    """
    try:
        return all(c.test(record) is not c.negated for c in conditions)
    except (RecursionError, TypeError, ValueError, regex.SearchTimeout):
        return True


def _byte_filters(found: Iterable[Condition]) -> list[ByteFilter]:
    return [each for condition in found if (each := condition.byte_filter())]


def compile(  # noqa: A001  # as `re.compile`: always used with the module's name
    expressions: Sequence[str] = (),
    *,
    level: str | None = None,
    worker: Sequence[str] = (),
    logger: Sequence[str] = (),
    grep: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fixed: bool = False,
    ignore_case: bool | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> Match:
    """Compile a filter. Everything given must hold at once.

    Args:
        expressions: Terms of `logagg.filters.grammar`, any number in each string. `=`
            terms on the same key are alternatives; all other terms must hold. A
            missing field never passes a comparison. `logger=db` is `db` and all below.
        level: `warning` (and above), `debug..info`, or `error,critical`.
        worker: Of any of these workers, by number, process name or pid.
        logger: Of any of these loggers or one below.
        grep: Any of these patterns occurs in the message or the exception's text.
        exclude: None of these does.
        fixed: `grep` and `exclude` are plain text.
        ignore_case: For `grep` and `exclude`; None: a pattern without capitals.
        since_ns: Not before this instant.
        until_ns: Not after this instant.

    Raises:
        ConfigError: Something in it cannot be understood; the message names it.
    """
    terms = grammar.parse(expressions)
    others = [t for t in terms if t.key not in ("level", "worker", "logger")]
    found = conditions.all_of(others)
    if worker:
        found.append(conditions.from_workers(worker))
    for texts, negated in ((grep, False), (exclude, True)):
        each = [regex.build(t, ignore_case=ignore_case, fixed=fixed) for t in texts]
        if each:
            found.append(conditions.grep(each, negated=negated))
    _check_range(since_ns, until_ns)
    head, names = _head_conditions(terms, logger)
    return Match(_level_tests(terms, level), head, found, since_ns, until_ns, names)


def _check_range(since_ns: int | None, until_ns: int | None) -> None:
    if since_ns is not None and until_ns is not None and since_ns > until_ns:
        raise ConfigError(
            f"nothing can match: since {wire_time(since_ns)} is after "
            f"until {wire_time(until_ns)}"
        )


def _level_tests(terms: Sequence[Term], level: str | None) -> list[levels.Test]:
    """`--level` and each term on the level; `=` terms together are one test."""
    tests = [levels.selection(level)] if level is not None else []
    terms = [term for term in terms if term.key == "level"]
    either = [conditions.level_test(t) for t in terms if t.op == "=" and not t.negated]
    if either:
        tests.append(lambda name, number: any(t(name, number) for t in either))
    return tests + [conditions.level_test(t) for t in terms if t.op != "=" or t.negated]


def _head_conditions(
    terms: Sequence[Term], logger: Sequence[str]
) -> tuple[list[Condition], dict[str, list[str]]]:
    """Conditions on worker and logger, and the names that these must equal one of."""
    # `--logger a` is no alternative to a term: `--logger a logger=b` requires both.
    options = [Term(name, "logger", "=", name, quoted=True) for name in logger]
    head = [
        *conditions.all_of(t for t in terms if t.key in ("worker", "logger")),
        *conditions.all_of(options),
    ]
    names = {
        key: [t.value for t in terms if t.key == key and t.op == "=" and not t.negated]
        for key in ("worker", "logger")
    }
    names["logger"] = names["logger"] or list(logger)
    return head, names


_SHAPES: dict[str, type] = {
    "match": list,
    "level": str,
    "worker": list,
    "logger": list,
    "grep": list,
    "exclude": list,
    "fixed": bool,
    "ignore_case": bool,
    "since_ns": int,
    "until_ns": int,
}


def from_message(message: Mapping[str, Any]) -> Match:
    """Compile the filter in a viewer's hello.

    Its keys are the arguments of `compile`, with `match` for the expressions; absent
    and null ones, and other keys, are ignored.

    Raises:
        ConfigError: A value is of the wrong type, or `compile` refuses it.
    """
    given = {k: message[k] for k in _SHAPES if message.get(k) is not None}
    for key, value in given.items():
        listed = isinstance(value, list) and not all(isinstance(v, str) for v in value)
        if not isinstance(value, _SHAPES[key]) or listed:
            kind = _SHAPES[key].__name__.replace("list", "a list of texts")
            raise ConfigError(f"filter: {key!r} must be {kind}, not {value!r}")
    return compile(given.pop("match", ()), **given)
