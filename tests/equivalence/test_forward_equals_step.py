"""`forward` over a sequence equals `step` over slots, for every family, whatever the slots' neighbours do.

Shape legend: B rows of a batch, T steps, S slots.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from playserve_trainer.models.policy import UNKNOWN_ACTION, Memory, Policy
from playserve_trainer.models.registry import FAMILIES, build

STEPS = 12
ROWS = 3
NUM_ACTIONS = 4
NUM_SLOTS = 8
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}

#: By family, or "family/variant". The transformer's window wraps three times in STEPS.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "atari": {"game": "breakout", "num_actions": NUM_ACTIONS, "width": 2},
    "nethack/lstm": {"num_actions": NUM_ACTIONS, "width": 32, "layers": 2},
    "nethack/transformer": {
        "num_actions": NUM_ACTIONS, "width": 64, "core": "transformer", "layers": 2, "context": 4, "inventory": True,
    },
    "tiny_recurrent": {"num_actions": NUM_ACTIONS, "hidden": 16},
}  # fmt: skip


def test_every_family_is_covered() -> None:
    assert {name.partition("/")[0] for name in CONFIGS} == set(FAMILIES)


@pytest.fixture(params=sorted(CONFIGS))
def policy(request: pytest.FixtureRequest) -> Policy:
    torch.manual_seed(0)
    policy = build(request.param.partition("/")[0], CONFIGS[request.param]).eval().requires_grad_(False)
    # Biases by distance begin as a straight line, on which many wrong distances would not show.
    for name, parameter in policy.named_parameters():
        if name.endswith("bias_HW"):
            parameter.normal_()
    return policy


class Episodes:
    """Random inputs and executed actions of ROWS sequences of STEPS steps."""

    def __init__(self, policy: Policy, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = {}
        for spec in policy.spec().inputs:
            shape = (ROWS, STEPS, *spec.shape)
            self.inputs[spec.name] = torch.randint(0, 256, shape, generator=generator).to(getattr(torch, spec.dtype))
        self.executed_BTH = torch.randint(0, NUM_ACTIONS, (ROWS, STEPS, 1), generator=generator)
        self.first_BT = torch.zeros(ROWS, STEPS, dtype=torch.bool)
        self.first_BT[:, 0] = True
        self.executed_BTH[self.first_BT] = UNKNOWN_ACTION

    def begin(self, row: int, step: int) -> None:
        """Let an episode begin in the middle of a sequence."""
        self.first_BT[row, step] = True
        self.executed_BTH[row, step] = UNKNOWN_ACTION

    def forward(self, policy: Policy) -> Tensor:
        """Return logits [B, T, A], each row computed alone."""
        logits = []
        for row in range(ROWS):
            inputs = {name: tensor[row : row + 1] for name, tensor in self.inputs.items()}
            part = policy(inputs, self.executed_BTH[row : row + 1], self.first_BT[row : row + 1])
            logits.append(part.logits[0])
        return torch.cat(logits)

    def at(self, rows: list[int], steps: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return inputs [B, ...], executed [B, H] and first [B] of some rows, each at its own step."""
        inputs = {name: tensor[rows, steps] for name, tensor in self.inputs.items()}
        return inputs, self.executed_BTH[rows, steps], self.first_BT[rows, steps]


def make_pools(policy: Policy) -> dict[str, Tensor]:
    """Return pools full of what earlier sessions left: garbage, NaN where the dtype has it."""
    pools = {}
    for name, tensor in policy.state_layout().items():
        garbage = float("nan") if tensor.dtype.is_floating_point else 12_345
        pools[name] = torch.full((NUM_SLOTS, *tensor.shape), garbage, dtype=tensor.dtype)
    return pools


def step(
    policy: Policy, pools: dict[str, Tensor], slots: list[int], batch: tuple[dict[str, Tensor], Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Step the slots once; return logits [B, A] and the argmax actions [B] that the policy reported."""
    seen = []

    def sample(logits_BA: Tensor, head: int) -> Tensor:
        assert head == 0
        assert logits_BA.dtype == torch.float32
        seen.append(logits_BA)
        return logits_BA.argmax(-1)

    inputs, executed_BH, first_B = batch
    output = policy.step(inputs, executed_BH, Memory(pools, torch.tensor(slots), first_B), sample)
    assert len(seen) == 1
    assert output.actions_BH.shape == (len(slots), 1)
    assert output.value_B is None or (output.value_B.dtype == torch.float32 and output.value_B.shape == (len(slots),))
    return seen[0], output.actions_BH[:, 0]


def assert_same(got_A: Tensor, action: Tensor, wanted_A: Tensor) -> None:
    """The logits agree, and so does the action unless the best two are a tie."""
    torch.testing.assert_close(got_A, wanted_A, **TOLERANCE)
    assert wanted_A[action] >= wanted_A.max() - 2 * TOLERANCE["atol"]


def test_alone(policy: Policy) -> None:
    episodes = Episodes(policy)
    wanted_BTA = episodes.forward(policy)
    pools = make_pools(policy)
    for t in range(STEPS):
        logits_BA, actions_B = step(policy, pools, [3], episodes.at([0], [t]))
        assert_same(logits_BA[0], actions_B[0], wanted_BTA[0, t])


def test_exactly_at_equal_batch_size(policy: Policy) -> None:
    episodes = Episodes(policy)
    pools = make_pools(policy)
    rows, state = list(range(ROWS)), None
    for t in range(STEPS):
        inputs, executed_BH, first_B = episodes.at(rows, [t] * ROWS)
        whole = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
        forward = policy(whole, executed_BH.unsqueeze(1), first_B.unsqueeze(1), state)
        state = forward.state
        logits_BA, _ = step(policy, pools, [5, 1, 2], (inputs, executed_BH, first_B))
        assert torch.equal(logits_BA, forward.logits[0][:, 0])
        for name, pool in pools.items():
            assert torch.equal(pool[[5, 1, 2]], state[name])


def test_forward_in_pieces_with_the_state_between(policy: Policy) -> None:
    episodes = Episodes(policy)
    episodes.begin(1, 4)
    wanted_BTA = episodes.forward(policy)
    state, pieces = None, []
    for piece in (slice(0, 4), slice(4, 5), slice(5, STEPS)):
        inputs = {name: tensor[:, piece] for name, tensor in episodes.inputs.items()}
        output = policy(inputs, episodes.executed_BTH[:, piece], episodes.first_BT[:, piece], state)
        state = output.state
        pieces.append(output.logits[0])
    assert set(state or {}) == set(policy.state_layout())
    torch.testing.assert_close(torch.cat(pieces, dim=1), wanted_BTA, **TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_ragged_batches_with_padding(policy: Policy, seed: int) -> None:
    """Rows are at different times, in any order, some wait; the batch is filled up to 4 rows with scratch slot 0."""
    episodes = Episodes(policy, seed)
    episodes.begin(2, 5)
    wanted_BTA = episodes.forward(policy)
    pools, generator = make_pools(policy), torch.Generator().manual_seed(seed)
    slot_of, next_step = [6, 1, 4], [0] * ROWS
    while min(next_step) < STEPS:
        waiting = [row for row in torch.randperm(ROWS, generator=generator).tolist() if next_step[row] < STEPS]
        rows = waiting[: int(torch.randint(1, len(waiting) + 1, (), generator=generator))]
        padding = 4 - len(rows)
        batch = episodes.at(rows + [0] * padding, [next_step[row] for row in rows] + [0] * padding)
        logits_BA, actions_B = step(policy, pools, [slot_of[row] for row in rows] + [0] * padding, batch)
        for i, row in enumerate(rows):
            assert_same(logits_BA[i], actions_B[i], wanted_BTA[row, next_step[row]])
            next_step[row] += 1


def test_after_reset_nothing_of_the_old_episode_is_left(policy: Policy) -> None:
    episodes = Episodes(policy)
    begin = 7
    episodes.begin(0, begin)
    wanted_BTA = episodes.forward(policy)
    fresh = policy(
        {name: tensor[:1, begin:] for name, tensor in episodes.inputs.items()},
        episodes.executed_BTH[:1, begin:],
        episodes.first_BT[:1, begin:],
    )
    torch.testing.assert_close(wanted_BTA[:1, begin:], fresh.logits[0], **TOLERANCE)
    pools = make_pools(policy)
    for t in range(STEPS):
        logits_BA, actions_B = step(policy, pools, [2], episodes.at([0], [t]))
        assert_same(logits_BA[0], actions_B[0], wanted_BTA[0, t])


def test_other_slots_neither_matter_nor_change(policy: Policy) -> None:
    """Neighbours come, go and leave garbage between any two steps, as after another session's expiry."""
    episodes = Episodes(policy)
    wanted_BTA = episodes.forward(policy)
    pools, generator = make_pools(policy), torch.Generator().manual_seed(3)
    others = [slot for slot in range(NUM_SLOTS) if slot != 5]
    for t in range(STEPS):
        for pool in pools.values():
            pool[others] = (torch.randn(pool[others].shape, generator=generator) * 100).to(pool.dtype)
        before = {name: pool[others].clone() for name, pool in pools.items()}
        logits_BA, actions_B = step(policy, pools, [5], episodes.at([1], [t]))
        assert_same(logits_BA[0], actions_B[0], wanted_BTA[1, t])
        assert all(torch.equal(pools[name][others], rows) for name, rows in before.items())


def test_a_slot_moved_elsewhere_goes_on(policy: Policy) -> None:
    episodes = Episodes(policy)
    wanted_BTA = episodes.forward(policy)
    here, there = make_pools(policy), make_pools(policy)
    for t in range(STEPS):
        if t == 5:
            for name in here:
                there[name][7] = here[name][2]
        pools, slot = (here, 2) if t < 5 else (there, 7)
        logits_BA, actions_B = step(policy, pools, [slot], episodes.at([2], [t]))
        assert_same(logits_BA[0], actions_B[0], wanted_BTA[2, t])
