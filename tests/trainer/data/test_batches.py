"""The orders of batches: pure functions of (seed, index), every item once an epoch, streams without a gap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve_trainer.data.batches import ShuffledOrder, StreamOrder


@given(items=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_shuffled_order_sees_every_item_once_an_epoch(items: int, batch: int, seed: int, epochs: int) -> None:
    order = ShuffledOrder(items, batch, seed)
    batches = -(-epochs * items // batch)
    chain = np.concatenate([order.items(i) for i in range(batches)])
    for epoch in range(epochs):
        assert sorted(chain[epoch * items : (epoch + 1) * items]) == list(range(items))


def test_shuffled_order_is_a_pure_function_of_seed_and_index() -> None:
    forward = [ShuffledOrder(23, 8, seed=1).items(i) for i in range(12)]
    order = ShuffledOrder(23, 8, seed=1)
    for i in (11, 0, 5, 5, 2, 10, 1):
        np.testing.assert_array_equal(order.items(i), forward[i])
    assert not np.array_equal(ShuffledOrder(23, 8, seed=2).items(0), forward[0])
    assert not np.array_equal(np.concatenate(forward[:3])[:23], np.concatenate(forward)[23:46])


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    batch=st.integers(1, 4),
    steps=st.integers(1, 6),
    seed=st.integers(0, 3),
)
def test_stream_rows_go_on_without_a_gap(lengths: list[int], batch: int, steps: int, seed: int) -> None:
    if sum(lengths) // batch < steps:
        with pytest.raises(ValueError, match="do not fill"):
            StreamOrder(np.array(lengths), batch, steps, seed)
        return
    order = StreamOrder(np.array(lengths), batch, steps, seed)
    for epoch in range(2):
        chunks = [order.chunk(epoch * order.batches_per_epoch + i) for i in range(order.batches_per_epoch)]
        episode, step, first = (np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))
        assert first[:, 0].all()
        assert (step < np.array(lengths)[episode]).all()
        for b in range(batch):
            for t in range(1, step.shape[1]):
                if first[b, t]:
                    assert step[b, t] == 0
                    assert step[b, t - 1] == lengths[episode[b, t - 1]] - 1
                else:
                    assert (episode[b, t], step[b, t]) == (episode[b, t - 1], step[b, t - 1] + 1)
        seen = list(zip(episode.ravel(), step.ravel(), strict=True))
        assert len(set(seen)) == len(seen)


def test_stream_order_is_a_pure_function_of_seed_and_index() -> None:
    lengths = np.array([5, 9, 3, 12])
    forward = [StreamOrder(lengths, 2, 3, seed=4).chunk(i) for i in range(9)]
    order = StreamOrder(lengths, 2, 3, seed=4)
    for i in (8, 0, 4, 3):
        for got, wanted in zip(order.chunk(i), forward[i], strict=True):
            np.testing.assert_array_equal(got, wanted)
