"""Worlds are computed in the server: Triton's side refuses them by name, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_dream import save_dream

from playserve.errors import NotImplementedHereError
from playserve_services.triton.host import HostSettings
from playserve_services.triton.repository import export_batch, export_sequence
from playserve_trainer.store import CheckpointStore


@pytest.mark.parametrize("export", [export_batch, export_sequence])
def test_no_model_is_made_of_a_world(export: object, tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "store").publish("dream", save_dream(tmp_path / "made"))
    settings = HostSettings(policy="dream", store=str(tmp_path / "store"), slots=2, max_batch=2)
    with pytest.raises(NotImplementedHereError, match="world"):
        export(settings, tmp_path / "models")  # type: ignore[operator]
    assert not (tmp_path / "models").exists()
