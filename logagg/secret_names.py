"""Which fields hold secrets, by their names; and their values replaced. Pure.

Workers replace the values of fields with well-known secret names before a record leaves
the process: there the names are at hand, so it costs a look-up that is made anyway, and
no secret ever stands in a pipe, a spool or a file.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PLACEHOLDER", "WELL_KNOWN", "ends", "is_secret", "plain_name", "scrubbed"]

PLACEHOLDER = "[redacted]"
"""Always the same, so that nothing about the secret's length or beginning shows."""

WELL_KNOWN = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "access_key",
    "private_key",
    "secret_key",
    "authorization",
    "cookie",
    "credential",
    "credentials",
)
"""Names of fields that hold secrets, and ends of such names (`db_password`)."""

MAX_DEPTH = 64


def plain_name(name: str) -> str:
    """A name in lower case, its words joined by underscores."""
    return name.lower().replace("-", "_").replace(" ", "_")


def ends(names: tuple[str, ...]) -> tuple[str, ...]:
    """What secret names end in: where `api_key` stands, `apikey` is meant too."""
    return tuple(dict.fromkeys((*names, *(name.replace("_", "") for name in names))))


_ENDS = ends(WELL_KNOWN)


def is_secret(name: object) -> bool:
    """Whether a field of this name holds a secret, by the well-known names."""
    return isinstance(name, str) and plain_name(name).endswith(_ENDS)


def scrubbed(value: Any, depth: int = 0) -> Any:
    """A dictionary or list with the secrets in it replaced; itself when it has none."""
    if depth > MAX_DEPTH:
        return value
    if type(value) is dict:
        changed = {
            name: PLACEHOLDER if is_secret(name) else scrubbed(inner, depth + 1)
            for name, inner in value.items()
        }
        same = all(changed[name] is value[name] for name in value)
        return value if same else changed
    if type(value) in (list, tuple):
        inner = [scrubbed(each, depth + 1) for each in value]
        same = all(new is old for new, old in zip(inner, value, strict=True))
        return value if same else inner
    return value
