"""A consumer at its hard limit of open files: clients wait, nothing is lost."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import support
from serving import LOGAGG, serving

CLIENTS, RECORDS = 60, 10

CODE = (
    support.PREAMBLE
    + f"""\
logging.basicConfig(handlers=[logagg.Handler()], level="INFO")
for who in range({CLIENTS}):
    if os.fork() == 0:
        for n in range({RECORDS}):
            logging.info("m", extra={{"who": who, "n": n}})
            time.sleep(0.3)
        logging.shutdown()
        os._exit(0)
for _ in range({CLIENTS}):
    os.wait()
"""
)


@pytest.mark.slow
def test_more_clients_than_descriptors_lose_nothing(
    tmp_path: Path,
) -> None:
    """They wait or spool, and are taken in when others have ended; files rotate."""
    sink = f"file:{tmp_path}/app.log?max_bytes=20KB&backups=100"
    with serving(tmp_path, "--sink", sink) as serve:
        resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        environment = {**os.environ, "LOGAGG_SOCKET": serve.socket}
        done = support.python(CODE, env=environment, timeout=90)
        assert serve.process.poll() is None, serve.errors.read_text()
        assert serve.stop() == 0
    # What was spooled meanwhile goes to the next consumer.
    words = ["serve", "--once", "--socket", serve.socket, "--sink", sink]
    support.finish([*LOGAGG, *words], timeout=90)

    paths = support.rotated(tmp_path / "app.log")
    found = support.records(*paths)
    assert len(paths) > 1
    assert {(each["who"], each["n"]) for each in found} == {
        (who, n) for who in range(CLIENTS) for n in range(RECORDS)
    }, done.stderr
    assert len(found) == CLIENTS * RECORDS
    assert support.events("no_descriptor", *paths)
    assert not support.events("lost", *paths)
