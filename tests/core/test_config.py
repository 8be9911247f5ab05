"""Options from file, environment and command line: found, checked, in their order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from logagg import config
from logagg.cli import main
from logagg.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, which is the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(name: str) -> click.Command:
    """A command of `logagg`."""
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def values(name: str, **environ: str) -> dict[str, Any]:
    """What holds for a command by the file that is found and these variables."""
    return config.load().values(name, command(name), environ)


def given_to(name: str, *words: str, env: dict[str, str] | None = None) -> Any:
    """What the command's function would be called with, by a command line."""
    found: dict[str, Any] = {}
    each = command(name)
    before, each.callback = each.callback, lambda **given: found.update(given)
    try:
        result = CliRunner(env=env or {}).invoke(main, [name, *words])
    finally:
        each.callback = before
    assert result.exit_code == 0, result.output
    return found


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
    assert config.find(str(deep)) == home / "logagg.toml"
    (home / "a/logagg.toml").write_text("")
    assert config.find(str(deep)) == home / "a/logagg.toml"


def test_the_search_ends_at_the_repository_and_at_home(home: Path) -> None:
    """A file above the root of the repository, or above home, is not ours."""
    (home / "logagg.toml").write_text("")
    (home / "repository/.git").mkdir(parents=True)
    (home / "repository/src").mkdir()
    assert config.find(str(home / "repository/src")) is None
    os.environ["HOME"] = str(home / "repository/src")
    assert config.find(str(home / "repository/src")) is None


def test_pyproject_counts_when_it_speaks_of_us(home: Path) -> None:
    """`[tool.logagg]` is a file; a pyproject.toml without it is passed over."""
    (home / "pyproject.toml").write_text("[tool.logagg.run]\nworkers = 3\n")
    inner = home / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[tool.other]\n")

    assert config.find(str(inner)) == home / "pyproject.toml"
    assert values("run") == {"workers": "3"}


def test_logagg_toml_goes_before_pyproject(home: Path) -> None:
    """In one directory the file of our own wins."""
    (home / "pyproject.toml").write_text("[tool.logagg.run]\nworkers = 3\n")
    (home / "logagg.toml").write_text("[run]\nworkers = 4\n")
    assert values("run") == {"workers": "4"}


def test_a_file_of_somebody_else_is_refused_unless_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found by searching must be ours; what was named is used."""
    path = home / "logagg.toml"
    path.write_text("[run]\nworkers = 4\n")
    monkeypatch.setattr("os.getuid", lambda: path.stat().st_uid + 1)
    if path.stat().st_uid == 0:
        os.chown(path, 12345, -1)
        monkeypatch.undo()
        monkeypatch.chdir(home)
        monkeypatch.setenv("HOME", str(home))
    with pytest.raises(ConfigError, match="belongs to uid"):
        config.load()
    assert config.load(str(path)).data == {"run": {"workers": 4}}


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
    assert given_to("run", "app.py")["workers"] is None
    (home / "logagg.toml").write_text('level = "error"\n[run]\nworkers = 2\n')
    assert given_to("run", "app.py")["workers"] == "2"
    environment = {"LOGAGG_WORKERS": "3"}
    found = given_to("run", "app.py", env=environment)
    assert (found["workers"], found["level"]) == ("3", "error")
    assert given_to("run", "-w", "4", "app.py", env=environment)["workers"] == "4"


def test_a_file_may_be_named_by_option_and_variable(home: Path) -> None:
    """`--config` beats LOGAGG_CONFIG, and either beats the search."""
    for number, name in enumerate(("logagg.toml", "a.toml", "b.toml"), 1):
        (home / name).write_text(f"[run]\nworkers = {number}\n")
    environment = {"LOGAGG_CONFIG": "a.toml"}

    assert given_to("run", "app.py", env=environment)["workers"] == "2"
    found = given_to("run", "--config", "b.toml", "app.py", env=environment)
    assert found["workers"] == "3"


def test_sinks_of_the_command_line_replace_those_of_the_file(home: Path) -> None:
    """Lists are not added up: whoever names sinks means these."""
    (home / "logagg.toml").write_text('sinks = ["file:a.log", "stdout:"]\n')
    assert given_to("serve", "--sink", "file:b.log")["sinks"] == ("file:b.log",)


def test_common_keys_reach_the_commands_that_they_are_for(home: Path) -> None:
    """A level for workers does not filter what a viewer shows."""
    (home / "logagg.toml").write_text('level = "error"\ncolor = "never"\n')
    environment = {"LOGAGG_LEVEL": "debug", "LOGAGG_TAIL_LINES": "7"}

    assert values("run", **environment) == {"level": "debug"}
    assert values("tail", **environment) == {"color": "never", "lines": "7"}


def test_a_table_beats_the_common_key(home: Path) -> None:
    """What is said for one command alone is meant for it."""
    (home / "logagg.toml").write_text(
        'sinks = "file:a.log"\n[serve]\nsinks = ["stdout:"]\n'
    )
    assert values("run")["sinks"] == [f"file:{home}/a.log"]
    assert values("serve")["sinks"] == ["stdout:"]


# ---- every option ---------------------------------------------------------------------


@pytest.mark.parametrize("name", config.TABLES)
def test_every_long_option_of_a_command_is_a_key(name: str) -> None:
    """Nothing is declared twice, so nothing can be forgotten."""
    known = config.keys(command(name))
    for option in command(name).params:
        long = [each for each in option.opts if each.startswith("--")]
        if isinstance(option, click.Option) and long and option.name != "config":
            assert option in known.values(), long
    assert "config" not in known


@pytest.mark.parametrize(
    ("name", "key", "text", "expected"),
    [
        ("run", "stop_timeout", "12.5", 12.5),
        ("run", "max_rss", '"500MB"', 500 << 20),
        ("run", "bind", '":8000"', (":8000",)),
        ("run", "watch", '["src", "/lib"]', ("{home}/src", "/lib")),
        ("run", "policy", '"rr"', "rr"),
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
    known = config.keys(command(name))[key].name

    found = given_to(name, *(["app.py"] if name == "run" else []))[known]

    if isinstance(expected, tuple):
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
    assert found["sinks"] == ["file:a.log", "file:b c.log", "stdout:"]


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
        ("run", "[runn]\nworkers = 3", ["'runn'", "did you mean 'run'"]),
        ("run", "run = 3", ["run = 3", "expected a table [run]"]),
        ("run", '[run]\nworkers = "fuor"', ["workers = 'fuor'", "a number or max"]),
        ("run", "[run]\nworkers = true", ["workers = True", "text or a number"]),
        ("run", "[run]\nworkers = [1]", ["workers = [1]", "text or a number"]),
        ("run", '[run]\nstop_timeout = "x"', ["stop_timeout = 'x'", "valid float"]),
        ("run", "[run]\nstop_timeout = -1", ["stop_timeout = -1", "negative"]),
        ("run", '[run]\npolicy = "rrr"', ["policy = 'rrr'", "'rr'"]),
        ("run", '[run]\nbind = "x:y:z"', ["bind = 'x:y:z'"]),
        ("run", '[run]\nmax_rss = "big"', ["max_rss = 'big'", "500MB"]),
        ("run", 'level = "loud"', ["level = 'loud'", "expected one of"]),
        ("run", 'metrics = "x"', ["metrics = 'x'", "HOST:PORT"]),
        ("serve", '[serve]\nonce = "maybe"', ["once = 'maybe'", "boolean"]),
        ("serve", "[serve]\nonce = 3", ["once = 3", "expected true or false"]),
        ("tail", '[tail]\nlevel = "loud"', ["level = 'loud'"]),
        ("tail", '[tail]\nsince = "soon"', ["since = 'soon'", "expected a date-time"]),
        ("tail", '[tail]\ngrep = ["("]', ["grep = ['(']"]),
        ("tail", '[tail]\nlines = "few"', ["lines = 'few'", "a number, or all"]),
    ],
)
def test_a_mistake_names_file_key_and_value(
    home: Path, name: str, text: str, words: list[str]
) -> None:
    """And what would be right, or what is near."""
    (home / "logagg.toml").write_text(text)
    message = refused(name)
    for word in [str(home / "logagg.toml"), *words]:
        assert word in message


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
