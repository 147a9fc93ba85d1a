"""Settings: checked when they are made, kept as JSON, the same on resume."""

import json
from typing import Any

import pytest

from playserve.errors import BadSettingError
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.optimize import learning_rate
from playserve_trainer.train.stop import fraction_done


def _config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"family": "atari", "task": "pong", "data": "d", "out": "o", "max_steps": 10, **settings})


def test_json_round_trip() -> None:
    config = _config(model={"width": 8}, max_minutes=2.5, max_flops=10**15)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is above 0, not -1"),
        ({"lr": float("nan")}, "lr is above 0"),
        ({"lr": "fast"}, "lr is float, not 'fast'"),
        ({"batch_size": 0}, "batch_size is at least 1, not 0"),
        ({"batch_size": True}, "batch_size is int"),
        ({"optimizer": "sgd"}, "optimizer is one of adamw, adam, not 'sgd'"),
        ({"held_out": 1.0}, "held_out is at least 0 and below 1"),
        ({"max_steps": None}, "give the run a limit"),
        ({"max_steps": 0}, "max_steps is above 0"),
        ({"schedule": "constant", "final_lr_fraction": 0.1}, "no effect"),
        ({"model": 3}, "model is"),
    ],
)
def test_wrong_and_contradictory_settings_are_typed_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettingError, match=message):
        _config(**settings)


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(BadSettingError, match=r"unknown \['learning_rate'\], missing \['task'\]"):
        TrainConfig.from_json({"family": "atari", "data": "d", "out": "o", "learning_rate": 1, "max_steps": 1})


def test_learning_rate_warms_up_and_falls() -> None:
    config = _config(lr=1.0, warmup_steps=4, final_lr_fraction=0.1)
    assert [learning_rate(config, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(config, 99, 0.5) == pytest.approx(0.55)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.1)
    assert learning_rate(_config(lr=1.0, warmup_steps=0, schedule="constant"), 0, 0.9) == 1.0


def test_the_nearest_limit_counts() -> None:
    config = _config(max_steps=100, max_samples=1000, max_minutes=1.0)
    assert fraction_done(config, steps=10, samples=500, flops=10**18, elapsed_s=6.0) == 0.5
    assert fraction_done(config, steps=10, samples=50, flops=0, elapsed_s=60.0) == 1.0
