"""What the core is told: the limits of the server, and what a session is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.frames import Settings

if TYPE_CHECKING:
    from playserve_services.auth.gate import Caller

__all__ = ["CoreLimits", "OpenRequest"]


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """Limits of one server; see `settings.py` for what each means to an operator."""

    max_batch: int = 64
    max_steps_in_flight: int = 8
    idle_timeout_ns: int = 60_000_000_000
    detach_window_ns: int = 30_000_000_000
    lockstep_patience_ns: int = 1_000_000_000
    live_dispatch_ns: int = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What a checked Open or RolloutOpen asks for."""

    policy: LoadedPolicy
    principal: str
    settings: Settings
    caller: Caller | None = None
    num_slots: int = 1
    live: bool = False
    follow: bool = False
    rollout: bool = False
    rate_hz: float = 0.0
    seed: int | None = None
    episode_id: int = 0
    client: Any = None
    codecs: frozenset[int] = frozenset()
