"""Plays recorded games again from seed and keys, and checks that they came out as recorded.

A key goes straight to NetHack; the screens are copied once, into the chunk that is handed out.

Shape legend: T frames of a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError
from playserve_client.nethack.game import BL_SCORE, BL_TURN, NetHackGame, distinct_birthdays
from playserve_client.nethack.games import GameRecord
from playserve_client.nethack.tty import TtyChunk

__all__ = ["ReplayMismatchError", "Replayer", "expert_mask", "replay_game"]

_QUIT_KEY: Final = 0x80 | ord("q")
#: Keys that quitting takes at most: M-q, y and the closing screens.
_QUIT_KEYS: Final = 64
_SCREEN = ("tty_chars", "tty_colors", "tty_cursor")


class ReplayMismatchError(DataLossError):
    """A game did not come out as it was recorded.

    Attributes:
        game: Name of the game.
        what: What differs: "steps", "score" or "turns".
        came: Its value now.
        wanted: Its recorded value.
    """

    def __init__(self, game: GameRecord, what: str, came: int, wanted: int) -> None:
        self.game, self.what, self.came, self.wanted = game.name, what, came, wanted
        installed = f"nle {version('nle')}"
        if not game.game or installed in game.game:
            reason = ""
        else:
            reason = f"; it was played with {game.game}, here is {installed}, which may draw other games from a seed"
        super().__init__(f"game {game.name}: {what} {came:,} came, {wanted:,} was recorded{reason}")


class Replayer:
    """Replays games of one character, one after the other.

    Args:
        character: Role, race, alignment and gender.
        chunk: Most frames of a chunk.
        blstats: Give the bottom lines as numbers too.
        inventory: Give the inventory's glyphs too.
        ttyrec_dir: Folder that gets ttyrec3 files of the games in the layout of NLD-AA.
    """

    def __init__(
        self,
        character: str,
        *,
        chunk: int = 512,
        blstats: bool = False,
        inventory: bool = False,
        ttyrec_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if chunk < 1:
            raise BadSettingError(f"chunk is {chunk}, not 1 or more")
        self.character, self.chunk = character, chunk
        #: How NetHack says that the last game ended, such as "killed by a newt"; empty where it was stopped.
        self.end = ""
        extra = (*(("blstats",) if blstats else ()), *(("inv_glyphs",) if inventory else ()))
        self._wanted = (*_SCREEN, *extra)
        self._game = NetHackGame(
            character, keys=(*_SCREEN, *(("inv_glyphs",) if inventory else ())), ttyrec_dir=ttyrec_dir
        )

    @property
    def ttyrec_path(self) -> Path | None:
        """Return the file that the last game was recorded in; None where nothing is."""
        return self._game.ttyrec_path

    def replay(self, game: GameRecord) -> Iterator[TtyChunk]:
        """Yield the frames of a game that its keys answered; the arrays are the caller's.

        Raises:
            ReplayMismatchError: After the last chunk, or where the game ended too early: what came is not what was
                recorded. Throw the game away.
        """
        if game.character != self.character:
            raise BadSettingError(f"game {game.name} is not of {self.character}")
        played, send, program = self._game, self._game.send, self._game.program
        self.end = ""
        played.start(game.seed, game.birthday)
        sources = [played.buffers[name] for name in self._wanted]
        stats, first_score, expert = played.stats, played.stats[BL_SCORE], expert_mask(game.keys)
        for begin in range(0, game.steps, self.chunk):
            keys = game.keys[begin : begin + self.chunk]
            arrays = [np.empty((len(keys), *source.shape), source.dtype) for source in sources]
            copies = list(zip(arrays, sources, strict=True))
            scores: list[int] = []
            turn = 0
            for t, key in enumerate(keys.tolist()):
                if program[0]:
                    raise ReplayMismatchError(game, "steps", begin + t, game.steps)
                for array, source in copies:
                    array[t] = source
                scores.append(stats[BL_SCORE])
                turn = stats[BL_TURN]
                send(key)
            end = begin + len(keys)
            if end == game.steps:
                self._check(game, scores[-1] - first_score, stats[BL_SCORE] - first_score, turn)
                self._finish()
            screens = dict(zip(self._wanted, arrays, strict=True))
            yield TtyChunk(
                chars=screens["tty_chars"],
                colors=screens["tty_colors"],
                cursor=screens["tty_cursor"],
                keys=keys.copy(),
                scores=np.array(scores, np.int32),
                expert=expert[begin:end],
                blstats=screens.get("blstats"),
                inv_glyphs=screens.get("inv_glyphs"),
            )

    def matches(self, game: GameRecord, birthday: int | None) -> bool:
        """Return whether the game comes out as recorded if it began at `birthday` (None: the seed's)."""
        played, send, program, stats = self._game, self._game.send, self._game.program, self._game.stats
        played.start(game.seed, birthday)
        first_score, keys = stats[BL_SCORE], game.keys.tolist()
        for key in keys[:-1]:
            send(key)
            if program[0]:
                return False
        before, turn = stats[BL_SCORE], stats[BL_TURN]
        send(keys[-1])
        try:
            self._check(game, before - first_score, stats[BL_SCORE] - first_score, turn)
        except ReplayMismatchError:
            return False
        return True

    def find_birthday(self, game: GameRecord) -> int | None:
        """Return a time of birth with which the game comes out as recorded; None where there is none.

        For games of which nobody wrote down when they began. It takes up to 51 replays.
        """
        if game.character != self.character:
            raise BadSettingError(f"game {game.name} is not of {self.character}")
        return next((birthday for birthday in distinct_birthdays() if self.matches(game, birthday)), None)

    def close(self) -> None:
        """Free NetHack."""
        self._game.close()

    def _over(self) -> bool:
        return bool(self._game.program[0]) or self._game.done()

    def _check(self, game: GameRecord, before: int, after: int, turn: int) -> None:
        """Compare the end with what was recorded.

        Args:
            game: The recorded game.
            before: Score before the last key.
            after: Score after it; no reward was given for the key that ended the game.
            turn: Turn before the last key, which may be the one that was recorded.
        """
        score = before if self._over() else after
        if score != game.score:
            raise ReplayMismatchError(game, "score", score, game.score)
        if game.turns not in (turn, self._game.stats[BL_TURN]):
            raise ReplayMismatchError(game, "turns", self._game.stats[BL_TURN], game.turns)

    def _finish(self) -> None:
        if self._over():
            self._game.leave_closing_screens()
        elif self._game.ttyrec_path is not None:
            self._game.quit()
            return
        self.end = self._game.last_log().get("death", "")


def replay_game(
    game: GameRecord, *, chunk: int = 512, blstats: bool = False, inventory: bool = False
) -> Iterator[TtyChunk]:
    """Yield the frames of a recorded game, played again; see :meth:`Replayer.replay`."""
    replayer = Replayer(game.character, chunk=chunk, blstats=blstats, inventory=inventory)
    try:
        yield from replayer.replay(game)
    finally:
        replayer.close()


def expert_mask(keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool [T]: False from where the game was quit, which a recorder does for its player at an abort.

    Args:
        keys: uint8 [T], all keys of a game.
    """
    mask = np.ones(len(keys), np.bool_)
    tail = keys[-_QUIT_KEYS:]
    quits = np.flatnonzero((tail[:-1] == _QUIT_KEY) & (tail[1:] == ord("y")))
    if len(quits):
        mask[len(keys) - len(tail) + quits[0] :] = False
    return mask
