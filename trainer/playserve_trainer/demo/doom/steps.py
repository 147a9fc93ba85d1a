"""The command of each stage of the Doom recipe."""

from __future__ import annotations

from pathlib import Path

from playserve_trainer.demo.doom.plan import POLICY, DoomPlan, Rollout
from playserve_trainer.demo.steps import Step

__all__ = ["playing", "recording", "rollout_folder", "training"]


def recording(plan: DoomPlan, out: Path) -> Step:
    """Return the step in which the experts play into recordings."""
    scenarios = (part for name in plan.scenarios for part in ("--scenario", name))
    command = (
        "data", "record", "doom", *scenarios, "--frames", f"{plan.frames}", *plan.record_flags,
        "--workers", f"{plan.workers}", "--out", f"{out / 'data'}",
    )  # fmt: skip
    title = f"Record {plan.frames:,} frames of each goal, played by scripted experts"
    return Step(name="record", title=title, command=command, out=out / "data")


def training(plan: DoomPlan, out: Path, begin: Path | None = None) -> Step:
    """Return the step that trains and publishes the policy; it may begin with a checkpoint's weights."""
    goes_on = () if begin is None else (*(plan.continue_flags or ()), "--init-from", f"{begin}")
    command = (
        "train", "p2p", "--data", f"{out / 'data'}", *plan.train_flags, *goes_on, "--minutes", f"{plan.minutes:g}",
        "--out", f"{out / 'train'}", "--publish", POLICY, "--store", f"{out / 'store'}",
    )  # fmt: skip
    return Step(
        name="train",
        title="Train and publish one policy for all of it"
        + ("" if begin is None else ", going on from the checkpoint that this package carries"),
        command=command,
        out=out / "train",
        expected_s=plan.minutes * 60,
    )


def rollout_folder(rollout: Rollout, out: Path) -> Path:
    """Return where a rollout's results lie."""
    return out / "rollout" / rollout.key


def playing(plan: DoomPlan, rollout: Rollout, out: Path, server: str) -> Step:
    """Return the step that plays one scenario and goal, headless, through the policy server at `server`."""
    beside = (
        ("--baseline-episodes", f"{rollout.baseline_episodes}") if rollout.baseline_episodes else ("--no-baselines",)
    )
    folder = rollout_folder(rollout, out)
    command = (
        "rollout", "doom", "--scenario", rollout.scenario, "--goal", rollout.goal, "--text", rollout.text,
        "--phrasing", rollout.phrasing, "--server", server, "--policy", POLICY, "--episodes", f"{rollout.episodes}",
        *beside, "--envs", f"{plan.envs}", "--workers", f"{plan.workers}", "--out", f"{folder}",
    )  # fmt: skip
    told = {"right": "", "none": ", no text", "wrong": ", wrong text"}[rollout.text]
    known = " (phrasings of the training)" if rollout.phrasing == "training" else ""
    title = f"Play {rollout.scenario}: {rollout.goal}{told}{known}, {rollout.episodes} episodes"
    return Step(name=f"play-{rollout.key}", title=title, command=command, out=folder)
