"""The Doom recipe from beginning to end: each stage is skipped when its files are whole, run when not, and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from playserve.errors import DataLossError, NotFoundError
from playserve.files import write_json, write_text
from playserve_trainer.demo.carried import carried_checkpoint
from playserve_trainer.demo.doom.desktop import RESULTS_NAME, desktop_folder, missing_for_desktop, play_desktop
from playserve_trainer.demo.doom.film import film_paths, make_film
from playserve_trainer.demo.doom.page import render_page
from playserve_trainer.demo.doom.plan import POLICY, DoomPlan
from playserve_trainer.demo.doom.report import markdown, print_results
from playserve_trainer.demo.doom.results import read_results
from playserve_trainer.demo.doom.steps import playing, recording, training
from playserve_trainer.demo.files import read_json
from playserve_trainer.demo.folder import demo_folder
from playserve_trainer.demo.log import DemoLog
from playserve_trainer.demo.outcome import is_begun, is_played, is_published, is_trained
from playserve_trainer.demo.stages import SLEEPING_THREADS, Stages
from playserve_trainer.demo.steps import FILM_SEED, publishing, serving
from playserve_trainer.demo.table import print_times
from playserve_trainer.wording import utc_now

__all__ = ["PAGE_NAME", "REPORT_NAME", "RESULTS_FILE", "run_doom"]

PAGE_NAME, REPORT_NAME, RESULTS_FILE = "index.html", "report.md", "results.json"
_PARTS = ("data", "train", "store", "rollout", "desktop", "films", "logs")


def run_doom(
    plan: DoomPlan, out: Path, console: Console, *, fresh: bool = False, checkpoint: Path | None = None
) -> int:
    """Run what is missing of `plan` in the folder `out`, write the page; return 0, or 1 where a limit is missed.

    Args:
        plan: What to do.
        out: Folder of everything.
        console: Where to report.
        fresh: Throw away what an earlier run left.
        checkpoint: A checkpoint to publish instead of recording and training.

    Raises:
        PlayserveError: The folder was begun with another plan, is in use, or a stage failed; what is finished is kept.
        KeyboardInterrupt: Somebody stopped it; the same call goes on.
    """
    started = time.monotonic()
    with demo_folder(out, _PARTS, (PAGE_NAME, REPORT_NAME, RESULTS_FILE), fresh=fresh):
        log = DemoLog.open(out, plan)
        _Recipe(plan, out, console, log, checkpoint).run()
        log.update({"run_seconds": round(time.monotonic() - started, 3)})
        return _conclude(plan, out, console, log)


class _Recipe:
    """What is done in one folder."""

    def __init__(self, plan: DoomPlan, out: Path, console: Console, log: DemoLog, checkpoint: Path | None) -> None:
        self._plan, self._out, self._console, self._checkpoint = plan, out, console, checkpoint
        self._stages = Stages(out, console, log, variables=SLEEPING_THREADS)

    def run(self) -> None:
        """Make the policy, then measure and film it."""
        if self._checkpoint is None:
            self._make()
        else:
            step = publishing(POLICY, self._checkpoint, self._out)
            self._stages.run(step, done=is_published(step.out))
        self._use()

    def _make(self) -> None:
        plan, out = self._plan, self._out
        step = recording(plan, out)
        self._stages.run(step, done=is_recorded(plan, step.out))
        begin = carried_checkpoint(POLICY) if plan.continue_flags is not None else None
        step = training(plan, out, begin)
        resume = ("--resume",) if is_begun(step.out) else ()
        self._stages.run(step, done=is_trained(step.out, out / "store"), more=resume)

    def _use(self) -> None:
        plan, out = self._plan, self._out
        rollouts = [playing(plan, rollout, out, "-") for rollout in plan.rollouts()]
        films = [pair for pair in plan.filmed if not all(path.exists() for path in film_paths(out, *pair))]
        desktops = self._desktops()
        if all(is_played(step.out) for step in rollouts) and not (films or desktops):
            self._console.print("\neverything was played and filmed by an earlier demo in this folder: kept")
            return
        with self._stages.server(serving(out, "--threads", "1")) as address:
            for rollout in plan.rollouts():
                step = playing(plan, rollout, out, address)
                self._stages.run(step, done=is_played(step.out))
            if films:
                with self._stages.within("film", "Film the policy in real time"):
                    self._film(films, address)
            if desktops:
                title = f"Play {plan.desktop_episodes} episodes of each scenario through windows of a virtual display"
                with self._stages.within("desktop", title):
                    self._sit(desktops, address)

    def _desktops(self) -> list[str]:
        """Return the scenarios that are still to be played at a desktop; none where there can be no desktop."""
        scenarios = self._plan.scores if self._plan.desktop_episodes else ()
        left = [name for name in scenarios if not (desktop_folder(name, self._out) / RESULTS_NAME).exists()]
        missing = missing_for_desktop() if left else ""
        if missing:
            self._console.print(f"\nleft out: the desktop loop; {missing}", markup=False)
        return [] if missing else left

    def _film(self, films: Sequence[tuple[str, str]], address: str) -> None:
        for scenario, goal in films:
            film = make_film(address, scenario, goal, self._out, seconds=self._plan.film_s, seed=FILM_SEED)
            self._console.print(
                f"film of {scenario}, {goal}: score {film['score']:g}, {film['frames']} frames, "
                f"round trip p50 {film['round_trip_ms']['p50']:.1f} ms: {self._out / film['path']}",
                markup=False,
            )

    def _sit(self, scenarios: Sequence[str], address: str) -> None:
        def tell(scenario: str, number: int, score: float) -> None:
            self._console.print(
                f"{scenario}, episode {number + 1} of {self._plan.desktop_episodes}: {score:g}", markup=False
            )

        with ThreadPoolExecutor(self._plan.desktop_at_once) as pool:
            jobs = [pool.submit(play_desktop, self._plan, name, address, self._out, tell) for name in scenarios]
            for job in jobs:
                job.result()


def is_recorded(plan: DoomPlan, folder: Path) -> bool:
    """Return whether enough of every goal was recorded."""
    try:
        summary = read_json(folder / "summary.json")
    except (NotFoundError, DataLossError):
        return False
    found = {(goal["scenario"], goal["goal"]): goal["frames"] for goal in summary["goals"]}
    from playserve_client.doom.scenarios import scenario_of

    wanted = [(name, goal.name) for name in plan.scenarios for goal in scenario_of(name).goals]
    return not summary["interrupted"] and all(found.get(pair, 0) >= plan.frames for pair in wanted)


def _conclude(plan: DoomPlan, out: Path, console: Console, log: DemoLog) -> int:
    """Write results, report and page, print the tables; return the exit status."""
    results = read_results(plan, out)
    films = [read_json(film_paths(out, *pair)[1]) for pair in plan.filmed if film_paths(out, *pair)[1].exists()]
    seconds = log.seconds()
    recipe_s = _made_s(out, seconds)
    missed = [item for item in results["verdicts"] if item["met"] is False]
    judged = any(item["met"] is not None for item in results["verdicts"])
    manifest = read_json(out / "store" / POLICY / "1" / "manifest.json")
    value = {
        "plan": plan.to_json(), "manifest": manifest, **results, "films": films,
        "record_and_train_seconds": round(recipe_s, 1), "stage_seconds": seconds,
    }  # fmt: skip
    log.update({
        "finished_at": utc_now(), "verdicts": results["verdicts"], "goals_met": not missed if judged else None,
        "stage_seconds": seconds, "total_seconds": log.total_s(), "record_and_train_seconds": round(recipe_s, 1),
        "page": PAGE_NAME,
    })  # fmt: skip
    write_json(out / RESULTS_FILE, value)
    write_text(out / REPORT_NAME, markdown(value, log.value))
    write_text(out / PAGE_NAME, render_page(value, log.value, out))
    console.print()
    print_results(value, console)
    print_times(log, console)
    console.print(f"page: {out / PAGE_NAME}   numbers: {out / RESULTS_FILE}   record: {log.path}", markup=False)
    return 1 if missed else 0


def _made_s(out: Path, seconds: Mapping[str, float]) -> float:
    """Return how long recording and training took; where they were run by hand, by what they wrote of themselves."""
    total = sum(seconds.get(stage, 0.0) for stage in ("record", "train"))
    recorded, trained = out / "data" / "summary.json", out / "train" / "summary.json"
    if "record" not in seconds and recorded.exists():
        summary = read_json(recorded)
        # Of a recording in several runs the last one's rate, for all of it.
        rate = summary.get("frames_per_second")
        total += float(summary["frames"]) / float(rate) if rate else float(summary["seconds"])
    if "train" not in seconds and trained.exists():
        total += float(read_json(trained)["elapsed_s"])
    return total
