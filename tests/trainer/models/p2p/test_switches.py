"""The switches of the family: heads without a decoder, and the inverse model, which sees what is yet to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from playserve.errors import BadSettingError, NotImplementedHereError
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.flops import count_flops
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.ring import BatchRings, RowRings
from playserve_trainer.models.p2p.tokens import window_mask
from playserve_trainer.models.policy import INSTRUCTION, TARGETS, UNKNOWN_ACTION, Memory
from playserve_trainer.models.registry import build

MakeSmall = Callable[..., P2PPolicy]

INVERSE = {"inverse": True, "past_actions": False, "text_encoder": "none"}


def _clip(policy: P2PPolicy, rows: int, steps: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return inputs with targets, what was executed before each step, and where an episode begins."""
    generator, side = torch.Generator().manual_seed(1), policy.config.frame_size
    drawn = [torch.randint(0, n, (rows, steps), generator=generator) for n in policy.heads()]
    actions_BTH = torch.stack(drawn, dim=-1)
    first_BT = torch.zeros(rows, steps, dtype=torch.bool)
    first_BT[:, 0] = True
    inputs = {
        "frame": torch.randint(0, 256, (rows, steps, side, side, 3), generator=generator).to(torch.uint8),
        TARGETS: actions_BTH,
    }
    if policy.config.text_encoder != "none":
        inputs[INSTRUCTION] = torch.randn(rows, steps, policy.config.text_width, generator=generator)
    executed_BTH = actions_BTH.roll(1, 1).masked_fill(first_BT.unsqueeze(2), UNKNOWN_ACTION)
    return inputs, executed_BTH, first_BT


@pytest.mark.parametrize("rings", [RowRings, BatchRings])
@pytest.mark.parametrize("past_actions", [True, False])
def test_direct_heads_play_as_they_are_trained_across_the_wrap(
    small: MakeSmall, monkeypatch: pytest.MonkeyPatch, past_actions: bool, rings: type
) -> None:
    monkeypatch.setattr("playserve_trainer.models.p2p.policy.make_rings", rings)
    policy = small(decoder="direct", past_actions=past_actions)
    inputs, executed_BTH, first_BT = _clip(policy, 2, 24)
    wanted = policy(inputs, executed_BTH, first_BT).logits
    pools = {n: torch.zeros(4, *t.shape, dtype=t.dtype) for n, t in policy.state_layout().items()}
    for t in range(24):
        seen: list[torch.Tensor] = []

        def sample(logits_BA: torch.Tensor, head: int, t: int = t, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(logits_BA)
            return inputs[TARGETS][:, t, head]

        now = {name: tensor[:, t] for name, tensor in inputs.items() if name != TARGETS}
        policy.step(now, executed_BTH[:, t], Memory(pools, torch.tensor([3, 1]), first_BT[:, t]), sample)
        for head, logits_BA in enumerate(seen):
            torch.testing.assert_close(logits_BA, wanted[head][:, t], atol=2e-5, rtol=1e-5)


def test_direct_heads_see_no_token_of_their_own_action_and_slots_of_a_group_differ(small: MakeSmall) -> None:
    policy = small(decoder="direct")
    inputs, executed_BTH, first_BT = _clip(policy, 1, 6)
    before = policy(inputs, executed_BTH, first_BT).logits
    other = {**inputs, TARGETS: inputs[TARGETS].clone()}
    other[TARGETS][:, -1] = 0
    after = policy(other, executed_BTH, first_BT).logits
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert not torch.allclose(before[0], before[1])
    # The decoder's tokens do depend on each other.
    decoding = small()
    changed = [decoding(given, executed_BTH, first_BT).logits[1][0, -1] for given in (inputs, other)]
    assert not torch.allclose(*changed)


def test_direct_heads_cost_one_matrix_a_head(small: MakeSmall) -> None:
    policy = small(decoder="direct")
    heads, width = len(policy.heads()), policy.config.width
    counted = count_flops(policy).by_layer
    assert sum(n for name, n in counted.items() if name.startswith("decoder")) == 2 * heads * width * width
    assert count_flops(policy).forward < count_flops(small()).forward


def test_an_inverse_model_sees_as_many_steps_ahead_as_back_and_no_other_episode() -> None:
    mask = window_mask(torch.tensor([[0, 0, 0, 0, 1]]), 2, 0, ahead=True)[0, 0].view(5, 4, 5, 4)
    seen = mask[:, 3].any(-1)  # by steps, from action_out
    assert seen.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert not mask[1, :, 2, 3].any()  # nobody else sees an action_out
    back = window_mask(torch.tensor([[0, 0, 0, 0, 1]]), 2, 0)[0, 0].view(5, 4, 5, 4)
    assert torch.equal(mask & torch.ones(5, 5).tril().bool()[:, None, :, None], back)


def test_an_inverse_model_reads_the_future_and_neither_actions_nor_texts(small: MakeSmall) -> None:
    policy = small(**INVERSE)
    inputs, executed_BTH, first_BT = _clip(policy, 1, 8)
    before = policy(inputs, executed_BTH, first_BT)
    assert before.state == {}
    later = {**inputs, "frame": inputs["frame"].clone()}
    later["frame"][:, 5] ^= 255
    after = policy(later, executed_BTH, first_BT)
    assert not torch.allclose(before.logits[0][:, 4], after.logits[0][:, 4])
    others = policy(inputs, torch.zeros_like(executed_BTH), first_BT)
    assert torch.equal(others.logits[0], before.logits[0])
    changed = {**inputs, TARGETS: inputs[TARGETS].clone()}
    changed[TARGETS][:, :5] = 0
    torch.testing.assert_close(policy(changed, executed_BTH, first_BT).logits[3][:, 5:], before.logits[3][:, 5:])
    assert policy.context_inputs() == {}
    with pytest.raises(BadSettingError, match="neither actions nor instructions: past_actions is True"):
        small(inverse=True, text_encoder="none")
    with pytest.raises(BadSettingError, match="text_encoder 'words'"):
        small(inverse=True, past_actions=False)


def test_attention_of_an_inverse_model_counts_both_ways(small: MakeSmall) -> None:
    causal, inverse = small(past_actions=False, text_encoder="none"), small(**INVERSE)
    one, both = (count_flops(policy).by_layer for policy in (causal, inverse))
    width, (first, last) = causal.config.width, causal.config.history
    # Queries of a step times what they see ahead: four and 3 * history, in the last layer action_out alone.
    assert both["backbone.layers.0"] - one["backbone.layers.0"] == 4 * width * 4 * 3 * first
    assert both["backbone.layers.1"] - one["backbone.layers.1"] == 4 * width * 3 * last


def test_an_inverse_model_cannot_play(small: MakeSmall) -> None:
    policy = small(**INVERSE)
    inputs, executed_BTH, _ = _clip(policy, 1, 1)
    assert policy.state_layout() == {}
    assert policy.spec().environment["inverse"] == "true"
    with pytest.raises(NotImplementedHereError, match=r"yet to come.*`playserve data label`.*cannot play"):
        policy.prepare_for_play("float32")
    memory, frame = Memory({}, torch.tensor([1]), torch.tensor([True])), inputs["frame"][:, 0]
    with pytest.raises(NotImplementedHereError, match="cannot play"):
        policy.step({"frame": frame}, executed_BTH[:, 0], memory, lambda logits, head: logits.argmax(-1))


def test_manifests_say_the_switches_and_older_ones_mean_none(small: MakeSmall, tmp_path: Path) -> None:
    for name, changes in (("direct", {"decoder": "direct"}), ("inverse", INVERSE)):
        checkpoint.save(tmp_path / name, small(**changes), Manifest.describe(small(**changes)))
        policy, manifest = checkpoint.load(tmp_path / name)
        assert isinstance(policy, P2PPolicy)
        assert (manifest.config["decoder"], manifest.config["inverse"]) == (
            policy.config.decoder,
            policy.config.inverse,
        )
        assert policy.config == small(**changes).config
    older = {k: v for k, v in dataclasses.asdict(small().config).items() if k not in ("decoder", "inverse")}
    policy = build("p2p", {**older, "history": list(older["history"])})
    assert policy.state_dict().keys() == small().state_dict().keys()
    with pytest.raises(BadSettingError, match="decoder is one of autoregressive, direct, not 'none'"):
        small(decoder="none")
