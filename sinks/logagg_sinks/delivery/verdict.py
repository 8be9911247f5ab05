"""Outcome of one request, as every kind of target gives it to the delivery loop. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from logagg_sinks.delivery.retry import Action

__all__ = ["Verdict"]


@dataclass(slots=True)
class Verdict:
    """Outcome of a request.

    Attributes:
        action: The consequence; with OK, `refused` and `again` have the exceptions.
        reason: The reason in words, for logs and dead letters.
        status: The status, 0 without an answer.
        text: The beginning of the answer's body.
        asked: Seconds that the target asked to wait.
        refused: Records that will never be taken: index to reason.
        again: Records to send again: their indices.
        aside: How many were stored where the target puts what does not fit.
        uncounted: How many more were refused; the target does not name them.
        warning: It was taken, and `text` is worth a warning.
        ambiguous: The target may have taken it without an answer.
        cut_off: The connection was reset before there was an answer.
        hold: `again` waits until a person repairs something.
        at_once: `again` is sent without a pause.
        receipt: An id to be confirmed by the target before the records count.
        final: Records that were refused must not be sent again.
        gave_up: The attempts that the user allows are over.
        attempts: How often the records were sent.
    """

    action: Action
    reason: str = ""
    status: int = 0
    text: str = ""
    asked: float | None = None
    refused: dict[int, str] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    aside: int = 0
    uncounted: int = 0
    warning: bool = False
    ambiguous: bool = False
    cut_off: bool = False
    hold: bool = False
    at_once: bool = False
    receipt: str = ""
    final: bool = False
    gave_up: bool = False
    attempts: int = 0

    def lost(self, records: int) -> int:
        """How many of so many records did not reach the place where they belong."""
        if self.action is not Action.OK:
            return records
        return min(records, len(self.refused) + self.aside + self.uncounted)
