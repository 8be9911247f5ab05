"""Secrets do not leave the process, by the names of their fields."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

import logagg
import logagg.structlog
from logagg.core.encode import body, scrubbed_body
from logagg.core.secrets import PLACEHOLDER, is_secret, scrubbed


@dataclasses.dataclass
class Login:
    """What a user types in."""

    user: str
    password: str


def read(path: Path) -> list[dict]:
    """The application's records in a file."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in found if each["logger"] != "logagg"]


def logged(path: Path, extra: dict, **options: object) -> dict:
    """What one record with these extras is in the file."""
    handler = logagg.Handler(path, **options)
    logger = logging.Logger("secrets")
    logger.addHandler(handler)
    logger.info("signed in", extra=extra)
    logger.info("signed in", extra=extra)
    handler.close()
    first, second = read(path)
    assert {k: first.get(k) for k in extra} == {k: second.get(k) for k in extra}
    return first


def test_values_of_secret_names_never_reach_the_file(tmp_path: Path) -> None:
    """At the top, in dictionaries, lists and dataclasses: always the placeholder."""
    found = logged(
        tmp_path / "app.log",
        {
            "password": "hunter2",
            "X-Api-Key": "hunter2",
            "deep": [{"er": {"accessToken": "hunter2", "user": "u"}}],
            "login": Login("u", "hunter2"),
            "port": 80,
        },
    )

    assert "hunter2" not in (tmp_path / "app.log").read_text()
    assert found["password"] == found["X-Api-Key"] == PLACEHOLDER
    assert found["deep"] == [{"er": {"accessToken": PLACEHOLDER, "user": "u"}}]
    assert found["login"] == {"user": "u", "password": PLACEHOLDER}
    assert found["port"] == 80


def test_a_secret_has_no_depth_at_which_it_is_safe() -> None:
    """Below the deepest level that is read nothing is sent at all."""
    inner: object = {"password": "hunter2"}
    for _ in range(100):
        inner = {"k": [inner]}

    found = scrubbed_body(body({"deep": inner, "token": "hunter2"}))

    assert b"hunter2" not in found
    assert b"<nested too deep>" in found


def test_redaction_can_be_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By argument, or for the whole process by LOGAGG_REDACT=no."""
    extra = {"password": "p", "deep": {"token": "t"}}

    found = logged(tmp_path / "a.log", extra, redact=False)
    monkeypatch.setenv("LOGAGG_REDACT", "no")
    other = logged(tmp_path / "b.log", extra)

    for each in (found, other):
        assert (each["password"], each["deep"]) == ("p", {"token": "t"})


def test_structlog_events_are_redacted_too(tmp_path: Path) -> None:
    """Event keys and bound context alike."""
    path = tmp_path / "app.log"
    logagg.structlog.configure(path)
    log = structlog.get_logger("s").bind(db_password="hunter2")
    log.info("hello", headers={"Cookie": "hunter2", "Host": "h"})
    log.flush() if hasattr(log, "flush") else None
    logagg.structlog.LoggerFactory(path)("x").flush()

    (found,) = read(path)

    assert found["db_password"] == PLACEHOLDER
    assert found["headers"] == {"Cookie": PLACEHOLDER, "Host": "h"}
    structlog.reset_defaults()


@given(
    st.recursive(
        st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "b", "token", "c"]), inner)
        ),
    )
)
def test_scrubbing_changes_nothing_but_secrets(value: object) -> None:
    """A value without secrets is returned as it is, not copied."""
    if "'token':" in repr(value):
        assert repr(scrubbed(value)).count(PLACEHOLDER) > 0
    else:
        assert scrubbed(value) is value


@pytest.mark.parametrize("name", ["monkey", "tokens_used", "key", "passage", "pwd", 7])
def test_names_that_only_resemble_a_secret_are_left_alone(name: object) -> None:
    """Only whole words at the end count."""
    assert not is_secret(name)
