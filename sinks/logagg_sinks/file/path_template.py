"""File names from templates: `logs/{worker}/app-{date}.log`. Pure.

Text from a record is not trusted: it becomes one safe path component.
Letters, digits, `.`, `_` and `-` stay, everything else becomes `_`, and a name that was
changed carries a hash, so that two names never meet in one file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import string
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from logagg.wireformat import LEVEL_START, load_line
from logagg_sinks.file.rotation import LogName

__all__ = ["PathTemplate", "safe_name"]

FIELDS = ("date", "worker", "logger")
LONGEST = 100  # of a name from a record; file systems allow 255 for the whole
MOST = 1000  # different names of one sink; the records of further ones share a file
OTHER = "_other"

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_HEAD = re.compile(
    rb'[^"]*","worker":"((?:[^"\\]|\\.)*)","seq":\d+,"logger":"((?:[^"\\]|\\.)*)"'
)


def safe_name(text: str) -> str:
    """A path component for any text; different texts give different components."""
    name = _UNSAFE.sub("_", text)[:LONGEST]
    if name != text or not name.strip(".") or name.startswith((".", "-")):
        return f"{name.lstrip('.-') or '_'}~{_digest(text)}"
    return name


def _digest(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2s(data, digest_size=4).hexdigest()


def _listed(folder: Path) -> list[str]:
    """The names in a directory; none where it cannot be read.

    Raises:
        OSError: No descriptor or no memory is free for it now.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return []


def _parsed(text: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(text))
    except ValueError:
        raise ValueError(
            "a path with each { closed, and {{ and }} for plain braces"
        ) from None


class PathTemplate:
    """A path with `{date}`, `{worker}` or `{logger}` in it; a plain one as well.

    Raises:
        ValueError: The template is invalid; the message gives the reason.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if "\0" in text or not text or text.endswith("/"):
            raise ValueError("a path that ends in a file's name, without NUL")
        self._parts: list[tuple[str, str]] = []
        for literal, name, spec, conversion in _parsed(text):
            if name is not None and (name not in FIELDS or spec or conversion):
                fields = ", ".join(f"{{{field}}}" for field in FIELDS)
                raise ValueError(f"a path with no other fields than {fields}")
            self._parts.append((literal, name or ""))
        names = [name for _, name in self._parts]
        self.dated = "date" in names
        self.split = tuple(name for name in ("worker", "logger") if name in names)
        self._ends = self._find_ends()
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
                "a name that ends in a fixed part such as .log after {worker} or "
                "{logger}, so that it differs from those of rotated files"
            )

    def _find_ends(self) -> dict[str, str]:
        """The text between a field and another one, which its value must not contain.

        Else `a-b` and `c` would share a file with `a` and `b-c`.
        """
        ends = {}
        fields = [i for i, (_, name) in enumerate(self._parts) if name in self.split]
        for place, after in itertools.pairwise(fields):
            literals = [literal for literal, _ in self._parts[place + 1 : after + 1]]
            if "/" in "".join(literals):
                continue
            if not re.search(r"[^A-Za-z0-9]", literals[0]):
                raise ValueError("a path with a separator such as - between two fields")
            ends[self._parts[place][1]] = literals[0]
        return ends

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

    def log_name(self, values: Mapping[str, str], date: str = "") -> LogName:
        """The log for these values, and its file on a day."""
        return LogName(
            self._inner(self.expand(values, "\0")),
            self._inner(self.expand(values, date)),
            literal=not self.split,
        )

    def _inner(self, path: Path) -> str:
        """The part of a path below `base`."""
        return "/".join(path.parts[-1 - self.below :])

    def files(self, base: Path, *, dated: bool) -> Iterator[Path]:
        """The files below `base` with names that this template gives, and their pieces.

        Args:
            base: The directory.
            dated: Rotated files are named after their period.

        Raises:
            OSError: No descriptor or no memory is free for the search.
        """
        return (path for path, _ in self._matches(base, dated=dated))

    def remember(self, base: Path, *, dated: bool, users: Container[int]) -> None:
        """Count the names that files below `base` have, as if they were used now.

        Args:
            base: As in `files`, as is `dated`.
            users: Whose files count.

        Raises:
            OSError: As `files`.
        """
        for path, names in self._matches(base, dated=dated):
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_uid in users:
                    self._seen.update(name for name in names if name != OTHER)

    def _matches(
        self, base: Path, *, dated: bool
    ) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """The files below `base`, each with the names from records in its path."""
        parts = Path(self.text).parts[-1 - self.below :]
        found: list[tuple[Path, tuple[str, ...]]] = [(base, ())]
        for part in parts[:-1]:
            pattern = re.compile(self._pattern_of(part))
            found = [
                (folder / name, names + match.groups())
                for folder, names in found
                for name in _listed(folder)
                if (match := pattern.fullmatch(name))
                and not (folder / name).is_symlink()
            ]
        end = r"(?:\.\d{4}-\d\d-\d\d(?:_\d\d(?:-\d\d){0,2})?)?" if dated else ""
        end += r"(?:\.[1-9]\d{0,8})?(?:\.gz|\.zst)?"
        pattern = re.compile(self._pattern_of(parts[-1]) + end)
        for folder, names in found:
            for name in _listed(folder):
                if match := pattern.fullmatch(name):
                    yield folder / name, names + match.groups()

    @staticmethod
    def _pattern_of(part: str) -> str:
        fields = {"date": r"\d{4}-\d\d-\d\d", None: ""}
        return "".join(
            re.escape(literal) + fields.get(name, r"([A-Za-z0-9_~][A-Za-z0-9._~-]*?)")
            for literal, name, _, _ in string.Formatter().parse(part)
        )

    @property
    def journal(self) -> str:
        """The name of the sink's journal in `base`."""
        text = self.text.replace("{{", "{").replace("}}", "}")
        return f".{safe_name(self._inner(Path(text)))}.journal"

    def _known(self, field: str, value: str) -> str:
        name = safe_name(value)
        end = self._ends.get(field, "")
        if end and (name + end).find(end) != len(name):
            name = f"{name.replace(end[:1], '')}~{_digest(value)}"
        if name not in self._seen:
            if len(self._seen) >= MOST:
                return OTHER
            self._seen.add(name)
        return name

    def group(self, lines: list[bytes]) -> dict[tuple[str, ...], list[int]]:
        """The positions of the lines by the safe names that split them, in order."""
        found: dict[tuple[str, ...], list[int]] = {}
        cache: dict[bytes, tuple[str, ...]] = {}
        for index, line in enumerate(lines):
            match = _HEAD.match(line, LEVEL_START)
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
        record = load_line(line + b"}") or {}
        return tuple(
            self._known(name, str(record.get(name, ""))) for name in self.split
        )
