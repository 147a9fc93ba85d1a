"""The incremental engine: at every step what one forward over everything gives, whatever happens to the slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.ring import BatchRings, RowRings
from playserve_trainer.models.p2p.rotary import rotate, rotation
from playserve_trainer.models.policy import INSTRUCTION, TARGETS, UNKNOWN_ACTION, Memory

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
SLOTS = 6

RINGS = pytest.mark.parametrize("rings", [RowRings, BatchRings])
MakeSmall = Callable[..., P2PPolicy]


class Play:
    """Rows of random frames, instructions and actions; what forward says of them, and slots that step through them."""

    def __init__(self, policy: P2PPolicy, rows: int, steps: int, *, begins: tuple[tuple[int, int], ...] = ()) -> None:
        generator = torch.Generator().manual_seed(1)
        side, width = policy.config.frame_size, policy.config.text_width
        self.policy = policy
        self.inputs = {
            "frame": torch.randint(0, 256, (rows, steps, side, side, 3), generator=generator).to(torch.uint8),
            INSTRUCTION: torch.randn(rows, steps, width, generator=generator),
        }
        self.inputs[INSTRUCTION][:, ::3] = 0
        drawn = [torch.randint(0, n, (rows, steps), generator=generator) for n in policy.heads()]
        self.actions_BTH = torch.stack(drawn, dim=-1)
        self.first_BT = torch.zeros(rows, steps, dtype=torch.bool)
        self.first_BT[:, 0] = True
        for row, step in begins:
            self.first_BT[row, step] = True
        self.executed_BTH = self.actions_BTH.roll(1, 1).masked_fill(self.first_BT.unsqueeze(2), UNKNOWN_ACTION)
        self.pools = self.fresh()

    def fresh(self) -> dict[str, Tensor]:
        """Return pools full of what earlier sessions left."""
        layout = self.policy.state_layout().items()
        return {
            n: torch.full((SLOTS, *t.shape), float("nan") if t.dtype.is_floating_point else 99, dtype=t.dtype)
            for n, t in layout
        }

    def wanted(self) -> Tensor:
        """Return the logits [B, T, A] of all heads from one forward over everything."""
        output = self.policy({**self.inputs, TARGETS: self.actions_BTH}, self.executed_BTH, self.first_BT)
        return torch.cat(output.logits, dim=-1)

    def step(self, rows: list[int], steps: list[int], slots: list[int]) -> Tensor:
        """Step some rows, each at its own time; return logits [B, A]."""
        seen: list[Tensor] = []

        def sample(logits_BA: Tensor, head: int) -> Tensor:
            seen.append(logits_BA)
            return self.actions_BTH[rows, steps, head]

        inputs = {name: tensor[rows, steps] for name, tensor in self.inputs.items()}
        memory = Memory(self.pools, torch.tensor(slots), self.first_BT[rows, steps])
        self.policy.step(inputs, self.executed_BTH[rows, steps], memory, sample)
        return torch.cat(seen, dim=-1)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    return lambda rings: monkeypatch.setattr("playserve_trainer.models.p2p.policy.make_rings", rings)


@RINGS
def test_equals_forward_at_every_step_to_210_and_after_the_wrap(
    small: MakeSmall, use: Callable[[type], None], rings: type
) -> None:
    use(rings)
    play = Play(small(history=(200,), decoder_layers=1), 1, 216)
    wanted_BTA = play.wanted()
    for t in range(216):
        torch.testing.assert_close(
            play.step([0], [t], [2])[0], wanted_BTA[0, t], **CLOSE, msg=lambda m, t=t: f"{t}: {m}"
        )


@RINGS
@pytest.mark.parametrize("seed", range(3))
def test_ragged_batches_with_resets_and_slots_that_move(
    small: MakeSmall, use: Callable[[type], None], rings: type, seed: int
) -> None:
    """Rows are at different times, wait, begin again, are exported to another slot; padding rows stand on slot 0."""
    use(rings)
    play = Play(small(), 3, 40, begins=((1, 17), (2, 1), (2, 30)))
    wanted_BTA = play.wanted()
    generator = torch.Generator().manual_seed(seed)
    slot_of, now = [4, 1, 5], [0, 0, 0]
    while min(now) < 40:
        waiting = [row for row in torch.randperm(3, generator=generator).tolist() if now[row] < 40]
        rows = waiting[: int(torch.randint(1, len(waiting) + 1, (), generator=generator))]
        padding = 4 - len(rows)
        logits_BA = play.step(
            rows + [0] * padding, [now[r] for r in rows] + [0] * padding, [slot_of[r] for r in rows] + [0] * padding
        )
        for i, row in enumerate(rows):
            torch.testing.assert_close(logits_BA[i], wanted_BTA[row, now[row]], **CLOSE)
            now[row] += 1
        if torch.rand((), generator=generator) < 0.3:
            row = rows[0]
            free = next(slot for slot in range(1, SLOTS) if slot not in slot_of)
            for pool in play.pools.values():
                pool[free] = pool[slot_of[row]].clone()
                pool[slot_of[row]] = 13
            slot_of[row] = free


@RINGS
def test_without_past_actions_a_step_is_four_tokens_and_equals_forward_too(
    small: MakeSmall, use: Callable[[type], None], rings: type
) -> None:
    use(rings)
    policy = small(past_actions=False)
    play = Play(policy, 2, 24, begins=((1, 9),))
    wanted_BTA = play.wanted()
    for t in range(24):
        torch.testing.assert_close(play.step([0, 1], [t, t], [2, 4]), wanted_BTA[:, t], **CLOSE)
    assert policy.state_layout()["layer00"].shape[2] == 4 + (policy.config.histories[0] + 1) * 3
    # The decoder still sees the heads before its own: they are this step's action, and no past one.
    other = Play(policy, 2, 24, begins=((1, 9),))
    other.actions_BTH[:, :-1] = 0
    torch.testing.assert_close(other.wanted()[:, -1], wanted_BTA[:, -1])


@RINGS
def test_a_session_of_ten_million_steps_is_as_exact_as_a_young_one(
    small: MakeSmall, use: Callable[[type], None], rings: type
) -> None:
    """What an old slot held is forgotten after the layers' histories; then age is all that differs."""
    use(rings)
    policy = small()
    play = Play(policy, 1, 40)
    play.pools = {name: torch.zeros_like(pool) for name, pool in play.pools.items()}
    play.pools["steps"][2] = 10_000_000
    wanted_BTA = play.wanted()
    play.first_BT[:] = False
    forgotten = sum(policy.config.histories) + 2
    for t in range(40):
        logits_A = play.step([0], [t], [2])[0]
        if t >= forgotten:
            torch.testing.assert_close(logits_A, wanted_BTA[0, t], **CLOSE)
    assert play.pools["steps"][2] == 10_000_040


def test_rotation_depends_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 64, generator=generator, dtype=torch.float32)
    for distance in (0, 1, 12, 2400):
        scores = [
            (
                rotate(query, rotation(torch.tensor([p]), 64)) * rotate(key, rotation(torch.tensor([p - distance]), 64))
            ).sum()
            for p in (2400, 864_000, 120_000_000)
        ]
        assert max(scores) - min(scores) < 2e-5


def test_a_reset_empties_the_slot(small: MakeSmall) -> None:
    play = Play(small(), 1, 3)
    play.step([0], [0], [2])
    for name, pool in play.pools.items():
        if name != "steps":
            assert torch.isfinite(pool[2]).all()
            assert pool[2].count_nonzero() < 0.2 * pool[2].numel()
            assert not torch.isfinite(pool[3]).any()


def test_unknown_actions_are_idle_ones(small: MakeSmall) -> None:
    policy = small()
    play, idle = Play(policy, 1, 12), Play(policy, 1, 12)
    play.executed_BTH[0, 3::2] = UNKNOWN_ACTION
    idle.executed_BTH[0, 3::2] = torch.tensor(policy.vocabulary.idle())
    for t in range(12):
        assert torch.equal(play.step([0], [t], [1]), idle.step([0], [t], [1]))


def test_memory_of_a_session_is_11_tokens_a_step_and_does_not_grow(small: MakeSmall) -> None:
    layout = small(history=(200,), state_dtype="bfloat16").state_layout()
    per_layer = 2 * 32 * 2  # keys and values, width, bytes
    for name in ("layer00", "layer01"):
        tokens = layout[name].shape[2]
        assert 200 * 11 <= tokens <= 201 * 11 + 4
        assert layout[name].shape[0] * layout[name].shape[1] * layout[name].shape[3] * 2 == per_layer
    assert layout["layer00"].dtype == torch.bfloat16


@RINGS
def test_bfloat16_keys_and_values_are_near_float32_ones(
    small: MakeSmall, use: Callable[[type], None], rings: type
) -> None:
    use(rings)
    play = Play(small(state_dtype="bfloat16"), 2, 20)
    wanted_BTA = play.wanted()
    for t in range(20):
        got_BA = play.step([0, 1], [t, t], [2, 3])
        torch.testing.assert_close(got_BA, wanted_BTA[:, t], atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_a_step_is_one_graph_of_fixed_shapes(small: MakeSmall) -> None:
    """As CUDA graphs and torch.compile want it: nothing in it looks at data."""
    policy = small()
    play = Play(policy, 2, 12)
    wanted_BTA = play.wanted()

    def step(frame: Tensor, text: Tensor, executed_BH: Tensor, slots_B: Tensor, first_B: Tensor, chosen_BH: Tensor):  # type: ignore[no-untyped-def]
        seen = []

        def sample(logits_BA: Tensor, head: int) -> Tensor:
            seen.append(logits_BA)
            return chosen_BH[:, head]

        policy.step({"frame": frame, INSTRUCTION: text}, executed_BH, Memory(play.pools, slots_B, first_B), sample)
        return torch.cat(seen, dim=-1)

    compiled = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    with torch.inference_mode():
        for t in range(12):
            now = (play.inputs["frame"][:, t], play.inputs[INSTRUCTION][:, t], play.executed_BTH[:, t])
            got_BA = compiled(*now, torch.tensor([4, 2]), play.first_BT[:, t], play.actions_BTH[:, t])
            torch.testing.assert_close(got_BA, wanted_BTA[:, t], **CLOSE)
