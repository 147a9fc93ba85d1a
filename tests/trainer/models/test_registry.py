from typing import Any

import pytest

from playserve.errors import BadSettingError
from playserve_trainer.models.atari import AtariConfig
from playserve_trainer.models.registry import FAMILIES, build, config_from_json, config_to_json, describe
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

ATARI: dict[str, Any] = {"game": "pong", "num_actions": 6, "width": 1}
P2P: dict[str, Any] = {"layers": 1, "width": 32, "heads": 2, "decoder_heads": 2, "trunk": "conv3", "frame_size": 32}


@pytest.mark.parametrize(
    "config",
    [
        AtariConfig(game="freeway", num_actions=3, width=2, action_names=("NOOP", "UP", "DOWN"), stickiness=0.25),
        TinyRecurrentConfig(num_actions=5, observation_shape=(2, 3, 4), observation_dtype="float32", rate_hz=20.0),
    ],
)
def test_a_config_survives_json(config: AtariConfig | TinyRecurrentConfig) -> None:
    assert config_from_json(type(config), config_to_json(config)) == config


@pytest.mark.parametrize(("family", "config"), [("atari", ATARI), ("p2p", P2P), ("tiny_recurrent", {"hidden": 8})])
def test_build_and_describe_are_inverse(family: str, config: dict[str, Any]) -> None:
    policy = build(family, config)
    assert type(policy) is FAMILIES[family].policy
    assert policy.spec().family == family
    name, described = describe(policy)
    assert name == family
    assert config.items() <= described.items()
    assert describe(build(name, described)) == (name, described)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ATARI | {"widht": 3, "depth": 1}, r"\['depth', 'widht'\]"),
        ({"game": "pong"}, r"missing keys \['num_actions', 'width'\]"),
        (ATARI | {"width": "3"}, "AtariConfig.width: '3' is str, not int"),
        (ATARI | {"width": True}, "AtariConfig.width: True is bool, not int"),
        (ATARI | {"action_names": "UP"}, "AtariConfig.action_names: 'UP' is not a list"),
        (ATARI | {"action_names": ["A", "B", "C", "D", "E", 6]}, r"action_names\[5\]: 6 is int, not str"),
    ],
)
def test_a_bad_config_is_refused_with_its_keys(config: dict[str, Any], named: str) -> None:
    with pytest.raises(BadSettingError, match=named):
        build("atari", config)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadSettingError, match=r"'atary' is none of atari, .*nethack, p2p, tiny_recurrent"):
        build("atary", {})


def test_a_policy_of_no_family_is_refused() -> None:
    class Stranger(TinyRecurrentPolicy):
        pass

    with pytest.raises(BadSettingError, match="Stranger"):
        describe(Stranger(TinyRecurrentConfig()))
