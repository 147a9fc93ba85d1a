"""Drawing: a pure function of (seed, counter, head), with the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from playserve_services.inference.sampling import BatchSampler, derive_seed, uniforms

CPU = torch.device("cpu")


def fits(counts: np.ndarray, expected: np.ndarray | float) -> bool:  # type: ignore[type-arg]
    """Whether counts are within five standard deviations of chi-squared around what was expected."""
    dof = len(counts) - 1
    return bool(((counts - expected) ** 2 / expected).sum() < dof + 5 * np.sqrt(2 * dof))


def draw(logits_BA: torch.Tensor, seeds: list[int], counters: list[int], temperature: float = 1.0) -> list[int]:
    n = len(seeds)
    sampler = BatchSampler(seeds, counters, 1, [temperature] * n, [False] * n, CPU, want_log_prob=False)
    return sampler(logits_BA, 0).tolist()  # type: ignore[no-any-return]


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 10**6)), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_batch_mates_and_order_do_not_change_a_draw(rows: list[tuple[int, int]], order) -> None:  # type: ignore[no-untyped-def]
    whole = uniforms([s for s, _ in rows], [c for _, c in rows], 3)
    alone = np.concatenate([uniforms([s], [c], 3) for s, c in rows])
    assert np.array_equal(whole, alone)
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    assert np.array_equal(uniforms([rows[i][0] for i in shuffled], [rows[i][1] for i in shuffled], 3), whole[shuffled])


def test_uniforms_are_uniform_and_independent_over_counters_seeds_and_heads() -> None:
    n = 20_000
    for u in (uniforms([7] * n, range(n), 1)[:, 0], uniforms(range(n), [0] * n, 1)[:, 0]):
        counts = np.histogram(u, bins=50, range=(0, 1))[0]
        assert fits(counts, n / 50)
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
    heads = uniforms(range(n), [3] * n, 2)
    assert abs(np.corrcoef(heads.T)[0, 1]) < 0.03


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_actions_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    n = 20_000
    logits = torch.tensor([[0.0, 1.0, -2.0, 0.5]])
    actions = draw(logits.expand(n, -1), list(range(n)), [0] * n, temperature)
    expected = torch.softmax(logits[0].double() / temperature, 0).numpy() * n
    assert fits(np.bincount(actions, minlength=4), expected)


def test_argmax_takes_the_lowest_of_equals_and_mixes_with_sampling_rows() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [50.0, 0.0, 0.0]])
    sampler = BatchSampler([0, 0], [0, 0], 1, [1.0, 1.0], [True, False], CPU, want_log_prob=True)
    assert sampler(logits, 0).tolist() == [1, 0]
    log_probs = sampler.log_probs()
    assert log_probs is not None
    expected = torch.log_softmax(logits, -1)
    assert log_probs[:, 0].tolist() == pytest.approx([expected[0, 1].item(), expected[1, 0].item()], abs=1e-6)


def test_impossible_actions_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2000, -1)
    assert set(draw(logits, list(range(2000)), [0] * 2000)) == {1}


def test_episode_seeds_depend_on_stream_and_episode_only() -> None:
    seeds = {derive_seed(s, e) for s in range(50) for e in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= s < 2**63 for s in seeds)
