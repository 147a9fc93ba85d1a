"""What the settings of `playserve serve` refuse, so that nobody serves strangers by mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from playserve.errors import BadSettingError
from playserve_services.auth.http import check_url
from playserve_services.auth.keys import Scope
from playserve_services.inference.settings import ServeSettings

TLS = {"tls_cert": Path("c.pem"), "tls_key": Path("k.pem")}
KEYS = {"keys": Path("keys.json")}
JWT = {"jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks": "jwks.json"}
OUTSIDE = {"host": "0.0.0.0"}


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"host": "::1"}, {"host": "localhost"}, {**OUTSIDE, "insecure_listen": True}, {**OUTSIDE, **TLS, **KEYS},
        {**OUTSIDE, **TLS, **JWT}, {**OUTSIDE, **TLS, "tls_client_ca": Path("ca.pem")},
        {**OUTSIDE, **TLS, "registry": "https://control.test"},
    ],
)  # fmt: skip
def test_who_may_listen(settings: dict[str, Any]) -> None:
    ServeSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, "TLS is not set up .* and nobody needs a key"),
        (TLS, "and nobody needs a key"),
        (KEYS, "TLS is not set up"),
        ({**TLS, **KEYS, "anonymous": True}, "callers without a key are served"),
        ({**TLS, "anonymous": True}, "nobody needs a key"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "server.test"])
def test_who_may_not_listen_beyond_loopback(settings: dict[str, Any], missing: str, host: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        ServeSettings(host=host, **settings)
    ServeSettings(host=host, insecure_listen=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"tls_cert": Path("c.pem")}, {"tls_key": Path("k.pem")}, {"tls_client_ca": Path("ca.pem")},
        {**TLS, "tls_client_scopes": "play"}, {"jwt_issuer": "i"}, {"jwt_jwks": "f"}, {"jwt_audience": "a"},
        {"registry_key_file": Path("k")}, {"replica": "a"}, {"advertise_admin": "a:1"},
    ],
)  # fmt: skip
def test_half_a_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"says nothing without the other|go together"):
        ServeSettings(**settings)


def test_what_a_certificate_alone_may_do() -> None:
    mutual = {**TLS, "tls_client_ca": Path("ca.pem")}
    assert ServeSettings(**TLS).certificate_scopes == set()
    assert ServeSettings(**mutual).certificate_scopes == {Scope.PLAY, Scope.ROLLOUT}
    assert ServeSettings(**mutual, **KEYS).certificate_scopes == set(), "they are a second factor then"
    assert ServeSettings(**mutual, **KEYS, tls_client_scopes="admin, play").certificate_scopes == {
        Scope.ADMIN, Scope.PLAY
    }  # fmt: skip
    with pytest.raises(ValidationError, match="scope 'root', wanted some of admin, play, publish, replica, rollout"):
        ServeSettings(**mutual, tls_client_scopes="root")


@pytest.mark.parametrize(
    "url", ["https://control.test/x", "http://127.0.0.1:8080", "http://[::1]:1", "http://localhost"]
)
def test_urls_that_a_key_may_travel_to(url: str) -> None:
    assert check_url("registry", url) == url


@pytest.mark.parametrize(
    "url", ["http://control.test", "ftp://x", "file:///etc/passwd", "control.test", "https://", ""]
)
def test_urls_that_it_may_not(url: str) -> None:
    with pytest.raises(BadSettingError, match="wanted https"):
        check_url("registry", url)
    with pytest.raises(BadSettingError, match="user or password") as refused:
        check_url("registry", "https://ann:geheim@control.test")
    assert "geheim" not in str(refused.value)
