"""Sequences of the Open Inference Protocol, on an engine that the test drives: turns, ends, time-outs, owners."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from rig import Rig
from tritonclient.grpc import service_pb2 as oip

from playserve.errors import (
    AccessEndedError,
    BadSettingError,
    DrainingError,
    EngineFailedError,
    NoFreeSlotError,
    PlayserveError,
    PolicyNotFoundError,
    QueueFullError,
    QuotaExceededError,
    SessionExpiredError,
    ShapeMismatchError,
    TimeoutExceededError,
)
from playserve_services.auth.gate import Caller
from playserve_services.auth.keys import Quota, Scope
from playserve_services.auth.principal import Anonymous, Principal
from playserve_services.auth.quotas import Accounts
from playserve_services.inference.access import end_revoked
from playserve_services.inference.core import CoreLimits
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.oip.parameters import read_parameters
from playserve_services.inference.oip.sequences import Sequences
from playserve_services.inference.sessions import EndReason
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

POLICY = "memory"


class _Door(Anonymous):
    def __init__(self) -> None:
        super().__init__()
        self.revoked: set[str] = set()

    def holds(self, principal: Principal) -> bool:
        return principal.key_id not in self.revoked


class House:
    """Sequences on a core whose engine runs when the test says so."""

    def __init__(self, **limits: Any) -> None:
        self.rig = Rig(slots=3, limits=CoreLimits(max_steps_in_flight=2, **limits))
        self.policy = self.load("1")
        loader = PolicyLoader(self.rig.catalog, self.rig.factory)
        loader.ready = True
        self.embedders = ThreadPoolExecutor(1)
        self.sequences = Sequences(self.rig.core, loader, self.embedders, 1 << 20)
        self.door, self.accounts = _Door(), Accounts()
        self.ann = self.caller("ann")
        self.loader = loader

    def close(self) -> None:
        self.loader.close()
        self.embedders.shutdown()

    def load(self, version: str) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.rig.load(POLICY, TinyRecurrentPolicy(TinyRecurrentConfig(hidden=4)), version)

    def caller(self, name: str, key: str = "", **quota: Any) -> Caller:
        principal = Principal(
            name=name, scopes=frozenset(Scope), method="anonymous", key_id=key or name, quota=Quota(**quota)
        )
        return Caller(principal, self.accounts, self.door)

    async def send(self, sequence: Any = 7, *, caller: Caller | None = None, **options: Any) -> asyncio.Future[Any]:
        request = step(sequence, **options)
        return await self.sequences.enter(caller or self.ann, request, read_parameters(request))

    async def play(self, sequence: Any = 7, **options: Any) -> Any:
        coming = await self.send(sequence, **options)
        self.rig.engine.run_all()
        return action(await coming)


def step(
    sequence: Any = 7, *, start: bool = False, end: bool = False, number: int = 0, model: str = POLICY,
    version: str = "", timeout: int = 0, seed: int | None = None,
) -> oip.ModelInferRequest:  # fmt: skip
    request = oip.ModelInferRequest(model_name=model, model_version=version, id=f"{sequence}-{number}")
    if isinstance(sequence, str):
        request.parameters["sequence_id"].string_param = sequence
    else:
        request.parameters["sequence_id"].int64_param = sequence
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    if timeout:
        request.parameters["timeout"].int64_param = timeout
    frame = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    request.inputs.add(name="observation", datatype="UINT8", shape=(1, 8, 8))
    request.raw_input_contents.append(frame.tobytes())
    if seed is not None:
        request.inputs.add(name="seed", datatype="UINT64", shape=(1, 1))
        request.raw_input_contents.append(seed.to_bytes(8, "little"))
    return request


def action(response: oip.ModelInferResponse) -> tuple[int, bytes]:
    names = [output.name for output in response.outputs]
    assert names == ["action", "log_prob"]
    return int.from_bytes(response.raw_output_contents[0], "little"), response.raw_output_contents[1]


@pytest.fixture
def make() -> Any:
    houses: list[House] = []

    def build(**limits: Any) -> House:
        houses.append(House(**limits))
        return houses[-1]

    yield build
    for house in houses:
        house.close()


@pytest.fixture
def house(make: Callable[..., House]) -> House:
    return make()


async def _episode(house: House, sequence: Any = 7, steps: int = 4, **options: Any) -> list[Any]:
    return [await house.play(sequence, start=n == 0, end=n == steps - 1, number=n, **options) for n in range(steps)]


async def test_a_sequence_has_a_slot_from_its_start_to_its_end(house: House) -> None:
    pool = house.policy.pool
    await house.play(start=True)
    assert (pool.used, len(house.sequences), len(house.rig.core)) == (1, 1, 1)
    (session,) = house.rig.core.sessions()
    assert (session.principal, session.live, session.client.name) == ("ann", False, "open-inference-protocol")
    await house.play(end=True)
    assert (pool.used, len(house.sequences), len(house.rig.core)) == (0, 0, 0)
    with pytest.raises(BadSettingError, match="must specify the START flag"):
        await house.send()


async def test_a_start_empties_the_memory_and_begins_the_draws_anew(house: House) -> None:
    expected = await _episode(house)
    assert await _episode(house) == expected  # after its end
    await house.play(start=True, number=9)
    assert await _episode(house) == expected  # in the middle
    drawn = [tuple(await _episode(house, seed=seed)) for seed in (3, 3, *range(10, 20))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


async def test_names_are_the_callers_own_and_numbers_are_not_texts(house: House) -> None:
    alone = await _episode(house, seed=1)
    bob, found = house.caller("bob"), []
    for n in range(4):
        found.append(await house.play(start=n == 0, number=n, seed=1 if n == 0 else None))
        if n == 0:
            with pytest.raises(BadSettingError, match="START"):
                await house.send(caller=bob)
            with pytest.raises(BadSettingError, match="START"):
                await house.send("7")
        await house.play(caller=bob, start=n == 0, number=50 + n)
        await house.play("7", start=n == 0, number=70 + n)
    assert found == alone
    assert house.policy.pool.used == 3
    with pytest.raises(NoFreeSlotError):
        await house.send(8, start=True)
    assert len(house.sequences) == 3


async def test_frames_enter_in_their_order_and_no_more_than_may_wait(house: House) -> None:
    coming = [await house.send(start=True), await house.send(number=1)]
    third = asyncio.create_task(house.send(number=2))
    await asyncio.sleep(0)
    assert not third.done()
    fourth = asyncio.create_task(house.send(number=3))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="wait to enter sequence 7"):
        await house.send(number=4)
    house.rig.engine.run_one()
    coming += [await third]
    house.rig.engine.run_one()
    coming += [await fourth]
    house.rig.engine.run_all()
    answers = [(await one).id for one in coming]
    assert answers == [f"7-{n}" for n in range(4)]


async def test_an_end_and_a_start_may_follow_each_other_without_waiting(house: House) -> None:
    expected = await _episode(house, steps=2)
    last = await house.send(start=True, end=True, number=5)
    first = await house.send(start=True)
    house.rig.engine.run_all()
    await last
    assert action(await first) == expected[0]
    assert await house.play(number=1, end=True) == expected[1]
    assert len(house.sequences) == 0


async def test_a_silent_sequence_is_forgotten(house: House) -> None:
    await house.play(start=True)
    house.rig.advance(50)
    await house.play()
    house.rig.advance(50)
    house.rig.core.tick()
    assert len(house.sequences) == 1
    house.rig.advance(11)
    house.rig.core.tick()
    assert (len(house.sequences), house.policy.pool.used) == (0, 0)
    with pytest.raises(BadSettingError, match="silent too long"):
        await house.send()


async def test_a_request_that_waits_longer_than_its_timeout_never_came(house: House) -> None:
    expected = await _episode(house, steps=3)
    first = await house.send(start=True)
    late = await house.send(number=9, timeout=1000)
    with pytest.raises(TimeoutExceededError, match="1000 microseconds"):
        await late
    house.rig.engine.run_all()
    assert action(await first) == expected[0]
    assert await house.play(number=1, timeout=60_000_000) == expected[1]
    assert await house.play(number=2, end=True) == expected[2]
    # What a late START would have begun did not begin.
    other = await house.send(8, start=True)
    late = await house.send(start=True, timeout=1000)
    with pytest.raises(TimeoutExceededError):
        await late
    assert len(house.sequences) == 1
    house.rig.engine.run_all()
    await other


async def test_a_late_end_ends_nothing(house: House) -> None:
    first = await house.send(start=True)
    late = await house.send(end=True, number=1, timeout=1000)
    with pytest.raises(TimeoutExceededError):
        await late
    house.rig.engine.run_all()
    await first
    await house.play(number=1, end=True)
    assert len(house.sequences) == 0


async def test_a_bad_request_costs_nothing_but_itself(house: House) -> None:
    expected = await _episode(house, steps=2)
    bad = step(start=True)
    bad.inputs[0].shape[1] = 9
    with pytest.raises(ShapeMismatchError):
        await house.sequences.enter(house.ann, bad, read_parameters(bad))
    assert (len(house.sequences), house.policy.pool.used) == (0, 0)
    assert await house.play(start=True) == expected[0]
    bad.parameters["sequence_start"].bool_param = False
    with pytest.raises(ShapeMismatchError):
        await house.sequences.enter(house.ann, bad, read_parameters(bad))
    assert await house.play(number=1, end=True) == expected[1]
    with pytest.raises(PolicyNotFoundError):
        await house.send(model="nobody", start=True)
    with pytest.raises(PolicyNotFoundError):
        await house.send(model="nobody")
    assert len(house.sequences) == 0


async def test_a_sequence_stays_on_the_version_on_which_it_began(house: House) -> None:
    await house.play(start=True)
    newer = house.load("2")
    await house.play()
    assert newer.sessions == 0
    waits = await house.send(number=1)
    anew = await house.send(start=True)
    assert (house.policy.sessions, newer.sessions) == (1, 1)
    house.rig.engine.run_all()
    assert ((await waits).model_version, (await anew).model_version) == ("1", "2")
    assert (house.policy.sessions, newer.sessions, len(house.sequences)) == (0, 1, 1)
    await house.play(version="1", start=True)  # as the requests write it: another sequence
    assert (house.policy.sessions, newer.sessions, len(house.sequences)) == (1, 1, 2)


async def test_quotas_and_keys_are_those_of_sessions(house: House) -> None:
    first, second = house.caller("eve", "k1", sessions=1), house.caller("eve", "k2", sessions=1)
    await house.play(caller=first, start=True)
    with pytest.raises(QuotaExceededError):
        await house.send(8, caller=first, start=True)
    assert (first.account.sessions, len(house.sequences)) == (1, 1)
    await house.play(caller=second)  # the same person, with another key: that one counts it now
    assert (first.account.sessions, second.account.sessions) == (0, 1)
    waits = await house.send(caller=second)
    house.door.revoked.add("k2")
    assert end_revoked(house.rig.core) == 1
    with pytest.raises(AccessEndedError):
        await waits
    assert (second.account.sessions, len(house.sequences)) == (0, 0)


async def test_whoever_waits_is_told_why_the_sequence_ended(house: House) -> None:
    core = house.rig.core
    for reason, error in ((EndReason.EXPIRED, SessionExpiredError("x")), (EndReason.ENDED_BY_OPERATOR, None)):
        waits = await house.send(start=True)
        (session,) = core.sessions()
        core.end(session, reason, error)
        with pytest.raises(type(error) if error else PlayserveError):
            await waits
        assert len(house.sequences) == 0
    house.rig.engine.run_all()
    waits = await house.send(start=True)
    core.on_engine_death()
    with pytest.raises(EngineFailedError):
        await waits


async def test_a_drain_lets_sequences_end_and_begins_none(house: House) -> None:
    await house.play(start=True)
    house.rig.core.start_drain()
    for sequence in (7, 8):
        with pytest.raises(DrainingError):
            await house.send(sequence, start=True)
    await house.play()
    await house.play(end=True)
    assert len(house.sequences) == 0


async def test_who_goes_away_takes_nothing_with_him(house: House) -> None:
    first = await house.send(start=True)
    first.cancel()
    waits = [asyncio.create_task(house.send(number=n)) for n in (1, 2)]
    for _ in range(3):
        await asyncio.sleep(0)
    waits[1].cancel()
    house.rig.engine.run_all()
    await asyncio.wait(waits)
    house.rig.engine.run_all()
    await waits[0].result()
    await house.play(end=True, number=3)
    assert (len(house.sequences), house.policy.pool.used) == (0, 0)


async def test_statistics_count_what_came_by_this_protocol(house: House) -> None:
    both = [await house.send(sequence, start=True) for sequence in (7, 8)]
    house.rig.engine.run_all()
    await asyncio.gather(*both)
    busy = await house.send(8)
    late = await house.send(timeout=1)
    with pytest.raises(TimeoutExceededError):
        await late
    assert not busy.done()
    (stats,) = house.sequences.statistics.message([house.policy.spec]).model_stats
    assert (stats.name, stats.version, stats.inference_count) == (POLICY, "1", 2)
    assert 1 <= stats.execution_count <= 2
    assert stats.last_inference > 0
    counted = stats.inference_stats
    assert (counted.success.count, counted.fail.count, counted.compute_infer.count) == (2, 1, 2)
    assert counted.success.ns >= counted.compute_infer.ns > 0
    unused = dataclasses.replace(house.policy.spec, version="9")
    assert house.sequences.statistics.message([unused]).model_stats[0].inference_count == 0
