"""Plans: every budget has its window of sizes, re-centred, and the runs cover exactly the planned cells."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import BadSettingError, StateError
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Plan, SizeFacts, batch_rule, make_plan, window_of
from playserve_trainer.grid.study import Batch, Centre, Size, Sizes, Study, Tuning, Variant
from playserve_trainer.grid.tables import parse, to_json


def _measure(task: str, variant: str, size: Size) -> SizeFacts:
    params = 10 * int(size) ** 2 + (5 if variant == "wide" else 0)
    return SizeFacts(
        params=params, params_non_embedding=params, flops_per_sample=6 * params, batch_size=64, sequence_length=1,
        lr=1e-3,
    )  # fmt: skip


_CENTRED = Variant(centre=Centre(n0=1e3, c0=1e10, exponent=0.3))


@st.composite
def _studies(draw: st.DrawFn) -> Study:
    budgets = sorted(draw(st.sets(st.integers(7, 14), min_size=1, max_size=5)))
    held_out = draw(st.booleans())
    count = draw(st.integers(1, 8))
    return Study(
        study="s",
        tier="t",
        family="atari",
        tasks=tuple(draw(st.sampled_from([("a",), ("a", "b")]))),
        size=Sizes(dial="width", first=4, ratio=draw(st.floats(1.3, 2.5)), count=count),
        budgets=tuple(10.0**b for b in budgets),
        hold_out=(10.0 ** (budgets[-1] + 1),) if held_out else (),
        window=draw(st.integers(0, 6)),
        hold_out_window=draw(st.integers(0, 3)),
        centre=Centre(n0=draw(st.floats(1e2, 1e5)), c0=1e10, exponent=draw(st.floats(0.2, 0.9))),
        seeds=tuple(draw(st.lists(st.integers(1, 3), min_size=len(budgets), max_size=len(budgets)))),
        unique=draw(st.sampled_from([(1.0,), (0.25, 1.0)])),
        variants={"base": Variant(), **draw(st.sampled_from([{}, {"wide": Variant()}, {"small": _CENTRED}]))},
        tuning=Tuning(candidates=(1e-3, 2e-3), share=0.1) if draw(st.booleans()) else Tuning(),
    )


@given(study=_studies())
def test_every_budget_has_its_window_and_runs_cover_exactly_the_cells(study: Study) -> None:
    plan = make_plan(study, _measure)
    train = [run for run in plan.runs if run.kind == "train"]
    cells = [(r.task, r.variant, r.size, r.unique, c.budget, r.seed) for r in train for c in r.cells]
    assert len(cells) == len(set(cells)) == len(set(plan.cells))
    order = sorted(study.size.listed(), key=int)
    wanted = set()
    for variant, settings in study.variants.items():
        starts = []
        for number, budget in enumerate((*study.budgets, *study.hold_out)):
            held_out = budget in study.hold_out
            seeds = study.hold_out_seeds if held_out else study.seeds[number]
            window = (study.hold_out_window or study.window) if held_out else study.window
            size = min(window, len(order)) or len(order)
            found = sorted({c[2] for c in cells if c[1] == variant and c[4] == round(budget)}, key=order.index)
            start = order.index(found[0])
            assert found == order[start : start + size]  # neighbours, as many as the window has
            centre = settings.centre or study.centre
            assert centre is not None
            off = [_off(order[i : i + size], centre.params(budget), variant) for i in range(len(order) - size + 1)]
            assert off[start] == min(off)  # and none lie nearer to the centre
            if not held_out:
                starts.append(start)
            wanted |= {
                (task, variant, s, unique, round(budget), seed)
                for task in study.tasks for s in found for unique in study.unique for seed in range(seeds)
            }  # fmt: skip
        assert starts == sorted(starts)  # re-centred: more compute, larger sizes
    assert set(cells) == wanted
    for run in train:
        budgets = [cell.budget for cell in run.cells]
        assert budgets == sorted(budgets)
        assert run.flops == budgets[-1]
        assert all(cell.held_out == (cell.budget in study.hold_out) for cell in run.cells)
        assert (run.steps - 1) * run.flops_per_sample * run.samples_per_step < run.flops
        tuners = [plan.run(name) for name in run.tuned_by]
        assert len(tuners) == len(study.tuning.candidates)
        assert all((t.task, t.variant, t.size, t.batch_size) == (run.task, run.variant, run.size, run.batch_size)
                   for t in tuners)  # fmt: skip
    kinds = [run.kind for run in plan.runs]
    assert kinds == sorted(kinds, reverse=True)  # short runs have the lower completion indices
    assert parse(Plan, json.loads(json.dumps(to_json(plan))), "plan") == plan


def _off(sizes: list[Size], centre: float, variant: str) -> float:
    base = variant if variant == "small" else "base"  # the one with a centre of its own
    logs = [math.log(_measure("a", base, size).params) for size in sizes]
    return abs(sum(logs) / len(logs) - math.log(centre))


def test_a_window_at_the_edge_is_whole() -> None:
    assert window_of([1, 2, 4, 8, 16], 1e-3, 3) == range(3)
    assert window_of([1, 2, 4, 8, 16], 1e9, 3) == range(2, 5)
    assert window_of([1, 2, 4, 8, 16], 4, 3) == range(1, 4)
    assert window_of([1, 2], 4, 7) == range(2)


def test_the_batch_is_halved_until_there_are_enough_steps() -> None:
    facts = _measure("a", "base", 10)  # 6,000 FLOPs a sample
    rule = Batch(steps_at_least=100, smallest=16)
    assert batch_rule(rule, facts, 1e9) == 64
    assert batch_rule(rule, facts, 100 * 32 * 6000) == 32
    assert batch_rule(rule, facts, 1.0) == 16
    assert batch_rule(Batch(), facts, 1.0) == 64


def test_variants_with_sizes_of_their_own_and_a_fixed_rate() -> None:
    study = Study(
        study="s", tier="t", family="atari", tasks=("a",), size=Sizes(dial="width", values=(4, 8, 16)),
        budgets=(1e8, 1e9), seeds=(2, 1), tuning=Tuning(candidates=(1e-3, 2e-3), budget=1e7),
        variants={"base": Variant(), "fixed": Variant(training={"lr": 0.5}, sizes=(8,), budgets=(1e9,), seeds=(3,))},
    )  # fmt: skip
    plan = make_plan(study, _measure)
    fixed = [run for run in plan.runs if run.variant == "fixed"]
    assert [(run.size, run.seed, [c.budget for c in run.cells]) for run in fixed] == [
        (8, 0, [10**9]), (8, 1, [10**9]), (8, 2, [10**9]),
    ]  # fmt: skip
    assert all(not run.tuned_by and run.lr is not None for run in fixed)
    short = [run for run in plan.runs if run.kind == "tune"]
    assert {(run.size, run.lr) for run in short} == {(s, lr) for s in (4, 8, 16) for lr in (1e-3, 2e-3)}
    assert {run.flops for run in short} == {10**7}
    with pytest.raises(BadSettingError, match=r"sizes \[5\], which are none of the dial's"):
        make_plan(Study(**{**_fields(study), "variants": {"base": Variant(sizes=(5,))}}), _measure)


def _fields(study: Study) -> dict[str, object]:
    return {name: getattr(study, name) for name in Study.__slots__}


def test_a_plan_may_grow_but_not_change_what_was_begun(tmp_path: Path) -> None:
    study = Study(
        study="s", tier="t", family="atari", tasks=("a",), size=Sizes(dial="width", values=(4, 8)), budgets=(1e8,)
    )
    folder = GridFolder(tmp_path)
    plan = make_plan(study, _measure)
    folder.write_plan(plan)
    larger = make_plan(Study(**{**_fields(study), "budgets": (1e8, 1e9)}), _measure)
    folder.write_plan(larger)
    assert folder.plan() == larger
    folder.run(plan.runs[0].name).mkdir(parents=True)
    other = make_plan(Study(**{**_fields(study), "batch": Batch(steps_at_least=10**9)}), _measure)
    with pytest.raises(StateError, match="of another plan"):
        folder.write_plan(other)
    # Windows that are centred anew leave some sizes out: what they left stays, and is no hindrance.
    folder.write_plan(make_plan(Study(**{**_fields(study), "size": Sizes(dial="width", values=(8, 16))}), _measure))
    assert plan.runs[0].name not in {run.name for run in folder.plan().runs}
    # When the size comes back, it has to be what it was.
    folder.write_plan(plan)
    with pytest.raises(StateError, match="of another plan"):
        folder.write_plan(other)
