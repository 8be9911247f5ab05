"""Programs of a project as their files have them: Procfile, tables, order, commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from logagg.cli.check import examine
from logagg.cli.configuration import config
from logagg.cli.programs.command_words import program_of
from logagg.cli.programs.procfile import read_env_file, read_procfile
from logagg.cli.programs.program_tables import find_project, read_project
from logagg.errors import ConfigError
from logagg.supervisor.programs.program_spec import (
    ProgramSpec,
    in_order,
    select,
    with_formation,
)
from logagg.supervisor.run_options import Program, Restart, RunOptions


def spec(name: str, *after: str, workers: int = 1) -> ProgramSpec:
    """A program that comes after others."""
    return ProgramSpec(RunOptions(app=name, workers=workers), after)


def names(specs: list[ProgramSpec]) -> list[str]:
    """Their names."""
    return [each.name for each in specs]


def project(folder: Path, text: str) -> list[ProgramSpec]:
    """The programs of a logagg.toml with this text."""
    path = folder / "logagg.toml"
    path.write_text(text)
    loaded = config.load(str(path))
    return read_project(find_project("", loaded), loaded, None)


def test_a_program_stands_after_those_it_comes_after() -> None:
    """What cannot be so is refused."""
    found = names(in_order([spec("a", "c"), spec("b"), spec("c")]))
    assert found.index("c") < found.index("a")
    with pytest.raises(ConfigError, match="wait for each other"):
        in_order([spec("a", "b"), spec("b", "a")])
    with pytest.raises(ConfigError, match="did you mean 'migrate'"):
        in_order([spec("migrate"), spec("web", "migrat")])


def test_a_name_brings_what_it_comes_after() -> None:
    """And nothing else."""
    found = [spec("db"), spec("jobs", "db"), spec("web", "db")]
    assert names(select(found, ["web"])) == ["db", "web"]
    assert names(select(found, [])) == ["db", "jobs", "web"]


def test_a_formation_sets_the_workers() -> None:
    """0 leaves a program out, and those after it do not wait for it."""
    found = with_formation([spec("db"), spec("web", "db")], {"db": 0, "web": 3})
    assert [(each.name, each.options.workers, each.after) for each in found] == [
        ("web", 3, ())
    ]


def test_a_python_command_is_a_python_worker(tmp_path: Path) -> None:
    """With `python` before it or not, as a script or a module, variables filled in."""
    (tmp_path / "app.py").touch()
    here, environ = str(tmp_path), {"PORT": "81"}
    python = sys.executable
    assert program_of("app.py -v", environ, here) == Program("script", ("app.py", "-v"))
    for line in (f"{python} app.py ${{X:-7}}", f"{python} -u app.py 7"):
        assert program_of(line, environ, here) == Program("script", ("app.py", "7"))
    module = program_of(f"{python} -m http.server $PORT", environ, here)
    assert module == Program("module", ("http.server", "81"))


@pytest.mark.parametrize(
    "line", ["echo a | cat", "A=1 env", "ls *", "echo '$A'", "cd x && ls", "echo $$"]
)
def test_a_line_of_a_shell_goes_to_a_shell(line: str) -> None:
    """As it is."""
    assert program_of(line, {}, "/") == Program("command", ("sh", "-c", line))


def test_a_procfile_has_a_program_a_line(tmp_path: Path) -> None:
    """Comments and empty lines aside; in its directory, with `.env` and a PORT each."""
    path = tmp_path / "Procfile"
    path.write_text("# all\n\nweb: sleep $PORT\nsh: sleep 2\n")
    (tmp_path / ".env").write_text("PORT=7000\nexport A='x # y' # z\nB = c # d\n")
    assert read_env_file(tmp_path / ".env") == {"PORT": "7000", "A": "x # y", "B": "c"}
    assert [each.name for each in read_procfile(path)] == ["web", "sh"]

    web, sh = read_project(
        find_project(str(path), config.Config()), config.Config(), None
    )

    assert web.options.program.argv == ("sleep", "7000")
    assert sh.options.env["PORT"] == "7100"
    assert (web.options.directory, web.options.workers) == (str(tmp_path), 1)


def test_a_table_has_the_options_of_a_run(tmp_path: Path) -> None:
    """And what only a program of several has."""
    (tmp_path / "below").mkdir()
    (tmp_path / "vars").write_text("A=1\nB=1\n")
    (one, two) = project(
        tmp_path,
        """
        [programs.two]
        command = "sleep 1"
        after = ["one"]
        workers = 3
        max_rss = "1MB"
        env_file = "vars"
        env = {B = 2}
        cwd = "below"
        [programs.one]
        command = "sleep 1"
        restart = "never"
        """,
    )
    assert one.is_one_shot
    assert one.options.restart is Restart.NEVER
    assert (two.after, two.options.workers, two.options.max_rss) == (("one",), 3, 10**6)
    assert two.options.env == {"A": "1", "B": "2"}
    assert two.options.directory == os.fspath(tmp_path / "below")


def test_check_covers_the_programs(tmp_path: Path) -> None:
    """The first mistake, or how many there are."""
    path = tmp_path / "logagg.toml"
    path.write_text('[programs.web]\ncommand = "sleep 1"\n')
    assert ("ok", "1 program") in [(f.state, f.detail) for f in examine(str(path), {})]
    path.write_text('[programs.web]\ncommand = "nosuchcommand"\n')
    (bad,) = [f for f in examine(str(path), {}) if f.state == "bad"]
    assert "no such script or command: 'nosuchcommand'" in bad.detail
