"""Batches of NetHack games out of shards: rows that walk through whole games, the memory going on from batch to batch.

Shape legend: E games, B rows, T steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_client.nethack.keys import KEY_TO_ACTION
from playserve_client.nethack.shards import GameMeta, TtyDataset
from playserve_trainer.data.batches import IGNORED_LABEL, Batch, StreamOrder
from playserve_trainer.data.episodes import DataReport, NoEpisodesError
from playserve_trainer.data.split import held_out_episodes, split_hash
from playserve_trainer.models.policy import UNKNOWN_ACTION

__all__ = ["NetHackGames", "NetHackStreams", "NoKeysError", "game_hash", "load_nethack"]


class NoKeysError(BadSettingError):
    """Games hold screens without keys (NLD-NAO): there is nothing to imitate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetHackGames:
    """Games with keys, and which of them are held out.

    Attributes:
        dataset: The games.
        held_out_E: Whether a game is held out, bool.
        report: For people.
    """

    dataset: TtyDataset
    held_out_E: NDArray[np.bool_]
    report: DataReport

    def select(self, *, held_out: bool) -> NDArray[np.int64]:
        """Return the indices of the games of one side of the split."""
        return np.flatnonzero(self.held_out_E == held_out)


def game_hash(meta: GameMeta) -> float:
    """Return the place of a game between 0 and 1 that decides its side of the split; see :mod:`.split`.

    The same seed and character is the same game, wherever it comes from; a game without a seed goes by its name.
    """
    if meta.seed is not None:
        return split_hash("nethack", meta.character, meta.seed)
    digest = hashlib.sha256(f"{meta.source}/{meta.name}".encode()).digest()
    return split_hash("nethack", meta.character, int.from_bytes(digest[:8], "big"))


def load_nethack(
    directory: Path,
    *,
    held_out_fraction: float = 0.1,
    character: str = "@",
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> NetHackGames:
    """Open the shards in a folder and split their games; damaged shards are named in the report and left out.

    Args:
        directory: The folder.
        held_out_fraction: Share of the games to hold out; see :mod:`playserve_trainer.data.split`.
        character: Only games of this character are taken; "@": all.
        verify: Whether to compare the checksums of all arrays first: reads everything once.
        progress: Called with (bytes read, bytes) while checksums are compared.

    Raises:
        NotFoundError: There is no shard, or no game of the character.
        NoKeysError: Games have no keys.
        NoEpisodesError: There is no game for one side of the split.
    """
    dataset = TtyDataset.open(directory)
    if verify:
        dataset = _verified(dataset, progress)
    dataset = _of_character(dataset, character)
    without = [meta for meta in dataset.games if not meta.has_keys]
    if without:
        raise NoKeysError(
            f"{directory}: {len(without)} of {len(dataset.games)} games have screens but no keys (such as "
            f"{without[0].name} of {without[0].source}): behaviour cloning has nothing to imitate there; "
            "wanted: a folder of games with keys, such as NLD-AA"
        )
    held_out_E = np.array(held_out_episodes([game_hash(meta) for meta in dataset.games], held_out_fraction), np.bool_)
    damaged = tuple((str(error.path), str(error)) for error in dataset.damaged)
    if held_out_E.all() or (held_out_fraction > 0 and not held_out_E.any()):
        raise NoEpisodesError(
            f"{directory}: {len(held_out_E)} whole games, {len(damaged)} damaged shards; wanted at least "
            f"{2 if held_out_fraction else 1} games, so that one can be learnt from and one held out"
        )
    report = DataReport(
        directory=str(directory),
        episodes=len(dataset.games),
        held_out_episodes=int(held_out_E.sum()),
        samples=int(dataset.lengths[~held_out_E].sum()),
        held_out_samples=int(dataset.lengths[held_out_E].sum()),
        digest=dataset.digest,
        mean_score=float(np.mean([meta.score for meta in dataset.games])),
        damaged=damaged,
    )
    return NetHackGames(dataset=dataset, held_out_E=held_out_E, report=report)


def _of_character(dataset: TtyDataset, character: str) -> TtyDataset:
    found = [meta.character for meta in dataset.games]
    if character == "@" or set(found) <= {character}:
        return dataset
    if character not in found:
        raise NoEpisodesError(
            f"{dataset.directory} holds no game of {character!r}; it has {', '.join(sorted(set(found)))} (or '@', all)"
        )
    return dataset.subset([game for game, its in enumerate(found) if its == character])


def _verified(dataset: TtyDataset, progress: Callable[[int, int], None] | None) -> TtyDataset:
    done, total = 0, dataset.nbytes

    def on_file(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    return dataset.verify(on_file)[0]


class NetHackStreams:
    """B rows that walk through whole games, T steps a batch; a BatchSource.

    Inputs: `tty_chars` uint8 [B, T, 24, 80], `tty_colors` int8 [B, T, 24, 80], `tty_cursor` uint8 [B, T, 2] and, if
    asked for, `inv_glyphs` int16 [B, T, 55]. Executed is the action of the key before in the game, the label that of
    the key itself; keys that are no action's, or not the expert's, are not learnt.

    Args:
        dataset: Games with keys.
        chosen: Indices of the games to take from.
        batch_size: B.
        sequence_length: T.
        seed: Of the order of the games.
        inventory: Whether inventory glyphs are wanted; every game must have them.
        tell_episodes: Whether batches say the game of each step, as its index in the dataset.

    Raises:
        ValueError: There are fewer frames than B * T.
    """

    def __init__(
        self,
        dataset: TtyDataset,
        chosen: NDArray[np.int64],
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        inventory: bool = False,
        tell_episodes: bool = False,
    ) -> None:
        if inventory and not dataset.has_inventory:
            raise BadSettingError(
                f"{dataset.directory} has games without inventory glyphs (no ttyrec holds them): replay games from "
                "their keys with the inventory, or train without it"
            )
        self._dataset = dataset
        self._chosen = chosen
        self._inventory = inventory
        self._tell_episodes = tell_episodes
        self._order = StreamOrder(dataset.lengths[chosen], batch_size, sequence_length, seed)
        # Its last entry stands for index -1: no key, no action.
        self._actions = np.append(KEY_TO_ACTION.astype(np.int64), UNKNOWN_ACTION)
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.carries_state = True
        self.num_samples = int(dataset.lengths[chosen].sum())

    def batch(self, index: int) -> Batch:
        """Return batch `index`; see :class:`playserve_trainer.data.batches.BatchSource`."""
        game_BT, step_BT, first_BT = self._order.chunk(index)
        frames = self._dataset.frames(self._chosen[game_BT], step_BT, inventory=self._inventory)
        inputs = {
            "tty_chars": torch.from_numpy(frames.chars),
            "tty_colors": torch.from_numpy(frames.colors),
            "tty_cursor": torch.from_numpy(frames.cursor),
        }
        if frames.inv_glyphs is not None:
            inputs["inv_glyphs"] = torch.from_numpy(frames.inv_glyphs)
        labels_BT = self._actions[frames.keys]
        labels_BT[~frames.expert | (labels_BT < 0)] = IGNORED_LABEL
        return Batch(
            inputs,
            torch.from_numpy(self._actions[frames.previous_keys]).unsqueeze(-1),
            torch.from_numpy(first_BT),
            torch.from_numpy(labels_BT).unsqueeze(-1),
            labels_BT.size,
            torch.from_numpy(self._chosen[game_BT]) if self._tell_episodes else None,
        )
