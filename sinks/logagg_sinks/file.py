"""The file sink: NDJSON appended to a file that rotates without losing or splitting.

Order: records stand in the file in the order of the stream. Loss: none by the sink; a
batch that could not be written is taken back whole, so trying it again leaves neither
a duplicate nor half a line. A batch spread over a rotation is remembered up to the
rotation: the part in the rotated file is not written again.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from logagg.abc import Batch, Sink
from logagg.errors import ConfigError, SinkUnavailable
from logagg.sinks import SinkURL
from logagg_sinks._appender import Appender
from logagg_sinks._lane import Lane
from logagg_sinks._options import Options, Size, make, query, read
from logagg_sinks._place import Ownership, Place
from logagg_sinks._rotation import cut, numbered, shift

__all__ = ["FileSink"]

T = TypeVar("T")


class FileOptions(Options, frozen=True, kw_only=True):
    """The options of a file.

    Attributes:
        max_bytes: Rotate before the file grows beyond this; 0 never does. A single
            record longer than this gets a file of its own.
        backups: How many rotated files are kept; 0 keeps all.
    """

    max_bytes: Size = 0
    backups: int = 0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "backups"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name} must not be negative")


class FileSink(Sink):
    """Append records to a file, one line of JSON each.

    Args:
        path: The file; missing directories are made.
        options: See `FileOptions`.

    Raises:
        ConfigError: An unknown option or a bad value.
    """

    scheme = "file"
    durable = True

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__()
        self.path = Path(path)
        self.options = make(FileOptions, options, what=f"sink file:{path}")
        self._lane: Lane | None = None
        self._file: Appender | None = None
        self._begun: tuple[bytes, int] | None = None  # a batch cut by a rotation
        self._busy = False

    @classmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build it from `file:PATH?options`."""
        options = read(FileOptions, url)
        target = url.target
        if target.startswith("//"):
            if not target.startswith("///"):
                raise ConfigError(
                    f"sink {url.shown}: write file:PATH, or file:///PATH from the root"
                )
            target = "/" + target.lstrip("/")
        return cls(target, **msgspec.structs.asdict(options))

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again."""
        options = query(self.options)
        path = quote(str(self.path), safe="/{}:,@+=~")
        return f"file:{path}" + (f"?{options}" if options else "")

    async def open(self) -> None:
        """Open the file, or make it.

        Raises:
            ConfigError: The path cannot be used; the message says why.
            SinkUnavailable: It cannot be opened now (disk full, say).
        """
        if self._file is None:
            self._lane = Lane(f"logagg-file-{self.path.name}")
            self._file = Appender(
                self.path.absolute(), self._lane, ownership=Ownership()
            )
        try:
            await self._run(self._file.look)
        except OSError as error:
            if isinstance(error, SinkUnavailable):
                raise
            raise self._unavailable(error) from error

    async def write(self, batch: Batch) -> None:
        """Append the batch.

        Raises:
            SinkUnavailable: The system refused it (disk full, size limit, I/O error,
                the path was made unsafe); nothing of the batch stands in the file.
        """
        if self._busy:  # the last call was cancelled: let the thread finish its part
            await self._run(lambda: None)
        self._busy = True
        try:
            await self._append(batch.data)
        except (OSError, ConfigError) as error:
            self._busy = False
            raise self._unavailable(error) from error
        self._busy = False

    async def _append(self, data: bytes) -> None:
        file = self._opened()
        start = 0
        if self._begun is not None and self._begun[0] == data:
            start = self._begun[1]
        else:
            self._begun = None
        retried = False
        while start < len(data):
            if file.due or not file.is_open:
                await self._run(file.look)
            end = self._end(file, data, start)
            if end == start:
                await self._rotate()
                continue
            try:
                await file.write(data, start, end)
            except OSError as error:
                await self._run(file.settle)
                if error.errno == errno.EFBIG and file.size and not retried:
                    retried = True
                    await self._rotate()
                    continue
                raise
            start = end
            if start < len(data):
                self._begun = (data, start)
        self._begun = None

    def _end(self, file: Appender, data: bytes, start: int) -> int:
        limit = self.options.max_bytes
        if not limit or not file.regular:
            return len(data)
        end = cut(data, start, limit - file.size)
        if end == start and file.size == 0:
            return data.index(b"\n", start) + 1
        return end

    async def _rotate(self) -> None:
        file = self._opened()

        def rename(place: Place, name: str) -> None:
            for old, new in shift(name, place.names()):
                place.rename(old, new)
            place.rename(name, f"{name}.1")
            if self.options.backups:
                for number, names in numbered(name, place.names()).items():
                    for old in names if number > self.options.backups else ():
                        place.remove(old)

        await self._run(lambda: file.rotate(rename))
        self.count("rotated")

    async def reopen(self) -> None:
        """Open the file's name anew, for a log rotation from outside."""
        try:
            await self._run(self._opened().reopen)
        except (OSError, ConfigError) as error:
            raise self._unavailable(error) from error

    async def close(self) -> None:
        """Close the file. May be called twice."""
        lane, self._lane = self._lane, None
        file, self._file = self._file, None
        if lane is not None and file is not None:
            await asyncio.wrap_future(lane.submit(file.close))
            lane.shutdown(wait=False)

    def _opened(self) -> Appender:
        if self._file is None:
            raise SinkUnavailable(f"file {self.path} is not open")
        return self._file

    async def _run(self, call: Callable[[], T]) -> T:
        if self._lane is None:
            raise SinkUnavailable(f"file {self.path} is not open")
        return await asyncio.wrap_future(self._lane.submit(call))

    def _unavailable(self, error: Exception) -> SinkUnavailable:
        if isinstance(error, SinkUnavailable):
            return error
        why = error.strerror if isinstance(error, OSError) else str(error)
        return SinkUnavailable(f"cannot write to file {self.path}: {why or error}")
