"""The pages of the manual and README, taken apart into their fenced blocks.

A fence's info string is a language and, after it, how the block is tested:

- `sh`: run by bash in the page's folder; `python`: run; `toml`: read as `logagg.toml`
  by `logagg check`; `json`: parsed, each line or as a whole; `text`: output or a
  drawing, not tested. Other languages (`ini`, `yaml`, `dockerfile`) are fragments.
- `file=NAME`: also written to NAME first, for later blocks of the page; a Python file
  is then only compiled.
- `status=N`: the exit status that is expected.
- `fragment="REASON"`: cannot run here, and why.

Blocks of a page run in order in one folder, which begins with `samples/` alone.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
FOLDER = ROOT / "logagg" / "docs"
LANGUAGES = ("sh", "python", "toml", "json", "text", "ini", "yaml", "dockerfile")
RUNS = ("sh", "python", "toml", "json")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: The line of its opening fence.
        language: The first word after the fence.
        options: The words after it, as `name` or `name=value`.
        text: What stands between the fences.
    """

    page: str
    line: int
    language: str
    options: dict[str, str]
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def fragment(self) -> str | None:
        """Why it cannot run; None for a block that must."""
        return self.options.get("fragment")


def pages() -> list[Path]:
    return [README, *sorted(FOLDER.glob("*.md"))]


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    start = 0
    info: list[str] = []
    body: list[str] | None = None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if body is None and line.startswith("```"):
            start, info, body = number, shlex.split(line[3:]), []
        elif body is not None and line == "```":
            options = dict(_option(word) for word in info[1:])
            language = info[0] if info else ""
            found.append(
                Block(path.name, start, language, options, "\n".join([*body, ""]))
            )
            body = None
        elif body is not None:
            body.append(line)
    assert body is None, f"{path.name}:{start}: the block has no end"
    return found


def _option(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The rows of all tables whose first heading is `heading`, cells without spaces."""
    rows: list[list[str]] = []
    wanted = False
    for line in text.splitlines():
        if not line.startswith("|"):
            wanted = False
            continue
        cells = [
            cell.strip().replace("\\|", "|")
            for cell in re.split(r"(?<!\\)\|", line)[1:-1]
        ]
        if set(line) <= set("|-: "):
            continue
        if cells[0] == heading:
            wanted = True
        elif wanted:
            rows.append(cells)
    return rows
