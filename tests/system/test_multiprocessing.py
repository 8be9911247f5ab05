"""multiprocessing in all its ways, pools, programs started by environment."""

import textwrap

import pytest
import support
from support import (
    assert_complete,
    assert_ordered,
    finish,
    have,
    lines,
    python,
    records,
    settled,
    wait_until,
)

PLAIN = """\
import logging, multiprocessing, sys
import logagg

def work(path, number):
    if not logging.getLogger().handlers:
        logging.basicConfig(handlers=[logagg.Handler(path)], level="INFO")
    for n in range(300):
        logging.info("x", extra={"who": f"w{number}", "n": n})

if __name__ == "__main__":
    path, method = sys.argv[1:]
    logging.basicConfig(handlers=[logagg.Handler(path)], level="INFO")
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=work, args=(path, i)) for i in range(3)]
    for each in workers:
        each.start()
    logging.info("x", extra={"who": "parent", "n": 0})
    for each in workers:
        each.join()
        assert each.exitcode == 0
"""


def program(tmp_path, text):
    """A program in a file: spawned children import it."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.mark.parametrize(
    "method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_each_start_method_lands_in_one_consumer(tmp_path, method):
    """A handler made in the child, or inherited: one ordered file."""
    path = tmp_path / "app.log"

    done = finish([support.sys.executable, program(tmp_path, PLAIN), str(path), method])

    assert done.stderr == ""
    settled()
    found = records(path)
    assert_complete(found, {"w0": 300, "w1": 300, "w2": 300, "parent": 1})
    assert len({each["pid"] for each in found}) == 4
    assert_ordered(lines(path))


POOL = """\
import concurrent.futures, logging, multiprocessing, sys
import logagg

def work(n):
    log = logging.getLogger("third.party")
    log.debug("debug", extra={"who": "debug", "n": n})
    log.log(15, "verbose", extra={"who": "verbose", "n": n})
    return n

def third_party(method, count):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        return list(pool.map(work, range(count)))

if __name__ == "__main__":
    path, method = sys.argv[1:]
    logging.addLevelName(15, "VERBOSE")
    with logagg.start("file:" + path):
        logging.getLogger().setLevel("DEBUG")
        assert third_party(method, 40) == list(range(40))
        logging.info("done", extra={"who": "parent", "n": 0})
"""


@pytest.mark.parametrize(
    "method",
    [
        "spawn",
        pytest.param("forkserver", marks=pytest.mark.slow),
        pytest.param("fork", marks=pytest.mark.slow),
    ],
)
def test_a_librarys_pool_logs_without_any_code_in_its_workers(tmp_path, method):
    """Under `logagg.start` children inherit handler, root level and level names."""
    path = tmp_path / "app.log"

    done = finish([support.sys.executable, program(tmp_path, POOL), str(path), method])

    assert done.stderr == ""
    settled()
    found = [each for each in records(path) if "who" in each]
    for who, level in (("debug", "debug"), ("verbose", "verbose")):
        mine = [each for each in found if each["who"] == who]
        assert sorted(each["n"] for each in mine) == list(range(40))
        assert {each["level"] for each in mine} == {level}
        assert {each["process"] for each in mine} != {"MainProcess"}
    assert {each.get("level_number") for each in found if each["who"] == "verbose"} == {
        15
    }
    assert [each["who"] for each in found][-1] == "parent"


@pytest.mark.slow
def test_leaving_start_means_that_everything_is_in_the_file(tmp_path):
    """When the block has ended, the file is complete: own records and children's."""
    code = """\
import logging, os, subprocess, sys
import logagg
path = sys.argv[1]
child = (
    "import logging, logagg\\n"
    "logging.basicConfig(handlers=[logagg.Handler()], level='INFO')\\n"
    "for n in range(500): logging.info('x', extra={'who': 'child', 'n': n})\\n"
)
with logagg.start("file:" + path):
    logging.getLogger().setLevel("INFO")
    for n in range(500):
        logging.info("x", extra={"who": "parent", "n": n})
    subprocess.run([sys.executable, "-c", child], check=True)
assert "LOGAGG_SOCKET" not in os.environ
data = open(path, "rb").read()
print(data.count(b'"who":"parent"'), data.count(b'"who":"child"'))
"""
    path = tmp_path / "app.log"

    assert python(code, path).stdout.split() == ["500", "500"]
    settled()
    assert_complete(records(path), {"parent": 500, "child": 500})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ("nosuch:x", "unknown sink 'nosuch'"),
        ("file:/nowhere/at/all/x.log", "/nowhere/at/all"),
        ("file:/tmp", "directory"),
        ("file:x.log?maxbytes=1", "maxbytes"),
    ],
)
def test_start_with_a_bad_sink_is_one_clear_error(tmp_path, sink, said):
    """The error is raised in the parent, and nothing is left running."""
    code = "import logagg, sys\nwith logagg.start(sys.argv[1]):\n    pass\n"

    done = python(code, sink, status=1, cwd=tmp_path)

    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError" in last
    assert said in last
    settled()


SCRIPT = """\
import logging
import logagg
logging.basicConfig(handlers=[logagg.Handler()], level="INFO")
for n in range(100):
    logging.info("x", extra={"who": "script", "n": n})
"""


@pytest.mark.slow
def test_a_program_is_linked_by_the_environment_alone(tmp_path, monkeypatch):
    """LOGAGG_SOCKET set: its records arrive there; not set: stderr as usual."""
    import logagg

    path = tmp_path / "app.log"
    with logagg.start(f"file:{path}", root=False):
        done = python(SCRIPT)
        assert done.stderr == ""
    assert_complete(records(path), {"script": 100})

    done = python(SCRIPT)

    assert done.stderr.count("who=script") == 100
    settled()


def test_a_socket_where_nobody_listens_never_breaks_the_application(tmp_path):
    """A stale LOGAGG_SOCKET costs a complaint; records are spooled, the program runs."""
    env = {**support.os.environ, "LOGAGG_SOCKET": str(tmp_path / "gone.sock")}

    done = python(SCRIPT, env=env, timeout=90)

    assert "no consumer at" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    (spooled,) = support.spool_files()
    assert spooled.read_bytes().count(b"\n") == 100


@pytest.mark.slow
def test_a_handler_that_outlives_start_logs_on_to_its_sinks(tmp_path):
    """By a consumer that it starts: the one of `start` has ended."""
    path = tmp_path / "app.log"
    code = (
        support.PREAMBLE
        + """
with logagg.start(f"file:{sys.argv[1]}", root=False):
    handler = logagg.Handler()
    logging.basicConfig(handlers=[handler], level="INFO")
    logging.info("within")
logging.info("after")
assert handler.flush(60)
"""
    )

    python(code, path, timeout=120)

    assert [each["message"] for each in records(path)] == ["within", "after"]
    settled(60)


def test_start_twice_in_one_process_and_nested(tmp_path):
    """One after the other, and one within another: each has its own records."""
    code = """\
import logging, sys
import logagg
def handler():
    root = logging.getLogger()
    root.setLevel("INFO")
for n in range(2):
    with logagg.start(f"file:{sys.argv[1]}.{n}"):
        handler()
        logging.info("x", extra={"who": "w", "n": n})
"""
    python(code, tmp_path / "app")
    settled()

    for n in range(2):
        assert [each["n"] for each in records(tmp_path / f"app.{n}")] == [n]


@pytest.mark.slow
def test_a_gunicorn_like_preload_with_exec_of_workers(tmp_path):
    """The master logs, forks workers that log and are replaced when they die."""
    path = tmp_path / "app.log"
    code = (
        support.BASIC
        + """
def worker(number):
    for n in range(50):
        log.info("x", extra={"who": f"w{number}", "n": n})
    os._exit(0)

log.info("x", extra={"who": "master", "n": 0})
for number in range(6):
    pid = os.fork()
    if not pid:
        worker(number)
    os.waitpid(pid, 0)
log.info("x", extra={"who": "master", "n": 1})
"""
    )
    python(code, path)

    wait_until(have(path, 302))
    settled()
    sent = {f"w{i}": 50 for i in range(6)} | {"master": 2}
    assert_complete(records(path), sent)
