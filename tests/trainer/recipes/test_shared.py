"""What recipes share: flags that become settings, and held-out batches in another cut."""

from __future__ import annotations

from typing import Any

from playserve_trainer.recipes import held_out_maker, take_flags
from playserve_trainer.train.config import TrainConfig


def test_flags_that_are_given_are_taken_in_their_order() -> None:
    given = {"lr": 0.1, "layers": 2, "width": 64}
    assert list(take_flags(given, ("width", "heads", "layers")).items()) == [("width", 64), ("layers", 2)]
    assert given == {"lr": 0.1}


def test_held_out_batches_are_cut_anew_and_in_one_piece() -> None:
    cuts: list[TrainConfig] = []

    def source(cut: TrainConfig) -> Any:
        cuts.append(cut)
        return "batches"

    config = TrainConfig(family="f", task="t", data="d", out="o", max_steps=1, batch_size=8, accumulate=4, seed=1)
    held_out = held_out_maker(config, ("a", "b"), source)(3, 5, 7)
    assert (held_out.source, held_out.episodes) == ("batches", ("a", "b"))
    cut = cuts[0]
    assert (cut.batch_size, cut.sequence_length, cut.seed, cut.accumulate, cut.task) == (3, 5, 7, 1, "t")
