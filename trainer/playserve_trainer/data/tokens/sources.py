"""Which reader a folder of recordings takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playserve.errors import BadSettingError, NotFoundError
from playserve_client.recordings import list_episodes
from playserve_trainer.data.tokens.games import GameSource

__all__ = ["DEFAULT_CROP", "frame_size_of", "open_games"]

#: Crop of NetHack's screen where nothing else is said.
DEFAULT_CROP = (9, 9)

_NETHACK = "nethack"
_ATARI_SIZE, _DESKTOP_SIZE = 84, 64


def open_games(
    directory: Path,
    game: str,
    *,
    size: int = 0,
    crop: tuple[int, int] = DEFAULT_CROP,
    character: str = "@",
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GameSource:
    """Return the recorded games of a folder, whatever they were recorded in.

    Args:
        directory: The folder, or a root of Atari recordings above it.
        game: "nethack", an Atari game in snake case such as "breakout", or else the environment of recordings in Open
            P2P's format, such as "doom".
        size: Side of the frames; 0: 84 of Atari, 64 of recordings of a desktop.
        crop: Of NetHack's screen.
        character: Of NetHack's games; "@": all.
        cache: Where what is read of annotations is kept; None: beside the data.
        progress: Called with (read, all) while annotations are read.

    Raises:
        NotFoundError: There are no recordings.
        BadSettingError: They are of another game, or `size` means nothing for them.
    """
    from playserve_trainer.data.tokens.atari import AtariGames
    from playserve_trainer.data.tokens.desktop import DesktopGames
    from playserve_trainer.data.tokens.nethack import NetHackTokenGames

    if not directory.is_dir():
        raise NotFoundError(f"{directory} is no folder; record games with `playserve data record`")
    if game == _NETHACK:
        if size:
            raise BadSettingError("NetHack's frames are crops of its screen: give a crop, not a size")
        return NetHackTokenGames(directory, crop=crop, character=character)
    folder = _atari_folder(directory, game)
    if folder is not None:
        side = size or _ATARI_SIZE
        return AtariGames(folder, game, size=(side, side))
    return DesktopGames(directory, game, size=size or _DESKTOP_SIZE, cache=cache, progress=progress)


def frame_size_of(directory: Path, game: str, size: int) -> tuple[int, int, int]:
    """Return H, W, C of the frames that :func:`open_games` would give, without reading any; not of NetHack."""
    if directory.is_dir() and _atari_folder(directory, game) is not None:
        return (size or _ATARI_SIZE, size or _ATARI_SIZE, 1)
    return (size or _DESKTOP_SIZE, size or _DESKTOP_SIZE, 3)


def _atari_folder(directory: Path, game: str) -> Path | None:
    """Return the folder of an Atari game's episodes, or None if there are none."""
    folder = directory / "atari" / game
    if folder.is_dir():
        return folder
    return directory if list_episodes(directory) else None
