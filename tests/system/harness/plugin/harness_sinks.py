"""Sinks of a third party, for tests: found through their own entry point.

`slow:FILE?seconds=0.05` appends to a file and takes its time over each record;
`stuck:FILE` never finishes a write while FILE exists.
"""

import asyncio
import os

from logagg.abc import Sink
from logagg.errors import ConfigError


class _Base(Sink):
    def __init__(self, path, seconds):
        super().__init__()
        self.path = path
        self.seconds = seconds

    @classmethod
    def from_url(cls, url):
        options = dict(url.options)
        seconds = float(options.pop("seconds", 0.05))
        for key in options:
            raise ConfigError(f"sink {url.shown}: unknown option {key!r}")
        return cls(url.target, seconds)

    @property
    def url(self):
        return f"{self.scheme}:{self.path}?seconds={self.seconds}"


class SlowSink(_Base):
    scheme = "slow"
    durable = True

    async def write(self, batch):
        for line in batch.finished():
            await asyncio.sleep(self.seconds)
            with open(self.path, "ab") as file:
                file.write(line)


class StuckSink(_Base):
    scheme = "stuck"

    async def write(self, batch):
        while os.path.exists(self.path):
            await asyncio.sleep(0.02)


class FailingSink(_Base):
    """Raises what no sink should raise."""

    scheme = "failing"

    async def write(self, batch):
        raise RuntimeError("a bug of the plug-in")
