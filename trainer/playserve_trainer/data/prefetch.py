"""A thread that makes batches ahead of the loop, and the time that the loop waited for it."""

from __future__ import annotations

import queue
import threading
import time
from types import TracebackType

from playserve_trainer.data.batches import Batch, BatchSource

__all__ = ["Prefetcher"]


class Prefetcher:
    """Batches of a source in order, made by one thread, `depth` of them ahead.

    A context manager; the thread is gone when it is left.

    Args:
        source: Where batches come from; asked by the thread only.
        start: Index of the first batch.
        depth: Batches made ahead, at least 1.
        pin: Whether batches go to page-locked memory, for copies to a GPU beside its work.
    """

    def __init__(self, source: BatchSource, *, start: int = 0, depth: int = 2, pin: bool = False) -> None:
        self._source = source
        self._next = start
        self._pin = pin
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._make, name="prefetch", daemon=True)
        self.waited_s = 0.0

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def next(self) -> Batch:
        """Return the next batch; an error of the source is raised here."""
        began = time.monotonic()
        item = self._queue.get()
        self.waited_s += time.monotonic() - began
        if isinstance(item, BaseException):
            raise item
        return item

    def _make(self) -> None:
        index = self._next
        while not self._stop.is_set():
            item: Batch | BaseException
            try:
                item = self._source.batch(index)
                if self._pin:
                    item = _pinned(item)
            except Exception as error:  # noqa: BLE001 - handed to the loop, which raises it
                item = error
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            index += 1


def _pinned(batch: Batch) -> Batch:
    return Batch(
        {name: tensor.pin_memory() for name, tensor in batch.inputs.items()},
        batch.executed_BTH.pin_memory(),
        batch.first_BT.pin_memory(),
        batch.labels_BTH.pin_memory(),
        batch.samples,
        None if batch.episodes_BT is None else batch.episodes_BT.pin_memory(),
    )
