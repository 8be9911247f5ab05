"""A log call in C does what the call in Python does, or leaves it to that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import checked_build, linux_form, strict

from logagg.client.fast import native
from logagg.core.encode import body, scrubbed_body

HERE = Path(__file__).parent
HAS_COMPILER = (
    shutil.which(os.environ.get("CC", "cc")) is not None
    and Path(sysconfig.get_paths()["include"], "Python.h").exists()
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)
BUILT = pytest.mark.skipif(native.emit is None, reason="the C form is not built")
SCENES = HERE / "native_scenes.py"

KEYS = st.one_of(
    st.sampled_from(["a", "b", "password", "api_key", "Token", "", "ä", 'q"', "event"]),
    st.sampled_from(["name", "key", "value"]),
    st.text(max_size=8),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**64), 2**65), st.floats(),
    st.floats(-1e6, 1e6).map(lambda each: round(each, 3)), st.text(),
    st.text(alphabet=st.characters(max_codepoint=0x7F)),
    st.sampled_from(["password", "-p", "--password", "--token=x", "-"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def test_the_c_form_is_built_here() -> None:
    """Where there is a compiler; else all the other tests here would say nothing."""
    if HAS_COMPILER and os.environ.get("LOGAGG_PURE") != "1":
        assert native.is_used()


@BUILT
@given(fields=st.dictionaries(KEYS, VALUES, max_size=5), redact=st.booleans())
def test_fields_are_encoded_to_the_same_bytes(fields: Any, redact: bool) -> None:
    """As the Python encoder, orjson, does; what C leaves is counted below."""
    expected = body(fields)
    if redact:
        expected = scrubbed_body(expected)

    made = native.emit.encode(fields, redact)

    assert made is None or made == expected


FEW_KEYS = st.one_of(  # of names it keeps 2,048
    st.sampled_from(
        [
            "a",
            "password",
            "",
            "ä",
            'q"',
            "event",
            "value",
            "name",
            "key",
            "Value",
            "Name",
        ]
    ),
    st.text(alphabet="ab漢", max_size=4),
)
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(),
        st.floats(1e-3, 1e9), st.floats(-1e9, -1e-3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(FEW_KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


def may_stand_beside(value: Any) -> bool:
    """Whether a secret's name may stand beside its value: that is Python's to find out."""
    if isinstance(value, dict):
        named = "value" in value and ("name" in value or "key" in value)
        named = named or "Value" in value
        return named or any(map(may_stand_beside, value.values()))
    if isinstance(value, list):
        return any(
            (isinstance(each, str) and (each.startswith("-") or "=" in each))
            or (isinstance(each, list) and len(each) == 2 and isinstance(each[0], str))
            or may_stand_beside(each)
            for each in value
        )
    return False


@BUILT
@given(fields=st.dictionaries(FEW_KEYS, PLAIN, max_size=5))
def test_plain_fields_are_never_left_to_python(fields: dict[str, Any]) -> None:
    """Text, 64-bit numbers, containers: all that is common."""
    assume(not may_stand_beside(fields))
    assert native.emit.encode(fields, True) == scrubbed_body(body(fields))


@BUILT
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_the_shortest_that_reads_back(number: float) -> None:
    """The digits of orjson, for every float that is not left to Python."""
    made = native.emit.encode({"x": number}, False)

    assert made in (None, b'"x":' + orjson.dumps(number))


def ran(folder: Path, form: str, environment: dict[str, str]) -> tuple[list[Any], str]:
    """Run the scenes; return their records without what differs from run to run."""
    folder.mkdir()
    process = subprocess.run(
        [sys.executable, str(SCENES), str(folder / "x.log"), form],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    records = []
    lines = (folder / "x.log").read_bytes().splitlines()
    for record in map(strict, lines):
        if record.get("event") == "worker_exit":
            continue
        for name in ("timestamp", "received", "pid", "worker", "seq"):
            del record[name]
        text = str(record.get("stack", "")) + str(record.get("exception", ""))
        assert ("exception" in record or "stack" in record) == bool(text)
        records.append(record)
    # In a full pipe the order of two processes is that of their writes.
    return records, process.stdout


JOB = {"LOGAGG_APP": "shop", "RANK": "3", "LOCAL_RANK": "1"}


@BUILT
@linux_form  # the C form reads memory that a fork clears, and leaves all else to Python
@linux_form  # the C form reads memory that a fork clears, and leaves all else to Python
@pytest.mark.parametrize(
    ("form", "job"), [("install", {}), ("plain", {}), ("install", JOB), ("plain", JOB)]
)
def test_all_kinds_of_calls_give_the_same_records(
    tmp_path: Path, form: str, job: dict[str, str]
) -> None:
    """With `install` and without, in C and in Python; so do other handlers."""
    in_c, seen_in_c = ran(tmp_path / "c", form, job | {"LOGAGG_PURE": "0"})
    in_python, seen_in_python = ran(tmp_path / "p", form, job | {"LOGAGG_PURE": "1"})

    assert seen_in_c == seen_in_python
    assert len(in_c) == len(in_python)
    for ours, theirs in zip(in_c, in_python, strict=True):
        assert ours == theirs
    assert len(in_c) > 150


STORM = """
import itertools, logging, os, signal, sys, threading
import logagg
handler = logagg.Handler("x.log", overflow=sys.argv[2])
logging.basicConfig(handlers=[handler], level="INFO")
if sys.argv[1] == "install":
    assert logagg.install()
log = logging.getLogger("storm")
handled = itertools.count()
nested = []
def on_alarm(*_):
    if len(nested) < 3:  # on a busy machine they would not end
        nested.append(1)
        log.info("of the signal handler", extra={"thread_number": 99, "n": next(handled)})
        nested.pop()
class Dies:
    def __init__(self, n):
        self.n = n
        self.me = self  # for the garbage collector to find
    def __del__(self):
        log.info("of a destructor", extra={"thread_number": 98, "n": self.n})
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
pads = ["x" * size for size in (10, 300, 5000, 40_000)]
def work(number):
    for n in range(1500):
        log.info("%s", pads[n % 4 if n % 50 == 0 else n % 2],
                 extra={"thread_number": number, "n": n})
        if number == 0 and n % 10 == 0:
            Dies(n // 10)
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
import gc; gc.collect()
assert handler.flush(100)
print(next(handled), 150)
from logagg.client.fast import native
print(*native.emit.counts())
"""


@BUILT
@linux_form
@pytest.mark.parametrize("overflow", ["spool", "block"])
@pytest.mark.parametrize("form", ["install", "plain"])
def test_threads_signals_and_destructors_lose_nothing(
    tmp_path: Path, form: str, overflow: str
) -> None:
    """Each record once, each thread's in order, stamps rising, with a pipe that fills."""
    process = subprocess.run(
        [sys.executable, "-c", STORM, form, overflow],
        cwd=tmp_path, env=os.environ | {"LOGAGG_PURE": "0"},
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    handled, destroyed, sent, _ = map(int, process.stdout.split())
    seen: dict[int, list[int]] = {}
    stamps = []
    seqs = []
    for line in (tmp_path / "x.log").read_bytes().splitlines():
        record = strict(line)
        if record["logger"] == "storm":
            seen.setdefault(record["thread_number"], []).append(record["n"])
            stamps.append(record["timestamp"])
            seqs.append(record["seq"])

    for number in range(6):
        assert seen[number] == list(range(1500))
    assert sorted(seen.get(99, [])) == list(range(handled))  # one may interrupt another
    assert sorted(seen[98]) == list(range(destroyed))
    assert stamps == sorted(stamps)
    assert seqs == list(range(1, len(seqs) + 1))
    assert sent > 1000


LEAK = """
import gc, logging, sys
import logagg
handler = logagg.Handler("x.log")
logging.basicConfig(handlers=[handler], level="INFO")
logagg.install()
log = logging.getLogger("leak")
other = logging.getLogger("leak.other")
other.addHandler(logging.NullHandler())
import logagg.structlog, structlog
logagg.structlog.configure("x.log")
events = structlog.get_logger("leak").bind(bound=1)
class Text:
    def __str__(self): return "text"
def calls(count):
    for n in range(count):
        log.info("a call %s %d", "text", n, extra={"a": n + 1000, "b": {"c": [1.5, str(n)]}})
        log.info("formatted %s", Text())
        log.info("left %r", Text(), extra={"x": Text()})
        other.warning("to others %d", n, extra={"n": n})
        log.debug("below")
        events.info("event", n=n, deep={"token": n})
        try:
            log.info("refused", extra={"message": 1})
        except KeyError:
            pass
        if n % 200 == 0:
            handler.flush(60)
def settled():
    assert handler.flush(60)
    for _ in range(3): gc.collect()
    return sys.getallocatedblocks()
calls(3000)
before = settled()
calls(int(sys.argv[1]))
print(settled() - before)
"""


@BUILT
@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_reference_is_lost_or_kept(tmp_path: Path, count: int) -> None:
    """After thousands of calls of each kind, as many objects as before."""
    process = subprocess.run(
        [sys.executable, "-c", LEAK, str(count)],
        cwd=tmp_path, env=os.environ | {"LOGAGG_PURE": "0"},
        capture_output=True, text=True, timeout=230, check=True,
    )  # fmt: skip

    assert abs(int(process.stdout)) < 300, process.stdout


@BUILT
def test_a_subinterpreter_is_refused() -> None:
    """By the import, with an ImportError; there log calls stay in Python."""
    code = """
try:
    import _interpreters as made
    run = made.exec
except ImportError:
    import _xxsubinterpreters as made
    run = made.run_string
run(made.create(), '''
try:
    import logagg._native.emit
except ImportError:
    pass
else:
    raise SystemExit("not refused")
''')
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )

    assert process.returncode == 0, process.stderr


@BUILT
@linux_form
@pytest.mark.slow
def test_the_c_code_passes_the_sanitizers(tmp_path: Path) -> None:
    """All kinds of calls, with every address and every operation checked."""
    package = tmp_path / "checked"
    package.mkdir()
    found, made = checked_build("emit", package)
    start = (
        "import sys, importlib.util as u, importlib.machinery as m\n"
        f"spec = u.spec_from_file_location('logagg._native.emit', {made!r})\n"
        "module = u.module_from_spec(spec)\n"
        "sys.modules['logagg._native.emit'] = module\n"
        "import logagg._native\n"
        "spec.loader.exec_module(module)\n"
        "logagg._native.emit = module\n"
        "import runpy\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "sys.stdout.flush()\n"
        f"assert module.__file__ == {made!r}\n"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", start, str(SCENES), str(folder / "x.log"), "install"],
        env=os.environ | {
            "LOGAGG_PURE": "0", "LD_PRELOAD": found, "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        },
        capture_output=True, text=True, timeout=230, check=False,
    )  # fmt: skip

    assert process.returncode == 0, process.stderr[-3000:]
    assert "runtime error" not in process.stderr
