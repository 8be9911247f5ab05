"""Options of delivery: how batches are made, and how long they are tried."""

from __future__ import annotations

from logagg_sinks._sink_options import Duration, Options, Size

__all__ = ["DeliveryOptions", "SpoolOptions"]


class DeliveryOptions(Options, frozen=True, kw_only=True):
    """The options of delivery, which have nothing to do with HTTP.

    Attributes:
        batch_records: A request holds at most so many records.
        batch_bytes: A request's body has at most so many bytes, before compression.
        batch_age: A record waits at most this long, in seconds, for others.
        record_bytes: A longer record has its longest texts cut; a mark in their place
            has the number of bytes.
        retry_max: The longest pause between attempts, in seconds, unless the target
            asks for more.
        attempts: A batch that failed so often is dead; 0 tries for as long as
            `max_age` allows.
        max_age: A record older than this, in seconds, is not sent any more but becomes
            a dead letter; 0 sends any.
        probe_interval: The pause, in seconds, while the target refuses all requests
            (wrong token, wrong certificate, wrong path) or every record.
    """

    batch_records: int = 1000
    batch_bytes: Size = 1024 * 1024
    batch_age: Duration = 1.0
    record_bytes: Size = 256 * 1024
    retry_max: Duration = 30.0
    attempts: int = 0
    max_age: Duration = 7 * 86400.0
    probe_interval: Duration = 30.0

    def __post_init__(self) -> None:
        for name in ("batch_records", "batch_bytes", "batch_age", "retry_max"):
            if getattr(self, name) <= 0:
                raise ValueError(f"option {name} must be more than 0")
        if self.probe_interval <= 0:
            raise ValueError("option probe_interval must be more than 0")
        for name in ("attempts", "max_age"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name} must not be negative")
        if self.record_bytes < 1024:
            raise ValueError("option record_bytes must be 1KiB or more")


class SpoolOptions(DeliveryOptions, frozen=True, kw_only=True):
    """The options of delivery and of the spool that it is from.

    Attributes:
        spool: The directory for undelivered records; `off` keeps them in memory, where
            they die with the process. Without it, one in the user's state directory.
        spool_bytes: How much may be undelivered; what comes then waits in the sink's
            queue, whose `policy` decides.
        dead_letter_bytes: The size at which a file of dead letters is turned over; 0
            keeps none.
        grace: Seconds that the end may take for last attempts.
    """

    spool: str = ""
    spool_bytes: Size = 1024 * 1024 * 1024
    dead_letter_bytes: Size = 100 * 1000 * 1000
    grace: Duration = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spool_bytes <= 0:
            raise ValueError("option spool_bytes must be more than 0")
        for name in ("dead_letter_bytes", "grace"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name} must not be negative")
