"""The file sink: records appended to files that rotate without losing or splitting any.

Order: records stand in a file in the order of the stream. Loss: none by the sink. A
batch that could not be written is taken back, so that trying it again leaves neither a
duplicate nor half a line; only what went into a file that was rotated meanwhile stays,
and is remembered until the batch is tried again. What was written survives the death of
every process at once and a power cut after a few seconds (see `fsync`).

How it is made: `PathTemplate` tells which file a record goes to, `LogFile` when that
file is cut, `Appender` writes it, `Keeper` looks after its pieces, `Syncer` after the
disk. Nothing of it blocks the event loop: writing, syncing and compressing have a
thread each.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import msgspec

from logagg.abc import Batch, Sink
from logagg.errors import ConfigError, SinkUnavailable
from logagg.sinks import SinkURL
from logagg_sinks._appender import Appender
from logagg_sinks._archive import require
from logagg_sinks._fileoptions import FileOptions, Format
from logagg_sinks._keeper import Keeper
from logagg_sinks._lane import Lane
from logagg_sinks._logfile import LogFile
from logagg_sinks._naming import PathTemplate
from logagg_sinks._options import make, query, read
from logagg_sinks._place import Place
from logagg_sinks._recall import recall
from logagg_sinks._rotation import Names
from logagg_sinks._sync import Syncer
from logagg_sinks._text import Template

__all__ = ["FileSink"]

MOST_OPEN = 128
"""How many files of one sink are open at a time; the least recently used is closed."""

CLOSE_TIMEOUT = 10.0
"""Seconds that `close` waits for compressing; what is left the next run finishes."""

Key = tuple[str, ...]


class _Lanes(NamedTuple):
    write: Lane
    sync: Lane
    back: Lane


class FileSink(Sink):
    """Append records to a file, or to several named by a template.

    Args:
        path: The file; missing directories are made. It may have `{date}`, `{worker}`
            and `{logger}` in it; what they stand for is made safe for a file's name.
        clock: Seconds since the epoch, for rotation by time; `time.time` by default.
        options: See `FileOptions`.

    Raises:
        ConfigError: An unknown option, a bad value, or a path that cannot be one.
    """

    scheme = "file"
    durable = True

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        what = f"sink file:{path}"
        self.path = Path(path)
        self.options = make(FileOptions, options, what=what)
        try:
            self._paths = PathTemplate(str(path))
            self.options.check_path(self._paths)
            self._ownership = self.options.ownership()
        except ValueError as error:
            raise ConfigError(f"{what}: {_expected(error)}") from None
        if self.options.compress is not None:
            require(self.options.compress)
        self._clock = clock or _wall_clock
        self._template = Template(self.options.template)
        self._root = Path.cwd()
        self._lanes: _Lanes | None = None
        self._files: OrderedDict[Key, LogFile] = OrderedDict()
        self._date = ""
        self._begun: tuple[list[bytes], dict[Key, int]] | None = None
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
        if self._lanes is None:
            name = f"logagg-file-{self.path.name}"
            self._lanes = _Lanes(
                Lane(name), Lane(f"{name}-sync"), Lane(f"{name}-keep", niceness=10)
            )
        try:
            if self._paths.split:
                base = self._root / self._paths.base
                future = self._lanes.write.submit(lambda: Place(base).close())
                await asyncio.wrap_future(future)
            else:
                await self._file(())
        except OSError as error:
            raise self._unavailable(error) from error

    async def write(self, batch: Batch) -> None:
        """Append the batch.

        Raises:
            SinkUnavailable: The system refused it (disk full, size limit, I/O error,
                the path was made unsafe); trying the same batch again goes on where
                it stopped.
        """
        if self._lanes is None:
            raise SinkUnavailable(f"file {self.path} is not open")
        if self._busy:  # the last call was cancelled: let the thread finish its part
            await asyncio.wrap_future(self._lanes.write.submit(lambda: None))
        if self._begun is None or self._begun[0] != batch.lines:
            self._begun = (batch.lines, {})
        self._busy = True
        try:
            await self._append(batch, self._begun[1])
        except (OSError, ConfigError) as error:
            self._busy = False
            raise self._unavailable(error) from error
        self._busy = False
        self._begun = None

    async def _append(self, batch: Batch, done: dict[Key, int]) -> None:
        if self._paths.dated:
            await self._turn_day()
        for key, part in self._parts(batch):
            data = await self._bytes(part)
            start = done.get(key, 0)
            if start < len(data):
                file = await self._file(key)

                def progress(end: int, key: Key = key) -> None:
                    done[key] = end

                await file.write(data, start, progress, urgent=_urgent(part))

    def _parts(self, batch: Batch) -> Iterator[tuple[Key, Batch]]:
        if not self._paths.split:
            yield (), batch
            return
        for key, places in self._paths.group(batch.lines).items():
            yield key, batch.select([batch.lines[place] for place in places])

    async def _bytes(self, batch: Batch) -> bytes:
        if self.options.format is Format.JSON:
            return batch.data
        assert self._lanes is not None
        return await asyncio.wrap_future(self._lanes.write.submit(self._render, batch))

    def _render(self, batch: Batch) -> bytes:
        render = self._template.render
        text = "".join([render(record) for record in batch.records()])
        return text.encode("utf-8", "replace")

    async def _turn_day(self) -> None:
        """Leave the files of yesterday when the date in the name is another one."""
        date = self._today()
        if date != self._date:
            await self._close_files()
            self._date = date

    def _today(self) -> str:
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        if not self.options.utc:
            now = now.astimezone()
        return now.strftime("%Y-%m-%d")

    async def _file(self, key: Key) -> LogFile:
        """The file for these values of the template's fields, opened."""
        file = self._files.get(key)
        if file is not None:
            self._files.move_to_end(key)
            return file
        if len(self._files) >= MOST_OPEN:
            _, oldest = self._files.popitem(last=False)
            await oldest.close()
        file = self._make(dict(zip(self._paths.split, key, strict=True)))
        try:
            await file.open()
        except BaseException:
            await file.close()
            raise
        self._files[key] = file
        return file

    def _make(self, values: dict[str, str]) -> LogFile:
        assert self._lanes is not None
        options = self.options
        if self._paths.dated and not self._date:
            self._date = self._today()
        path = self._root / self._paths.expand(values, self._date)
        appender = Appender(
            path,
            self._lanes.write,
            ownership=self._ownership,
            json=options.format is Format.JSON,
            below=self._paths.below,
        )
        keeper = Keeper(
            Names(
                path.name,
                dated=options.when is not None,
                family=self._paths.family(values),
            ),
            clock=self._clock,
            count=self.count,
            compression=options.compress,
            backups=options.backups,
            max_age=options.max_age,
            max_total_bytes=options.max_total_bytes,
            reserve=options.max_bytes,
        )
        return LogFile(
            appender,
            keeper,
            lane=self._lanes.write,
            back=self._lanes.back,
            clock=self._clock,
            max_bytes=options.max_bytes,
            schedule=options.schedule(),
            sync=Syncer(
                options.fsync, options.fsync_interval, self._lanes.sync, self.count
            ),
        )

    async def recall(self, since: bytes) -> frozenset[bytes]:
        """Which records stamped at or after a sort key stand in the files already.

        Only for JSON files; a text file cannot tell, so there a record may stand twice
        after the consumer was killed.
        """
        if self._lanes is None or self.options.format is not Format.JSON:
            return frozenset()
        future = self._lanes.write.submit(lambda: recall(self._candidates(), since))
        return await asyncio.wrap_future(future)

    def _candidates(self) -> list[list[Path]]:
        """The files that may hold them: each log with its pieces, the newest first."""
        base = self._root / self._paths.base
        if self._paths.split:
            return [[path] for path in base.rglob("*") if path.is_file()]
        start = self.path.name.partition("{")[0]
        pieces = [path for path in base.iterdir() if path.name.startswith(start)]
        files = [path for path in pieces if path.is_file()]
        return [sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)]

    async def reopen(self) -> None:
        """Open the files' names anew, for a log rotation from outside.

        Raises:
            SinkUnavailable: A name leads to what cannot be written to now.
        """
        try:
            for file in self._files.values():
                await file.reopen()
        except (OSError, ConfigError) as error:
            raise self._unavailable(error) from error

    async def _close_files(self) -> None:
        while self._files:
            _, file = self._files.popitem()
            await file.close()

    async def close(self) -> None:
        """Close the files and let compressing finish. May be called twice."""
        lanes = self._lanes
        if lanes is None:
            return
        await self._close_files()
        self._lanes = None
        last = [lane.submit(lambda: None) for lane in lanes]
        for lane in lanes:
            lane.shutdown(wait=False)
        futures = [asyncio.wrap_future(future) for future in last]
        await asyncio.wait(futures, timeout=CLOSE_TIMEOUT)

    def _unavailable(self, error: Exception) -> SinkUnavailable:
        if isinstance(error, SinkUnavailable):
            return error
        why = error.strerror if isinstance(error, OSError) else str(error)
        return SinkUnavailable(f"cannot write to file {self.path}: {why or error}")


def _urgent(batch: Batch) -> bool:
    """Whether there is a critical record; a nested field that looks like one may do.

    One search over all lines is a third of a look at each; backwards, where Python's
    search skips what cannot match.
    """
    return batch.data.rfind(b'","level":"critical"') >= 0


def _wall_clock() -> float:
    return time.time()  # looked up at each call, so that a test may freeze it


def _expected(error: ValueError) -> str:
    text = str(error)
    return text if text.startswith("option ") else f"expected {text}"
