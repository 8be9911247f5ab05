"""The page of a run, or of `logagg serve`: `logagg web` as a process of its own.

The address is bound before anything is started, so one in use is an error at once. The
process prints its link on stderr, and ends with its parent. One that ends before it is
not started again: the log does not depend on it.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from logagg.platform import endpoints

__all__ = ["PageProcess"]

_GRACE: Final = 5.0


class PageProcess:
    """A page, first its address only.

    Raises:
        ConfigError: The address cannot be listened at.
    """

    def __init__(self, address: str) -> None:
        self._listener = endpoints.listen(address, "web")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, socket: str) -> None:
        """Start the process, for the consumer at a socket.

        Raises:
            OSError: No descriptor, process or memory is free.
        """
        number = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "logagg", "web",
             "--listen", f"fd:{number}", "--socket", socket],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            pass_fds=[number],
            start_new_session=True,
        )  # fmt: skip
        self._listener.close()

    def end(self) -> None:
        """End it; blocks 5 s at most. Without a process only the address is released."""
        self._listener.close()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
