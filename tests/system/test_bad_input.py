"""Bad input is told in one clear line; the application's own calls never raise."""

import os
import socket
import stat

import pytest
import support
from support import (
    BASIC,
    PREAMBLE,
    have,
    lines,
    python,
    records,
    settled,
    strict,
    wait_until,
)

NASTY = (
    BASIC
    + """
import threading

class Two(Exception):
    def __init__(self, one, two):
        super().__init__(one)

class Broken:
    def __repr__(self):
        raise RuntimeError("no repr")
    __str__ = __repr__

nested = {"leaf": "x"}
for _ in range(100):
    nested = {"inner": nested, "padding": "x" * 1000}

log.info("lock", extra={"lock": threading.Lock(), "n": 0})
log.info("lambda %s", lambda: None, extra={"n": 1})
try:
    raise Two("a", "b")
except Two:
    log.exception("two", extra={"n": 2})
log.info("broken %s", Broken(), extra={"n": 3, "value": Broken()})
log.info("nested", extra={"nested": nested, "n": 4})
for n in (5, 6, 7):
    log.info("normal", extra={"n": n})
log.info("surrogate \\udcd1 %s", "\\udcff", extra={"n": 8})
log.info("emoji \\U0001f525 NUL \\0 newline \\r\\n end", extra={"n": 9})
log.info("bytes %s", b"\\xff\\x00", extra={"n": 10})
log.info("numbers", extra={"n": 11, "a": float("nan"), "b": 10**5000, "c": 2**70})
log.info("x" * 10_000_000, extra={"n": 12})
log.info("many", extra={"n": 13, **{f"f{i}": i for i in range(10_000)}})
"""
)


def test_any_value_gets_through_and_disturbs_nobody(tmp_path):
    """Locks, lambdas, broken objects, deep and huge ones: every record arrives."""
    path = tmp_path / "app.log"

    done = python(NASTY, path)

    assert done.stderr == ""
    settled()
    found = [strict(line) for line in lines(path)]
    found = [each for each in found if not support.of_service(each)]
    assert [each["n"] for each in found] == list(range(14))
    assert "lock" in found[0]["lock"]
    assert "unprintable" in found[3]["value"]
    assert found[8]["message"].startswith("surrogate \\udcd1")
    assert found[9]["message"] == "emoji 🔥 NUL \0 newline \r\n end"
    assert len(found[12]["message"]) == 10_000_000


@pytest.mark.parametrize(
    "encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)]
)
def test_any_text_reaches_a_stdout_of_any_encoding(tmp_path, encoding):
    """An ASCII terminal shows escapes; nothing is lost, one line a record."""
    code = """\
import logging, logagg
logging.basicConfig(handlers=[logagg.Handler(sinks="stdout:?format=text")], level=10)
logging.info("surrogate \\udcd1")
logging.info("emoji \\U0001f525")
logging.info("NUL \\0, newline \\n, escape \\x1b[2J, c1 \\x9b")
logging.info("end")
"""
    env = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}

    done = python(code, env=env)

    wait_until(lambda: not support.consumers(), what="the consumer's end")
    shown = [line for line in done.stdout.splitlines() if "worker_exit" not in line]
    assert len(shown) == 4, done.stdout
    assert "\\udcd1" in shown[0]
    assert "\x1b" not in done.stdout
    assert "\0" not in done.stdout
    assert "end" in shown[3]


BAD_PATHS = {
    "a missing directory": ("{}/no/app.log", "the directory {}/no is missing"),
    "a directory": ("{}", "it is a directory"),
    "a FIFO": ("{}/fifo", "FIFO"),
    "a link": ("{}/link", "symbolic link"),
    "a hard link": ("{}/hard", "hard link"),
    "a socket": ("{}/sock", "socket"),
}


@pytest.mark.parametrize("what", BAD_PATHS)
def test_a_target_that_cannot_be_a_log_is_told_in_one_line(tmp_path, what):
    """Either the handler refuses it, or one line on stderr says why."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "other").touch()
    os.link(tmp_path / "other", tmp_path / "hard")
    os.symlink("other", tmp_path / "link")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "sock"))
    path, said = (each.format(tmp_path) for each in BAD_PATHS[what])

    done = python(BASIC + "log.info('x')\nprint('still here')", path, status=None)

    shown = done.stderr.splitlines()
    if done.returncode:  # the handler's maker is told, by an exception
        assert "ConfigError" in shown[-1]
        assert said in shown[-1]
    else:  # found out later: one line, and the record is shown, not lost
        told = [line for line in shown if said in line]
        assert len(told) == 1, done.stderr
        assert path in told[0]
        told = (line for line in shown if line.startswith("{"))
        assert strict(next(told))["message"] == "x"
        assert done.stdout == "still here\n"
    assert (tmp_path / "other").read_bytes() == b""


def test_a_bad_option_of_a_sink_is_named(tmp_path):
    """The unknown option, the sink and what would be right stand in one line.

    The handler does not load sinks, so the consumer finds it, at the first record; the
    other sinks get the records.
    """
    code = (
        PREAMBLE
        + "sinks = ['file:' + sys.argv[1] + '?max_byte=5', 'stderr:?format=json']\n"
        "logging.basicConfig(handlers=[logagg.Handler(sinks=sinks)])\n"
        "logging.warning('x')"
    )
    done = python(code, tmp_path / "app.log")

    (line,) = [each for each in done.stderr.splitlines() if "max_byte" in each]
    assert "'max_byte'" in line
    assert "max_bytes" in line
    assert '"message":"x"' in done.stderr
    settled()


def test_the_log_file_is_private_whatever_the_umask(tmp_path):
    """A fresh file has mode 0640 with a umask of nothing at all, too."""
    path = tmp_path / "app.log"
    python("import os; os.umask(0)\n" + BASIC + "log.info('x')", path)
    wait_until(have(path, 1))

    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    settled()


def test_a_logger_used_within_logging_itself_does_not_recurse(tmp_path):
    """`__repr__`, filters and formatters that log: all records, no recursion."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
class Chatty:
    def __repr__(self):
        log.info("from repr", extra={"who": "repr"})
        return "chatty"

def chatty_filter(record):
    if record.name != "inner":
        logging.getLogger("inner").info("from filter", extra={"who": "filter"})
    return True

log.info("outer", extra={"who": "outer", "value": Chatty()})
logging.getLogger().handlers[0].addFilter(chatty_filter)
log.info("again %r", Chatty(), extra={"who": "outer"})
"""
    )
    done = python(code, path)

    assert done.stderr == ""
    settled()
    found = [each["who"] for each in records(path)]
    assert found.count("outer") == 2
    assert found.count("repr") == 2
    assert found.count("filter") >= 1
