"""An exception as a field of a record: its parts, and its traceback's text. Pure.

Of a chain or a group of more than MAX_EXCEPTIONS exceptions (a note counts as one), and
of more than MAX_FRAMES frames, the text has the newest only, and a mark: Python would
format all of them, at some 60 µs each, in the middle of a log call.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from logagg.core.encode import safe_text

__all__ = ["MAX_EXCEPTIONS", "MAX_FRAMES", "exception_field"]

MAX_EXCEPTIONS = 100
MAX_FRAMES = 1000
_CAUSES = 8  # longer chains are cut in the structured form; the text has more
_LONGEST_CHAIN = 10_000
_TEXTS = 20  # how many exceptions, and frames of each, of what is beyond the bounds
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"


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
    if text is None:
        text = _stack(error, trace)
    described = _describe(error, 0, iter(range(MAX_EXCEPTIONS)))
    stack = text.rstrip("\n")
    return {
        "type": described.pop("type"),
        "message": described.pop("message"),
        "stack": stack,
        **described,
    }


def _describe(
    error: BaseException, depth: int, budget: Iterator[int]
) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _name(error), "message": safe_text(error)}
    notes = _notes(error)
    if notes:
        found["notes"] = [
            safe_text(note) for note, _ in zip(notes, budget, strict=False)
        ]
        if len(notes) > len(found["notes"]):
            found["notes"].append(f"…[truncated {len(notes)} notes]")
    if depth >= _CAUSES:
        return found
    earlier, link = _earlier(error)
    if earlier is not None and next(budget, None) is not None:
        key = "cause" if link is _CAUSE else "context"
        found[key] = _describe(earlier, depth + 1, budget)
    if isinstance(error, BaseExceptionGroup):
        found["exceptions"] = [
            _describe(each, depth + 1, budget)
            for each, _ in zip(error.exceptions, budget, strict=False)
        ]
    return found


def _name(error: BaseException) -> str:
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def _notes(error: BaseException) -> list[object]:
    notes = getattr(error, "__notes__", None)
    return notes if isinstance(notes, list) else []


def _earlier(error: BaseException) -> tuple[BaseException | None, str]:
    """The exception before one in its chain, and Python's sentence between the two."""
    if error.__cause__ is not None:
        return error.__cause__, _CAUSE
    if error.__context__ is not None and not error.__suppress_context__:
        return error.__context__, _CONTEXT
    return None, ""


def _stack(error: BaseException, trace: TracebackType | None) -> str:
    if not _is_within_bounds(error, trace):
        return _newest(error, trace)
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except Exception:  # noqa: BLE001 - a broken __str__ in the chain
        return "".join(traceback.format_tb(trace)) + type(error).__name__


def _is_within_bounds(error: BaseException, trace: TracebackType | None) -> bool:
    """Whether all that the text would have is few enough; costs 1 µs for one."""
    exceptions = frames = 0
    seen: set[int] = set()
    waiting = [(error, trace)]
    while waiting:
        each, frame = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        while frame is not None and frames <= MAX_FRAMES:
            frames += 1
            frame = frame.tb_next
        members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        exceptions += 1 + len(_notes(each))
        if exceptions + len(members) > MAX_EXCEPTIONS or frames > MAX_FRAMES:
            return False
        others = (each.__cause__, each.__context__, *members)
        waiting += [(other, other.__traceback__) for other in others if other]
    return True


def _newest(error: BaseException, trace: TracebackType | None) -> str:
    """As Python prints it, but the newest of a chain, its origin, and the last frames."""
    chain = [(error, trace, "")]
    earlier, link = _earlier(error)
    while earlier is not None and len(chain) < _LONGEST_CHAIN:
        chain.append((earlier, earlier.__traceback__, f"\n{link}\n\n"))
        earlier, link = _earlier(earlier)
    parts = [_alone(*each) for each in chain[:_TEXTS]]
    if len(chain) > _TEXTS:
        parts.append(f"…[truncated {len(chain) - _TEXTS - 1} exceptions]\n\n")
        parts.append(_alone(*chain[-1]))
    return "".join(reversed(parts))


def _alone(error: BaseException, trace: TracebackType | None, link: str) -> str:
    count = sum(1 for _ in traceback.walk_tb(trace))
    frames = traceback.format_tb(trace, -_TEXTS)
    if count > _TEXTS:
        frames.insert(0, f"  …[truncated {count - _TEXTS} frames]\n")
    text = "Traceback (most recent call last):\n" if frames else ""
    message = safe_text(error)
    text += "".join(frames) + _name(error) + (f": {message}\n" if message else "\n")
    notes = _notes(error)
    text += "".join(f"{safe_text(note)}\n" for note in notes[:_TEXTS])
    if len(notes) > _TEXTS:
        text += f"…[truncated {len(notes) - _TEXTS} notes]\n"
    return text + link
