"""What `import logagg` costs: only what a log call needs."""

import sys

from support import python

CHECK = """\
import sys
import logging  # what the application has anyway
before = set(sys.modules)
import logagg
logagg.Handler
new = set(sys.modules) - before
heavy = {"asyncio", "aiohttp", "aiofiles", "click", "msgspec", "structlog", "ssl",
         "multiprocessing", "subprocess", "importlib.metadata", "concurrent.futures",
         "logagg_sinks", "logagg.sinks", "logagg.consumer.consumer", "logagg.fanout.fanout",
         "logagg.cli.main", "hashlib", "urllib.parse", "unittest", "email", "http"}
print(*sorted(heavy & new))
"""


def test_importing_loads_neither_asyncio_nor_http_nor_cli_nor_any_sink():
    """A worker loads the handler and what it encodes with, nothing more."""
    assert python(CHECK).stdout.split() == []


def test_the_name_alone_loads_next_to_nothing():
    """`import logagg` by itself does not even load the handler."""
    code = "import sys, logagg; print(*[m for m in sys.modules if 'logagg' in m])"

    assert python(code).stdout.split() == ["logagg"]


def test_making_a_handler_and_logging_loads_no_loop_and_no_client(tmp_path):
    """Attaching and starting a consumer keeps the worker small, with sinks too."""
    code = CHECK.replace(
        "logagg.Handler\n",
        "sinks = ['file:' + sys.argv[1] + '2?max_bytes=1MB', 'stderr:?match=x']\n"
        "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1], sinks=sinks)])\n"
        "logging.error('x')\n",
    )

    loaded = set(python(code, tmp_path / "a.log").stdout.split())

    assert loaded <= {"subprocess", "hashlib"}


def test_the_shipped_schemes_are_those_that_are_installed():
    """A handler knows them without reading the installed entry points."""
    from importlib.metadata import entry_points

    from logagg.client.sink_urls import SHIPPED_SCHEMES

    shipped = {
        entry.name
        for entry in entry_points(group="logagg.sinks")
        if entry.value.startswith("logagg_sinks.")
    }
    assert shipped == SHIPPED_SCHEMES


def test_import_starts_no_thread_and_touches_no_file():
    """Importing in a spawned child is safe: it does nothing yet."""
    code = """\
import os, sys, threading
before = os.listdir("/proc/self/fd"), set(os.listdir(os.environ["XDG_RUNTIME_DIR"]))
import logagg
logagg.Handler, logagg.start, logagg.install
after = os.listdir("/proc/self/fd"), set(os.listdir(os.environ["XDG_RUNTIME_DIR"]))
print(before == after, threading.active_count())
"""
    assert python(code).stdout.split() == ["True", "1"]


def test_public_names_are_listed_and_say_where_they_are_from():
    """`dir`, `__all__` and what can be had agree."""
    import logagg

    assert dir(logagg) == sorted(logagg.__all__)
    for name in logagg.__all__:
        assert hasattr(logagg, name)
    assert logagg.worker is None  # this is no worker of a run
    assert logagg.Handler.__module__ == "logagg"
    assert sys.modules["logagg"].__version__
