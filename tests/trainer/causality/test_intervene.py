"""Frames of one clip under the actions of another: policies that look, and policies that repeat themselves."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve_trainer.causality.answers import Answers
from playserve_trainer.causality.clips import Subject, open_subject
from playserve_trainer.causality.intervene import InterveneSettings, NoPairsError, intervene
from playserve_trainer.causality.situations import Decisions, Pair, Task, draw_pairs, find_moments
from playserve_trainer.commands import causality
from playserve_trainer.data.p2p_clips import ClipOrder, Clips, ClipSet
from playserve_trainer.data.p2p_frames import VideoFrames
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.policy import LabelCounts

_SETTINGS = InterveneSettings(pairs=12)
MakePolicy = Callable[..., P2PPolicy]
SavePolicy = Callable[[P2PPolicy], Path]
RecordDoom = Callable[..., Path]


@pytest.fixture(scope="module")
def subject(doom: Path, make_policy: MakePolicy, save_policy: SavePolicy) -> Subject:
    return open_subject(save_policy(make_policy()), doom, held_out=0)


def _asked(subject: Subject, policy: P2PPolicy) -> dict[str, Any]:
    return intervene(dataclasses.replace(subject, answers=Answers(policy)), _SETTINGS)


def _learn(subject: Subject, policy: P2PPolicy, steps: int) -> P2PPolicy:
    """Teach a policy the recordings."""
    recordings = subject.recordings
    order = ClipOrder(recordings, subject.chosen, 8, 0, moving=True)
    source = Clips(
        [ClipSet(recordings, VideoFrames(recordings), order)], batch_size=12, sequence_length=8, seed=0, workers=1
    )
    batches = [source.batch(index) for index in range(12)]
    source.close()
    learner = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=6e-3)
    policy.train()
    for step in range(steps):
        batch = batches[step % len(batches)]
        learner.zero_grad()
        logits = policy(batch.inputs, batch.executed_BTH, batch.first_BT).logits
        policy.loss(logits, batch.labels_BTH, LabelCounts.of(batch.labels_BTH)).backward()  # type: ignore[no-untyped-call]
        learner.step()
    return policy.eval()


def test_decisions_leave_out_how_far_the_mouse_moves(subject: Subject) -> None:
    policy = subject.answers.policy
    decisions = Decisions(policy.vocabulary)

    def of(**given: Any) -> tuple[tuple[int, ...], ...]:
        return decisions.of(np.array(policy.encode_action(DesktopAction(**given))))

    assert of(mouse_dx_px=24.0) == of(mouse_dx_px=5.0) != of(mouse_dx_px=-5.0)
    assert of() != of(mouse_dy_px=1.0)
    assert of()[2:] == ((0,), (0,))
    assert of(keys=frozenset({"KeyA"}))[0] != of(keys=frozenset({"KeyD"}))[0]
    assert of(buttons=frozenset({0}))[1] != of()[1]


def test_moments_are_the_experts_with_a_whole_past_in_one_episode(subject: Subject) -> None:
    recordings = subject.recordings
    tasks, left_out = find_moments(recordings, subject.chosen, 8)
    assert not left_out
    assert {str(task) for task in tasks} == {"basic/shoot_monster", "take_cover/dodge"}
    for moments in tasks.values():
        for recording, firsts in moments.firsts.items():
            start = recordings.starts_R[recording]
            # Frames 0 and 25 begin episodes; action i + 1, of frame i, is noise where 11 divides i + 1.
            wanted = [i - 7 for i in range(49) if (i + 1) % 11 and (7 <= i < 25 or i >= 32)]
            assert firsts.tolist() == wanted
            assert all(recordings.learnt_N[start + first + 7] for first in firsts)


def test_pairs_are_of_two_recordings_of_a_task_that_want_different_things_both_ways(subject: Subject) -> None:
    recordings, decisions = subject.recordings, Decisions(subject.answers.policy.vocabulary)
    tasks, _ = find_moments(recordings, subject.chosen, 8)
    for task, moments in tasks.items():
        pairs = draw_pairs(recordings, task, moments, 8, 12, decisions, 0)
        assert len(pairs) == len(set(pairs)) == 24
        assert set(pairs) == {Pair(pair.b, pair.a) for pair in pairs}
        for pair in pairs:
            assert pair.a.recording != pair.b.recording
            assert all(window.first in moments.firsts[window.recording] for window in pair)
            right = [decisions.of(recordings.tokens_NH[recordings.starts_R[w.recording] + w.first + 7]) for w in pair]
            assert right[0] != right[1]
        assert pairs == draw_pairs(recordings, task, moments, 8, 12, decisions, 0)
        assert pairs != draw_pairs(recordings, task, moments, 8, 12, decisions, 1)
    one = {r: f for r, f in tasks[Task("basic", "shoot_monster")].firsts.items() if r == 0}
    assert not draw_pairs(recordings, Task("basic", "x"), dataclasses.replace(moments, firsts=one), 8, 2, decisions, 0)


def test_a_policy_without_past_actions_is_moved_by_frames_alone(subject: Subject, make_policy: MakePolicy) -> None:
    value = _asked(subject, _learn(subject, make_policy(past_actions=False), 80))
    assert not value["sees_past_actions"]
    assert "kl_history is 0 by construction" in value["note"]
    found = value["all"]
    assert found["kl_history"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 48}
    assert found["kl_history_nats"]["mean"] == 0.0
    assert found["history_share"] == 0.0
    assert all(row["kl_history"] == 0.0 for row in value["rows"])
    assert found["kl_frames"]["low"] > 0
    assert found["towards_frames"]["mean"] > 0.9
    assert found["own_history"]["mean"] == found["towards_frames"]["mean"]
    assert found["frames_minus_history"]["low"] > 0.5


def test_a_policy_that_cannot_see_is_moved_by_history_alone(subject: Subject, make_policy: MakePolicy) -> None:
    value = _asked(subject, _learn(subject, make_policy(blind=True), 75))
    found = value["all"]
    assert value["sees_past_actions"]
    assert not value["note"]
    assert all(row["kl_frames"] == 0.0 for row in value["rows"])
    assert found["kl_history"]["low"] > 0
    assert found["history_share"] == 1.0
    assert found["copied"]["mean"] > 0.6
    assert found["frames_minus_history"]["mean"] < -0.2
    assert found["own_history"]["mean"] > found["towards_frames"]["mean"]


def test_a_policy_that_always_answers_the_same_follows_neither(subject: Subject, make_policy: MakePolicy) -> None:
    policy = make_policy(blind=True, past_actions=False)
    value = _asked(subject, policy)
    assert value["all"]["frames_minus_history"]["mean"] == 0.0
    assert value["all"]["kl_frames_nats"]["mean"] == 0.0
    assert value["all"]["history_share"] is None  # nothing moved
    assert value["by_task"]["take_cover/dodge"]["expert_remembers"]
    assert value["memoryless_experts"]["pairs"] == value["by_task"]["basic/shoot_monster"]["pairs"] == 24
    assert set(value["by_task"]["basic/shoot_monster"]["by_decision"]) == {"key"}
    assert set(value["by_task"]["take_cover/dodge"]["by_decision"]) == {"button", "dx"}
    assert json.dumps(value) == json.dumps(_asked(subject, policy))


def test_recordings_of_which_nobody_knows_what_is_right_are_left_out(
    tmp_path: Path, record_doom: RecordDoom, make_policy: MakePolicy, save_policy: SavePolicy
) -> None:
    folder = save_policy(make_policy())
    record_doom(tmp_path, "basic", 0)
    record_doom(tmp_path, "basic", 1, task=False)
    with pytest.raises(NoPairsError, match="basic/shoot_monster: one recording"):
        intervene(open_subject(folder, tmp_path, held_out=0), _SETTINGS)
    record_doom(tmp_path, "basic", 2)
    value = intervene(open_subject(folder, tmp_path, held_out=0), _SETTINGS)
    (why,) = value["left_out"].values()
    assert why == "its sidecar names no scenario and goal of Doom, so that nobody knows what is right"
    assert value["all"]["recordings"] == 2
    with pytest.raises(BadSettingError, match="pairs is at least 1, not 0"):
        InterveneSettings(pairs=0)


def test_the_command_intervenes(
    tmp_path: Path, doom: Path, make_policy: MakePolicy, save_policy: SavePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    causality.configure(parser)
    arguments = ["intervene", str(save_policy(make_policy(past_actions=False))), "--data", str(doom), "--held-out", "0",
                 "--pairs", "4", "--json", str(tmp_path / "i.json"), "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert causality.run(parser.parse_args(arguments)) == 0
    value, printed = json.loads((tmp_path / "i.json").read_text()), capsys.readouterr().out
    assert value["all"]["pairs"] == 16
    assert len(value["rows"]) == 16
    assert "the policy sees no past actions" in " ".join(printed.split())
    assert "take_cover/dodge *" in printed
