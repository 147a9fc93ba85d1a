"""Policies that the real server plays desktops with."""

from __future__ import annotations

import torch

from playserve_trainer.models.p2p import P2PPolicy, config_of_size
from playserve_trainer.models.policy import Policy

__all__ = ["p2p"]


def p2p() -> Policy:
    """Return Open P2P's model at its smallest size, untrained: it presses whatever comes."""
    torch.manual_seed(7)
    return P2PPolicy(config_of_size("1m")).eval()
