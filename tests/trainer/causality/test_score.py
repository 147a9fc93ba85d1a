"""The causality score: what is swapped, what is exactly zero, what follows from the seed."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer.causality.answers import Answers, kl_by_head
from playserve_trainer.causality.clips import Clip, ClipReader, Subject, Window, open_subject
from playserve_trainer.causality.resampling import Resampler
from playserve_trainer.causality.score import (
    LoneClipError,
    ScoreSettings,
    clip_shape,
    draw_swap,
    plan_clips,
    score,
    swap_kl,
)
from playserve_trainer.commands import causality
from playserve_trainer.data.episodes import NoEpisodesError
from playserve_trainer.data.p2p_clips import ClipOrder, Clips, ClipSet
from playserve_trainer.data.p2p_frames import VideoFrames
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.policy import INSTRUCTION, TARGETS

_SETTINGS = ScoreSettings(clips_per_game=5, swaps=2)
MakePolicy = Callable[..., P2PPolicy]
SavePolicy = Callable[[P2PPolicy], Path]
RecordDoom = Callable[..., Path]


@pytest.fixture(scope="module")
def subject(doom: Path, make_policy: MakePolicy, save_policy: SavePolicy) -> Subject:
    return open_subject(save_policy(make_policy(text_encoder="words")), doom, held_out=0)


def _with(subject: Subject, policy: P2PPolicy) -> Subject:
    vectors = subject.vectors if INSTRUCTION in policy.context_inputs() else None
    return dataclasses.replace(subject, answers=Answers(policy), vectors=vectors)


def _clips(subject: Subject, count: int = 4) -> list[Clip]:
    reader = ClipReader(subject, 8)
    try:
        return [reader.read(Window(recording, 5 * recording)) for recording in range(count)]
    finally:
        reader.close()


def test_clips_are_those_of_training(subject: Subject) -> None:
    recordings, policy = subject.recordings, subject.answers.policy
    order = ClipOrder(recordings, subject.chosen, 8, 0, moving=False)
    source = Clips(
        [ClipSet(recordings, VideoFrames(recordings), order)], batch_size=12, sequence_length=8, seed=0,
        text_vectors=subject.vectors, text_width=policy.config.text_width, workers=1,
    )  # fmt: skip
    batch, reader = source.batch(0), ClipReader(subject, 8)
    source.close()
    seen = 0
    for row in range(12):
        window = Window(*order.clip(row))
        if window.first + 8 > recordings.lengths_R[window.recording]:
            continue
        clip, seen = reader.read(window), seen + 1
        assert torch.equal(clip.actions_TH, batch.inputs[TARGETS][row])
        assert torch.equal(clip.first_T, batch.first_BT[row])
        assert clip.instruction_TW is not None
        assert torch.equal(clip.instruction_TW, batch.inputs[INSTRUCTION][row])
        torch.testing.assert_close(clip.image_TD, subject.answers.see(batch.inputs["frame"][row].numpy()))
    reader.close()
    assert seen > 6


@pytest.mark.parametrize("past_actions", [True, False])
def test_answers_are_the_policys_own(subject: Subject, make_policy: MakePolicy, past_actions: bool) -> None:
    policy = make_policy(text_encoder="words", past_actions=past_actions)
    clips = _clips(_with(subject, policy))
    frames = np.zeros((4, 8, 32, 32, 3), np.uint8)
    store = VideoFrames(subject.recordings)
    for row, clip in enumerate(clips):
        store.read(clip.window.recording, clip.window.first, frames[row])
    store.close()
    actions, first = torch.stack([c.actions_TH for c in clips]), torch.stack([c.first_T for c in clips])
    instruction = torch.stack([c.instruction_TW for c in clips if c.instruction_TW is not None])
    first[1, 4] = True  # an episode begins within a clip
    inputs = {"frame": torch.from_numpy(frames), TARGETS: actions, INSTRUCTION: instruction}
    with torch.no_grad():
        wanted = policy(inputs, actions, first).logits
    answers = Answers(policy)
    out = answers.out(torch.stack([c.image_TD for c in clips]), instruction, actions, first, [2, 7])
    found = answers.log_probs(out.flatten(0, 1), actions[:, [2, 7]].flatten(0, 1))
    for head, logits in enumerate(wanted):
        torch.testing.assert_close(
            found[head], logits[:, [2, 7]].flatten(0, 1).double().log_softmax(-1), atol=1e-5, rtol=1e-5
        )
    # Greedy answers: likeliest given its own choices.
    chosen = torch.from_numpy(answers.choose(out[:, 1]))
    again = answers.log_probs(out[:, 1], chosen)
    assert all(torch.equal(again[h].argmax(-1), chosen[:, h]) for h in range(chosen.shape[1]))


def test_a_policy_is_no_divergence_from_itself_and_a_known_one_from_another() -> None:
    p = [torch.randn(5, n).double().log_softmax(-1) for n in (3, 7)]
    assert not kl_by_head(p, [x.clone() for x in p]).any()
    half, quarter = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.25, 0.75]]).double().log()
    assert kl_by_head([half], [quarter])[0, 0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def test_heads_weigh_as_documented(subject: Subject) -> None:
    weights = subject.answers.weights()
    heads = np.array(subject.answers.policy.heads())
    # Guessing all instead of knowing all is 1.
    assert weights @ np.log(heads) == pytest.approx(1.0)
    assert weights[:4] == pytest.approx(1 / (16 * np.log(20)))


@pytest.mark.parametrize(
    ("history", "shape"), [(200, (200, 10)), (500, (200, 10)), (64, (60, 3)), (20, (20, 1)), (16, (16, 1)), (1, (1, 1))]
)
def test_clips_are_as_long_as_the_policy_looks_back(history: int, shape: tuple[int, int]) -> None:
    assert clip_shape(history) == shape


def test_a_swap_takes_frames_of_other_clips_half_the_time(subject: Subject) -> None:
    swap_BT = draw_swap(np.random.default_rng(0), 5, 400)
    own = swap_BT == np.arange(5)[:, None]
    assert own.mean() == pytest.approx(0.5, abs=0.03)
    for row in range(5):
        others = swap_BT[row][~own[row]]
        assert set(others.tolist()) == {0, 1, 2, 3, 4} - {row}
        assert np.bincount(others, minlength=5)[np.arange(5) != row].std() < 12  # evenly
    with pytest.raises(LoneClipError, match="a group of 1 clips"):
        draw_swap(np.random.default_rng(0), 1, 8)


def test_groups_are_of_one_game_and_hold_no_clip_twice(subject: Subject) -> None:
    plan, empty = plan_clips(subject.recordings, subject.chosen, 8, ScoreSettings(clips_per_game=100))
    assert list(plan) == ["doom/basic", "doom/take_cover"]
    assert not empty
    for game, groups in plan.items():
        windows = [window for group in groups for window in group]
        assert len(windows) == len(set(windows)) == 18  # 49 frames with a target: 6 clips of 8 in each of 3 recordings
        assert {"/".join(subject.recordings.games[w.recording]) for w in windows} == {game}
        assert all(w.first % 8 == 0 for w in windows)
    two = plan_clips(subject.recordings, subject.chosen, 1, ScoreSettings(clips_per_game=33))[0]
    assert [len(group) for group in two["doom/basic"]] == [17, 16]


class _Watched(Answers):
    """Keeps what it is shown."""

    shown: list[torch.Tensor]

    def out(self, image_BTD: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.shown = [*getattr(self, "shown", []), image_BTD]
        return super().out(image_BTD, *rest)


def test_the_policy_is_shown_the_frames_that_were_drawn(subject: Subject) -> None:
    clips, answers = _clips(subject), _Watched(subject.answers.policy)
    swaps = [draw_swap(np.random.default_rng(s), 4, 8) for s in range(2)]
    assert swap_kl(answers, clips, swaps, [3, 7]).shape == (4, 2, 2, 8)
    recorded, *swapped = answers.shown
    assert torch.equal(recorded, torch.stack([clip.image_TD for clip in clips]))
    for shown, swap in zip(swapped, swaps, strict=True):
        for b, t in np.ndindex(4, 8):
            assert torch.equal(shown[b, t], clips[swap[b, t]].image_TD[t])


def test_frames_matter_to_who_sees_and_not_at_all_to_who_does_not(subject: Subject, make_policy: MakePolicy) -> None:
    seeing = score(subject, _SETTINGS)
    assert seeing["score"] > 0
    assert seeing["frame_swapped"] > seeing["frame_kept"] > 0
    interval = seeing["intervals"]["by_clip"]
    assert 0 < interval["low"] < seeing["score"] < interval["high"]
    assert seeing["settings"]["clip_frames"] == 8
    assert seeing["settings"]["chunks"] == 1
    assert not seeing["settings"]["as_in_the_paper"]
    assert len(seeing["clips"]) == 10
    assert seeing["score"] == pytest.approx(np.mean([clip["score"] for clip in seeing["clips"]]))
    assert seeing["score"] == pytest.approx(np.mean(seeing["by_swap"]))
    assert seeing["score"] == pytest.approx(np.mean([part["score"] for part in seeing["by_group"].values()]))
    assert seeing["kl_nats"] == pytest.approx(sum(part["kl_nats"] for part in seeing["by_group"].values()))
    for past_actions in (True, False):
        blind = score(_with(subject, make_policy(blind=True, past_actions=past_actions)), _SETTINGS)
        assert blind["score"] == 0.0
        assert blind["kl_nats"] == 0.0


def test_all_follows_from_the_seed(subject: Subject, make_policy: MakePolicy) -> None:
    one, two = score(subject, _SETTINGS), score(subject, _SETTINGS)
    assert json.dumps(one) == json.dumps(two)
    other = score(subject, dataclasses.replace(_SETTINGS, seed=1))
    assert other["score"] != one["score"]
    # A policy of another size is asked about the same clips, and shown the same swaps.
    shown = []
    for policy in (subject.answers.policy, make_policy(width=64, text_encoder="words")):
        watched = _Watched(policy)
        value = score(dataclasses.replace(subject, answers=watched), _SETTINGS)
        assert [(c["recording"], c["first"]) for c in value["clips"]] == [
            (c["recording"], c["first"]) for c in one["clips"]
        ]
        own, *swapped = watched.shown[:3]
        shown.append(torch.stack([(frames == own).all(-1) for frames in swapped]))
    assert torch.equal(*shown)


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, doom: Path, record_doom: RecordDoom, make_policy: MakePolicy, save_policy: SavePolicy
) -> None:
    record_doom(tmp_path, "basic", 0, frames=12)
    record_doom(tmp_path, "take_cover", 0)
    folder = save_policy(make_policy())
    lone = open_subject(folder, tmp_path, held_out=0)
    with pytest.raises(LoneClipError, match="doom/basic with one clip of 8 frames"):
        score(lone, _SETTINGS)
    assert list(score(open_subject(folder, tmp_path, held_out=0, games=["doom/take_cover"]), _SETTINGS)["by_game"]) == [
        "doom/take_cover"
    ]
    # One of too few frames is named, and the other is scored.
    longer = open_subject(save_policy(make_policy(history=(20,))), tmp_path, held_out=0)
    assert score(longer, _SETTINGS)["games_without_clips"] == ["doom/basic"]
    with pytest.raises(NoEpisodesError, match="no recording of doom/basic, doom/take_cover has 60 frames"):
        score(open_subject(save_policy(make_policy(history=(64,))), tmp_path, held_out=0), _SETTINGS)
    with pytest.raises(NotFoundError, match="no recording of 'quake' to ask about; it has doom/basic, doom/take_cover"):
        open_subject(folder, doom, held_out=0, games=["quake"])
    with pytest.raises(BadSettingError, match="clips_per_game is at least 2, not 1"):
        ScoreSettings(clips_per_game=1)


def test_a_clip_that_cannot_be_decoded_is_left_out_and_named(
    tmp_path: Path, record_doom: RecordDoom, make_policy: MakePolicy, save_policy: SavePolicy
) -> None:
    for seed in range(3):
        record_doom(tmp_path, "basic", seed)
    subject = open_subject(save_policy(make_policy()), tmp_path, held_out=0)
    subject.recordings.video(1).unlink()
    value = score(subject, ScoreSettings(clips_per_game=18, swaps=1))
    assert list(value["left_out"]) == [subject.recordings.folders[1]]
    assert len(value["clips"]) == 12


def test_intervals_are_of_clusters_within_strata() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(20), 5)
    values = rng.normal(size=20)[cluster] + 0.1 * rng.normal(size=100)
    narrow = Resampler(["a"] * 100).summary(values, np.arange(100))
    wide = Resampler(["a"] * 20).summary(values, cluster)
    width = [s["high"] - s["low"] for s in (narrow, wide)]  # type: ignore[operator]
    assert width[1] > 1.7 * width[0]
    assert wide["mean"] == pytest.approx(values.mean())
    pairs = Resampler(["a"] * 20).summary(values, cluster, cluster[::-1].copy())
    assert pairs["low"] < values.mean() < pairs["high"]  # type: ignore[operator]
    alone = Resampler(["a", "a", "b"]).summary(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 2]))
    assert alone == {"mean": 2.0, "low": None, "high": None, "n": 3}
    assert Resampler(["a", "a", "b"]).summary(np.array([1.0, 2.0, np.nan]), np.array([0, 1, 2]))["low"] is not None
    assert Resampler(["a"]).summary(np.array([np.nan]), np.array([0]))["mean"] is None


def test_the_command_scores(
    tmp_path: Path, doom: Path, make_policy: MakePolicy, save_policy: SavePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = save_policy(make_policy(text_encoder="words")), tmp_path / "new" / "score.json"
    parser = argparse.ArgumentParser()
    causality.configure(parser)
    arguments = ["score", str(folder), "--data", str(doom), "--held-out", "0", "--clips", "3", "--swaps", "2",
                 "--json", str(out), "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert causality.run(parser.parse_args(arguments)) == 0
    value, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert "doom/take_cover" in printed
    assert "T = 8 frames, C = 1 chunks" in printed
    assert value["checkpoint"]["samples_seen"] == 123
    assert value["data"]["digest"]
    assert set(value["by_game"]) == {"doom/basic", "doom/take_cover"}
