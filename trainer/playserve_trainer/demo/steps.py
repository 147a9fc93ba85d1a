"""The command of each stage of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from playserve_trainer.demo.plan import DemoPlan, GamePlan

__all__ = ["FILM_SEED", "Step", "data_folder", "playing", "publishing", "recording", "serving", "training"]

#: Of films: beyond the evaluator's own seeds, so that none shows an episode of a table.
FILM_SEED = 1_900_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of the demo.

    Attributes:
        name: Name for programs, such as "train-breakout".
        title: Name for people.
        command: Arguments of ``playserve``.
        out: Folder that it writes.
        expected_s: Seconds that it may take on two cores, where that is known beforehand.
    """

    name: str
    title: str
    command: tuple[str, ...]
    out: Path
    expected_s: float | None = None


def data_folder(game: GamePlan, out: Path) -> Path:
    """Return where the expert's games of `game` lie under the demo's folder `out`."""
    return out / "data" / "atari" / game.game if game.family == "atari" else out / "data" / "nethack"


def _task(game: GamePlan, out: Path) -> tuple[str, ...]:
    """Return the family, and what of it is trained or played."""
    if game.family == "doom":
        return ("doom", "--scenario", game.scenario, "--goal", game.scenario_goal, "--policy", game.game)
    if game.family == "nethack":
        return ("nethack", "--data", f"{data_folder(game, out)}")
    return ("atari", "--game", game.game, "--data", f"{out / 'data'}")


def recording(plan: DemoPlan, game: GamePlan, out: Path) -> Step:
    """Return the step that makes the expert's games: Atari's are recorded, NetHack's replayed from seeds and keys."""
    if game.family == "nethack":
        source: tuple[str, ...] = ("data", "replay")
        title, folder = f"Replay {game.steps:,} steps of the NetHack expert from seeds and keys", data_folder(game, out)
    else:
        source = ("data", "record", "atari", "--game", game.game)
        # The recorder makes the family's and the game's folder itself.
        title, folder = f"Record {game.steps:,} steps of the {game.game} expert", out / "data"
    command = (*source, "--steps", f"{game.steps}", *game.record_flags, "--workers", f"{plan.workers}",
               "--out", f"{folder}")  # fmt: skip
    return Step(name=f"record-{game.game}", title=title, command=command, out=data_folder(game, out))


def training(game: GamePlan, out: Path) -> Step:
    """Return the step that trains and publishes the agent of `game`."""
    folder = out / "train" / game.game
    command = ("train", *_task(game, out), "--minutes", f"{game.minutes:g}", *game.train_flags, "--out", f"{folder}",
               "--publish", game.game, "--store", f"{out / 'store'}")  # fmt: skip
    return Step(
        name=f"train-{game.game}",
        title=f"Train and publish the {game.title} agent",
        command=command,
        out=folder,
        expected_s=game.minutes * 60,
    )


def publishing(name: str, checkpoint: Path, out: Path) -> Step:
    """Return the step that publishes a checkpoint that is there already."""
    command = ("checkpoints", "publish", "--store", f"{out / 'store'}", name, f"{checkpoint}")
    title = f"Publish the {name} checkpoint in {checkpoint}"
    return Step(name=f"publish-{name}", title=title, command=command, out=out / "store" / name)


def serving(out: Path, *flags: str) -> tuple[str, ...]:
    """Return the arguments of ``playserve`` that serve the demo's store on any free port."""
    return ("serve", "--store", f"{out / 'store'}", "--port", "0", *flags)


def playing(plan: DemoPlan, game: GamePlan, out: Path, server: str) -> Step:
    """Return the step that plays `game` through the policy server at `server`."""
    folder = out / "rollout" / game.game
    command = (
        "rollout", *_task(game, out), "--server", server, "--episodes", f"{game.episodes}",
        "--argmax-episodes", f"{game.argmax_episodes}", "--baseline-episodes", f"{game.baseline_episodes}",
        *game.play_flags, "--workers", f"{plan.workers}", "--record", f"{0 if game.carried else game.recorded_games}",
        "--out", f"{folder}",
    )  # fmt: skip
    return Step(
        name=f"play-{game.game}",
        title=f"Play {game.title} through the endpoint, beside its baselines and the expert",
        command=command,
        out=folder,
    )
