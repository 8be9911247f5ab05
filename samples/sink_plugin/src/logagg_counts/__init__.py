"""A sink that keeps the number of records of each level in a small JSON file."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import msgspec

from logagg.abc import Batch, Sink
from logagg.errors import SinkUnavailable
from logagg.options import Duration, from_texts, make, query
from logagg.sinks import SinkURL

__all__ = ["CountsSink"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the sink; a `msgspec.Struct` is the only list of them.

    Attributes:
        every: Seconds between two writes of the file.
    """

    every: Duration = 10.0

    def __post_init__(self) -> None:
        if self.every <= 0:
            raise ValueError("option every must be positive")


class CountsSink(Sink):
    """Count records by level.

    Not durable: what came since the file was written last goes with the process.

    Args:
        path: The file; it is replaced as a whole, so readers never see half of it.
        options: See `Options`.
    """

    scheme = "counts"

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__()
        self.path = Path(path)
        self.options = make(Options, options, what=f"sink counts:{path}")
        self.levels: Counter[str] = Counter()
        self._written = 0.0

    @classmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build it from `counts:PATH?every=10s`."""
        options = from_texts(Options, url.options, what=f"sink {url.shown}")
        return cls(url.target, **options)

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again."""
        options = query(self.options)
        return f"counts:{self.path}" + (f"?{options}" if options else "")

    async def write(self, batch: Batch) -> None:
        """Count the batch, and write the file when it is time to.

        Raises:
            SinkUnavailable: The file cannot be written now.
        """
        found = Counter(record["level"] for record in batch.records())
        self.levels += found
        if time.monotonic() - self._written >= self.options.every:
            try:
                await self.flush()
            except SinkUnavailable:
                self.levels -= found  # the same batch will come again
                raise

    async def flush(self) -> None:
        """Write the file."""
        await asyncio.to_thread(self._replace, msgspec.json.encode(self.levels))
        self._written = time.monotonic()

    def _replace(self, data: bytes) -> None:
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            new.write_bytes(data)
            os.replace(new, self.path)
        except OSError as error:
            raise SinkUnavailable(f"cannot write {self.path}: {error}") from error

    async def close(self) -> None:
        """Write the file a last time."""
        if self.levels:
            await self.flush()
