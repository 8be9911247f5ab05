"""File names made from templates: `logs/{worker}/app-{date}.log`. Pure.

What comes out of a record is a stranger's text: it becomes one safe path component.
Letters, digits, `.`, `_` and `-` stay, everything else becomes `_`, and a name that was
changed carries a hash, so that two names never meet in one file.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Mapping
from pathlib import Path

import orjson

__all__ = ["PathTemplate", "safe_name"]

FIELDS = ("date", "worker", "logger")
LONGEST = 100  # of a name from a record; file systems allow 255 for the whole
MOST = 1000  # different names of one sink; the records of further ones share a file

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_HEAD = re.compile(
    rb'[^"]*","worker":"((?:[^"\\]|\\.)*)","seq":\d+,"logger":"((?:[^"\\]|\\.)*)"'
)
_LEVEL_AT = 55  # where a line's level begins


def safe_name(text: str) -> str:
    """A path component for any text; different texts give different components."""
    name = _UNSAFE.sub("_", text)[:LONGEST]
    if name != text or not name.strip(".") or name.startswith((".", "-")):
        digest = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=4)
        return f"{name.lstrip('.-') or '_'}~{digest.hexdigest()}"
    return name


class PathTemplate:
    """A path with `{date}`, `{worker}` or `{logger}` in it; a plain one as well.

    Raises:
        ValueError: The template is not one; the message says why.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if "\0" in text or not text or text.endswith("/"):
            raise ValueError("a path that ends in a file's name, without NUL")
        self._parts: list[tuple[str, str]] = []
        for literal, name, spec, conversion in string.Formatter().parse(text):
            if name is not None and (name not in FIELDS or spec or conversion):
                fields = ", ".join(f"{{{field}}}" for field in FIELDS)
                raise ValueError(f"a path with no other fields than {fields}")
            self._parts.append((literal, name or ""))
        names = [name for _, name in self._parts]
        self.dated = "date" in names
        self.split = tuple(name for name in ("worker", "logger") if name in names)
        self._seen: set[str] = set()
        self._check()

    def _check(self) -> None:
        where, _, name = self.text.rpartition("/")
        if self.dated and "{date}" in where:
            raise ValueError("a path with {date} in the file's name, not a directory's")
        if not self.split:
            return
        tail = re.sub(r"^.*\}", "", name)
        last = tail.rpartition(".")[2]
        if "}" in name and (not re.search(r"[A-Za-z]", last) or last in ("gz", "zst")):
            raise ValueError(
                "a name that ends in a fixed part such as .log behind {worker} or "
                "{logger}, so that it differs from those of rotated files"
            )

    @property
    def below(self) -> int:
        """How many of the last directories come from the template."""
        parts = Path(self.text).parts[:-1]
        first = next((i for i, p in enumerate(parts) if "{" in p), len(parts))
        return len(parts) - first

    @property
    def base(self) -> Path:
        """The directory that everything stays in."""
        parts = Path(self.text.replace("{{", "{").replace("}}", "}")).parts[:-1]
        return Path(*parts[: len(parts) - self.below])

    def expand(self, values: Mapping[str, str], date: str = "") -> Path:
        """The path for these values of the fields, which `group` has made safe."""
        text = []
        for literal, name in self._parts:
            text.append(literal)
            if name == "date":
                text.append(date)
            elif name:
                text.append(values.get(name, ""))
        return Path("".join(text))

    def family(self, values: Mapping[str, str]) -> str:
        """An expression for the file's name on any day, whose group 1 is the date."""
        if not self.dated:
            return ""
        name = self.expand(values, "\0").name
        stamp = r"(\d{4}-\d\d-\d\d)"
        first, *others = name.split("\0")
        return re.escape(first) + stamp + r"\1".join(map(re.escape, others))

    def _known(self, value: str) -> str:
        name = safe_name(value)
        if name not in self._seen:
            if len(self._seen) >= MOST:
                return "_other"
            self._seen.add(name)
        return name

    def group(self, lines: list[bytes]) -> dict[tuple[str, ...], list[int]]:
        """The positions of the lines by the safe names that split them, in order."""
        found: dict[tuple[str, ...], list[int]] = {}
        cache: dict[bytes, tuple[str, ...]] = {}
        for index, line in enumerate(lines):
            match = _HEAD.match(line, _LEVEL_AT)
            if match is None:
                key = self._parse(line)
            else:
                head = match[1] + b"\0" + match[2]
                known = cache.get(head)
                if known is None:
                    known = cache[head] = self._parse(line)
                key = known
            found.setdefault(key, []).append(index)
        return found

    def _parse(self, line: bytes) -> tuple[str, ...]:
        try:
            record = orjson.loads(line + b"}")
        except orjson.JSONDecodeError:
            record = {}
        if not isinstance(record, dict):
            record = {}
        return tuple(self._known(str(record.get(name, ""))) for name in self.split)
