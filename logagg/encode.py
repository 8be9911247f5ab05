"""Turn a record's fields into the body of its line, whatever they hold. Pure.

The fast way is one `orjson.dumps`. What JSON or UTF-8 does not know makes orjson raise,
and only then the slow way rebuilds the fields with safe text in place of what is not
expressible: that costs this record some fidelity, never another record and never the
application. Guarantees of `body`: it returns valid UTF-8 JSON without a newline, not
longer than MAX_LINE_BYTES, and raises nothing but what ends a process (KeyboardInterrupt
and the like) for any input at all.

What becomes of the inexpressible: an unknown object its `repr`; one whose `repr` raises
`<unprintable CLASS>`; bytes their text with escapes; NaN and infinities "nan", "inf",
"-inf"; integers beyond 64 bits their digits; lone surrogates and the like an escape
such as `\\udcd1`; sets and other iterables of plain kinds lists; keys their text;
anything nested deeper than 64 levels its `repr` (64: OpenTelemetry's depth limit); of
strings so long that the line would be too long, the beginning with `…[truncated n
characters]`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from math import isfinite
from types import TracebackType
from typing import Any

import orjson

from logagg.secret_names import scrubbed
from logagg.wire import MAX_LINE_BYTES

__all__ = ["body", "exception_field", "safe_text", "scrubbed_body"]

MAX_DEPTH = 64
_HEADROOM = 4096  # for the prefix, the closing and the escapes of a cut
_LONGEST = MAX_LINE_BYTES - _HEADROOM
_dumps = orjson.dumps
_CAUSES = 8  # longer chains are cut in the structured form; the text has them all


def body(fields: dict[str, Any], text: int = 0) -> bytes:
    """Encode fields as a JSON object without its opening and closing brace.

    Args:
        fields: The fields.
        text: So many bytes at the beginning are known to be text: not searched.
    """
    try:
        encoded = _dumps(fields, _plain)[1:-1]
        # A null may stand for a NaN. (`rfind` is twice as fast as `in`.)
        exact = encoded.rfind(b"null", text) < 0 or not _has_nonfinite(fields, 0)
        if exact and len(encoded) <= _LONGEST:
            return encoded
    except Exception:  # noqa: BLE001, S110 - anything can raise while it is read
        pass
    return _slow(fields)


def scrubbed_body(encoded: bytes) -> bytes:
    """A body with the values of secret names replaced, at any depth.

    It works on what was encoded, so it sees into every object that JSON knows.
    """
    record = orjson.loads(b"{%b}" % encoded)
    clean = scrubbed(record)
    return encoded if clean is record else _dumps(clean)[1:-1]


def safe_text(value: object) -> str:
    """Text for any object: `str` of it, or what can be said of it. Never raises."""
    try:
        text = str(value)
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # noqa: BLE001 - a broken __str__ may raise anything
        return f"<unprintable {type(value).__name__}: {type(error).__name__} in str()>"
    return text


def exception_field(
    error: BaseException, trace: TracebackType | None, text: str | None = None
) -> dict[str, Any]:
    """Describe an exception with its chain.

    Returns:
        `type`, `message`, `stack` (the text that Python would print, with its causes,
        notes and groups), and where there are such: `notes`, `cause` (or `context`,
        for one raised while another was handled) and `exceptions` of a group, each in
        the same form without `stack`.
    """
    kind = type(error)
    if text is None:
        try:
            text = "".join(traceback.format_exception(kind, error, trace))
        except Exception:  # noqa: BLE001 - a broken __str__ in the chain
            text = "".join(traceback.format_tb(trace)) + kind.__name__
    described = _describe(error, 0)
    stack = text.rstrip("\n")
    return {
        "type": described.pop("type"),
        "message": described.pop("message"),
        "stack": stack,
        **described,
    }


def _describe(error: BaseException, depth: int) -> dict[str, Any]:
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    found: dict[str, Any] = {
        "type": module + kind.__qualname__,
        "message": safe_text(error),
    }
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list) and notes:
        found["notes"] = [safe_text(note) for note in notes]
    if depth >= _CAUSES:
        return found
    if error.__cause__ is not None:
        found["cause"] = _describe(error.__cause__, depth + 1)
    elif error.__context__ is not None and not error.__suppress_context__:
        found["context"] = _describe(error.__context__, depth + 1)
    if isinstance(error, BaseExceptionGroup):
        found["exceptions"] = [
            _describe(each, depth + 1) for each in error.exceptions[:100]
        ]
    return found


def _plain(value: object) -> object:
    """Give orjson something it knows for what it does not (its `default`)."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {safe_text(value)}"
    if isinstance(value, Mapping):
        return dict(value)
    return _repr(value)


def _repr(value: object) -> str:
    try:
        text = repr(value)
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # noqa: BLE001 - a broken __repr__ may raise anything
        return f"<unprintable {type(value).__name__}: {type(error).__name__} in repr()>"
    return text


def _has_nonfinite(value: object, depth: int) -> bool:
    """Whether a float that JSON cannot express hides behind a null."""
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
    """Encode what the fast way could not: rebuild, then shorten until it fits."""
    for longest in (_LONGEST, _LONGEST // 8, 64 * 1024, 1024, 64):
        safe = _keyed(fields, 0, longest, set())
        try:
            encoded = orjson.dumps(safe)[1:-1]
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
    kept["truncated_fields"] = str(max(len(names) - 64, 0))
    return orjson.dumps(kept)[1:-1]


def _keyed(
    pairs: Mapping[Any, Any], depth: int, longest: int, seen: set[int]
) -> dict[str, object]:
    """Rebuild a mapping; of names that read the same, the later get underscores."""
    found: dict[str, object] = {}
    for name, value in list(pairs.items()):
        text = _key(name)
        while text in found:
            text += "_"
        found[text] = _safe(value, depth, longest, seen)
    return found


def _key(name: object) -> str:
    return _cut(safe_text(name), 256)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]}…[truncated {len(text) - longest} characters]"


def _safe(value: object, depth: int, longest: int, seen: set[int]) -> object:
    """Rebuild a value out of what JSON knows."""
    try:
        return _rebuilt(value, depth, longest, seen)
    except Exception as error:  # noqa: BLE001 - any object can raise while it is read
        return f"<unprintable {type(value).__name__}: {type(error).__name__}>"


def _rebuilt(value: object, depth: int, longest: int, seen: set[int]) -> object:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        return _cut(safe_text(value), longest)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _digits(value)
    if isinstance(value, float):
        return value if isfinite(value) else str(float(value))
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if depth >= MAX_DEPTH or id(value) in seen:
            return _cut(_shallow(value), min(longest, 1024))
        inner = seen | {id(value)}
        if isinstance(value, Mapping):
            return _keyed(value, depth + 1, longest, inner)
        return [_safe(each, depth + 1, longest, inner) for each in list(value)]
    plain = _plain(value)
    if isinstance(plain, str):
        try:  # dates, UUIDs, enums, dataclasses: what orjson knows by itself
            return orjson.loads(orjson.dumps(value))
        except Exception:  # noqa: BLE001 - see above
            return _cut(plain, longest)
    return _safe(plain, depth + 1, longest, seen)


def _shallow(value: Any) -> str:
    """Say what is left out, without walking into it (it may contain itself)."""
    return f"<{type(value).__name__} of {len(value)}, nested too deep or in itself>"


def _digits(value: int) -> str:
    try:
        return str(int(value))
    except ValueError:  # more digits than sys.get_int_max_str_digits() allows
        return hex(value)
