"""Options from file, environment and command line: found, checked, in their order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from logagg.cli.command import Command
from logagg.cli.configuration import config
from logagg.cli.main import main
from logagg.errors import ConfigError
from logagg.platform.procfs import usable_cores
from logagg.supervisor.run_options import run_options
from logagg.supervisor.sockets.bind_address import PortPolicy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, which is the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(name: str) -> Command:
    """A command of `logagg`."""
    found = main.get_command(click.Context(main), name)
    assert isinstance(found, Command)
    return found


def values(name: str, **environ: str) -> dict[str, Any]:
    """The values that are set for a command by the file that is found and variables."""
    kind = command(name).kind
    settings = config.load().settings(name, kind, environ)
    options = config.make(kind, settings)
    return {key: getattr(options, key) for key in settings}


def given_to(name: str, *words: str, env: dict[str, str] | None = None) -> Any:
    """The options that a command line calls the command's function with, by key."""
    found: list[msgspec.Struct] = []
    each = command(name)
    before, each._function = each._function, lambda options, **_: found.append(options)
    try:
        result = CliRunner(env=env or {}).invoke(main, [name, *words])
    finally:
        each._function = before
    assert result.exit_code == 0, result.output
    return {key: getattr(found[0], key) for key in found[0].__struct_fields__}


def refused(name: str, **environ: str) -> str:
    """The message of the error that a command's configuration is."""
    with pytest.raises(ConfigError) as caught:
        values(name, **environ)
    return str(caught.value)


# ---- where the file is found ----------------------------------------------------------


def test_the_nearest_file_above_is_found(home: Path) -> None:
    """From a directory below, the search goes upwards, and the nearest one wins."""
    (home / "logagg.toml").write_text("")
    deep = home / "a/b/c"
    deep.mkdir(parents=True)
    assert config.load(start=str(deep)).path == home / "logagg.toml"
    (home / "a/logagg.toml").write_text("")
    assert config.load(start=str(deep)).path == home / "a/logagg.toml"


def test_the_search_ends_at_the_repository_and_at_home(home: Path) -> None:
    """A file above the root of the repository, or above home, is not ours."""
    (home / "logagg.toml").write_text("")
    (home / "repository/.git").mkdir(parents=True)
    (home / "repository/src").mkdir()
    assert config.load(start=str(home / "repository/src")).path is None
    os.environ["HOME"] = str(home / "repository/src")
    assert config.load(start=str(home / "repository/src")).path is None


def test_pyproject_counts_when_it_speaks_of_us(home: Path) -> None:
    """`[tool.logagg]` is a file; a pyproject.toml without it is passed over."""
    (home / "pyproject.toml").write_text("[tool.logagg.run]\nworkers = 3\n")
    inner = home / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[tool.other]\n")

    assert config.load(start=str(inner)).path == home / "pyproject.toml"
    assert values("run") == {"workers": 3}


def test_logagg_toml_goes_before_pyproject(home: Path) -> None:
    """In one directory the file of our own wins."""
    (home / "pyproject.toml").write_text("[tool.logagg.run]\nworkers = 3\n")
    (home / "logagg.toml").write_text("[run]\nworkers = 4\n")
    assert values("run") == {"workers": 4}


def hostile(home: Path, kind: str) -> Path:
    """A logagg.toml that must not be used, in a directory of its own."""
    path = home / "below/logagg.toml"
    path.parent.mkdir()
    path.write_text("[run]\nworkers = 4\n")
    if kind == "owner":
        os.chown(path, 12345, -1)
    elif kind == "link":
        link = path
        path = path.rename(home / "elsewhere")
        link.symlink_to(path)
        os.chown(link, 12345, -1, follow_symlinks=False)
        path = link
    elif kind == "everybody":
        path.chmod(0o666)
    elif kind == "group":
        os.chown(path, -1, 12345)
        path.chmod(0o664)
    else:
        path.unlink()
        os.mkfifo(path)
    return path


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("kind", ["owner", "link", "everybody", "group", "fifo"])
def test_a_file_that_others_made_or_can_change_is_passed_over(
    home: Path, kind: str
) -> None:
    """The next one above is used, and a note has the reason; named, it is used."""
    (home / "logagg.toml").write_text("[run]\nworkers = 3\n")
    path = hostile(home, kind)

    loaded = config.load(start=str(path.parent))

    assert loaded.data == {"run": {"workers": 3}}
    (note,) = loaded.passed_over
    assert str(path) in note
    if kind != "fifo":
        assert f"--config {path}" in note
        assert config.load(str(path)).data == {"run": {"workers": 4}}


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_commands_work_below_a_file_that_is_not_theirs(home: Path) -> None:
    """One line on stderr; the command does what it does without a file."""
    os.chown(home, 12345, -1)
    (home / "logagg.toml").write_text("nonsense = = [" * 1000)
    os.chown(home / "logagg.toml", 12345, -1)
    (home / "app.log").write_text("")

    result = CliRunner().invoke(main, ["tail", "--no-follow", "app.log"])

    assert result.exit_code == 1, result.output  # nothing matched
    assert "belongs to uid 12345" in result.output


def test_toml_that_is_nested_too_deep_is_an_error(home: Path) -> None:
    """One line, as for any other mistake in it."""
    (home / "logagg.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="nested too deep"):
        config.load()


def test_a_named_file_must_be_there_and_be_toml(home: Path) -> None:
    """Both errors name the file; that of TOML says where in it."""
    with pytest.raises(ConfigError, match=r"cannot read gone\.toml: No such file"):
        config.load("gone.toml")
    (home / "bad.toml").write_text("workers = = 3\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: .*line 1"):
        config.load("bad.toml")


# ---- precedence -----------------------------------------------------------------------


def test_command_line_over_environment_over_file_over_default(home: Path) -> None:
    """Each step is beaten by the one before it, key by key."""
    assert given_to("run", "app.py")["workers"] == usable_cores()
    (home / "logagg.toml").write_text('level = "error"\n[run]\nworkers = 2\n')
    assert given_to("run", "app.py")["workers"] == 2
    environment = {"LOGAGG_WORKERS": "3"}
    found = given_to("run", "app.py", env=environment)
    assert (found["workers"], found["level"]) == (3, "ERROR")
    assert given_to("run", "-w", "4", "app.py", env=environment)["workers"] == 4


def test_a_file_may_be_named_by_option_and_variable(home: Path) -> None:
    """`--config` beats LOGAGG_CONFIG, and either beats the search."""
    for number, name in enumerate(("logagg.toml", "a.toml", "b.toml"), 1):
        (home / name).write_text(f"[run]\nworkers = {number}\n")
    environment = {"LOGAGG_CONFIG": "a.toml"}

    assert given_to("run", "app.py", env=environment)["workers"] == 2
    found = given_to("run", "--config", "b.toml", "app.py", env=environment)
    assert found["workers"] == 3


def test_sinks_of_the_command_line_replace_those_of_the_file(home: Path) -> None:
    """Lists are not added up: whoever names sinks means these."""
    (home / "logagg.toml").write_text('sinks = ["file:a.log", "stdout:"]\n')
    assert given_to("serve", "--sink", "file:b.log")["sinks"] == ("file:b.log",)


def test_common_keys_reach_the_commands_that_they_are_for(home: Path) -> None:
    """A level for workers does not filter what a viewer shows."""
    (home / "logagg.toml").write_text('level = "error"\ncolor = "never"\n')
    environment = {"LOGAGG_LEVEL": "debug", "LOGAGG_TAIL_LINES": "7"}

    assert values("run", **environment) == {"level": "DEBUG"}
    assert values("tail", **environment) == {"color": "never", "lines": "7"}


def test_a_table_beats_the_common_key(home: Path) -> None:
    """What is said for one command alone is meant for it."""
    (home / "logagg.toml").write_text(
        'sinks = "file:a.log"\n[serve]\nsinks = ["stdout:"]\n'
    )
    assert values("run")["sinks"] == (f"file:{home}/a.log",)
    assert values("serve")["sinks"] == ("stdout:",)


# ---- every option ---------------------------------------------------------------------


@pytest.mark.parametrize("name", config.TABLES)
def test_every_long_option_of_a_command_is_a_key(name: str) -> None:
    """Nothing is declared twice, so nothing can be forgotten."""
    known = config.keys(command(name).kind)
    for option in command(name).params:
        long = [each for each in option.opts if each.startswith("--")]
        if isinstance(option, click.Option) and long and option.name != "config":
            assert known[str(option.name)].long in long
    assert "config" not in known


@pytest.mark.parametrize(
    ("name", "key", "text", "expected"),
    [
        ("run", "stop_timeout", "12.5", 12.5),
        ("run", "max_rss", '"500MB"', 500_000_000),
        ("run", "max_rss", '"2GiB"', 2 << 30),
        ("run", "max_age", '"1h30m"', 5400.0),
        ("run", "bind", '":8000"', ("0.0.0.0:8000",)),
        ("run", "watch", '["src", "/lib"]', ("{home}/src", "/lib")),
        ("run", "policy", '"rr"', PortPolicy.RR),
        ("serve", "once", "true", True),
        ("serve", "socket", '"run/log.sock"', "{home}/run/log.sock"),
        ("tail", "follow", "false", False),
        ("tail", "max", "5", 5),
        ("tail", "level", '"warning"', "warning"),
        ("send", "logger", '"cron"', "cron"),
    ],
)
def test_values_arrive_as_the_command_line_would_give_them(
    home: Path, name: str, key: str, text: str, expected: Any
) -> None:
    """Numbers, sizes, lists, choices, flags and paths (relative to the file)."""
    (home / "logagg.toml").write_text(f"[{name}]\n{key} = {text}\n")
    below = home / "below"
    below.mkdir()
    os.chdir(below)
    found = given_to(name, *(["app.py"] if name == "run" else []))[key]

    if isinstance(expected, tuple):
        found = tuple(map(str, found))
        expected = tuple(each.format(home=home) for each in expected)
    elif isinstance(expected, str):
        expected = expected.format(home=home)
    assert found == expected


# ---- sinks ----------------------------------------------------------------------------


def test_sinks_are_urls_or_tables(home: Path) -> None:
    """A table has the URL and options; both forms stand in one list."""
    (home / "logagg.toml").write_text(
        """
        sinks = [
          "stdout:?format=json",
          {url = "file:a b.log", max_bytes = "5MB", utc = true, backups = 3},
        ]
        """
    )
    first, second = values("serve")["sinks"]

    assert first == "stdout:?format=json"
    assert second == f"file:{home}/a b.log?max_bytes=5MB&utc=true&backups=3"
    (home / "logagg.toml").write_text(
        '[[sinks]]\nurl = "file:/x.log"\nlevel = "error"\nmatch = "a=1 b=2"\n'
        'redact = ["ssn", "iban"]\n'
    )
    (url,) = values("serve")["sinks"]
    assert url == "file:/x.log?level=error&match=a%3D1%20b%3D2&redact=ssn%2Ciban"


def test_sinks_of_a_variable_are_separated_by_spaces() -> None:
    """Quotes keep a space; a path is relative to where the command is run."""
    found = values("serve", LOGAGG_SINKS="file:a.log 'file:b c.log' stdout:")
    assert found["sinks"] == ("file:a.log", "file:b c.log", "stdout:")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('sinks = ["fiel:a.log"]', ["sinks", "'fiel'", "did you mean 'file'"]),
        ('sinks = ["file:a.log?max_byte=5MB"]', ["max_byte", "'max_bytes'"]),
        ("sinks = 5", ["sinks", "expected a list"]),
        ("sinks = [5]", ["sinks", "expected a URL, or a table"]),
        ('sinks = [{path = "a"}]', ["sinks", "with url"]),
        ('sinks = [{url = "file:a", level = {}}]', ["sinks", "level", "expected"]),
        ('sinks = ["file:a.log?match=level~~"]', ["sinks", "level~~"]),
    ],
)
def test_a_bad_sink_is_one_clear_error(home: Path, text: str, words: list[str]) -> None:
    """It names the file, the key, what is wrong and what is near."""
    (home / "logagg.toml").write_text(text)
    message = refused("serve")
    for word in [str(home / "logagg.toml"), *words]:
        assert word in message


def test_what_could_be_a_secret_is_not_shown(home: Path) -> None:
    """Of a sink's URL an error shows the address only."""
    for text in (
        'sinks = ["htps://u:hunter2@h/?token=hunter3"]',
        'sinks = [{url = "https://u:hunter2@h/", token = "hunter3"}]',
        'sinks = ["https://u:hunter2@h/?x=hunter3"]',
    ):
        (home / "logagg.toml").write_text(text)
        assert "hunter" not in refused("serve")


# ---- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run", "[run]\nwrokers = 3", ["[run]", "'wrokers'", "did you mean 'workers'"]),
        ("run", "[runn]", ["'runn'", "did you mean 'run'"]),
        ("run", "run = 3", ["run = 3", "expected a table [run]"]),
        ("run", '[run]\nworkers = "fuor"', ["workers = 'fuor'", "a number or max"]),
        ("run", "[run]\nworkers = true", ["workers = True", "text or a number"]),
        ("run", "[run]\nworkers = [1]", ["workers = [1]", "text or a number"]),
        (
            "run",
            '[run]\nstop_timeout = "x"',
            ["stop_timeout = 'x'", "expected a duration"],
        ),
        (
            "run",
            "[run]\nstop_timeout = -1",
            ["stop_timeout = -1", "expected a duration"],
        ),
        ("run", '[run]\npolicy = "rrr"', ["policy = 'rrr'", "kernel, reuseport or rr"]),
        ("run", '[run]\nbind = "x:y:z"', ["bind = 'x:y:z'"]),
        ("run", '[run]\nmax_rss = "big"', ["max_rss = 'big'", "a size such as"]),
        ("run", 'level = "loud"', ["level = 'loud'", "expected debug, info"]),
        ("run", 'metrics = "x"', ["metrics = 'x'", "HOST:PORT"]),
        (
            "serve",
            '[serve]\nonce = "maybe"',
            ["once = 'maybe'", "expected true or false"],
        ),
        ("serve", "[serve]\nonce = 3", ["once = 3", "expected true or false"]),
        ("tail", '[tail]\nlevel = "loud"', ["level = 'loud'"]),
        ("tail", '[tail]\nsince = "soon"', ["since = 'soon'", "expected a date-time"]),
        ("tail", '[tail]\ngrep = ["("]', ["grep = ['(']"]),
        ("tail", '[tail]\nlines = "few"', ["lines = 'few'", "a number, or all"]),
    ],
)
def test_a_mistake_names_file_line_key_and_value(
    home: Path, name: str, text: str, words: list[str]
) -> None:
    """And what would be right, or the nearest name."""
    (home / "logagg.toml").write_text(f"# a comment\n{text}")
    line = 2 + text.count("\n")
    message = refused(name)
    for word in [f"{home}/logagg.toml:{line}: ", *words]:
        assert word in message


def test_the_line_is_that_of_the_key_wherever_it_stands(home: Path) -> None:
    """Texts of several lines, dotted keys and pyproject.toml are read as TOML."""
    (home / "pyproject.toml").write_text(
        '[tool.logagg]\nlevel = """\nloud"""\n[tool.logagg.run]\n'
        'bind = [\n  ":1",\n  "x",\n]\n'
    )
    assert f"{home}/pyproject.toml:2: level = " in refused("run")
    (home / "logagg.toml").write_text("\n\ntail.max = 0\n")
    assert refused("tail").startswith(f"{home}/logagg.toml:3: [tail] max = 0: ")


def test_all_mistakes_of_a_command_are_found(home: Path) -> None:
    """Keys, values and combinations, of the file and the environment."""
    (home / "logagg.toml").write_text(
        'lvel = "info"\n[tail]\nlinse = 3\nmax = 0\ngrep = ["("]\n'
    )
    kind, environ = command("tail").kind, {"LOGAGG_TAIL_GAPS": "soon"}
    errors: list[ConfigError] = []
    config.attempt(kind, config.load().settings("tail", kind, environ, errors), errors)

    words = ("'lvel'", "'linse'", "max = 0", "LOGAGG_TAIL_GAPS='soon'", "grep = ['(']")
    assert len(errors) == len(words)
    for word, error in zip(words, errors, strict=True):
        assert word in str(error)


def test_a_mistake_in_a_variable_names_it() -> None:
    """The variable stands for file and key."""
    assert refused("run", LOGAGG_WORKERS="fuor").startswith("LOGAGG_WORKERS='fuor': ")
    assert "LOGAGG_TAIL_MAX='x'" in refused("tail", LOGAGG_TAIL_MAX="x")


def test_the_command_line_shows_a_mistake_as_one_line(home: Path) -> None:
    """No traceback, and the status of a usage error."""
    (home / "logagg.toml").write_text("[run]\nwrokers = 3\n")
    result = CliRunner().invoke(main, ["run", "app.py"])

    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output.startswith("logagg: ")


def test_options_behind_the_program_know_no_config(home: Path) -> None:
    """Too late to name a file: that is said, not passed over."""
    (home / "app.py").write_text("")
    (home / "x.toml").write_text("")
    result = CliRunner().invoke(main, ["run", "app.py", "--config", "x.toml"])

    assert result.exit_code == 2
    assert "--config must stand before the program" in result.output


# ---- one table ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "right"),
    [
        ("stop_timeout", "10x", "expected a duration such as 10s"),
        ("max_rss", "500MX", "expected a size such as"),
        ("max_tasks", "-1", "expected a whole number, 0 or more"),
        ("workers", "fuor", "expected a number or max"),
        ("restart", "often", "expected failure, always or never"),
        ("sticky", "cookie", "expected ip, proxy, cookie:NAME"),
        ("bind", "x:y:z", "expected HOST:PORT"),
    ],
)
def test_a_mistake_reads_the_same_wherever_it_stands(
    home: Path, key: str, text: str, right: str
) -> None:
    """Command line, variable, file and keyword: one reader, one message."""
    option = f"--{key.replace('_', '-')}"
    result = CliRunner().invoke(main, ["run", option, text, "app.py"])
    assert result.exit_code == 2
    assert result.output.startswith(f"logagg: {option} {text!r}: {right}")
    variable = f"LOGAGG_{key.upper()}"
    shown = [text] if key == "bind" else text
    assert refused("run", **{variable: text}).startswith(
        f"{variable}={shown!r}: {right}"
    )
    with pytest.raises(ConfigError, match=rf"^Cluster: {key}={text!r}: {right}"):
        run_options(None, **{key: text})


def test_keywords_take_values_and_texts_alike() -> None:
    """`stop_timeout=10`, `"10s"`; `max_rss=500_000_000`, `"500MB"`; enums too."""
    for values in (
        {"stop_timeout": 10, "max_rss": 500_000_000, "policy": "rr", "workers": 2},
        {"stop_timeout": "10s", "max_rss": "500MB", "policy": PortPolicy.RR,
         "workers": "2"},
    ):  # fmt: skip
        options = run_options(None, **values)
        assert options.stop_timeout == 10.0
        assert options.max_rss == 500_000_000
        assert options.policy is PortPolicy.RR
        assert options.workers == 2
    with pytest.raises(ConfigError, match="did you mean 'workers'"):
        run_options(None, wrokers=2)


def test_help_shows_every_default(home: Path) -> None:
    """It is written from the table, so it cannot lag behind."""
    text = CliRunner().invoke(main, ["run", "--help"]).output
    for default in ("30s", "1m", "kernel", "failure", "stdout:?format=console"):
        assert f"[default: {default}]" in " ".join(text.split())
