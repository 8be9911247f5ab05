"""Policy rr: the supervisor accepts connections and hands each to a worker. One loop.

Theory of operation
-------------------
Each worker has a *lane*: a packet socket that is the worker's "listening socket" (see
`doors`). The supervisor sends one accepted connection down a lane and keeps its own
copy until the worker acknowledges; only then is the lane free for the next. So

- a worker that is stuck holds at most one connection,
- the connection of a worker that died without acknowledging goes to a sibling, with
  not a byte read from it (all reading before was peeking).

Turns: lanes take turns strictly, which keeps long-lived connections even to ±1. A lane
that is not free when its turn comes is waited for `PATIENCE` seconds; after that it is
passed over until it acknowledges.

Sticky: the client's key is peeked from the head of its first request. A head that is
not there is waited for, `PEEK_TIMEOUT` seconds at most and never in the accept path;
then the connection takes its turn like any other.

While no lane is open nothing is accepted: clients wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from logagg.supervisor.address import BACKLOG, Address
from logagg.supervisor.sticky import HEAD_BYTES, Sticky, choose_slot

__all__ = ["Connection", "Handover", "Lane"]

PATIENCE = 0.25
PEEK_TIMEOUT = 1.0
ACK_TIMEOUT = 1.0
MOST_WAITING = 512
_AT_ONCE = 64


@dataclass(slots=True, eq=False)
class Connection:
    """A connection on its way to a worker, as `choose` callbacks see it.

    Attributes:
        sock: The connection; look at it only with `MSG_PEEK`.
        peer: The client's address.
        head: What was peeked of the first request; empty when nothing was.
    """

    sock: socket.socket
    peer: Any
    head: bytes = b""
    slot: int | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """A worker's lane. `opened` once the worker listens; `given` is not acknowledged."""

    slot: int
    worker: int
    ours: socket.socket
    theirs: socket.socket | None
    opened: bool = False
    closing: bool = False
    given: Connection | None = None
    behind: bool = False
    acknowledged: int = 0
    queue: deque[Connection] = field(default_factory=deque)


class Handover:
    """The accepting and handing over for one listening socket.

    Args:
        address: Where it listens.
        listener: The bound socket; owned from now on.
        sticky: What makes connections belong together, if anything does.
        choose: Called with the open slots and a `Connection`; returns a slot or None.
        unfit: Called once when a live worker never acknowledges: it cannot take
            connections this way.
    """

    def __init__(
        self,
        address: Address,
        listener: socket.socket,
        *,
        sticky: Sticky | None,
        choose: Callable[..., Any] | None,
        unfit: Callable[[Handover, Lane], None],
    ) -> None:
        self.address = address
        self.listener = listener
        self.dropped = 0
        self._sticky = sticky
        self._choose = choose
        self._unfit = unfit
        self._lanes: dict[int, Lane] = {}
        self._turns: deque[Lane] = deque()
        self._waiting: deque[Connection] = deque()
        self._peeking: set[Connection] = set()
        self._patience: asyncio.TimerHandle | None = None
        self._accepting = False
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)

    # ---- lanes --------------------------------------------------------------------

    def lane(self, worker: int, slot: int) -> Lane:
        """The lane of a worker; made on the first call."""
        found = self._lanes.get(worker)
        if found is not None:
            return found
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        lane = Lane(slot, worker, ours, theirs)
        self._lanes[worker] = lane
        self._loop.add_reader(ours.fileno(), self._lane_readable, lane)
        return lane

    def started(self, worker: int) -> None:
        """The worker's process has its end of the lane: let go of ours of it."""
        lane = self._lanes.get(worker)
        if lane is not None and lane.theirs is not None:
            lane.theirs.close()
            lane.theirs = None

    def stop(self, worker: int) -> None:
        """Hand nothing more to the worker; what it has not acknowledged may come yet."""
        lane = self._lanes.get(worker)
        if lane is None or lane.closing:
            return
        lane.closing = True
        self._redistribute(lane)

    def settled(self, worker: int) -> bool:
        """Whether the worker has acknowledged all that it was given."""
        lane = self._lanes.get(worker)
        return lane is None or lane.given is None

    def acknowledged(self, worker: int) -> int:
        """How many connections the worker took."""
        lane = self._lanes.get(worker)
        return 0 if lane is None else lane.acknowledged

    def remove(self, worker: int) -> None:
        """The worker is dead: what it did not acknowledge goes to another."""
        lane = self._lanes.pop(worker, None)
        if lane is None:
            return
        lane.closing = True
        if lane in self._turns:  # before anything can be given to it
            self._turns.remove(lane)
        self._loop.remove_reader(lane.ours.fileno())
        try:
            self._lane_readable(lane)  # an acknowledgement may be among its last words
        except OSError:
            pass
        lane.ours.close()
        self.started(worker)
        if lane.theirs is not None:
            lane.theirs.close()
        if lane.given is not None:
            lane.queue.appendleft(lane.given)
            lane.given = None
        self._redistribute(lane)

    def _redistribute(self, lane: Lane) -> None:
        if lane in self._turns:
            self._turns.remove(lane)
        moved = list(lane.queue)
        lane.queue.clear()
        for connection in reversed(moved):
            connection.slot = None
            self._waiting.appendleft(connection)
        self._advance()

    def _lane_readable(self, lane: Lane) -> None:
        while True:
            try:
                packet = lane.ours.recv(16)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if packet == b"open":
                if not lane.opened and not lane.closing:
                    lane.opened = True
                    self._turns.append(lane)
            elif packet == b"ack":
                self._acknowledge(lane)
            elif not packet:
                self._loop.remove_reader(lane.ours.fileno())
                self.stop(lane.worker)
                break
        self._advance()

    def _acknowledge(self, lane: Lane) -> None:
        lane.acknowledged += 1
        lane.behind = False
        if lane.given is not None:
            lane.given.sock.close()
            lane.given = None
        if lane.queue and not lane.closing:
            self._give(lane, lane.queue.popleft())

    # ---- accepting ----------------------------------------------------------------

    def _advance(self) -> None:
        """Do all that can be done now: hand over, and accept or pause accepting."""
        self._hand_out()
        queued = len(self._waiting) + sum(len(lane.queue) for lane in self._turns)
        wanted = bool(self._turns) and queued < MOST_WAITING
        if wanted and not self._accepting:
            self.listener.listen(BACKLOG)
            self._loop.add_reader(self.listener.fileno(), self._acceptable)
        elif self._accepting and not wanted:
            self._loop.remove_reader(self.listener.fileno())
        self._accepting = wanted

    def _acceptable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, peer = self.listener.accept()
            except BlockingIOError:
                break
            except OSError:
                break  # aborted by the client, or out of descriptors: try again later
            sock.setblocking(False)
            self._route(Connection(sock, peer))
        self._advance()

    def _route(self, connection: Connection) -> None:
        if self._choose is None and self._sticky is None:
            self._waiting.append(connection)
        elif self._sticky is not None and self._sticky.kind == "ip":
            host = connection.peer[0] if connection.peer else ""
            self._assign(connection, str(host).encode())
        else:
            self._peek(connection)

    def _peek(self, connection: Connection) -> None:
        """Look at what has come; go on when it is enough, else wait for more."""
        try:
            head = connection.sock.recv(HEAD_BYTES, socket.MSG_PEEK)
            ended = not head
        except BlockingIOError:
            head, ended = b"", False
        except OSError:
            head, ended = b"", True
        connection.head = head
        key = None if self._sticky is None else self._sticky.key(head)
        whole = b"\r\n\r\n" in head or len(head) >= HEAD_BYTES or ended
        # A key that stands at the very end may be half a key: wait for the head's end.
        if whole:
            self._peeked(connection, key)
            return
        if connection not in self._peeking:
            self._peeking.add(connection)
            connection.timer = self._loop.call_later(
                PEEK_TIMEOUT, self._peeked, connection, None
            )
            self._loop.add_reader(connection.sock.fileno(), self._peek, connection)
        # Be woken only by more than what is there, or the loop would spin.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(head) + 1)

    def _peeked(self, connection: Connection, key: bytes | None) -> None:
        if connection in self._peeking:
            self._peeking.discard(connection)
            self._loop.remove_reader(connection.sock.fileno())
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if connection.timer is not None:
            connection.timer.cancel()
        self._assign(connection, key)
        self._advance()

    def _assign(self, connection: Connection, key: bytes | None) -> None:
        """Find the connection's slot; without one it takes its turn."""
        slots = sorted({lane.slot for lane in self._turns})
        slot: int | None = None
        if slots and self._choose is not None:
            slot = self._choose(slots, connection)
        elif slots and key is not None:
            slot = choose_slot(key, slots)
        lane = self._newest(slot)
        if lane is None:
            self._waiting.append(connection)
        elif lane.given is None:
            self._give(lane, connection)
        else:
            lane.queue.append(connection)

    def _newest(self, slot: int | None) -> Lane | None:
        lanes = [lane for lane in self._turns if lane.slot == slot]
        return max(lanes, key=lambda lane: lane.worker, default=None)

    # ---- handing over -------------------------------------------------------------

    def _hand_out(self) -> None:
        while self._waiting:
            lane = self._next()
            if lane is None:
                return
            self._give(lane, self._waiting.popleft())

    def _next(self) -> Lane | None:
        """The lane whose turn it is, if it is free or can be passed over."""
        for _ in range(len(self._turns)):
            lane = self._turns[0]
            if lane.given is None:
                self._turns.rotate(-1)
                return lane
            if not lane.behind:
                if self._patience is None:
                    self._patience = self._loop.call_later(
                        PATIENCE, self._out_of_patience, lane
                    )
                return None
            self._turns.rotate(-1)
        return None

    def _out_of_patience(self, lane: Lane) -> None:
        self._patience = None
        lane.behind = lane.given is not None
        self._advance()

    def _give(self, lane: Lane, connection: Connection) -> None:
        try:
            socket.send_fds(lane.ours, [b"c"], [connection.sock.fileno()])
        except OSError:
            self._waiting.appendleft(connection)
            self.stop(lane.worker)
            return
        lane.given = connection
        if not lane.acknowledged:
            self._loop.call_later(ACK_TIMEOUT, self._expected, lane, connection)

    def _expected(self, lane: Lane, connection: Connection) -> None:
        if lane.given is connection and not lane.acknowledged and not lane.closing:
            self._unfit(self, lane)

    # ---- the end ------------------------------------------------------------------

    def connections(self) -> dict[str, int]:
        """How many connections wait, for `status`."""
        queued = sum(len(lane.queue) for lane in self._turns)
        return {
            "waiting": len(self._waiting) + queued,
            "peeking": len(self._peeking),
            "dropped": self.dropped,
        }

    def close(self, *, keep_listener: bool = False) -> None:
        """Stop; connections that no worker has taken are closed and counted.

        So is one on its way to a worker that has never taken any: it would stay open,
        for nobody, as long as that worker lives.
        """
        if self._accepting:
            self._loop.remove_reader(self.listener.fileno())
            self._accepting = False
        for connection in list(self._peeking):
            self._loop.remove_reader(connection.sock.fileno())
            if connection.timer is not None:
                connection.timer.cancel()
        left = [*self._waiting, *self._peeking]
        for lane in self._lanes.values():
            self._loop.remove_reader(lane.ours.fileno())
            left += [*lane.queue, *([lane.given] if lane.given else [])]
            if lane.given is not None and not lane.acknowledged:
                with contextlib.suppress(OSError):
                    lane.given.sock.shutdown(socket.SHUT_RDWR)
            lane.ours.close()
            if lane.theirs is not None:
                lane.theirs.close()
        for connection in left:
            connection.sock.close()
        self.dropped += len(left)
        self._lanes.clear()
        self._turns.clear()
        self._waiting.clear()
        self._peeking.clear()
        if not keep_listener:
            self.listener.close()
            if self.address.family == socket.AF_UNIX:
                try:
                    os.unlink(self.address.host)
                except OSError:
                    pass
