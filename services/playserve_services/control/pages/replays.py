"""Copies of stored recordings to replay: checked by digest, and read by kind. The newest are kept."""

from __future__ import annotations

import datetime
import hashlib
import re
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from playserve.errors import DataLossError, MessageTooLargeError, NotFoundError, StateError
from playserve.files import replacing, write_text
from playserve_client.recordings import Episode, read_episode
from playserve_services.control.pages.pictures import png
from playserve_services.control.recordings import RecordingStore

__all__ = ["MAX_BYTES", "Replays", "kind_of"]

#: Largest recording that is replayed here; larger ones are for `playserve recordings pull` and a viewer at home.
MAX_BYTES = 512 * 1024 * 1024
_COPIES = 20
_KEPT_S = 3600.0
_TTYREC = re.compile(r"\.ttyrec[123]?(?:\.bz2|\.gz)?$")
_FILM = re.compile(r"(?:video|\d+x\d+)\.mp4")


def kind_of(url: str, form: str) -> str:
    """Return how a recording is replayed: frames, video or terminal; empty: it cannot be.

    Args:
        url: Where it lies.
        form: Its format, as whoever sent it says.
    """
    if _TTYREC.search(url):
        return "terminal"
    if url.endswith(".npz"):
        return "frames"
    return "video" if url.endswith(".tar") and form == "p2p" else ""


class Replays:
    """Recordings of one store, ready to be shown. Any thread may call.

    Args:
        store: Holds them. Nothing else is read: a recording's URL is what whoever registered it says.
        folder: Where copies are kept.
    """

    def __init__(self, store: RecordingStore, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._lock = threading.Lock()
        self._episodes: dict[str, Episode] = {}

    def fetch(self, url: str, sha256: str) -> Path:
        """Return a checked copy of a recording.

        Raises:
            StateError: The store does not hold it.
            NotFoundError: It is not there any more.
            DataLossError: It is not what was registered.
            MessageTooLargeError: It is too large to be replayed here.
        """
        if not self._store.holds(url, sha256):
            raise StateError("it lies elsewhere, and this control plane has no copy")
        return self._made(f"{sha256}.whole", lambda part: self._copy(url, sha256, part))

    def episode(self, url: str, sha256: str) -> Episode:
        """Return a recording of frames; raises as :meth:`fetch`."""
        with self._lock:
            found = self._episodes.get(sha256)
        if found is None:
            found = read_episode(self.fetch(url, sha256), arrays=("frames", "executed"))
            with self._lock:
                while len(self._episodes) > 1:  # two people may look at once; an episode takes some 70 MB
                    del self._episodes[next(iter(self._episodes))]
                self._episodes[sha256] = found
        return found

    def frame(self, url: str, sha256: str, index: int) -> bytes:
        """Return one frame as a PNG; raises as :meth:`fetch`, and NotFoundError beyond the end."""
        episode = self.episode(url, sha256)
        if not 0 <= index < len(episode):
            raise NotFoundError(f"the recording has frames 0 to {len(episode) - 1}, not {index}")
        return png(episode.frames[index])

    def film(self, url: str, sha256: str) -> Path:
        """Return the film of a recording in Open P2P's format; raises as :meth:`fetch`."""
        whole = self.fetch(url, sha256)
        return self._made(f"{sha256}.mp4", lambda part: _film(whole, part))

    def terminal_page(self, url: str, sha256: str, name: str, title: str) -> str:
        """Return a page that replays a game of NetHack; raises as :meth:`fetch`.

        Args:
            url: Where it lies.
            sha256: Its digest.
            name: What its owner calls it: its end tells how a ttyrec is packed.
            title: Heading of the page.
        """
        whole = self.fetch(url, sha256)
        ending = _TTYREC.search(name) or _TTYREC.search(url)
        if ending is None:
            raise DataLossError("the recording is no ttyrec")
        page = self._made(f"{sha256}{ending[0]}.html", lambda part: _terminal(whole, ending[0], part, title))
        return page.read_text(encoding="utf-8")

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a file of our folder, made where it is not there; the oldest of too many are removed."""
        path = self._folder / name
        with self._lock:
            if path.is_file():
                path.touch()
                return path
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(path) as part:
                make(part)
            self._forget(path)
        return path

    def _forget(self, keep: Path) -> None:
        # By the wall clock, as the files': what its owner removed from the store is not to stay here.
        now = datetime.datetime.now(datetime.UTC).timestamp()
        ages = sorted((now - path.stat().st_mtime, path) for path in self._folder.iterdir() if path != keep)
        for number, (age_s, path) in enumerate(ages, 2):
            if number > _COPIES or age_s > _KEPT_S:
                path.unlink(missing_ok=True)

    def _copy(self, url: str, sha256: str, part: Path) -> None:
        digest, left = hashlib.sha256(), MAX_BYTES
        with part.open("wb") as here:
            for piece in self._store.read(url):
                left -= len(piece)
                if left < 0:
                    raise MessageTooLargeError(
                        f"it has more than {MAX_BYTES} bytes; fetch it with playserve recordings"
                    )
                digest.update(piece)
                here.write(piece)
        if digest.hexdigest() != sha256:
            raise DataLossError("it is not what was registered: its SHA-256 is another")


def _film(whole: Path, part: Path) -> None:
    """Copy the film out of a recording's tar: the original, or else the largest of those that are trained on."""
    try:
        with tarfile.open(whole, "r:") as archive:
            films = [
                member for member in archive
                if member.isreg() and _FILM.fullmatch(PurePosixPath(member.name).name)
            ]  # fmt: skip
            if not films:
                raise NotFoundError("the recording has no film")
            best = max(films, key=lambda member: (member.name.endswith("video.mp4"), member.size))
            source = archive.extractfile(best)
            assert source is not None  # noqa: S101 - it is a file
            with source, part.open("wb") as here:
                shutil.copyfileobj(source, here)
    except (tarfile.TarError, EOFError) as error:
        raise DataLossError(f"the recording is no tar ({error})") from error


def _terminal(whole: Path, ending: str, part: Path, title: str) -> None:
    from playserve_client.terminal.html import render_page, render_recording
    from playserve_client.terminal.open import open_game

    named = part.with_name(f"{part.name}{ending}")  # the reader goes by the name's end
    named.hardlink_to(whole)
    try:
        write_text(part, render_page(render_recording(open_game(named), element_id="game", title=title), title))
    finally:
        named.unlink(missing_ok=True)
