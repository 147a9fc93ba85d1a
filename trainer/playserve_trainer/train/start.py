"""Where a run's weights come from, if not from chance: a checkpoint to go on from (fine-tuning)."""

from __future__ import annotations

from pathlib import Path

import torch

from playserve.errors import BadSettingError
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.registry import describe

__all__ = ["begin_from", "copy_trunk"]


def begin_from(policy: Policy, directory: str | Path) -> Manifest:
    """Copy a checkpoint's weights into a policy of the same family and shapes; return the checkpoint's manifest.

    Weights keep the policy's dtype: float32 masters of a checkpoint in bfloat16.

    Raises:
        NotFoundError: There is no checkpoint.
        DataLossError: It is damaged.
        BadSettingError: It is of another family, or of other shapes.
    """
    source, manifest = checkpoint.load(directory)
    family = describe(policy)[0]
    if manifest.family != family:
        raise BadSettingError(f"init_from: {directory} holds a policy of {manifest.family}, the run trains {family}")
    have, want = source.state_dict(), policy.state_dict()
    differ = sorted(
        name
        for name in have.keys() | want.keys()
        if name not in have or name not in want or have[name].shape != want[name].shape
    )
    if differ:
        raise BadSettingError(
            f"init_from: {directory} has other weights than the run's settings make: {', '.join(differ[:5])}"
            + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")
        )
    with torch.no_grad():
        for name, tensor in want.items():
            tensor.copy_(have[name])
    return manifest


def copy_trunk(policy: P2PPolicy, directory: str | Path) -> None:
    """Copy the trunk of another p2p checkpoint, of whatever else it is made: what sees a frame, not its projection.

    Raises:
        NotFoundError: There is no checkpoint.
        DataLossError: It is damaged.
        BadSettingError: It is of another family, or its trunk is another one.
    """
    source, manifest = checkpoint.load(directory)
    if not isinstance(source, P2PPolicy):
        raise BadSettingError(f"trunk_from: {directory} holds a policy of {manifest.family}, wanted one of p2p")
    if source.config.trunk != policy.config.trunk:
        raise BadSettingError(
            f"trunk_from: {directory} sees with {source.config.trunk}, the run's policy with {policy.config.trunk}"
        )
    policy.image.trunk.load_state_dict(source.image.trunk.state_dict())
