"""Periodic checks of workers: readiness, memory, age, answers to pings."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from logagg.core.event import Event
from logagg.platform.processes import stack_signal
from logagg.platform.procfs import SEES_SOCKETS, family, listens, polls, rss_bytes
from logagg.supervisor.process.worker_process import WorkerProcess, WorkerState
from logagg.supervisor.run_context import RunContext
from logagg.supervisor.sockets.bind_address import BindAddress, PortPolicy

__all__ = ["HealthChecks"]

STEP = 0.2
READY_UPTIME = 1.0
"""A worker that never listens counts as ready so long after its program began;
supervisord's startsecs. Counted from the start of the process, a busy machine would call
programs ready that have not come to their first line."""
UNSEEN_UPTIME = 10.0
"""The same for a command with `--bind` that is not seen to poll the socket, and for a
server by name: one that boots slowly is ready when it listens, but it may do so where it
is not seen."""
DUMP_GRACE = 1.0
PAUSE = 1.0
MEMORY_INTERVAL = 1.0


class HealthChecks:
    """Checks all workers every `STEP` seconds."""

    def __init__(
        self, context: RunContext, recycle: Callable[[WorkerProcess, str], None]
    ) -> None:
        self._context = context
        self._recycle = recycle
        self._task: asyncio.Task[None] | None = None
        self._next_memory = 0.0
        self._pings = 0
        self._dumped: set[int] = set()
        self._unshared: set[BindAddress] = set()

    def start(self) -> None:
        """Begin to check."""
        self._task = self._context.loop.create_task(self._watch(), name="watcher")

    def stop(self) -> None:
        """Stop checking."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        last = self._context.loop.time()
        while True:
            await asyncio.sleep(STEP)
            now = self._context.loop.time()
            if now - last > PAUSE:
                # This process was stopped or frozen: answers of workers wait unread.
                for worker in self._context.workers.values():
                    if worker.unanswered is not None:
                        worker.unanswered = now
            last = now
            memory = now >= self._next_memory
            if memory:
                self._next_memory = now + MEMORY_INTERVAL
            for worker in list(self._context.workers.values()):
                if worker.state is WorkerState.STARTING:
                    self._check_ready(worker)
                elif worker.state is WorkerState.READY:
                    if memory:
                        self._check_memory(worker)
                    self._check_age(worker)
                    self._check_pong(worker, now)

    def _check_ready(self, worker: WorkerProcess) -> None:
        context = self._context
        limit = context.options.ready_timeout
        if worker.online_since is None:
            return
        running = context.loop.time() - worker.online_since
        must_listen = bool(context.options.bind) or context.serves
        if must_listen and self._serves(worker):
            worker.listened = True
            context.make_ready(worker)
        elif not (must_listen and worker.is_reachable and SEES_SOCKETS):
            unseen = must_listen or context.options.program.is_server
            if running > (UNSEEN_UPTIME if unseen else READY_UPTIME):
                worker.listened = must_listen
                context.make_ready(worker)
        elif limit and worker.uptime > limit:
            worker.why = f"not ready within {limit:g} s"
            worker.signal(signal.SIGKILL, group=True)

    def _serves(self, worker: WorkerProcess) -> bool:
        """Whether the process serves a port in a way that Python's socket did not see.

        Servers in C, Rust or another language poll a shared listener, or (reuseport,
        rr) have a listener of their own, perhaps in a child of theirs.
        """
        listeners = self._context.listeners.all
        processes = family(worker.pid)
        shared = {
            os.fstat(each.sock.fileno()).st_ino
            for each in listeners
            if each.policy is PortPolicy.KERNEL
        }
        if shared and polls(processes, shared):
            return True
        apart = [each for each in listeners if each.policy is not PortPolicy.KERNEL]
        for each in apart:
            if listens(processes, {each.address.port}):
                if each.policy is PortPolicy.RR:
                    self._record_unshared(worker, each.address)
                return True
        return False

    def _record_unshared(self, worker: WorkerProcess, address: BindAddress) -> None:
        """Record once for an address that its connections are not handed off."""
        if address in self._unshared:
            return
        self._unshared.add(address)
        self._context.events.record(
            "warning",
            Event.UNSUPPORTED_POLICY,
            f"worker {worker.name} listens on {address} by itself (granian and other "
            "servers in C or Rust do), so its connections cannot be handed off: "
            "they come by policy reuseport, not rr",
            slot=worker.slot,
        )

    def _check_memory(self, worker: WorkerProcess) -> None:
        limit = self._context.options.max_rss
        if limit:
            held = rss_bytes(worker.pid)
            if held > limit:
                self._recycle(
                    worker,
                    f"uses {held >> 20} MiB, more than the limit of {limit >> 20} MiB",
                )

    def _check_age(self, worker: WorkerProcess) -> None:
        if worker.max_age and worker.uptime > worker.max_age:
            self._recycle(worker, f"reached its age of {worker.max_age:.0f} s")

    def _check_pong(self, worker: WorkerProcess, now: float) -> None:
        limit = self._context.options.unresponsive_timeout
        if not (worker.is_reachable and limit):
            return
        silent = 0.0 if worker.unanswered is None else now - worker.unanswered
        if silent > limit and worker.id not in self._dumped:
            self._dumped.add(worker.id)
            message = (
                f"worker {worker.name} (pid {worker.pid}) has not answered for "
                f"{silent:.1f} s: its stacks follow on its stderr, then it is killed"
            )
            self._context.events.record(
                "error",
                Event.UNRESPONSIVE,
                message,
                slot=worker.slot,
                of_pid=worker.pid,
            )
            self._context.emit("unresponsive", worker)
            worker.signal(stack_signal())
            self._context.loop.call_later(DUMP_GRACE, self._end, worker)
        elif now - worker.last_ping >= min(limit / 4, 1.0):
            worker.last_ping = now
            if worker.unanswered is None:
                worker.unanswered = now
            self._pings += 1
            worker.peer.send({"k": "ping", "n": self._pings})

    def _end(self, worker: WorkerProcess) -> None:
        self._dumped.discard(worker.id)
        if worker.exit is None:
            worker.why = "unresponsive"
            worker.signal(signal.SIGKILL, group=True)
