import fcntl
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from playserve.errors import BadSettingError, DataLossError
from playserve_trainer.demo.log import DemoLog
from playserve_trainer.demo.pipeline import run_demo
from playserve_trainer.demo.plan import QUICK_PLAN, DemoPlan

Finished = Callable[..., tuple[DemoPlan, Path]]


def run(plan: DemoPlan, out: Path, *, fresh: bool = False) -> tuple[int, str]:
    text = io.StringIO()
    return run_demo(plan, out, Console(file=text, soft_wrap=True, highlight=False), fresh=fresh), text.getvalue()


def test_finished_stages_are_kept_and_the_page_is_made_anew(finished: Finished) -> None:
    plan, out = finished()
    for _ in range(2):
        status, text = run(plan, out)
        assert status == 0
        assert text.count(": kept") == 6
        assert "Breakout: goal met: mean 15, 95% interval 13.5 to 16.5" in text
        assert "sampled: temperature 1" in text
    record = json.loads((out / "demo.json").read_text())
    assert record["goals_met"] is True
    assert [verdict["interval"]["low"] for verdict in record["outcomes"]] == pytest.approx([27.0, 13.5])
    assert (out / record["page"]).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_missed_goal_is_said_and_is_status_1_after_the_page(finished: Finished) -> None:
    plan, out = finished(breakout=9.0)
    status, text = run(plan, out)
    assert status == 1
    assert "Breakout: GOAL MISSED: mean 9, 95% interval 8.10 to 9.90, 24 episodes, is below the goal of 10" in text
    assert "GOAL MISSED" in (out / "index.html").read_text(encoding="utf-8")
    assert json.loads((out / "demo.json").read_text())["goals_met"] is False


def test_a_folder_of_another_plan_is_refused(finished: Finished) -> None:
    plan, out = finished()
    run(plan, out)
    with pytest.raises(BadSettingError, match="begun with another plan"):
        run(QUICK_PLAN, out)


def test_fresh_throws_away_only_what_a_demo_wrote(finished: Finished, tmp_path: Path) -> None:
    plan, out = finished()
    with pytest.raises(BadSettingError, match=r"holds data, rollout, store, train but no demo\.json"):
        run(plan, out, fresh=True)
    assert (out / "data").exists()

    DemoLog.open(out, plan)
    (out / "notes.txt").write_text("mine")
    empty = DemoPlan(name="full", games=())
    assert run(empty, out, fresh=True)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [".lock", "demo.json", "index.html", "notes.txt"]


def test_two_demos_do_not_share_a_folder(finished: Finished) -> None:
    plan, out = finished()
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BadSettingError, match="another demo is at work"):
            run(plan, out)


def test_the_record_keeps_every_attempt(tmp_path: Path) -> None:
    plan = DemoPlan(name="full", games=())
    log = DemoLog.open(tmp_path, plan)
    with pytest.raises(KeyboardInterrupt), log.stage("train", "Train", ["playserve", "train"]):
        raise KeyboardInterrupt
    with pytest.raises(DataLossError), log.stage("train", "Train", ["playserve", "train"]):
        raise DataLossError("x")
    stage = log.stage("train", "Train", ["playserve", "train", "--resume"])
    stage.__enter__()  # killed: never left
    again = DemoLog.open(tmp_path, plan)
    with again.stage("train", "Train", ["playserve", "train", "--resume"]):
        pass
    (kept,) = again.value["stages"]
    assert [attempt["status"] for attempt in kept["attempts"]] == ["interrupted", "failed", "killed", "finished"]
    assert kept["command"][-1] == "--resume"
    assert again.total_s() == again.seconds()["train"] >= 0
    (tmp_path / "demo.json").write_text("[]")
    with pytest.raises(DataLossError, match="--fresh"):
        DemoLog.open(tmp_path, plan)
