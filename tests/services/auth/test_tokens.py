"""JSON Web Tokens, signed with generated keys: what is taken, and all that is not."""

# ruff: noqa: ASYNC240 - the files are tiny

from __future__ import annotations

import base64
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from playserve.errors import BadSettingError, ServerUnavailableError, UnauthenticatedError
from playserve_services.auth.keys import Scope
from playserve_services.auth.principal import Credentials, Principal
from playserve_services.auth.tokens import FileJwks, Jwts, TokenRules, UrlJwks

RULES = TokenRules(issuer="https://issuer.test", audience="playserve", leeway_s=5.0)
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def token(key: Any = EC, algorithm: str = "ES256", kid: str | None = "ec", **changes: Any) -> str:
    claims: dict[str, Any] = {
        "iss": RULES.issuer, "aud": ["other", RULES.audience], "sub": "ann", "scope": "play openid rollout",
        "exp": datetime.now(UTC) + timedelta(hours=12), **changes,
    }  # fmt: skip
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [jwk(EC, "ec", alg="ES256"), jwk(RSA, "rsa"), jwk(RSA, "enc", use="enc")]}))
    return file


async def ask(path: Path, text: str) -> Principal:
    return await Jwts(RULES, FileJwks(path)).authenticate(Credentials(bearer=text))


async def test_a_good_token_says_who_calls_and_what_they_may(path: Path) -> None:
    principal = await ask(path, token())
    assert (principal.name, principal.method, principal.key_id) == ("ann", "jwt", "jwt:ann")
    assert principal.scopes == {Scope.PLAY, Scope.ROLLOUT}, "scopes of other services are left out"
    assert principal.expires_at is not None
    for algorithm in ("RS256", "PS256", "RS512"):
        assert (await ask(path, token(RSA, algorithm, "rsa"))).name == "ann"
    assert (await ask(path, token(scope=None))).scopes == set()


def by_hand(algorithm: str, kid: str, secret: bytes = b"") -> str:
    """A token that PyJWT would refuse to make."""
    claims = {"sub": "ann", "iss": RULES.issuer, "aud": RULES.audience, "exp": 9_000_000_000}
    encoded = b".".join(_base64(json.dumps(part).encode()) for part in ({"alg": algorithm, "kid": kid}, claims))
    signature = hmac.digest(secret, encoded, "sha256") if secret else b""
    return (encoded + b"." + _base64(signature)).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


# The classic confusion of algorithms: what everybody may know, taken for a shared secret.
PUBLIC_AS_SECRET = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (token(iss="https://evil.test"), "InvalidIssuerError"),
        (token(aud="other"), "InvalidAudienceError"),
        (token(aud=None), "MissingRequiredClaimError"),
        (token(sub=None), "MissingRequiredClaimError"),
        (token(exp=None), "MissingRequiredClaimError"),
        (token(exp=datetime.now(UTC) - timedelta(seconds=6)), "ExpiredSignatureError"),
        (token(nbf=datetime.now(UTC) + timedelta(days=1)), "ImmatureSignatureError"),
        (token(ec.generate_private_key(ec.SECP256R1())), "InvalidSignatureError"),
        (token(sub=""), "no text of 1 to 128"),
        (token(sub="x" * 129), "no text of 1 to 128"),
        (token(scope=["play"]), "scope is no text"),
        (token(kid=None), "does not name its key"),
        (token(kid="gone"), "not among the issuer's"),
        (token(RSA, "RS256", "ec"), "not for that algorithm"),
        (token(RSA, "RS256", "enc"), "not among the issuer's"),
        (token(EC, "ES256", "rsa"), "not one for its algorithm"),
        (by_hand("HS256", "rsa", PUBLIC_AS_SECRET), "not signed by one of"),
        (by_hand("none", "ec"), "not signed by one of"),
        ("a.b.c", "no JWT"),
        ("..", "no JWT"),
    ],
)
async def test_tokens_that_are_not_good_are_refused_and_not_repeated(path: Path, text: str, why: str) -> None:
    with pytest.raises(UnauthenticatedError, match=why) as refused:
        await ask(path, text)
    assert text not in str(refused.value)


async def test_a_stream_outlives_its_token_by_no_more_than_the_leeway(path: Path) -> None:
    now = datetime.now(UTC)
    jwts = Jwts(RULES, FileJwks(path), lambda: now)
    principal = await jwts.authenticate(Credentials(bearer=token(exp=now + timedelta(seconds=60))))
    now += timedelta(seconds=64)
    assert jwts.holds(principal)
    now += timedelta(seconds=2)
    assert not jwts.holds(principal)


async def test_a_rotated_file_is_read_again_and_a_damaged_one_is_not_taken(path: Path) -> None:
    jwts = Jwts(RULES, FileJwks(path))
    new = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(UnauthenticatedError):
        await jwts.authenticate(Credentials(bearer=token(new, kid="new")))
    path.write_text(json.dumps({"keys": [jwk(new, "new")]}))
    assert (await jwts.authenticate(Credentials(bearer=token(new, kid="new")))).name == "ann"
    with pytest.raises(UnauthenticatedError, match="not among the issuer's"):
        await jwts.authenticate(Credentials(bearer=token()))
    path.write_text("{")
    assert (await jwts.authenticate(Credentials(bearer=token(new, kid="new")))).name == "ann"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys": 3}', '{"keys": [{}]}'])
def test_what_is_no_jwks_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "jwks.json"
    with pytest.raises(BadSettingError, match="cannot read"):
        FileJwks(file)
    file.write_text(text)
    with pytest.raises(BadSettingError, match="is no JWKS"):
        FileJwks(file)


class Issuer:
    """A real HTTP server that publishes keys, and counts who asks."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.status = 200
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                if outer.status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(json.dumps({"keys": outer.keys}).encode())

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


async def test_keys_of_a_url_are_kept_and_fetched_anew_for_an_unknown_key(issuer: Issuer) -> None:
    now = 0.0
    issuer.keys = [jwk(EC, "ec")]
    jwts = Jwts(RULES, UrlJwks(issuer.url, refresh_s=300, clock=lambda: now))
    for _ in range(5):
        assert (await jwts.authenticate(Credentials(bearer=token()))).name == "ann"
    assert issuer.asked == 1
    new = ec.generate_private_key(ec.SECP256R1())
    issuer.keys = [jwk(EC, "ec"), jwk(new, "new")]
    for _ in range(5):  # an attacker's key ids do not make us ask each time
        with pytest.raises(UnauthenticatedError):
            await jwts.authenticate(Credentials(bearer=token(new, kid="new")))
    assert issuer.asked == 1
    now = 11.0
    assert (await jwts.authenticate(Credentials(bearer=token(new, kid="new")))).name == "ann"
    assert issuer.asked == 2
    now = 400.0
    await jwts.authenticate(Credentials(bearer=token()))
    assert issuer.asked == 3, "they are old"


async def test_an_issuer_that_is_down_costs_nothing_that_is_known(issuer: Issuer) -> None:
    now = 0.0
    issuer.keys = [jwk(EC, "ec")]
    jwts = Jwts(RULES, UrlJwks(issuer.url, clock=lambda: now))
    await jwts.authenticate(Credentials(bearer=token()))
    for issuer.status in (500, 302):
        now += 1000.0
        assert (await jwts.authenticate(Credentials(bearer=token()))).name == "ann"


async def test_without_any_keys_callers_are_told_to_come_back(issuer: Issuer) -> None:
    issuer.status = 503
    with pytest.raises(ServerUnavailableError, match="cannot be had now") as refused:
        await Jwts(RULES, UrlJwks(issuer.url)).authenticate(Credentials(bearer=token()))
    assert refused.value.retry_after_s is not None
