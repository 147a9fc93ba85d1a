"""The fake server, spoken to by bare stubs: the rules of the wire as the comments of policy_service.proto tell them."""

from __future__ import annotations

import itertools
import queue
import time
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest

from playserve.codec import Action, DesktopAction, encode
from playserve.errors import NotReadyError, from_rpc_error, from_status
from playserve.specs import (
    DesktopActionSpec,
    DiscreteActionSpec,
    GapMode,
    GapRule,
    Merge,
    PolicyKind,
    PolicySpec,
    TensorSpec,
)
from playserve.testing import FakePolicy, FakePolicyServer, FakeReply, StepContext, default_spec, script
from playserve.v1 import admin_service_pb2, admin_service_pb2_grpc, state_transfer_service_pb2_grpc
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub


def count(inputs: dict, context: StepContext) -> Action:
    """The number of steps in the memory: what every test of memory looks at."""
    context.state["n"] = context.state.get("n", 0) + 1
    return int(context.state["n"])


FRAME = encode(np.zeros((2, 2, 3), np.uint8), "frame")


def step(seq, episode_id=0, inputs=(FRAME,), **kwargs):
    return ps.PlayRequest(step=ps.Step(seq=seq, episode_id=episode_id, inputs=inputs, **kwargs))


@pytest.fixture
def server():
    with FakePolicyServer({"count": count}, slots=2) as server:
        yield server


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield PolicyServiceStub(channel)


class Call:
    """One bidirectional call, driven message by message."""

    def __init__(self, method, metadata=()):
        self._outbox = queue.SimpleQueue()
        self.call = method(iter(self._outbox.get, None), timeout=20, metadata=metadata)

    def send(self, *requests):
        for request in requests:
            self._outbox.put(request)

    def ask(self, request):
        self.send(request)
        return next(self.call)

    def reason(self):
        """Return the reason with which the call ended."""
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        return from_rpc_error(caught.value).reason

    def end(self):
        self._outbox.put(None)
        return list(self.call)


@contextmanager
def play(stub, *first, **kwargs):
    call = Call(stub.Play, **kwargs)
    call.send(*first)
    try:
        yield call
    finally:
        call.call.cancel()
        call._outbox.put(None)


@contextmanager
def opened(stub, **kwargs):
    with play(stub) as call:
        call.opened = call.ask(ps.PlayRequest(open=ps.Open(**{"policy": "count", "seed": 1, **kwargs}))).opened
        assert call.opened.session_id
        yield call


def error_of(response):
    assert response.WhichOneof("message") == "error", response
    return from_status(response.error.status).reason, response.error.seq


def test_a_session_from_open_to_close(stub):
    with opened(stub, episode_id=3, seed=7) as call:
        assert call.opened.policy.name == "count"
        assert call.opened.policy.slots_total == 2
        assert (call.opened.seed, call.opened.episode_id, call.opened.resumed) == (7, 3, False)
        assert call.opened.resume_token
        result = call.ask(step(1, 3, capture_time_ns=99)).result
        assert (result.seq, result.episode_id, result.capture_time_ns) == (1, 3, 99)
        assert result.actions[0].index == 1
        assert call.ask(step(4, 3)).result.actions[0].index == 2  # gaps are allowed
        assert call.ask(ps.PlayRequest(ping=ps.Ping(nonce=5))).pong.nonce == 5
        call.send(ps.PlayRequest(close=ps.Close()))
        assert call.end() == []
    assert stub.GetPolicy(ps.GetPolicyRequest(policy="count")).policy.slots_free == 2


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (step(1), "NOT_OPEN"),
        (ps.PlayRequest(), "NOT_OPEN"),
        (ps.PlayRequest(open=ps.Open(policy="nope")), "POLICY_NOT_FOUND"),
        (ps.PlayRequest(open=ps.Open(policy="count", version="9")), "VERSION_NOT_FOUND"),
        (ps.PlayRequest(open=ps.Open(resume_token=b"nope")), "SESSION_NOT_FOUND"),
        (ps.PlayRequest(open=ps.Open(policy="count", sampling=pb.Sampling(temperature=-1))), "BAD_SETTING"),
        (ps.PlayRequest(open=ps.Open(policy="count", sampling=pb.Sampling(temperature=101))), "BAD_SETTING"),
        (ps.PlayRequest(open=ps.Open(policy="count", sampling=pb.Sampling(temperature=float("nan")))), "BAD_SETTING"),
        (ps.PlayRequest(open=ps.Open(policy="count", instruction="x" * 4097)), "BAD_SETTING"),
        (ps.PlayRequest(open=ps.Open(policy="count", rate_hz=-1)), "BAD_SETTING"),
    ],
)
def test_what_ends_a_stream_at_once(stub, first, reason):
    with play(stub, first) as call:
        assert call.reason() == reason


def test_slots_run_out_with_a_hint_and_come_back(stub):
    with opened(stub), opened(stub) as second:
        with play(stub, ps.PlayRequest(open=ps.Open(policy="count"))) as call:
            with pytest.raises(grpc.RpcError) as caught:
                list(call.call)
            error = from_rpc_error(caught.value)
            assert error.reason == "NO_FREE_SLOT"
            assert error.retry_after_s == 1.0
        second.send(ps.PlayRequest(close=ps.Close()))
        second.end()
        with opened(stub):
            pass


def test_errors_of_one_message_leave_the_session_as_it_was(stub):
    wrong = encode(np.zeros((2, 2, 3), np.int8), "frame")
    with opened(stub, episode_id=5) as call:
        assert call.ask(step(1, 5)).result.actions[0].index == 1
        for bad, want in [
            (ps.PlayRequest(open=ps.Open(policy="count")), ("ALREADY_OPEN", 0)),
            (ps.PlayRequest(), ("MALFORMED_MESSAGE", 0)),
            (step(2, 5, inputs=[wrong]), ("DTYPE_MISMATCH", 2)),
            (step(2, 5, inputs=[]), ("INPUT_MISSING", 2)),
            (step(2, 4), ("EPISODE_REUSED", 2)),
            (step(0, 5), ("SEQ_NOT_INCREASING", 0)),
            (ps.PlayRequest(executed=ps.Executed(seq=9, source=3)), ("EXECUTED_UNKNOWN", 9)),
            (ps.PlayRequest(executed=ps.Executed(seq=1, source=2)), ("BAD_ACTION", 1)),
            (ps.PlayRequest(executed=ps.Executed(seq=1, source=0, action=pb.Action(index=1))), ("BAD_ACTION", 1)),
            (ps.PlayRequest(executed=ps.Executed(seq=1, source=1, action=pb.Action(index=99))), ("BAD_ACTION", 1)),
            (ps.PlayRequest(configure=ps.Configure(sampling=pb.Sampling(temperature=-1))), ("BAD_SETTING", 0)),
            (ps.PlayRequest(reset=ps.Reset(episode_id=5)), ("EPISODE_REUSED", 0)),
        ]:
            assert error_of(call.ask(bad)) == want
        assert call.ask(step(2, 5)).result.actions[0].index == 2


def test_a_repeated_step_gets_the_same_answer(stub):
    with opened(stub) as call:
        first = call.ask(step(1))
        assert call.ask(step(1)) == first
        second = call.ask(step(2))
        assert second.result.actions[0].index == 2
        assert error_of(call.ask(step(1))) == ("SEQ_NOT_INCREASING", 1)
        assert call.ask(step(2)) == second


def test_episodes_empty_the_memory(stub):
    with opened(stub) as call:
        call.ask(step(1)), call.ask(step(2))
        assert call.ask(step(3, episode_id=2)).result.actions[0].index == 1
        assert call.ask(ps.PlayRequest(reset=ps.Reset(episode_id=7))).reset_done.episode_id == 7
        assert error_of(call.ask(step(4, episode_id=2))) == ("EPISODE_REUSED", 4)
        assert call.ask(step(4, episode_id=7)).result.actions[0].index == 1


def test_settings_change_and_results_carry_the_revision():
    def show(inputs: dict, context: StepContext) -> Action:
        return len(context.instruction)

    with FakePolicyServer({"count": show}) as server, grpc.insecure_channel(server.address) as channel:
        with opened(PolicyServiceStub(channel), instruction="abc") as call:
            assert call.ask(step(1)).result.actions[0].index == 3
            revision = call.ask(ps.PlayRequest(configure=ps.Configure(instruction="abcde"))).configured.revision
            assert revision > call.opened.config_revision
            result = call.ask(step(2)).result
            assert (result.actions[0].index, result.config_revision) == (5, revision)


def test_executed_actions_reach_the_handler():
    def last(inputs: dict, context: StepContext) -> Action:
        return 17 if context.executed is None else int(context.executed)  # type: ignore[arg-type]

    with FakePolicyServer({"count": last}) as server, grpc.insecure_channel(server.address) as channel:
        stub = PolicyServiceStub(channel)
        with opened(stub) as call:
            assert call.ask(step(1)).result.actions[0].index == 17
            assert call.ask(step(2)).result.actions[0].index == 17  # lockstep: the answer counts as executed
            call.send(ps.PlayRequest(executed=ps.Executed(seq=2, source=2, action=pb.Action(index=4))))
            assert call.ask(step(3)).result.actions[0].index == 4
            call.send(ps.PlayRequest(executed=ps.Executed(seq=3, source=3)))
            assert call.ask(step(4)).result.actions[0].index == 17
        with opened(stub, pace=ps.PACE_LIVE) as call:
            call.ask(step(1))
            call.send(ps.PlayRequest(executed=ps.Executed(seq=1, source=1, action=pb.Action(index=3))))
            assert call.ask(step(2)).result.actions[0].index == 3
            assert call.ask(step(3)).result.actions[0].index == 17  # live: unknown


def test_extras_come_when_asked_for():
    def reply(inputs: dict, context: StepContext) -> FakeReply:
        return FakeReply(actions=(1,), value=0.5, log_prob=(-0.25,), outputs={"map": np.eye(2, dtype=np.float32)})

    with FakePolicyServer({"count": reply}) as server, grpc.insecure_channel(server.address) as channel:
        stub = PolicyServiceStub(channel)
        with opened(stub) as call:
            plain = call.ask(step(1)).result
            assert not plain.log_prob
            assert not plain.HasField("value")
            assert plain.outputs[0].name == "map"
        with opened(stub, extras=pb.Extras(log_prob=True, value=True)) as call:
            full = call.ask(step(1)).result
            assert (list(full.log_prob), full.value) == ([-0.25], 0.5)


def test_a_failing_handler_fails_its_step_and_leaves_the_memory(server, stub):
    calls = []

    def fragile(inputs: dict, context: StepContext) -> Action:
        context.state["n"] = context.state.get("n", 0) + 1
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("boom")
        return int(context.state["n"])

    server.publish(FakePolicy(spec=default_spec("fragile"), handler=fragile))
    server.publish(FakePolicy(spec=default_spec("wild"), handler=lambda i, c: 18))
    with opened(stub, policy="fragile") as call:
        call.ask(step(1))
        response = call.ask(step(2))
        assert error_of(response) == ("STEP_FAILED", 2)
        assert "RuntimeError: boom" in response.error.status.message
        assert call.ask(step(2)).result.actions[0].index == 2
    with opened(stub, policy="wild") as call:
        assert error_of(call.ask(step(1))) == ("STEP_FAILED", 1)


def test_a_dropped_stream_is_resumed_with_the_last_answer(server, stub):
    server.drop_stream_after(2)
    with opened(stub) as call:
        call.ask(step(1))
        second = call.ask(step(2)).result
        assert call.reason() == ""
        token = call.opened.resume_token
    with play(stub) as call:
        again = call.ask(ps.PlayRequest(open=ps.Open(resume_token=token))).opened
        assert again.resumed
        assert again.last_seq == 2
        assert again.last_result == second
        assert call.ask(step(2)).result == second
        assert call.ask(step(3)).result.actions[0].index == 3


def test_a_stream_that_stops_sending_ends_its_session_as_close_does():
    with FakePolicyServer({"count": count}, slots=1) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = PolicyServiceStub(channel)
            with opened(stub) as call:
                assert call.end() == []
                assert server.sessions() == []
            with play(stub, ps.PlayRequest(open=ps.Open(resume_token=call.opened.resume_token))) as late:
                assert late.reason() == "SESSION_NOT_FOUND"


def test_resuming_supersedes_the_old_stream_and_is_bound_to_the_caller():
    alice, bob = (("authorization", "Bearer a"),), (("authorization", "Bearer b"),)
    with FakePolicyServer({"count": count}, api_keys=["a", "b"]) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = PolicyServiceStub(channel)
            with play(stub, metadata=alice) as old:
                token = old.ask(ps.PlayRequest(open=ps.Open(policy="count"))).opened.resume_token
                old.ask(step(1))
                resume = ps.PlayRequest(open=ps.Open(resume_token=token))
                with play(stub, resume, metadata=bob) as thief:
                    assert thief.reason() == "PERMISSION_DENIED"
                with play(stub, metadata=alice) as new:
                    assert new.ask(resume).opened.last_seq == 1
                    assert old.reason() == "SUPERSEDED"
                    assert new.ask(step(2)).result.actions[0].index == 2
            with play(stub, ps.PlayRequest(open=ps.Open(policy="count"))) as nobody:
                assert nobody.reason() == "UNAUTHENTICATED"


def test_silence_expires_and_operators_end():
    with FakePolicyServer({"count": count}, idle_timeout_s=0.2) as server:
        with grpc.insecure_channel(server.address) as channel, opened(PolicyServiceStub(channel)) as call:
            assert call.reason() == "SESSION_EXPIRED"
            assert server.sessions() == []
    with FakePolicyServer({"count": count}) as server, grpc.insecure_channel(server.address) as channel:
        with opened(PolicyServiceStub(channel)) as call:
            server.end_session(call.opened.session_id, "enough")
            assert call.reason() == "SESSION_ENDED"
        server.drain()
        with play(PolicyServiceStub(channel), ps.PlayRequest(open=ps.Open(policy="count"))) as call:
            assert call.reason() == "DRAINING"


def test_too_many_waiting_steps_are_refused_in_their_turn():
    with FakePolicyServer({"count": count}, max_steps_in_flight=2, delay_s=0.2) as server:
        with grpc.insecure_channel(server.address) as channel, opened(PolicyServiceStub(channel)) as call:
            call.send(*[step(seq) for seq in range(1, 5)])
            answers = [next(call.call) for _ in range(4)]
            assert [a.result.seq for a in answers[:2]] == [1, 2]
            assert [error_of(a) for a in answers[2:]] == [("QUEUE_FULL", 3), ("QUEUE_FULL", 4)]
            server.set_delay(0)
            assert call.ask(step(5)).result.actions[0].index == 3


def live_policy(mode, catch_up=1):
    frame = TensorSpec(name="frame", dtype="uint8", shape=(-1, -1, 3))
    moves = TensorSpec(name="moves", dtype="int32", shape=(1,), merge=Merge.SUM, optional=True)
    policy_spec = PolicySpec(
        name="count", version="1", family="fake", inputs=(frame, moves), action=DiscreteActionSpec(n=1000),
        gap_rule=GapRule(mode=mode, catch_up_frames=catch_up), rate_hz=0,
    )  # fmt: skip

    def handler(inputs: dict, context: StepContext) -> Action:
        context.state["n"] = context.state.get("n", 0) + 1
        return int(100 * context.state["n"] + 10 * context.ticks + inputs["moves"][0])

    return FakePolicy(spec=policy_spec, handler=handler)


@pytest.mark.parametrize(
    ("mode", "action", "gap_ticks", "in_memory"),
    [
        # One step entered, with the ticks of five, and the moves of five.
        (GapMode.SKIP, 100 + 50 + 5, 4, [False] * 4),
        # Three entered, the newest alone was answered; two were dropped.
        (GapMode.CATCH_UP, 300 + 10 + 1, 2, [False, False, True, True]),
    ],
)
def test_live_answers_the_newest_and_follows_the_gap_rule(mode, action, gap_ticks, in_memory):
    moves = encode(np.array([1], np.int32), "moves")
    with FakePolicyServer(live_policy(mode, 3), delay_s=0.2) as server:
        with grpc.insecure_channel(server.address) as channel:
            with opened(PolicyServiceStub(channel), pace=ps.PACE_LIVE) as call:
                call.send(*[step(seq, inputs=[FRAME, moves]) for seq in range(1, 6)])
                result = next(call.call).result
                assert result.seq == 5
                assert [d.seq for d in result.dropped] == [1, 2, 3, 4]
                assert [d.in_memory for d in result.dropped] == in_memory
                assert result.gap_ticks == gap_ticks
                # In SKIP the moves of dropped steps are added; in CATCH_UP those of the two before the three.
                assert result.actions[0].index in (action, action + 2)


def test_steps_that_come_one_by_one_do_not_make_a_pass_too_long():
    moves = encode(np.array([1], np.int32), "moves")
    with FakePolicyServer(live_policy(GapMode.CATCH_UP, 3), delay_s=0.2) as server:
        with grpc.insecure_channel(server.address) as channel:
            with opened(PolicyServiceStub(channel), pace=ps.PACE_LIVE) as call:
                # While one is worked on, the next one comes: there is always a newer one.
                call.send(*[step(seq, inputs=[FRAME, moves]) for seq in (1, 2)])
                for seq in (3, 4):
                    time.sleep(0.25 if seq == 3 else 0.2)
                    call.send(step(seq, inputs=[FRAME, moves]))
                results = [next(call.call).result]
                while results[-1].seq < 4:
                    results.append(next(call.call).result)
                caught_up = [[d.seq for d in result.dropped if d.in_memory] for result in results]
                assert all(len(seqs) < 3 for seqs in caught_up)
                answered = [result.seq for result in results]
                assert sorted([*itertools.chain(*caught_up), *answered]) == [1, 2, 3, 4]


def test_rates_and_stale_steps():
    policy_spec = PolicySpec(
        name="count", version="1", family="fake", inputs=default_spec("count").inputs,
        action=DiscreteActionSpec(n=18), rate_hz=20,
    )  # fmt: skip
    with FakePolicyServer(FakePolicy(spec=policy_spec, handler=count)) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = PolicyServiceStub(channel)
            live = ps.Open(policy="count", pace=ps.PACE_LIVE, rate_hz=30)
            with play(stub, ps.PlayRequest(open=live)) as call:
                assert call.reason() == "RATE_MISMATCH"
            with opened(stub, rate_hz=30) as call:  # lockstep takes any rate
                call.ask(step(1))
            with opened(stub, pace=ps.PACE_LIVE, rate_hz=20) as call:
                server.set_delay(0.1)
                call.send(step(1, budget_us=1000))
                assert call.ask(ps.PlayRequest(ping=ps.Ping(nonce=1))).pong.nonce == 1
                server.set_delay(0)
                result = call.ask(step(2, budget_us=10_000_000)).result
                assert [(d.seq, d.reason, d.in_memory) for d in result.dropped] == [(1, ps.DROP_REASON_STALE, True)]


def test_a_world_takes_actions_and_gives_frames():
    world = PolicySpec(
        name="world", family="fake", kind=PolicyKind.WORLD, inputs=(), action=DiscreteActionSpec(n=3),
        outputs=(TensorSpec(name="frame", dtype="uint8", shape=(2, 2)),),
    )  # fmt: skip

    def handler(inputs: dict, context: StepContext) -> FakeReply:
        return FakeReply(outputs={"frame": np.full((2, 2), context.action, np.uint8)})

    with FakePolicyServer(FakePolicy(spec=world, handler=handler)) as server:
        with (
            grpc.insecure_channel(server.address) as channel,
            opened(PolicyServiceStub(channel), policy="world") as call,
        ):
            result = call.ask(step(1, inputs=[], action=pb.Action(index=2))).result
            assert result.outputs[0].data == b"\x02" * 4
            assert not result.actions
            assert error_of(call.ask(step(2, inputs=[]))) == ("BAD_ACTION", 2)


def test_scripts_and_observers():
    with FakePolicyServer([3, 1, 2]) as server, grpc.insecure_channel(server.address) as channel:
        with opened(PolicyServiceStub(channel), policy="fake") as call:
            assert [call.ask(step(i)).result.actions[0].index for i in range(1, 3)] == [3, 1]
            call.send(step(3, observe_only=True))
            assert call.ask(step(4)).result.actions[0].index == 2
    with pytest.raises(ValueError, match="at least one"):
        script([])


def test_policies_are_listed_with_versions_and_aliases(server, stub):
    def versioned(version, *aliases):
        policy_spec = PolicySpec(name="a", version=version, family="fake", inputs=(), action=DiscreteActionSpec(n=2))
        return FakePolicy(spec=policy_spec, handler=script([1]), aliases=aliases)

    server.publish(versioned("1", "stable"))
    server.publish(versioned("2"))
    listed = stub.ListPolicies(ps.ListPoliciesRequest()).policies
    assert [(p.name, p.version) for p in listed] == [("a", "2"), ("a", "1"), ("count", "1")]
    assert [p.name for p in stub.ListPolicies(ps.ListPoliciesRequest(name_prefix="c")).policies] == ["count"]
    for version, want in [("", "2"), ("stable", "1"), ("1", "1")]:
        assert stub.GetPolicy(ps.GetPolicyRequest(policy="a", version=version)).policy.version == want
    for name, version, reason in [("z", "", "POLICY_NOT_FOUND"), ("a", "7", "VERSION_NOT_FOUND")]:
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetPolicy(ps.GetPolicyRequest(policy=name, version=version))
        assert from_rpc_error(caught.value).reason == reason


def version_of(call, seq):
    """Return the version that answers a step, and how many steps are in its memory."""
    result = call.ask(step(seq)).result
    return result.version, result.actions[0].index


def test_followers_move_between_two_steps_and_keep_their_memory(server, stub):
    with (
        opened(stub, version_policy=ps.VERSION_POLICY_FOLLOW) as follower,
        opened(stub, version_policy=ps.VERSION_POLICY_PINNED) as pinned,
    ):
        assert version_of(follower, 1) == version_of(pinned, 1) == ("1", 1)
        server.publish(FakePolicy(spec=replace(default_spec("count"), version="2"), handler=count, slots=1))
        assert version_of(follower, 2) == ("2", 2)
        assert version_of(pinned, 2) == ("1", 2)
        # It holds the new version's slot, and has left its old one's.
        with play(stub, ps.PlayRequest(open=ps.Open(policy="count"))) as refused:
            assert refused.reason() == "NO_FREE_SLOT"
        # Resumed, it is where it was.
        with opened(stub, resume_token=follower.opened.resume_token) as resumed:
            assert resumed.opened.policy.version == "2"
            assert version_of(resumed, 3) == ("2", 3)


@pytest.mark.parametrize("why", ["another memory", "no slot"])
def test_followers_stay_where_they_do_not_fit(server, stub, why):
    newer = replace(default_spec("count", num_actions=18 if why == "no slot" else 17), version="2")
    with opened(stub, version_policy=ps.VERSION_POLICY_FOLLOW) as follower:
        server.publish(FakePolicy(spec=newer, handler=count, slots=0 if why == "no slot" else 1))
        assert [version_of(follower, seq) for seq in (1, 2)] == [("1", 1), ("1", 2)]
        layouts = {p.state_layout for p in stub.ListPolicies(ps.ListPoliciesRequest()).policies}
        assert len(layouts) == (1 if why == "no slot" else 2)


def test_what_the_fake_does_not_serve_says_so(server):
    with grpc.insecure_channel(server.address) as channel:
        admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            admin.GetStatus(admin_service_pb2.GetStatusRequest())
        assert from_rpc_error(caught.value).reason == "NOT_IMPLEMENTED"
        with pytest.raises(grpc.RpcError) as caught:
            list(admin.WatchSession(admin_service_pb2.WatchSessionRequest()))
        assert from_rpc_error(caught.value).reason == "NOT_IMPLEMENTED"
        transfer = state_transfer_service_pb2_grpc.StateTransferServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(transfer.TransferState(iter(())))
        assert from_rpc_error(caught.value).reason == "NOT_IMPLEMENTED"


def test_health(server):
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
    from grpc_health.v1 import health_pb2_grpc

    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "liveness", "readiness", "policy/count"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1


def test_random_bytes_end_their_own_call_only(server, stub):
    with opened(stub) as other, grpc.insecure_channel(server.address) as channel:
        raw = channel.stream_stream("/playserve.v1.PolicyService/Play")
        rng = np.random.default_rng(0)
        for _ in range(50):
            with pytest.raises(grpc.RpcError, match=r"INVALID_ARGUMENT|NOT_OPEN|NOT_FOUND|FAILED_PRECONDITION"):
                list(raw(iter([rng.bytes(int(rng.integers(1, 64)))]), timeout=10))
        assert other.ask(step(1)).result.actions[0].index == 1


# ---- rollouts


def rows(env_ids, episode_ids=None, *, inputs=None, **kwargs):
    n = len(env_ids)
    frames = encode(np.zeros((n, 2, 2, 3), np.uint8), "frame")
    return ps.RolloutRequest(
        step=ps.RolloutStep(
            env_ids=env_ids, episode_ids=[0] * n if episode_ids is None else episode_ids,
            inputs=[frames] if inputs is None else inputs, **kwargs,
        )
    )  # fmt: skip


@contextmanager
def rollout(stub, num_envs=2, **kwargs):
    call = Call(stub.Rollout)
    opening = ps.RolloutOpen(**{"policy": "count", "num_envs": num_envs, "seed": 1, **kwargs})
    try:
        call.opened = call.ask(ps.RolloutRequest(open=opening)).opened
        yield call
    finally:
        call.call.cancel()
        call._outbox.put(None)


def row_error(response):
    assert response.WhichOneof("message") == "error", response
    error = response.error
    return from_status(error.status).reason, error.env_id if error.HasField("env_id") else None


def test_rows_have_their_own_memory_and_any_subset_may_come(stub):
    with rollout(stub) as call:
        assert call.opened.seed == 1
        result = call.ask(rows([0, 1])).result
        assert list(result.action_indices) == [1, 1]
        call.send(rows([1]), rows([1, 0], [0, 4]))
        first, second = next(call.call).result, next(call.call).result
        assert (list(first.env_ids), list(first.action_indices)) == ([1], [2])
        assert (list(second.env_ids), list(second.action_indices)) == ([1, 0], [3, 1])
        assert list(second.episode_ids) == [0, 4]
        assert call.ask(ps.RolloutRequest(ping=ps.Ping(nonce=4))).pong.nonce == 4
        call.send(ps.RolloutRequest(close=ps.Close()))
        assert call.end() == []
    assert stub.GetPolicy(ps.GetPolicyRequest(policy="count")).policy.slots_free == 2


def test_bad_rows_and_messages_are_refused_and_the_stream_goes_on(server, stub):
    with rollout(stub) as call:
        call.ask(rows([0, 1], [5, 5]))
        for bad, want in [
            (ps.RolloutRequest(), ("MALFORMED_MESSAGE", None)),
            (ps.RolloutRequest(open=ps.RolloutOpen(policy="count", num_envs=1)), ("ALREADY_OPEN", None)),
            (rows([]), ("BAD_ROW", None)),
            (rows([2]), ("BAD_ROW", None)),
            (rows([0, 0]), ("BAD_ROW", None)),
            (rows([0], [5, 5]), ("BAD_ROW", None)),
            (rows([0], [5], episode_seeds=[1, 2]), ("BAD_ROW", None)),
            (rows([0], [5], executed=[ps.RowExecuted(env_id=7, source=3)]), ("BAD_ROW", None)),
            (rows([0, 1], [5, 5], inputs=[FRAME]), ("SHAPE_MISMATCH", None)),
            (rows([0], [4]), ("EPISODE_REUSED", 0)),
            (rows([0], [5], executed=[ps.RowExecuted(env_id=0, source=2)]), ("BAD_ACTION", 0)),
        ]:
            assert row_error(call.ask(bad)) == want
        server.fail_row(0, NotReadyError("later"))
        assert row_error(call.ask(rows([0, 1], [5, 5]))) == ("NOT_READY", 0)
        assert list(next(call.call).result.action_indices) == [2]
        assert list(call.ask(rows([0, 1], [5, 5])).result.action_indices) == [2, 3]


def test_a_human_s_action_is_clipped_and_a_policy_s_is_not():
    keys = DesktopActionSpec(keys=("KeyW", "KeyA"), buttons=(0,), max_mouse_px=100)
    seen = []

    def handler(inputs: dict, context: StepContext) -> FakeReply:
        seen.append(context.executed)
        return FakeReply(actions=(DesktopAction(),))

    policy = FakePolicy(spec=replace(default_spec("count"), action=keys), handler=handler)
    wild = pb.Action(desktop=pb.DesktopAction(keys=["KeyW", "F5"], buttons=[0, 2], mouse_dx_px=-400, scroll=1))
    tame = DesktopAction(keys=frozenset({"KeyW"}), buttons=frozenset({0}), mouse_dx_px=-100.0)
    with FakePolicyServer(policy) as server, grpc.insecure_channel(server.address) as channel:
        with opened(PolicyServiceStub(channel)) as call:
            call.ask(step(1))
            call.send(ps.PlayRequest(executed=ps.Executed(seq=1, source=pb.ACTION_SOURCE_HUMAN, action=wild)))
            call.ask(step(2))
            call.send(ps.PlayRequest(executed=ps.Executed(seq=2, source=pb.ACTION_SOURCE_POLICY, action=wild)))
            assert error_of(next(call.call)) == ("BAD_ACTION", 2)
        with rollout(PolicyServiceStub(channel)) as call:
            call.ask(rows([0]))
            call.ask(rows([0], executed=[ps.RowExecuted(env_id=0, source=pb.ACTION_SOURCE_HUMAN, action=wild)]))
    assert seen == [None, tame, None, tame]


def test_rollouts_need_slots_and_an_open(stub):
    for opening, reason in [
        (ps.RolloutOpen(policy="count", num_envs=3), "NO_FREE_SLOT"),
        (ps.RolloutOpen(policy="count", num_envs=0), "BAD_SETTING"),
        (ps.RolloutOpen(policy="nope", num_envs=1), "POLICY_NOT_FOUND"),
    ]:
        call = Call(stub.Rollout)
        call.send(ps.RolloutRequest(open=opening), None)
        assert call.reason() == reason
    call = Call(stub.Rollout)
    call.send(rows([0]), None)
    assert call.reason() == "NOT_OPEN"


def test_rollout_seeds_executed_actions_and_extras():
    def reply(inputs: dict, context: StepContext) -> FakeReply:
        executed = -1 if context.executed is None else context.executed
        return FakeReply(actions=(context.seed % 18,), value=float(executed), log_prob=(-1.0,))  # type: ignore[arg-type]

    with FakePolicyServer({"count": reply}) as server, grpc.insecure_channel(server.address) as channel:
        extras = pb.Extras(log_prob=True, value=True)
        with rollout(PolicyServiceStub(channel), extras=extras) as call:
            result = call.ask(rows([0, 1], episode_seeds=[4, 5])).result
            assert list(result.action_indices) == [4, 5]
            assert list(result.log_probs) == [-1, -1]
            assert list(result.values) == [-1, -1]
            human = ps.RowExecuted(env_id=1, source=2, action=pb.Action(index=9))
            result = call.ask(rows([0, 1], episode_seeds=[6, 7], executed=[human])).result
            assert list(result.action_indices) == [4, 5]  # a seed is read where an episode is new
            assert list(result.values) == [4, 9]


def test_too_many_waiting_rows_are_refused_in_their_turn():
    with FakePolicyServer({"count": count}, max_steps_in_flight=2, delay_s=0.2) as server:
        with grpc.insecure_channel(server.address) as channel, rollout(PolicyServiceStub(channel)) as call:
            call.send(rows([0]), rows([0]), rows([0, 1]))
            assert [next(call.call).result.action_indices[0] for _ in range(2)] == [1, 2]
            assert row_error(next(call.call)) == ("QUEUE_FULL", 0)
            assert list(next(call.call).result.env_ids) == [1]
