"""What must be looked at now and then: readiness, memory, age, answers to pings."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from logagg.supervisor.address import Address, Policy
from logagg.supervisor.bootstrap import stack_signal
from logagg.supervisor.member import Member, rss_bytes
from logagg.supervisor.seen import family, listens, polls

if TYPE_CHECKING:
    from logagg.supervisor.supervisor import Supervisor

__all__ = ["Watcher"]

STEP = 0.2
READY_UPTIME = 1.0
"""A worker that never listens counts as ready so long after its program began;
supervisord's startsecs. Counted from the start of the process, a busy machine would call
programs ready that have not come to their first line."""
UNSEEN_UPTIME = 10.0
"""The same for a command with `--bind` that is not seen to poll the socket."""
DUMP_GRACE = 1.0
MEMORY_INTERVAL = 1.0


class Watcher:
    """Looks at all workers every `STEP` seconds."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._run = supervisor
        self._task: asyncio.Task[None] | None = None
        self._next_memory = 0.0
        self._pings = 0
        self._dumped: set[int] = set()
        self._unshared: set[Address] = set()

    def start(self) -> None:
        """Begin to look."""
        self._task = self._run.loop.create_task(self._watch(), name="watcher")

    def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(STEP)
            now = self._run.loop.time()
            memory = now >= self._next_memory
            if memory:
                self._next_memory = now + MEMORY_INTERVAL
            for member in list(self._run.router.members.values()):
                if member.state == "starting":
                    self._look_for_ready(member)
                elif member.state == "ready":
                    if memory:
                        self._look_at_memory(member)
                    self._look_at_age(member)
                    self._look_for_pong(member, now)

    def _look_for_ready(self, member: Member) -> None:
        run = self._run
        limit = run.options.ready_timeout
        if member.online_since is None:
            return
        running = run.loop.time() - member.online_since
        must_listen = bool(run.options.binds) or run.serves
        if must_listen and self._serves(member):
            member.listened = True
            run.router.make_ready(member)
        elif not must_listen or member.link is None:
            if running > (UNSEEN_UPTIME if must_listen else READY_UPTIME):
                member.listened = must_listen
                run.router.make_ready(member)
        elif limit and member.uptime > limit:
            member.why = f"not ready within {limit:g} s"
            member.signal(signal.SIGKILL, group=True)

    def _serves(self, member: Member) -> bool:
        """Whether the process serves a port in a way that Python's socket did not see.

        Servers in C, Rust or another language poll a shared listener, or (reuseport,
        rr) have a listener of their own, perhaps in a child of theirs.
        """
        listeners = self._run.listeners.all
        processes = family(member.pid)
        shared = {
            os.fstat(each.sock.fileno()).st_ino
            for each in listeners
            if each.policy is Policy.KERNEL
        }
        if shared and polls(processes, shared):
            return True
        apart = [each for each in listeners if each.policy is not Policy.KERNEL]
        for each in apart:
            if listens(processes, {each.address.port}):
                if each.policy is Policy.RR:
                    self._tell_unshared(member, each.address)
                return True
        return False

    def _tell_unshared(self, member: Member, address: Address) -> None:
        """Say once for an address that its connections are not handed over."""
        if address in self._unshared:
            return
        self._unshared.add(address)
        self._run.report.say(
            "warning",
            "unfit",
            f"worker {member.slot} listens on {address} by itself (granian and other "
            "servers in C or Rust do), so its connections cannot be handed over: "
            "they come by policy reuseport, not rr",
            slot=member.slot,
        )

    def _look_at_memory(self, member: Member) -> None:
        limit = self._run.options.max_rss_bytes
        if limit:
            held = rss_bytes(member.pid)
            if held > limit:
                self._run.recycle(
                    member,
                    f"uses {held >> 20} MiB, more than the limit of {limit >> 20} MiB",
                )

    def _look_at_age(self, member: Member) -> None:
        if member.max_age and member.uptime > member.max_age:
            self._run.recycle(member, f"reached its age of {member.max_age:.0f} s")

    def _look_for_pong(self, member: Member, now: float) -> None:
        limit = self._run.options.unresponsive_timeout
        if member.link is None or not limit:
            return
        silent = now - member.last_pong
        if silent > limit and member.id not in self._dumped:
            self._dumped.add(member.id)
            message = (
                f"worker {member.slot} (pid {member.pid}) has not answered for "
                f"{silent:.1f} s: its stacks follow on its stderr, then it is killed"
            )
            self._run.report.say(
                "error", "unresponsive", message, slot=member.slot, of_pid=member.pid
            )
            self._run.emit("unresponsive", member)
            member.signal(stack_signal())
            self._run.loop.call_later(DUMP_GRACE, self._end, member)
        elif now - member.pinged >= min(limit / 4, 1.0):
            member.pinged = now
            self._pings += 1
            member.tell({"k": "ping", "n": self._pings})

    def _end(self, member: Member) -> None:
        self._dumped.discard(member.id)
        if member.state != "dead":
            member.why = "unresponsive"
            member.signal(signal.SIGKILL, group=True)
