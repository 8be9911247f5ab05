"""Which records somebody wants to see: the one filter of tail, of sinks, of viewers.

Pure: bytes or a record in, a decision out.

Guarantee: for every wire line, `Match.lines` keeps it exactly when `Match.record` is
true for the record it holds. How it gets there without parsing most lines:

1. Level and time stand at fixed places in a wire line. They are decided by comparing
   slices, and so is nothing else.
2. `worker` and `logger` come next in every wire line. They are decided by one match of
   the head, remembered for each pair of values.
3. For every other condition the line is first searched for bytes that a match must
   contain (`logagg.view.conditions`). Most lines that do not match end here.
4. A flat line says what its fields are without being parsed (`logagg.view.numbers`).
   Most lines that do match end here.
5. Only what is left, and lines that do not have the wire's shape, is parsed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from logagg.errors import ConfigError
from logagg.view import conditions, grammar, heads, levels, patterns
from logagg.view.conditions import Condition, Screen
from logagg.view.grammar import Term
from logagg.view.times import iso_ns, wire_time

__all__ = ["Match", "compile", "from_message", "parse_line"]

_MARK = b'Z","level":"'  # bytes 43…54 of every wire line
_HEAD = re.compile(
    rb'.{55}([^"\\]*)","worker":"([^"\\]*)","seq":\d+,"logger":"([^"\\]*)"', re.DOTALL
)
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
        self._screens = _screens(c for c in others if not c.negated)
        self._negative_screens = _screens(c for c in others if c.negated)
        self._exempt = len(self._negative_screens) == len(others)
        sures = [c.sure for c in others if c.sure is not None and not c.negated]
        self._sures = sures if len(sures) == len(others) else []
        self._searches = [c.search for c in others if c.search is not None]
        self._searches += [screen.find for screen in self._screens]
        self._patience = 0
        rejecting = heads.rejecting(self._rejected, names or {})
        if rejecting is not None:
            self._searches.append(functools.partial(heads.find, rejecting))
        self._heads: dict[tuple[bytes, bytes], bool] = {}
        self.everything = not (level_tests or self._all or self._timed)

    def lines(self, lines: list[bytes], closing: bytes = b"") -> list[bytes]:
        """The lines that match, in their order, each as it was given.

        Args:
            lines: JSON objects, or wire lines that lack what `closing` holds.
            closing: What makes a line whole: `,"received":"…"}` and a newline, or b"".
        """
        if self.everything:
            return lines
        wire = [line for line in lines if line[43:55] == _MARK]
        if len(wire) == len(lines):
            return self._wire(wire, closing)
        kept = []
        for line in lines:
            if line[43:55] == _MARK:
                kept += self._wire([line], closing)
            elif line and self.record(parse_line(line + closing)):
                kept.append(line)
        return kept

    def select(self, data: bytes) -> list[bytes]:
        """The lines of NDJSON that match, in order, without their newlines.

        The same answer as `lines` on the split data. When few lines hold what a match
        must contain, those are searched for in the whole at once, which is quicker.
        """
        if self._patience:
            self._patience -= 1
        else:
            for search in self._searches:
                found = search(data, len(data) // _SPARSE)
                if found is not None:
                    return self.lines(found)
            if self._searches:
                self._patience = _SKIPPED
        lines = data.split(b"\n")
        if self.everything:
            return [line for line in lines if line]
        return self.lines(lines[:-1] if not lines[-1] else lines)

    def record(self, record: Mapping[str, Any]) -> bool:
        """Whether a parsed record matches."""
        return (
            (not self._level_tests or self._level(record))
            and (not self._timed or self._time(record))
            and all(c.test(record) is not c.negated for c in self._all)
        )

    # --- on bytes ---

    def _wire(self, lines: list[bytes], closing: bytes) -> list[bytes]:
        if self._level_tests:
            accepted, rejected = self._accepted, self._rejected
            lines = [
                line
                for line in lines
                if line.startswith(accepted, 55)
                or (
                    not line.startswith(rejected, 55)
                    and self._level(parse_line(line + closing))
                )
            ]
        if self._timed:
            since, until = self._since.encode(), self._until.encode()
            lines = [line for line in lines if since <= line[14:44] <= until]
        for screen in self._screens:
            lines = screen.filter(lines)
        if self._head_conditions:
            lines = [line for line in lines if self._head(line, closing)]
        if not self._others:
            return lines
        others, screens, exempt = self._others, self._negative_screens, self._exempt
        sures = self._sures
        kept = []
        for line in lines:
            if sures and all(sure(line) for sure in sures):
                kept.append(line)
                continue
            if exempt and not any(screen.may_hold(line) for screen in screens):
                kept.append(line)
                continue
            record = parse_line(line + closing)
            if all(c.test(record) is not c.negated for c in others):
                kept.append(line)
        return kept

    def _head(self, line: bytes, closing: bytes) -> bool:
        found = _HEAD.match(line)
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
        return all(c.test(record) is not c.negated for c in self._head_conditions)

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
        text = None if name is None else name if isinstance(name, str) else str(name)
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


def _screens(found: Iterable[Condition]) -> list[Screen]:
    return [screen for condition in found if (screen := condition.screen())]


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
        expressions: Terms of `logagg.view.grammar`, any number in each string. `=`
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
        ConfigError: Something in it cannot be understood; the message says what.
    """
    terms = grammar.parse(expressions)
    tests = [levels.selection(level)] if level is not None else []
    same = [t for t in terms if t.key == "level" and t.op == "=" and not t.negated]
    if same:
        either = [conditions.level_test(term) for term in same]
        tests.append(lambda name, number: any(t(name, number) for t in either))
    tests += [
        conditions.level_test(t) for t in terms if t.key == "level" and t not in same
    ]
    # A flag is one alternative less than a term: `--logger a logger=b` asks for both.
    flags = [Term(name, "logger", "=", name, quoted=True) for name in logger]
    head = [
        *conditions.positives(t for t in terms if t.key in ("worker", "logger")),
        *conditions.positives(flags),
    ]
    others = conditions.positives(
        t for t in terms if t.key not in ("level", "worker", "logger")
    )
    if worker:
        others.append(conditions.who(worker))
    for texts, negated in ((grep, False), (exclude, True)):
        found = [
            patterns.build(text, ignore_case=ignore_case, fixed=fixed) for text in texts
        ]
        if found:
            others.append(conditions.grep(found, negated=negated))
    if since_ns is not None and until_ns is not None and since_ns > until_ns:
        raise ConfigError(
            f"nothing can match: since {wire_time(since_ns)} is after "
            f"until {wire_time(until_ns)}"
        )
    names = {
        key: [t.value for t in terms if t.key == key and t.op == "=" and not t.negated]
        for key in ("worker", "logger")
    }
    names["logger"] = names["logger"] or list(logger)
    return Match(tests, head, others, since_ns, until_ns, names)


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

    Its keys are the arguments of `compile`, with `match` for the expressions; a key
    that is absent or null is not asked for, and other keys are none of the filter's.

    Raises:
        ConfigError: A value is of the wrong type, or `compile` refuses it.
    """
    asked = {k: message[k] for k in _SHAPES if message.get(k) is not None}
    for key, value in asked.items():
        listed = isinstance(value, list) and not all(isinstance(v, str) for v in value)
        if not isinstance(value, _SHAPES[key]) or listed:
            kind = _SHAPES[key].__name__.replace("list", "a list of texts")
            raise ConfigError(f"filter: {key!r} must be {kind}, not {value!r}")
    return compile(asked.pop("match", ()), **asked)


def parse_line(line: bytes) -> dict[str, Any]:
    """The record in a whole line, never an exception.

    What is not a JSON object becomes a record of level error and logger `logagg` that
    holds the line as `raw`.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = None
    if isinstance(record, dict):
        return record
    return {
        "timestamp": line[14:44].decode("ascii", "replace"),
        "level": "error",
        "logger": "logagg",
        "message": "a line arrived that is not a record",
        "raw": line.decode("utf-8", "replace"),
    }
