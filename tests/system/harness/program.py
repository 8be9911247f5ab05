"""Programs of frameworks as their users start them, and the records that they leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import support


def records(folder: Path) -> list[dict[str, Any]]:
    """The applications' records that are complete in `app.log` by now."""
    path = folder / "app.log"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    found = [json.loads(line) for line in whole.splitlines()]
    return [each for each in found if not support.of_service(each)]


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Program:
    """A program that is stopped as its supervisor would: TERM to its first process."""

    def __init__(self, folder: Path, command: list[str], **variables: str) -> None:
        path = os.pathsep.join((str(folder), os.environ["PYTHONPATH"]))
        self.folder = folder
        self.output = (folder / "output").open("a+")
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **variables},
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.output.close()

    def until(
        self, condition: Callable[[list[dict[str, Any]]], Any], what: str
    ) -> list[dict[str, Any]]:
        """Wait until the records fulfil a condition, and return them."""

        def fulfilled() -> list[dict[str, Any]]:
            found = records(self.folder)
            if condition(found):
                return found
            if self.process.poll() is not None:
                raise AssertionError("the program has ended")
            return []

        try:
            return list(support.wait_until(fulfilled, 60))
        except AssertionError as error:
            output = (self.folder / "output").read_text()
            raise AssertionError(
                f"no {what} ({error}) in {records(self.folder)}\n{output}"
            ) from None

    def until_message(self, text: str) -> list[dict[str, Any]]:
        """Wait for a record whose message has this in it."""
        return self.until(
            lambda found: [each for each in found if text in each["message"]], text
        )
