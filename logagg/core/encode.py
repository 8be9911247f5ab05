"""Encoding of any fields as the body of a line. Pure, but for the clock.

The fast way is one `orjson.dumps`. What JSON or UTF-8 does not know makes orjson raise,
and only then, or when the result is large, the slow way rebuilds the fields: with safe
text in place of what is not expressible, and within the bounds of one record. That costs
this record some fidelity, never another record and never the application. Guarantees of
`body`: it returns valid UTF-8 JSON without a newline, not longer than MAX_LINE_BYTES,
and raises nothing but what ends a process (KeyboardInterrupt and the like) for any
input at all.

Values that JSON does not know become text: an unknown object its `repr`; one whose
`repr` raises `<unprintable CLASS>`; bytes their text with escapes; NaN and infinities
"nan", "inf", "-inf"; integers beyond 64 bits their digits; lone surrogates an escape
such as `\\udcd1`; sets and mappings of other classes lists and objects; keys their text.

The bounds. In place of what is beyond one stands a mark, `…[truncated n …]` or `<…>`.

    MAX_LINE_BYTES   length: of strings so long that the line would be too long, the
                     beginning is there
    MAX_VALUES       width: fields; and members and elements of all containers: a
                     wide field has half of what those before it left, or _LEAST
    MAX_DEPTH        levels of containers (64: OpenTelemetry's limit)
    MAX_REPR         characters of an object's `repr`
    MAX_SECONDS      time, from which on no further object is read

JSON's own kinds are counted when they are encoded, at 30 million values a second. The
work that objects make is only estimated on the fast way, over some records (`_work`),
and counted exactly on the slow way, where a record within the bounds comes out as it
would have on the fast one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from math import isfinite
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

import orjson

from logagg.core.line import MAX_LINE_BYTES
from logagg.core.secrets import MAX_DEPTH, scrubbed

__all__ = ["MAX_VALUES", "TRUNCATED_FIELDS", "body", "safe_text", "scrubbed_body"]

TRUNCATED_FIELDS = "truncated_fields"
"""The field with the number of fields that a record lacks."""

MAX_VALUES = 10_000
MAX_REPR = 64 * 1024
MAX_SECONDS = 0.1
_HEADROOM = 4096  # for the prefix, the closing and the escapes of a cut
_LEAST = 64  # values of a field that are there in any case
_LAST = 4  # fields at a record's end: the exception and the stack are among them
_LONGEST = MAX_LINE_BYTES - _HEADROOM
_dumps = orjson.dumps
_MOST_WORK = 1000
_WORK_SHIFT = 16  # one object, or 65 µs, are a unit of work
_work = 0


class _TooMuchWork(Exception):
    """The objects of the last records took so long that this one's are counted."""


def body(fields: dict[str, Any], text: int = 0) -> bytes:
    """Encode fields as a JSON object without its opening and closing brace.

    Args:
        fields: The fields.
        text: How many bytes at the beginning are known to be text and not searched.
    """
    try:
        encoded = _dumps(fields, _plain)[1:-1]
        # A null may stand for a NaN. (`rfind` is twice as fast as `in`.)
        exact = encoded.rfind(b"null", text) < 0 or not _has_nonfinite(fields, 0)
        size = len(encoded)
        if exact and (size <= MAX_VALUES or _is_within_bounds(encoded, text)):
            return encoded
    except Exception:  # noqa: BLE001, S110 - anything can raise while it is read
        pass
    return _slow(fields)


def _is_within_bounds(encoded: bytes, text: int) -> bool:
    """Whether a body is short enough, and has too few commas for too many values."""
    size = len(encoded)
    if size > _LONGEST:
        return False
    return size - text <= MAX_VALUES or encoded.count(b",", text) <= MAX_VALUES


def scrubbed_body(encoded: bytes) -> bytes:
    """A body with the values of secret names replaced, at any depth.

    It works on the encoded form, so it covers every object that JSON knows.
    """
    record = orjson.loads(b"{%b}" % encoded)
    clean = scrubbed(record)
    return encoded if clean is record else _dumps(clean)[1:-1]


def safe_text(value: object, render: Callable[[object], str] = str) -> str:
    """Text for any object: its `str` (or `repr`), or a description. Never raises."""
    try:
        text = render(value)
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # noqa: BLE001 - a broken __str__ may raise anything
        kind, how = type(value).__name__, render.__name__
        return f"<unprintable {kind}: {type(error).__name__} in {how}()>"
    return text


def _plain(value: object) -> object:
    """A replacement for a value that orjson does not know (its `default`)."""
    global _work
    if _work > _MOST_WORK:
        raise _TooMuchWork
    start = clock_gettime_ns(CLOCK_MONOTONIC)
    found = _replacement(value)
    _work += 1 + (clock_gettime_ns(CLOCK_MONOTONIC) - start >> _WORK_SHIFT)
    return found


def _replacement(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {safe_text(value)}"
    if isinstance(value, Mapping):
        return dict(value)
    return _cut(safe_text(value, repr), MAX_REPR)


def _has_nonfinite(value: object, depth: int) -> bool:
    """Whether a null stands for a float that JSON cannot express."""
    if isinstance(value, float):
        return not isfinite(value)
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, dict):
        return any(_has_nonfinite(each, depth + 1) for each in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(_has_nonfinite(each, depth + 1) for each in value)
    return False


def _slow(fields: dict[str, Any]) -> bytes:
    """Rebuild fields that the fast way cannot encode, and shorten until they fit."""
    global _work
    _work = 0
    safe = _Rebuild().fields(fields)
    for longest in (_LONGEST, _LONGEST // 8, 64 * 1024, 1024, 64):
        try:
            encoded = orjson.dumps(_shortened(safe, longest))[1:-1]
        except (TypeError, RecursionError):
            continue
        if len(encoded) <= _LONGEST:
            return encoded
    names = list(fields)
    kept = {
        name: _cut(safe_text(fields[name]), 1024)
        for name in names[:64]
        if name in fields
    }
    kept[TRUNCATED_FIELDS] = str(max(len(names) - 64, 0))
    return orjson.dumps(kept)[1:-1]


def _shortened(value: object, longest: int) -> object:
    """A rebuilt value with its strings cut."""
    if isinstance(value, str):
        return _cut(value, longest)
    if isinstance(value, dict):
        return {name: _shortened(each, longest) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each, longest) for each in value]
    return value


class _Rebuild:
    """One record's fields from types that JSON knows, within the bounds of a record."""

    def __init__(self) -> None:
        self._left = MAX_VALUES  # of all values, then of those of one field
        self._end = clock_gettime_ns(CLOCK_MONOTONIC) + int(MAX_SECONDS * 1e9)
        self._seen: set[int] = set()  # the containers that the present one is in

    def fields(self, fields: dict[str, Any]) -> dict[str, object]:
        """Rebuild a record's fields; of more than the bound the first and the last."""
        rest = len(fields) - MAX_VALUES
        if rest > 0:
            names = list(fields)
            del names[-_LAST - rest : -_LAST]
            fields = {name: fields[name] for name in names}
            fields[TRUNCATED_FIELDS] = str(rest)
        return self._mapping(fields, len(fields), self._field)

    def _mapping(
        self, pairs: Mapping[Any, Any], most: int, rebuild: Callable[[object], object]
    ) -> dict[str, object]:
        """Of names that read the same, the later get underscores."""
        found: dict[str, object] = {}
        self._left -= most
        for name, value in list(islice(pairs.items(), most)):
            text = _cut(safe_text(name), 256)
            while text in found:
                text += "_"
            found[text] = rebuild(value)
        rest = len(pairs) - most
        if rest > 0:
            found["…"] = f"[truncated {rest} members]"
        return found

    def _elements(self, values: Iterable[Any], size: int) -> list[object]:
        most = self._share(size)
        self._left -= most
        found = [self._safe(each) for each in list(islice(values, most))]
        if size > most:
            found.append(f"…[truncated {size - most} elements]")
        return found

    def _share(self, size: int) -> int:
        """How many of a container's values are rebuilt, if something is to be left."""
        return min(size, self._left if len(self._seen) == 1 else self._left // 2)

    def _safe(self, value: object) -> object:
        try:
            return self._value(value)
        except Exception as error:  # noqa: BLE001 - any object can raise while it is read
            return f"<unprintable {type(value).__name__}: {type(error).__name__}>"

    def _field(self, value: object) -> object:
        """Rebuild a field with half of what those before it have left, or a bit."""
        left = self._left
        self._left = granted = max(left // 2, _LEAST)
        found = self._safe(value)
        self._left += left - granted
        return found

    def _value(self, value: object) -> object:
        if value is None or isinstance(value, bool):
            return value
        if type(value) is str:
            return safe_text(value)
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**64 else _digits(value)
        if isinstance(value, float):
            return float(value) if isfinite(value) else str(float(value))
        if isinstance(value, (Mapping, list, set, frozenset)) or type(value) is tuple:
            return self._container(value)
        return self._object(value)

    def _container(self, value: Any) -> object:
        if len(self._seen) >= MAX_DEPTH or id(value) in self._seen:
            kind = type(value).__name__
            return f"<{kind} of {len(value)}, nested too deep or in itself>"
        self._seen.add(id(value))
        try:
            if isinstance(value, Mapping):
                return self._mapping(value, self._share(len(value)), self._safe)
            return self._elements(value, len(value))
        finally:
            self._seen.discard(id(value))

    def _object(self, value: object) -> object:
        if self._is_late():
            return _late_mark(value)
        try:  # dates, UUIDs, enums, dataclasses: what orjson knows by itself
            known = orjson.loads(orjson.dumps(value, self._default))
        except Exception:  # noqa: BLE001 - see above
            known = _replacement(value)
        return known if isinstance(known, str) else self._value(known)

    def _default(self, value: object) -> object:
        """An object, maybe in a dataclass, that orjson does not know."""
        self._left -= 1
        if self._left < -MAX_VALUES or self._is_late():
            return _late_mark(value)
        return _replacement(value)

    def _is_late(self) -> bool:
        return clock_gettime_ns(CLOCK_MONOTONIC) > self._end


def _late_mark(value: object) -> str:
    return f"<{type(value).__name__}, not read: the record takes too long>"


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]}…[truncated {len(text) - longest} characters]"


def _digits(value: int) -> str:
    try:
        return str(int(value))
    except ValueError:  # more digits than sys.get_int_max_str_digits() allows
        return hex(value)
