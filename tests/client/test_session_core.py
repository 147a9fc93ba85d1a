"""The client's side of a session without a network: what is sent again after a lost stream, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import (
    BadActionError,
    EpisodeReusedError,
    ServerUnavailableError,
    StateError,
    StepFailedError,
    to_status,
)
from playserve.settings import ActionSource
from playserve.testing import default_spec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client.session_core import SessionCore

FRAME = np.zeros((2, 2, 3), np.uint8)


def result(seq, action=0):
    return ps.StepResult(seq=seq, actions=[pb.Action(index=action)])


def make(**kwargs):
    core = SessionCore(ps.Open(policy="x", **kwargs), (), pb.ClientInfo(name="test"))
    assert core.open_request().open.policy == "x"
    assert core.on_opened(answer()) == []
    return core


def answer(**kwargs):
    return ps.Opened(
        **{"policy": default_spec("x").to_proto(), "resume_token": b"token", "config_revision": 1, **kwargs}
    )


def respond(core, **kwargs):
    core.on_response(ps.PlayResponse(**kwargs))


def lose(core, last_seq=0, last=None, **kwargs):
    """Resume after a lost stream; return what is sent again, by kind and seq or episode."""
    opening = core.open_request().open
    assert opening.resume_token == b"token"
    assert opening.policy == ""
    again = core.on_opened(answer(resumed=True, last_seq=last_seq, last_result=last, **kwargs))
    kinds = [(request.WhichOneof("message"), getattr(request, request.WhichOneof("message"))) for request in again]
    return [(kind, getattr(m, "seq", None) or getattr(m, "episode_id", None) or 0) for kind, m in kinds]


def test_what_the_server_has_not_seen_is_sent_again_in_order():
    core = make()
    core.step_request(FRAME)
    core.executed_request(1, 3, ActionSource.HUMAN)
    configure = core.configure(instruction="x")
    core.step_request(FRAME)
    reset = core.reset(7)
    core.step_request(FRAME)
    ping = core.ping()
    everything = [("step", 1), ("executed", 1), ("configure", 0), ("step", 2), ("reset", 7), ("step", 3), ("ping", 0)]
    assert lose(core) == everything
    assert lose(core, 1, result(1)) == everything[1:]
    assert core.take().seq == 1
    # The server may still be at the instruction when it answers the step behind it.
    assert lose(core, 2, result(2)) == [("configure", 0), *everything[4:]]
    assert not configure.done
    respond(core, configured=ps.Configured(revision=2))
    assert configure.done
    assert core.take().seq == 2
    assert not reset.done
    assert lose(core, 2, result(2), episode_id=7) == everything[5:]
    assert reset.done
    assert lose(core, 3, result(3), episode_id=7) == [("ping", 0)]
    respond(core, pong=ps.Pong(nonce=ping.request.ping.nonce))
    assert ping.done
    assert core.take().seq == 3
    assert not core.has_next()


def test_an_answer_that_is_still_to_come_is_waited_for():
    core = make()
    core.step_request(FRAME)
    assert lose(core, 1, None) == []
    assert not core.has_next()
    respond(core, result=result(1, 5))
    assert core.take().action == 5


def test_answers_that_are_gone_are_errors_in_lockstep_and_nothing_in_live():
    for pace, lost in ((ps.PACE_LOCKSTEP, [1, 2]), (ps.PACE_LIVE, [])):
        core = make(pace=pace)
        for _ in range(3):
            core.step_request(FRAME)
        assert lose(core, 3, result(3)) == []
        assert core.take().seq == 3
        for seq in lost:
            with pytest.raises(ServerUnavailableError, match=f"step {seq} was lost") as caught:
                core.take()
            assert caught.value.seq == seq
        assert not core.has_next()


def test_refused_messages_are_not_sent_again():
    core = make()
    core.step_request(FRAME)
    respond(core, error=ps.StepError(seq=1, status=to_status(StepFailedError("boom"))))
    core.step_request(FRAME)
    core.executed_request(2, 3, ActionSource.HUMAN)
    respond(core, result=result(2))
    respond(core, error=ps.StepError(seq=2, status=to_status(BadActionError("no"))))
    reset = core.reset()
    respond(core, error=ps.StepError(status=to_status(EpisodeReusedError("old"))))
    assert isinstance(reset.error, EpisodeReusedError)
    assert lose(core, 2, result(2)) == []
    with pytest.raises(StepFailedError) as caught:
        core.take()
    assert caught.value.seq == 1
    assert core.take().seq == 2
    with pytest.raises(BadActionError):
        core.take()


def test_the_same_action_executed_twice_is_two_messages():
    core = make()
    core.executed_request(1, 3, ActionSource.HUMAN)
    core.executed_request(1, 3, ActionSource.HUMAN)
    respond(core, error=ps.StepError(seq=1, status=to_status(BadActionError("no"))))
    assert lose(core) == [("executed", 1)]


def test_an_action_outside_the_spec_is_the_servers_error_and_only_this_steps():
    core = make()
    core.step_request(FRAME)
    respond(core, result=result(1, action=99))
    with pytest.raises(BadActionError) as caught:
        core.take()
    assert caught.value.seq == 1
    core.step_request(FRAME)
    respond(core, result=result(2, action=1))
    assert core.take().action == 1


def test_a_long_observation_keeps_a_bounded_log():
    core = make()
    for _ in range(1000):
        core.step_request(FRAME, observe_only=True)
        core.executed_request(core.last_seq, 3, ActionSource.HUMAN)
    again = lose(core)
    assert again[-1] == ("executed", 1000)
    assert sum(kind == "step" for kind, _ in again) == 256
    core.step_request(FRAME)
    respond(core, result=result(1001))
    assert lose(core, 1001, result(1001)) == []


def test_the_first_failure_stands_and_ends_every_wait():
    core = make()
    tickets = [core.configure(instruction="a"), core.reset(), core.ping()]
    core.step_request(FRAME)
    core.fail(ServerUnavailableError("gone"))
    core.fail(StateError("later"))
    assert all(isinstance(ticket.error, ServerUnavailableError) for ticket in tickets)
    for call in (core.take, lambda: core.step_request(FRAME), core.reset, core.take_newest):
        with pytest.raises(ServerUnavailableError, match="gone"):
            call()


def test_before_it_is_open_nothing_works():
    core = SessionCore(ps.Open(policy="x"), (), pb.ClientInfo())
    with pytest.raises(StateError, match="not open yet"):
        core.step_request(FRAME)
    with pytest.raises(StateError):
        core.take()


@given(st.data())
def test_every_step_is_answered_once_whatever_is_lost(data):
    """A server that keeps the rules, streams lost anywhere: each step enters once, in order, with its neighbours."""
    core = make()
    entered: list[int] = []  # the server's memory
    last: ps.StepResult | None = None
    wire: list[ps.PlayRequest] = []  # sent, not yet handled
    answered: list[int] = []
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["step", "executed", "handle", "handle and lose the answer", "lose"]))
        if action == "step":
            wire.append(core.step_request(FRAME))
        elif action == "executed":
            wire.append(core.executed_request(max(core.last_seq, 1), 1, ActionSource.HUMAN))
        elif action.startswith("handle"):
            while wire:
                request = wire.pop(0)
                if request.HasField("step"):
                    assert request.step.seq == (entered[-1] if entered else 0) + 1
                    entered.append(request.step.seq)
                    last = result(request.step.seq)
                    if action == "handle":
                        respond(core, result=last)
                    break
        if action in ("lose", "handle and lose the answer"):
            opened = answer(resumed=True, last_seq=entered[-1] if entered else 0, last_result=last)
            wire = core.on_opened(opened)
        while core.has_next():
            answered.append(core.take().seq)
    while wire:
        request = wire.pop(0)
        if request.HasField("step"):
            assert request.step.seq == (entered[-1] if entered else 0) + 1
            entered.append(request.step.seq)
            respond(core, result=result(request.step.seq))
    while core.has_next():
        answered.append(core.take().seq)
    assert entered == answered == list(range(1, core.last_seq + 1))
