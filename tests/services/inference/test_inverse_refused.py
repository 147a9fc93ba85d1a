"""An inverse model sees the future: a server says so by a typed error, and serves the rest of its store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from playserve.errors import NotImplementedHereError
from playserve_services.inference.catalog import Catalog
from playserve_services.inference.loader import PolicyLoader, RuntimeFactory
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.p2p.config import config_of_size
from playserve_trainer.models.p2p.policy import P2PPolicy
from playserve_trainer.store import CheckpointStore

_TINY = {"layers": 1, "width": 32, "heads": 2, "decoder_layers": 1, "decoder_heads": 2, "frame_size": 32}


async def test_an_inverse_model_is_not_served_and_its_neighbour_is(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "store"))
    torch.manual_seed(0)
    for name, inverse in (("player", False), ("labeller", True)):
        policy = P2PPolicy(
            config_of_size("1m", **_TINY, history=(2,), past_actions=not inverse, text_encoder="none", inverse=inverse)
        )
        checkpoint.save(tmp_path / name, policy, Manifest.describe(policy))
        store.publish(name, tmp_path / name)
    loader = PolicyLoader(Catalog(), RuntimeFactory(slots=2, max_batch=1), store)
    try:
        await loader.refresh()
        assert (await loader.acquire("player")).spec.name == "player"
        with pytest.raises(NotImplementedHereError, match=r"inverse model.*cannot play"):
            await loader.acquire("labeller")
    finally:
        loader.close()
