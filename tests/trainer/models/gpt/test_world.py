"""A world on tokens: what it draws step by step is what `forward` says of the whole, whoever else is in the batch.

Shape legend: B rows, T steps, K tokens of a frame, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_cache import ACTION, TOKENIZER
from torch import Tensor

from playserve.errors import BadSettingError
from playserve.specs import PolicyKind
from playserve_trainer.flops import count_flops
from playserve_trainer.models.gpt import WorldPolicy
from playserve_trainer.models.gpt.world import TOKENS
from playserve_trainer.models.policy import IGNORED_LABEL, UNKNOWN_ACTION, LabelCounts, Memory
from playserve_trainer.models.registry import build

STEPS = 11
TOKENS_A_FRAME = 4
START_FRAMES = 2
STARTS = 3
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def world(**changes: Any) -> WorldPolicy:
    """Return a world whose window of three frames wraps several times within STEPS."""
    torch.manual_seed(0)
    settings = {
        "width": 32, "context": 3, "tokenizer": TOKENIZER, "action": ACTION, "starts": STARTS,
        "start_frames": START_FRAMES, "reward_values": [0.0, 1.0, 5.0], "rate_hz": 20.0,
    }  # fmt: skip
    policy = build("wm-token", {**settings, **changes})
    assert isinstance(policy, WorldPolicy)
    generator = torch.Generator().manual_seed(5)
    policy.start_tokens_SCK.copy_(torch.randint(0, 8, policy.start_tokens_SCK.shape, generator=generator))
    policy.start_actions_SCH[:, 1:] = torch.randint(0, 3, policy.start_actions_SCH[:, 1:].shape, generator=generator)
    with torch.no_grad():
        policy.token_head.weight.mul_(20)  # what is drawn hangs on what was seen
    return policy.eval().requires_grad_(False)


@pytest.fixture(params=[1, 2, 4], ids=["one by one", "two at once", "all at once"])
def policy(request: pytest.FixtureRequest) -> WorldPolicy:
    return world(parallel_tokens=request.param)


class Draws:
    """Draws by a hash of (row's seed, step of its episode, head), and keeps the logits."""

    def __init__(self, seeds: Sequence[int], steps: Sequence[int]) -> None:
        self._rows = list(zip(seeds, steps, strict=True))
        self.logits: dict[int, Tensor] = {}

    def __call__(self, logits_BA: Tensor, head: int) -> Tensor:
        assert logits_BA.dtype == torch.float32
        assert head not in self.logits
        self.logits[head] = logits_BA
        drawn = []
        for row, (seed, step) in enumerate(self._rows):
            generator = torch.Generator().manual_seed(hash((seed, step, head)) % 2**31)
            uniform = torch.rand((), generator=generator)
            drawn.append((logits_BA[row].softmax(-1).cumsum(-1) < uniform).sum().clamp(max=logits_BA.shape[1] - 1))
        return torch.stack(drawn)


def pools(policy: WorldPolicy, slots: int = 6) -> dict[str, Tensor]:
    """Return slots full of garbage."""
    return {
        name: torch.full((slots, *t.shape), float("nan") if t.dtype.is_floating_point else 12_345, dtype=t.dtype)
        for name, t in policy.state_layout().items()
    }


class Session:
    """One session's steps: its actions, and what it was shown."""

    def __init__(self, policy: WorldPolicy, seed: int) -> None:
        self.policy, self.seed, self.step = policy, seed, 0
        generator = torch.Generator().manual_seed(seed)
        self.actions_T = torch.randint(0, 3, (STEPS,), generator=generator)
        self.drawn: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.outputs: list[dict[str, Tensor]] = []


def play(policy: WorldPolicy, memory: dict[str, Tensor], sessions: Sequence[Session], slots: Sequence[int]) -> None:
    """Take one step of some sessions in one batch."""
    draws = Draws([s.seed for s in sessions], [s.step for s in sessions])
    executed_BH = torch.tensor([[int(s.actions_T[s.step])] for s in sessions])
    reset_B = torch.tensor([s.step == 0 for s in sessions])
    out = policy.step({}, executed_BH, Memory(memory, torch.tensor(slots), reset_B), draws)
    heads = [draws.logits[head] for head in range(TOKENS_A_FRAME + 2)]
    for row, session in enumerate(sessions):
        session.drawn.append(out.actions_BH[row])
        session.logits.append(torch.cat([logits_BA[row] for logits_BA in heads]))
        session.outputs.append({name: tensor[row] for name, tensor in out.outputs.items()})
        session.step += 1


def whole(session: Session) -> Tensor:
    """Return the logits [T, A] of all heads side by side that `forward` gives for what a session was shown."""
    policy = session.policy
    shown = torch.stack([drawn[:TOKENS_A_FRAME] for drawn in session.drawn])
    matches = (policy.start_tokens_SCK[:, -1] == shown[0]).all(1).nonzero()
    start = int(matches[0])
    tokens = torch.cat([policy.start_tokens_SCK[start, :-1], shown])[None]
    executed = torch.cat([policy.start_actions_SCH[start], session.actions_T[1 : len(shown), None]])[None]
    first = torch.zeros(1, tokens.shape[1], dtype=torch.bool)
    first[0, 0] = True
    tokens_BTKV, reward_BTA, end_BTA = policy({TOKENS: tokens}, executed, first).logits
    sides = torch.cat([tokens_BTKV.flatten(2), reward_BTA, end_BTA], dim=-1)
    return sides[0, START_FRAMES - 1 :]


def test_alone_each_step_is_what_forward_says_of_the_whole_across_the_wrap(policy: WorldPolicy) -> None:
    session, memory = Session(policy, seed=3), pools(policy)
    for _ in range(STEPS):
        play(policy, memory, [session], [2])
    torch.testing.assert_close(torch.stack(session.logits)[1:], whole(session)[1:], **TOLERANCE)


def test_batch_mates_that_come_and_go_change_nothing(policy: WorldPolicy) -> None:
    alone, memory = [Session(policy, seed) for seed in range(3)], pools(policy)
    for slot, session in enumerate(alone):
        for _ in range(STEPS):
            play(policy, memory, [session], [slot + 1])
    together, memory = [Session(policy, seed) for seed in range(3)], pools(policy)
    slots = [5, 1, 4]
    while any(session.step < STEPS for session in together):
        # The second begins later, the third pauses.
        turn = together[0].step
        rows = [row for row in (0, 1, 2) if together[row].step < STEPS and (row, turn) not in {(1, 1), (2, 4)}]
        play(policy, memory, [together[row] for row in rows], [slots[row] for row in rows])
        if turn == together[0].step:
            for row in (1, 2):
                while together[row].step < STEPS:
                    play(policy, memory, [together[row]], [slots[row]])
    for one, same in zip(alone, together, strict=True):
        assert torch.equal(torch.stack(one.drawn), torch.stack(same.drawn))
        torch.testing.assert_close(torch.stack(same.logits)[1:], whole(same)[1:], **TOLERANCE)


def test_forward_from_a_memory_goes_on_where_play_stopped(policy: WorldPolicy) -> None:
    session, memory = Session(policy, seed=1), pools(policy)
    for _ in range(6):
        play(policy, memory, [session], [2])
    state = {name: pool[[2]].clone() for name, pool in memory.items()}
    for _ in range(3):
        play(policy, memory, [session], [2])
    tokens = torch.stack(session.drawn[6:])[None, :, :TOKENS_A_FRAME]
    output = policy({TOKENS: tokens}, session.actions_T[None, 6:9, None], torch.zeros(1, 3, dtype=torch.bool), state)
    sides = torch.cat([output.logits[0].flatten(2), *output.logits[1:]], dim=-1)
    torch.testing.assert_close(sides[0], torch.stack(session.logits[6:]), **TOLERANCE)
    for name, pool in memory.items():
        torch.testing.assert_close(output.state[name][0], pool[2], **TOLERANCE)


def test_an_episode_begins_with_a_start_that_the_sampler_chose_whatever_was_done(policy: WorldPolicy) -> None:
    seen = set()
    for seed in range(12):
        session, memory = Session(policy, seed), pools(policy)
        session.actions_T[0] = UNKNOWN_ACTION if seed % 2 else 1
        play(policy, memory, [session], [1])
        tokens = session.drawn[0][:TOKENS_A_FRAME]
        seen.add(int((policy.start_tokens_SCK[:, -1] == tokens).all(1).nonzero()[0]))
        first = session.outputs[0]
        assert torch.equal(first["frame"], policy.tokenizer.decode(tokens[None])[0])
        assert (float(first["reward"]), bool(first["terminated"]), float(first["uncertainty"])) == (0.0, False, 0.0)
    assert seen == set(range(STARTS))


def test_outputs_are_those_of_the_spec(policy: WorldPolicy) -> None:
    spec = policy.spec()
    assert (spec.kind, spec.inputs, spec.uses_executed_actions) == (PolicyKind.WORLD, (), True)
    assert policy.heads() == (8, 8, 8, 8, 3, 2)
    session, memory = Session(policy, seed=0), pools(policy)
    for _ in range(4):
        play(policy, memory, [session], [1])
    for tensor in spec.outputs:
        found = session.outputs[-1][tensor.name]
        assert (str(found.dtype), tuple(found.shape)) == (f"torch.{tensor.dtype}", tensor.shape)
    logits = session.logits[-1][: 8 * TOKENS_A_FRAME].view(TOKENS_A_FRAME, 8)
    wanted = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert float(session.outputs[-1]["uncertainty"]) == pytest.approx(float(wanted), abs=1e-5)
    assert float(session.outputs[-1]["reward"]) == (0.0, 1.0, 5.0)[int(session.drawn[-1][-2])]


def _forward(policy: WorldPolicy, tokens: Tensor, executed: Tensor) -> tuple[Tensor, ...]:
    first = torch.zeros(1, tokens.shape[1], dtype=torch.bool)
    first[:, 0] = True
    return policy({TOKENS: tokens}, executed, first).logits


def test_a_token_is_told_by_the_past_the_action_and_the_tokens_drawn_before_it(policy: WorldPolicy) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 8, (1, 5, TOKENS_A_FRAME), generator=generator)
    executed = torch.randint(0, 3, (1, 5, 1), generator=generator)
    here = _forward(policy, tokens, executed)[0][0, 2]
    drawn = policy.config.parallel_tokens
    for place in range(TOKENS_A_FRAME):
        other = tokens.clone()
        other[0, 2, place] = (other[0, 2, place] + 1) % 8
        moved = (_forward(policy, other, executed)[0][0, 2] - here).abs().amax(-1) > 1e-6
        groups = TOKENS_A_FRAME // drawn
        assert moved.tolist() == [at % groups > place % groups if drawn > 1 else at > place for at in range(4)]
    for change in (1, 2):  # the frame before, and the action before the frame
        other, acted = tokens.clone(), executed.clone()
        if change == 1:
            other[0, 1] = (other[0, 1] + 1) % 8
        else:
            acted[0, 2] = (acted[0, 2] + 1) % 3
        assert ((_forward(policy, other, acted)[0][0, 2] - here).abs().amax(-1) > 1e-6).all()


def test_the_tokenizer_neither_learns_nor_counts() -> None:
    policy = world().requires_grad_(True)
    policy.tokenizer.requires_grad_(False)
    frozen = sum(p.numel() for p in policy.tokenizer.parameters())
    assert policy.num_params() == sum(p.numel() for p in policy.parameters()) - frozen
    tables = (policy.embed_token, policy.embed_place, *policy.embed_action.tables)
    assert policy.num_params_without_embeddings() == policy.num_params() - sum(t.weight.numel() for t in tables)
    assert not policy.train().tokenizer.net.training
    assert not [name for name in count_flops(policy, 6).by_layer if name.startswith("tokenizer")]
    assert policy.tokens_per_sample() == 5


def test_flops_are_those_of_every_token_and_of_heads_where_they_are_read() -> None:
    policy = world()
    counted = count_flops(policy, 6)
    tokens, width, window = 5, 32, 15
    assert counted.by_layer["core.blocks.0.qkv"] == 2 * tokens * width * 3 * width
    assert counted.by_layer["core.blocks.0.attention"] == 2 * 2 * tokens * width * window
    assert counted.by_layer["token_head"] == 2 * TOKENS_A_FRAME * width * 8
    assert counted.by_layer["end_head"] == 2 * width * 2


def test_the_loss_is_the_nats_of_a_frame_over_its_tokens() -> None:
    policy = world()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 8, (2, 5, TOKENS_A_FRAME), generator=generator)
    labels = torch.cat([tokens, torch.ones(2, 5, 2, dtype=torch.int64)], dim=2)
    labels[:, 0] = IGNORED_LABEL
    logits = policy({TOKENS: tokens}, torch.zeros(2, 5, 1, dtype=torch.int64), torch.zeros(2, 5).bool()).logits
    nats = torch.zeros(2, 4)
    for place in range(TOKENS_A_FRAME):
        nats -= logits[0][:, 1:, place].log_softmax(-1).gather(-1, tokens[:, 1:, place, None])[..., 0]
    for part in logits[1:]:
        nats -= part[:, 1:].log_softmax(-1)[..., 1]
    loss = policy.loss(logits, labels, LabelCounts.of(labels))
    assert float(loss) == pytest.approx(float(nats.mean()) / TOKENS_A_FRAME, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel_tokens": 3}, "divides the 4 tokens"),
        ({"start_frames": 4}, "1 to context"),
        (
            {"tokenizer": {"family": "atari", "config": {"game": "pong", "num_actions": 2, "width": 2}}},
            "turns no frames",
        ),
        ({"action": {"heads": [3]}}, "spec"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettingError, match=message):
        world(**changes)
