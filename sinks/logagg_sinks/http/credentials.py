"""Secrets of a sink: where they come from, and how they stay out of everything else.

A secret is never written in a sink's URL: `env:NAME` or `file:PATH` stands there, and
that is what is shown. It is read when a request is made, so that a new token in a file
is used without a restart. `scrub` takes secrets out of any text (an answer that echoes
a token, an error that names a URL) before the text goes anywhere.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from urllib.parse import parse_qsl, unquote, urlsplit

from logagg.abc import SECRETS
from logagg.errors import ConfigError
from logagg_sinks.http.http_client import is_loopback

__all__ = [
    "Secrets", "check", "check_token", "check_way", "checked", "looks_secret",
    "without_user",
]  # fmt: skip

_PARTS = re.compile(
    r"auth|token|secret|passw|passphrase|pwd|cookie|signature|credential|sessionid"
    r"|(?:access|api|private|shared)key",
    re.IGNORECASE,
)
_WORDS = frozenset(
    {
        "access", "bearer", "code", "cred", "creds", "hmac", "jwt", "key", "otp", "pass",
        "passphrase", "pin", "private", "pw", "pwd", "sas", "session", "sid", "sig",
        "sign",
    }
)  # fmt: skip
_OWN_HEADERS = frozenset(
    {
        "content-length",
        "content-encoding",
        "content-type",
        "transfer-encoding",
        "host",
        "connection",
        "user-agent",
    }
)


def looks_secret(name: str) -> bool:
    """Whether a header or parameter of this name carries a secret."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return _PARTS.search(
        re.sub(r"[^A-Za-z]", "", name)
    ) is not None or not _WORDS.isdisjoint(word.lower() for word in words)


def check(text: str, *, what: str) -> str:
    """Return the text if it names the place of a secret, and is not one itself.

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


def is_place(text: str) -> bool:
    """Whether a value is the place of one: `env:NAME` or `file:PATH`."""
    return text.partition(":")[0] in ("env", "file")


def fingerprint(values: Sequence[str]) -> str:
    """Name the owner of these secrets without giving one away."""
    data = "\0".join(values).encode("utf-8", "surrogateescape")
    return blake2b(data, key=b"logagg spool", digest_size=8).hexdigest()


class Secrets:
    """Reads secrets; every one is noted among those that are taken out of texts."""

    def read(self, where: str) -> str:
        """The secret at `env:NAME` or `file:PATH`, without blanks at its ends.

        Raises:
            OSError: It is not there; the message names the place.
        """
        kind, _, name = where.partition(":")
        if kind == "env":
            value = os.environ.get(name)
            if value is None:
                raise OSError(f"environment variable {name} is not set")
        else:
            try:
                value = _text_of(name)
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is not text"
                raise OSError(f"cannot read the secret in {name}: {why}") from None
        value = value.strip()
        if not value or not value.isprintable():
            raise OSError(f"the secret in {where} is empty or has control characters")
        return self.remember(value)

    def remember(self, value: str) -> str:
        """Note a secret that came from elsewhere; return it."""
        SECRETS.add(value)
        return value

    def scrub(self, text: str) -> str:
        """The text with every secret replaced, also in part or encoded."""
        return SECRETS.scrub(text)


def _text_of(path: str) -> str:
    """The beginning of a regular file; a pipe could be waited for without end."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(path, flags), encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(65536)


def without_user(url: str) -> tuple[str, str]:
    """The URL without user and password, and these."""
    head, slashes, rest = url.partition("//")
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, host = place.rpartition("@")
    if not slashes or not at:
        return url, ""
    return f"{head}//{host}{rest[len(place) :]}", unquote(user)


def check_token(user: str, token: str, what: str) -> None:
    """Refuse a token that is none, or stands beside a password.

    Raises:
        ConfigError: One of both.
    """
    if user and token:
        raise ConfigError(f"{what}: a password in the URL and a token; give one")
    if token:
        check(token, what=f"{what}: option token")


def check_way(target: str, proxy: str, names: Iterable[str], what: str) -> None:
    """Refuse to send a secret where everybody on the way can read it.

    Args:
        target: The target's URL, with user and query.
        proxy: The URL of the proxy in between, or "".
        names: Names of what is sent besides.
        what: The sink, for the error.

    Raises:
        ConfigError: A secret would go by plain HTTP, and not to this machine itself.
    """
    parts = urlsplit(target)
    names = [*names, *(name for name, _ in parse_qsl(parts.query))]
    secret = parts.username is not None or any(map(looks_secret, names))
    hosts = [parts.hostname, urlsplit(proxy).hostname if proxy else parts.hostname]
    if secret and parts.scheme == "http" and not all(map(is_loopback, hosts)):
        raise ConfigError(
            f"{what}: a secret would go out over plain http, for everybody on the way to "
            "read: use https (http is for this machine itself only)"
        )


def checked(values: Mapping[str, str], kind: str, what: str) -> dict[str, str]:
    """Refuse what cannot be sent, and secrets in plain text."""
    for name, value in values.items():
        shown = f"{what}: {kind} {name!r}"
        if not name or not (name + value).isprintable() or not name.isascii():
            raise ConfigError(
                f"{shown} cannot be sent: it has characters that none has"
            )
        if kind == "header" and name.lower() in _OWN_HEADERS:
            raise ConfigError(f"{shown} is set by the sink itself; leave it out")
        if looks_secret(name):
            check(value, what=shown)
    return dict(values)
