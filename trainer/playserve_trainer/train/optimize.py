"""The optimizer, its learning rate, and what it leaves alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from playserve.errors import BadSettingError
from playserve_trainer.train.config import TrainConfig

__all__ = ["freeze", "learning_rate", "make_optimizer"]


def freeze(policy: nn.Module, prefixes: str) -> list[nn.Module]:
    """Freeze the parameters whose names begin with a prefix; return the modules that hold nothing else.

    Args:
        policy: Whose parameters.
        prefixes: Separated by commas; "": nothing is frozen.

    Raises:
        BadSettingError: A prefix fits no parameter, or nothing is left to train.
    """
    wanted = tuple(filter(None, (prefix.strip() for prefix in prefixes.split(","))))
    if not wanted:
        return []
    parameters = dict(policy.named_parameters())
    if unfit := [prefix for prefix in wanted if not any(name.startswith(prefix) for name in parameters)]:
        first = sorted({name.split(".")[0] for name in parameters})
        raise BadSettingError(f"freeze: {unfit} begin no parameter's name; names begin with {', '.join(first)}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(parameter.requires_grad and not name.startswith(wanted))
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise BadSettingError(f"freeze: {', '.join(wanted)} leave nothing to train")
    return [module for name, module in policy.named_modules() if name and f"{name}.".startswith(wanted)]


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
