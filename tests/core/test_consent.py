"""What a configuration file that was found may do without its user's consent."""

from __future__ import annotations

from pathlib import Path

import pytest

from logagg.cli.check import kind_of
from logagg.cli.configuration import config
from logagg.cli.configuration.confirmed_files import is_confirmed
from logagg.cli.configuration.consent import is_within, needs
from logagg.cli.configuration.found_file import parse
from logagg.errors import ConfigError
from logagg.options import Setting, fields


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a file, with links in it."""
    found = tmp_path / "clone"
    (found / "logs" / "inner").mkdir(parents=True)
    (found / "out").symlink_to(tmp_path)
    (found / "in").symlink_to("logs/inner")
    (found / "dangling.log").symlink_to(tmp_path / "no")
    monkeypatch.chdir(found)
    return found


@pytest.mark.parametrize(
    ("path", "within"),
    [
        ("app.log", True), ("logs/app.log", True), ("{base}/app.log", True),
        ("logs/../app.log", True), ("in/app.log", True), ("//{base}/app.log", True),
        ("logs/{{worker}}.log", True), ("{{app}}/{{worker}}.log", True),
        ("a{{{{b.log", True), ("..log/app", False),
        ("../app.log", False), ("/etc/passwd", False), ("{base}x/app.log", False),
        ("out/app.log", False), ("in/../../app.log", True), ("out/../app.log", False),
        ("dangling.log", False), ("{{worker}}/../../x", False), (".git/config", False),
        ("logs/.x/a", False), ("logs/{{worker}}/.x", False), ("out/{{worker}}", False),
        ("{{{{/../../x", False), ("{{{{/../x", True), ("a\0b", False), ("~/x", True),
    ],
)  # fmt: skip
def test_a_path_is_within_a_directory(base: Path, path: str, within: bool) -> None:
    """As the kernel goes, with links; a template's values lead nowhere else."""
    assert is_within(base, path.format(base=base)) is within


WANTED = {
    "https://h/in": "",
    "https://h/in?spool=off&compress=gzip&level=error": "",
    "stdout:?format=console": "",
    "nobody-has-this:x": "",
    "https://h/in?spool=x": "keep and send to https://h/in what is spooled in x",
    "https://h/in?proxy=http://p": "send records by the proxy http://p to https://h/in",
    "https://h/in?ca_file=x": "trust the authorities in x for https://h/in",
    "https://h/in?server_name=x": "take the certificate of x for that of https://h/in",
    "loki+https://h?token=env:T": "send the variable T to loki+https://h",
    "https://h/in?key_file=k&cert_file=": "send the file k to https://h/in",
    "file:/etc/x": "write the log file /etc/x",
    "/etc/x": "write the log file /etc/x",
}


@pytest.mark.parametrize("url", WANTED)
def test_a_sink_needs_consent_for_what_is_not_the_repositorys(
    base: Path, url: str
) -> None:
    """In words that name it."""
    setting = Setting(fields(kind_of("run"))["sinks"], [url], str)

    assert ", ".join(map(str, needs(base, {"sinks": setting}))) == WANTED[url]


def test_a_sink_of_another_package_needs_consent(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what its options do."""
    from importlib.metadata import EntryPoint

    from logagg import sinks

    entry = EntryPoint("shell", "logagg_shell:Sink", sinks.GROUP)
    monkeypatch.setitem(sinks._seen, "shell", entry)
    setting = Setting(fields(kind_of("run"))["sinks"], ["shell:rm"], str)

    (need,) = needs(base, {"sinks": setting})

    assert str(need) == "use the sink of another package, shell:rm"


def test_of_each_path_option_it_is_known_what_it_does() -> None:
    """Those that ask write, listen or start there; the others only read, for the user's eyes."""
    asking, reading = set(), set()
    commands = {*config.TABLES, *(n for names in config.COMMON.values() for n in names)}
    for name in commands:
        for key, each in config.keys(kind_of(name)).items():
            assert each.option is not None
            if each.option.asks:
                asking.add((name, key))
            elif each.text.path:
                reading.add((name, key))

    assert asking == {
        ("serve", "socket"), ("send", "file"), ("tail", "cursor_file"), ("tail", "raw"),
        ("query", "parquet"), ("up", "file"),
    }  # fmt: skip
    assert reading == {
        ("run", "watch"), ("reload", "socket"), ("status", "socket"), ("tail", "socket"),
        ("stats", "socket"), ("top", "socket"), ("tail", "files"), ("stats", "files"),
        ("query", "socket"), ("query", "files"),
    }  # fmt: skip


@pytest.mark.parametrize("part", ["a", '"a b"', "'a'", " a "])
@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "a = {{ {} = 1 }}"])
def test_a_key_of_many_parts_is_an_error(part: str, form: str) -> None:
    """Such a file would keep each command in its directory busy for hours."""
    parse(form.format(".".join([part] * 60)))
    with pytest.raises(ValueError, match="nested too deep"):
        parse(form.format(".".join([part] * 70)))


@pytest.mark.parametrize("text", [f"n = {10**30}", f"n = {'[' * 300}{']' * 300}"])
def test_a_file_of_which_no_note_can_be_made_is_an_error(
    tmp_path: Path, text: str
) -> None:
    """With a reason; it is not taken for confirmed."""
    with pytest.raises(ConfigError, match="cannot be used"):
        is_confirmed(tmp_path / "logagg.toml", parse(text))
