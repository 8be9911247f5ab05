"""Policy rr: the supervisor accepts connections and hands each off to a worker.

Theory of operation
-------------------
Each worker has a *hand-off channel*: a packet socket that is the worker's "listening
socket" (see `patch_socket`). The supervisor sends one accepted connection down a channel
and keeps its own copy until the worker acknowledges; only then is the channel free for
the next. So

- a worker that is stuck holds at most one connection, and not for long,
- the connection of a worker that died without acknowledging goes to a sibling, with
  not a byte read from it (all reading before was peeking).

Turns: channels take turns strictly, which keeps long-lived connections even to ±1. The
rest wait `TURN_TIMEOUT` seconds for a channel that is not free when its turn comes; then
it is passed over until it acknowledges.

A worker that is busy: the supervisor keeps the worker's end of the channel too, so it can
take a connection *back* that waits there for `TAKE_BACK` seconds while a sibling is free.
The end that reads it has it, and the other does not: there is no doubt. The worker
gets a *call* in its place, a packet without a connection, which it answers when it comes
to accept again, and no connection before that. So nothing is concluded from a time: a
busy worker delays one connection and is given none until it answers. Nor is one whose
program may have closed the channel unseen, by an `exec` (`doubt`).

Sticky: the client's key is peeked from the head of its first request. A connection whose
head has not arrived is set aside for a moment (`head_peeker`); accepting goes on
meanwhile. Then the connection takes its turn like any other.

While no channel is open nothing is accepted: clients wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from logagg.platform.packets import KIND
from logagg.supervisor.sockets.affinity import Affinity
from logagg.supervisor.sockets.bind_address import BACKLOG, BindAddress
from logagg.supervisor.sockets.handoff import packet, receive_packet
from logagg.supervisor.sockets.handoff_channel import HandoffChannel
from logagg.supervisor.sockets.head_peeker import Connection
from logagg.supervisor.sockets.sticky import Sticky

__all__ = ["SILENCE", "RoundRobin"]

TURN_TIMEOUT = 0.25
TAKE_BACK = 0.5
SILENCE = 10.0
"""After so long without an answer to its first call a worker is named in the log."""
ACCEPT_PAUSE = 0.1
STICKY_ATTEMPTS = 50
"""After so many, one every `ACCEPT_PAUSE`, a worker without a descriptor is given up."""
MOST_WAITING = 512
"""Accepted connections that wait for a worker; more wait in the kernel's queue."""
_AT_ONCE = 64
"""Connections accepted in one go, before the loop does anything else."""


class RoundRobin:
    """The accepting and handing over for one listening socket.

    Args:
        address: Where it listens.
        listener: The bound socket; owned from now on.
        sticky: What makes connections belong together, if anything does.
        choose: Called with the open slots and a `Connection`; returns a slot or None.
        silent: Called with a worker's channel when it has taken no connection at all
            for `SILENCE` seconds: perhaps it cannot.
    """

    def __init__(
        self,
        address: BindAddress,
        listener: socket.socket,
        *,
        sticky: Sticky | None,
        choose: Callable[..., Any] | None,
        silent: Callable[[RoundRobin, HandoffChannel], None],
    ) -> None:
        self.address = address
        self.listener = listener
        self.dropped = 0
        self._affinity = Affinity(sticky, choose, self._assign_and_advance)
        self._silent = silent
        self._channels: dict[int, HandoffChannel] = {}
        self._turns: deque[HandoffChannel] = deque()
        self._waiting: deque[Connection] = deque()
        self._turn_timer: asyncio.TimerHandle | None = None
        self._given_timer: asyncio.TimerHandle | None = None
        self._accepting = False
        self._paused = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)

    # ---- channels --------------------------------------------------------------------

    def channel(self, worker: int, slot: int) -> HandoffChannel:
        """The channel of a worker; made on the first call."""
        found = self._channels.get(worker)
        if found is not None:
            return found
        sock, worker_sock = socket.socketpair(socket.AF_UNIX, KIND)
        sock.setblocking(False)
        channel = HandoffChannel(slot, worker, sock, worker_sock)
        self._channels[worker] = channel
        self._loop.add_reader(sock.fileno(), self._channel_readable, channel)
        return channel

    def stop(self, worker: int) -> None:
        """Hand nothing more to the worker; it may still acknowledge what it was given."""
        channel = self._channels.get(worker)
        if channel is None or channel.closing:
            return
        channel.closing = True
        self._redistribute(channel)

    def doubt(self, worker: int) -> None:
        """Give a worker nothing until it answers: its program may listen no more.

        An `exec` closes the worker's end unseen, since it is open here too.
        """
        channel = self._channels.get(worker)
        if channel is None or channel.closing or not channel.opened:
            return
        self._shut(channel)
        channel.doubted = True
        channel.call()

    def withdraw(self, worker: int) -> None:
        """Note that a worker accepts from the shared socket itself instead.

        Connections that are left without any channel are closed and counted.
        """
        channel = self._channels.get(worker)
        if channel is None:
            return
        if channel.given is not None:
            self._pull(channel, channel.given)
        self.stop(worker)
        if not self._turns:
            self._drop(self._waiting)
            self._waiting.clear()

    def refuse(self) -> None:
        """Close and count the connections that wait: no worker listens any more."""
        if not self._turns:
            self._drop([*self._waiting, *self._affinity.close()])
            self._waiting.clear()

    def _drop(self, connections: Collection[Connection]) -> None:
        for connection in connections:
            connection.sock.close()
        self.dropped += len(connections)

    def has_acknowledged(self, worker: int) -> bool:
        """Whether the worker has acknowledged all that it was given."""
        channel = self._channels.get(worker)
        return channel is None or channel.given is None

    def acknowledged(self, worker: int) -> int:
        """How many connections the worker took."""
        channel = self._channels.get(worker)
        return 0 if channel is None else channel.acknowledged

    def remove(self, worker: int) -> None:
        """Remove a dead worker; connections it did not acknowledge go to another."""
        channel = self._channels.pop(worker, None)
        if channel is None:
            return
        channel.closing = True
        if channel in self._turns:  # before anything can be given to it
            self._turns.remove(channel)
        self._loop.remove_reader(channel.sock.fileno())
        try:
            self._channel_readable(channel)  # it may have acknowledged before its end
        except OSError:
            pass
        channel.sock.close()
        channel.worker_sock.close()
        if channel.given is not None:
            channel.queue.appendleft(channel.given)
            channel.given = None
        self._redistribute(channel)

    def _redistribute(self, channel: HandoffChannel) -> None:
        if channel in self._turns:
            self._turns.remove(channel)
        moved = list(channel.queue)
        channel.queue.clear()
        if self._affinity.any:
            for connection in moved:
                self._assign(connection)
        else:
            self._waiting.extendleft(reversed(moved))  # they came first
        self._advance()

    def _channel_readable(self, channel: HandoffChannel) -> None:
        while True:
            try:
                received, _ = receive_packet(channel.sock)
            except BlockingIOError:
                break
            except OSError:
                received = b""
            if received == b"open" and not (channel.opened or channel.closing):
                self._open(channel)
            elif received == b"shut":
                self._shut(channel)
            elif received == b"ack":
                self._acknowledge(channel)
            elif received == b"full":
                self._refused(channel)
            elif received == b"here":
                channel.called = channel.slow = False
                if channel.doubted and not channel.closing:
                    self._open(channel)
                self._give_next(channel)
            elif not received:
                break
        self._advance()

    def _open(self, channel: HandoffChannel) -> None:
        channel.opened, channel.doubted = True, False
        self._turns.append(channel)

    def _shut(self, channel: HandoffChannel) -> None:
        """The program has closed its listener; it may open it again."""
        channel.opened = channel.doubted = False
        if channel.given is not None:
            self._pull(channel, channel.given)
        self._redistribute(channel)

    def _acknowledge(self, channel: HandoffChannel) -> None:
        channel.acknowledged += 1
        channel.slow = False
        if channel.given is not None:
            channel.given.sock.close()
            channel.given = None
        self._give_next(channel)

    def _give_next(self, channel: HandoffChannel) -> None:
        if channel.queue and channel.free and not channel.closing:
            self._give(channel, channel.queue.popleft())

    def _refused(self, channel: HandoffChannel) -> None:
        """Give the connection to another; this worker cannot be handed it now.

        A sticky one stays with its worker, for so many attempts.
        """
        connection, channel.given = channel.given, None
        if connection is not None:
            connection.refusals += 1
            belongs = self._affinity.binds(connection) and not channel.closing
            if belongs and connection.refusals < STICKY_ATTEMPTS:
                channel.queue.appendleft(connection)
            else:
                self._waiting.appendleft(connection)
        channel.paused = True
        self._loop.call_later(ACCEPT_PAUSE, self._go_on, channel)

    def _go_on(self, channel: HandoffChannel) -> None:
        channel.paused = False
        if not self._closed:
            self._give_next(channel)
            self._advance()

    # ---- accepting ----------------------------------------------------------------

    def _advance(self) -> None:
        """Do all that can be done now: hand off, and accept or pause accepting."""
        self._hand_out()
        queued = len(self._waiting) + sum(len(channel.queue) for channel in self._turns)
        wanted = bool(self._turns) and queued < MOST_WAITING and not self._paused
        if wanted and not self._accepting:
            self.listener.listen(BACKLOG)
            self._loop.add_reader(self.listener.fileno(), self._acceptable)
        elif self._accepting and not wanted:
            self._loop.remove_reader(self.listener.fileno())
        self._accepting = wanted

    def _acceptable(self) -> None:
        """Accept what waits in the kernel's queue, `_AT_ONCE` connections at most."""
        for _ in range(_AT_ONCE):
            try:
                sock, peer = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError:
                # No descriptor is free. The listener stays readable, so the loop would
                # spin: stop accepting for a moment, in which connections may end.
                self._paused = True
                self._loop.call_later(ACCEPT_PAUSE, self._resume)
                break
            sock.setblocking(False)
            self._route(Connection(sock, peer))
        self._advance()

    def _resume(self) -> None:
        self._paused = False
        if not self._closed:
            self._advance()

    def _route(self, connection: Connection) -> None:
        if self._affinity.any:
            self._affinity.add(connection)
        else:
            self._waiting.append(connection)

    def _assign_and_advance(self, connection: Connection) -> None:
        self._assign(connection)
        self._advance()

    def _assign(self, connection: Connection) -> None:
        """Find the connection's worker; without one it takes its turn."""
        slots = sorted({channel.slot for channel in self._turns})
        channel = self._newest(self._affinity.slot(connection, slots))
        if channel is None:
            self._waiting.append(connection)
        elif channel.free:
            self._give(channel, connection)
        else:
            channel.queue.append(connection)

    def _newest(self, slot: int | None) -> HandoffChannel | None:
        channels = [channel for channel in self._turns if channel.slot == slot]
        return max(channels, key=lambda channel: channel.worker, default=None)

    # ---- handing off --------------------------------------------------------------

    def _hand_out(self) -> None:
        while self._waiting:
            channel = self._next()
            if channel is None:
                return
            self._give(channel, self._waiting.popleft())

    def _next(self) -> HandoffChannel | None:
        """The free channel whose turn it is; None while a busy one is waited for.

        Waiting keeps the turns strict: a worker that is busy for a moment gets its
        connection, and the others do not get ahead. `TURN_TIMEOUT` bounds the wait.
        """
        for _ in range(len(self._turns)):
            channel = self._turns[0]
            if channel.free:
                self._turns.rotate(-1)
                return channel
            if not (channel.slow or channel.called or channel.paused):
                if self._turn_timer is None:
                    self._turn_timer = self._loop.call_later(
                        TURN_TIMEOUT, self._turn_timed_out, channel
                    )
                return None
            self._turns.rotate(-1)
        return None

    def _turn_timed_out(self, channel: HandoffChannel) -> None:
        self._turn_timer = None
        channel.slow = channel.given is not None
        self._advance()

    def _give(self, channel: HandoffChannel, connection: Connection) -> None:
        try:
            socket.send_fds(channel.sock, [packet(b"c")], [connection.sock.fileno()])
        except OSError:  # no memory, or too many descriptors are on their way
            channel.given = connection
            self._refused(channel)
            return
        channel.given = connection
        channel.given_at = self._loop.time()
        if self._given_timer is None:
            self._given_timer = self._loop.call_later(TAKE_BACK, self._check_given)

    def _check_given(self) -> None:
        """Take connections back from workers that are busy; comes again while any is."""
        self._given_timer = None
        busy = [channel for channel in self._turns if not channel.free]
        for channel in busy:
            silence = self._loop.time() - channel.given_at
            if silence >= TAKE_BACK and channel.given is not None:
                self._take_back(channel, channel.given)
            if silence >= SILENCE and not (channel.acknowledged or channel.named):
                channel.named = True
                self._silent(self, channel)
        if busy:
            self._given_timer = self._loop.call_later(TAKE_BACK, self._check_given)
        self._advance()

    def _take_back(self, channel: HandoffChannel, connection: Connection) -> None:
        """Let a free sibling have a connection, unless it belongs to the busy worker."""
        bound = self._affinity.binds(connection)
        if not bound and any(each.free for each in self._turns):
            self._pull(channel, connection)

    def _pull(self, channel: HandoffChannel, connection: Connection) -> None:
        """Take a connection back, unless the worker has it already."""
        if channel.take_back():
            self._waiting.appendleft(connection)

    # ---- the end ------------------------------------------------------------------

    def connections(self) -> dict[str, int]:
        """How many connections wait, for `status`."""
        queued = sum(len(channel.queue) for channel in self._turns)
        return {
            "waiting": len(self._waiting) + queued,
            "peeking": len(self._affinity),
            "dropped": self.dropped,
        }

    def close(self) -> None:
        """Stop; connections that no worker has taken are closed and counted.

        So is one on its way to a worker that has never taken any.
        """
        self._closed = True
        if self._given_timer is not None:
            self._given_timer.cancel()
        if self._accepting:
            self._loop.remove_reader(self.listener.fileno())
            self._accepting = False
        left = [*self._waiting, *self._affinity.close()]
        for channel in self._channels.values():
            self._loop.remove_reader(channel.sock.fileno())
            left += [*channel.queue, *([channel.given] if channel.given else [])]
            if channel.given is not None and not channel.acknowledged:
                with contextlib.suppress(OSError):
                    channel.given.sock.shutdown(socket.SHUT_RDWR)
            channel.sock.close()
            channel.worker_sock.close()
        self._drop(left)
        self._channels.clear()
        self._turns.clear()
        self._waiting.clear()
        self.listener.close()
        if self.address.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                os.unlink(self.address.host)
