"""What an inference server needs to know of the registry, as one JSON document.

The control plane serves it at ``GET /v1/view`` with an ETag; inference servers ask for it, keep the last one on disk,
and go on with that when the control plane is down. It holds digests of keys, never a secret.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from playserve_services.auth.keys import ApiKey

__all__ = ["VIEW_FORMAT", "PolicyView", "RegistryView"]

VIEW_FORMAT = 1


class PolicyView(BaseModel):
    """One policy's names and how new sessions are split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    aliases: dict[str, str] = {}
    """Alias to version, such as stable to "7"."""
    canary_weight: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the sessions opened without a version, or with the alias stable, that get `candidate` instead."""


class RegistryView(BaseModel):
    """The whole document."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = VIEW_FORMAT
    revision: int = Field(default=0, ge=0)
    """Grows with every change; a server never goes back to an older one."""
    policies: dict[str, PolicyView] = {}
    keys: list[ApiKey] = []
    """Keys that hold; a revoked or expired one is not among them."""
    draining: list[str] = []
    """Replicas that are told to drain, by the name that each gives of itself."""
