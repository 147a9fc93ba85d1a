"""The end of a run: the checkpoint with its manifest, the summary, and the store."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.files import write_json
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.flops import CONVENTION
from playserve_trainer.store import CheckpointStore
from playserve_trainer.train.loop import Trainer

if TYPE_CHECKING:
    from playserve_trainer.data.episodes import DataReport
    from playserve_trainer.recipes import Baseline

__all__ = ["CHECKPOINT_NAME", "SUMMARY_NAME", "code_version", "publish", "write_checkpoint",
           "write_summary"]  # fmt: skip

CHECKPOINT_NAME = "checkpoint"
SUMMARY_NAME = "summary.json"


def code_version() -> str:
    """Return the version of playserve, with the commit if this is a checkout ("0.1.0+g1a2b3c4.dirty").

    Where it is not installed, but run from its source, it is "0".
    """
    try:
        base = version("playserve")
    except PackageNotFoundError:
        base = "0"
    source = Path(__file__).resolve()
    try:
        git = ["git", "-C", str(source.parent)]
        # A package installed inside somebody else's repository is not of that repository's commit.
        subprocess.run([*git, "ls-files", "--error-unmatch", source.name], check=True, capture_output=True, timeout=10)
        commit = subprocess.run(
            [*git, "describe", "--always", "--dirty=.dirty", "--abbrev=9", "--exclude=*"],
            check=True, capture_output=True, text=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return base
    return f"{base}+g{commit}"


def write_checkpoint(trainer: Trainer, directory: Path, origin: Mapping[str, Any] | None = None) -> Manifest | None:
    """Write the policy as it is now, and all that is known of it; an older checkpoint there is replaced.

    All processes of a run must call it; the main one writes, the others get None.

    Args:
        trainer: Of the run.
        directory: Where to.
        origin: For the manifest: what the run itself does not know.
    """
    evaluation = trainer.last_evaluation or trainer.evaluate()
    metrics = {"loss": evaluation.loss, "accuracy": evaluation.accuracy, **evaluation.scores} if evaluation else {}
    with trainer.published_policy() as policy:
        if policy is None:
            return None
        manifest = Manifest.describe(
            policy,
            samples_seen=trainer.samples,
            flops=trainer.flops,
            data_digest=trainer.data_digest,
            code_version=code_version(),
            seed=trainer.config.seed,
            metrics=metrics,
        )
        manifest = dataclasses.replace(manifest, origin=dict(origin or {}))
        return checkpoint.save(directory, policy, manifest, overwrite=True)


def write_summary(
    trainer: Trainer,
    report: DataReport,
    manifest: Manifest | None,
    published: dict[str, str] | None,
    baselines: Sequence[Baseline] = (),
) -> dict[str, Any]:
    """Write summary.json: every number that a run prints; return it."""
    evaluation, elapsed_s = trainer.last_evaluation, trainer.elapsed_s
    summary: dict[str, Any] = {
        "finished": manifest is not None,
        "family": trainer.config.family,
        "task": trainer.config.task,
        "steps": trainer.step,
        "num_params": trainer.num_params,
        "num_params_without_embeddings": trainer.policy.num_params_without_embeddings(),
        "samples_seen": trainer.samples,
        "tokens_seen": trainer.tokens,
        "epochs": trainer.samples / report.samples,
        "flops": trainer.flops,
        "flops_per_sample": trainer.flops_per_sample,
        "flops_convention": CONVENTION,
        "flops_6nd": trainer.flops_6nd,
        "elapsed_s": elapsed_s,
        "samples_per_s": trainer.samples / elapsed_s if elapsed_s else None,
        "data_wait_fraction": trainer.data_wait_s / trainer.loop_s if trainer.loop_s else None,
        "held_out": {
            "loss": evaluation.loss,
            "accuracy": evaluation.accuracy,
            "labels": evaluation.labels,
            **evaluation.scores,
        }
        if evaluation
        else None,
        "baselines": [dataclasses.asdict(baseline) for baseline in baselines],
        "best_held_out": dict(trainer.best) or None,
        "device": str(trainer.device),
        "precision": trainer.precision,
        "threads": trainer.threads,
        "processes": trainer.group.size,
        "data": report.to_json(),
        "checkpoint": str(trainer.out / CHECKPOINT_NAME) if manifest else None,
        "published": published,
        "config": trainer.config.to_json(),
    }
    write_json(trainer.out / SUMMARY_NAME, summary)
    return summary


def publish(store: str, name: str, directory: Path) -> dict[str, str]:
    """Publish a checkpoint to a store; return where it went."""
    return {"store": store, "name": name, "version": CheckpointStore(store).publish(name, directory)}
