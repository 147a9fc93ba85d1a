"""V-trace against the paper's formula, written out slowly, and against what it becomes on policy."""

from __future__ import annotations

import math

import pytest
import torch

from playserve_trainer.rl.vtrace import vtrace

B, T = 3, 7


def numbers(seed: int, *, on_policy: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mu = -draw(B, T).abs()
    ends = torch.rand((B, T), generator=generator) < 0.2
    return {
        "behaviour_log_probs_BT": mu,
        "log_probs_BT": mu if on_policy else -draw(B, T).abs(),
        "rewards_BT": draw(B, T),
        "discounts_BT": 0.9 * (~ends).float(),
        "values_BT": draw(B, T),
        "bootstrap_B": draw(B),
    }


def literal(x: dict[str, torch.Tensor], rho_clip: float, c_clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1 of 1802.01561 as a double sum of products, and the advantage of its section 4.2."""
    targets, advantages = torch.zeros(B, T), torch.zeros(B, T)
    for b in range(B):
        gamma = [g.item() for g in x["discounts_BT"][b]]
        ratio = [math.exp(d.item()) for d in x["log_probs_BT"][b] - x["behaviour_log_probs_BT"][b]]
        rho, c = [min(rho_clip, r) for r in ratio], [min(c_clip, r) for r in ratio]
        value = [v.item() for v in x["values_BT"][b]] + [x["bootstrap_B"][b].item()]
        reward = [r.item() for r in x["rewards_BT"][b]]
        for s in range(T):
            total = value[s]
            for t in range(s, T):
                weight = math.prod(gamma[i] * c[i] for i in range(s, t))
                total += weight * rho[t] * (reward[t] + gamma[t] * value[t + 1] - value[t])
            targets[b, s] = total
        for s in range(T):
            ahead = targets[b, s + 1].item() if s + 1 < T else value[T]
            advantages[b, s] = rho[s] * (reward[s] + gamma[s] * ahead - value[s])
    return targets, advantages


@pytest.mark.parametrize(("rho_clip", "c_clip"), [(1.0, 1.0), (2.0, 0.5), (1e9, 1e9)])
def test_it_is_the_papers_formula(rho_clip: float, c_clip: float) -> None:
    x = numbers(1)
    got = vtrace(**x, rho_clip=rho_clip, c_clip=c_clip)
    targets, advantages = literal(x, rho_clip, c_clip)
    torch.testing.assert_close(got.targets_BT, targets, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.advantages_BT, advantages, rtol=1e-4, atol=1e-4)


def test_on_policy_the_targets_are_n_step_returns() -> None:
    x = numbers(2, on_policy=True)
    ahead, returns = x["bootstrap_B"], []
    for t in reversed(range(T)):
        ahead = x["rewards_BT"][:, t] + x["discounts_BT"][:, t] * ahead
        returns.append(ahead)
    got = vtrace(**x)
    torch.testing.assert_close(got.targets_BT, torch.stack(returns[::-1], 1))
    torch.testing.assert_close(got.advantages_BT, got.targets_BT - x["values_BT"])
    torch.testing.assert_close(got.ratios_BT, torch.ones(B, T))


def test_nothing_reaches_over_the_end_of_an_episode() -> None:
    x = numbers(3)
    x["discounts_BT"][:, 3] = 0.0
    before = vtrace(**x)
    x["rewards_BT"][:, 4:] += 100.0
    x["bootstrap_B"] += 100.0
    after = vtrace(**x)
    torch.testing.assert_close(after.targets_BT[:, :4], before.targets_BT[:, :4])
    torch.testing.assert_close(after.advantages_BT[:, :4], before.advantages_BT[:, :4])


def test_an_action_that_the_policy_would_not_take_teaches_nothing() -> None:
    x = numbers(4)
    x["log_probs_BT"] = torch.full((B, T), -60.0)
    got = vtrace(**x)
    torch.testing.assert_close(got.targets_BT, x["values_BT"])
    assert got.advantages_BT.abs().max() < 1e-6
