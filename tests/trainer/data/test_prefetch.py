"""The prefetching thread: batches in order, errors handed on, no thread left."""

import threading

import pytest
import torch

from playserve_trainer.data.batches import Batch
from playserve_trainer.data.prefetch import Prefetcher


class _Counting:
    """Batches that hold their own index; the one at `bad` cannot be made."""

    batch_size = sequence_length = num_samples = 1
    carries_state = False

    def __init__(self, bad: int = 10**9) -> None:
        self._bad = bad

    def batch(self, index: int) -> Batch:
        if index == self._bad:
            raise OSError(f"batch {index} is unreadable")
        number = torch.full((1, 1, 1), index)
        return Batch({}, number, torch.ones(1, 1, dtype=torch.bool), number, 1)


def test_batches_come_in_order_from_any_start() -> None:
    with Prefetcher(_Counting(), start=5, depth=2) as batches:
        assert [int(batches.next().labels_BTH) for _ in range(20)] == list(range(5, 25))
        assert batches.waited_s >= 0


def test_an_error_of_the_source_reaches_the_loop_after_the_good_batches() -> None:
    with Prefetcher(_Counting(bad=3), depth=2) as batches:
        assert [int(batches.next().labels_BTH) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="batch 3"):
            batches.next()


def test_the_thread_ends_with_the_block() -> None:
    with Prefetcher(_Counting()) as batches:
        batches.next()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
