"""How this client dials: channel options, credentials, metadata; and what it says of itself. No I/O."""

from __future__ import annotations

import ipaddress
import platform
import secrets
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import grpc

from playserve.errors import BadSettingError, PlayserveError
from playserve.specs import Codec
from playserve.v1 import types_pb2 as pb

__all__ = [
    "DEFAULT_MAX_MESSAGE_BYTES",
    "DEFAULT_TIMEOUT_S",
    "POLICY_KEY",
    "ROUTE_KEY",
    "ClientSettings",
    "Tls",
    "TlsConfig",
    "is_loopback_target",
    "new_route",
    "stream_was_lost",
]

#: Metadata key, for balancers that send each policy to servers of its own: the name of the policy.
POLICY_KEY = "playserve-policy"
#: Metadata key, for balancers that must send a resumed session where it lives: one opaque value for all its streams.
ROUTE_KEY = "playserve-route"

#: Largest message that a client takes, unless told otherwise.
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_TIMEOUT_S = 10.0
# What gRPC says, under INTERNAL or UNKNOWN, of a connection that broke; the last is grpc.aio's, of a write to one.
_LOST = (
    "rst_stream", "stream removed", "goaway", "socket closed", "connection reset", "broken pipe",
    "internal error from core",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS with certificates of one's own, as PEM files.

    Attributes:
        root_certificates: Whom to trust; None: the system's roots.
        certificate: The client's own certificate chain, for servers that want one; together with `private_key`.
        private_key: Its key.
        server_name: Name that the server's certificate must have, where that is not the host of the address.
    """

    root_certificates: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    server_name: str = ""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` made an object of; fields may be left out."""
        paths = {
            name: None if value is None else Path(value) for name, value in fields.items() if name != "server_name"
        }
        return cls(server_name=str(fields.get("server_name", "")), **paths)

    def to_json(self) -> dict[str, str | None]:
        """Return the attributes by name as a JSON object: the paths, and nothing of what the files hold."""
        return {name: None if value is None else str(value) for name, value in asdict(self).items()}

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return the credentials to dial with.

        Raises:
            BadSettingError: A file cannot be read, or only one of certificate and key is there.
        """
        self._check_pair()
        return grpc.ssl_channel_credentials(
            _pem(self.root_certificates), _pem(self.private_key), _pem(self.certificate)
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Return the same for HTTPS. `server_name` has no meaning there.

        Raises:
            BadSettingError: As :meth:`credentials`.
        """
        self._check_pair()
        try:
            context = ssl.create_default_context(cafile=self.root_certificates)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.private_key)
        except OSError as error:  # ssl.SSLError is one
            raise BadSettingError(f"cannot use the certificates: {error.strerror or error}") from error
        return context

    def _check_pair(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise BadSettingError("a client certificate and its private key go together; one of them is missing")


#: False for plain text, True for the system's roots, certificates of one's own, or any credentials of gRPC's.
Tls = bool | TlsConfig | grpc.ChannelCredentials


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadSettingError(f"cannot read {path}: {error.strerror}") from error
    if b"-----BEGIN" not in data:
        raise BadSettingError(f"{path} is no PEM file")
    return data


def _header(api_key: str) -> str:
    """Return a key as a header can hold it; gRPC's own complaint would quote it."""
    text = api_key.strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise BadSettingError("the API key or token holds characters that no key has")
    return text


def is_loopback_target(address: str) -> bool:
    """Return whether what is sent to an address of gRPC's stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, slashes, rest = address.partition(":///")
    target = rest if slashes and scheme in ("dns", "passthrough") else address.removeprefix("dns:")
    if target.startswith(("ipv4:", "ipv6:")):
        target = target[5:]
    if "," in target:  # several addresses
        return all(is_loopback_target(part) for part in target.split(","))
    host = target[1:].partition("]")[0] if target.startswith("[") else target
    if not target.startswith("[") and host.count(":") == 1:
        host = host.partition(":")[0]
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_route() -> str:
    """Return a routing key for a new session or rollout."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Everything that a client, sync or async, needs to dial.

    Attributes:
        address: "host:port", or several by commas.
        api_key: Key or token for servers that want one.
        tls: See :data:`Tls`.
        allow_insecure_key: Send the key over plain text to other machines, too, where others can read it.
        timeout_s: Longest wait for any answer, unless the call says otherwise.
        codecs: Packings to offer besides raw, best first; JPEG is lossy.
        max_message_bytes: Largest message to take.
    """

    address: str
    api_key: str | None = field(default=None, repr=False)
    tls: Tls = False
    allow_insecure_key: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    codecs: tuple[Codec, ...] = ()
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES

    @property
    def targets(self) -> tuple[str, ...]:
        """The servers that `address` names."""
        if self.address.startswith(("ipv4:", "ipv6:")):  # gRPC's own lists: it balances them by connections
            return (self.address,)
        return tuple(self.address.split(","))

    def credentials(self, target: str = "") -> grpc.ChannelCredentials | None:
        """Return the credentials to dial with; None: plain text.

        Args:
            target: What is dialled; empty: `address`. A session may have moved to a server elsewhere.

        Raises:
            BadSettingError: A file cannot be read, or the key would be sent in plain text to another machine.
        """
        if self.tls is True:
            return grpc.ssl_channel_credentials()
        if isinstance(self.tls, TlsConfig):
            return self.tls.credentials()
        if self.tls:
            return self.tls
        target = target or self.address
        if self.api_key and not self.allow_insecure_key and not is_loopback_target(target):
            raise BadSettingError(
                f"a key for {target} would cross the network in plain text; dial with TLS (tls, --tls), or say "
                "allow_insecure_key (--insecure-key) if that is meant"
            )
        return None

    def channel(self, target: str = "") -> grpc.Channel:
        """Return a channel to `target`; empty: to `address`.

        Raises:
            BadSettingError: See :meth:`credentials`.
        """
        credentials, options = self.credentials(target), self.options()
        if credentials is None:
            return grpc.insecure_channel(target or self.address, options)
        return grpc.secure_channel(target or self.address, credentials, options)

    def aio_channel(self, target: str = "") -> grpc.aio.Channel:
        """Return a channel of grpc.aio's; otherwise as :meth:`channel`."""
        credentials, options = self.credentials(target), self.options()
        if credentials is None:
            return grpc.aio.insecure_channel(target or self.address, options)
        return grpc.aio.secure_channel(target or self.address, credentials, options)

    def options(self) -> list[tuple[str, Any]]:
        """Return the channel options. Frames are never compressed by gRPC: that costs more than it saves."""
        named = isinstance(self.tls, TlsConfig) and self.tls.server_name
        return [
            *([("grpc.ssl_target_name_override", named)] if named else []),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # The server says what it takes (Opened.max_message_bytes) and refuses the rest.
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 15_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # Without it, newer versions of gRPC wait a minute for the answer to their ping; no session waits as long.
            ("grpc.http2.ping_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # Each client its own connection, and quick new attempts: a resumed game waits for them.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]

    def metadata(self, policy: str = "", route: str = "") -> Sequence[tuple[str, str]]:
        """Return the metadata of a call.

        Args:
            policy: The policy that it is about, where one is known.
            route: Routing key of its session or rollout.
        """
        if not (policy.isascii() and policy.isprintable()):
            policy = ""  # no header can hold it, and no server has it: that is the server's to say
        pairs = (("authorization", f"Bearer {_header(self.api_key)}" if self.api_key else ""), (POLICY_KEY, policy),
                 (ROUTE_KEY, route))  # fmt: skip
        return tuple((key, value) for key, value in pairs if value)

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
