"""The `nethack` family: terminal screens in, one of 121 keys out, with an LSTM or a causal transformer as memory."""

from playserve_trainer.models.nethack.config import NetHackConfig
from playserve_trainer.models.nethack.policy import NetHackPolicy

__all__ = ["NetHackConfig", "NetHackPolicy"]
