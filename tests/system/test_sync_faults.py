"""A disk that reports I/O errors when it is synced, by a preloaded library."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import support
from serving import serving

pytestmark = [
    pytest.mark.slow,  # each starts a service
    pytest.mark.skipif(
        not shutil.which("gcc"), reason="no gcc for the faults' library"
    ),
]

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Fails with EIO for files whose path has the content of $FAULT in it; notes the rest. */
static int sync_as(const char *name, int fd) {
    char link[64], path[4096] = "", part[256] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0) path[0] = 0;
    int fault = open(getenv("FAULT"), O_RDONLY);
    if (fault >= 0) {
        if (read(fault, part, sizeof part - 1) < 0) part[0] = 0;
        close(fault);
    }
    if (part[0] && strstr(path, part)) { errno = EIO; return -1; }
    FILE *log = fopen(getenv("SYNCED"), "a");
    if (log) { fprintf(log, "%s\n", path); fclose(log); }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fdatasync(int fd) { return sync_as("fdatasync", fd); }
int fsync(int fd) { return sync_as("fsync", fd); }
"""

LOGS = (
    support.PREAMBLE
    + """\
handler = logagg.Handler()
logging.basicConfig(handlers=[handler], level="INFO")
for n in range(int(sys.argv[1])):
    logging.error("m", extra={"who": "a", "n": n})
print(handler.flush(float(sys.argv[2])), flush=True)
sys.stdin.readline()
print(handler.flush(30.0), flush=True)
"""
)


class Disk:
    """What fails, and what was synced."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        source, library = folder / "shim.c", folder / "shim.so"
        source.write_text(SHIM)
        command = ["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True)
        self.fault, self.log = folder / "fault", folder / "synced"
        self.log.touch()
        monkeypatch.setenv("FAULT", str(self.fault))
        monkeypatch.setenv("SYNCED", str(self.log))
        monkeypatch.setenv("LD_PRELOAD", str(library))

    def synced(self, part: str) -> bool:
        """Whether a file with this in its path was synced."""
        return any(part in line for line in self.log.read_text().splitlines())


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk that works for now."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return Disk(folder, monkeypatch)


def test_flush_does_not_return_true_for_what_no_disk_has(tmp_path, disk):
    """With `always` nothing counts as written that could not be synced anywhere."""
    path = tmp_path / "app.log"
    disk.fault.write_text("/")
    with serving(tmp_path, "--sink", f"file:{path}?fsync=always") as serve:
        environment = {**os.environ, "LOGAGG_SOCKET": serve.socket}
        arguments = (LOGS, 20, 1.0)
        with support.running(*arguments, env=environment, stdin=-1) as process:
            assert process.stdout.readline() == "False\n"
            assert support.records(path) == []
            disk.fault.unlink()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "True\n"
            # Some may wait in the spool, synced, and are written now.
            support.wait_until(lambda: len(support.records(path)) >= 20)
            support.assert_complete(support.records(path), {"a": 20})
            assert process.wait(60) == 0


def test_what_waits_for_a_synced_file_is_synced_where_it_waits(tmp_path, disk):
    """Then `flush` may return True: a disk has the records."""
    path = tmp_path / "app.log"
    disk.fault.write_text("/app.log")
    with serving(tmp_path, "--sink", f"file:{path}?fsync=always") as serve:
        environment = {**os.environ, "LOGAGG_SOCKET": serve.socket}
        arguments = (LOGS, 20, 30.0)
        with support.running(*arguments, env=environment, stdin=-1) as process:
            assert process.stdout.readline() == "True\n"
            assert support.records(path) == []
            assert disk.synced(".ndjson")
            disk.fault.unlink()
            support.wait_until(support.have(path, 20), what="the records")
            process.communicate("\n", timeout=60)
    support.assert_complete(support.records(path), {"a": 20})


def test_a_sync_that_fails_in_the_background_is_announced_in_the_log(tmp_path, disk):
    """With the part that a power cut may take; later successes change nothing."""
    path = tmp_path / "app.log"
    disk.fault.write_text("/app.log")
    with serving(tmp_path, "--sink", f"file:{path}?fsync_interval=100ms") as serve:
        serve.logs("a", 20)

        def alarms():
            return support.events("alarm", path)

        (alarm, *_) = support.wait_until(alarms, what="the alarm")
        assert alarm["level"] == "error"
        assert f"the sync failed: {path}, written since " in alarm["message"]
        disk.fault.unlink()
        serve.logs("b", 20)
        support.wait_until(lambda: disk.synced("/app.log"), what="a sync that succeeds")
        status = serve.status()
        assert status["alarms"] >= 1
        assert "may be missing after a power cut" in status["last_alarm"]
        assert serve.sink("app.log")["counters"]["sync_failed"] >= 1
        assert "alarms, the last: records may be missing" in serve.run("status").stdout


def test_last_words_of_a_service_are_records_in_its_file(tmp_path):
    """What another sink could not deliver stands there when the service has ended."""
    dead = "http://127.0.0.1:9/"
    sinks = ("--sink", "file:app.log", "--sink", dead)
    with serving(tmp_path, *sinks) as serve:
        serve.logs("a", 20)
        serve.signal(signal.SIGTERM)
        serve.process.wait(90)
    (words, *_) = support.events("undelivered", tmp_path / "app.log")
    assert words["sink"] == dead
    assert words["number"] >= 20
