"""`forward` over a sequence equals `step` over slots, for every family, whatever the slots' neighbours do.

Shape legend: B rows of a batch, T steps, S slots.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from playserve_trainer.models.policy import INSTRUCTION, TARGETS, UNKNOWN_ACTION, Memory, Policy
from playserve_trainer.models.registry import FAMILIES, build

STEPS = 12
ROWS = 3
NUM_ACTIONS = 4
NUM_SLOTS = 8
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}

#: Inputs [B, ...], executed [B, H], first [B], and the actions [B, H] that several heads draw.
Batch = tuple[dict[str, Tensor], Tensor, Tensor, Tensor]

ACTION = {"spec": {"discrete": {"n": NUM_ACTIONS}}, "heads": [NUM_ACTIONS]}
TOKENIZER = {
    "family": "tokenizer",
    "config": {"height": 16, "width": 16, "channels": 1, "tokens": 4, "codes": 8, "filters": 4, "decoder_filters": 4},
}

#: By family, or "family/variant". The transformers' windows wrap in STEPS.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "atari": {"game": "breakout", "num_actions": NUM_ACTIONS, "width": 2},
    "bc-cnn": {"width": 16, "context": 4, "action": ACTION, "frame_shape": [16, 16, 1], "channels": 2},
    "bc-token": {"width": 32, "context": 4, "action": ACTION, "tokenizer": TOKENIZER},
    "char": {"width": 32, "context": 4, "alphabet": "abcdefgh"},
    "nethack/lstm": {"num_actions": NUM_ACTIONS, "width": 32, "layers": 2},
    "nethack/no-message": {"num_actions": NUM_ACTIONS, "width": 32, "message": False},
    "nethack/no-map": {"num_actions": NUM_ACTIONS, "width": 32, "core": "transformer", "context": 4, "map": False},
    "nethack/transformer": {
        "num_actions": NUM_ACTIONS, "width": 64, "core": "transformer", "layers": 2, "context": 4, "inventory": True,
    },
    "p2p": {
        "layers": 3, "width": 32, "heads": 2, "decoder_layers": 2, "decoder_heads": 2, "history": (2, 4, 3),
        "trunk": "conv3", "frame_size": 32, "text_encoder": "words", "text_width": 16,
    },
    "tiny_recurrent": {"num_actions": NUM_ACTIONS, "hidden": 16},
}  # fmt: skip


#: Families that draw no action, or whose draws are what they see next; their own tests hold them to the same.
ELSEWHERE = {"tokenizer", "tokenizer-nethack", "wm-token"}


def test_every_family_is_covered() -> None:
    assert {name.partition("/")[0] for name in CONFIGS} | ELSEWHERE == set(FAMILIES)


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
        for name, row in policy.context_inputs().items():
            assert name == INSTRUCTION
            self.inputs[name] = torch.randn(ROWS, STEPS, *row.shape, generator=generator)
            self.inputs[name][:, : STEPS // 2] = 0
        # What the steps draw, where later heads see what earlier ones drew; it is executed before the next step.
        drawn = [torch.randint(0, n, (ROWS, STEPS), generator=generator) for n in policy.heads()]
        self.chosen_BTH = torch.stack(drawn, -1)
        self.executed_BTH = self.chosen_BTH.roll(1, 1)
        self.first_BT = torch.zeros(ROWS, STEPS, dtype=torch.bool)
        self.first_BT[:, 0] = True
        self.executed_BTH[self.first_BT] = UNKNOWN_ACTION

    def begin(self, row: int, step: int) -> None:
        """Let an episode begin in the middle of a sequence."""
        self.first_BT[row, step] = True
        self.executed_BTH[row, step] = UNKNOWN_ACTION

    def sequences(
        self, rows: slice = slice(None), steps: slice = slice(None)
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return inputs [B, T, ...], executed [B, T, H] and first [B, T] as `forward` takes them."""
        inputs = {name: tensor[rows, steps] for name, tensor in self.inputs.items()}
        if self.executed_BTH.shape[-1] > 1:
            inputs[TARGETS] = self.chosen_BTH[rows, steps]
        return inputs, self.executed_BTH[rows, steps], self.first_BT[rows, steps]

    def forward(self, policy: Policy) -> Tensor:
        """Return logits [B, T, A] of all heads side by side, each row computed alone."""
        logits = [policy(*self.sequences(slice(row, row + 1))).logits for row in range(ROWS)]
        return torch.cat([torch.cat(heads, dim=-1) for heads in logits])

    def at(self, rows: list[int], steps: list[int]) -> Batch:
        """Return the batch of some rows, each at its own step."""
        inputs = {name: tensor[rows, steps] for name, tensor in self.inputs.items()}
        return inputs, self.executed_BTH[rows, steps], self.first_BT[rows, steps], self.chosen_BTH[rows, steps]


def make_pools(policy: Policy) -> dict[str, Tensor]:
    """Return pools full of what earlier sessions left: garbage, NaN where the dtype has it."""
    pools = {}
    for name, tensor in policy.state_layout().items():
        garbage = float("nan") if tensor.dtype.is_floating_point else 12_345
        pools[name] = torch.full((NUM_SLOTS, *tensor.shape), garbage, dtype=tensor.dtype)
    return pools


def step(policy: Policy, pools: dict[str, Tensor], slots: list[int], batch: Batch) -> tuple[Tensor, Tensor]:
    """Step the slots once; return logits [B, A] of all heads and the actions [B, H] that the policy reported.

    One head draws the likeliest action, several draw what the batch says: later heads see what earlier ones drew.
    """
    seen = []
    inputs, executed_BH, first_B, chosen_BH = batch

    def sample(logits_BA: Tensor, head: int) -> Tensor:
        assert head == len(seen)
        assert logits_BA.dtype == torch.float32
        assert logits_BA.shape == (len(slots), policy.heads()[head])
        seen.append(logits_BA)
        return logits_BA.argmax(-1) if len(policy.heads()) == 1 else chosen_BH[:, head]

    output = policy.step(inputs, executed_BH, Memory(pools, torch.tensor(slots), first_B), sample)
    assert len(seen) == len(policy.heads())
    assert output.actions_BH.shape == (len(slots), len(seen))
    if len(seen) > 1:
        assert torch.equal(output.actions_BH, chosen_BH)
    assert output.value_B is None or (output.value_B.dtype == torch.float32 and output.value_B.shape == (len(slots),))
    return torch.cat(seen, dim=-1), output.actions_BH


def assert_same(got_A: Tensor, action_H: Tensor, wanted_A: Tensor) -> None:
    """The logits agree, and so does the action of a single head unless the best two are a tie."""
    torch.testing.assert_close(got_A, wanted_A, **TOLERANCE)
    if len(action_H) == 1:
        assert wanted_A[action_H[0]] >= wanted_A.max() - 2 * TOLERANCE["atol"]


def test_alone(policy: Policy) -> None:
    episodes = Episodes(policy)
    wanted_BTA = episodes.forward(policy)
    pools = make_pools(policy)
    for t in range(STEPS):
        logits_BA, actions_BH = step(policy, pools, [3], episodes.at([0], [t]))
        assert_same(logits_BA[0], actions_BH[0], wanted_BTA[0, t])


def test_exactly_at_equal_batch_size(policy: Policy) -> None:
    episodes = Episodes(policy)
    pools = make_pools(policy)
    rows, state = list(range(ROWS)), None
    for t in range(STEPS):
        forward = policy(*episodes.sequences(steps=slice(t, t + 1)), state)
        state = forward.state
        logits_BA, _ = step(policy, pools, [5, 1, 2], episodes.at(rows, [t] * ROWS))
        assert torch.equal(logits_BA, torch.cat(forward.logits, dim=-1)[:, 0])
        for name, pool in pools.items():
            assert torch.equal(pool[[5, 1, 2]], state[name])


def test_forward_in_pieces_with_the_state_between(policy: Policy) -> None:
    episodes = Episodes(policy)
    episodes.begin(1, 4)
    wanted_BTA = episodes.forward(policy)
    state, pieces = None, []
    for piece in (slice(0, 4), slice(4, 5), slice(5, STEPS)):
        output = policy(*episodes.sequences(steps=piece), state)
        state = output.state
        pieces.append(torch.cat(output.logits, dim=-1))
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
        logits_BA, actions_BH = step(policy, pools, [slot_of[row] for row in rows] + [0] * padding, batch)
        for i, row in enumerate(rows):
            assert_same(logits_BA[i], actions_BH[i], wanted_BTA[row, next_step[row]])
            next_step[row] += 1


def test_after_reset_nothing_of_the_old_episode_is_left(policy: Policy) -> None:
    episodes = Episodes(policy)
    begin = 7
    episodes.begin(0, begin)
    wanted_BTA = episodes.forward(policy)
    fresh = policy(*episodes.sequences(slice(0, 1), slice(begin, None)))
    torch.testing.assert_close(wanted_BTA[:1, begin:], torch.cat(fresh.logits, dim=-1), **TOLERANCE)
    pools = make_pools(policy)
    for t in range(STEPS):
        logits_BA, actions_BH = step(policy, pools, [2], episodes.at([0], [t]))
        assert_same(logits_BA[0], actions_BH[0], wanted_BTA[0, t])


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
        logits_BA, actions_BH = step(policy, pools, [5], episodes.at([1], [t]))
        assert_same(logits_BA[0], actions_BH[0], wanted_BTA[1, t])
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
        logits_BA, actions_BH = step(policy, pools, [slot], episodes.at([2], [t]))
        assert_same(logits_BA[0], actions_BH[0], wanted_BTA[2, t])
