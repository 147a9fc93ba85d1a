"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from playserve_trainer.train.config import TrainConfig

__all__ = ["learning_rate", "make_optimizer"]


def make_optimizer(policy: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Return the optimizer of every parameter; only matrices and kernels decay."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls([g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: TrainConfig, step: int, fraction: float) -> float:
    """Return the learning rate of a step.

    Args:
        config: The settings.
        step: Steps done before this one.
        fraction: Share of the run that is done, 0 to 1.
    """
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        low = config.final_lr_fraction
        rate *= low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, fraction)))
    return rate
