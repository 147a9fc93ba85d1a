"""Keyboard and mouse, and instructions: what is said of them on the wire, of sessions and of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contract_kit.streams import Play, Rollout, comparable, played, reason_of, step_message

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

PlayOf = Callable[..., Play]
RolloutOf = Callable[..., Rollout]

POLICY, HUMAN, NONE, UNKNOWN = (
    pb.ACTION_SOURCE_POLICY, pb.ACTION_SOURCE_HUMAN, pb.ACTION_SOURCE_NONE, pb.ACTION_SOURCE_UNKNOWN,
)  # fmt: skip


def moved(spec: pb.PolicySpec, key: int = 0, **fields: Any) -> pb.Action:
    """Return an action that holds the `key`-th key."""
    return pb.Action(desktop=pb.DesktopAction(keys=[spec.action.desktop.keys[key]], **fields))


def executed(seq: int, action: pb.Action | None = None, source: pb.ActionSource.ValueType = HUMAN) -> ps.Executed:
    return ps.Executed(seq=seq, action=action, source=source)


def game(play: PlayOf, told: list[ps.Executed | None], role: str = "desktop", **fields: Any) -> list[Any]:
    """Play a step for each entry and one more, with what is told after each; return what came back."""
    session = play(role, **fields)
    answers = [comparable(session.step(1))]
    for seq, message in enumerate(told, 2):
        if message is not None:
            session.send(executed=message)
        answers.append(comparable(session.step(seq)))
    return answers


def test_the_spec_and_the_actions_that_fit_it(play: PlayOf) -> None:
    session = play("desktop")
    spec = session.spec.action.desktop
    assert spec.keys
    assert spec.max_mouse_px > 0
    assert not {b for b in spec.buttons if not 0 <= b <= 4}
    for seq in range(1, 9):
        result = session.step(seq)
        (action,) = result.actions
        assert set(action.desktop.keys) <= set(spec.keys)
        assert set(action.desktop.buttons) <= set(spec.buttons)
        assert abs(action.desktop.mouse_dx_px) <= spec.max_mouse_px
        assert len(result.log_prob) > 1, "one a head"


def test_in_lockstep_the_answer_was_executed_unless_it_is_said_otherwise(play: PlayOf) -> None:
    session = play("desktop")
    first = session.step(1)
    plain = game(play, [None, None])
    said = game(play, [executed(1, first.actions[0], POLICY), None])
    other = game(play, [executed(1, moved(session.spec, mouse_dx_px=-25)), None])
    assert said == plain
    assert other[0] == plain[0]
    assert other[1] != plain[1], "a policy that uses executed actions answers otherwise"


def test_the_last_executed_of_a_step_stands_and_nothing_executed_is_everything_up(play: PlayOf) -> None:
    spec = play("desktop").spec
    idle = game(play, [executed(1, pb.Action(desktop=pb.DesktopAction())), None])
    assert game(play, [executed(1, None, NONE), None]) == idle
    assert game(play, [executed(1, None, UNKNOWN), None])[0] == idle[0]
    session = play("desktop")
    answers = [comparable(session.step(1))]
    session.send(executed=executed(1, moved(spec, mouse_dx_px=40)))
    session.send(executed=executed(1, pb.Action(desktop=pb.DesktopAction())))
    assert [*answers, comparable(session.step(2)), comparable(session.step(3))] == idle


def test_what_a_human_does_is_clipped_to_what_the_policy_has(play: PlayOf) -> None:
    spec = play("desktop").spec
    limit = spec.action.desktop.max_mouse_px
    wild = moved(spec, buttons=[4], mouse_dx_px=1e6, scroll=3)
    wild.desktop.keys.append("NumpadDivide")
    assert game(play, [executed(1, wild), None]) == game(
        play, [executed(1, moved(spec, mouse_dx_px=limit)), None]
    )  # fmt: skip


BAD = {
    "an index": pb.Action(index=0),
    "nothing": pb.Action(),
    "not a number": pb.Action(desktop=pb.DesktopAction(mouse_dx_px=float("nan"))),
    "infinite": pb.Action(desktop=pb.DesktopAction(mouse_dy_px=float("inf"))),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("source", [POLICY, HUMAN], ids=["policy", "human"])
def test_bad_executed_actions(play: PlayOf, case: str, source: pb.ActionSource.ValueType) -> None:
    session = play("desktop")
    first = comparable(session.step(1))
    session.send(executed=executed(1, BAD[case], source))
    error = session.error()
    assert (error.seq, reason_of(error.status)) == (1, "BAD_ACTION")
    assert [first, comparable(session.step(2)), comparable(session.step(3))] == game(play, [None, None])


@pytest.mark.parametrize(
    "fields",
    [{"keys": ["NumpadDivide"]}, {"buttons": [4]}, {"mouse_dx_px": 1e6}, {"scroll": 1.0}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_policys_action_must_fit_its_spec(play: PlayOf, fields: dict[str, Any]) -> None:
    session = play("desktop")
    session.step(1)
    session.send(executed=executed(1, pb.Action(desktop=pb.DesktopAction(**fields)), POLICY))
    assert session.refuses() == "BAD_ACTION"


def test_the_decoding_of_motion_is_a_setting_of_the_session(play: PlayOf) -> None:
    session = play("desktop", sampling=pb.Sampling(mouse_decode=pb.MOUSE_DECODE_CONSERVATIVE))
    twin = play("desktop")
    calm = [session.step(seq) for seq in range(1, 9)]
    plain = [twin.step(seq) for seq in range(1, 9)]
    assert [r.value for r in calm] == [r.value for r in plain], "what was drawn is the same"
    calmly, plainly = ([abs(r.actions[0].desktop.mouse_dx_px) for r in results] for results in (calm, plain))
    assert all(a <= b for a, b in zip(calmly, plainly, strict=True))
    assert calmly != plainly
    session.send(configure=ps.Configure(sampling=pb.Sampling(mouse_decode=pb.MOUSE_DECODE_UNSPECIFIED)))
    assert session.recv().configured.revision == 2
    assert [comparable(session.step(seq)) for seq in (9, 10)] == [comparable(twin.step(seq)) for seq in (9, 10)]
    session.send(configure=ps.Configure(sampling=pb.Sampling(mouse_decode=99)))  # type: ignore[arg-type]
    assert session.refuses() == "BAD_SETTING"


def test_decoding_that_draws_is_repeated_by_the_seed(play: PlayOf) -> None:
    drawn = pb.Sampling(mouse_decode=pb.MOUSE_DECODE_TRUNCATED_NORMAL)
    assert game(play, [None] * 5, sampling=drawn) == game(play, [None] * 5, sampling=drawn)


def test_an_instruction_is_in_force_from_configured_on(play: PlayOf) -> None:
    session, twin = play("desktop"), play("desktop")
    assert comparable(session.step(1)) == comparable(twin.step(1))
    session.send(configure=ps.Configure(instruction="go north"))
    assert session.recv().configured.revision == 2
    result = session.step(2)
    assert result.config_revision == 2
    assert comparable(result) != comparable(twin.step(2))


def test_rows_of_a_rollout_answer_as_a_session_does(play: PlayOf, rollout: RolloutOf) -> None:
    session = play("desktop", seed=5)
    session.step(1)
    action = moved(session.spec, 1, mouse_dx_px=20)
    session.send(executed=executed(1, action))
    alone = [played(session.step(seq).actions[0]) for seq in (2, 3)]
    stream = rollout("desktop", num_envs=3, extras=pb.Extras(log_prob=True))
    stream.rows([0, 1, 2], 1, [1, 2, 3], episode_seeds=[5, 5, 6])
    rows_of(stream, 3)
    told = [ps.RowExecuted(env_id=env, action=action, source=HUMAN) for env in (0, 1)]
    stream.rows([0, 1], 2, [1, 2], executed=told)
    assert rows_of(stream, 2) == {0: alone[0], 1: alone[0]}
    stream.rows([0, 1], 3, [1, 2])
    assert rows_of(stream, 2) == {0: alone[1], 1: alone[1]}


def rows_of(stream: Rollout, rows: int) -> dict[int, Any]:
    """Read results until `rows` rows are answered; return the actions by environment."""
    found: dict[int, Any] = {}
    while len(found) < rows:
        answer = stream.recv()
        assert answer.WhichOneof("message") == "result", answer
        result = answer.result
        assert not result.action_indices
        assert len(result.log_probs) in (0, len(result.env_ids))
        found.update(zip(result.env_ids, map(played, result.actions), strict=True))
    return found


def test_a_bad_executed_row_costs_its_environment_only(rollout: RolloutOf) -> None:
    stream, twin = rollout("desktop"), rollout("desktop")
    for each in (stream, twin):
        each.rows([0, 1], 1)
        rows_of(each, 2)
    told = ps.RowExecuted(env_id=1, action=pb.Action(index=0), source=HUMAN)
    stream.rows([0, 1], 2, executed=[told])
    error = stream.error()
    assert (error.env_id, reason_of(error.status)) == (1, "BAD_ACTION")
    twin.rows([0], 2)
    assert rows_of(stream, 1) == rows_of(twin, 1)


def test_an_episodes_instruction_is_read_where_the_episode_is_new(play: PlayOf, rollout: RolloutOf) -> None:
    session = play("desktop", seed=5, instruction="go north")
    north = [played(session.step(seq).actions[0]) for seq in (1, 2, 3)]
    session = play("desktop", seed=5)
    plain = [played(session.step(seq).actions[0]) for seq in (1, 2, 3)]
    assert north != plain
    stream = rollout("desktop", num_envs=2)
    found = []
    for index, texts in enumerate((["go north", ""], ["what", "what"], []), 1):  # the later ones are not read
        stream.rows([0, 1], index, [1, 2], episode_seeds=[5, 5], episode_instructions=texts)
        found.append(rows_of(stream, 2))
    assert [row[0] for row in found] == north
    assert [row[1] for row in found] == plain
    stream.rows([0, 1], 1, [3, 4], episode_seeds=[5, 5], episode_instructions=["", "go north"])
    assert rows_of(stream, 2) == {0: plain[0], 1: north[0]}, "the next episode has its own"


@pytest.mark.parametrize(
    ("texts", "reason"), [(["go"], "BAD_ROW"), (["go", "on", "on"], "BAD_ROW"), (["go", "x" * 4097], "BAD_SETTING")]
)
def test_bad_instructions_refuse_the_message_whole(rollout: RolloutOf, texts: list[str], reason: str) -> None:
    stream = rollout("desktop")
    stream.rows([0, 1], 1, episode_instructions=texts)
    error = stream.error()
    assert (error.HasField("env_id"), reason_of(error.status)) == (False, reason)
    stream.rows([0, 1], 1, episode_instructions=["go", "on"])
    assert len(rows_of(stream, 2)) == 2


@pytest.mark.parametrize("role", ["desktop_live", "desktop_catch_up"])
def test_live_frames_that_pile_up_keep_what_was_executed(play: PlayOf, target: Any, role: str) -> None:
    """Whatever was dropped: a lockstep session that is told the same in other words remembers the same."""
    session = play(role, pace=ps.PACE_LIVE)
    spec = session.spec
    actions = [moved(spec, seq % 2, mouse_dx_px=7 * seq - 20) for seq in range(9)]
    # Nobody can say in other words what was executed before the first step that entered: it does not wait.
    answers, entered = [session.step(1)], set(range(1, 9))
    session.send(executed=executed(1, actions[1]))
    for seq in range(2, 9):
        session.send(step=step_message(spec, seq)).send(executed=executed(seq, actions[seq]))
    while answers[-1].seq < 8:
        answers.append(session.result())
        entered -= {d.seq for d in answers[-1].dropped if not d.in_memory}
    if target.slow_live:
        assert len(answers) < 8, "they came faster than they could be answered"
    twin = play(role)
    values: dict[int, float] = {}
    motion, last, limit = 0.0, 0, spec.action.desktop.max_mouse_px
    for seq in range(1, 9):
        motion += actions[seq - 1].desktop.mouse_dx_px if seq > 1 else 0.0
        if seq in entered:
            if last:
                merged = moved(spec, (seq - 1) % 2, mouse_dx_px=max(-limit, min(limit, motion)))
                twin.send(executed=executed(last, merged))
            values[seq], motion, last = twin.step(seq).value, 0.0, seq
    assert [values[answer.seq] for answer in answers] == [answer.value for answer in answers]
