"""Keyboard, mouse and instructions through the endpoint: sessions and rollouts of a desktop policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from desktop_policy import HEADS, DesktopPolicy, encode, enter

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError, EpisodeReusedError, NotFoundError, PlayserveError, StepFailedError
from playserve.settings import (
    ActionSource,
    Extras,
    MouseDecode,
    Pace,
    Sampling,
    SamplingMode,
    VersionPolicy,
)
from playserve_client.aio import PolicyClient
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings

ZERO = np.zeros((8, 8), np.uint8)
WANT = Extras(log_prob=True, value=True)


@asynccontextmanager
async def serving(policy: DesktopPolicy, **options: Any) -> AsyncIterator[PolicyClient]:
    async with (
        InferenceServer(ServeSettings(port=0, **options), {"desktop": lambda: policy}) as server,
        PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0) as client,
    ):
        yield client


def seen(value: int) -> Any:
    array = ZERO.copy()
    array[0, 0] = value
    return array


async def result_of(session: Any, value: int) -> Any:
    seq = await session.send_step(seen(value))
    result = await session.recv(10.0)
    assert result.seq == seq
    return result


def test_a_session_of_keyboard_and_mouse() -> None:
    async def main() -> None:
        async with serving(DesktopPolicy()) as client, client.play("desktop", seed=1, extras=WANT) as session:
            assert session.spec.action.mouse_decode is MouseDecode.MEAN
            first = await result_of(session, 1)
            assert first.value == enter(0, 1, None)
            assert len(first.log_prob) == len(HEADS)
            second = await result_of(session, 2)
            state = enter(enter(0, 1, None), 2, encode(first.action))
            assert second.value == state, "nobody said otherwise: the answer was executed"
            # A human holds what the policy has no name for, and moves further than it can: the rest is left out.
            human = DesktopAction(keys=frozenset({"KeyW", "Tab"}), buttons=frozenset({0, 4}), mouse_dx_px=1e4)
            await session.executed(2, human)
            state = enter(state, 3, encode(DesktopAction(frozenset({"KeyW"}), frozenset({0}), 60.0)))
            assert (await result_of(session, 3)).value == state
            await session.executed(3, None, ActionSource.NONE)
            state = enter(state, 4, encode(DesktopAction()))
            assert (await result_of(session, 4)).value == state, "nothing was executed: everything is up"
            await session.executed(4, None, ActionSource.UNKNOWN)
            assert (await result_of(session, 5)).value == enter(state, 5, None)

    asyncio.run(main())


def test_observe_only_frames_enter_the_memory_with_what_the_human_did() -> None:
    async def main() -> None:
        async with (
            serving(DesktopPolicy(rate_hz=20.0, catch_up_frames=4)) as client,
            client.play("desktop", pace=Pace.LIVE, extras=WANT) as session,
        ):
            human = DesktopAction(keys=frozenset({"KeyA"}), mouse_dx_px=-12)
            state = 0
            for step in range(1, 4):
                seq = await session.send_step(seen(step), observe_only=True)
                await session.ping()
                await session.executed(seq, human)
                state = enter(state, step, None if step == 1 else encode(human))
            assert (await result_of(session, 9)).value == enter(state, 9, encode(human))

    asyncio.run(main())


def test_mouse_decoding_and_instruction_change_while_the_game_goes_on() -> None:
    async def main() -> None:
        policy = DesktopPolicy()
        async with serving(policy) as client, client.play("desktop", seed=1, extras=WANT) as session:
            first = await result_of(session, 1)
            assert first.config_revision == 1
            drawn = Sampling(mode=SamplingMode.ARGMAX, mouse_decode=MouseDecode.TRUNCATED_NORMAL)
            assert await session.configure(sampling=drawn) == 2
            second = await result_of(session, 2)
            assert second.config_revision == 2
            state = enter(enter(0, 1, None), 2, encode(first.action))
            assert second.value == state
            assert second.action.mouse_dx_px == round(second.action.mouse_dx_px)
            policy.gate.clear()
            reading = asyncio.create_task(session.configure(instruction="go north"))
            await session.ping()
            calm = Sampling(mouse_decode=MouseDecode.CONSERVATIVE)
            behind = asyncio.create_task(session.configure(sampling=calm))
            before = second.action
            for step in (3, 4):
                result = await result_of(session, step)
                state = enter(state, step, encode(before))
                assert (result.value, result.config_revision) == (state, 2), "the old settings are in force"
                before = result.action
            assert not reading.done()
            assert not behind.done()
            policy.gate.set()
            assert (await reading, await behind) == (3, 4), "in the order in which they were sent"
            result = await result_of(session, 5)
            assert (result.value, result.config_revision) == (enter(state, 5, encode(before), "go north"), 4)
            assert result.action.mouse_dx_px in (-30.0, -1.0, 0.0, 1.0, 30.0)

    asyncio.run(main())


def test_a_change_behind_an_unreadable_instruction_counts_and_keeps_its_order() -> None:
    async def main() -> None:
        async with serving(DesktopPolicy()) as client, client.play("desktop", extras=WANT) as session:
            reading = asyncio.create_task(session.configure(instruction="unreadable"))
            await asyncio.sleep(0)
            behind = asyncio.create_task(session.configure(sampling=Sampling(temperature=2.0)))
            reset = asyncio.create_task(session.reset(episode_id=0))
            with pytest.raises(PlayserveError, match="embedded"):
                await reading
            assert await behind == 2
            with pytest.raises(EpisodeReusedError):
                await reset

    asyncio.run(main())


#: Threads that may wait: warming up, embedding, this test's own.
AWAY = {"playserve-loader", "playserve-embed", "asyncio"}


def threads_of(policy: DesktopPolicy) -> set[str]:
    return {name.split("_")[0] for name in policy.embedded_by}


def test_no_instruction_is_ever_embedded_on_the_engine_or_the_loop() -> None:
    async def main() -> None:
        policy = DesktopPolicy()
        async with InferenceServer(ServeSettings(port=0, slots=1), {"desktop": lambda: policy}) as server:
            runtime = server.catalog.resolve("desktop").runtime
            async with (
                PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0) as client,
                client.play("desktop", seed=1, extras=WANT, instruction="go") as session,
            ):
                first = await result_of(session, 1)
                for text in ("a", "b", "c"):  # more than a server of one slot keeps
                    await asyncio.to_thread(runtime.prepare_instruction, text)
                assert not runtime.knows_instruction("go")
                state = enter(enter(0, 1, None, "go"), 2, encode(first.action), "go")
                assert (await result_of(session, 2)).value == state
        assert policy.embedded.count("go") == 2
        assert threads_of(policy) <= AWAY

    asyncio.run(main())


def test_an_encoder_is_loaded_before_anybody_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(DesktopPolicy):
        def embed_instruction(self, text: str) -> Any:
            if text:
                raise NotFoundError("the encoder is not here")
            return super().embed_instruction(text)

    async def main() -> None:
        policies = {"ears": DesktopPolicy, "deaf": Deaf}
        async with InferenceServer(ServeSettings(port=0), policies) as server:  # type: ignore[arg-type]
            runtime = server.catalog.resolve("ears").runtime
            async with PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0) as client:
                async with client.play("deaf") as session:
                    await result_of(session, 1)
                    with pytest.raises(PlayserveError, match="the encoder is not here"):
                        await session.configure(instruction="stop")  # behind the first texts in the same thread
                    await result_of(session, 2)
            assert runtime.knows_instruction("Go on.")

    asyncio.run(main())
    assert "policy deaf version 1 cannot read instructions: the encoder is not here" in caplog.text


def test_a_session_follows_to_a_version_that_has_read_its_instruction() -> None:
    async def main() -> None:
        old, new = DesktopPolicy(), DesktopPolicy()
        new.gate.clear()
        async with (
            InferenceServer(ServeSettings(port=0), {"desktop": lambda: old}) as server,
            PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0) as client,
            client.play("desktop", instruction="go", version_policy=VersionPolicy.FOLLOW) as session,
        ):
            assert (await result_of(session, 1)).version == "1"
            await server.loader.add_policy("desktop", new, version="2")
            assert [(await result_of(session, step)).version for step in (2, 3, 4)] == ["1"] * 3
            new.gate.set()
            runtime = server.catalog.resolve("desktop", "2").runtime
            await asyncio.to_thread(runtime.prepare_instruction, "go")  # waits for the same, or does it
            await result_of(session, 5)
            assert (await result_of(session, 6)).version == "2"
            assert threads_of(new) <= AWAY

    asyncio.run(main())


async def rows(rollout: Any, envs: list[int], episode: int, value: int, texts: list[str] | None = None) -> None:
    inputs = np.stack([seen(value)] * len(envs))
    await rollout.send(envs, [episode] * len(envs), inputs, [7] * len(envs), instructions=texts)


async def values_of(rollout: Any, count: int) -> dict[int, float]:
    found: dict[int, float] = {}
    while len(found) < count:
        batch = await rollout.recv(10.0)
        assert all(isinstance(action, DesktopAction) for action in batch.actions)
        found |= {int(env): float(value) for env, value in zip(batch.env_ids, batch.values, strict=True)}
    return found


def test_a_rollout_answers_with_keyboard_and_mouse_and_takes_what_was_executed() -> None:
    async def main() -> None:
        async with (
            serving(DesktopPolicy()) as client,
            client.rollout("desktop", 2, extras=WANT, seed=3) as rollout,
        ):
            await rows(rollout, [0, 1], 1, 1)
            batch = await rollout.recv(10.0)
            assert batch.log_probs is not None
            told = {1: (DesktopAction(frozenset({"Space"}), mouse_dy_px=-5), ActionSource.HUMAN)}
            own = encode(batch.actions[list(batch.env_ids).index(0)])
            await rollout.send([0, 1], [1, 1], np.stack([seen(2)] * 2), executed=told)
            state = enter(0, 1, None)
            assert await values_of(rollout, 2) == {
                0: enter(state, 2, own),
                1: enter(state, 2, encode(told[1][0])),
            }

    asyncio.run(main())


def test_a_row_waits_for_its_episodes_instruction_and_no_other_does() -> None:
    async def main() -> None:
        policy = DesktopPolicy()
        async with serving(policy) as client, client.rollout("desktop", 3, extras=WANT) as rollout:
            policy.gate.clear()
            await rows(rollout, [0, 1, 2], 1, 1, ["", "go", ""])
            state = enter(0, 1, None)
            assert await values_of(rollout, 2) == {0: state, 2: state}
            human = DesktopAction(frozenset({"KeyW"}))
            for value in (2, 3):  # other rows go on; a second row of the one that waits, waits behind it
                told = dict.fromkeys((0, 1), (human, ActionSource.HUMAN))
                envs = [0, 1] if value == 2 else [0]
                await rollout.send(envs, [1] * len(envs), np.stack([seen(value)] * len(envs)), executed=told)
                assert set(await values_of(rollout, 1)) == {0}
            policy.gate.set()
            state = enter(0, 1, None, "go")
            batch = await rollout.recv(10.0)
            assert (list(batch.env_ids), list(batch.values)) == ([1], [state])
            assert await values_of(rollout, 1) == {1: enter(state, 2, encode(human), "go")}
            # The next episode has another one; a text that is known costs no wait, and no second embedding.
            policy.gate.clear()
            await rows(rollout, [0, 1, 2], 2, 1, ["go", "go", ""])
            wanted = enter(0, 1, None, "go")
            assert await values_of(rollout, 3) == {0: wanted, 1: wanted, 2: enter(0, 1, None)}
            assert policy.embedded.count("go") == 1

    asyncio.run(main())


def test_an_instruction_that_cannot_be_embedded_costs_its_row_only() -> None:
    async def main() -> None:
        async with serving(DesktopPolicy()) as client, client.rollout("desktop", 2, extras=WANT) as rollout:
            await rows(rollout, [0, 1], 1, 1, ["unreadable", "go"])
            found, errors = {}, []
            while len(found) + len(errors) < 2:
                try:
                    found |= await values_of(rollout, 1)
                except StepFailedError as error:
                    errors.append(error.env_id)
            assert (found, errors) == ({1: enter(0, 1, None, "go")}, [0])
            await rows(rollout, [0], 1, 1, ["stop"])  # it had not happened: the same episode may begin now
            assert await values_of(rollout, 1) == {0: enter(0, 1, None, "stop")}

    asyncio.run(main())


def test_a_rollout_that_closes_answers_rows_that_wait_for_their_instruction() -> None:
    async def main() -> None:
        policy = DesktopPolicy()
        async with serving(policy) as client, client.rollout("desktop", 1, extras=WANT) as rollout:
            policy.gate.clear()
            await rows(rollout, [0], 1, 1, ["go"])
            await rollout.ping()
            asyncio.get_running_loop().call_later(0.2, policy.gate.set)
            await rollout.close()
            assert await values_of(rollout, 1) == {0: enter(0, 1, None, "go")}

    asyncio.run(main())


def test_instructions_that_are_too_long_or_too_few_are_refused_whole() -> None:
    async def main() -> None:
        async with serving(DesktopPolicy()) as client, client.rollout("desktop", 2, extras=WANT) as rollout:
            with pytest.raises(BadSettingError):
                await rows(rollout, [0, 1], 1, 1, ["", "x" * 5000])
            with pytest.raises(PlayserveError, match="1 instructions"):
                await rows(rollout, [0, 1], 1, 1, ["go"])
            await rows(rollout, [0, 1], 1, 1, ["", ""])
            assert len(await values_of(rollout, 2)) == 2

    asyncio.run(main())
