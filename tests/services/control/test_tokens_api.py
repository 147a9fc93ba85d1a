"""JSON Web Tokens on REST: real keys, a JWKS over HTTP; scopes out of claims; whose doing is in the audit."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from playserve_services.control.settings import ControlSettings

ISSUER, AUDIENCE = "https://issuer.test", "playserve-control"
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
JWKS = {"keys": [{**ECAlgorithm.to_jwk(EC.public_key(), as_dict=True), "kid": "ec"},
                 {**RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "rsa"}]}  # fmt: skip


class Issuer:
    """Publishes keys over HTTP."""

    def __init__(self) -> None:
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(json.dumps(JWKS).encode())

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


def bearer(scope: str, algorithm: str = "ES256", **changes: Any) -> dict[str, str]:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "scope": scope,
              "exp": datetime.now(UTC) + timedelta(hours=12), **changes}  # fmt: skip
    key, kid = (EC, "ec") if algorithm == "ES256" else (RSA, "rsa")
    return {"Authorization": f"Bearer {jwt.encode(claims, key, algorithm=algorithm, headers={'kid': kid})}"}


def options(where: str) -> dict[str, Any]:
    return {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": where}


async def test_a_token_lets_its_holder_do_what_its_scopes_say(start_plane, issuer) -> None:
    async with start_plane(**options(issuer.url)) as plane:
        plane.register("p", "1")
        put, get = plane.client.put, plane.client.get
        url, body = "/v1/policies/p/aliases/stable", {"version": "1"}
        assert (await get("/v1/policies", headers=bearer("openid"))).status_code == 200
        refused = await put(url, json=body, headers=bearer("play publish"))
        assert (refused.status_code, refused.json()["reason"]) == (403, "PERMISSION_DENIED")
        for algorithm in ("ES256", "RS256"):
            assert (await put(url, json=body, headers=bearer("admin", algorithm))).status_code == 200
        admin = plane.key("admin")
        (line, *_) = (await get("/v1/audit", params={"action": "alias.set"}, headers=admin)).json()
        assert (line["principal"], line["key_id"]) == ("ann", "jwt:ann")
        # Keys go on to be taken, and what is neither is refused.
        assert (await get("/v1/view", headers=bearer("replica"))).status_code == 200
        assert (await get("/v1/policies", headers=plane.key("play"))).status_code == 200
        assert (await get("/v1/policies")).status_code == 401


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"exp": datetime.now(UTC) - timedelta(minutes=1)}, "ExpiredSignatureError"), ({"aud": "other"}, "Audience"),
     ({"iss": "https://other"}, "Issuer"), ({"sub": ""}, "sub")],
)  # fmt: skip
async def test_tokens_that_are_not_good_are_refused(start_plane, issuer, changes, why) -> None:
    async with start_plane(**options(issuer.url)) as plane:
        answer = await plane.client.get("/v1/policies", headers=bearer("admin", **changes))
        assert (answer.status_code, answer.json()["reason"]) == (401, "UNAUTHENTICATED")
        assert why in answer.json()["detail"]
        assert answer.headers["www-authenticate"] == "Bearer"
        assert 'reason="UNAUTHENTICATED"} 1.0' in (await plane.client.get("/metrics")).text


async def test_keys_of_a_file_are_taken_and_principals_own_things(start_plane, tmp_path) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps(JWKS))
    async with start_plane(**options(str(tmp_path / "jwks.json"))) as plane:
        body = {
            "policy": "p",
            "version": "1",
            "session_id": "s",
            "url": "s3://b/x",
            "sha256": "a" * 64,
            "size_bytes": 7,
        }
        post, get = plane.client.post, plane.client.get
        assert (await post("/v1/recordings", json=body, headers=bearer("play"))).json()["principal"] == "ann"
        # The same principal by a key of the registry.
        assert len((await get("/v1/recordings", headers=plane.key("play", principal="ann"))).json()) == 1
        assert (await get("/v1/recordings", headers=bearer("play", sub="bob"))).json() == []


async def test_an_issuer_that_is_down_is_no_reason_to_let_somebody_in(start_plane, issuer) -> None:
    issuer.status = 500
    async with start_plane(**options(issuer.url)) as plane:
        answer = await plane.client.get("/v1/policies", headers=bearer("admin"))
        assert (answer.status_code, answer.json()["reason"]) == (503, "UNAVAILABLE")
        assert (await plane.client.get("/v1/policies", headers=plane.key("play"))).status_code == 200


@pytest.mark.parametrize(
    "more",
    [{"jwt_issuer": ISSUER}, {"jwt_jwks": "file"}, {**options("x"), "require_keys": False},
     {**options("x"), "jwt_leeway_s": 60}],
)  # fmt: skip
def test_settings_that_say_half_of_it_are_refused(more) -> None:
    with pytest.raises(ValueError, match="jwt_"):
        ControlSettings(**more)


def test_an_issuer_means_that_everybody_is_asked() -> None:
    assert ControlSettings(**options("x")).keys_required
    assert ControlSettings(**options("x"), host="0.0.0.0", insecure_listen=True).keys_required
