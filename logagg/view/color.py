"""Whether to color: one pure function, and nothing else in the program may look.

It is asked once for each stream, so notes on a terminal's stderr may be colored while
stdout is a pipe.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["wants_color"]


def wants_color(flag: str, environ: Mapping[str, str], is_terminal: bool) -> bool:
    """Decide whether escape codes may be written to a stream.

    The first rule that speaks wins: the flag `always` or `never`; `NO_COLOR` (no escape
    codes at all, not even bold); `FORCE_COLOR` or `CLICOLOR_FORCE`, unless `0`;
    `TERM=dumb` (none); otherwise a terminal is colored. An empty variable counts as
    unset.

    Args:
        flag: `auto`, `always` or `never`.
        environ: The environment of the process that owns the stream.
        is_terminal: Whether the stream is a terminal.
    """
    if flag in ("always", "never"):
        return flag == "always"
    if environ.get("NO_COLOR"):
        return False
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        if environ.get(name, "") not in ("", "0"):
            return True
    if environ.get("TERM") == "dumb":
        return False
    return is_terminal
