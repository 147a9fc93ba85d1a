"""A world that is served, filmed and played in: what is done with one once it is trained.

The stages of training come before these (`WorldDemo.make`); so far a checkpoint is given, and its world is published.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from playserve.files import write_json
from playserve_trainer.demo.files import read_json
from playserve_trainer.demo.folder import demo_folder
from playserve_trainer.demo.log import DemoLog
from playserve_trainer.demo.outcome import is_played, is_published
from playserve_trainer.demo.stages import SLEEPING_THREADS, Stages
from playserve_trainer.demo.steps import FILM_SEED, Step, publishing, serving
from playserve_trainer.demo.table import print_times
from playserve_trainer.wording import utc_now

__all__ = ["AGENT", "RESULTS_NAME", "WORLD", "WorldDemo", "WorldPlan", "run_world"]

RESULTS_NAME = "results.json"
#: Names in the demo's store.
WORLD, AGENT = "world", "agent"
_PARTS = ("store", "films", "rollout", "logs")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldPlan:
    """What is done with a world.

    Attributes:
        name: Of the plan.
        films: Films, each of another seed.
        film_frames: Most frames of a film.
        episodes: Episodes of an agent in the world, if there is one.
        episode_steps: Most steps of an episode.
    """

    name: str = "world"
    films: int = 2
    film_frames: int = 200
    episodes: int = 8
    episode_steps: int = 500

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return asdict(self)


def run_world(
    plan: WorldPlan, out: Path, console: Console, *, checkpoint: Path, agent: Path | None = None, fresh: bool = False
) -> int:
    """Run what is missing of `plan` in the folder `out`; return 0.

    Args:
        plan: What to do.
        out: Folder of everything.
        console: Where to report.
        checkpoint: Of the world.
        agent: Checkpoint of an agent for the world's game, to be evaluated in the world; None: none is.
        fresh: Throw away what an earlier run left.

    Raises:
        PlayserveError: The folder was begun with another plan, is in use, or a stage failed; what is finished is kept.
        KeyboardInterrupt: Somebody stopped it; the same call goes on.
    """
    started = time.monotonic()
    with demo_folder(out, _PARTS, (RESULTS_NAME,), fresh=fresh):
        log = DemoLog.open(out, plan)
        demo = WorldDemo(plan, out, Stages(out, console, log, variables=SLEEPING_THREADS))
        demo.make({WORLD: checkpoint} | ({AGENT: agent} if agent is not None else {}))
        demo.use(with_agent=agent is not None)
        results = demo.results()
        write_json(out / RESULTS_NAME, results)
        log.update({
            "finished_at": utc_now(), "stage_seconds": log.seconds(), "total_seconds": log.total_s(),
            "run_seconds": round(time.monotonic() - started, 3),
        })  # fmt: skip
        _tell(results, out, console)
        print_times(log, console)
        return 0


class WorldDemo:
    """What is done in one folder.

    Args:
        plan: What to do.
        out: The folder.
        stages: Run the commands.
    """

    def __init__(self, plan: WorldPlan, out: Path, stages: Stages) -> None:
        self._plan, self._out, self._stages = plan, out, stages

    def make(self, checkpoints: Mapping[str, Path]) -> None:
        """Publish the checkpoints by their names in the store."""
        for name, folder in checkpoints.items():
            step = publishing(name, folder, self._out)
            self._stages.run(step, done=is_published(step.out))

    def use(self, *, with_agent: bool) -> None:
        """Film the world, and let an agent play in it, where that is not there yet."""
        steps = [(step, step.out.exists()) for step in (self._filming(n, "-") for n in range(self._plan.films))]
        steps += [(step, is_played(step.out)) for step in ([self._playing("-")] if with_agent else [])]
        if all(done for _, done in steps):
            for step, done in steps:
                self._stages.run(step, done=done)
            return
        with self._stages.server(serving(self._out, "--threads", "1")) as address:
            for number in range(self._plan.films):
                step = self._filming(number, address)
                self._stages.run(step, done=step.out.exists())
            if with_agent:
                step = self._playing(address)
                self._stages.run(step, done=is_played(step.out))

    def results(self) -> dict[str, Any]:
        """Return what came out, as a JSON value."""
        films = [read_json(path) for path in sorted((self._out / "films").glob("*.json"))]
        played = self._out / "rollout"
        rows = read_json(played / RESULTS_NAME)["rows"] if is_played(played) else []
        return {
            "plan": self._plan.to_json(),
            "world": read_json(self._out / "store" / WORLD / "1" / "manifest.json"),
            "films": films,
            "rows": rows,
        }

    def _filming(self, number: int, address: str) -> Step:
        name = self._out / "films" / f"{WORLD}-{number}"
        command = (
            "play", "--world", WORLD, "--server", address, "--seed", f"{FILM_SEED + number}", "--film",
            f"{name.with_suffix('.mp4')}", "--steps", f"{self._plan.film_frames}", "--out",
            f"{name.with_suffix('.json')}",
        )  # fmt: skip
        title = f"Film {self._plan.film_frames} frames of the world under random actions"
        return Step(name=f"film-{number}", title=title, command=command, out=name.with_suffix(".json"))

    def _playing(self, address: str) -> Step:
        plan, folder = self._plan, self._out / "rollout"
        command = (
            "rollout", f"world:{WORLD}", "--policy", AGENT, "--server", address, "--episodes", f"{plan.episodes}",
            "--argmax-episodes", "0", "--baseline-episodes", f"{plan.episodes}", "--max-steps",
            f"{plan.episode_steps}", "--envs", "4", "--workers", "1", "--out", f"{folder}",
        )  # fmt: skip
        title = "Let the agent play in the world, beside random actions"
        return Step(name="play-world", title=title, command=command, out=folder)


def _tell(results: Mapping[str, Any], out: Path, console: Console) -> None:
    console.print()
    for film in results["films"]:
        unsure = film["uncertainty_nats"]
        nats = "" if unsure is None else f", {unsure:.2f} nats a token"
        console.print(
            f"{film['film']}: {film['frames']} frames at {film['frames_per_s']:g} frames/s{nats}, reward "
            f"{film['reward']:g}",
            markup=False,
        )
    console.print(
        f"to play in it: playserve serve --store {out / 'store'}, then in another terminal: playserve play --world "
        f"{WORLD}",
        markup=False,
    )
