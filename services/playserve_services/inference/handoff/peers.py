"""The other replicas: where they are, how they are dialled, and how many slots they have free."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from playserve.errors import PlayserveError, from_rpc_error
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub
from playserve.v1.state_transfer_service_pb2_grpc import StateTransferServiceStub
from playserve_client.channels import ClientSettings, Tls, TlsConfig
from playserve_services.inference.settings import ServeSettings

__all__ = ["Peer", "Peers", "Place", "fitting"]

_log = logging.getLogger(__name__)
_LIST_S = 3.0

#: Policy, version and state layout: what a session needs of a peer.
Place = tuple[str, str, str]


@dataclass(slots=True, eq=False)
class Peer:
    """One other replica.

    Attributes:
        address: "host:port", as it is dialled.
        channel: To it.
        metadata: Of every call.
        free: Free slots when it was asked last, less what it was given since.
        shut: It takes nothing for now: it drains, or does not answer.
    """

    address: str
    channel: grpc.aio.Channel
    metadata: Sequence[tuple[str, str]]
    free: dict[Place, int] = field(default_factory=dict)
    shut: bool = False

    def transfer(self) -> Any:
        """Begin a TransferState call."""
        stub: Any = StateTransferServiceStub(self.channel)
        return stub.TransferState(metadata=self.metadata)

    def room(self, place: Place) -> int:
        """Return the free slots for a session; 1 where the version is in its store and not loaded, so who knows."""
        name, version, _ = place
        return self.free.get(place, 1 if (name, version, "") in self.free else 0)

    async def look(self) -> None:
        """Ask how many slots are free."""
        stub: Any = PolicyServiceStub(self.channel)
        try:
            answer: ps.ListPoliciesResponse = await stub.ListPolicies(
                ps.ListPoliciesRequest(), timeout=_LIST_S, metadata=self.metadata
            )
        except grpc.RpcError as error:
            self._shut(from_rpc_error(error))
            return
        self.shut = False
        self.free = {(p.name, p.version, p.state_layout): p.slots_free for p in answer.policies}

    def _shut(self, error: PlayserveError) -> None:
        if not self.shut:
            _log.warning("the peer %s does not say what it has: %s", self.address, error)
        self.shut, self.free = True, {}


class Peers:
    """Finds and dials the other replicas of the settings. Event loop's thread only.

    Args:
        settings: `peers`, `peers_dns` and how they are dialled.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._peers: dict[str, Peer] = {}

    async def look(self) -> list[Peer]:
        """Return the peers that there are now, and ask each what it has."""
        for address in await self._addresses():
            if address not in self._peers:
                self._peers[address] = Peer(address, self._dial(address), ())
        metadata = await asyncio.to_thread(self._metadata)
        peers = list(self._peers.values())
        for peer in peers:
            peer.metadata = metadata
        await asyncio.gather(*(peer.look() for peer in peers))
        return [peer for peer in peers if not peer.shut]

    async def close(self) -> None:
        """Hang up."""
        for peer in self._peers.values():
            await peer.channel.close()
        self._peers = {}

    async def _addresses(self) -> list[str]:
        settings = self._settings
        found = list(settings.peer_addresses)
        if settings.peers_dns:
            host, _, port = settings.peers_dns.rpartition(":")
            try:
                infos = await asyncio.get_running_loop().getaddrinfo(
                    host.strip("[]"), int(port), type=socket.SOCK_STREAM
                )
            except OSError as error:
                _log.warning("the name of the peers, %s, is not known: %s", settings.peers_dns, error)
                infos = []
            hosts = sorted({str(info[4][0]) for info in infos})
            found += [f"[{h}]:{port}" if ":" in h else f"{h}:{port}" for h in hosts]
        return found

    def _metadata(self) -> Sequence[tuple[str, str]]:
        """Return the key, read again each time. It blocks."""
        path = self._settings.peers_key_file
        if path is None:
            return ()
        try:
            key = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            _log.error("the key for the peers cannot be read from %s: %s", path, type(error).__name__)
            return ()
        return (("authorization", f"Bearer {key}"),) if key.isprintable() else ()

    def _dial(self, address: str) -> grpc.aio.Channel:
        settings = self._settings
        tls: Tls = False
        if settings.tls_cert is not None and settings.tls_key is not None:
            tls = TlsConfig(
                root_certificates=settings.peers_ca or settings.tls_client_ca,
                certificate=settings.tls_cert,
                private_key=settings.tls_key,
                server_name=settings.peers_name,
            )
        return ClientSettings(address=address, tls=tls, max_message_bytes=settings.max_message_bytes).aio_channel()


def fitting(peers: Sequence[Peer], place: Place) -> list[Peer]:
    """Return the peers that may take a session, those with most free slots first, then those that must load it."""
    return sorted((peer for peer in peers if not peer.shut and peer.room(place)), key=lambda peer: -peer.room(place))
