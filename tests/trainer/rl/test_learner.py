"""The learner on unrolls made by hand: its losses, its memory of environments, its critic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_bandit import Bandit

from playserve.errors import BadSettingError, NotImplementedHereError
from playserve_trainer import checkpoint
from playserve_trainer.flops import count_flops
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.models.policy import Memory
from playserve_trainer.models.registry import build
from playserve_trainer.rl.config import RLConfig
from playserve_trainer.rl.critic import ActorCritic
from playserve_trainer.rl.learner import Learner
from playserve_trainer.rl.loss import losses, shaped
from playserve_trainer.rl.publishing import write_policy
from playserve_trainer.rl.unrolls import EpisodeEnd, Unroll, UnrollBuilder
from playserve_trainer.train.errors import TrainingDivergedError


class LocalGame:
    """One environment and the policy's memory for it, without a service."""

    def __init__(self, learner: Learner, env_id: int) -> None:
        self.env, self.policy, self.episodes = Bandit(), learner.policy, list[EpisodeEnd]()
        self.builder = UnrollBuilder(env_id, learner.config.unroll)
        layout = self.policy.state_layout()
        self.pools = {name: torch.zeros(2, *tensor.shape, dtype=tensor.dtype) for name, tensor in layout.items()}
        self.draw = torch.Generator().manual_seed(env_id)
        self.seen, _ = self.env.reset(seed=env_id)
        self.action, self.steps, self.score = -1, 0, 0.0

    def unroll(self) -> Unroll:
        while True:
            first = self.steps == 0
            made = self.builder.observe({"observation": self.seen}, executed=self.action, first=first)
            self.act(first=first)
            if made is not None:
                return made

    def act(self, *, first: bool) -> None:
        log_prob = 0.0

        def sample(logits_BA: torch.Tensor, _head: int) -> torch.Tensor:
            nonlocal log_prob
            drawn = torch.multinomial(logits_BA.softmax(-1), 1, generator=self.draw)
            log_prob = logits_BA.log_softmax(-1).gather(1, drawn).item()
            return drawn[:, 0]

        with torch.no_grad():
            memory = Memory(self.pools, torch.tensor([1]), torch.tensor([first]))
            inputs = {"observation": torch.from_numpy(self.seen)[None]}
            out = self.policy.step(inputs, torch.tensor([[self.action]]), memory, sample)
        self.action = int(out.actions_BH)
        self.seen, reward, ended, _, _ = self.env.step(self.action)
        self.builder.act(self.action, log_prob, reward, end=ended, version=1)
        self.steps, self.score = self.steps + 1, self.score + reward
        if ended:
            self.episodes.append(EpisodeEnd(self.score, self.steps, 1, 0))
            self.seen, _ = self.env.reset(seed=len(self.episodes) * 100 + self.builder.env_id)
            self.action, self.steps, self.score = -1, 0, 0.0


def test_the_losses_draw_the_policy_to_what_paid(config: Callable[..., RLConfig]) -> None:
    logits_BTA = torch.zeros(1, 2, 3, requires_grad=True)
    values_BT = torch.zeros(1, 2, requires_grad=True)
    result = losses(
        config(entropy_cost=0.0),
        logits_BTA=logits_BTA,
        values_BT=values_BT,
        bootstrap_B=torch.zeros(1),
        actions_BT=torch.tensor([[0, 2]]),
        behaviour_log_probs_BT=torch.full((1, 2), -np.log(3.0)),
        rewards_BT=torch.tensor([[5.0, -0.5]]),  # clipped to 1
        ends_BT=torch.tensor([[True, True]]),
    )
    result.total.backward()
    # d/dlogit of -(A_t log pi) / 2: A_0 = 1, A_1 = -0.5
    torch.testing.assert_close(logits_BTA.grad[0, 0], torch.tensor([-1 / 3, 1 / 6, 1 / 6]))
    torch.testing.assert_close(logits_BTA.grad[0, 1], torch.tensor([-1 / 12, -1 / 12, 1 / 6]))
    torch.testing.assert_close(values_BT.grad, torch.tensor([[-0.25, 0.125]]))
    assert result.entropy.item() == pytest.approx(np.log(3.0))
    assert result.ratio.item() == pytest.approx(1.0)
    assert result.clipped.item() == 0.0


def test_entropy_is_worth_what_the_settings_say(config: Callable[..., RLConfig]) -> None:
    logits_BTA = torch.tensor([[[2.0, 0.0, 0.0]]])
    rest = {
        "logits_BTA": logits_BTA, "values_BT": torch.zeros(1, 1), "bootstrap_B": torch.zeros(1),
        "actions_BT": torch.zeros(1, 1, dtype=torch.int64), "behaviour_log_probs_BT": torch.zeros(1, 1),
        "rewards_BT": torch.zeros(1, 1), "ends_BT": torch.ones(1, 1, dtype=torch.bool),
    }  # fmt: skip
    one, two = (losses(config(entropy_cost=cost), **rest) for cost in (0.0, 0.5))
    assert (one.total - two.total).item() == pytest.approx(0.5 * one.entropy.item())


@pytest.mark.parametrize(("reward", "scale", "want"), [("clip", 1.0, 1.0), ("raw", 2.0, 2.0), ("tanh", 4.0, 0.761594)])
def test_rewards_are_shaped(config: Callable[..., RLConfig], reward: str, scale: float, want: float) -> None:
    got = shaped(torch.tensor([4.0, 0.0]), config(reward=reward, reward_scale=scale))
    assert got.tolist() == pytest.approx([want, 0.0])


def test_memory_goes_on_where_the_environment_was(
    make_learner: Callable[..., Learner], make_unroll: Callable[..., Unroll]
) -> None:
    """One unroll of ten steps leaves the memory that two of five leave, when nothing is learnt in between."""
    whole, halves = make_learner(lr=1e-12, replay=0), make_learner(lr=1e-12, replay=0)
    long = make_unroll(length=10)

    def part(number: int, at: int) -> Unroll:
        columns = {
            name: getattr(long, name)[at : at + 5] for name in ("actions", "log_probs", "rewards", "ends", "versions")
        }
        seen = {name: getattr(long, name)[at : at + 6] for name in ("executed", "first")}
        return Unroll(
            env_id=0, number=number, inputs={"observation": long.inputs["observation"][at : at + 6]}, **columns, **seen
        )

    whole.update([long], 0.0)
    halves.update([part(0, 0)], 0.0)
    halves.update([part(1, 5)], 0.0)
    want, got = whole._memories[0][1], halves._memories[0][1]
    assert want["age"].item() == 2  # steps 8 and 9 are the third episode's
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor)


def test_a_missing_unroll_empties_the_memory(
    make_learner: Callable[..., Learner], make_unroll: Callable[..., Unroll]
) -> None:
    learner = make_learner()
    learner.update([make_unroll(number=0)], 0.0)
    assert any(tensor.any() for tensor in learner._memory(make_unroll(number=1)).values())
    assert not any(tensor.any() for tensor in learner._memory(make_unroll(number=2)).values())


def test_replayed_unrolls_count_as_flops_and_not_as_steps(
    make_learner: Callable[..., Learner], make_unroll: Callable[..., Unroll]
) -> None:
    learner = make_learner(replay=2)
    for number in range(3):
        learner.update([make_unroll(env_id=env, number=number) for env in range(2)], 0.0)
    assert (learner.updates, learner.steps) == (3, 3 * 2 * 5)
    assert learner.flops == learner.flops_per_step * 6 * (2 + 4 + 4)
    critic = 2 * (8 * 8 + 8)
    assert learner.flops_per_step == count_flops(learner.policy).training + 3 * critic
    means = learner.take_means()
    assert means.updates == 3
    assert 0 < means.values["entropy"] <= np.log(3)
    assert learner.take_means().updates == 0


def test_return_goes_up_on_a_toy(make_learner: Callable[..., Learner]) -> None:
    """Games in this process, acted by the very weights that learn; the service's part is tested elsewhere."""
    learner = make_learner(replay=4, replay_size=40, num_envs=8, batch=8)
    games = [LocalGame(learner, env_id) for env_id in range(8)]
    for _ in range(60):
        learner.update([game.unroll() for game in games], 0.0)
    scores = [episode.score for game in games for episode in game.episodes]
    # A guess scores 8 / 3; who reads the observation, 8.
    assert np.mean(scores[:8]) < 4.5
    assert np.mean([episode.score for game in games for episode in game.episodes[-3:]]) > 6.5


def test_a_loss_that_is_no_number_is_an_error_and_changes_nothing(
    make_learner: Callable[..., Learner], make_unroll: Callable[..., Unroll]
) -> None:
    learner, unroll = make_learner(reward="raw"), make_unroll()
    before = {name: tensor.clone() for name, tensor in learner.net.state_dict().items()}
    unroll.rewards[2] = np.nan
    with pytest.raises(TrainingDivergedError, match="step 1"):
        learner.update([unroll], 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.net.state_dict().items())


def test_the_critic_shares_the_trunk_and_is_not_published(tmp_path: Path) -> None:
    net = ActorCritic(AtariPolicy(AtariConfig(game="toy", num_actions=3, width=2)), 16)
    inputs = {"frames": torch.randint(0, 256, (2, 3, 84, 84, 4), dtype=torch.uint8)}
    executed, first = torch.zeros(2, 3, 1, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
    torch.nn.init.normal_(net.critic[2].weight)
    logits, values, _ = net(inputs, executed, first)
    torch.testing.assert_close(logits, net.policy(inputs, executed, first).logits[0])
    assert values.shape == (2, 3)
    values.sum().backward()
    assert net.policy.conv1.weight.grad.abs().sum() > 0
    assert net.policy.head.weight.grad is None
    manifest = checkpoint.save(tmp_path / "checkpoint", net.policy, checkpoint.Manifest.describe(net.policy))
    loaded, _ = checkpoint.load(tmp_path / "checkpoint")
    assert set(loaded.state_dict()) == set(AtariPolicy(AtariConfig(game="toy", num_actions=3, width=2)).state_dict())
    assert manifest.num_params == net.policy.num_params() < net.num_params()


def test_the_published_policy_says_how_it_was_made(
    make_learner: Callable[..., Learner], make_unroll: Callable[..., Unroll], tmp_path: Path
) -> None:
    learner = make_learner(seed=5)
    learner.update([make_unroll()], 0.0)
    manifest = write_policy(learner, tmp_path / "policy", {"method": "rl"})
    assert (manifest.samples_seen, manifest.flops, manifest.seed) == (5, learner.flops, 5)
    assert manifest.origin["method"] == "rl"


def test_a_policy_without_one_linear_head_is_refused() -> None:
    policy = build("tiny_recurrent", {"num_actions": 3})
    policy.head = torch.nn.Identity()
    with pytest.raises(NotImplementedHereError, match="TinyRecurrentPolicy"):
        ActorCritic(policy, 8)


def test_wrong_settings_are_named(config: Callable[..., RLConfig]) -> None:
    for changes, word in (
        ({"batch": 5}, "num_envs"), ({"lr": 0.0}, "lr"), ({"discount": 1.5}, "discount"), ({"reward": "x"}, "clip"),
        ({"max_steps": 0}, "limit"), ({"replay": 9, "replay_size": 3}, "replay_size"), ({"unknown": 1}, "unknown"),
    ):  # fmt: skip
        with pytest.raises(BadSettingError, match=word):
            config(**changes)


def test_the_learning_rate_rises_and_falls(config: Callable[..., RLConfig]) -> None:
    settings = config(lr=1.0, warmup_updates=4, lr_final_fraction=0.2)
    assert settings.learning_rate(0, 0.0) == pytest.approx(0.25)
    assert settings.learning_rate(100, 0.0) == pytest.approx(1.0)
    assert settings.learning_rate(100, 0.5) == pytest.approx(0.6)
    assert settings.learning_rate(100, 1.0) == pytest.approx(0.2)
