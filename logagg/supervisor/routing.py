"""What workers say: each frame to the part that it is for. On the supervisor's loop."""

from __future__ import annotations

import inspect
import os
import socket
from typing import TYPE_CHECKING, Any

from logagg.errors import WireError
from logagg.supervisor.channel import Frame
from logagg.supervisor.member import Member
from logagg.supervisor.pending import Pending

if TYPE_CHECKING:
    from logagg.supervisor.supervisor import Supervisor

__all__ = ["Router"]


class Router:
    """Takes frames apart.

    Attributes:
        members: All workers that are alive, by id.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._run = supervisor
        self.members: dict[int, Member] = {}

    def heard(self, member: Member, frame: Frame, fds: list[int]) -> None:
        """Handle one frame; what a confused worker sends harms only itself."""
        handler = getattr(self, f"_on_{frame['k']}", None)
        try:
            if handler is not None:
                handler(member, frame, fds)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            self._run.report.say(
                "error",
                "bad_frame",
                f"worker {member.slot} sent a frame that is not understood: {error!r}",
                slot=member.slot,
            )
        finally:
            for fd in fds:
                os.close(fd)
            fds.clear()

    # ---- states -------------------------------------------------------------------

    def _on_online(self, member: Member, _frame: Frame, _fds: list[int]) -> None:
        member.online_since = self._run.loop.time()
        self._run.emit("online", member)

    def _on_ready(self, member: Member, _frame: Frame, _fds: list[int]) -> None:
        member.said_ready = True
        self.make_ready(member)

    def _on_listening(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        member.listened = True
        self._run.serves = True
        for listener in self._run.listeners.all:
            listener.keep_path()
        address = {"host": frame["host"], "port": frame["port"]}
        self._run.emit("listening", member, address)
        self.make_ready(member)

    def make_ready(self, member: Member) -> None:
        """The worker can do its work."""
        if member.become_ready():
            self._run.emit("ready", member)

    def _on_hooks(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        member.hooks = int(frame["n"])

    def _on_hooks_done(self, member: Member, _frame: Frame, _fds: list[int]) -> None:
        member.hooks_done.set()

    def _on_pong(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        member.last_pong = self._run.loop.time()
        member.connections = int(frame["connections"])

    def _on_spent(self, member: Member, _frame: Frame, _fds: list[int]) -> None:
        self._run.recycle(member, "took its number of connections")

    def _on_crash(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        member.crash = str(frame["summary"])
        member.trace = str(frame["trace"])
        count = self._run.crashes.note(member.trace, self._run.loop.time())
        member.crash_count = count
        self._answer(member, frame, {"show": count == 1})

    # ---- messages -----------------------------------------------------------------

    def _on_ack(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        member.outbox.acknowledged([int(number) for number in frame["ids"]])

    def _on_message(self, member: Member, frame: Frame, fds: list[int]) -> None:
        sock = socket.socket(fileno=fds.pop(0)) if fds else None
        calls = self._run.handlers.get("message", member, frame.get("b"), sock)
        number = frame["id"]
        waiting: list[Any] = []
        for call in calls:
            try:
                result = call()
            except Exception as error:  # noqa: BLE001  reported; others go on
                self._failed("message", error)
                continue
            if inspect.isawaitable(result):
                waiting.append(self._run.spawn(result))
        left = len(waiting)

        def finished(_task: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                member.tell({"k": "ack", "ids": [number]})

        for task in waiting:
            task.add_done_callback(finished)
        if not waiting:
            member.tell({"k": "ack", "ids": [number]})

    def _failed(self, event: str, error: Exception) -> None:
        self._run.report.say(
            "error", "handler_failed", f"the {event} handler failed: {error!r}"
        )

    def _on_broadcast(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        number = frame["id"]
        receipt = self.broadcast(frame.get("b"))
        loop = self._run.loop
        receipt.add_done_callback(
            lambda _: loop.call_soon_threadsafe(
                member.tell, {"k": "ack", "ids": [number]}
            )
        )

    def broadcast(self, message: Any) -> Pending[None]:
        """Send a message to all workers; settled when all living ones have handled it."""
        everyone: Pending[None] = Pending()
        targets = [
            member
            for member in self.members.values()
            if member.link is not None and member.state in ("starting", "ready")
        ]
        left = len(targets)

        def received(_receipt: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                everyone.settle(None)

        if not targets:
            everyone.settle(None)
        for member in targets:
            receipt = member.post({"k": "message", "b": message}, [])
            receipt.add_done_callback(received)
        return everyone

    def _on_request(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        calls = self._run.handlers.get("request", member, frame.get("b"))
        if not calls:
            self._answer(member, frame, {"error": "no request handler is registered"})
            return
        try:
            result = calls[0]()
        except Exception as error:  # noqa: BLE001  told to the one who asked
            self._answer(member, frame, {"error": f"{type(error).__name__}: {error}"})
            return
        if not inspect.isawaitable(result):
            self._answer(member, frame, {"b": result})
            return

        async def answer() -> None:
            try:
                value = await result
            except Exception as error:  # noqa: BLE001  told to the one who asked
                text = f"{type(error).__name__}: {error}"
                self._answer(member, frame, {"error": text})
            else:
                self._answer(member, frame, {"b": value})

        self._run.spawn(answer())

    def _on_answer(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        if "error" in frame:
            member.answered(frame["q"], RuntimeError(str(frame["error"])))
        else:
            member.answered(frame["q"], frame.get("b"))

    def _answer(
        self, member: Member, frame: Frame, content: Frame, fds: list[int] | None = None
    ) -> None:
        head = {"k": "answer", "q": frame["q"]}
        try:
            member.tell({**head, **content}, fds)
        except WireError as error:
            member.tell({**head, "error": str(error)})

    # ---- tasks --------------------------------------------------------------------

    def _on_idle(self, member: Member, _frame: Frame, _fds: list[int]) -> None:
        self._run.tasks.idle(member)

    def _on_result(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        self._run.tasks.result(member, frame)
        self._run.tasks.idle(member)

    # ---- ports --------------------------------------------------------------------

    def _on_bind(self, member: Member, frame: Frame, fds: list[int]) -> None:
        """A worker binds an address: share it with the others."""
        family, host, port = int(frame["family"]), str(frame["host"]), frame["port"]
        listener = self._run.listeners.find(family, host, port)
        fresh = listener is None
        if listener is None:
            sock = socket.socket(fileno=fds.pop(0))
            try:
                listener = self._run.listeners.share(family, host, port, sock)
            except OSError as error:
                sock.close()
                self._answer(member, frame, {"errno": error.errno})
                return
        content = {"policy": listener.policy.value}
        if listener.handover is not None:
            lane = listener.handover.lane(member.id, member.slot)
            passed = [lane.theirs.fileno()] if lane.theirs is not None else []
            self._answer(member, frame, content, passed)
            listener.handover.started(member.id)
        elif fresh:
            self._answer(member, frame, content)
        else:
            self._answer(member, frame, content, [listener.sock.fileno()])

    def _on_real(self, member: Member, frame: Frame, _fds: list[int]) -> None:
        """A worker cannot be handed connections: it gets the shared socket itself."""
        for listener in self._run.listeners.all:
            address = listener.address
            if (address.host, address.port) == (frame["host"], frame["port"]):
                listener.sock.listen(2048)
                self._answer(member, frame, {}, [listener.sock.fileno()])
                return
