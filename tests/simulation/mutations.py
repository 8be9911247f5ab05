"""Faults that the product once had, put back into its source to be found again.

Each is a small change of today's code with the old effect. `python mutations.py NAME`
plays simulated runs of the changed product until one breaks a promise, and prints how
many that took; the changes are made as the modules are loaded, and nowhere else.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["MUTATIONS", "Change", "check", "play"]


class Change(NamedTuple):
    """A text that stands once in a module's source, and what replaces it."""

    module: str
    old: str
    new: str


MUTATIONS: dict[str, list[Change]] = {
    "records stamped before a step back are no records": [
        Change(
            "logagg.core.merge",
            "        self._early += filter(is_line, future)\n",
            "",
        ),
        Change(
            "logagg.core.merge",
            "        if not self._shifts:\n            return lines, []\n        until",
            "        return lines, []\n        until",
        ),
    ],
    "a forked child keeps the listening socket of a consumer": [
        Change(
            "logagg.ipc.descriptors",
            "        _owned.add(self)\n",
            "        if high:\n            _owned.add(self)\n",
        ),
        Change(
            "logagg.ipc.launcher",
            "    with no_fork:\n        listener = listen(path)\n",
            "    if True:\n        listener = listen(path)\n",
        ),
        Change(
            "logagg.client.attachment",
            "            with no_fork:\n"
            "                fresh, path = self._destination.connect(known)\n",
            "            if True:\n"
            "                fresh, path = self._destination.connect(known)\n",
        ),
    ],
    "an exception in a log call leaves its state as it was": [
        Change(
            "logagg.client.transport",
            "                broken = self.delivery\n"
            "                broken.fd = -1\n"
            "                broken.next_check = 0\n"
            "                if broken.state is not _CLOSED:\n"
            "                    broken.state = _BROKEN\n"
            "                if max(self.seq, broken.newest) == queued_after:\n",
            "                broken = self.delivery\n"
            "                if max(self.seq, broken.newest) == queued_after:\n",
        ),
    ],
    "each record of a signal handler is sent one call deeper": [
        Change(
            "logagg.client.transport",
            "                    queued_after = self.seq\n",
            "                    self._busy = False\n"
            "                    self._send_queued()\n"
            "                    return\n",
        ),
    ],
    "a record of a handler is lost in the repair after an exception": [
        Change(
            "logagg.client.transport",
            "            before = max(self.seq, self.delivery.newest)\n",
            "            before = self.seq\n",
        ),
    ],
    "what an ended process has left is removed when it is read": [
        Change(
            "logagg.consumer.segment_reader",
            "        return max(self.last, self._newest) <= acknowledged\n",
            "        return self.last <= acknowledged\n",
        ),
    ],
    "a record has the stamp of the clock before the attachment": [
        Change(
            "logagg.client.transport",
            "        return resumed or delivery.offset != offset\n",
            "        return resumed\n",
        ),
    ],
    "the end of a close discards what a signal handler logged in it": [
        Change(
            "logagg.client.transport",
            "        delivery = LineDelivery(self.destination, seq)\n",
            "        self._queued.clear()\n"
            "        delivery = LineDelivery(self.destination, seq)\n",
        ),
        Change(
            "logagg.client.transport",
            "        if self.delivery.state is _CLOSED:\n"
            "            closing.forget(self)\n\n"
            "    def close_if_flushed",
            "        self._queued.clear()\n"
            "        if self.delivery.state is _CLOSED:\n"
            "            closing.forget(self)\n\n"
            "    def close_if_flushed",
        ),
        Change(
            "logagg.client.transport",
            "        finally:\n"
            "            self._busy = False\n"
            "            self._send_queued()\n",
            "        finally:\n"
            "            self._busy = False\n"
            "            if self.delivery.state is _CLOSED:\n"
            "                self._queued.clear()\n"
            "            self._send_queued()\n",
        ),
    ],
    "a pid that exists is taken for the owner of what is on disk": [
        Change(
            "logagg.client.spool_writer",
            "    return [path for path in found if stream_of(path) not in held]\n",
            "    def lives(path):\n"
            "        try:\n"
            "            os.kill(int(stream_of(path).partition('-')[0]), 0)\n"
            "        except ProcessLookupError:\n"
            "            return False\n"
            "        return True\n\n"
            "    return [path for path in found if not lives(path)]\n",
        ),
    ],
    "a child of multiprocessing ends without closing": [
        Change(
            "logagg.client.transport",
            "        close_with_multiprocessing(closing.close_all)\n",
            "",
        ),
    ],
    "the last handler's overflow holds for all": [
        Change(
            "logagg.client.sink_urls",
            "wanted if alone else max(now, wanted, key=_LOSES_LESS.index)",
            "wanted",
        ),
    ],
    "a notice waits for the reader of stderr": [
        Change(
            "logagg.ipc.connection",
            "        mode = os.fstat(2).st_mode\n",
            "        return os.write(2, data) == len(data)\n",
        ),
    ],
    "a search in a spool that is being written from ends the takeover": [
        Change(
            "logagg.fanout.sink_spool",
            "        logs = list(self._logs)\n"
            "        return frozenset().union(*(log.record_ids(since) for log in logs))\n",
            "        before = self.records\n"
            "        logs = list(self._logs)\n"
            "        ids = frozenset().union(*(log.record_ids(since) for log in logs))\n"
            "        if self.records != before:\n"
            "            raise RuntimeError('deque mutated during iteration')\n"
            "        return ids\n",
        ),
        Change(
            "logagg.fanout.fanout",
            "        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything\n"
            "            if not runner.known.is_open:\n",
            "        except ZeroDivisionError as error:\n"
            "            if not runner.known.is_open:\n",
        ),
        Change(
            "logagg.consumer.orphan_source",
            "        finally:\n            self._searching = False\n",
            "        except TimeoutError:\n            raise\n"
            "        else:\n            self._searching = False\n",
        ),
        Change(
            "logagg.consumer.listener",
            "        finally:\n"
            "            if worker.pipe >= 0:  # else it was passed on\n",
            "        except TimeoutError:\n            raise\n"
            "        else:\n"
            "            if worker.pipe >= 0:  # else it was passed on\n",
        ),
    ],
    "a sink that cannot be made leaves its worker unread": [
        Change(
            "logagg.fanout.registry",
            "        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything\n"
            "            return _refusal(error)\n"
            "        return \"\"\n",
            "        except ZeroDivisionError as error:\n"
            "            return _refusal(error)\n"
            "        return \"\"\n",
        ),
        Change(
            "logagg.consumer.listener",
            "        finally:\n"
            "            if worker.pipe >= 0:  # else it was passed on\n",
            "        except TimeoutError:\n            raise\n"
            "        else:\n"
            "            if worker.pipe >= 0:  # else it was passed on\n",
        ),
    ],
    "only one of the spools that predecessors left is taken over": [
        Change(
            "logagg.fanout.sink_spool",
            "            found.sort(key=_first_key)\n",
            "            found.sort(key=_first_key)\n"
            "            for log in found[1:]:\n"
            "                log.close()\n"
            "            del found[1:]\n",
        ),
    ],
    "a sink that is cancelled cancels the one that it follows": [
        Change(
            "logagg.fanout.sink_runner",
            "            await asyncio.wait([other])  # however it ends\n",
            "            await other\n",
        ),
    ],
    "an error in the reading of one source ends the consumer": [
        Change(
            "logagg.core.line",
            "    end = line.find(b\",\", start, start + 19)\n",
            "    end = line.find(b\",\", start)\n",
        ),
        Change(
            "logagg.consumer.source",
            "        except Exception as error:  # noqa: BLE001 - its peer may have sent anything\n",
            "        except ZeroDivisionError as error:\n",
        ),
    ],
    "a sink whose opening hangs keeps everybody waiting": [
        Change(
            "logagg.fanout.sink_calls",
            "        await asyncio.wait([task], timeout=OPEN_TIMEOUT)\n",
            "        await asyncio.wait([task])\n",
        ),
        Change(
            "logagg.consumer.listener",
            "JOIN_TIMEOUT = 60.0\n",
            "JOIN_TIMEOUT = 1e6\n",
        ),
    ],
    "everything is released when all workers flush": [
        Change(
            "logagg.core.merge",
            "        watermark = b\"~\" if all_ended else sort_key(before_ns)\n",
            "        all_ended |= flushing\n"
            "        watermark = b\"~\" if all_ended else sort_key(before_ns)\n",
        ),
    ],
}  # fmt: skip
"""By the fault in words."""


def changed(path: Path, changes: list[Change]) -> str:
    """A module's source with changes.

    Raises:
        ValueError: It does not have a text once.
    """
    source = path.read_text()
    for each in changes:
        if source.count(each.old) != 1:
            raise ValueError(f"{path.name} does not have this once:\n{each.old}")
        source = source.replace(each.old, each.new)
    return source


def check(changes: list[Change]) -> None:
    """See that changes can be made to today's source.

    Raises:
        ValueError: One cannot.
    """
    root = Path(__file__).resolve().parents[2]
    for name in {each.module for each in changes}:
        path = root / (name.replace(".", "/") + ".py")
        source = changed(path, [each for each in changes if each.module == name])
        compile(source, path, "exec")


def apply(changes: list[Change]) -> None:
    """Have modules loaded with changes.

    Raises:
        ValueError: A module is loaded, or does not have the text once.
    """
    check(changes)
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: Any, name: str) -> Any:
        mine = [each for each in changes if each.module == name]
        if not mine:
            return original(loader, name)
        return compile(changed(Path(loader.path), mine), loader.path, "exec")

    for each in changes:
        if each.module in sys.modules:
            raise ValueError(f"{each.module} is loaded")
    setattr(importlib.machinery.SourceFileLoader, "get_code", get_code)  # noqa: B010


def play(name: str, first: int, seeds: int) -> dict[str, Any]:
    """Play runs of the product with a fault until one breaks a promise.

    Args:
        name: The fault, a key of MUTATIONS.
        first: The first seed.
        seeds: How many at most.

    Returns:
        `seeds` that were played, and the `fault` of the last; empty: none was found.
    """
    apply(MUTATIONS[name])
    sys.path.insert(0, str(Path(__file__).parent))
    import scene

    for seed in range(first, first + seeds):
        outcome = scene.run(seed)
        if outcome.fault:
            found = outcome.fault.partition("\n")[0]
            return {"seeds": seed - first + 1, "seed": seed, "fault": found}
    return {"seeds": seeds, "fault": ""}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MUTATIONS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10_000)
    arguments = parser.parse_args()
    print(json.dumps(play(arguments.name, arguments.first, arguments.seeds)))
