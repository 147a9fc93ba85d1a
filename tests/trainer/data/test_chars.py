"""Text as characters: pieces on two sides of a split, clips that never cross them, labels kept and made coarse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer.data.chars import CharClips, Text, char_baselines, load_text
from playserve_trainer.models.gpt.char import class_of
from playserve_trainer.models.policy import IGNORED_LABEL

WORDS = "the cat sat on the mat, and the dog sat on the log. "


@pytest.fixture
def text(tmp_path: Path) -> Text:
    (tmp_path / "small.txt").write_text(WORDS * 40)
    return load_text(tmp_path, "small", held_out_fraction=0.2, piece=100)


def clips(text: Text, *, held_out: bool = False, sparse: int = 1, classes: int = 0, batch_size: int = 4) -> CharClips:
    return CharClips(
        text, text.select(held_out=held_out), class_of(text.alphabet, classes).numpy(), batch_size=batch_size,
        sequence_length=32, seed=3, sparse=sparse, tell_episodes=True,
    )  # fmt: skip


def test_the_label_of_a_character_is_the_one_after_it(text: Text) -> None:
    source, written = clips(text), WORDS * 40
    assert source.num_samples == 3 * 32 * len(text.select(held_out=False))
    batch = source.batch(5)
    for row in range(4):
        shown = "".join(text.alphabet[int(code)] for code in batch.inputs["char"][row, :, 0])
        after = batch.labels_BTH[row, :, 0].tolist()
        assert shown in written
        for place, label in enumerate(after[:-1]):
            assert text.alphabet[label] == shown[place + 1]
    assert batch.first_BT.sum(1).tolist() == [1] * 4
    assert batch.samples == 4 * 32


def test_an_epoch_shows_each_clip_once_and_no_clip_leaves_its_piece(text: Text) -> None:
    source = clips(text, batch_size=3)
    seen: list[int] = []
    for index in range(source.num_samples // 32 // 3):
        batch = source.batch(index)
        assert batch.episodes_BT is not None
        pieces = batch.episodes_BT.numpy()
        assert (pieces == pieces[:, :1]).all()
        assert not text.held_out_E[pieces].any()
        seen += pieces[:, 0].tolist()
    learnt = text.select(held_out=False)
    assert np.bincount(seen)[learnt].tolist() == [3] * len(learnt)


def test_the_last_character_of_a_piece_has_no_label(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text(WORDS * 40)
    text = load_text(tmp_path, "small", held_out_fraction=0.2, piece=32)
    labels = clips(text).batch(0).labels_BTH[..., 0]
    assert (labels[:, -1] == IGNORED_LABEL).all()
    assert (labels[:, :-1] != IGNORED_LABEL).all()


def test_sparse_labels_are_one_in_so_many_at_places_that_change(text: Text) -> None:
    dense, sparse = clips(text), clips(text, sparse=8)
    places = set()
    for index in range(12):
        kept, all_of_them = sparse.batch(index).labels_BTH, dense.batch(index).labels_BTH
        known = kept != IGNORED_LABEL
        assert known.sum(1).flatten().tolist() == [4] * 4
        assert (kept[known] == all_of_them[known]).all()
        places |= set(known.nonzero()[:, 1].tolist())
        again = clips(text, sparse=8).batch(index).labels_BTH
        assert (again == kept).all()
    assert len(places) > 24


def test_classes_are_dealt_out_evenly_and_coarse_labels_are_theirs(text: Text) -> None:
    classes = class_of(text.alphabet, 4)
    assert sorted(set(classes.tolist())) == [0, 1, 2, 3]
    assert max(np.bincount(classes)) - min(np.bincount(classes)) <= 1
    assert class_of("abc", 0).tolist() == [0, 1, 2]
    fine, coarse = clips(text).batch(1).labels_BTH, clips(text, classes=4).batch(1).labels_BTH
    assert (coarse == classes[fine]).all()


def test_guesses_are_scored_on_what_is_held_out(text: Text) -> None:
    frequencies, bigram = char_baselines(text, class_of(text.alphabet, 0).numpy())
    assert 0 < bigram.loss < frequencies.loss < np.log(len(text.alphabet))
    assert bigram.accuracy > frequencies.accuracy
    assert bigram.labels == sum(int(text.lengths_E[piece]) - 1 for piece in text.select(held_out=True))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="playserve data text"):
        load_text(tmp_path, "nothing")
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(NotFoundError, match="too few"):
        load_text(tmp_path, "short")
    (tmp_path / "many.txt").write_text("".join(map(chr, range(1000, 1400))) * 50)
    with pytest.raises(BadSettingError, match="400 different"):
        load_text(tmp_path, "many")
