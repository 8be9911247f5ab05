"""Lines as blocks of a pipe hold them: split, merged, joined. Pure.

The reference is a list of bytes, one object for each line, and the functions here in
Python. Where the C form was built (`logagg._native.merge`), a block of plain lines stays
whole: a `Lines` stands for the list of its lines and makes one of them only when it is
asked for. To what reads it, it is that list. A block with anything unusual in it (a torn
or foreign line, a gap in the seqs, a stamp that goes back) becomes a list, and goes the
Python way from there on.

`LOGAGG_PURE=1` switches the C form off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from logagg._native import load

if TYPE_CHECKING:
    from logagg._native.merge import Lines

__all__ = ["as_list", "has_level", "joined", "merged", "native", "size_of", "split"]


native: Any = load("merge")
"""The C form; None: there is none."""

_Lines: Any = native.Lines if native is not None else None


def _in_block(lines: list[bytes]) -> TypeGuard[Lines]:
    return type(lines) is _Lines


def split(chunk: bytes, tail: bytes) -> tuple[list[bytes], bytes]:
    """Cut a block into lines.

    Args:
        chunk: The block.
        tail: The begin of its first line, from the blocks before.

    Returns:
        The whole lines, which are not to be changed, and the begin of the next.
    """
    if native is not None:
        found: tuple[Lines, bytes] | None = native.split(chunk, tail)
        if found is not None:
            return found
    lines = chunk.split(b"\n")
    if tail:
        lines[0] = tail + lines[0]
    return lines, lines.pop()


def merged(runs: list[list[bytes]]) -> list[bytes]:
    """All lines of several lists, sorted as bytes."""
    runs = [run for run in runs if run]
    if not runs:
        return []
    if native is not None:
        found = [run if _in_block(run) else native.gather(sorted(run)) for run in runs]
        if None not in found:
            one: list[bytes] = found[0] if len(found) == 1 else native.merge(found)
            return one
    lines: list[bytes] = []
    for run in runs:
        lines.extend(run)
    lines.sort()
    return lines


def as_list(lines: list[bytes]) -> list[bytes]:
    """The lines as a real list: those that it was given, where it is one."""
    return list(lines) if _in_block(lines) else lines


def joined(lines: list[bytes], closing: bytes) -> bytes:
    """Each line, followed by the closing."""
    if _in_block(lines):
        return lines.join(closing)
    return closing.join([*lines, b""])


def size_of(lines: list[bytes]) -> int:
    """The lines' length together."""
    return lines.size_bytes if _in_block(lines) else sum(map(len, lines))


def has_level(lines: list[bytes], level: bytes, start: int) -> bool:
    """Whether a line has this level, by its place in the line, which is `start`."""
    if _in_block(lines):
        return lines.has_level(level)
    quoted = level + b'"'
    return any(line.startswith(quoted, start) for line in lines)
