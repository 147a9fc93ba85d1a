"""The golden set of Open P2P where it is, and a small policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from playserve_trainer.models.p2p import P2PConfig, P2PPolicy

_REPO = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Return ../shared/data/p2p-golden (or shared/data/...); its tests are skipped where it is not."""
    for folder in (_REPO.parent / "shared" / "data", _REPO / "shared" / "data"):
        if (folder / "p2p-golden" / "golden.safetensors").is_file():
            return folder / "p2p-golden"
    pytest.skip("missing data: ../shared/data/p2p-golden")


class Small:
    """Makes small policies."""

    def __call__(self, **changes: Any) -> P2PPolicy:
        settings: dict[str, Any] = {
            "layers": 2, "width": 32, "heads": 2, "decoder_layers": 2, "decoder_heads": 2, "history": (3, 7),
            "trunk": "conv3", "frame_size": 32, "text_encoder": "words", "text_width": 16,
        }  # fmt: skip
        torch.manual_seed(0)
        return P2PPolicy(P2PConfig(**{**settings, **changes})).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small() -> Small:
    """Return what makes small policies."""
    return Small()
