from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from playserve.errors import (
    BadActionError,
    BadSettingError,
    DTypeMismatchError,
    InputMissingError,
    InputUnknownError,
    ShapeMismatchError,
)
from playserve.specs import DesktopActionSpec, DiscreteActionSpec, PolicySpec, TensorSpec
from playserve_client.evaluate.observations import EnvSpec, SharedRows, match_inputs

ARRAY = EnvSpec(inputs={"": ("uint8", (84, 84, 4))}, num_actions=4)
NAMED = EnvSpec(inputs={"a": ("uint8", (2,)), "b": ("float32", (3, 1)), "c": ("int64", ())}, num_actions=4)


def tensor(name="frames", dtype="uint8", shape=(84, 84, 4), optional=False):
    return TensorSpec(name=name, dtype=dtype, shape=shape, optional=optional)


def policy(*inputs, actions=4):
    action = DiscreteActionSpec(n=actions) if actions else DesktopActionSpec(keys=("KeyA",))
    return PolicySpec(name="p", family="f", inputs=inputs, action=action)


def test_one_array_is_the_one_required_input():
    assert match_inputs(ARRAY, policy(tensor(), tensor("hint", optional=True))) == {"frames": ""}
    assert match_inputs(ARRAY, policy(tensor(shape=(-1, -1, 4)))) == {"frames": ""}


def test_named_arrays_go_by_name_and_may_be_more_than_the_policy_takes():
    assert match_inputs(NAMED, policy(tensor("b", "float32", (3, 1)), tensor("a", "uint8", (2,)))) == {
        "a": "a",
        "b": "b",
    }


@pytest.mark.parametrize(
    ("env", "spec", "error", "words"),
    [
        (ARRAY, policy(tensor(), actions=6), BadActionError, "6 actions.*takes 4"),
        (ARRAY, policy(tensor(), actions=0), BadActionError, "desktop"),
        (ARRAY, policy(tensor(), tensor("more")), InputMissingError, "one array"),
        (ARRAY, policy(tensor(dtype="float32")), DTypeMismatchError, "uint8.*float32"),
        (ARRAY, policy(tensor(shape=(84, 84, 3))), ShapeMismatchError, r"84, 84, 4.*84, 84, 3"),
        (NAMED, policy(tensor("z")), InputMissingError, "'z'"),
        (NAMED, policy(tensor("z", optional=True)), InputUnknownError, "nothing"),
    ],
)
def test_what_does_not_fit_is_named(env, spec, error, words):
    with pytest.raises(error, match=words):
        match_inputs(env, spec)


class _Env:
    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action


def test_spec_of_an_environment():
    spaces = gymnasium.spaces
    box = spaces.Box(0, 1, (2, 3), np.float32)
    spec = EnvSpec.of(_Env(spaces.Dict({"x": box, "n": spaces.Discrete(5)}), spaces.Discrete(3, start=1)))
    assert spec.inputs == {"x": ("float32", (2, 3)), "n": ("int64", ())}
    assert (spec.num_actions, spec.first_action) == (3, 1)
    assert EnvSpec.from_json(spec.to_json()) == spec
    with pytest.raises(BadSettingError, match="Discrete"):
        EnvSpec.of(_Env(box, box))
    with pytest.raises(BadSettingError, match="arrays"):
        EnvSpec.of(_Env(spaces.Text(5), spaces.Discrete(2)))


def test_rows_in_shared_memory_are_seen_by_who_attaches():
    ours = SharedRows.create(NAMED, 3)
    try:
        theirs = SharedRows.attach(ours.name, NAMED, 3)
        theirs.write(1, {"a": np.array([7, 8], np.uint8), "b": np.full((3, 1), 0.5, np.float32), "c": -4, "more": 1})
        theirs.close()
        assert ours.read("a", [1, 0]).tolist() == [[7, 8], [0, 0]]
        assert ours.read("b", [1]).dtype == np.float32
        assert ours.read("c", [1, 2]).tolist() == [-4, 0]
    finally:
        ours.close(destroy=True)
