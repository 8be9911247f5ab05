"""Secrets of a sink: where they come from, and how they stay out of everything else.

A secret is never written in a sink's URL: `env:NAME` or `file:PATH` stands there, and
that is what is shown. It is read when a request is made, so that a new token in a file
is used without a restart. `scrub` takes secrets out of any text (an answer that echoes
a token, an error that names a URL) before the text goes anywhere.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode

from logagg.errors import ConfigError

__all__ = ["Secrets", "check", "looks_secret"]

_NAMES = re.compile(
    r"auth|token|secret|passw|cookie|signature|credential|api[-_]?key|apikey|(^|[-_])key",
    re.IGNORECASE,
)
_HIDDEN = "[secret]"


def looks_secret(name: str) -> bool:
    """Whether a header or parameter of this name carries a secret."""
    return _NAMES.search(name) is not None


def check(text: str, *, what: str) -> str:
    """Return the text when it says where a secret is, and is not one itself.

    Raises:
        ConfigError: It is neither `env:NAME` nor `file:PATH`; the value is not shown.
    """
    kind, _, where = text.partition(":")
    if kind not in ("env", "file") or not where:
        raise ConfigError(
            f"{what} is a secret, which must not stand in a sink's URL: put it into an "
            "environment variable or a file and write env:NAME or file:PATH"
        )
    return text


class Secrets:
    """Reads secrets and remembers them, to take them out of texts."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def read(self, where: str) -> str:
        """The secret at `env:NAME` or `file:PATH`, without blanks at its ends.

        Raises:
            OSError: It is not there; the message says where it should be.
        """
        kind, _, name = where.partition(":")
        if kind == "env":
            value = os.environ.get(name)
            if value is None:
                raise OSError(f"environment variable {name} is not set")
        else:
            try:
                with open(name, encoding="utf-8") as file:
                    value = file.read(65536)
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is not text"
                raise OSError(f"cannot read the secret in {name}: {why}") from None
        value = value.strip()
        if not value or not value.isprintable():
            raise OSError(f"the secret in {where} is empty or has control characters")
        return self.remember(value)

    def remember(self, value: str) -> str:
        """Note a secret that came from elsewhere; return it."""
        for form in (value, b64encode(value.encode()).decode()):
            if len(form) >= 4:
                self._seen.add(form)
        if ":" in value:  # user:password
            self.remember(value.partition(":")[2])
        return value

    def scrub(self, text: str) -> str:
        """The text with every secret replaced."""
        for value in sorted(self._seen, key=len, reverse=True):
            text = text.replace(value, _HIDDEN)
        return text
