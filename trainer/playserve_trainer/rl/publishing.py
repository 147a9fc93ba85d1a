"""Versions for the actors: the policy without its critic, a checkpoint like any other, in the store that is served."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.rl.learner import Learner
from playserve_trainer.store import CheckpointStore
from playserve_trainer.train.finish import code_version

__all__ = ["Publisher", "write_policy"]

_SCRATCH = ".publishing"


def write_policy(learner: Learner, directory: Path, origin: Mapping[str, Any], *, code: str = "") -> Manifest:
    """Write the policy as it is now; the critic stays in the run's state. An older checkpoint there is replaced.

    Args:
        learner: Of the run.
        directory: Where to.
        origin: How it was made, for people.
        code: Version of the code; "": it is looked up.
    """
    manifest = Manifest.describe(
        learner.policy,
        samples_seen=learner.steps,
        flops=learner.flops,
        code_version=code or code_version(),
        seed=learner.config.seed,
    )
    manifest = dataclasses.replace(manifest, origin=dict(origin))
    return checkpoint.save(directory, learner.policy, manifest, overwrite=True)


class Publisher:
    """Publishes a run's versions, remembers which update each one was, and removes the oldest of its own.

    Args:
        store: Folder of the store that the server watches, on this machine.
        name: Of the policy.
        out: Folder of the run.
        keep: Versions that stay.
        versions: Update of each version that was published before, when the run is resumed.
    """

    def __init__(self, store: Path, name: str, out: Path, keep: int, versions: Mapping[int, int]) -> None:
        self._folder, self._store, self._name = store, CheckpointStore(store), name
        self._scratch, self._keep = out / _SCRATCH, keep
        self._code = code_version()
        self.versions = dict(versions)

    def publish(self, learner: Learner) -> int:
        """Publish the policy as it is now; return its version."""
        write_policy(learner, self._scratch, {"method": "rl", "updates": learner.updates}, code=self._code)
        version = int(self._store.publish(self._name, self._scratch))
        self.versions[version] = learner.updates
        for old in sorted(self.versions)[: -self._keep]:
            shutil.rmtree(self._folder / self._name / str(old), ignore_errors=True)
            del self.versions[old]
        return version

    def lag(self, version: int, updates: int) -> tuple[int, int]:
        """Return how many versions, and how many of `updates`, came after the version that acted."""
        # A forgotten version counts as the oldest that is known.
        return max(self.versions) - version, updates - self.versions.get(version, min(self.versions.values()))

    def close(self) -> None:
        """Remove what is of no use without the run."""
        shutil.rmtree(self._scratch, ignore_errors=True)
