import pytest
import torch
from torch import nn

from playserve.errors import NotImplementedHereError
from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
from playserve_trainer.flops import count_flops, flops_6nd, tuyls_atari_flops
from playserve_trainer.models.policy import ForwardOutput, Policy
from playserve_trainer.models.registry import build


class Probe(Policy):
    """Any layer that takes [B, T, *shape]."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def spec(self) -> PolicySpec:
        inputs = (TensorSpec(name="x", dtype="float32", shape=self.shape),)
        return PolicySpec(name="probe", family="probe", inputs=inputs, action=DiscreteActionSpec(n=2))

    def state_layout(self):
        return {}

    def forward(self, inputs, executed_BTH, first_BT, state=None):
        x = inputs["x"]
        self.layer(x.flatten(0, 1) if len(self.shape) > 1 else x)
        return ForwardOutput((x,), {})

    def step(self, inputs, executed_BH, memory, sample):
        raise AssertionError("counting does not step")


# The 'true' and 'reported' columns of the table in scaling.md, 4 actions, per training sample.
@pytest.mark.parametrize(
    ("width", "exact", "published"),
    [(1, 6.429e5, 1.093e7), (8, 6.61e6, 9.28e7), (23, 2.80e7, 2.99e8), (50, 9.62e7, 7.78e8), (117, 4.30e8, 2.56e9),
     (266, 2.01e9, 9.56e9)],
)  # fmt: skip
def test_atari_exact_and_as_published(width: int, exact: float, published: float) -> None:
    policy = build("atari", {"game": "breakout", "num_actions": 4, "width": width})
    count = count_flops(policy)
    assert count.training == 3 * count.forward
    assert count.training == pytest.approx(exact, rel=2e-3)
    assert tuyls_atari_flops(width, 4) == pytest.approx(published, rel=2e-3)


def test_atari_by_layer_by_hand() -> None:
    count = count_flops(build("atari", {"game": "breakout", "num_actions": 4, "width": 1}))
    assert dict(count.by_layer) == {
        "conv1": 20 * 20 * 1 * 2 * (8 * 8 * 4),
        "conv2": 9 * 9 * 2 * 2 * (4 * 4 * 1),
        "conv3": 7 * 7 * 2 * 2 * (3 * 3 * 2),
        "head": 2 * 98 * 4,
    }
    assert "output size" in count.convention


def test_a_recurrent_policy_costs_the_same_at_every_length() -> None:
    policy = build("tiny_recurrent", {"hidden": 16, "num_actions": 3, "value_head": False})
    count = count_flops(policy)
    assert count.by_layer["cell"] == 2 * 4 * 16 * (16 + 16)
    assert count.by_layer["head"] == 2 * 16 * 3
    assert count_flops(policy, num_steps=7) == count


@pytest.mark.parametrize(
    ("layer", "shape", "forward"),
    [
        (nn.Linear(5, 7, bias=False), (5,), 2 * 5 * 7),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 10), 2 * (6 * 5) * 2 * 3),
        (nn.Conv2d(4, 8, (3, 1), dilation=2), (4, 9, 5), 2 * (8 * 5 * 5) * 4 * 3),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 2 * (2 * 2 * 2 * 2) * 8),
        (nn.GRU(5, 6, batch_first=True), (5,), 2 * 3 * 6 * (5 + 6)),
        (nn.LSTM(5, 6, num_layers=2, batch_first=True), (5,), 2 * 4 * 6 * (5 + 6) + 2 * 4 * 6 * (6 + 6)),
        (nn.GRU(5, 6, 2, batch_first=True, bidirectional=True), (5,), 2 * (2 * 3 * 6 * 11 + 2 * 3 * 6 * 18)),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()), (4,), 2 * 4 * 4),
    ],
)
def test_layers_by_hand(layer: nn.Module, shape: tuple[int, ...], forward: int) -> None:
    assert count_flops(Probe(layer, shape), num_steps=2).forward == forward


def test_a_layer_used_twice_counts_twice() -> None:
    shared = nn.Linear(4, 4)
    assert count_flops(Probe(nn.Sequential(shared, nn.ReLU(), shared), (4,))).forward == 2 * 2 * 4 * 4


def test_a_layer_without_a_rule_is_refused_not_counted_as_nothing() -> None:
    with pytest.raises(NotImplementedHereError, match=r"'layer' is a Bilinear"):
        count_flops(Probe(nn.Bilinear(2, 2, 2), (2,)))


def test_open_dimensions_need_a_size() -> None:
    probe = Probe(nn.Conv1d(2, 2, 1), (2, -1))
    with pytest.raises(ValueError, match=r"'x' has open dimensions"):
        count_flops(probe)
    assert count_flops(probe, open_size=5).forward == 2 * 2 * 2 * 5


def test_counting_leaves_the_policy_alone() -> None:
    policy = build("tiny_recurrent", {"hidden": 8})
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    random_state = torch.get_rng_state()
    count_flops(policy)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert not any(module._forward_hooks for module in policy.modules())


def test_6nd() -> None:
    assert flops_6nd(725, 1_000) == 4_350_000
