import math

import pytest
import torch
from torch.nn import functional as F

from playserve.errors import BadSettingError
from playserve.specs import DiscreteActionSpec, PolicySpec
from playserve_trainer.models.atari import AtariConfig, AtariPolicy


def _policy(width: int = 3, **changes: object) -> AtariPolicy:
    torch.manual_seed(0)
    return AtariPolicy(AtariConfig(**{"game": "breakout", "num_actions": 4, "width": width, **changes}))


def _frames(*lead: int) -> torch.Tensor:
    return torch.randint(0, 256, (*lead, 84, 84, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("width", "num_params"),
    [(1, 725), (3, 2_575), (5, 4_969), (8, 9_580), (13, 19_985), (23, 50_995), (34, 100_814), (50, 202_654),
     (81, 499_045), (117, 1_007_257), (167, 2_005_507), (266, 4_985_110)],
)  # fmt: skip
def test_sizes_are_those_of_the_paper(width: int, num_params: int) -> None:
    with torch.device("meta"):
        policy = _policy(width)
    assert policy.num_params() == num_params


def test_the_net_is_the_papers_net_on_pixels_between_0_and_1() -> None:
    policy, frames = _policy(), _frames(2)
    x = frames.permute(0, 3, 1, 2).float() / 255
    x = F.relu(F.conv2d(x, policy.conv1.weight, policy.conv1.bias, stride=4))
    x = F.relu(F.conv2d(x, policy.conv2.weight, policy.conv2.bias, stride=2))
    x = F.conv2d(x, policy.conv3.weight, policy.conv3.bias)  # no ReLU after the third
    torch.testing.assert_close(policy.logits(frames), policy.head(x.flatten(1)), atol=1e-5, rtol=1e-5)


def test_background_and_scale_are_as_if_the_pixels_were_changed() -> None:
    policy, frames = (
        AtariPolicy(AtariConfig(game="x", num_actions=4, width=3, pixel_background=142.0, pixel_scale=52.6)),
        _frames(2),
    )
    x = (frames.permute(0, 3, 1, 2).float() - 142.0) / 52.6
    torch.testing.assert_close(
        policy.conv1(frames.permute(0, 3, 1, 2).float()),
        F.conv2d(x, policy.conv1.weight, policy.conv1.bias, stride=4),
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    # Empty screen is nothing, also in bfloat16: what the weights lose by rounding is taken off again.
    empty = torch.full((1, 4, 84, 84), 142, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert policy.conv1(empty).abs().max() < 0.05


def test_bfloat16_is_near_float32_under_autocast_and_as_weights() -> None:
    policy, frames = _policy(), _frames(2)
    wanted = policy.logits(frames)
    with torch.autocast("cpu", torch.bfloat16):
        got = policy.logits(frames)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, atol=0.01, rtol=0.05)
    torch.testing.assert_close(policy.to(torch.bfloat16).logits(frames).float(), wanted, atol=0.01, rtol=0.05)


def test_starts_without_a_preference() -> None:
    logits = _policy(width=8).logits(_frames(8))
    loss = F.cross_entropy(logits, torch.arange(8) % 4)
    assert loss.item() == pytest.approx(math.log(4), abs=0.1)


def test_learns_to_tell_two_screens_apart() -> None:
    torch.manual_seed(0)
    policy, frames, labels = _policy(width=1), _frames(2), torch.tensor([0, 3])
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(policy.logits(frames), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert policy.logits(frames).argmax(1).tolist() == [0, 3]


def test_spec_says_what_the_environment_was() -> None:
    spec = _policy(action_names=("NOOP", "FIRE", "RIGHT", "LEFT"), stickiness=0.25, resize_id="area84").spec()
    assert spec.family == "atari"
    assert [(t.name, t.dtype, t.shape, t.resize_id) for t in spec.inputs] == [
        ("frames", "uint8", (84, 84, 4), "area84")
    ]
    assert spec.action == DiscreteActionSpec(n=4, names=("NOOP", "FIRE", "RIGHT", "LEFT"))
    assert spec.environment == {"game": "breakout", "frame_skip": "4", "frame_stack": "4", "stickiness": "0.25"}
    assert spec.context_frames == 1
    assert not spec.uses_executed_actions
    assert PolicySpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 0}, "width"),
        ({"num_actions": 0}, "num_actions"),
        ({"frame_skip": 0}, "frame_skip"),
        ({"stickiness": 1.5}, "stickiness"),
        ({"action_names": ("UP",)}, "1 action names for 4"),
        ({"game": ""}, "game"),
    ],
)
def test_a_config_out_of_range_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(BadSettingError, match=named):
        AtariConfig(**{"game": "breakout", "num_actions": 4, "width": 1, **changes})
