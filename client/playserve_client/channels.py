"""How this client dials: channel options, credentials, metadata; and what it says of itself. No I/O."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc

from playserve.errors import PlayserveError
from playserve.specs import Codec
from playserve.v1 import types_pb2 as pb

__all__ = ["DEFAULT_MAX_MESSAGE_BYTES", "DEFAULT_TIMEOUT_S", "ClientSettings", "stream_was_lost"]

#: Largest message that a client takes, unless told otherwise.
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_TIMEOUT_S = 10.0
# What gRPC says, under INTERNAL or UNKNOWN, of a connection that broke; the last is grpc.aio's, of a write to one.
_LOST = (
    "rst_stream", "stream removed", "goaway", "socket closed", "connection reset", "broken pipe",
    "internal error from core",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Everything that a client, sync or async, needs to dial.

    Attributes:
        address: "host:port".
        api_key: Key for servers that want one.
        tls: False for plain text, True for the system's roots, or credentials of one's own.
        timeout_s: Longest wait for any answer, unless the call says otherwise.
        codecs: Packings to offer besides raw, best first; JPEG is lossy.
        max_message_bytes: Largest message to take.
    """

    address: str
    api_key: str | None = None
    tls: bool | grpc.ChannelCredentials = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    codecs: tuple[Codec, ...] = ()
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return the credentials to dial with; None: plain text."""
        if self.tls is True:
            return grpc.ssl_channel_credentials()
        return self.tls or None

    def options(self) -> list[tuple[str, Any]]:
        """Return the channel options. Frames are never compressed by gRPC: that costs more than it saves."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # The server says what it takes (Opened.max_message_bytes) and refuses the rest.
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 15_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # Each client its own connection, and quick new attempts: a resumed game waits for them.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]

    def metadata(self) -> Sequence[tuple[str, str]]:
        """Return the metadata of every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def client_info(self) -> pb.ClientInfo:
        """Return who is calling."""
        try:
            own = version("playserve")
        except PackageNotFoundError:  # run from a bare source tree
            own = ""
        return pb.ClientInfo(name="playserve-python", version=own, platform=f"{platform.system()} {platform.machine()}")


def stream_was_lost(error: PlayserveError | None) -> bool:
    """Return whether a stream ended by no decision of the server's, so that its session may still live there.

    Args:
        error: How it ended; None: with OK, though this side had not closed it.
    """
    if error is None:
        return True
    if error.reason:
        return False
    if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return True
    text = str(error).lower()
    return error.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and any(mark in text for mark in _LOST)
