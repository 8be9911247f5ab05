"""Two hundred ways to write a secret, all redacted; two thousand ordinary fields, none."""

from __future__ import annotations

import enum
import itertools
import logging
from pathlib import Path
from time import process_time
from typing import Any

import orjson
import pytest
from support import lines

import logagg
from logagg.core.secrets import PLACEHOLDER, is_secret, scrubbed
from logagg.filters.redact import Redaction

_NAMES = """
password Password PASSWORD passwd pass passphrase passcode pswd psw user_password
userPassword UserPassword db_password DB_PASSWORD dbPassword db.password db-password
password1 password_1 password_2 password-01 passwords old_passwords current_password
new-password root_pass dbpass smtp_pass mail_pwd db_pwd dbpwd sa_pwd secret Secret
client_secret clientSecret CLIENT_SECRET client-secret client.secret secrets
client_secrets secret_1 secret2 app_secret jwt_secret webhook_secret token Token
access_token accessToken ACCESS_TOKEN refresh_token id_token csrf_token csrfToken
X-CSRF-Token X-Auth-Token x-amz-security-token auth_token api_token bot_token
bearer_token bearer access_tokens refresh_tokens token_1 token2 jwt user_jwt api_key
apiKey apikey API_KEY API-Key X-Api-Key x-api-key api.key api/key api:key api_keys
apiKeys api_key_1 stripe_api_key access_key accessKey aws_access_key access_keys
secret_key SECRET_KEY secretKey aws_secret_access_key private_key privateKey PRIVATE-KEY
private_keys signing_key encryption_key master_key session_key shared_key account_key
storage_key license_key rsa_key hmac_key ssh_key deploy_key service_key auth_key
client_key functions_key X-Functions-Key ocp-apim-subscription-key consumer_key
authorization Authorization AUTHORIZATION HTTP_AUTHORIZATION Proxy-Authorization
proxy_authorization cookie Cookie cookies Set-Cookie set_cookie HTTP_COOKIE
pw user_pw dbpw bind_pw wifi_psk psk pre_shared_key preSharedKey passwrd mfa_code otp_code
totp_seed cvv_code two_factor_code recovery_code recovery_codes backup_codes security_code
verification_code verificationCode auth_code authorization_code sas_token
shared_access_signature sharedAccessSignature SharedAccessKey X-Amz-Signature
X-Goog-Signature tls_key tlsKey ssl_key sslkey pem_key wrapping_key stripe_key stripeKey
OPENAI_KEY anthropic_key sig_key secret_key_base SECRET_KEY_BASE RABBITMQ_DEFAULT_PASS
PRIVATE_KEY_PEM privateKeyPem client-key-data password_hash passwordHash password_digest
password_confirmation passwordConfirm password_again password_old new_password2
password_value token_value secretValue api_key_value apikey_prod api_key_prod tokenNew
secret_new password_prod prod_password passwordProd conn_str connection_str
ConnectionStrings:Default authorization_header auth_header authHeader cookie_header
PHPSESSID JSESSIONID connect.sid oauth_token_secret truststorePassword ldapBindPassword
session_cookie credential credentials Credentials aws_credentials connection_string
connectionString basic_auth http_auth proxy_auth otp totp cvv cvc cvv2
"""
WORDS = _NAMES.split()


def wide(text: str) -> str:
    """The same letters at full width."""
    return "".join(chr(ord(letter) + 0xFEE0) for letter in text)


NAMES = [
    *WORDS, "api key", "api\u00a0key", "API\u2003KEY", "pass\u200bword",
    "pass\u00adword", wide("password"), wide("API_KEY"), "api__key", "_password_",
    "\U0001d42d\U0001d428\U0001d424\U0001d41e\U0001d427", "password:", "--password",
    "api\u2010key", "secret\u00b2",
]  # fmt: skip


class Field(enum.Enum):
    """Keys of an application's own kind."""

    PASSWORD = "password"
    TOKEN = 1


class Key(enum.StrEnum):
    """The same as texts."""

    API_KEY = "api_key"


SHAPES: list[Any] = [
    lambda s: {b"password": s},
    lambda s: {b"X-Api-Key": s.encode()},
    lambda s: {Field.PASSWORD: s},
    lambda s: {Field.TOKEN: s, "a": 1},
    lambda s: {Key.API_KEY: s},
    lambda s: {"headers": [(b"authorization", s.encode()), (b"host", b"h")]},
    lambda s: {"headers": [("Cookie", s), ("Host", "h")]},
    lambda s: [["X-Auth-Token", s]],
    lambda s: [{"name": "DB_PASSWORD", "value": s}],
    lambda s: {"key": "api_key", "value": {"inner": s}},
    lambda s: {"type": "http", "headers": [[b"cookie", s.encode()]], "path": "/"},
    lambda s: ["prog", "--password", s, "-v"],
    lambda s: ["prog", f"--api-key={s}"],
    lambda s: {"Env": ["PATH=/bin", f"DB_PASSWORD={s}"]},
    lambda s: [{"Name": "DB_PASSWORD", "Value": s}],
    lambda s: {"a": [{"b": ({"secret": [s, {"c": s}]},)}]},
    lambda s: {"set": {"token": {s}}},
    lambda s: {"deep": _deep(s, 70)},
    lambda s: {"environ": {"PGPASSWORD": s, "MYSQL_PWD": s}},
    lambda s: {"outer": {1: {"token": s}}},
    lambda s: {(1, "password"): s},
]


def _deep(secret: str, levels: int) -> Any:
    inner: Any = {"token": secret}
    for _ in range(levels):
        inner = {"k": inner}
    return inner


WAYS = [*((lambda s, n=n: {n: s}) for n in NAMES), *SHAPES]

TEXTS = [
    "postgres://app:{}@db/x", "connect to redis://:{}@h:6379/0 failed",
    "https://u:{}@example.org/path?a=b", "Authorization: Bearer {}",
    "authorization=Basic {}", '{{"Authorization": "{}"}}', "Bearer {}-and-more",
    "password={}", "password: {}", "PASSWORD='{}'", 'pwd of it: api_key="{}"',
    '{{"token":"{}"}}', "user=u password={} host=h", "a=1&access_token={}&b=2",
    "--password={}", "curl -H 'X-Api-Key: {}'", "client_secret : {}",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\nrest",
    "-----BEGIN PRIVATE KEY-----\n{} cut off",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\n{}\n-----END PGP PRIVATE KEY BLOCK-----",
    "password := {}", "password => {}", "password%3D{}", "password=b'{}'", 'token=u"{}"',
    '{{\\"password\\":\\"{}\\"}}', 'password=\\"{}\\"', '"passwords": ["{}"]',
    "password=[{}]", "password=({})", 'password="a\\"{}"', "password='a {}'",
    "<password>{}</password>", "<ns:token>{}</ns:token>", "login --password {} now",
    "prog --api-key '{}'", "api key: {}", "secret key = {}", "connection string: {}",
    "Cookie: a=1; session={}; b=2", "set-cookie: sid={}; Path=/", "pw: {}", "db_pw={}",
    "https://h/x?X-Amz-Signature={}&a=1", "https://h/x?sv=2020&sig={}", "otp_code={}",
    "postgresql://user:ab/{}@db/x", "amqp://u:p@{}@h/v", "https://{}12345@h/x.git",
    "password={}" + "x" * 600 + "hunter2", "User(name='a', password='{}')",
    "https://hooks.slack.com/services/T00000000/B00000000/{}",
]  # fmt: skip

FORMS = [
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 9,
    "xoxb-" + "1234567890-abcdef", "sk_live_" + "a1B2" * 6, "AIza" + "a" * 35,
    "xapp-1-" + "a1B2" * 5, "ya29." + "a1B2" * 6, "dop_v1_" + "a1B2" * 9,
    "shpat_" + "a1B2" * 6, "dckr_pat_" + "a1B2" * 6, "hf_" + "aBcD" * 8,
    "whsec_" + "a1B2" * 5, "sq0atp-" + "a1B2" * 5, "glpat-" + "a1B2" * 5, "npm_" + "a1B2" * 9, "hvs." + "a1B2" * 8,
]  # fmt: skip

ORDINARY_TEXTS = [
    "GET /tokens?page=2 200 in 3 ms", "the token expired", "https://example.org:8080/a@b",
    "key: value", "status=200 path=/login user=anna", "monkey=banana", "12:30:15 done",
    "max_tokens=4096 prompt_tokens: 12", "primary_key=id", "user@example.org: hello",
    "the option --token is needed", "use --password or --key", "<b>password</b>",
    "http://example.org:80/x/y@z", "https://someone@example.org/", "code: 12 key: b",
    "sort key: name", "error code: 17", "x -> y", "a := b", "[password] and (token)",
    "http://example.org/basic auth", "begin: end", "cache_key=users:1", "a basic question",
]  # fmt: skip

_SUBJECTS = """
user account order invoice request response client server host http url dns tcp socket
file disk memory cpu process thread task job queue worker batch cache database table
index row column partition shard replica cluster node pod container image volume network
session device browser page form product cart payment
"""
SUBJECTS = _SUBJECTS.split()

_PROPERTIES = """
id name type kind status state count size bytes total duration elapsed start end created
updated version level code reason message path address port region zone owner group role
email title label tag number position offset length limit timeout retries attempts rate
ratio score weight
"""
PROPERTIES = _PROPERTIES.split()

_TRICKY = """
monkey donkey turkey keyboard keyword keywords key keys primary_key foreign_key
cache_key partition_key sort_key routing_key message_key object_key s3_key public_key
publicKey idempotency_key hash_key range_key index_key key_id key_count key_name
token_count token_type token_expires_at tokens max_tokens prompt_tokens
completion_tokens total_tokens input_tokens output_tokens tokens_used tokenizer
time_to_first_token time_per_output_token password_length password_changed_at
password_policy passwordless secret_name secret_arn secretary cookie_count cookie_name
cookies_enabled authorized authorization_status author authors authority auth
auth_method auth_type oauth_provider pwd oldpwd cwd passage passenger passed passes
passport bypass compass render_pass first_pass test_pass low_pass passive session_id sid
signature fingerprint nonce etag trace_id span_id traceparent basic_info connection
connection_id connections connection_count credit_limit accredited hotpot option options
top stop laptop desktop http_path pin spinning pinned mapping shipping access accessed
access_level access_log api api_version apiary bear bears bearing jwtless
"""
TRICKY = _TRICKY.split()

_OF_SECRETS = """
password secret token cookie credential authorization apikey passphrase private_key jwt
otp session_key connection_string api_key access_key security_code auth_header
"""
_NO_SECRETS = """
length count id name type policy status expires_at ttl age path url provider version
enabled required limit
"""
_MORE = """
pass_data pass_value code status_code zip_code postal_code country_code error_code
exit_code pin_code backup backup_size verification_id verification_status security_group
security_level recovery_time mfa_enabled session_state pwm upwards conn_id conn_count
connection_state header headers default value values key_value hash digest base raw
ssh_host ssh_port ssl_mode tls_version sig_alg signature_valid stripe_event code_signature
old new current data main tokens_new tokens_value auth_value key_data key_hash key_base
"""

ORDINARY = [
    *(
        f"{a}_{b}"
        for a, b in itertools.product(_OF_SECRETS.split(), _NO_SECRETS.split())
    ),
    *_MORE.split(),
    *(f"{a}_{b}" for a, b in itertools.product(SUBJECTS, PROPERTIES)),
    *TRICKY,
]


def test_the_corpora_are_as_large_as_they_should_be() -> None:
    """And each way is another one."""
    assert len(WAYS) + len(TEXTS) + len(FORMS) >= 200
    assert len({*NAMES}) == len(NAMES)
    assert len({*ORDINARY}) >= 2000


def test_no_way_to_write_a_secret_reaches_the_file(tmp_path: Path) -> None:
    """By a handler, in a value and as an extra field; the rest of it is there."""
    path = tmp_path / "app.log"
    handler = logagg.Handler(path)
    logger = logging.Logger("corpus")
    logger.addHandler(handler)
    for number, way in enumerate(WAYS):
        made = way(f"hunter2-{number}.")
        extra = {"n": number, "made": made, "other": "stays"}
        logger.info("here", extra=extra)
        if number < len(NAMES):
            logger.info("here", extra={"n": number, **made, "other": "stays"})
    assert handler.flush(60)
    handler.close()

    found = [line for line in lines(path) if b'"n":' in line]
    assert {orjson.loads(line)["n"] for line in found} == set(range(len(WAYS)))
    assert [line for line in found if b"hunter2" in line] == []
    assert all(b'"other":"stays"' in line for line in found)


def test_no_way_of_a_foreign_sender_passes_a_sink_that_redacts() -> None:
    """`redact=secrets`, on lines that were not redacted where they were made."""
    redaction = Redaction(("secrets",))
    for number, way in enumerate(WAYS):
        handler_form = orjson.dumps(
            {"made": way("hunter2")}, default=_as_text, option=orjson.OPT_NON_STR_KEYS
        ) if number not in _NOT_JSON else None  # fmt: skip
        if handler_form is None:
            continue
        (line,) = redaction.lines([_line(handler_form)])
        assert b"hunter2" not in line, line


_OWN_KEYS = (0, 1, 3, len(SHAPES) - 1)  # of bytes, an enum, a tuple
_NOT_JSON = {len(NAMES) + number for number in _OWN_KEYS}


def _as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else list(value)


def _line(rest: bytes) -> bytes:
    """A record of the wire, with these fields at its end."""
    head = (
        b'{"timestamp":"2026-11-25T00:59:11.860666570Z","level":"info","worker":"3",'
        b'"seq":17,"logger":"app","message":"here",'
    )
    return head + rest[1:-1]


@pytest.mark.parametrize("text", [*TEXTS, *FORMS])
def test_secrets_within_texts_are_replaced(text: str) -> None:
    """`redact=texts`: in the message, and in a field."""
    text = (
        text.format("hunter2-hunter2") if text in TEXTS else f"it is {text}, isn't it"
    )
    rest = orjson.dumps({"made": [text], "message": text})
    (line,) = Redaction(("texts",)).lines([_line(rest)])

    assert b"hunter2" not in line
    assert PLACEHOLDER.encode() in line
    for form in FORMS:
        assert form.encode() not in line


@pytest.mark.parametrize("text", ORDINARY_TEXTS)
def test_ordinary_texts_stay(text: str) -> None:
    """`redact=texts` changes nothing in them."""
    line = _line(orjson.dumps({"made": text}))
    assert Redaction(("texts",)).lines([line]) == [line]


def test_ordinary_fields_stay(tmp_path: Path) -> None:
    """None of two thousand is taken for a secret, whichever way it is written."""
    camel = ["".join(w.title() for w in name.split("_")) for name in ORDINARY]
    forms = {*ORDINARY, *camel, *(name.replace("_", "-") for name in ORDINARY)}
    assert [name for name in sorted(forms) if is_secret(name)] == []
    fields = {name: number for number, name in enumerate(sorted(forms))}
    assert scrubbed(fields) is fields
    assert scrubbed([[name, "x"] for name in fields])
    line = _line(orjson.dumps({"all": fields}))
    assert Redaction(("secrets",)).lines([line]) == [line]


HOSTILE = [
    "eyJ" + "a" * 16_000, "eyJ-" * 4_000, "eyJaaaaa." * 1_800, "://" * 5_000 + "@",
    "a:" * 8_000, "authorization:" * 1_100, "bearer " * 2_000, "x=" * 8_000,
    "-----BEGIN " * 1_400 + "PRIVATE KEY-----", "a-b.c" * 3_200 + "=", "'" * 16_000,
    ("password" + " " * 3) * 1_400, "sk-" * 5_000, "://a:" * 3_000, '":"' * 5_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_text_costs_no_more_than_its_length(text: str) -> None:
    """Twice the text, about twice the time: 16 KB take milliseconds."""
    redaction = Redaction(("texts", "secrets"))

    def cost(count: int) -> float:
        line = _line(orjson.dumps({"made": text * count}))
        best = 1e9
        for _ in range(5):
            start = process_time()
            redaction.lines([line])
            best = min(best, process_time() - start)
        return best

    assert cost(4) < 12 * cost(1) + 0.01
