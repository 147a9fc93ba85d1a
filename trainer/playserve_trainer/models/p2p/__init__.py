"""The `p2p` family: the vision-text-action policy of Open Pixel2Play, exactly, at its sizes and at smaller ones."""

from playserve_trainer.models.p2p.config import SIZES, P2PConfig, config_of_size
from playserve_trainer.models.p2p.policy import P2PPolicy

__all__ = ["SIZES", "P2PConfig", "P2PPolicy", "config_of_size"]
