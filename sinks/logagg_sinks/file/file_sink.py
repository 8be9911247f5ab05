"""The file sink: records appended to files that rotate without losing or splitting any.

Order: records are in a file in the order of the stream. Loss: none by the sink. A batch
that could not be written is undone, so a retry leaves neither a duplicate nor half a
line; only the part in a file that was rotated meanwhile stays, and is remembered until
the retry. Written records survive the death of every process at once, and a power cut
after a few seconds (see `fsync`).

Parts: `PathTemplate` chooses the file of a record, `LogFile` rotates it, `Appender`
writes it, `Retention` tidies its pieces, `Syncer` forces it to the disk. Nothing blocks
the event loop: writing, syncing and compressing have a thread each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from logagg.abc import Batch, Sink, SinkURL
from logagg.errors import ConfigError, SinkUnavailable
from logagg.text import Template
from logagg_sinks._compression import require
from logagg_sinks._executor import SerialExecutor
from logagg_sinks._sink_options import make, query, read
from logagg_sinks.file.appender import Appender
from logagg_sinks.file.directory import LogDirectory, probe_path
from logagg_sinks.file.file_date import FileDate
from logagg_sinks.file.file_options import FileFormat, FileOptions
from logagg_sinks.file.fsync import Fsync, Syncer
from logagg_sinks.file.log_file import LogFile
from logagg_sinks.file.path_template import PathTemplate
from logagg_sinks.file.pieces.journal import Journal
from logagg_sinks.file.pieces.own_files import OwnFiles
from logagg_sinks.file.pieces.recall import Listed, written_since
from logagg_sinks.file.pieces.retention import Retention
from logagg_sinks.file.pieces.rotator import Rotator

__all__ = ["FileSink"]

MOST_OPEN = 128
"""Open files of one sink; beyond that the least recently used is closed."""

CLOSE_TIMEOUT = 10.0
"""Seconds that `close` waits for compressing; the next run finishes the rest."""

Key = tuple[str, ...]


class _Executors(NamedTuple):
    write: SerialExecutor
    sync: SerialExecutor
    background: SerialExecutor


class FileSink(Sink):
    """Append records to a file, or to several named by a template.

    Args:
        path: The file; missing directories are made. It may contain `{date}`,
            `{worker}` and `{logger}`; their values are made safe for a file's name.
        clock: Seconds since the epoch, for rotation by time; `time.time` by default.
        options: See `FileOptions`.

    Raises:
        ConfigError: An unknown option, a bad value, or an invalid path.
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
        self._executors: _Executors | None = None
        self._files: OrderedDict[Key, LogFile] = OrderedDict()
        self._warnings: dict[str, str] = {}
        self._tidy_queued = False
        self._make_keepers()
        self._partial: tuple[Batch, dict[Key, int]] | None = None
        self._busy = False

    def _make_keepers(self) -> None:
        own = OwnFiles(
            Journal(self._root / self._paths.base, self._paths.journal),
            dated=self.options.when is not None,
            literal=not self._paths.split,
        )
        self._date = FileDate(
            own,
            self._paths,
            self._clock,
            utc=self.options.utc,
            alarm=lambda text: self._set_warning(self._paths.text, text),
        )
        self._journal = own.journal
        self._rotator = Rotator(own)
        self._retention = Retention(
            own,
            self.options,
            self._clock,
            self.count,
            lambda text: self._set_warning("", text),
        )

    def _set_warning(self, name: str, text: str) -> None:
        if text:
            self._warnings[name] = f"{name} {text}".strip()
        else:
            self._warnings.pop(name, None)

    @property
    def warning(self) -> str:
        """A fault to put right although records are written; empty without one."""
        return next(iter(list(self._warnings.values())), "")

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
        return cls(target, **options)

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again."""
        options = query(self.options)
        path = quote(str(self.path), safe="/{}:,@+=~")
        return f"file:{path}" + (f"?{options}" if options else "")

    def owned_paths(self) -> tuple[str, ...]:
        """The path, unless it leads to a device, which any number may write."""
        path = os.path.abspath(self._root / self.path)
        shared = not self._paths.split and Path(path).is_char_device()
        return () if shared else (path,)

    def must_sync(self, batch: Batch) -> bool:
        """See `Sink`: by the option `fsync`."""
        policy = self.options.fsync
        return policy is Fsync.ALWAYS or (policy is not Fsync.NEVER and _urgent(batch))

    async def open(self) -> None:
        """Open the file, or create it.

        Raises:
            ConfigError: The path cannot be used.
            SinkUnavailable: It cannot be opened now (disk full).
        """
        if self._executors is None:
            name = f"logagg-file-{self.path.name}"
            self._executors = _Executors(
                SerialExecutor(name),
                SerialExecutor(f"{name}-sync"),
                SerialExecutor(f"{name}-keep", niceness=10),
            )
        try:
            if self._paths.dated:
                await self._executors.write.call(self._date.open)
            if self._paths.split:
                await self._executors.write.call(self._open_base)
                self._tidy()
            else:
                await self._file(())
        except OSError as error:
            raise self._unavailable(error) from error

    def _open_base(self) -> None:
        """Check the directory; count the names of files, but not those of strangers."""
        LogDirectory(base := self._root / self._paths.base).close()
        users = os.geteuid(), self._ownership.uid
        self._paths.remember(base, dated=self.options.when is not None, users=users)

    def _tidy(self) -> None:
        """Tidy the rotated files of all names, in the background."""
        if self._retention.busy and not self._tidy_queued:
            assert self._executors is not None
            self._tidy_queued = True
            self._executors.background.submit(self._tidy_now)

    def _tidy_now(self) -> None:
        self._tidy_queued = False
        self._set_warning("", "")
        self._retention.tidy()

    async def write(self, batch: Batch) -> None:
        """Append the batch.

        Raises:
            SinkUnavailable: The system refused it (disk full, size limit, I/O error,
                the path was made unsafe); a retry of the same batch continues where
                it stopped.
        """
        if self._executors is None:
            raise SinkUnavailable(f"file {self.path} is not open")
        if self._busy:  # the last call was cancelled: wait for its thread
            await self._executors.write.call(lambda: None)
        if self._partial is None or not _same(self._partial[0], batch):
            self._partial = (batch, {})
        self._busy = True
        try:
            await self._append(batch, self._partial[1])
        except (OSError, ConfigError) as error:
            self._busy = False
            raise self._unavailable(error) from error
        self._busy = False
        self._partial = None

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
        if self.options.format is FileFormat.JSON:
            return batch.data
        assert self._executors is not None
        return await self._executors.write.call(self._render, batch)

    def _render(self, batch: Batch) -> bytes:
        render = self._template.render
        text = "".join([render(record) for record in batch.records()])
        return text.encode("utf-8", "replace")

    async def _turn_day(self) -> None:
        """Close the files of the day before when the date changes."""
        if self._date.is_due():
            assert self._executors is not None
            date = await self._executors.write.call(self._date.note_next)
            if date:
                await self._close_files()
                self._date.current = date

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
        options, executors = self.options, self._executors
        assert executors is not None
        date = self._date.current
        name = self._paths.log_name(values, date)
        path = self._root / self._paths.expand(values, date)
        appender = Appender(
            path,
            executors.write,
            ownership=self._ownership,
            json=options.format is FileFormat.JSON,
            below=self._paths.below,
            prepare=lambda folder: self._rotator.prepare(folder, name),
        )
        return LogFile(
            appender,
            name,
            self._rotator,
            tidy=self._tidy,
            alarm=lambda text: self._set_warning(name.name, text),
            executor=executors.write,
            clock=self._clock,
            options=options,
            sync=Syncer(
                options.fsync, options.fsync_interval, executors.sync, self.count
            ),
        )

    async def written_since(self, since: bytes) -> frozenset[bytes]:
        """See `Sink`; empty for text files, which may get a record twice.

        Raises:
            SinkUnavailable: It is not open, or no descriptor is free for the search.
        """
        if self.options.format is not FileFormat.JSON:
            return frozenset()
        if self._executors is None:
            raise SinkUnavailable(f"file {self.path} is not open")
        return await self._executors.write.call(written_since, self._logs, since)

    def _logs(self) -> list[list[Listed]]:
        """The files to search: each log with its own pieces.

        A file with a fitting name that is not proven to be of this sink, such as one
        that logrotate made, is a log by itself: it takes nothing from the others.
        """
        base = self._journal.base
        logs: dict[str, list[Listed]] = {}
        alone: list[list[Listed]] = []
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError, ConfigError):
                # Else a name that comes while another goes could be missed with it.
                held.enter_context(self._journal.reading())
            for path in self._paths.files(base, dated=self.options.when is not None):
                try:
                    file = Listed.of(path)
                except OSError:
                    continue
                place = (os.path.dirname(path.relative_to(base)), file.inode)
                claim = self._journal.claims.get(place)
                if claim is not None:
                    logs.setdefault(claim.series, []).append(file)
                else:
                    alone.append([file])
        return [*logs.values(), *alone]

    async def reopen(self) -> None:
        """Open the files' names anew, for a log rotation from outside.

        Raises:
            SinkUnavailable: A file cannot be opened now.
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

    async def probe(self, timeout: float) -> tuple[str, str]:  # noqa: ASYNC109, ARG002
        """Check for `logagg check` whether the file could be written; change nothing.

        Raises:
            ConfigError: It cannot.
        """
        return "ok", probe_path(self.path)

    async def close(self) -> None:
        """Close the files and let compressing finish. May be called twice."""
        executors = self._executors
        if executors is None:
            return
        await self._close_files()
        self._executors = None
        last = [each.call(lambda: None) for each in executors]
        for each in executors:
            each.shutdown(wait=False)
        _, busy = await asyncio.wait(last, timeout=CLOSE_TIMEOUT)
        if not busy:
            self._journal.close()

    def _unavailable(self, error: Exception) -> SinkUnavailable:
        if isinstance(error, SinkUnavailable):
            return error
        why = error.strerror if isinstance(error, OSError) else str(error)
        return SinkUnavailable(f"cannot write to file {self.path}: {why or error}")


def _same(one: Batch, other: Batch) -> bool:
    return one is other or one.lines == other.lines


def _urgent(batch: Batch) -> bool:
    """Whether there is a critical record."""
    return batch.has_level("critical")


def _wall_clock() -> float:
    return time.time()  # looked up at each call, so that a test may freeze it


def _expected(error: ValueError) -> str:
    text = str(error)
    return text if text.startswith("option ") else f"expected {text}"
