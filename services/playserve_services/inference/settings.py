"""Settings of `playserve serve`: command line over environment (prefix PLAYSERVE_) over these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from playserve_services.auth.issuer import IssuerSettings
from playserve_services.auth.keys import Scope
from playserve_services.auth.loopback import is_loopback
from playserve_services.inference.core import CoreLimits
from playserve_services.inference.graphs import GraphSetting

__all__ = ["ServeSettings", "parse_scopes"]


def parse_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes named in a text, by commas; ValueError for one that there is not."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = {member.value for member in Scope}
    for word in words:
        if word not in known:
            raise ValueError(f"scope {word!r}, wanted some of {', '.join(sorted(known))}")
    return frozenset(Scope(word) for word in words)


class ServeSettings(IssuerSettings, BaseSettings):
    """One inference server. Every field is a flag of `playserve serve` and a variable PLAYSERVE_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PLAYSERVE_", extra="forbid", frozen=True)

    store: str = ""
    """Folder or fsspec URL of the checkpoint store; empty: none."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than loopback need TLS and keys, or insecure_listen."""
    port: int = Field(50051, ge=0, le=65535)
    """gRPC port; 0: any free one, printed at the start."""
    admin_port: int | None = Field(None, ge=0, le=65535)
    """Port of AdminService; none: not served."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """HTTP port of /metrics; none: not served."""
    health_port: int | None = Field(None, ge=0, le=65535)
    """Plaintext port that serves grpc.health.v1 only, for probes; none: not served."""
    insecure_listen: bool = False
    """Listen on an address that others can reach, without TLS or without keys."""
    tls_cert: Path | None = None
    """Certificate chain of the gRPC ports (PEM), with tls_key; read again when it changes. None: plaintext, as the
    health-only port always is."""
    tls_key: Path | None = None
    """Its private key."""
    tls_client_ca: Path | None = None
    """Authorities (PEM) of whom every caller must show a certificate: mutual TLS."""
    tls_client_scopes: str = ""
    """Scopes, by commas, of callers that show a certificate and no key: the certificate's common name is the principal.
    Empty: play,rollout where certificates are the only credentials, else none."""
    keys: Path | None = None
    """File of API keys (`playserve keys issue`); read again when it changes."""
    anonymous: bool = False
    """Where there are keys, serve callers without one, too, for play and rollout, as "anonymous"; on loopback,
    where the keys are only the registry's, for everything."""
    registry: str = ""
    """URL of the control plane whose registry is followed: keys, aliases, canaries, drains; empty: none."""
    registry_key_file: Path | None = None
    """File that holds the API key for the control plane; read again for every call."""
    registry_ca: Path | None = None
    """Authorities (PEM) to trust for the control plane instead of the system's."""
    registry_cache: Path | None = None
    """File that keeps the last view of the registry, to start from when it is down; none: one in the user's cache."""
    registry_poll_s: float = Field(2.0, gt=0)
    """How often the registry is asked, and told how this replica is."""
    replica: str = ""
    """Name that this server gives of itself to the registry; empty: the host's name."""
    advertise: str = ""
    """Address, "host:port", at which clients reach this server; empty: what it listens on."""
    advertise_admin: str = ""
    """Address at which the control plane reaches AdminService; empty: what it listens on."""
    peers: str = ""
    """Addresses, "host:port" by commas, of other replicas: a drain hands its sessions to them. Empty: none."""
    peers_dns: str = ""
    """A name and a port, "name:port"; each address of the name is a replica, this one too. Empty: none."""
    peers_key_file: Path | None = None
    """File that holds the API key, of scope admin, for the peers; read again for every drain's round."""
    peers_ca: Path | None = None
    """Authorities (PEM) to trust for the peers, which are dialled with TLS where this server has a certificate; none:
    tls_client_ca, or else the system's."""
    peers_name: str = ""
    """Name in the peers' certificates, where that is not the host of their address."""
    redirect: bool = False
    """Send a player who finds no room here, or a drain, on to a peer that has room. The addresses of the peers must be
    such that players reach them."""
    handoff_sessions: int = Field(4, ge=1)
    """Sessions that are on their way to peers at a time; each of them stands still at its end only."""
    engine: Literal["torch", "triton"] = "torch"
    """Who computes batches: this process, or an NVIDIA Triton with a repository of `playserve triton export`."""
    triton_url: str = ""
    """HOST:PORT of Triton's gRPC; with engine triton."""
    triton_front: int = Field(0, ge=0)
    """Number of this front, from 0; a pod's index will do. Each front has as many of Triton's slots as slots says, one
    range after the other."""
    device: str = "cpu"
    """Torch device that holds policies and slots."""
    threads: int = Field(1, ge=1)
    """Threads of one model computation on a CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the computation. bfloat16: with half-precision weights where the policy makes them, else under autocast."""
    slots: int = Field(256, ge=1)
    """Most sessions of each state layout; fewer where their memory does not hold as many."""
    session_memory_mib: int | None = Field(None, ge=1)
    """Memory of the sessions of each state layout, in MiB; none: half of what is free when the policy is loaded, 70% on
    a GPU. What was derived is logged, and is PolicySpec.slots_total."""
    max_batch: int = Field(64, ge=1)
    """Most sessions of one batch."""
    fixed_batch: bool = False
    """Compute every batch at max_batch rows, so that actions do not depend on batch mates in the last bit."""
    graphs: GraphSetting = "auto"
    """One graph for each batch size, made while a policy warms up: cuda captures it, compile compiles it (which takes
    seconds to minutes a policy), off computes kernel by kernel; auto: cuda on a CUDA device, else off."""
    max_steps_in_flight: int = Field(8, ge=1)
    """Steps of one environment that may wait unanswered in LOCKSTEP."""
    max_message_mb: int = Field(32, ge=1, le=1024)
    """Largest message that is accepted, in MiB; also the most that one message may unpack to."""
    idle_timeout_s: float = Field(60.0, gt=0)
    """A session without a message for so long expires."""
    detach_window_s: float = Field(30.0, gt=0)
    """How long a session outlives its stream."""
    lockstep_patience_s: float = Field(1.0, gt=0)
    """A lockstep step that has waited so long goes before live ones."""
    live_dispatch_ms: float = Field(10.0, gt=0)
    """While live sessions play, no batch that holds lockstep rows may be expected to take longer."""
    inline_ms: float = Field(4.0, ge=0)
    """On a CPU, batches expected to take no longer run on the event loop's thread: a hand-off would cost more."""
    drain_grace_s: float = Field(30.0, ge=0)
    """After SIGTERM, sessions may play on for so long."""
    poll_s: float = Field(1.0, gt=0)
    """How often the store is looked at for new versions."""
    keep_versions: int = Field(4, ge=1)
    """Versions of one policy that stay loaded; older ones without sessions are unloaded, and loaded again on demand."""
    trace: float = Field(0.0, ge=0, le=1)
    """Largest share of the steps of Play streams whose spans are exported by OpenTelemetry, as the OTEL_EXPORTER_OTLP_*
    variables say; under the client's spans where the client traces. 0: none, and OpenTelemetry is not needed."""
    record_sessions: Path | None = None
    """Folder that gets P2P recordings of the games of players who consent; none: nobody is recorded. Needs PyAV."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people or for programs."""

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not value:
            raise ValueError("host is empty")
        return value

    @field_validator("tls_client_scopes")
    @classmethod
    def _scopes(cls, value: str) -> str:
        parse_scopes(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> ServeSettings:
        for first, second in (
            ("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert"),
            ("tls_client_scopes", "tls_client_ca"), ("registry_key_file", "registry"),
            ("registry_ca", "registry"), ("registry_cache", "registry"), ("replica", "registry"),
            ("advertise_admin", "registry"),
        ):  # fmt: skip
            if getattr(self, first) and not getattr(self, second):
                raise ValueError(f"{first} is set and {second} is not; the one says nothing without the other")
        return self

    @model_validator(mode="after")
    def _listen(self) -> ServeSettings:
        if is_loopback(self.host) or self.insecure_listen:
            return self
        missing = []
        if self.tls_cert is None:
            missing.append("TLS is not set up (tls_cert and tls_key)")
        if not self.authenticates:
            missing.append("nobody needs a key (keys, registry, jwt_issuer or tls_client_ca)")
        elif self.anonymous:
            missing.append("callers without a key are served (anonymous)")
        if missing:
            raise ValueError(
                f"host {self.host!r} can be reached by others, and {' and '.join(missing)}; "
                "say insecure_listen (--insecure-listen) if that is meant"
            )
        return self

    @model_validator(mode="after")
    def _peers(self) -> ServeSettings:
        for address in (*self.peer_addresses, *filter(None, [self.peers_dns])):
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"peer {address!r}, wanted HOST:PORT")
        for name in ("peers_key_file", "peers_ca", "peers_name", "redirect"):
            if getattr(self, name) and not self.peers and not self.peers_dns:
                raise ValueError(f"{name} is set, and neither peers nor peers_dns is")
        for name in ("peers_ca", "peers_name"):
            if getattr(self, name) and self.tls_cert is None:
                raise ValueError(f"{name} is set and tls_cert is not: peers are dialled in plain text")
        if self.peers_key_file is not None and self.tls_cert is None and not self.insecure_listen:
            others = [a for a in self.peer_addresses if not is_loopback(a.rpartition(":")[0].strip("[]"))]
            if others or self.peers_dns:
                raise ValueError(
                    "peers_key_file: the key would cross the network in plain text; set up TLS, or say insecure_listen"
                )
        return self

    @property
    def peer_addresses(self) -> tuple[str, ...]:
        """The addresses in `peers`."""
        return tuple(part.strip() for part in self.peers.split(",") if part.strip())

    @model_validator(mode="after")
    def _triton(self) -> ServeSettings:
        if (self.engine == "triton") != bool(self.triton_url):
            raise ValueError(f"engine {self.engine!r} and triton_url {self.triton_url!r}: one needs the other")
        if self.engine == "triton" and (self.graphs != "auto" or self.fixed_batch or self.precision != "float32"):
            raise ValueError("graphs, fixed_batch and precision are settings of Triton's model where that computes")
        return self

    @model_validator(mode="after")
    def _graphs(self) -> ServeSettings:
        if self.graphs == "cuda" and not self.device.startswith("cuda"):
            raise ValueError(f"graphs 'cuda' need a CUDA device; the device is {self.device!r}")
        return self

    @property
    def certificate_scopes(self) -> frozenset[Scope]:
        """What callers may do that show a certificate and no key; none: a certificate alone is not enough."""
        if self.tls_client_ca is None:
            return frozenset()
        only = self.keys is None and not self.registry and not self.jwt_issuer
        return parse_scopes(self.tls_client_scopes or ("play,rollout" if only else ""))

    @property
    def authenticates(self) -> bool:
        """Whether callers must say who they are."""
        return bool(self.keys is not None or self.registry or self.jwt_issuer or self.certificate_scopes)

    def address(self, port: int) -> str:
        """Return "host:port" of one of our ports, an IPv6 address in brackets."""
        host = f"[{self.host.strip('[]')}]" if ":" in self.host else self.host
        return f"{host}:{port}"

    @property
    def max_message_bytes(self) -> int:
        """Largest message in bytes."""
        return self.max_message_mb * 1024 * 1024

    @property
    def session_bytes(self) -> int | None:
        """Memory of the sessions of each layout in bytes, or None."""
        return None if self.session_memory_mib is None else self.session_memory_mib * 1024 * 1024

    def limits(self) -> CoreLimits:
        """Return the core's part."""
        return CoreLimits(
            max_batch=self.max_batch,
            max_steps_in_flight=self.max_steps_in_flight,
            idle_timeout_ns=int(self.idle_timeout_s * 1e9),
            detach_window_ns=int(self.detach_window_s * 1e9),
            lockstep_patience_ns=int(self.lockstep_patience_s * 1e9),
            live_dispatch_ns=int(self.live_dispatch_ms * 1e6),
        )
