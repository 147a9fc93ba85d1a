"""The view of a whole grid: a bar and rows on a terminal, lines elsewhere; the time left follows from what is done."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from playserve_trainer.grid.plan import Plan, SizeFacts, make_plan
from playserve_trainer.grid.progress import Progress
from playserve_trainer.grid.show import print_plan, print_status
from playserve_trainer.grid.status import GridStatus, Overhead, RunStatus
from playserve_trainer.grid.study import Size, Sizes, Study
from playserve_trainer.grid.view import GridView, one_line


def _measure(task: str, variant: str, size: Size) -> SizeFacts:
    return SizeFacts(
        params=10 * int(size), params_non_embedding=10 * int(size), flops_per_sample=100, batch_size=10,
        sequence_length=1, lr=1e-3,
    )  # fmt: skip


def _plan() -> Plan:
    study = Study(
        study="view", tier="t", family="atari", tasks=("a",), size=Sizes(dial="width", values=(1, 2, 4, 8)),
        budgets=(1e6,),
    )  # fmt: skip
    return make_plan(study, _measure)


def _status() -> GridStatus:
    """Return one run of each state: 1.5 of four runs took 30 s."""
    plan = _plan()
    progress = {
        "done": Progress(fraction=1.0, step=9, elapsed_s=20, samples_per_s=7, loss=0.5, held_out_loss=0.4),
        "running": Progress(fraction=0.5, step=4, elapsed_s=10, samples_per_s=7, loss=0.25, held_out_loss=None),
    }
    reasons = {"failed": "ValueError: [b]not markup[/b]"}
    runs = tuple(
        RunStatus(
            run=run, state=state, reason=reasons.get(state, ""), progress=progress.get(state),
            done_cells=tuple(cell.cell for cell in run.cells) if state == "done" else (),
        )
        for run, state in zip(plan.runs, ("done", "running", "failed", "waiting"), strict=True)
    )  # fmt: skip
    spent = Overhead(busy_s=100.0, training_s=96.0, evaluating_s=2.0)
    return GridStatus(plan=plan, runs=runs, overhead=spent)


def test_the_time_left_follows_from_what_was_trained() -> None:
    status = _status()
    assert status.fraction == pytest.approx(1.5 / 4)
    # Half of the running one and all of the waiting one, at 20 s a run; the failed one takes nothing.
    assert status.left_s(1) == pytest.approx(30.0)
    assert status.left_s(2) == pytest.approx(15.0)
    assert status.overhead.training_share == pytest.approx(0.96)
    line = one_line(status, 2)
    assert line.startswith("grid view 38%  1/4 cells  1/4 runs  1 running  1 failed  ETA 0:15")
    assert "loss 0.2500" in line


def test_a_terminal_shows_a_bar_and_each_running_run() -> None:
    file = io.StringIO()
    with GridView(1, Console(file=file, force_terminal=True, width=160)) as view:
        view.update(_status())
    text = file.getvalue()
    assert "37.5%" in text
    assert "a.base.n2.s0" in text
    assert "failed: a.base.n4.s0: ValueError" in text


def test_elsewhere_there_are_lines_but_not_at_each_look() -> None:
    file = io.StringIO()
    with GridView(1, Console(file=file, width=160)) as view:
        view.update(_status())
        view.update(_status())
    assert file.getvalue().count("grid view") == 1


def test_tables_show_reasons_as_they_are() -> None:
    file = io.StringIO()
    console = Console(file=file, width=200)
    print_plan(console, _plan(), 2)
    print_status(console, _status(), 2)
    text = file.getvalue()
    assert "[b]not markup[/b]" in text
    assert "1 done, 1 running, 1 failed, 1 waiting" in text
    assert "training 96.0% (budget: 95%)" in text
    assert "4 cells in 4 runs" in text
