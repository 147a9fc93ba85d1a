"""Errors of a run whose data are being made while it learns."""

from __future__ import annotations

from playserve.errors import ServerFault

__all__ = ["ActorsLostError", "ActorsSilentError"]


class ActorsLostError(ServerFault):
    """Every actor process has died; what was learnt is saved."""


class ActorsSilentError(ServerFault):
    """The actors live, and have sent nothing for too long; what was learnt is saved."""
