"""Recordings as batches: aligned, masked, shuffled, the same for ever, in a stated memory."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_recordings as small
import torch

from playserve.errors import BadSettingError, NotFoundError
from playserve.p2p.vocabulary import OPEN_P2P
from playserve_client.p2p.recording import Source, video_path
from playserve_trainer.data.batches import IGNORED_LABEL, Batch, PartSource
from playserve_trainer.data.episodes import NoEpisodesError
from playserve_trainer.data.p2p import Recordings, load_recordings, recording_hash, without_labels
from playserve_trainer.data.p2p_clips import ClipOrder, Clips, ClipSet
from playserve_trainer.data.p2p_frames import VideoFrames, cache_frames
from playserve_trainer.data.split import held_out_episodes
from playserve_trainer.models.policy import INSTRUCTION, TARGETS, UNKNOWN_ACTION

_T = 8
Load = Callable[..., Recordings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings: three of a person, one taken over by a policy in the middle, one a policy's until its end."""
    root = tmp_path_factory.mktemp("recordings")
    for frames in (30, 41, 25):
        small.record(root, frames, texts=[("go left", 5, 20), ("move left", 5, 20)])
    small.record(root, 33, source=lambda n: Source.SYSTEM if 8 < n < 25 else Source.USER)
    small.record(root, 33, source=lambda n: Source.UNKNOWN if n == 30 else Source.USER if n > 27 else Source.SYSTEM)
    return root


@pytest.fixture
def load(folder: Path, tmp_path: Path) -> Load:
    def load(root: Path = folder, **settings: Any) -> Recordings:
        values = {"frame_size": 32, "held_out_fraction": 0.3, "cache": tmp_path / "cache", **settings}
        return load_recordings(root, OPEN_P2P, **values)

    return load


def _clips(recordings: Recordings, *, held_out: bool = False, frames: Any = None, **settings: Any) -> Clips:
    chosen = recordings.select(held_out=held_out)
    order = ClipOrder(recordings, chosen, settings.get("sequence_length", _T), 7, moving=not held_out)
    store = frames or VideoFrames(recordings)
    return Clips([ClipSet(recordings, store, order)], **{"batch_size": 3, "sequence_length": _T, "seed": 7, **settings})


def _same(a: Batch, b: Batch) -> bool:
    return (
        all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        and torch.equal(a.labels_BTH, b.labels_BTH)
        and torch.equal(a.executed_BTH, b.executed_BTH)
        and a.samples == b.samples
    )


def test_every_frame_has_the_action_that_was_done_upon_it(load: Load) -> None:
    recordings = load(held_out_fraction=0.0)
    source = _clips(recordings)
    for index in range(12):
        batch = source.batch(index)
        numbers = small.numbers_of(batch.inputs["frame"].numpy())
        for row in range(3):
            for t in range(_T):
                valid = t == 0 or numbers[row, t] == numbers[row, t - 1] + 1
                labels = batch.labels_BTH[row, t]
                if not valid:
                    assert (labels == IGNORED_LABEL).all()
                elif (labels != IGNORED_LABEL).any():
                    wanted = OPEN_P2P.encode(small.action_at(int(numbers[row, t]) + 1))
                    assert tuple(labels.tolist()) == wanted
                    assert tuple(batch.inputs[TARGETS][row, t].tolist()) == wanted
        executed, targets = batch.executed_BTH, batch.inputs[TARGETS]
        assert (executed[:, 0] == UNKNOWN_ACTION).all()
        assert torch.equal(executed[:, 1:], targets[:, :-1])
        assert batch.first_BT[:, 0].all()
        assert not batch.first_BT[:, 1:].any()


def test_only_a_persons_actions_are_learnt_and_a_policys_stay_visible(load: Load) -> None:
    recordings = load(held_out_fraction=0.0)
    source = _clips(recordings, batch_size=1)
    taken_over = [r for r, learnt in enumerate(_learnt(recordings)) if not learnt.all()]
    assert len(taken_over) == 2
    seen = 0
    for index in range(60):
        (span,) = source._spans(index, 0, 1)
        if span.recording not in taken_over:
            continue
        batch = source.batch(index)
        learnt = _learnt(recordings)[span.recording][span.first : span.first + span.count]
        assert learnt.any()  # clips without anything to learn are left out
        assert ((batch.labels_BTH[0, : span.count] != IGNORED_LABEL).all(-1).numpy() == learnt).all()
        tokens = batch.inputs[TARGETS][0, : span.count].numpy()
        for t, known in enumerate(learnt):
            number = span.first + t + 1
            unknown = not known and number == 30
            wanted = OPEN_P2P.idle() if unknown else OPEN_P2P.encode(small.action_at(number))
            assert tuple(tokens[t].tolist()) == wanted
        seen += 1
    assert seen > 5


def _learnt(recordings: Recordings) -> list[np.ndarray[Any, Any]]:
    starts = recordings.starts_R
    return [np.asarray(recordings.learnt_N[s : s + n]) for s, n in zip(starts, recordings.lengths_R, strict=True)]


def test_an_epoch_shows_every_clip_once_from_another_start(load: Load) -> None:
    recordings = load(held_out_fraction=0.0)
    whole = np.array([r for r, learnt in enumerate(_learnt(recordings)) if learnt.all()])
    order = ClipOrder(recordings, whole, _T, 3, moving=True)
    first, second = order._size(0), order._size(1)
    epochs = [[order.clip(p) for p in range(first)], [order.clip(p) for p in range(first, first + second)]]
    for clips in epochs:
        assert len(set(clips)) == len(clips)
        for recording in whole:
            starts = sorted(start for r, start in clips if r == recording)
            assert 0 <= starts[0] < _T
            assert np.diff(starts).tolist() == [_T] * (len(starts) - 1)
            assert starts[-1] + _T >= recordings.lengths_R[recording]
    assert epochs[0] != epochs[1]
    assert [clip[0] for clip in epochs[0]] != sorted(clip[0] for clip in epochs[0])  # shuffled over the recordings
    still = ClipOrder(recordings, whole, _T, 3, moving=False)
    assert min(start for _, start in (still.clip(p) for p in range(20))) == 0
    assert still.clip(0) == still.clip(still._size(0))


def test_a_batch_is_a_function_of_seed_and_index(load: Load) -> None:
    recordings = load()
    vectors = {text: np.full(4, i + 1, np.float32) for i, text in enumerate(recordings.texts)}
    settings: dict[str, Any] = {
        "text_vectors": vectors, "text_width": 4, "augment": lambda clip, rng: clip // 2 + rng.integers(100, dtype="u1")
    }  # fmt: skip
    one, other = _clips(recordings, workers=1, **settings), _clips(recordings, workers=3, **settings)
    straight = [one.batch(index) for index in range(6)]
    assert all(_same(other.batch(index), straight[index]) for index in (5, 0, 3, 3))
    assert not _same(straight[0], straight[1])
    assert isinstance(one, PartSource)
    whole, parts = straight[2], [other.part(2, 0, 1), other.part(2, 1, 3)]
    for name, tensor in whole.inputs.items():
        assert torch.equal(torch.cat([part.inputs[name] for part in parts]), tensor)
    assert sum(part.samples for part in parts) == whole.samples
    assert (one.labels(4).labels_BTH == straight[4].labels_BTH.numpy()).all()


def test_frames_from_the_cache_are_those_of_the_videos(load: Load, tmp_path: Path) -> None:
    recordings = load()
    done: list[int] = []
    frames, broken = cache_frames(recordings, tmp_path, 2, lambda now, total: done.append(now))
    assert broken == {}
    assert done[-1] == recordings.lengths_R.sum()
    cached, streamed = _clips(recordings, frames=frames), _clips(recordings)
    assert all(_same(cached.batch(index), streamed.batch(index)) for index in range(5))
    again, _ = cache_frames(recordings, tmp_path, 2, lambda *_: pytest.fail("decoded again"))
    assert _same(_clips(recordings, frames=again).batch(1), streamed.batch(1))


def test_whole_recordings_are_held_out_and_keep_their_side(load: Load, folder: Path, tmp_path: Path) -> None:
    recordings = load()
    training, held_out = (set(recordings.select(held_out=side).tolist()) for side in (False, True))
    assert training
    assert held_out
    assert not training & held_out
    places = [recording_hash(game, name) for game, name in zip(recordings.games, recordings.folders, strict=True)]
    assert recordings.held_out_R.tolist() == held_out_episodes(places, 0.3)
    shutil.copytree(folder, tmp_path / "more" / "deeper")
    grown = load(tmp_path / "more")  # it goes by the recording, not by where it lies
    assert (grown.held_out_R == recordings.held_out_R).all()
    used = {span.recording for index in range(20) for span in _clips(recordings, held_out=True)._spans(index, 0, 3)}
    assert used == held_out
    assert recordings.report.samples == int(recordings.lengths_R[list(training)].sum())


def test_what_was_read_is_mapped_the_next_time_and_read_anew_when_it_changed(
    load: Load, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    calls: list[int] = []
    first = load(tmp_path / "own", progress=lambda done, total: calls.append(done))
    second = load(tmp_path / "own", progress=lambda *_: pytest.fail("read again"))
    assert calls[-1] == 5
    assert second.report.digest == first.report.digest
    assert (second.tokens_NH == first.tokens_NH).all()
    assert second.spans == first.spans
    small.record(tmp_path / "own", 20)
    assert load(tmp_path / "own").report.digest != first.report.digest


def test_broken_recordings_are_named_and_left_out(load: Load, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    shutil.copytree(folder, root)
    names = sorted(path.name for path in root.iterdir())
    video_path(root / names[0], 32, 32).unlink()
    (root / names[1] / "annotation.proto").write_bytes(b"\xff\xff")
    small.record(root, 20, source=lambda number: Source.SYSTEM)
    recordings = load(root)
    assert recordings.report.episodes == 3
    assert len(recordings.report.damaged) == 3
    assert "no_video" in recordings.report.damaged[0][1]
    assert "bad_annotation" in recordings.report.damaged[1][1]
    assert "no frame has a person's action" in recordings.report.damaged[2][1]


def test_a_video_that_is_shorter_than_its_annotations_is_used_as_far_as_it_goes(load: Load, tmp_path: Path) -> None:
    long, short = small.record(tmp_path / "a", 40), small.record(tmp_path / "b", 20)
    shutil.copy(video_path(short, 32, 32), video_path(long, 32, 32))
    assert load(tmp_path / "a", held_out_fraction=0.0).lengths_R.tolist() == [19]


def test_a_video_that_breaks_later_teaches_nothing(load: Load, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "own")
    recordings = load(tmp_path / "own", held_out_fraction=0.0)
    source = _clips(recordings)
    before = source.batch(0)
    for path in (tmp_path / "own").glob("*/32x32.mp4"):
        path.write_bytes(b"no video")
    source = _clips(recordings)
    batch = source.batch(0)
    assert (batch.labels_BTH == IGNORED_LABEL).all()
    assert torch.equal(batch.inputs[TARGETS], before.inputs[TARGETS])
    assert 1 <= len(source.broken) <= 3
    _, broken = cache_frames(recordings, tmp_path / "cache", 1)
    assert set(broken) == set(range(5))
    nothing = without_labels(recordings, broken)
    assert len(nothing.report.damaged) == 5
    with pytest.raises(NoEpisodesError, match="no clip with an action to learn"):
        _clips(nothing).batch(0)


def test_instructions_run_on_over_the_borders_of_clips_in_any_phrasing(load: Load) -> None:
    recordings = load(held_out_fraction=0.0)
    assert set(recordings.texts) == {"go left", "move left"}
    vectors = {"go left": np.array([1, 0], np.float32), "move left": np.array([0, 1], np.float32)}
    source = _clips(recordings, text_vectors=vectors, text_width=2)
    phrasings = set()
    for index in range(20):
        for row, span in enumerate(source._spans(index, 0, 3)):
            text = source.batch(index).inputs[INSTRUCTION][row, : span.count]
            spans = recordings.span_N[source._frames_of(span)]
            assert ((text.sum(-1) > 0).numpy() == (spans >= 0)).all()
            inside = text[text.sum(-1) > 0]
            assert len(torch.unique(inside, dim=0)) <= 1  # one phrasing a clip
            phrasings |= {tuple(row.tolist()) for row in inside}
            if span.recording < 3 and 5 < span.first < 20:
                assert text[0].any()  # began before this clip did
    assert phrasings == {(1.0, 0.0), (0.0, 1.0)}
    withheld = _clips(recordings, text_vectors=vectors, text_width=2, text_dropout=1.0)
    assert not any(withheld.batch(index).inputs[INSTRUCTION].any() for index in range(5))


def test_episodes_within_a_recording_begin_with_an_empty_past(load: Load, tmp_path: Path) -> None:
    small.record(tmp_path / "own", 30, episodes=(0, 11, 20))
    small.record(tmp_path / "own", 30)
    recordings = load(tmp_path / "own", held_out_fraction=0.0)
    assert np.flatnonzero(recordings.begins_N).tolist() == [0, 11, 20, 29]
    source = _clips(recordings, held_out=False)
    inside = 0
    for index in range(8):
        batch = source.batch(index)
        for row, span in enumerate(source._spans(index, 0, 3)):
            wanted = {0} | {
                e - span.first for e in (11, 20) if span.recording == 0 and 0 <= e - span.first < span.count
            }
            assert set(torch.nonzero(batch.first_BT[row]).flatten().tolist()) == wanted
            assert (batch.executed_BTH[row][batch.first_BT[row]] == UNKNOWN_ACTION).all()
            inside += len(wanted) - 1
    assert inside > 2


def test_mixed_recordings_get_their_share_of_the_rows(load: Load) -> None:
    recordings = load(held_out_fraction=0.0)
    orders = [ClipOrder(recordings, np.array([r]), _T, 0, moving=True) for r in range(3)]
    frames = VideoFrames(recordings)
    sets = [ClipSet(recordings, frames, order, share) for order, share in zip(orders, (0.5, 0.2, 0.3), strict=True)]
    source = Clips(sets, batch_size=10, sequence_length=_T, seed=0)
    rows = np.array([[span.which for span in source._spans(index, 0, 10)] for index in range(20)])
    assert np.bincount(rows.ravel()).tolist() == [100, 40, 60]
    assert all((np.bincount(row, minlength=3) > 0).all() for row in rows)
    places = [source._locate(place) for place in range(200)]
    for which in range(3):  # each set's own row has no hole
        assert [within for its, within in places if its == which] == list(range([100, 40, 60][which]))


def test_a_batch_beyond_the_memory_is_refused_before_anything_is_read(load: Load) -> None:
    recordings = load()
    one = 3 * _T * 32 * 32 * 3
    assert _clips(recordings, memory_limit_bytes=5 * one, batches_ahead=3).batch_bytes == one
    with pytest.raises(BadSettingError, match="3 batches ahead, hold 0 MiB of frames, more than memory_limit_mib"):
        _clips(recordings, memory_limit_bytes=5 * one - 1, batches_ahead=3)


def test_missing_data_are_typed_errors(load: Load, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no recording"):
        load(tmp_path / "nothing")
    small.record(tmp_path / "one", 10)
    with pytest.raises(NoEpisodesError, match="1 usable recordings; wanted at least 2"):
        load(tmp_path / "one")


def test_the_report_says_what_is_there(load: Load) -> None:
    recordings = load()
    assert dataclasses.asdict(recordings.report)["episodes"] == 5
    assert recordings.games[0] == ("toy", "grey")
    assert recordings.report.samples + recordings.report.held_out_samples == recordings.lengths_R.sum() == 157
