"""The spools and the dead letters of one sink, in its directory. Blocks for the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from logagg.segment_log import SegmentLog
from logagg.spool_directory import (
    DEAD_LETTERS,
    INBOX,
    claim,
    take_over,
    tidy,
)
from logagg_sinks.delivery.dead_letters import DeadLetters, Letters

__all__ = ["Spools"]


class Spools:
    """A spool of the sink's own, and those that others left.

    Args:
        folder: The sink's directory, made when it is missing; None: nothing is kept on
            disk.
        url: The sink, secrets left out.
        limit_bytes: The limit of the own spool.
        in_memory: The own spool is in memory; the directory is for dead letters.

    Raises:
        ConfigError: The directory is not private.
        OSError: It cannot be used.

    Attributes:
        found: The spools that hold something, the sink's own last.
        torn: How many unfinished lines were cut off.
    """

    def __init__(
        self, folder: Path | None, url: str, limit_bytes: int, *, in_memory: bool
    ) -> None:
        self._folder = folder
        # With the own spool in memory, that on disk only holds the name of the letters.
        self._claimed: SegmentLog | None = None
        others: list[SegmentLog] = []
        if folder is not None:
            self._claimed = claim(folder, url, limit_bytes, keep_newest=True)
            try:
                others = take_over(folder) + self.inboxes()
            except BaseException:
                self._claimed.close()
                raise
        own = self._claimed
        if own is None or in_memory:
            own = SegmentLog(None, limit_bytes)
        self.found = [*others, own]
        on_disk = [] if self._claimed is None else [self._claimed]
        self.torn = sum(spool.torn for spool in (*on_disk, *others))

    def inboxes(self) -> list[SegmentLog]:
        """The logs that were put back since the last call."""
        return [] if self._folder is None else take_over(self._folder, INBOX)

    def letters(
        self,
        most_bytes: int,
        sink: str,
        clock: Callable[[], float],
        count: Callable[[str, int], None],
    ) -> Letters:
        """The file of dead letters of this process; see `Letters`."""
        assert self._folder is not None
        assert self._claimed is not None
        assert self._claimed.folder is not None
        path = self._folder / f"{DEAD_LETTERS}{self._claimed.folder.name}.ndjson"
        return Letters(DeadLetters(path, most_bytes), sink, clock, count)

    def close(self) -> None:
        """Release everything."""
        for spool in self.found:
            spool.close()
        if self._claimed is not None:
            self._claimed.close()

    def tidy(self) -> None:
        """Remove the directory when nothing is left in it."""
        if self._folder is not None:
            tidy(self._folder)
