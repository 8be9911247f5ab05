"""A record's fields: finding one by its key, and testing it against a term. Pure.

A missing field passes no comparison, not even `!=`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from logagg.filters import regex
from logagg.filters.grammar import Term

Record = Mapping[str, Any]
Compare = Callable[[Any, Any], bool]
_ABSENT = object()

ORDER: dict[str, Compare] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def lookup(record: Any, key: str) -> Any:
    """Find the field that a key names; see `present` for a field that is absent.

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
            kind, text = item.get("type"), item.get("message")
            if isinstance(kind, str) and isinstance(text, str):
                yield f"{kind}: {text}"
            pending += [value for key, value in item.items() if key != "type"]
            if isinstance(kind, str):
                yield kind
        elif isinstance(item, list):
            pending += item


def value_test(term: Term) -> Callable[[Any], bool]:
    """A term as a test of what `lookup` found, its negation not counted."""
    if term.op == "?":
        return present
    if term.op in ("=", "!="):
        equal = _equal_or_below(term.value) if term.key == "logger" else _equal(term)
        if term.op == "=":
            return lambda value: value is not _ABSENT and equal(value)
        return lambda value: value is not _ABSENT and not equal(value)
    if term.op in ("~", "!~"):
        pattern = regex.build(term.value)
        wanted = term.op == "~"
        return lambda value: value is not _ABSENT and _matches(value, pattern) is wanted
    return _ordered(term)


def _equal_or_below(name: str) -> Callable[[Any], bool]:
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
    compare, text, number = ORDER[term.op], term.value, term.number

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


def _matches(value: Any, pattern: regex.Pattern) -> bool:
    if isinstance(value, str):
        return pattern.search(value)
    if isinstance(value, list):
        return _any_matches(value, pattern)
    return pattern.search(_json(value))


def _any_matches(value: list[Any], pattern: regex.Pattern) -> bool:
    """Whether the pattern occurs in an item, or in one of its items, and so on.

    Raises:
        SearchTimeout: All items together are too long.
    """
    left, items = regex.MOST_SEARCHED, [value]
    while items:
        for item in items.pop():
            if isinstance(item, list):
                items.append(item)
                continue
            text = item if isinstance(item, str) else _json(item)
            if pattern.limit is not None:
                left -= min(len(text), pattern.limit)
            if left < 0:
                raise regex.SearchTimeout
            if pattern.search(text):
                return True
    return False


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
