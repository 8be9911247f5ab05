"""The house's own rules: what package may hold what, so that the walls stay.

Import directions are import-linter's business (`lint-imports`, contracts in
pyproject.toml); what it cannot see is checked here, on the syntax tree.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import io
import re
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from logagg.core.event import Event

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "logagg", ROOT / "sinks" / "logagg_sinks")
MODULES = sorted(path for root in PACKAGES for path in root.rglob("*.py"))

PURE = ("logagg/core", "logagg/dialects", "logagg/filters", "logagg/render")
IO_MODULES = frozenset(
    (
        "aiofiles", "aiohttp", "asyncio", "concurrent", "fcntl", "io", "mmap",
        "multiprocessing", "os", "pathlib", "queue", "select", "selectors", "shutil",
        "signal", "socket", "subprocess", "tempfile", "threading", "time",
    )
)  # fmt: skip
ALLOWED_IO = {
    ("logagg/core/encode.py", "time"),  # a record's bound in time
    ("logagg/render/markup.py", "os"),  # NO_COLOR and TERM, passed on
}

MOST_FILES = 12
MOST_LINES = 450
MOST_FUNCTION_LINES = 45

PUBLIC_FACE = frozenset(
    (
        "logagg.abc", "logagg.errors", "logagg.fleet.nats_connection",
        "logagg.fleet.jetstream", "logagg.fleet.message", "logagg.options",
        "logagg.segment_log",
        "logagg.spool_directory", "logagg.text", "logagg.wireformat",
    )
)  # fmt: skip

SINKS_TOO = {"logagg.fleet"}
"""Packages that sinks import, too."""

BANNED = re.compile(
    r"\b(?:tells?|told|hears?|heard|says?|said|behind|whoever|whomever|nobody|somebody"
    r"|patience|mends?|mended|settles?|settled|we|us|ours?|greets?|looks? (?:at|for))\b"
    r"|^What\b(?!.*\?)",
    re.IGNORECASE,
)

LONG_ON_PURPOSE = frozenset(
    (
        # One call per record less each: these three are the cost of a log call.
        "logagg/client/handler.py: emit", "logagg/client/fast/record_factory.py: make_record",
        "logagg/client/transport.py: send",
    )
)  # fmt: skip
"""Functions that stay in one piece, and why."""


def name_of(path: Path) -> str:
    """A module's path below the repository."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_bytes())


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Every node of a module's syntax tree."""
    return list(ast.walk(tree_of(path)))


@functools.cache
def comments_of(path: Path) -> dict[int, str]:
    """The comments of a module by their line."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}


def dotted(path: Path) -> str:
    """A module's name as it is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "sinks" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path): path for path in MODULES}


def imported(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that a module imports, anywhere in it, type-only ones included."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in NAMES else node.module), node


def documented(path: Path) -> Iterator[tuple[int, str]]:
    """Every docstring of a module, those of attributes included, with its line."""
    for node in nodes_of(path):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value


def test_pure_packages_do_no_io() -> None:
    """Nothing in the pure packages can reach a file, a clock or a thread."""
    broken = {
        f"{name_of(path)}: {module}"
        for path in MODULES
        for module, _ in imported(path)
        if name_of(path).startswith(PURE)
        and module.partition(".")[0] in IO_MODULES
        and (name_of(path), module) not in ALLOWED_IO
    }
    assert not broken


def test_a_folder_is_small() -> None:
    """A newcomer sees its modules at a glance (`__init__` and `__main__` aside)."""
    files = Counter(path.parent for path in MODULES if "__" not in path.stem)
    assert not {name_of(f) for f, number in files.items() if number > MOST_FILES}


def test_a_name_stands_for_one_thing() -> None:
    """No two modules and no two classes of the product have one name."""
    stems = Counter(path.stem for path in MODULES if not path.stem.startswith("__"))
    classes = Counter(
        node.name.lstrip("_")
        for path in MODULES
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef)
    )
    twice = {name for name, number in (stems + classes).items() if number > 1}
    assert not {name for name in twice if max(stems[name], classes[name]) > 1}


def test_modules_and_functions_are_short() -> None:
    """What is longer is two things."""
    long = {
        f"{name_of(path)}"
        for path in MODULES
        if path.read_bytes().count(b"\n") > MOST_LINES
    }
    assert not long
    broken = set()
    for path in MODULES:
        for node in nodes_of(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                start = node.body[0]
                doc = ast.get_docstring(node, clean=False)
                first = (start.end_lineno or 0) + 1 if doc else start.lineno
                if (node.end_lineno or 0) - first + 1 > MOST_FUNCTION_LINES:
                    broken.add(f"{name_of(path)}: {node.name}")
    assert broken == LONG_ON_PURPOSE


def test_a_package_says_who_loads_it() -> None:
    """Which process, hot or not, what it may import: in the docstring of each package."""
    wanted = ("Process: ", "Hot path: ", "May import: ")
    broken = set()
    for path in MODULES:
        if path.stem == "__init__" and name_of(path) != "logagg/__init__.py":
            text = ast.get_docstring(tree_of(path)) or ""
            if not all(f"\n{word}" in text for word in wanted):
                broken.add(name_of(path))
    assert not broken


def test_offsets_of_the_wire_are_in_one_module() -> None:
    """14, 43, 44 and 55 as a place in a line, and the line's first bytes."""
    places = {14, 43, 44, 55}
    broken = set()
    for path in MODULES:
        if name_of(path) == "logagg/core/line.py":
            continue
        for node in nodes_of(path):
            if isinstance(node, ast.Subscript):
                indices = {
                    part.value
                    for part in ast.walk(node.slice)
                    if isinstance(part, ast.Constant) and type(part.value) is int
                }
            elif isinstance(node, ast.Call):
                indices = {a.value for a in node.args if isinstance(a, ast.Constant)}
                function = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if function not in ("slice", "startswith", "find", "match", "search"):
                    continue
            elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                indices = places if b'Z","level":"' in node.value else set()
            else:
                continue
            if indices & places:
                broken.add(f"{name_of(path)}:{node.lineno}")
    assert not broken


OF_LINUX = re.compile(
    r"(?:F_[GS]ETPIPE_SZ|F_OFD_\w+|SO_PEER\w+|SO_DOMAIN|SO_PASSCRED|SOCK_SEQPACKET"
    r"|SOCK_CLOEXEC|SOCK_NONBLOCK|MSG_NOSIGNAL|MSG_CMSG_CLOEXEC|EPOLL\w*|epoll|EFD_\w+"
    r"|MFD_\w+|eventfd\w*|memfd_create|pidfd_\w+|pipe2|accept4|prctl|prlimit|madvise"
    r"|sched_[gs]etaffinity|fdatasync|posix_fadvise|copy_file_range|splice|inotify\w*"
    r"|SIGRTM\w+|O_TMPFILE|O_PATH|CLOCK_BOOTTIME)"
)
"""Names of calls and constants that Linux alone has."""


def test_what_is_linuxs_own_is_in_one_package() -> None:
    """Everything else names no such call, and no file of /proc or /sys."""
    broken = set()
    for path in MODULES:
        if name_of(path).startswith("logagg/platform/"):
            continue
        docstrings = dict(documented(path)).values()
        for node in nodes_of(path):
            if isinstance(node, ast.Attribute):
                owner = getattr(node.value, "id", "")
                own = owner in ("fcntl", "os", "select", "signal", "socket")
                found = own and OF_LINUX.fullmatch(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = node.value.startswith(("/proc", "/sys/"))
                found = found and node.value not in docstrings
            else:
                continue
            if found:
                broken.add(f"{name_of(path)}:{node.lineno}")
    assert not broken


MOST_LINUX_FORM = 29
"""Places in the tests with the mark `linux_form`; a whole file counts as ten."""


def test_few_tests_are_left_out_in_the_portable_form() -> None:
    """Those of what it lacks; all others run in it (`LOGAGG_PORTABLE=1`)."""
    found: Counter[str] = Counter()
    for path in (ROOT / "tests").rglob("*.py"):
        for line in path.read_text().splitlines():
            if re.search(r"(?:@|=|= )(?:support\.)?linux_form\b", line):
                found[name_of(path)] += 10 if line.startswith("pytestmark") else 1
    assert found.total() <= MOST_LINUX_FORM, found


def test_an_import_in_a_function_has_its_reason() -> None:
    """A comment at its end says why it is not at the top."""
    broken = set()
    for path in MODULES:
        for function in nodes_of(path):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            lines = {
                n.lineno: n.end_lineno or n.lineno
                for n in ast.walk(function)
                if isinstance(n, (ast.Import, ast.ImportFrom))
            }
            for first, last in lines.items():
                found = comments_of(path)
                text = found.get(first, "") + found.get(last, "")
                reason = re.sub(r"#\s*(?:noqa|type): ?[\w, :\[\]-]*", "", text)
                if len(reason.strip("# ")) < 4:
                    broken.add(f"{name_of(path)}:{function.name}")
    assert not broken


def test_events_are_named_from_the_enum() -> None:
    """No event's name stands as a literal where an event is made."""
    known = {event.value for event in Event}
    broken = set()

    def is_name(node: ast.expr | None) -> bool:
        return isinstance(node, ast.Constant) and isinstance(node.value, str)

    for path in MODULES:
        for node in nodes_of(path):
            literals: list[ast.expr] = []
            if isinstance(node, ast.Dict):
                literals = [
                    value
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and key.value == "event"
                ]
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                literals = [k.value for k in node.keywords if k.arg == "event"]
                if name in (
                    "own_record",
                    "emit_event",
                    "record_event",
                    "say",
                    "report",
                ):
                    literals += [
                        a for a in node.args if getattr(a, "value", 0) in known
                    ]
            if any(map(is_name, literals)):
                broken.add(f"{name_of(path)}:{node.lineno}")
    assert not broken


def test_the_words_are_the_fields() -> None:
    """No banned word stands in a docstring, comment or text (quoted text is free)."""
    broken = set()
    for path in MODULES:
        docstrings = dict(documented(path))
        texts = [
            (node.lineno, f" {node.value}")
            for node in nodes_of(path)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " in node.value
            and node.value not in docstrings.values()
        ]
        texts += [*docstrings.items(), *comments_of(path).items()]
        for line, text in texts:
            if BANNED.search(re.sub(r"`[^`]*`|\"[^\"]*\"", "", text)):
                broken.add(f"{name_of(path)}:{line}")
    assert not broken


def test_the_words_of_c_code_are_the_fields_too() -> None:
    """In its comments."""
    sources = sorted((ROOT / "logagg" / "_native").glob("*.[ch]"))
    assert len(sources) > 3
    broken = [
        f"{path.name}: {comment[:60]}"
        for path in sources
        for comment in re.findall(r"/\*.*?\*/", path.read_text(), re.DOTALL)
        if BANNED.search(re.sub(r"`[^`]*`|\"[^\"]*\"", "", comment))
    ]
    assert not broken


def test_the_rules_see_the_whole_product() -> None:
    """Every package that is shipped, and every module that is imported from it."""
    shipped = {p.parent for root in PACKAGES for p in root.rglob("__init__.py")}
    assert {name_of(p) for p in shipped} >= {
        "logagg", "logagg/cli", "logagg/client", "logagg/consumer", "logagg/core",
        "logagg/dialects", "logagg/fanout", "logagg/filters", "logagg/fleet", "logagg/integrations",
        "logagg/ipc", "logagg/render", "logagg/supervisor", "logagg/view",
        "sinks/logagg_sinks", "sinks/logagg_sinks/file", "sinks/logagg_sinks/http",
    }  # fmt: skip
    walls = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers, face = walls["contracts"][:2]
    listed = {name for layer in layers["layers"] for name in layer.split(" | ")}
    packages = {dotted(p / "__init__.py") for p in shipped}
    inner = {name for name in packages if re.fullmatch(r"logagg\.\w+", name)}
    assert inner <= listed
    assert inner - SINKS_TOO <= set(face["forbidden_modules"])


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even for types, and not inside functions."""
    arrows = {
        name: {m for m, _ in imported(path) if m in NAMES and m != name}
        for name, path in NAMES.items()
        if path.stem != "__init__"
    }
    broken = set()
    for name, direct in arrows.items():
        reached: set[str] = set()
        todo = set(direct)
        while todo:
            reached |= todo
            todo = {each for one in todo for each in arrows.get(one, ())} - reached
        if name in reached:
            broken.add(name_of(NAMES[name]))
    assert not broken


def test_shipped_sinks_see_the_public_face_only() -> None:
    """They import what the author of any sink may import, and nothing else."""
    broken = {
        f"{name_of(path)}: {module}"
        for path in MODULES
        for module, _ in imported(path)
        if name_of(path).startswith("sinks/")
        and module.partition(".")[0] == "logagg"
        and module not in PUBLIC_FACE
    }
    assert not broken


def test_the_core_names_no_single_sink() -> None:
    """A sink of another distribution can have what the shipped ones have.

    Schemes that name a *transport* (`stdout`, `stderr`, `file`) are known to the module
    of addresses only: a process must find its consumer without loading a sink.
    """
    entries = importlib.metadata.entry_points(group="logagg.sinks")
    schemes = {entry.name for entry in entries}
    broken = set()
    for path in MODULES:
        if not name_of(path).startswith("logagg/") or path.stem == "paths":
            continue
        for node in nodes_of(path):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            words = {
                part.value
                for side in sides
                for part in ast.walk(side)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
            if "scheme" in ast.unparse(node) and words & schemes:
                broken.add(f"{name_of(path)}:{node.lineno}")
    assert not broken


@pytest.mark.parametrize(
    "word", ["told", "Whoever comes", "behind it", "What it does.", "looks at"]
)
def test_the_check_of_words_works(word: str) -> None:
    """It finds what it is there for."""
    assert BANNED.search(word)
