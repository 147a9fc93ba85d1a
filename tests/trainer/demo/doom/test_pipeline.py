import io
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from playserve_trainer.demo.doom.pipeline import is_recorded, run_doom
from playserve_trainer.demo.doom.plan import DoomPlan

Finished = Callable[..., tuple[DoomPlan, Path]]


def run(plan: DoomPlan, out: Path) -> tuple[int, str]:
    text = io.StringIO()
    return run_doom(plan, out, Console(file=text, soft_wrap=True, highlight=False)), text.getvalue()


def test_finished_stages_are_kept_and_everything_is_written_anew(finished: Finished) -> None:
    plan, out = finished()
    for _ in range(2):
        status, text = run(plan, out)
        assert status == 0, text
        assert text.count(": kept") == 3  # recorded, trained, and all the rest
        assert "met     two_vests: green, unseen phrasings: 1.00 [0.61, 1.00], wanted 0.8; the lower bound does" in text
        assert "chance (random)" in text
    value = json.loads((out / "results.json").read_text())
    assert value["record_and_train_seconds"] == 120.0  # by what they wrote of themselves: no stage ran here
    report = (out / "report.md").read_text()
    assert "|map: goal|episodes|unseen|trained|no text|wrong text|chance (random)|idle|expert|" in report
    assert "|two_vests: red|6|100% [61%, 100%]|100% [51%, 100%]|50% [15%, 85%]|0% [0%, 49%]|25%|0%|100%|" in report
    assert "a fifth of the frames is random" in report


def test_the_page_holds_its_films_and_asks_for_nothing(finished: Finished) -> None:
    plan, out = finished()
    run(plan, out)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "data:video/mp4;base64,ZmlsbXM=" in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "kill &lt;it&gt;" in page
    assert "Through the desktop" in page


def test_a_missed_limit_is_status_1(finished: Finished) -> None:
    plan, out = finished(obeys=0.5)
    status, text = run(plan, out)
    assert status == 1
    assert "MISSED  two_vests: red, unseen phrasings: 0.50" in text


def test_too_few_frames_of_one_goal_are_recorded_again(finished: Finished) -> None:
    plan, out = finished()
    assert is_recorded(plan, out / "data")
    summary = json.loads((out / "data" / "summary.json").read_text())
    summary["goals"][1]["frames"] -= 1
    (out / "data" / "summary.json").write_text(json.dumps(summary))
    assert not is_recorded(plan, out / "data")
