"""One NetHack at a time, under the rules of NetHackChallenge, as the environment and the replayer drive it.

nle's own Challenge makes and starts the games (:class:`SeedableChallenge`); keys then go straight to NetHack.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nle.env.base import NLE
from nle.env.tasks import NetHackChallenge
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_client.nethack.characters import check_character

__all__ = [
    "BL_DEPTH", "BL_LEVEL", "BL_SCORE", "BL_TURN", "MAX_SEED", "NetHackGame", "SeedableChallenge", "birthday_of",
    "distinct_birthdays",
]  # fmt: skip

#: NetHack's seeds are unsigned longs.
MAX_SEED: Final = 2**64 - 1
#: Places in blstats.
BL_SCORE, BL_DEPTH, BL_LEVEL, BL_TURN = 9, 12, 18, 20

_ESCAPE, _SPACE, _META_Q, _YES = 27, 32, 0x80 | ord("q"), ord("y")
# What is read here to know where in its screens NetHack is.
_STATE = ("blstats", "program_state", "internal")


# NetHack names shopkeepers after (birthday / 257) % 13 - (birthday / 257) % 5 (and draws names where that runs out),
# and fills anthills after birthday % 3: there are so many kinds of birthdays.
_BIRTHDAYS: Final = 13 * 5 * 3
_BIRTHDAY_STEP: Final = 257
#: A time in 2025, of the first of the kinds.
_FIRST_BIRTHDAY: Final = 35_000 * _BIRTHDAYS * _BIRTHDAY_STEP


def birthday_of(kind: int) -> int:
    """Return the birthday of a game, seconds since 1970, that stands for all of its kind (modulo 195)."""
    return _FIRST_BIRTHDAY + kind % _BIRTHDAYS * _BIRTHDAY_STEP


def distinct_birthdays() -> list[int]:
    """Return one birthday for each of the 51 that NetHack tells apart."""
    found: dict[tuple[int, int], int] = {}
    for kind in range(_BIRTHDAYS):
        birthday = birthday_of(kind)
        days = birthday // _BIRTHDAY_STEP
        found.setdefault((birthday % 3, days % 13 - days % 5), birthday)
    return [found[key] for key in sorted(found)]


class SeedableChallenge(NetHackChallenge):  # type: ignore[misc]
    """NetHackChallenge of nle, whose games can be seeded; the moon and the hour are the seed's, not the clock's.

    nle only hides the seeding behind three attributes of its NetHack object.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(fix_moon_phase=True, **options)
        for name in ("set_initial_seeds", "set_current_seeds", "get_current_seeds"):
            self.nethack.__dict__.pop(name)

    def seed(
        self, core: int | None = None, disp: int | None = None, reseed: bool = False, lgen: int | None = None
    ) -> tuple[int, int, bool, int | None]:
        """Seed the games from the next reset on, as :meth:`nle.env.base.NLE.seed` does."""
        seeds: tuple[int, int, bool, int | None] = NLE.seed(self, core, disp, reseed, lgen)
        return seeds


class NetHackGame:
    """One game after another of a character.

    Args:
        character: Role, race, alignment and gender, or "@": the seed draws them.
        keys: Names of nle's observations that are wanted besides the bottom lines' numbers.
        ttyrec_dir: Folder that gets a folder of ttyrec3 files and their xlogfile, in the layout of NLD-AA; None:
            nothing is recorded. A game counts there only if it ended.

    Attributes:
        send: Sends one key code.
        done: Says whether the game is over and gone; then nothing may be sent.
        buffers: nle's observations by name; NetHack's own memory, overwritten by each key.
        stats: int64 [27], the bottom lines as numbers (the buffer "blstats"), quick to read one by one.
        program: int32 [6]; the first is 1 when the game is over, if not yet its closing screens.
    """

    send: Callable[[int], None]
    done: Callable[[], bool]

    def __init__(
        self, character: str, *, keys: Sequence[str], ttyrec_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.character = check_character(character)
        recording = {} if ttyrec_dir is None else {"save_ttyrec_every": 1, "savedir": str(_new_folder(ttyrec_dir))}
        wanted = (*keys, *(key for key in _STATE if key not in keys))
        self._challenge = SeedableChallenge(character=character, observation_keys=(*keys, "blstats"), **recording)
        game = self._challenge.nethack
        self.spaces: dict[str, Any] = {key: self._challenge.observation_space[key] for key in keys}
        self.buffers: dict[str, NDArray[Any]] = {key: game._obs_buffers[key] for key in wanted}
        game._pynethack.set_buffers(**self.buffers)  # nle asks for more, which costs time
        self.send = game._pynethack.step
        self.done = game._pynethack.done
        self.stats = self.buffers["blstats"].data
        self.program = self.buffers["program_state"].data
        self._internal = self.buffers["internal"].data
        folder, prefix = (self._challenge.savedir, f"nle.{os.getpid()}.") if recording else (game._vardir, "")
        self._log = Path(folder, f"{prefix}xlogfile")
        self._log_size = 0

    @property
    def ttyrec_path(self) -> Path | None:
        """Return the file that the current game is recorded in; None where nothing is."""
        if self._challenge.savedir is None:
            return None
        return Path(self._challenge._ttyrec_pattern % self._challenge._episode)

    def start(self, seed: int, birthday: int | None = None) -> None:
        """Start a game, past its opening screens; a running game is dropped.

        Args:
            seed: core and disp seed, from 0 to 2^64 - 1.
            birthday: Seconds since 1970 at which the game says it began; None: the seed's. fix_moon_phase does not
                reach it, and shopkeepers and anthills depend on it, so that the clock would change games.
        """
        if not 0 <= seed <= MAX_SEED:
            raise BadSettingError(f"seed {seed} of NetHack is not from 0 to 2^64 - 1")
        self._log_size = self._log.stat().st_size
        self._challenge.seed(int(seed), int(seed), reseed=False)
        self._challenge.reset()
        # Time enough: the first level has neither shop nor anthill.
        _set_long(self._challenge.nethack.dlpath, "ubirthday", birthday_of(int(seed)) if birthday is None else birthday)

    def leave_closing_screens(self) -> None:
        """After the game is over: press on to its very end, or to a question."""
        while not self.done():
            if self._internal[3]:  # it waits for a space
                self.send(_SPACE)
            elif self._internal[2]:  # it asks for a line
                self.send(_ESCAPE)
            else:
                return

    def quit(self) -> None:
        """Quit a running game, so that it stands in the xlogfile and its recording counts."""
        for _ in range(4):
            # Out of menus, questions and prompts first; a prompt for a place on the map shows no sign of itself.
            self._press(_ESCAPE)
            self._press_on(32)
            self._press(_META_Q)
            self._press(_YES)
            self._press_on(64)
            if self.done():
                return

    def last_log(self) -> dict[str, str]:
        """Return what NetHack's xlogfile says of the current game; empty while it has not ended."""
        with open(self._log, "rb") as file:
            file.seek(self._log_size)
            lines = file.read().decode("latin-1").splitlines()
        fields = lines[-1].split("\t") if lines else []
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def how_done(self) -> str:
        """Return NetHack's name for how the game ended, such as "died"."""
        return str(self._challenge.nethack.how_done().name).lower()

    def close(self) -> None:
        """Free NetHack; a running game is not recorded as ended."""
        self._challenge.close()

    def _press(self, key: int) -> None:
        if not self.done():
            self.send(key)

    def _press_on(self, most: int) -> None:
        internal = self._internal
        for _ in range(most):
            if self.done() or not any(internal[1:4]):  # a question, a line or a space is waited for
                return
            self.send(_SPACE if internal[3] else _ESCAPE)


def _new_folder(parent: str | os.PathLike[str]) -> Path:
    # One folder for each: nle names its files by process and episode only.
    os.makedirs(parent, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{datetime.now(UTC):%Y%m%d-%H%M%S}_", dir=parent))


def _set_long(library_path: str, name: str, value: int) -> None:
    """Set a variable of a library that is loaded."""
    library = ctypes.CDLL(library_path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    try:
        ctypes.c_long.in_dll(library, name).value = value
    finally:
        # NetHack must be the only holder: a new game loads the library anew.
        dlclose = ctypes.CDLL(None).dlclose
        dlclose.argtypes = [ctypes.c_void_p]
        dlclose(library._handle)
