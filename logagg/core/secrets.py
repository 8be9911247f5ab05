"""Detection of secret fields by name, and replacement of their values. Pure.

Workers replace the values of fields with well-known secret names before a record leaves
the process: there the names are at hand, so it costs a look-up that is made anyway, and
no secret reaches a pipe, a spool or a file.

A name is read as its words: `X-Api-Key`, `api.key`, `apiKey`, `API KEY 2`, and these in
letters of another width, are all `api key`. A name may also stand beside its value: in a
pair of a list (headers, as ASGI has them), in an object with a `name` and a `value`, and
before or in a word of a command line or environment (`--password x`, `PASSWORD=x`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

__all__ = [
    "MAX_DEPTH", "PLACEHOLDER", "WELL_KNOWN", "is_secret", "plain_name", "scrubbed",
]  # fmt: skip

PLACEHOLDER = "[redacted]"
"""Always the same, so that it reveals nothing of the secret."""

WELL_KNOWN = (
    "password", "passwd", "passphrase", "passcode", "pswd", "secret", "token", "apikey",
    "accesskey", "privatekey", "secretkey", "authorization", "cookie", "credential",
    "connectionstring", "accountkey", "authkey", "encryptionkey", "masterkey",
    "sessionkey", "sharedkey", "signingkey", "sshkey", "webhookkey", "presharedkey",
    "sharedaccesssignature", "amzsignature", "googsignature", "authheader", "connstr",
    "connstring", "connectionstr", "passwrd", "phpsessid", "jsessionid", "connectsid",
    "mfacode", "otpcode", "cvvcode", "cvccode", "twofactorcode", "recoverycode",
    "backupcode", "verificationcode", "securitycode", "authcode", "authorizationcode",
    "seedphrase", "recoveryphrase", "totpseed",
)  # fmt: skip
"""Ends of names that hold secrets, without what separates words (`db_password`)."""

MAX_DEPTH = 64
"""Levels of containers in a field; a deeper one is replaced by TOO_DEEP."""

TOO_DEEP = "<nested too deep>"

_LAST_WORDS = frozenset(
    {"jwt", "otp", "totp", "cvv", "cvc", "psw", "pw", "psk", "bearer"}
)
_PLURALS = tuple(name for name in WELL_KNOWN if name != "token")
_LOGINS = (
    "user db database smtp mail email admin root ftp ssh mysql pg redis ldap login proxy "
    "http key store auth my account wifi service"
)
_AFTER = {
    "pass": f"{_LOGINS} default",
    "pwd": f"{_LOGINS} sa new default",
    "pw": f"{_LOGINS} bind",
    "key": "account admin aes client consumer decryption deploy dsa gpg hmac license "
    "oauth pgp rsa service signature storage subscription symmetric functions wrapping "
    "tls ssl pem anthropic openai sendgrid sig stripe twilio mailgun datadog",
    "tokens": "access api auth bearer csrf id oauth refresh secret security session",
    "auth": "basic http proxy digest",
}
"""Words that make a secret of the last one; alone it is an ordinary name, but `pass`."""

_PRECEDED = {last: frozenset(words.split()) for last, words in _AFTER.items()}
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[\W_]+")
_COUNTED = frozenset({"first", "input", "output", "per"})
"""Words before `token` where it is a piece of text (`time_to_first_token`)."""

_QUALIFYING = """
again backup base base64 b64 confirm confirmation current data default dev digest encoded
encrypted hash header hex live main new old pem plain plaintext prev previous primary prod
production raw repeat secondary staging value
"""
_QUALIFIERS = frozenset(_QUALIFYING.split())
"""Words after a secret's name that leave it one (`password_hash`, `SECRET_KEY_BASE`)."""

_NAMED = (("value", "name", "key"), ("Value", "Name", "Key"))
_MOST_NAMES = 10_000
_LONGEST_NAME = 256
_judged: dict[str, bool] = {}


def plain_name(name: str) -> str:
    """A name's words in lower case, joined by underscores.

    Letters of other widths and styles are their plain ones, invisible ones nothing.
    """
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
        name = "".join(each for each in name if unicodedata.category(each) != "Cf")
    return _SEPARATORS.sub("_", _CAMEL.sub("_", name)).strip("_").lower()


def is_secret(name: object) -> bool:
    """Whether a field of this name holds a secret, by the well-known names."""
    if not isinstance(name, str):
        return False
    found = _judged.get(name)
    if found is None:
        if len(_judged) >= _MOST_NAMES:
            _judged.clear()
        found = _judged[name] = _judge(name[-_LONGEST_NAME:])
    return found


def _judge(name: str) -> bool:
    words = plain_name(name).rstrip("_0123456789").split("_")
    joined, last = "".join(words), words[-1]
    if last in _QUALIFIERS and len(words) > 1 and not joined.endswith(WELL_KNOWN):
        return words[:-1] != ["pass"] and _judge("_".join(words[:-1]))
    before = words[-2] if len(words) > 1 else ""
    if last == "token" and before in _COUNTED:
        return False
    if joined.endswith(WELL_KNOWN) or last in _LAST_WORDS or joined == "pass":
        return True
    if last.endswith("s") and joined[:-1].endswith(_PLURALS):
        return True
    for end, owners in _PRECEDED.items():
        if last == end and before in owners:
            return True
        if last.endswith(end) and last.removesuffix(end) in owners:
            return True
    return False


def scrubbed(
    value: Any, secret: Callable[[object], bool] = is_secret, depth: int = 0
) -> Any:
    """A dictionary or list with the secrets in it replaced; itself when it has none.

    Args:
        value: As JSON has it.
        secret: Whether a name is that of a secret.
        depth: How many containers it is in.
    """
    kind = type(value)
    if kind is not dict and kind is not list and kind is not tuple:
        return value
    if depth > MAX_DEPTH:
        return TOO_DEEP
    if kind is dict:
        hidden = _named_value(value, secret)
        changed = {
            name: PLACEHOLDER
            if secret(name) or name == hidden
            else scrubbed(inner, secret, depth + 1)
            for name, inner in value.items()
        }
        same = all(changed[name] is value[name] for name in value)
        return value if same else changed
    inner = [scrubbed(_pair(each, secret), secret, depth + 1) for each in value]
    inner = _words(inner, secret)
    same = all(new is old for new, old in zip(inner, value, strict=True))
    return value if same else inner


def _named_value(pairs: dict[Any, Any], secret: Callable[[object], bool]) -> str | None:
    """The key of a secret's value, in an object whose `name` names it."""
    for value, *names in _NAMED:
        if value in pairs and len(pairs) < 8:
            for each in names:
                name = pairs.get(each)
                if type(name) is str and secret(name):
                    return value
    return None


def _pair(element: Any, secret: Callable[[object], bool]) -> Any:
    """A pair of a list, its value replaced where its name is that of a secret."""
    if type(element) in (list, tuple) and len(element) == 2:
        name = element[0]
        if type(name) is str and name and secret(name):
            return [name, PLACEHOLDER]
    return element


def _words(elements: list[Any], secret: Callable[[object], bool]) -> list[Any]:
    """Words of a command line or environment, the values of secret ones replaced."""
    for at, word in enumerate(elements):
        if type(word) is not str or not (word.startswith("-") or "=" in word):
            continue
        name, equals, _ = word[:_LONGEST_NAME].partition("=")
        if not secret(name):
            continue
        if equals:
            elements[at] = f"{name}={PLACEHOLDER}"
        elif at + 1 < len(elements):
            elements[at + 1] = PLACEHOLDER
    return elements
