"""Fronts of a real Triton: batches computed there give what our engine gives, and slots can be read and written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_p2p import POLICY, SLOTS

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError, EngineFailedError, ServerUnavailableError, StepFailedError
from playserve_services.inference.engine import Batch, BatchResult, run_batch
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import Row, Rows, TorchRuntime
from playserve_services.triton.engine import TritonEngine
from playserve_services.triton.front import TritonFactory, TritonPool, TritonRuntime
from playserve_services.triton.link import TritonLink
from playserve_trainer.store import CheckpointStore, Entry

pytestmark = [pytest.mark.triton, pytest.mark.timeout(300)]


@pytest.fixture
async def link(triton: str) -> AsyncIterator[TritonLink]:
    lost: list[bool] = []
    link = TritonLink(triton, lambda: lost.append(True))
    await link.start()
    yield link
    await link.close()
    assert not lost


async def _front(link: TritonLink, store: Path, *, slots: int = 4, first: int = 0, version: str = "1") -> TritonRuntime:
    factory = TritonFactory(link, slots, first)
    return await _made(factory, store, version)


async def _made(factory: TritonFactory, store: Path, version: str) -> TritonRuntime:
    policy, spec = factory.read(CheckpointStore(store), Entry(POLICY, version), store)
    pool = factory.pool(policy)
    made = await asyncio.to_thread(factory.make, spec, policy, pool)
    assert isinstance(made.runtime, TritonRuntime)
    return made.runtime


def _own(store: Path, version: str = "1") -> TorchRuntime:
    """Return our engine's runtime of the same version."""
    factory = RuntimeFactory(slots=SLOTS, max_batch=4)
    policy, spec = factory.read(CheckpointStore(store), Entry(POLICY, version), store)
    return factory.make_runtime(spec, policy, factory.pool(policy))


def _rows(step: int, slots: list[int], told: list[Any], name: str) -> list[Row]:
    rng = np.random.default_rng(step)
    return [
        Row(
            slot, reset=step == 0, inputs={name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)}, executed=executed,
            seed=slot - (1 << 62) * (slot % 2), counter=step, temperature=0.7 + 0.1 * slot, argmax=slot == 2,
            ticks=1, instruction=("go left", "shoot")[step % 2],
        )
        for slot, executed in zip(slots, told, strict=True)
    ]  # fmt: skip


def _same(ours: Rows, theirs: Rows) -> None:
    assert theirs.actions == ours.actions
    assert theirs.decoded == ours.decoded
    assert theirs.executed == ours.executed
    assert ours.log_probs is not None
    np.testing.assert_array_equal(theirs.log_probs, ours.log_probs)


async def test_what_triton_computes_is_what_our_engine_computes(link: TritonLink, tiny_store: Path) -> None:
    theirs, ours = await _front(link, tiny_store), _own(tiny_store)
    slots, told = [1, 2, 3], [None, None, None]
    for step in range(20):  # past the end of the ring
        rows = _rows(step, slots, told, theirs.spec.inputs[0].name)
        ours_found = ours.run(rows, want_log_prob=True)
        _same(ours_found, await asyncio.to_thread(theirs.run, rows, True))
        assert ours_found.executed is not None
        told = [*ours_found.executed[:2], DesktopAction(frozenset({"KeyA"}), mouse_dx_px=3.0)]  # and by a person


async def test_fronts_with_ranges_of_their_own_do_not_disturb_each_other(link: TritonLink, tiny_store: Path) -> None:
    left, right = await _front(link, tiny_store), await _front(link, tiny_store, first=4)
    ours = _own(tiny_store)
    name = left.spec.inputs[0].name
    for step in range(10):
        rows = _rows(step, [1, 2], [None, None], name)
        other = _rows(100 + step, [1, 2], [None, None], name)  # the same numbers of slots, other frames
        _same(ours.run(rows, True), await asyncio.to_thread(left.run, rows, True))
        await asyncio.to_thread(right.run, other, True)


async def test_a_second_version_shares_the_slots(link: TritonLink, tiny_store: Path) -> None:
    factory = TritonFactory(link, 4)
    first, second = await _made(factory, tiny_store, "1"), await _made(factory, tiny_store, "2")
    assert first.pool is second.pool
    ours = _own(tiny_store), _own(tiny_store, "2")
    name = first.spec.inputs[0].name
    # A memory that the first version began, the second goes on with.
    begun = _rows(0, [1], [None], name)
    _same(ours[0].run(begun, True), await asyncio.to_thread(first.run, begun, True))
    ours[1].pool.import_slot(1, ours[1].pool.digest, ours[0].pool.export_slot(1))
    on = _rows(1, [1], [None], name)
    _same(ours[1].run(on, True), await asyncio.to_thread(second.run, on, True))


async def test_a_slot_can_be_read_and_written_elsewhere(link: TritonLink, tiny_store: Path) -> None:
    front, ours = await _front(link, tiny_store), _own(tiny_store)
    name = front.spec.inputs[0].name
    for step in range(3):
        rows = _rows(step, [1], [None], name)
        ours.run(rows, True)
        await asyncio.to_thread(front.run, rows, True)
    theirs = await asyncio.to_thread(front.pool.export_slot, 1)
    assert theirs == ours.pool.export_slot(1)
    await asyncio.to_thread(front.pool.import_slot, 3, front.pool.digest, theirs)
    on = _rows(3, [1], [None], name)
    moved = [Row(3, *[getattr(on[0], key) for key in Row.__slots__[1:]])]
    _same(ours.run(on, True), await asyncio.to_thread(front.run, moved, True))


async def test_an_engine_of_a_front_answers_batches_and_calls_in_order(link: TritonLink, tiny_store: Path) -> None:
    front, ours = await _front(link, tiny_store), _own(tiny_store)
    name = front.spec.inputs[0].name
    found: list[Any] = []
    all_there = asyncio.Event()

    def take(batch: Batch, result: BatchResult) -> None:
        found.append((batch.tag, result))

    engine = TritonEngine(take, link)
    rounds = [[_rows(2 * i, [1, 2], [None, None], name), _rows(2 * i + 1, [1], [None], name)] for i in range(3)]
    for number, pair in enumerate(rounds):
        engine.submit(Batch(front, pair, True, number))
    engine.call(lambda: front.pool.export_slot(1), lambda value, error: (found.append((value, error)), all_there.set()))
    await asyncio.wait_for(all_there.wait(), 30)
    engine.close()
    assert [tag for tag, _ in found[:3]] == [0, 1, 2]
    for pair, (_, result) in zip(rounds, found[:3], strict=True):
        expected = run_batch(Batch(ours, pair, True, None))
        for mine, their in zip(expected.rounds or [], result.rounds, strict=True):
            _same(mine, their)
    assert found[3] == (ours.pool.export_slot(1), None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda arrays: arrays.pop("seed"), "without the tensors seed"),
        (lambda arrays: arrays.update(slot=np.array([99, 1])), "slot 99 of 1 to 8"),
        (lambda arrays: arrays.update(ticks=np.array([1])), "not as many rows each"),
    ],
)
async def test_a_bad_batch_gets_its_error_and_the_next_one_its_answer(
    link: TritonLink, tiny_store: Path, spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    front = await _front(link, tiny_store)
    rows = _rows(0, [1, 2], [None, None], front.spec.inputs[0].name)
    arrays = front.request(rows)
    spoil(arrays)
    bad, good = link.ask(POLICY, arrays, version="1"), link.ask(POLICY, front.request(rows), version="1")
    with pytest.raises(StepFailedError, match=message):
        await bad
    assert "actions" in await good


async def test_what_triton_does_not_have_is_refused(link: TritonLink, tiny_store: Path) -> None:
    front = await _front(link, tiny_store)
    rows = _rows(0, [1], [None], front.spec.inputs[0].name)
    with pytest.raises(StepFailedError, match="version '7' of tiny is not loaded here"):
        await link.ask(POLICY, front.request(rows), version="7")
    with pytest.raises(BadSettingError, match=r"slots up to 12 are wanted; Triton's model has 8"):
        await _front(link, tiny_store, first=8)
    pool = TritonPool(front.pool.digest, _own(tiny_store)._policy, 4, 0, link)
    pool.through = front.pool.through
    with pytest.raises(StepFailedError, match="tensor 'nothing'"):
        await asyncio.to_thread(pool.read_chunk, 1, "nothing", memoryview(bytearray(4)))


async def test_nobody_there_is_said_so() -> None:
    link = TritonLink("127.0.0.1:9", lambda: None)
    with pytest.raises(ServerUnavailableError, match="no Triton answers at 127"):
        await link.start()
    await link.close()
    with pytest.raises(EngineFailedError, match="lost"):
        await link.ask(POLICY, {})
