"""``playserve rl``: settings from flags, presets and the run's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError, StateError
from playserve.files import write_json
from playserve_trainer.commands import rl


def settings(*argv: str, resume: bool = False) -> Any:
    parser = argparse.ArgumentParser()
    rl.configure(parser)
    args = parser.parse_args(["learn", *argv])
    given = rl._given(args)
    return rl._resumed(Path(args.out), given) if resume else rl._new(Path(args.out), args.family, given)


def test_flags_stand_over_presets_and_these_over_defaults(tmp_path: Path) -> None:
    out = str(tmp_path)
    config = settings("nethack", "--out", out, "--minutes", "5", "--model", "layers=2", "--num-envs", "32")
    assert config.game == "mon-hum-neu-mal"
    assert dict(config.model) == {"width": 192, "layers": 2}
    assert (config.num_envs, config.discount, config.seed) == (32, 0.999, 0)
    config = settings(
        "atari", "--game", "pong", "--out", out, "--max-flops", "1e12", "--env-option", "stickiness=0.25",
        "--no-life-ends",
    )  # fmt: skip
    assert dict(config.env_options) == {"stickiness": 0.25}
    assert not config.life_ends


def test_wrong_commands_are_named(tmp_path: Path) -> None:
    out = str(tmp_path)
    for argv, word in (
        (("atari", "--out", out, "--minutes", "1"), "game"),
        (("atari", "--out", out, "--game", "pong"), "limit"),
        (("atari", "--out", out, "--game", "pong", "--minutes", "1", "--model", "width"), "KEY=JSON"),
    ):
        with pytest.raises(BadSettingError, match=word):
            settings(*argv)
    with pytest.raises(NotFoundError):
        settings("atari", "--out", out, resume=True)
    (tmp_path / "state.safetensors").touch()
    with pytest.raises(StateError, match="resume"):
        settings("atari", "--out", out, "--game", "pong", "--minutes", "1")


def test_a_resumed_run_keeps_what_decides_and_takes_a_new_limit(tmp_path: Path) -> None:
    before = settings("atari", "--game", "pong", "--out", str(tmp_path), "--minutes", "1")
    write_json(tmp_path / "config.json", before.to_json())
    after = settings("atari", "--out", str(tmp_path), "--max-steps", "500", resume=True)
    assert (after.max_minutes, after.max_steps, after.game) == (0.0, 500, "pong")
    with pytest.raises(BadSettingError, match="lr was"):
        settings("atari", "--out", str(tmp_path), "--lr", "0.5", resume=True)


def test_curves_are_drawn_from_what_a_run_has_written_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"steps": 10, "frames": 40, "return_mean": None, "entropy": 1.0, "lag_updates": 2.0, "lag_versions": 0.5}
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps({**line, "return_mean": r}) + "\n" for r in (None, 2.5)))
    (tmp_path / "episodes.jsonl").write_text(json.dumps({"steps": 8, "score": 2.5}) + "\n")
    parser = argparse.ArgumentParser()
    rl.configure(parser)
    out = tmp_path / "curve.png"
    assert rl.run(parser.parse_args(["curve", str(tmp_path), "--out", str(out), "--goal", "5"])) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "curve.jsonl").write_text("{")
    with pytest.raises(DataLossError):
        rl.run(parser.parse_args(["curve", str(tmp_path), "--out", str(out)]))
    with pytest.raises(NotFoundError):
        rl.run(parser.parse_args(["curve", str(tmp_path / "none"), "--out", str(out)]))
