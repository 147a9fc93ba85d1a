"""Replicas know each other by their certificates, and by a key for what only an admin may do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from playserve.errors import AccessDeniedError
from playserve_client import TlsConfig
from playserve_client.aio import PolicyClient
from playserve_services.auth.keyring import KeyFile
from playserve_services.auth.keys import Scope, issue_key
from playserve_services.inference.handoff.giving import Giver
from playserve_services.inference.handoff.peers import Peers


async def give(here: Any, session_id: str, **settings: Any) -> None:
    peers = Peers(here._settings.model_copy(update=settings))
    try:
        found = await peers.look()
        assert found, "it can be dialled"
        await Giver(here.core).give(here.core.find(session_id), found[0])
    finally:
        await peers.close()


async def test_a_session_moves_between_servers_of_one_authority(
    serve: Any, authority: Any, make_authority: Callable[[str], Any], tmp_path: Path
) -> None:
    own, player = authority.issue("replica"), authority.issue("ann")
    secret, kept = issue_key("fleet", frozenset({Scope.ADMIN}))
    keys = KeyFile(tmp_path / "keys.json")
    keys.change(lambda _: [kept], missing_ok=True)
    key_file = tmp_path / "fleet.key"
    key_file.write_text(secret)
    tls = {
        "tls_cert": own.certificate, "tls_key": own.key, "tls_client_ca": authority.root,
        "tls_client_scopes": "play", "keys": keys.path,
    }  # fmt: skip
    dial = TlsConfig(root_certificates=authority.root, certificate=player.certificate, private_key=player.key)
    async with serve(**tls) as there, serve(**tls, peers=f"127.0.0.1:{there.port}") as here:
        async with (
            PolicyClient(f"127.0.0.1:{here.port}", tls=dial, timeout_s=20.0) as client,
            client.play("turns") as session,
        ):
            with pytest.raises(AccessDeniedError, match="admin"):
                await give(here, session.session_id)  # its certificate is a player's, for all that they know
            stranger = make_authority("stranger")
            peers = Peers(here._settings.model_copy(update={"peers_ca": stranger.root}))
            try:
                assert await peers.look() == [], "somebody else's certificate is nobody's"
            finally:
                await peers.close()
            await give(here, session.session_id, peers_key_file=key_file)
            assert there.core.find(session.session_id).principal == "ann"
            assert await session.ping() >= 0
            assert session.address == f"127.0.0.1:{there.port}"
