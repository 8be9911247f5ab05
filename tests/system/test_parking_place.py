"""Where records are parked when home will not do: on a disk of this machine, private."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from harness import jailed
from harness.jail import possible, read_only, small_disk
from support import PREAMBLE, finish, linux_form, records

pytestmark = pytest.mark.skipif(
    not possible(), reason="this machine lets nobody mount in a namespace"
)

PLACE = Path(f"/var/tmp/logagg-{os.getuid()}")

PARK = (
    PREAMBLE
    + """
import shutil

def parked():
    places = ["/var/tmp", os.environ["XDG_RUNTIME_DIR"], sys.argv[2]]
    found = [os.walk(place) for place in places]
    return [os.path.join(each[0], name) for walk in found for each in walk
            for name in each[2] if name.endswith(".spool")]

handler = logagg.Handler(sys.argv[1])
log = logging.getLogger("app")
log.addHandler(handler)
log.setLevel("INFO")
runtime = os.path.join(os.environ["XDG_RUNTIME_DIR"], "logagg")
shutil.rmtree(runtime)  # no consumer can be had
for n in range(1, 101):
    log.info("", extra={"w": 0, "n": n})
print(*parked())
os.mkdir(runtime, 0o700)
log.info("", extra={"w": 0, "n": 101})
print(handler.flush(20))
deadline = time.monotonic() + 20
while parked() and time.monotonic() < deadline:
    time.sleep(0.01)
print(parked())
"""
)

WHERE = """
from logagg.ipc import paths
print(paths.state_dir())
print(paths.spool_dir("an-id"))
"""


def state():
    """The test's own state directory."""
    return Path(os.environ["XDG_STATE_HOME"])


def share(folder):
    """A shell command that mounts what looks like another machine's disk."""
    return f"mount -t tmpfs -o mode=700 server:/export {shlex.quote(str(folder))}"


def in_jail(code, *args, mounts=(), **options):
    """Run a program where /var/tmp is empty and the state directory is as mounted."""
    command = [sys.executable, "-c", code, *map(str, args)]
    commands = [small_disk("/var/tmp", "64m"), *mounts]
    return finish(jailed(command, *commands), **options).stdout.splitlines()


CASES = {
    "another machine's": pytest.param(lambda: [share(state())], marks=linux_form),
    "read-only": lambda: [read_only(state())],
    "open to others": lambda: [f"mkdir -p -m 777 {state()}/logagg/spool"],
}


@pytest.mark.slow
@pytest.mark.parametrize("mounts", CASES.values(), ids=CASES)
def test_a_home_that_will_not_do_is_not_used_and_nothing_is_lost(mounts, tmp_path):
    """NFS and its like, a file system that cannot be written, one without modes."""
    path = tmp_path / "app.log"

    first, flushed, left = in_jail(PARK, path, state(), mounts=mounts())

    assert first.startswith(f"{PLACE}/spool/")
    assert " " not in first
    assert (flushed, left) == ("True", "[]")
    assert [each["n"] for each in records(path)] == list(range(1, 102))


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 8])
def test_what_a_full_disk_refuses_is_spooled_in_the_next_place(room, tmp_path):
    """Records on both disks, or on the second only: none is lost, the order is kept."""
    path = tmp_path / "app.log"
    fill = f"dd if=/dev/zero of={state()}/fill bs=1024 count={64 - room} 2>&1"
    mounts = [small_disk(state(), "64k"), f"{{ {fill} || true; }} >&2"]

    first, flushed, left = in_jail(PARK, path, state(), mounts=mounts)

    homes = {str(Path(each).parents[1]) for each in first.split()}
    expected = {f"{PLACE}/spool", f"{state()}/logagg/spool"}
    assert homes == (expected if room else {f"{PLACE}/spool"})
    assert (flushed, left) == ("True", "[]")
    assert [each["n"] for each in records(path)] == list(range(1, 102))


def test_without_a_home_nothing_is_made_in_the_working_directory(tmp_path):
    """Neither a state directory nor a home is known."""
    environment = {**os.environ, "XDG_STATE_HOME": "", "HOME": "~"}

    found = in_jail(WHERE, env=environment, cwd=tmp_path)

    assert found == [str(PLACE), f"{PLACE}/spool/an-id"]
    assert os.listdir(tmp_path) == []


@linux_form  # elsewhere no network disk is recognised
def test_network_sinks_park_on_this_machine_too():
    """What one machine's sinks park, another must not deliver."""
    assert in_jail(WHERE)[0] == str(state() / "logagg")
    assert in_jail(WHERE, mounts=[share(state())])[0] == str(PLACE)
    assert in_jail(WHERE, mounts=[read_only(state())])[0] == str(PLACE)


@linux_form  # elsewhere no network disk is recognised
@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_a_place_that_others_have_made_is_not_used(mode):
    """Whoever came first to /var/tmp may not look at our records, or take them away."""
    mounts = [share(state()), f"mkdir {PLACE}", f"chmod {mode:o} {PLACE}"]
    code = WHERE.replace("print(paths.state_dir())", "")

    (found,) = in_jail(code, mounts=mounts)

    assert found.startswith(os.environ["XDG_RUNTIME_DIR"])


@linux_form  # elsewhere no network disk is recognised
def test_without_any_place_it_says_what_to_do():
    """A clear error that names the setting, for sinks that cannot do without."""
    mounts = [share(state()), "mount -o remount,ro /var/tmp"]
    done = finish(
        jailed([sys.executable, "-c", WHERE], small_disk("/var/tmp"), *mounts), status=1
    )
    assert "set XDG_STATE_HOME" in done.stderr
