from pathlib import Path

import pytest

from playserve.cli import build_parser
from playserve_trainer.demo.plan import FULL_PLAN, QUICK_PLAN, DemoPlan
from playserve_trainer.demo.steps import data_folder, playing, publishing, recording, serving, training

OUT = Path("runs/demo")


@pytest.mark.parametrize("plan", [FULL_PLAN, QUICK_PLAN], ids=["full", "quick"])
def test_every_command_is_one_that_playserve_takes(plan: DemoPlan) -> None:
    parser = build_parser()
    for game in plan.games:
        play = parser.parse_args(list(playing(plan, game, OUT, "127.0.0.1:1234").command))
        assert (play.server, play.episodes) == ("127.0.0.1:1234", game.episodes)
        if game.carried:
            publish = parser.parse_args(list(publishing(game.game, Path("folder"), OUT).command))
            assert (publish.policy, publish.store, publish.directory) == ("doom", "runs/demo/store", "folder")
            continue
        record = parser.parse_args(list(recording(plan, game, OUT).command))
        wanted = OUT / "data" if game.family == "atari" else data_folder(game, OUT)
        assert (record.steps, record.out) == (game.steps, wanted)
        train = parser.parse_args([*training(game, OUT).command, "--resume"])
        assert (train.publish, train.store, train.max_minutes) == (game.game, "runs/demo/store", game.minutes)
        assert play.record == game.recorded_games
    assert parser.parse_args(list(serving(OUT))).store == "runs/demo/store"


def test_the_full_demo_has_the_goals_that_were_set() -> None:
    made = {game.game: game.goal for game in FULL_PLAN.games if not game.carried}
    assert made == {"freeway": 26.0, "breakout": 10.0, "nethack": 100.0}
    assert sum(game.minutes for game in FULL_PLAN.games) < 9, "training alone must leave time for everything else"


def test_one_game_only() -> None:
    assert [game.game for game in QUICK_PLAN.only(["breakout"]).games] == ["breakout"]
