"""Scores and guesses: what they say is what a hand would reckon."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_recordings as small
import torch

from playserve.p2p.vocabulary import OPEN_P2P
from playserve_trainer.data.p2p import Recordings, load_recordings
from playserve_trainer.data.p2p_clips import ClipOrder, Clips, ClipSet
from playserve_trainer.data.p2p_frames import VideoFrames
from playserve_trainer.data.p2p_scores import ActionScores, Guesses, guess_baselines

_GROUPS = (("key", 3, 2), ("dx", 4, 1))
_P2P_GROUPS = (("key", 20, 4), ("button", 4, 2), ("dx", 23, 1), ("dy", 17, 1))


def _batch(seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(seed)
    logits = [torch.randn(2, 6, n) for n in (3, 3, 4)]
    labels = torch.stack([torch.randint(0, n, (2, 6)) for n in (3, 3, 4)], -1)
    labels[0, :seed] = -1
    return logits, labels


def test_scores_are_what_a_hand_reckons() -> None:
    scores = ActionScores(_GROUPS, {"key": 1.0, "dx": 0.001})
    batches = [_batch(seed) for seed in (1, 3)]
    for logits, labels in batches:
        scores.add(logits, labels)
    got = scores.take()
    by_batch, nats, changed = [], [], []
    for logits, labels in batches:
        its = []
        for b in range(2):
            for t in range(6):
                moved = (
                    t > 0 and any(labels[b, t, h] != labels[b, t - 1, h] for h in (0, 1)) and labels[b, t - 1, 0] >= 0
                )
                for head in (0, 1):
                    if labels[b, t, head] >= 0:
                        cost = -float(logits[head][b, t].log_softmax(-1)[labels[b, t, head]])
                        its.append(cost)
                        changed += [cost] if moved else []
        by_batch.append(float(np.mean(its)))
        nats += its
    assert got["ce_key"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert got["perplexity_key"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert got["test_loss"] == pytest.approx(np.mean(np.exp(by_batch)), rel=1e-5)
    assert got["test_loss"] != pytest.approx(got["perplexity_key"], rel=1e-4)
    assert got["ce_key_changed"] == pytest.approx(np.mean(changed), rel=1e-5)
    assert got["rce_key"] == pytest.approx(max(-1.0, 100 * (1 - np.mean(nats))), rel=1e-4)
    assert got["rce_dx"] == -1.0  # far below what guessing gives
    assert scores.take() == {}


def test_scores_of_two_processes_add_up() -> None:
    logits, labels = _batch(2)
    whole, halves = ActionScores(_GROUPS), [ActionScores(_GROUPS), ActionScores(_GROUPS)]
    whole.add(logits, labels)
    for row, half in enumerate(halves):
        half.add([head[row : row + 1] for head in logits], labels[row : row + 1])
    sums: list[torch.Tensor] = []
    halves[1].take(lambda values: (sums.append(values.clone()), values)[1])
    together = halves[0].take(lambda values: values + sums[0])
    assert together == pytest.approx(whole.take(), nan_ok=True)


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    for _ in range(3):
        small.record(tmp_path / "data", 30)
    return load_recordings(tmp_path / "data", OPEN_P2P, frame_size=32)


def _held_out(recordings: Recordings) -> Clips:
    order = ClipOrder(recordings, recordings.select(held_out=True), 10, 0, moving=False)
    return Clips([ClipSet(recordings, VideoFrames(recordings), order)], batch_size=1, sequence_length=10, seed=0)


def test_guesses_by_frequency_and_by_the_last_action(recordings: Recordings) -> None:
    guesses = Guesses.fit(recordings, recordings.select(held_out=False), _P2P_GROUPS)
    assert [len(f) for f in guesses.frequency] == [20, 20, 20, 20, 4, 4, 23, 17]
    assert all(f.sum() == pytest.approx(1) for f in guesses.frequency)
    # Keys change in every frame here: to believe in the last one would be wrong. dy never does.
    assert guesses.stays[0] < 0.05
    assert guesses.stays[7] > 0.9 or guesses.frequency[7].max() > 0.7
    frequency, copy = guess_baselines(guesses, _held_out(recordings), 3, _P2P_GROUPS)
    assert (frequency.name, copy.name) == ("frequency", "copy_last_action")
    source = _held_out(recordings)
    batches = [source.labels(index) for index in range(3)]
    assert frequency.labels == copy.labels == 8 * sum(int(rows.valid_BT.sum()) for rows in batches) > 0
    nats: list[float] = []
    for rows in batches:
        for action in rows.labels_BTH[rows.valid_BT]:
            nats += [-math.log(guesses.frequency[head][action[head]]) for head in range(4)]
    assert frequency.scores["ce_key"] == pytest.approx(np.mean(nats))
    assert frequency.scores["perplexity_key"] == pytest.approx(math.exp(np.mean(nats)))
    assert copy.scores["rce_key"] == pytest.approx(
        max(-1.0, 100 * (1 - copy.scores["ce_key"] / frequency.scores["ce_key"]))
    )


def test_the_last_action_is_believed_as_far_as_it_was_right() -> None:
    counts: dict[str, Any] = {"tokens_NH": [], "learnt_N": np.ones(4000, np.bool_)}
    rng, value, rows = np.random.default_rng(0), 0, []
    for _ in range(4000):
        if rng.random() > 0.9:
            value = int(rng.integers(0, 3))
        rows.append([value])
    counts["tokens_NH"] = np.array(rows, np.uint8)

    class Fake:
        starts_R, lengths_R = np.array([0]), np.array([4000])
        tokens_NH, learnt_N = counts["tokens_NH"], counts["learnt_N"]

    guesses = Guesses.fit(Fake(), np.array([0]), [("key", 3, 1)])  # type: ignore[arg-type]
    assert guesses.stays[0] == pytest.approx(0.9, abs=0.02)
    before = np.array([[[2], [-1]]])
    assert guesses.likeliest(before, copy=True)[0, 0, 0] == 2
    assert guesses.likeliest(before, copy=True)[0, 1, 0] == guesses.frequency[0].argmax()
    nats = guesses.nats(np.array([[[2], [2]]]), before, copy=True)
    assert math.exp(-nats[0, 0, 0]) == pytest.approx(
        guesses.stays[0] + (1 - guesses.stays[0]) * guesses.frequency[0][2]
    )
    assert math.exp(-nats[0, 1, 0]) == pytest.approx(guesses.frequency[0][2])
