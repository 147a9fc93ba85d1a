"""A tiny keyboard-and-mouse policy in a store, and a real Triton that serves it to fronts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_p2p import MAX_BATCH, POLICY, SLOTS, tiny_policy
from triton_models import triton_server

from playserve_services.triton.host import HostSettings
from playserve_services.triton.repository import export_batch
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.store import CheckpointStore


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with two versions of one policy, of one state layout."""
    root = tmp_path_factory.mktemp("triton-store")
    for seed in range(2):
        policy = tiny_policy(seed)
        checkpoint.save(root / f"made-{seed}", policy, Manifest.describe(policy, samples_seen=1))
        CheckpointStore(root / "store").publish(POLICY, root / f"made-{seed}")
    return root / "store"


@pytest.fixture(scope="session")
def host_settings(tiny_store: Path) -> HostSettings:
    """Return the settings of the model."""
    return HostSettings(policy=POLICY, store=str(tiny_store), slots=SLOTS, max_batch=MAX_BATCH)


@pytest.fixture(scope="session")
def triton(host_settings: HostSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a real Triton with the policy's batch model; skips by name without one."""
    root = tmp_path_factory.mktemp("triton")
    export_batch(host_settings, root / "models")
    with triton_server(root / "models") as address:
        yield address
