"""Settings of `playserve serve`: command line over environment (prefix PLAYSERVE_) over these defaults."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from playserve_services.inference.core import CoreLimits
from playserve_services.inference.graphs import GraphSetting

__all__ = ["ServeSettings", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class ServeSettings(BaseSettings):
    """One inference server. Every field is a flag of `playserve serve` and a variable PLAYSERVE_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PLAYSERVE_", extra="forbid", frozen=True)

    store: str = ""
    """Folder or fsspec URL of the checkpoint store; empty: none."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than loopback need insecure_listen until TLS and keys are set up."""
    port: int = Field(50051, ge=0, le=65535)
    """gRPC port; 0: any free one, printed at the start."""
    admin_port: int | None = Field(None, ge=0, le=65535)
    """Port of AdminService; none: not served."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """HTTP port of /metrics; none: not served."""
    health_port: int | None = Field(None, ge=0, le=65535)
    """Plaintext port that serves grpc.health.v1 only, for probes; none: not served."""
    insecure_listen: bool = False
    """Listen on an address that others can reach, without TLS and keys."""
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
    log_format: Literal["text", "json"] = "text"
    """Lines for people or for programs."""

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not value:
            raise ValueError("host is empty")
        return value

    @model_validator(mode="after")
    def _listen(self) -> ServeSettings:
        if not is_loopback(self.host) and not self.insecure_listen:
            raise ValueError(
                f"host {self.host!r} can be reached by others, and neither TLS nor keys are set up; "
                "say insecure_listen (--insecure-listen) if that is meant"
            )
        return self

    @model_validator(mode="after")
    def _graphs(self) -> ServeSettings:
        if self.graphs == "cuda" and not self.device.startswith("cuda"):
            raise ValueError(f"graphs 'cuda' need a CUDA device; the device is {self.device!r}")
        return self

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
