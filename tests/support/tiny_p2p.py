"""A tiny keyboard-and-mouse policy: a ring of keys and values, past actions, an instruction."""

from __future__ import annotations

import torch

from playserve_trainer.models.p2p import P2PConfig, P2PPolicy

POLICY, SLOTS, MAX_BATCH = "tiny", 8, 4


def tiny_policy(seed: int = 0) -> P2PPolicy:
    """Return the policy, the same each time."""
    config = P2PConfig(
        size="tiny", layers=2, width=32, heads=2, decoder_layers=1, decoder_heads=2, trunk="conv3", frame_size=32,
        history=(8,), text_encoder="words", text_width=768, dropout=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return P2PPolicy(config).eval()
