"""A small untrained NetHack policy, for servers whose sessions show screens of a terminal."""

from __future__ import annotations

import torch

from playserve_trainer.models.nethack.config import NetHackConfig
from playserve_trainer.models.nethack.policy import NetHackPolicy
from playserve_trainer.models.policy import Policy

__all__ = ["screens"]


def screens() -> Policy:
    """See the module's docstring."""
    torch.manual_seed(6)
    return NetHackPolicy(NetHackConfig(width=32))
