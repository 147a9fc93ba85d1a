"""The nethack recipe: settings from flags, the character's games, and the guesses that the loss is compared with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from playserve.errors import BadSettingError, NotFoundError
from playserve_client.nethack.keys import ACTION_KEYS, ACTION_NAMES, NUM_ACTIONS
from playserve_client.nethack.shards import GameMeta, ShardWriter
from playserve_client.nethack.stats import KeyStatistics
from playserve_client.nethack.tty import TtyChunk
from playserve_trainer import checkpoint
from playserve_trainer.commands import train
from playserve_trainer.data.key_baselines import key_baselines
from playserve_trainer.data.nethack import NoKeysError
from playserve_trainer.flops import count_flops
from playserve_trainer.models.nethack import NetHackPolicy
from playserve_trainer.recipes import nethack
from playserve_trainer.train.config import TrainConfig

MONK, WIZARD = "mon-hum-neu-mal", "wiz-elf-cha-fem"
FRAMES = 90
KEYS = np.array(ACTION_KEYS[:4], np.uint8)  # k l j h

Write = Callable[..., Path]


def _chunk(seed: int) -> TtyChunk:
    """Return a game in which an arrow beside the cursor says what the expert does."""
    rng = np.random.default_rng(seed)
    choice = rng.integers(0, 4, FRAMES)
    chars = np.full((FRAMES, 24, 80), 32, np.uint8)
    chars[np.arange(FRAMES), 10, 41] = np.frombuffer(b"^>v<", np.uint8)[choice]
    return TtyChunk(
        chars,
        np.full((FRAMES, 24, 80), 7, np.int8),
        np.full((FRAMES, 2), (10, 40), np.uint8),
        KEYS[choice],
        np.zeros(FRAMES, np.int32),
        np.ones(FRAMES, np.bool_),
    )


@pytest.fixture
def write_games(tmp_path: Path) -> Write:
    def write(characters: Sequence[str] = (MONK,) * 6, *, has_keys: bool = True) -> Path:
        folder = tmp_path / "games"
        with ShardWriter(folder) as writer:
            for seed, character in enumerate(characters):
                writer.begin(
                    GameMeta(
                        name=f"{seed}", character=character, source="test", score=seed, steps=FRAMES, seed=seed,
                        has_keys=has_keys,
                    )
                )  # fmt: skip
                writer.append(_chunk(seed))
                writer.end()
        return folder

    return write


def _main(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    return train.run(parser.parse_args(["nethack", *argv]))


def _new(data: Path, out: Path, *more: str) -> list[str]:
    small = ["--width", "32", "--batch-size", "4", "--sequence-length", "8", "--threads", "1", "--save-every-s", "0"]
    return ["--data", str(data), "--out", str(out), *small, "--held-out", "0.3", *more]


def _config(data: Path, **given: object) -> TrainConfig:
    flags = {"data": str(data), "out": str(data), "max_steps": 1, "width": 32, "batch_size": 2, "held_out": 0.3}
    return TrainConfig.from_json(nethack.settings({**flags, **given}))


def test_flags_override_the_cores_settings() -> None:
    plain = nethack.settings({"data": "d", "out": "o"})
    assert (plain["task"], plain["family"]) == (MONK, "nethack")
    changed = nethack.settings({"character": WIZARD, "core": "transformer", "context": 9, "lr": 0.5, "inventory": True})
    assert changed["task"] == WIZARD
    assert changed["model"] == {**plain["model"], "core": "transformer", "context": 9, "inventory": True}
    assert changed["lr"] == 0.5
    assert nethack.settings({"data": "d", "out": "o"}) == plain


def test_the_policy_is_the_characters_with_all_keys(write_games: Write) -> None:
    prepared = nethack.prepare(_config(write_games()))
    assert isinstance(prepared.policy, NetHackPolicy)
    assert prepared.policy.config.character == MONK
    assert prepared.policy.config.action_names == ACTION_NAMES
    assert prepared.source.carries_state


def test_only_games_of_the_character_are_learnt(write_games: Write) -> None:
    data = write_games((MONK, WIZARD) * 4)
    assert nethack.prepare(_config(data)).report.episodes == 4
    assert nethack.prepare(_config(data, character="@")).report.episodes == 8
    with pytest.raises(NotFoundError, match=r"no game of 'arc-dwa-law-fem'.*mon-hum-neu-mal, wiz-elf-cha-fem"):
        nethack.prepare(_config(data, character="arc-dwa-law-fem"))


def test_screens_without_keys_are_refused(write_games: Write) -> None:
    with pytest.raises(NoKeysError, match="nothing to imitate"):
        nethack.prepare(_config(write_games(has_keys=False)))


def test_an_inventory_that_is_not_there_is_refused(write_games: Write) -> None:
    with pytest.raises(BadSettingError, match="without inventory glyphs"):
        nethack.prepare(_config(write_games(), inventory=True))


@pytest.mark.parametrize("core", ["lstm", "transformer"])
def test_what_the_screen_says_is_learnt_and_the_summary_tells_so(write_games: Write, tmp_path: Path, core: str) -> None:
    out = tmp_path / "run"
    assert (
        _main(*_new(write_games(), out, "--core", core, "--max-steps", "80", "--lr", "0.005", "--warmup-steps", "5"))
        == 0
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out"]["accuracy"] > 0.9
    baselines = {baseline["name"]: baseline for baseline in summary["baselines"]}
    assert set(baselines) == {"most_frequent", "frequencies", "bigram"}
    assert all(baseline["accuracy"] < 0.5 for baseline in baselines.values())
    assert all(summary["held_out"]["loss"] < baseline["loss"] for baseline in baselines.values())
    policy, manifest = checkpoint.load(out / "checkpoint")
    assert manifest.flops == manifest.samples_seen * count_flops(policy, 8).training
    assert manifest.samples_seen == 80 * 4 * 8


def test_without_the_map_the_arrow_beside_the_cursor_is_not_seen(write_games: Write, tmp_path: Path) -> None:
    data, short = write_games(), ("--max-steps", "60", "--lr", "0.005", "--warmup-steps", "5")
    accuracy = {}
    for flag in ("--no-map", "--no-message"):
        assert _main(*_new(data, tmp_path / flag, flag, *short)) == 0
        accuracy[flag] = json.loads((tmp_path / flag / "summary.json").read_text())["held_out"]["accuracy"]
    assert accuracy["--no-map"] < 0.5 < 0.7 < accuracy["--no-message"]
    config = checkpoint.read_manifest(tmp_path / "--no-map" / "checkpoint").config
    assert (config["message"], config["map"]) == (True, False)
    # A resumed run is as blind as it was.
    assert _main("--out", str(tmp_path / "--no-map"), "--resume", "--max-steps", "62") == 0


def test_a_run_goes_on_with_its_own_settings(write_games: Write, tmp_path: Path) -> None:
    data, whole, cut = write_games(), tmp_path / "whole", tmp_path / "cut"
    constant = ["--schedule", "constant"]
    assert _main(*_new(data, whole, *constant, "--max-steps", "12")) == 0
    assert _main(*_new(data, cut, *constant, "--max-steps", "7")) == 0
    with pytest.raises(BadSettingError, match="model was"):
        _main("--out", str(cut), "--resume", "--core", "transformer")
    with pytest.raises(BadSettingError, match="task was"):
        _main("--out", str(cut), "--resume", "--character", WIZARD)
    assert _main("--out", str(cut), "--resume", "--max-steps", "12") == 0
    summaries = [json.loads((out / "summary.json").read_text()) for out in (whole, cut)]
    assert summaries[0]["held_out"] == summaries[1]["held_out"]


def test_baselines_by_hand() -> None:
    def statistics(keys: list[int]) -> KeyStatistics:
        bigram = np.zeros((NUM_ACTIONS, NUM_ACTIONS), np.int64)
        np.add.at(bigram, (keys[:-1], keys[1:]), 1)
        return KeyStatistics(np.bincount(keys, minlength=NUM_ACTIONS), bigram)

    # In training 1 always follows 0, and 0 follows 1 but for once.
    most, frequencies, bigram = key_baselines(statistics([0, 1] * 500 + [1, 0]), statistics([1, 0, 1, 0]))
    assert {baseline.labels for baseline in (most, frequencies, bigram)} == {4}
    assert most.accuracy == frequencies.accuracy == 0.5
    assert bigram.accuracy == pytest.approx(0.75, abs=0.3)  # the first key has none before it
    share = (501 + 1) / (1002 + NUM_ACTIONS)
    assert frequencies.loss == pytest.approx(-np.log(share))
    assert most.loss == pytest.approx(-(np.log(share) + np.log((1 - share) / (NUM_ACTIONS - 1))) / 2)
    assert bigram.loss == pytest.approx(-np.log(share) / 4, abs=0.02)


def test_without_held_out_games_there_is_nothing_to_compare(write_games: Write) -> None:
    prepared = nethack.prepare(_config(write_games(), held_out=0.0))
    assert prepared.held_out is None
    assert prepared.baselines == ()


def test_held_out_frames_do_not_depend_on_the_run_and_say_their_games(write_games: Write) -> None:
    data = write_games()
    games = nethack.read(_config(data))
    found = []
    for rows, steps, seed in ((2, 8, 0), (3, 16, 5)):
        config = _config(data, batch_size=rows, sequence_length=steps, seed=seed)
        prepared = nethack.prepare(config, data=games)
        assert prepared.held_out_as is not None
        its = prepared.held_out_as(64, 10, 1)  # more rows than a few games fill
        assert its.episodes == ("0", "1", "2", "3", "4", "5")
        found.append([its.source.batch(index) for index in range(2)])
    for one, other in zip(*found, strict=True):
        assert one.episodes_BT is not None
        assert other.episodes_BT is not None
        assert (one.episodes_BT == other.episodes_BT).all()
        assert (one.inputs["tty_chars"] == other.inputs["tty_chars"]).all()
        assert set(one.episodes_BT.flatten().tolist()) <= set(games.games.select(held_out=True).tolist())


def test_a_share_of_the_games_is_learnt_from(write_games: Write) -> None:
    data = write_games((MONK,) * 12)
    whole = nethack.prepare(_config(data))
    part = nethack.prepare(TrainConfig.from_json({**_config(data).to_json(), "data_share": 0.5}))
    assert part.source.num_samples < 0.75 * whole.source.num_samples
    assert part.report.digest != whole.report.digest
