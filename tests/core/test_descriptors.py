"""How many clients a consumer accepts, so that descriptors for its own work stay free."""

from __future__ import annotations

import os
import resource

import pytest
from support import no_free_descriptor

from logagg.ipc import descriptors
from logagg.ipc.descriptors import CLIENT_DESCRIPTORS, DescriptorBudget, OwnDescriptor


@pytest.mark.parametrize("expected", [0, 3])
def test_a_part_of_the_limit_is_left(
    monkeypatch: pytest.MonkeyPatch, expected: int
) -> None:
    """Of 100 descriptors a quarter, and those of clients that are accepted already."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    monkeypatch.setattr(os, "listdir", lambda _: ["0"] * 20)
    budget = DescriptorBudget()
    taken = 0
    while budget.take(expected + taken):
        taken += 1
    assert taken == (100 - 25 - 20) // CLIENT_DESCRIPTORS - expected


def test_without_a_free_descriptor_none_is_accepted() -> None:
    """Counting needs one."""
    with no_free_descriptor():
        assert not DescriptorBudget().take(0)
    assert DescriptorBudget().take(0)


def test_no_fork_comes_into_the_middle_of_a_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The child would keep what is neither owned nor closed, for life."""
    kept_out = []
    close = os.close
    with descriptors.no_fork:
        own = OwnDescriptor(os.open(os.devnull, os.O_RDONLY))

    def closes(number: int) -> None:
        kept_out.append(descriptors.no_fork._is_owned())  # type: ignore[attr-defined]
        close(number)

    with monkeypatch.context() as watched:
        watched.setattr(descriptors.os, "close", closes)
        own.close()
    assert kept_out == [True]
