"""A program in which gevent has replaced the standard library's blocking calls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import support

pytest.importorskip("gevent", reason="gevent is not installed")

PATCHED = """\
from gevent import monkey
monkey.patch_all()
import logging, sys, threading
import gevent
import logagg
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="INFO")
ran = []
gevent.spawn(ran.append, "another greenlet")
logging.info("main", extra={"n": -1})  # it starts the consumer
print(*ran)
def work(n):
    for _ in range(50):
        logging.info("paid", extra={"n": n})
        gevent.sleep(0)
jobs = [gevent.spawn(work, n) for n in range(4)]
gevent.joinall(jobs)
thread = threading.Thread(target=work, args=(4,))
thread.start()
thread.join()
"""


@pytest.mark.slow
def test_greenlets_log_and_the_program_does_not_hang(tmp_path: Path) -> None:
    """Each record once, with the greenlet's name.

    The first one does not wait in gevent's loop, where a wait for a child that has ended
    may be one for ever.
    """
    path = tmp_path / "app.log"

    done = support.python(PATCHED, path, timeout=60)

    assert (done.stdout, done.stderr) == ("\n", "")
    support.settled()
    found = support.records(path)
    assert sorted(each["n"] for each in found) == sorted(
        [-1, *(n for n in range(5) for _ in range(50))]
    )
    assert [each["seq"] for each in found] == list(range(1, len(found) + 1))
    assert "greenlet" not in found[0]
    names = {each["n"]: each["greenlet"] for each in found[1:]}
    assert len(set(names.values())) == 5, sys.version
    assert all(name.startswith("Greenlet-") for name in names.values())
