"""The demo from beginning to end: each stage is skipped when its files are whole, run when not, and timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from playserve.files import write_text
from playserve_trainer.demo.carried import carried_checkpoint, why_absent
from playserve_trainer.demo.folder import demo_folder
from playserve_trainer.demo.log import DemoLog
from playserve_trainer.demo.outcome import GameOutcome, is_begun, is_played, is_published, is_trained, read_outcomes
from playserve_trainer.demo.page import render_page
from playserve_trainer.demo.plan import DemoPlan, GamePlan
from playserve_trainer.demo.recorded import is_recorded
from playserve_trainer.demo.stages import Stages
from playserve_trainer.demo.steps import FILM_SEED, playing, publishing, recording, serving, training
from playserve_trainer.demo.table import print_outcomes, print_times
from playserve_trainer.wording import utc_now

__all__ = ["PAGE_NAME", "run_demo"]

PAGE_NAME = "index.html"
# What a demo writes, and so what --fresh may throw away.
_PARTS = ("data", "train", "store", "rollout", "films", "logs")
_FILM_S = 20.0


def run_demo(plan: DemoPlan, out: Path, console: Console, *, fresh: bool = False) -> int:
    """Run what is missing of `plan` in the folder `out`, write the page; return 0, or 1 where a goal is missed.

    Raises:
        PlayserveError: The folder was begun with another plan, is in use, or a stage failed; what is finished is kept.
        KeyboardInterrupt: Somebody stopped it; the same call goes on.
    """
    started = time.monotonic()
    with demo_folder(out, _PARTS, (PAGE_NAME,), fresh=fresh):
        absent = {game.game: why_absent(game.carried) for game in plan.games if game.carried}
        for name, why in absent.items():
            if why:
                console.print(f"left out: {name}; {why}", markup=False)
        plan = plan.without([name for name, why in absent.items() if why])
        log = DemoLog.open(out, plan)
        _Demo(plan, out, console, log).run()
        outcomes = read_outcomes(plan, out)
        log.update({"run_seconds": round(time.monotonic() - started, 3)})
        return _conclude(outcomes, out, console, log)


class _Demo:
    """What is done in one folder."""

    def __init__(self, plan: DemoPlan, out: Path, console: Console, log: DemoLog) -> None:
        self._plan, self._out = plan, out
        self._stages = Stages(out, console, log, total=sum(2 if game.carried else 3 for game in plan.games))

    def run(self) -> None:
        """Record, train and play each game."""
        plan, out, run = self._plan, self._out, self._stages.run
        made = [game for game in plan.games if not game.carried]
        for game in made:
            step = recording(plan, game, out)
            run(step, done=is_recorded(game, step.out))
        for game in made:
            step = training(game, out)
            resume = ("--resume",) if is_begun(step.out) else ()
            run(step, done=is_trained(step.out, out / "store"), more=resume)
        for game in plan.games:
            checkpoint = carried_checkpoint(game.carried) if game.carried else None
            if checkpoint is not None:
                step = publishing(game.game, checkpoint, out)
                run(step, done=is_published(step.out))
        self._play()

    def _play(self) -> None:
        plan, out = self._plan, self._out
        steps = [playing(plan, game, out, "-") for game in plan.games]
        films = [game for game in plan.games if game.carried and not _is_filmed(game, out)]
        if all(is_played(step.out) for step in steps) and not films:
            for step in steps:
                self._stages.run(step, done=True)
            return
        with self._stages.server(serving(out)) as address:
            for game in plan.games:
                step = playing(plan, game, out, address)
                self._stages.run(step, done=is_played(step.out))
            for game in films:
                self._film(game, address)

    def _film(self, game: GamePlan, address: str) -> None:
        from playserve_trainer.demo.doom.film import make_film

        with self._stages.within(f"film-{game.game}", f"Film {game.title} in real time"):
            make_film(address, game.scenario, game.scenario_goal, self._out, seconds=_FILM_S, seed=FILM_SEED, tries=1)


def _conclude(outcomes: Sequence[GameOutcome], out: Path, console: Console, log: DemoLog) -> int:
    """Write page and record, print the tables; return the exit status."""
    verdicts = [outcome.judge() for outcome in outcomes]
    missed = [verdict for verdict in verdicts if verdict["met"] is False]
    page = out / PAGE_NAME
    log.update({
        "finished_at": utc_now(), "outcomes": verdicts, "goals_met": None if not _judged(verdicts) else not missed,
        "stage_seconds": log.seconds(), "total_seconds": log.total_s(), "page": PAGE_NAME,
    })  # fmt: skip
    write_text(page, render_page(outcomes, log.value))
    console.print()
    print_outcomes(outcomes, console)
    print_times(log, console)
    console.print(f"page: {page}   record: {log.path}", markup=False)
    return 1 if missed else 0


def _is_filmed(game: GamePlan, out: Path) -> bool:
    from playserve_trainer.demo.doom.film import film_paths

    return all(path.exists() for path in film_paths(out, game.scenario, game.scenario_goal))


def _judged(verdicts: Sequence[dict[str, object]]) -> bool:
    return any(verdict["met"] is not None for verdict in verdicts)
