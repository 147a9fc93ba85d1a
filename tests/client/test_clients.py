"""Both clients, sync and async, against the fake server: each test runs once with each.

The sync client's methods return values and the async one's awaitables; `settle` makes them alike. The fake server has
threads of its own, so a sync call that blocks the event loop of a test hurts nobody.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

import playserve_client
from playserve.codec import Action, DesktopAction
from playserve.errors import (
    AccessDeniedError,
    BadActionError,
    BadRowError,
    BadSettingError,
    CodecNotNegotiatedError,
    DrainingError,
    DTypeMismatchError,
    EpisodeReusedError,
    ExecutedUnknownError,
    InputMissingError,
    InputUnknownError,
    NoFreeSlotError,
    PlayserveError,
    PolicyNotFoundError,
    QueueFullError,
    ServerFault,
    ServerUnavailableError,
    SessionClosedError,
    SessionNotFoundError,
    ShapeMismatchError,
    StateError,
    StepFailedError,
    SupersededError,
    TimeoutExceededError,
    UnauthenticatedError,
    UnsupportedError,
    VersionNotFoundError,
)
from playserve.settings import ActionSource, Extras, Pace, Sampling, SamplingMode
from playserve.specs import Codec, DesktopActionSpec, DiscreteActionSpec, PolicyKind, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakePolicyServer, FakeReply, StepContext, default_spec, desktop_spec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client import aio
from playserve_client.streams import Stream

FRAME = np.zeros((2, 2, 3), np.uint8)


def count(inputs: dict, context: StepContext) -> Action:
    """The number of steps in the memory."""
    context.state["n"] = context.state.get("n", 0) + 1
    return int(context.state["n"])


async def settle(value):
    """Return a value, or what an awaitable gives."""
    return await value if inspect.isawaitable(value) else value


@pytest.fixture(params=["sync", "aio"])
def client_class(request):
    return playserve_client.PolicyClient if request.param == "sync" else aio.PolicyClient


@pytest.fixture
def connect(client_class):
    """Return an async context manager that makes a client."""

    @asynccontextmanager
    async def make(address, **kwargs):
        client = client_class(address, **kwargs)
        try:
            yield client
        finally:
            await settle(client.close())

    return make


@asynccontextmanager
async def opened(opening):
    """Open a session or a rollout of either client, and close it."""
    item = await settle(opening)
    try:
        yield item
    finally:
        await settle(item.close())


@pytest.fixture
def server():
    with FakePolicyServer({"count": count}, slots=4) as server:
        yield server


def fake(handler, spec=None, **kwargs):
    return FakePolicy(spec=spec or default_spec("count"), handler=handler, **kwargs)


# ---- what there is


async def test_policies_are_listed_and_described(connect, server):
    server.publish(fake(count, default_spec("other"), aliases=("stable",)))
    async with connect(server.address) as client:
        await settle(client.wait_ready(10))
        await settle(client.wait_ready(10, policy="other", version="stable"))
        infos = await settle(client.list_policies())
        assert [info.spec.name for info in infos] == ["count", "other"]
        assert [info.spec.name for info in await settle(client.list_policies("oth"))] == ["other"]
        info = await settle(client.get_policy("other", "stable"))
        assert (info.spec, info.aliases, info.slots_total) == (default_spec("other"), ("stable",), 16)
        with pytest.raises(PolicyNotFoundError, match="'nope'"):
            await settle(client.get_policy("nope"))
        with pytest.raises(VersionNotFoundError):
            await settle(client.get_policy("count", "7"))
        with pytest.raises(TimeoutExceededError, match="nope"):
            await settle(client.wait_ready(0.2, policy="nope"))


async def test_nobody_there_is_an_error_and_never_a_wait_without_end(connect):
    async with connect("127.0.0.1:1", timeout_s=2) as client:
        for call in (lambda: client.list_policies(), lambda: client.play("x"), lambda: client.rollout("x", 1)):
            with pytest.raises(ServerUnavailableError):
                await settle(call())
        with pytest.raises(TimeoutExceededError, match=r"127.0.0.1:1 is not ready after 0.3 s"):
            await settle(client.wait_ready(0.3))


# ---- playing


async def test_a_game(connect, server):
    async with connect(server.address) as client:
        async with opened(client.play("count", seed=5, episode_id=2)) as session:
            assert session.spec == default_spec("count")
            assert (session.seed, session.episode_id, session.last_seq) == (5, 2, 0)
            assert session.last_result is None
            assert [await settle(session.step(FRAME)) for _ in range(3)] == [1, 2, 3]
            result = session.last_result
            assert (result.seq, result.episode_id, result.action, result.version) == (3, 2, 3, "1")
            assert result.round_trip_s > 0
            assert result.times.batch_size == 1
            assert await settle(session.step({"frame": FRAME})) == 4
            assert await settle(session.reset()) == 3
            assert await settle(session.step(FRAME)) == 1
            assert await settle(session.reset(9, seed=77)) == 9
            assert session.last_seq == 5
            assert await settle(session.ping()) > 0
            assert session.session_id in server.sessions()
        assert server.sessions() == []
        with pytest.raises(StateError, match="closed"):
            await settle(session.step(FRAME))
        await settle(session.close())  # twice does no harm


async def test_settings_reach_the_policy_and_come_back(connect):
    seen: list[StepContext] = []

    def handler(inputs: dict, context: StepContext) -> FakeReply:
        seen.append(context)
        return FakeReply(actions=(1, 2), value=0.5, log_prob=(-0.5,), action_period_us=25_000, outputs={"map": FRAME})

    with FakePolicyServer(fake(handler)) as server:
        async with connect(server.address) as client:
            argmax = Sampling(SamplingMode.ARGMAX)
            extras = Extras(log_prob=True, value=True)
            async with opened(client.play("count", sampling=argmax, instruction="go", extras=extras)) as session:
                assert await settle(session.step(FRAME, ticks=4)) == 1
                result = session.last_result
                assert (result.actions, result.action_period_us) == ((1, 2), 25_000)
                assert (result.log_prob, result.value) == ((-0.5,), 0.5)
                assert (result.outputs["map"] == FRAME).all()
                assert (seen[0].sampling, seen[0].instruction, seen[0].ticks) == (argmax, "go", 4)
                revision = await settle(session.configure(instruction="stop", sampling=Sampling(temperature=2)))
                await settle(session.step(FRAME))
                assert session.last_result.config_revision == revision > result.config_revision
                assert (seen[1].sampling, seen[1].instruction) == (Sampling(temperature=2), "stop")


async def test_errors_of_a_step_are_typed_and_the_game_goes_on(connect, server):
    async with connect(server.address) as client:
        async with opened(client.play("count")) as session:
            # Those that never travel,
            with pytest.raises(DTypeMismatchError, match="int8, wanted uint8"):
                await settle(session.step(FRAME.astype(np.int8)))
            with pytest.raises(ShapeMismatchError, match=r"\[2, 2\], wanted \[-1, -1, 3\]"):
                await settle(session.step(FRAME[..., 0]))
            with pytest.raises(InputUnknownError, match="'sound'"):
                await settle(session.step({"sound": FRAME}))
            # and those that come back.
            with pytest.raises(InputMissingError) as caught:
                await settle(session.step({}))
            assert caught.value.seq == 1
            server.fail_step(2, StepFailedError("boom"))
            with pytest.raises(StepFailedError, match="boom") as failed:
                await settle(session.step(FRAME))
            assert failed.value.seq == 2
            with pytest.raises(EpisodeReusedError):
                await settle(session.reset(0))
            with pytest.raises(BadSettingError, match="4097 characters"):
                await settle(session.configure(instruction="x" * 4097))
            assert await settle(session.step(FRAME)) == 1


async def test_errors_of_a_session_are_typed(connect):
    with FakePolicyServer({"count": count}, slots=1, api_keys=["secret"]) as server:
        async with connect(server.address) as stranger:
            with pytest.raises(UnauthenticatedError):
                await settle(stranger.play("count"))
            with pytest.raises(UnauthenticatedError):
                await settle(stranger.list_policies())
        async with connect(server.address, api_key="secret") as client:
            with pytest.raises(PolicyNotFoundError):
                await settle(client.play("nope"))
            with pytest.raises(VersionNotFoundError):
                await settle(client.play("count", version="9"))
            with pytest.raises(SessionNotFoundError):
                await settle(client.resume(b"never"))
            with pytest.raises(BadSettingError):
                await settle(client.play("count", instruction="x" * 5000))
            with pytest.raises(BadSettingError):
                await settle(client.play("count", rate_hz=float("nan")))
            with pytest.raises(BadSettingError):
                Sampling(temperature=0)
            async with opened(client.play("count")) as session:
                with pytest.raises(NoFreeSlotError) as caught:
                    await settle(client.play("count"))
                assert caught.value.retry_after_s == 1.0
                server.end_session(session.session_id, "enough")
                for _ in range(2):
                    with pytest.raises(SessionClosedError, match="enough"):
                        await settle(session.recv())
                with pytest.raises(SessionClosedError):
                    await settle(session.step(FRAME))
            server.drain()
            with pytest.raises(DrainingError):
                await settle(client.play("count"))


async def test_no_answer_in_time_is_an_error_with_its_seq(connect, server):
    server.set_delay(0.5)
    async with connect(server.address) as client:
        async with opened(client.play("count")) as session:
            with pytest.raises(TimeoutExceededError, match=r"step 1 was not answered in 0.05 s") as caught:
                await settle(session.step(FRAME, timeout_s=0.05))
            assert caught.value.seq == 1
            server.set_delay(0)
            # The late answer is skipped, the next one is the next one's.
            assert await settle(session.step(FRAME)) == 2
            with pytest.raises(TimeoutExceededError):
                await settle(session.recv(timeout_s=0.05))


async def test_a_server_that_accepts_and_says_nothing(connect):
    from concurrent import futures

    stop = threading.Event()

    def silent(requests, context):
        stop.wait(20)
        return iter(())

    handlers = {name: grpc.stream_stream_rpc_method_handler(silent) for name in ("Play", "Rollout")}
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("playserve.v1.PolicyService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with connect(f"127.0.0.1:{port}", timeout_s=0.3) as client:
            with pytest.raises(TimeoutExceededError):
                await settle(client.play("x"))
            with pytest.raises(TimeoutExceededError):
                await settle(client.rollout("x", 1))
    finally:
        stop.set()
        server.stop(None).wait()


async def test_a_server_that_talks_nonsense(connect):
    from concurrent import futures

    def handler(requests, context):
        yield ps.PlayResponse(opened=ps.Opened(policy=pb.PolicySpec(name="x", kind=77))).SerializeToString()
        yield from ()

    handlers = {"Play": grpc.stream_stream_rpc_method_handler(handler)}
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("playserve.v1.PolicyService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as client:
            with pytest.raises(ServerFault, match="not understood"):
                await settle(client.play("x"))
    finally:
        server.stop(None).wait()


async def test_the_reason_of_a_refusal_is_never_lost(connect):
    # Refusals that come while the first message is still on its way up.
    with FakePolicyServer({"count": count}, api_keys=["secret"]) as server:
        async with connect(server.address) as stranger:
            for _ in range(100):
                with pytest.raises(UnauthenticatedError):
                    await settle(stranger.play("count", instruction="x" * 4096))


async def test_several_steps_in_flight(connect):
    with FakePolicyServer({"count": count}, max_steps_in_flight=3, delay_s=0.05) as server:
        async with connect(server.address) as client, opened(client.play("count")) as session:
            assert [await settle(session.send_step(FRAME)) for _ in range(4)] == [1, 2, 3, 4]
            results = [await settle(session.recv()) for _ in range(3)]
            assert [(r.seq, r.action) for r in results] == [(1, 1), (2, 2), (3, 3)]
            with pytest.raises(QueueFullError) as caught:
                await settle(session.recv())
            assert caught.value.seq == 4
            assert session.poll() is None
            assert await settle(session.step(FRAME)) == 4


async def test_live_takes_the_newest(connect, server):
    server.set_delay(0.1)
    async with connect(server.address) as client:
        async with opened(client.play("count", pace=Pace.LIVE)) as session:
            for _ in range(4):
                await settle(session.send_step(FRAME))
            result = await settle(session.recv())
            assert result.seq == 4
            assert [d.seq for d in result.dropped] == [1, 2, 3]
            assert session.poll() is None
            server.set_delay(0)
            await settle(session.send_step(FRAME))
            await settle(session.ping())  # answered after it
            assert session.poll().seq == 5


async def test_executed_actions_and_observation(connect):
    def last(inputs: dict, context: StepContext) -> Action:
        return 17 if context.executed is None else int(context.executed)  # type: ignore[arg-type]

    with FakePolicyServer({"count": last}) as server:
        async with connect(server.address) as client, opened(client.play("count")) as session:
            assert await settle(session.step(FRAME)) == 17
            await settle(session.executed(1, 5))
            assert await settle(session.step(FRAME)) == 5
            await settle(session.executed(2, None, ActionSource.NONE))
            assert await settle(session.step(FRAME)) == 17
            seq = await settle(session.send_step(FRAME, observe_only=True))
            await settle(session.executed(seq, 9, ActionSource.HUMAN))
            assert await settle(session.step(FRAME)) == 9
            with pytest.raises(BadActionError):
                await settle(session.executed(5, 18))
            await settle(session.executed(1, 5))
            with pytest.raises(ExecutedUnknownError) as caught:
                await settle(session.step(FRAME))
            assert caught.value.seq == 1
            assert await settle(session.step(FRAME)) == 9


async def test_desktop_actions_and_packed_frames(connect):
    action = DesktopAction(keys=frozenset({"KeyW"}), buttons=frozenset({0}), mouse_dx_px=3.5, scroll=1)
    spec = PolicySpec(
        name="p2p", family="fake", action=DesktopActionSpec(keys=("KeyW",), buttons=(0,), max_mouse_px=10, scroll=True),
        inputs=(
            TensorSpec(name="frame", dtype="uint8", shape=(-1, -1, 3), codecs=(Codec.LZ4, Codec.JPEG)),
            TensorSpec(name="text", dtype="float32", shape=(4,), codecs=(Codec.LZ4,)),
        ),
    )  # fmt: skip
    seen = []

    def handler(inputs: dict, context: StepContext) -> Action:
        seen.append(inputs)
        return action

    frame = np.full((16, 16, 3), 99, np.uint8)
    text = np.arange(4, dtype=np.float32)
    with FakePolicyServer(fake(handler, spec)) as server:
        async with connect(server.address, codecs=[Codec.JPEG, Codec.LZ4]) as client:
            async with opened(client.play("p2p")) as session:
                assert set(session.opened.codecs) == {Codec.RAW, Codec.LZ4, Codec.JPEG}
                with pytest.raises(InputMissingError, match="by name"):
                    await settle(session.step(frame))
                assert await settle(session.step({"frame": frame, "text": text})) == action
                assert np.abs(seen[0]["frame"].astype(int) - 99).max() <= 2
                assert (seen[0]["text"] == text).all()
        async with connect(server.address) as client, opened(client.play("p2p")) as session:
            assert list(session.opened.codecs) == [Codec.RAW]
            await settle(session.step({"frame": frame, "text": text}))


async def test_worlds_take_actions(connect):
    spec = PolicySpec(name="world", family="fake", kind=PolicyKind.WORLD, inputs=(), action=DiscreteActionSpec(n=3))

    def handler(inputs: dict, context: StepContext) -> FakeReply:
        return FakeReply(outputs={"frame": np.full((2, 2), context.action, np.uint8)})

    with FakePolicyServer(fake(handler, spec)) as server:
        async with connect(server.address) as client, opened(client.play("world")) as session:
            await settle(session.send_step({}, action=2))
            assert (await settle(session.recv())).outputs["frame"].tolist() == [[2, 2], [2, 2]]
            with pytest.raises(UnsupportedError, match="is a world"):
                await settle(session.step({}))
            result = await settle(session.step_world(1))
            assert result.outputs["frame"].tolist() == [[1, 1], [1, 1]]
            assert result.actions == ()
            with pytest.raises(BadActionError) as refused:
                await settle(session.step_world(3))
            assert refused.value.seq is None  # it never left


async def test_an_agent_is_no_world(connect, server):
    async with connect(server.address) as client, opened(client.play("count")) as session:
        with pytest.raises(UnsupportedError, match="is no world"):
            await settle(session.step_world(0))


# ---- lost streams


@pytest.mark.parametrize("lose_answer", [False, True])
async def test_a_dropped_stream_is_resumed_and_no_step_counts_twice(connect, server, lose_answer):
    async with connect(server.address) as client, opened(client.play("count")) as session:
        assert await settle(session.step(FRAME)) == 1
        for _ in range(3):
            server.drop_stream_after(2, lose_answer=lose_answer)
            first = session.last_result.action + 1
            assert [await settle(session.step(FRAME)) for _ in range(4)] == list(range(first, first + 4))
        assert len(server.sessions()) == 1


async def test_steps_in_flight_and_what_lies_between_them_survive_a_drop(connect, server):
    async with connect(server.address) as client, opened(client.play("count")) as session:
        server.set_delay(0.1)
        server.drop_stream_after(1)
        for _ in range(2):
            await settle(session.send_step(FRAME))
        assert (await settle(session.recv())).action == 1
        assert (await settle(session.recv())).action == 2
        server.set_delay(0)
        server.drop_stream_after(1)
        await settle(session.send_step(FRAME))
        assert (await settle(session.recv())).action == 3
        # The stream is being dropped; these are sent on it, or left to the resume.
        assert await settle(session.reset(8)) == 8
        assert await settle(session.configure(instruction="x")) >= 2
        assert await settle(session.ping()) > 0
        assert await settle(session.step(FRAME)) == 1
        assert session.episode_id == 8


async def test_answers_lost_with_a_stream_are_not_waited_for(connect, server):
    async with connect(server.address) as client, opened(client.play("count")) as session:
        server.set_delay(0.05)
        # Both steps enter the memory before the stream is dropped, with both answers lost.
        server.drop_stream_after(1, lose_answer=True)
        await settle(session.send_step(FRAME))
        result = await settle(session.recv())
        assert (result.seq, result.action, result.round_trip_s) == (1, 1, None)


async def test_a_server_that_is_away_for_a_while(connect, server):
    async with connect(server.address) as client, opened(client.play("count")) as session:
        assert await settle(session.step(FRAME)) == 1
        server.stop()
        with pytest.raises(TimeoutExceededError):
            await settle(session.step(FRAME, timeout_s=0.1))
        server.start()
        # Step 2 was sent again; its answer is late for its waiter, but it entered the memory once.
        assert await settle(session.step(FRAME)) == 3


def test_a_session_is_closed_while_it_dials_again(server, monkeypatch):
    dials, again = [], threading.Event()

    class SlowToRead(Stream):
        def start(self) -> None:
            dials.append(self)
            if len(dials) > 1:
                again.set()
                time.sleep(0.2)
            super().start()

    monkeypatch.setattr("playserve_client.session.Stream", SlowToRead)
    with playserve_client.PolicyClient(server.address) as client, client.play("count") as session:
        assert session.step(FRAME) == 1
        server.drop_stream_after(1)
        assert session.step(FRAME) == 2
        assert again.wait(10.0)
    assert len(dials) == 2


async def test_a_server_that_has_forgotten_the_session(connect, server):
    async with connect(server.address) as client, opened(client.play("count")) as session:
        await settle(session.step(FRAME))
        server.restart()
        with pytest.raises(SessionNotFoundError):
            await settle(session.step(FRAME))
        async with opened(client.play("count")) as fresh:
            assert await settle(fresh.step(FRAME)) == 1


async def test_without_resume_a_lost_stream_ends_the_session(connect, server):
    async with connect(server.address) as client, opened(client.play("count", resume=False)) as session:
        server.drop_stream_after(1, lose_answer=True)
        with pytest.raises(ServerUnavailableError):
            await settle(session.step(FRAME))


async def test_resume_gives_up_with_the_detach_window(connect):
    with FakePolicyServer({"count": count}, detach_window_s=0.3) as server:
        async with connect(server.address) as client, opened(client.play("count")) as session:
            server.stop()
            with pytest.raises(ServerUnavailableError):
                await settle(session.step(FRAME))


async def test_another_process_goes_on_with_the_token(connect, server):
    async with connect(server.address) as client:
        session = await settle(client.play("count", seed=3, episode_id=6))
        await settle(session.step(FRAME))
        await settle(session.step(FRAME))
        token = await settle(session.detach())
        assert token == session.resume_token
    async with connect(server.address) as other:
        async with opened(other.resume(token)) as session:
            assert session.opened.resumed
            assert (session.last_seq, session.episode_id, session.last_result.action) == (2, 6, 2)
            assert await settle(session.step(FRAME)) == 3
            # Whoever resumes again takes it over.
            async with opened(other.resume(token)) as thief:
                with pytest.raises(SupersededError):
                    await settle(session.recv())
                assert await settle(thief.step(FRAME)) == 4
    with FakePolicyServer({"count": count}, api_keys=["a", "b"]) as server:
        async with connect(server.address, api_key="a") as alice, opened(alice.play("count")) as session:
            async with connect(server.address, api_key="b") as bob:
                with pytest.raises(AccessDeniedError):
                    await settle(bob.resume(session.resume_token))


async def test_an_idle_session_is_kept_alive(connect):
    with FakePolicyServer({"count": count}, idle_timeout_s=0.6) as server:
        async with connect(server.address) as client:
            async with opened(client.play("count")) as session, opened(client.rollout("count", 1)) as rollout:
                for _ in range(15):
                    await asyncio.sleep(0.1)
                assert await settle(session.step(FRAME)) == 1
                await settle(rollout.send([0], [0], FRAME[None]))
                assert len(await settle(rollout.recv())) == 1


async def test_closing_the_client_closes_what_is_open(connect, server):
    async with connect(server.address) as client:
        session = await settle(client.play("count"))
        rollout = await settle(client.rollout("count", 1))
    assert server.sessions() == []
    for call in (lambda: session.step(FRAME), lambda: rollout.recv()):
        with pytest.raises(StateError, match="closed"):
            await settle(call())


# ---- rollouts


def frames(n):
    return np.zeros((n, 2, 2, 3), np.uint8)


async def test_a_rollout_with_several_messages_in_flight(connect, server):
    async with connect(server.address) as client, opened(client.rollout("count", 4, seed=3)) as rollout:
        assert (rollout.num_envs, rollout.seed, rollout.spec.name) == (4, 3, "count")
        await settle(rollout.send(range(4), [0] * 4, frames(4)))
        await settle(rollout.send(np.array([2, 0]), np.array([0, 7]), {"frame": frames(2)}))
        await settle(rollout.send([2], [0], frames(1)))
        batches = [await settle(rollout.recv()) for _ in range(3)]
        assert [b.env_ids.tolist() for b in batches] == [[0, 1, 2, 3], [2, 0], [2]]
        assert [b.actions.tolist() for b in batches] == [[1, 1, 1, 1], [2, 1], [3]]
        assert batches[1].episode_ids.tolist() == [0, 7]
        assert batches[0].actions.dtype == np.int32
        assert batches[0].log_probs is batches[0].values is None
        assert len(batches[0]) == 4
        assert await settle(rollout.ping()) > 0
        with pytest.raises(TimeoutExceededError):
            await settle(rollout.recv(timeout_s=0.05))


async def test_rows_fail_alone(connect, server):
    async with connect(server.address) as client, opened(client.rollout("count", 2)) as rollout:
        await settle(rollout.send([0, 1], [5, 5], frames(2)))
        await settle(rollout.recv())
        await settle(rollout.send([0, 1], [4, 5], frames(2)))
        with pytest.raises(EpisodeReusedError) as caught:
            await settle(rollout.recv())
        assert caught.value.env_id == 0
        batch = await settle(rollout.recv())
        assert (batch.env_ids.tolist(), batch.actions.tolist()) == ([1], [2])
        await settle(rollout.send([0, 0], [5, 5], frames(2)))
        with pytest.raises(BadRowError) as refused:
            await settle(rollout.recv())
        assert refused.value.env_id is None
        # Those that never travel.
        for bad in (([], []), ([0], [1, 2])):
            with pytest.raises(BadRowError):
                await settle(rollout.send(*bad, frames(1)))
        with pytest.raises(BadRowError, match="2 seeds"):
            await settle(rollout.send([0], [5], frames(1), [1, 2]))
        with pytest.raises(ShapeMismatchError):
            await settle(rollout.send([0, 1], [5, 5], frames(1)))
        with pytest.raises(DTypeMismatchError):
            await settle(rollout.send([0], [5], frames(1).astype(np.float32)))
        await settle(rollout.send([0, 1], [5, 5], frames(2)))
        assert (await settle(rollout.recv())).actions.tolist() == [2, 3]


async def test_who_listens_to_a_rollout_takes_its_answers_as_they_come(connect, server):
    async with connect(server.address) as client:
        rollout = await settle(client.rollout("count", 4))
        changes: queue.Queue[int] = queue.Queue()
        rollout.listen(lambda: changes.put(1))
        assert rollout.take() is None
        await settle(rollout.send([0, 1], [0, 0], frames(2)))
        await asyncio.to_thread(changes.get, timeout=10)
        assert rollout.take().env_ids.tolist() == [0, 1]
        assert rollout.take() is None
        await settle(rollout.close())
        await asyncio.to_thread(changes.get, timeout=10)
        with pytest.raises(StateError):
            rollout.take()


async def test_rollout_seeds_extras_and_executed(connect):
    def reply(inputs: dict, context: StepContext) -> FakeReply:
        executed = -1.0 if context.executed is None else float(context.executed)  # type: ignore[arg-type]
        return FakeReply(actions=(context.seed % 18,), value=executed, log_prob=(-1.0, -2.0))

    with FakePolicyServer({"count": reply}) as server:
        async with connect(server.address, codecs=[Codec.LZ4]) as client:
            async with opened(client.rollout("count", 2, extras=Extras(log_prob=True, value=True))) as rollout:
                await settle(rollout.send([0, 1], [0, 0], frames(2), [4, 5]))
                batch = await settle(rollout.recv())
                assert batch.actions.tolist() == [4, 5]
                assert batch.values.tolist() == [-1, -1]
                assert batch.log_probs.tolist() == [-3, -3], "the sum over the heads"
                await settle(rollout.send([0, 1], [0, 0], frames(2), executed={1: (9, ActionSource.HUMAN)}))
                assert (await settle(rollout.recv())).values.tolist() == [4, 9]


async def test_a_rollout_of_keyboard_and_mouse_with_instructions_by_episode(connect):
    def reply(inputs: dict, context: StepContext) -> DesktopAction:
        told = context.executed.mouse_dx_px if isinstance(context.executed, DesktopAction) else 0.0
        return DesktopAction(frozenset({"KeyW"} if context.instruction == "go" else ()), mouse_dx_px=told + 1)

    policy = FakePolicy(spec=desktop_spec("d", size=2, rate_hz=0.0), handler=reply)
    async with connect_to(policy, connect) as client, opened(client.rollout("d", 2)) as rollout:
        await settle(rollout.send([0, 1], [1, 1], frames(2), instructions=["go", ""]))
        batch = await settle(rollout.recv())
        assert batch.actions == [DesktopAction(frozenset({"KeyW"}), mouse_dx_px=1.0), DesktopAction(mouse_dx_px=1.0)]
        human = DesktopAction(frozenset({"F5"}), mouse_dx_px=40.0)  # the policy has no such key
        await settle(rollout.send([0, 1], [1, 1], frames(2), executed={1: (human, ActionSource.HUMAN)}))
        assert [a.mouse_dx_px for a in (await settle(rollout.recv())).actions] == [2.0, 41.0]
        with pytest.raises(BadRowError, match="1 instructions"):
            await settle(rollout.send([0, 1], [2, 2], frames(2), instructions=["go"]))
        with pytest.raises(BadSettingError, match="4097"):
            await settle(rollout.send([0], [2], frames(1), instructions=["x" * 4097]))


@asynccontextmanager
async def connect_to(policy, connect):
    with FakePolicyServer(policy) as server:
        async with connect(server.address) as client:
            yield client


async def test_rows_are_split_by_the_servers_largest_message(connect):
    with FakePolicyServer({"count": count}, max_message_bytes=300_000) as server:
        async with connect(server.address) as client, opened(client.rollout("count", 16)) as rollout:
            big = np.zeros((16, 100, 100, 3), np.uint8)
            human = dict.fromkeys((0, 15), (3, ActionSource.HUMAN))
            for _ in range(2):
                await settle(rollout.send(range(16), [0] * 16, big))
                got: list[int] = []
                while len(got) < 16:
                    batch = await settle(rollout.recv())
                    assert len(batch) < 16
                    got += batch.env_ids.tolist()
                assert got == list(range(16))
            await settle(rollout.send(range(16), [0] * 16, big, executed=human))
            assert len(await settle(rollout.recv())) < 16


async def test_rollouts_that_cannot_open_or_are_lost(connect, server):
    async with connect(server.address) as client:
        with pytest.raises(NoFreeSlotError):
            await settle(client.rollout("count", 5))
        with pytest.raises(BadSettingError):
            await settle(client.rollout("count", 0))
        async with opened(client.rollout("count", 4)) as rollout:
            server.restart()
            with pytest.raises(PlayserveError) as caught:
                await settle(rollout.recv())
            assert isinstance(caught.value, ServerUnavailableError)
            with pytest.raises(ServerUnavailableError):
                await settle(rollout.send([0], [0], frames(1)))
        async with opened(client.rollout("count", 4)) as rollout:
            await settle(rollout.send([0], [0], frames(1)))
            assert (await settle(rollout.recv())).actions.tolist() == [1]


async def test_a_codec_that_is_not_installed_is_named(connect, server, monkeypatch):
    import importlib

    real = importlib.import_module

    def without_lz4(name, *args):
        if name.startswith("lz4"):
            raise ModuleNotFoundError(name="lz4")
        return real(name, *args)

    async with connect(server.address, codecs=[Codec.LZ4]) as client, opened(client.play("count")) as session:
        monkeypatch.setattr("playserve.codec.importlib.import_module", without_lz4)
        with pytest.raises(CodecNotNegotiatedError, match="pip install"):
            await settle(session.step(FRAME))


# ---- only one of them


def test_the_sync_client_by_its_with_statements(server):
    with playserve_client.PolicyClient(server.address) as client:
        with client.play("count") as session, client.rollout("count", 1) as rollout:
            assert session.step(FRAME) == 1
            rollout.send([0], [0], frames(1))
            assert rollout.recv().actions.tolist() == [1]
        assert server.sessions() == []


async def test_the_async_client_by_its_with_statements(server):
    async with aio.PolicyClient(server.address) as client:
        async with client.play("count") as session, client.rollout("count", 1) as rollout:
            assert await session.step(FRAME) == 1
            await rollout.send([0], [0], frames(1))
            assert (await rollout.recv()).actions.tolist() == [1]
        assert server.sessions() == []


async def test_an_async_step_can_be_cancelled(server):
    server.set_delay(0.2)
    async with aio.PolicyClient(server.address) as client, client.play("count") as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.step(FRAME)
        server.set_delay(0)
        assert await session.step(FRAME) == 2


def test_a_sync_session_shared_by_threads(server):
    with playserve_client.PolicyClient(server.address) as client, client.play("count") as session:
        threads = [threading.Thread(target=lambda: [session.send_step(FRAME) for _ in range(3)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert [session.recv().seq for _ in range(12)] == list(range(1, 13))
        for thread in threads:
            thread.join()


def test_the_twins_have_the_same_shape():
    for name in ("PolicyClient", "Session", "Rollout"):
        ours, theirs = getattr(playserve_client, name), getattr(aio, name)
        public = {n for n in dir(ours) if not n.startswith("_")}
        assert public == {n for n in dir(theirs) if not n.startswith("_")}
        for method in public:
            if callable(getattr(ours, method)):
                sync, twin = (inspect.signature(getattr(cls, method)) for cls in (ours, theirs))
                assert sync.parameters == twin.parameters, method
