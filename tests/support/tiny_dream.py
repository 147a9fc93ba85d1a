"""A small, untrained `wm-token` world whose window wraps after three frames: its frames are noise of the right kind."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_cache import ACTION, TOKENIZER

from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.registry import build

__all__ = ["dream", "save_dream"]


def dream() -> Policy:
    """Return the world, the same each time: frames 16 x 16 x 1, the actions NOOP, LEFT and RIGHT, 20 Hz."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        policy = build(
            "wm-token",
            {
                "width": 32, "context": 3, "tokenizer": TOKENIZER, "action": ACTION, "starts": 3, "start_frames": 2,
                "reward_values": [0.0, 1.0], "rate_hz": 20.0, "environment": {"game": "bars"},
            },
        )  # fmt: skip
        starts = policy.get_buffer("start_tokens_SCK")
        starts.copy_(torch.randint(0, 8, starts.shape))
        codes = policy.get_buffer("tokenizer.net.codebook.learner._codebook.embed")
        codes.copy_(torch.randn(codes.shape) * 5)
    with torch.no_grad():
        policy.get_parameter("token_head.weight").mul_(20)  # what is drawn hangs on what was seen
        policy.get_parameter("end_head.bias").copy_(torch.tensor([30.0, 0.0]))  # and it goes on for ever
    return policy.eval().requires_grad_(False)


def save_dream(folder: Path) -> Path:
    """Write it as a checkpoint."""
    policy = dream()
    checkpoint.save(folder, policy, Manifest.describe(policy))
    return folder
