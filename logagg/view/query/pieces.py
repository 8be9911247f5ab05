"""The files that a query reads, under names of their own in a temporary directory.

A file, and each one that was rotated away from it, is a *piece*. A piece with logagg's
own lines is a link to the open file: a rotation during the query changes nothing, and no
character of its path means anything to the database. Every other piece (of another
program, damaged, unfinished) is converted: each line becomes a record, none is left out.

With a range of time, pieces that hold none of it are left out, and of a big plain file
only the part that holds it is copied and read.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from logagg.core.line import TIMESTAMP, is_wire
from logagg.dialects.foreign import conversion
from logagg.errors import ConfigError
from logagg.view import file_ranges, files
from logagg.view.files import Select, Series

__all__ = ["LogPiece", "LogPieces"]

_PROBE_BYTES = 1 << 16
_PROBES = 8
_LEAST_CUT = 16 << 20
"""The least size of a plain file of which a part is copied."""

_PARQUET_MAGIC = b"PAR1"
_ENDINGS = ((b"\x1f\x8b", ".gz"), (b"\x28\xb5\x2f\xfd", ".zst"))


@dataclass(slots=True)
class LogPiece:
    """One file of a log.

    Attributes:
        path: As the user knows it.
        stream: The file, open.
        end: Where to stop reading a plain one; None for its end.
        name: The path for the database.
        converted: It is a converted copy.
        untimed: Its records of which no time is known, if it is converted.
    """

    path: str
    stream: IO[bytes]
    end: int | None
    name: str = ""
    converted: bool = False
    untimed: int = 0


class LogPieces:
    """All pieces of the logs that a query names, oldest first for each log.

    Attributes:
        folder: The directory of their names.
        since: The wire time before which no record is wanted; b"" for none.
        until_ns: The instant after which none is; None for none.
        pieces: Those of NDJSON.
        parquet: Those of Parquet.
        spellings: For fields whose names differ in case alone, by their lower case, the
            name that the conversion leaves as it is.
    """

    def __init__(
        self, folder: str, since: bytes = b"", until_ns: int | None = None
    ) -> None:
        self.folder = folder
        self.since = since
        self.until_ns = until_ns
        self.pieces: list[LogPiece] = []
        self.parquet: list[LogPiece] = []
        self.spellings: dict[str, str] = {}
        self._count = 0

    def add(self, path: str) -> None:
        """Add a log: a file with its rotated ones, or standard input (`-`).

        Raises:
            ConfigError: It cannot be read.
        """
        if path == "-":
            self._add(self._standard_input())
            return
        series = files.open_series(path)
        found = file_ranges.FileRange(series, self.since, self.until_ns)
        for older in found.older:
            with contextlib.suppress(FileNotFoundError):
                self._add(LogPiece(older, files.open_regular(older), None))
        if series.current is not None:
            self._add(LogPiece(path, series.current, series.end))

    def convert(self, piece: LogPiece) -> None:
        """Replace a piece by a copy in which each line is a record."""
        end = _size(piece.stream) if piece.end is None else piece.end
        one = Series(piece.path, [], piece.stream, end)
        wanted = file_ranges.FileRange(one, self.since, self.until_ns)
        self._write(piece, wanted.read(Select(self._records, spread=True)))

    def piece_in(self, text: str) -> LogPiece | None:
        """The piece that a text of the database names."""
        return next((each for each in self.pieces if each.name in text), None)

    def readable(self, text: str) -> str:
        """A text of the database with the paths that the user knows."""
        for piece in (*self.pieces, *self.parquet):
            text = text.replace(piece.name, piece.path)
        return text

    def places(self) -> list[str]:
        """Where the names lead now: a rotation renames files."""
        return [os.path.realpath(p.name) for p in (*self.pieces, *self.parquet)]

    def untimed(self) -> int:
        """Converted records of which no time is known."""
        return sum(piece.untimed for piece in self.pieces)

    def size(self) -> int:
        """Bytes of all pieces of NDJSON."""
        return sum(os.stat(piece.name).st_size for piece in self.pieces)

    def close(self) -> None:
        """Close the files."""
        for piece in (*self.pieces, *self.parquet):
            piece.stream.close()

    def _standard_input(self) -> LogPiece:
        piece = LogPiece("standard input", sys.stdin.buffer, None)
        chunks = ([data] for data in files.forward(sys.stdin.buffer))
        self._write(piece, chunks, is_converted=False)
        piece.stream = files.open_regular(piece.name)
        return piece

    def _add(self, piece: LogPiece) -> None:
        stream = piece.stream
        magic = os.pread(stream.fileno(), 4, 0)
        if magic == _PARQUET_MAGIC:
            self._link(piece, ".parquet")
            self.parquet.append(piece)
            return
        self.pieces.append(piece)
        ending = next((e for start, e in _ENDINGS if magic.startswith(start)), "")
        if ending:
            # A copy of the descriptor: the reader closes what it has read.
            with open(os.dup(stream.fileno()), "rb") as copy:
                first = next(files.forward(files.unpacked(copy, piece.path)), b"")
            if _is_own(first):
                self._link(piece, f".json{ending}")
                return
        elif self._is_plain_own(piece):
            begin, end = file_ranges.bounds(stream, self.since, self.until_ns)
            size = _size(stream)
            if size >= _LEAST_CUT and end - begin < size // 2:
                self._write(piece, _raw(stream, begin, end), is_converted=False)
            else:
                self._link(piece, ".json")
            return
        self.convert(piece)

    def _records(self, data: bytes) -> list[bytes]:
        return [
            _record(line, self.spellings) for line in data.split(b"\n") if line.strip()
        ]

    def _is_plain_own(self, piece: LogPiece) -> bool:
        """Whether probes of a plain file find whole lines of logagg's own alone."""
        fd, size = piece.stream.fileno(), _size(piece.stream)
        if size and os.pread(fd, 1, size - 1) != b"\n":
            return False
        for number in range(_PROBES + 1):
            place = max(0, (size - _PROBE_BYTES) * number // _PROBES)
            data = os.pread(fd, _PROBE_BYTES, place)
            if place:
                data = data[data.find(b"\n") + 1 :]
            if not _is_own(data[: data.rfind(b"\n") + 1]):
                return False
        return True

    def _new_name(self, ending: str) -> str:
        self._count += 1
        return str(Path(self.folder, f"{self._count:06}{ending}"))

    def _link(self, piece: LogPiece, ending: str) -> None:
        piece.name = self._new_name(ending)
        os.symlink(f"/dev/fd/{piece.stream.fileno()}", piece.name)

    def _write(
        self,
        piece: LogPiece,
        batches: Iterable[list[bytes]],
        *,
        is_converted: bool = True,
    ) -> None:
        piece.name, piece.untimed = self._new_name(".json"), 0
        try:
            with open(piece.name, "xb") as out:
                for lines in batches:
                    if lines and is_converted:
                        piece.untimed += sum(not is_wire(line) for line in lines)
                        out.write(b"\n".join(lines) + b"\n")
                    elif lines:
                        out.writelines(lines)
        except OSError as error:
            raise ConfigError(
                f"{piece.path}: no copy can be made in {self.folder}: {error.strerror} "
                "(TMPDIR chooses another directory)"
            ) from error
        piece.converted = is_converted


def _size(stream: IO[bytes]) -> int:
    return os.fstat(stream.fileno()).st_size


def _raw(stream: IO[bytes], begin: int, end: int) -> Iterator[list[bytes]]:
    while begin < end:
        data = os.pread(stream.fileno(), min(files.CHUNK_BYTES, end - begin), begin)
        if not data:
            return
        begin += len(data)
        yield [data]


def _is_own(data: bytes) -> bool:
    """Whether all lines are logagg's own."""
    return all(map(is_wire, data.splitlines()))


def _record(line: bytes, spellings: Mapping[str, str]) -> bytes:
    """A line as a record that the database can read."""
    if is_wire(line):
        try:
            return _with_distinct_names(line, orjson.loads(line), spellings)
        except orjson.JSONDecodeError:  # torn, or damaged
            time, text = line[TIMESTAMP].decode(), line.decode("utf-8", "replace")
            return orjson.dumps({"timestamp": time, "level": "info", "message": text})
    converted = conversion.convert(line)
    with contextlib.suppress(orjson.JSONDecodeError):
        return _with_distinct_names(converted, orjson.loads(converted), spellings)
    with contextlib.suppress(ValueError, TypeError, RecursionError):  # NaN
        strict = orjson.dumps(json.loads(converted))
        return _with_distinct_names(strict, orjson.loads(strict), spellings)
    text = line.decode("utf-8", "replace")  # a lone surrogate
    return orjson.dumps({"level": "info", "message": text})


def _with_distinct_names(
    line: bytes, record: dict[str, Any], spellings: Mapping[str, str]
) -> bytes:
    """The line, its names changed where a database cannot have them as columns.

    Columns have a name, which differs from others not in its case alone. A time that is
    not understood is no `timestamp`.
    """
    is_timed = is_wire(line) or "timestamp" not in record
    is_distinct = len({name.lower() for name in record} | {""}) > len(record)
    if is_timed and is_distinct and not spellings:
        return line
    found: dict[str, Any] = {}
    taken: set[str] = set()
    for name, value in record.items():
        own = "timestamp_text" if name == "timestamp" and not is_timed else name or "_"
        while own.lower() in taken or spellings.get(own.lower(), own) != own:
            own = f"{spellings.get(own.lower(), own)}_"
        taken.add(own.lower())
        found[own] = value
    return orjson.dumps(found)
