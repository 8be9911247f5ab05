"""The watch over the wall clock: a step ends nothing, whatever was cleaned meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from logagg.consumer import clock_steps
from logagg.consumer.clock_steps import ClockWatch
from logagg.ipc import clock


@pytest.mark.parametrize("cleaned", ["the file", "the directory"])
def test_a_step_is_announced_without_the_file_of_the_offset(
    tmp_path: Path, cleaned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaner of temporary files has removed it; it is made again where it can be."""
    path = tmp_path / "run" / "c.sock"
    path.parent.mkdir()
    if cleaned == "the directory":
        shutil.rmtree(path.parent)
    monkeypatch.setattr(clock_steps, "measure_offset", lambda: 10 * 10**9)
    messages: list[str] = []
    events: Any = type("", (), {"event": lambda _, text, __: messages.append(text)})()

    ClockWatch(str(path), 0).check([], events)

    assert "stepped by +10" in messages[0]
    if cleaned == "the file":
        found = clock.read_offset(str(path))
        assert found is not None
        assert found[1] is not None
        assert found[1][1] == 10 * 10**9
