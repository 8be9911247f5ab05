"""Checks of a target for `logagg check`: requests that change nothing there.

Each kind of target has its own `Question`s, asked one after the other with the sink's
own client, so with its certificates, secrets, headers, proxy and deadlines. The first
answer that is not well ends the check. No record is sent and the spool is not touched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from logagg_sinks.http.http_client import Response, SendError

__all__ = ["Question", "ask", "beside"]

_SENT_AWAY = {
    401: "the secret is refused or missing: see the options token and auth",
    403: "the secret has no right to this",
    404: "nothing is at this path",
    407: "the proxy wants a password",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A request that changes nothing.

    Attributes:
        method: Its method.
        path: Its path; empty: where records go to.
        body: Its body.
        well: What statuses mean that are well.
        unclear: What statuses mean that leave open whether records will be taken.
        bad: What other statuses mean, where more is known than everybody knows.
    """

    method: str
    path: str = ""
    body: bytes = b""
    well: Mapping[int, str] = field(default_factory=dict)
    unclear: Mapping[int, str] = field(default_factory=dict)
    bad: Mapping[int, str] = field(default_factory=dict)

    def judge(self, answer: Response) -> tuple[str, str]:
        """The state that an answer shows ("ok", "note", "down"), and a description."""
        status = answer.status
        if status in self.well:
            state, meaning = "ok", self.well[status]
        elif status in self.unclear:
            state, meaning = "note", self.unclear[status]
        else:
            state = "down"
            meaning = self.bad.get(status) or _meaning(status)
            said = " ".join(answer.text[:200].split())
            if said and said.isprintable():
                meaning = f"{meaning}; its answer: {said}"
        asked = f"{self.method} {self.path}".strip()
        return state, f"{asked}: {_named(status)}" + (f": {meaning}" if meaning else "")


async def ask(
    questions: Sequence[Question], send: Callable[[Question], Awaitable[Response]]
) -> tuple[str, str]:
    """Send the requests until an answer is not well.

    Returns:
        "ok", "note" (it answers, but whether it takes records stays open) or "down";
        and a description.
    """
    found = []
    for question in questions:
        try:
            state, said = question.judge(await send(question))
        except SendError as error:
            state, said = "down", str(error)
        found.append(said)
        if state != "ok":
            return state, said
    return "ok", "; ".join(found)


def beside(path: str, usual: str, other: str) -> str:
    """The path of another door of a target whose records go to `path`.

    Args:
        path: Where records go to.
        usual: The end of it that is the door for records.
        other: The door that is meant. What stands before `usual` is kept.
    """
    return path.removesuffix(usual) + other if path.endswith(usual) else other


def _meaning(status: int) -> str:
    if 300 <= status < 400:
        return "it redirects, which is not followed: give the final URL"
    if status >= 500:
        return "the target has trouble"
    return _SENT_AWAY.get(status, "that is no answer that this target gives when well")


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
