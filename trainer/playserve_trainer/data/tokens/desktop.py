"""Recordings in Open P2P's format (Doom's among them) as games of a token cache: a recording is a unit.

What is done at the desktop becomes one number, its index among the combinations of keys, buttons and mouse bins that
occur: one token an action instead of eight. Entry i + 1 of the annotations is what was done upon frame i; so are the
sidecar's reward and termination.

Shape legend: N frames, H heads of a desktop action, S side of the video.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.p2p.vocabulary import OPEN_P2P, Vocabulary
from playserve.resize import HAMMING_V1, resize
from playserve_client.p2p.recording import list_recordings, read_recording, video_sizes
from playserve_client.p2p.sidecar import Sidecar, read_sidecar
from playserve_client.p2p.video import VideoReader
from playserve_trainer.data.p2p import load_recordings, recording_hash
from playserve_trainer.data.tokens.games import UNKNOWN, GameEpisode
from playserve_trainer.models.tokenizer.actions import ComboActions, action_spec_to_json

__all__ = ["DesktopGames"]

# What a recorder's sidecar says of the frames that is no inner state of the game.
_NO_PROBES = ("first", "reward", "terminated", "truncated", "perturbed")
_ANGLE = "angle"


class DesktopGames:
    """Recordings in Open P2P's format; a GameSource.

    Args:
        directory: Recordings in any depth.
        game: What the frames are frames of, such as "doom": the environment that the recordings name; "": any.
        size: Side of the frames; from a larger video they are resized by hamming-v1, as the recorder resizes.
        vocabulary: Heads and bins of the desktop actions.
        cache: Where what is read of the annotations is kept; None: beside the data.
        progress: Called with (recordings read, recordings) while annotations are read.

    Raises:
        NotFoundError: There is no recording.
        BadSettingError: They are of another game, or their videos are smaller than `size`.
    """

    def __init__(
        self,
        directory: Path,
        game: str = "",
        *,
        size: int = 64,
        vocabulary: Vocabulary = OPEN_P2P,
        cache: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        video = _video_size(directory, size)
        self._recordings = recordings = load_recordings(
            directory, vocabulary, frame_size=video, held_out_fraction=0.0, cache=cache, progress=progress
        )
        games = sorted({env for env, _ in recordings.games})
        if game and games != [game]:
            raise BadSettingError(f"{directory} holds recordings of {', '.join(games)}, not of {game} alone")
        self._size, self._game = size, game or games[0]
        done = np.asarray(recordings.tokens_NH)[np.asarray(recordings.known_N)]
        if not len(done):
            raise BadSettingError(f"{directory}: of no frame is it known what was done upon it")
        self.combos = ComboActions.of(vocabulary, done)
        first = read_recording(directory / recordings.folders[0])
        self._rate_hz = first.metadata.fps
        self._about: Mapping[str, Any] = _episode_of(read_sidecar(first.path))
        self.frame_shape = (size, size, 3)
        self.probe_names = _probe_names(read_sidecar(first.path))
        key = [recordings.report.digest, video, size, self.combos.to_json(), self.probe_names]
        self.digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()

    @property
    def action(self) -> Mapping[str, Any]:
        """One number an action: the index of a combination."""
        return {
            "spec": action_spec_to_json(self.combos.spec()), "heads": [self.combos.n], "combos": self.combos.to_json(),
        }  # fmt: skip

    @property
    def game(self) -> Mapping[str, Any]:
        """The game, its maps and its rate."""
        scenarios = sorted({subtype for _, subtype in self._recordings.games})
        resized = self._recordings.frame_size != self._size
        return {
            "env": self._game, "game": self._game, "scenarios": scenarios, "rate_hz": self._rate_hz,
            "frame_skip": int(self._about.get("tics_per_frame", 1)), "video_size": self._recordings.frame_size,
            "resize_id": HAMMING_V1 if resized else str(self._about.get("resize_id", "")),
        }  # fmt: skip

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self._recordings.folders)

    def read(self, unit: int) -> Sequence[GameEpisode]:
        """Return the episodes of a recording; raises BrokenRecordingError where it cannot be decoded."""
        data, folder = self._recordings, self._recordings.folders[unit]
        start, length = int(data.starts_R[unit]), int(data.lengths_R[unit])
        span, frames = slice(start, start + length), length + 1  # the last frame has no action
        with VideoReader(data.video(unit), threads=1) as reader:
            frames_NSSC = self._frames(reader, frames)
        known_N, learnt_N = np.asarray(data.known_N[span]), np.asarray(data.learnt_N[span])
        indices_N = self.combos.indices_of(np.asarray(data.tokens_NH[span]))
        executed_N, labels_N = np.full(frames, UNKNOWN, np.int32), np.full(frames, UNKNOWN, np.int32)
        executed_N[:length][known_N] = indices_N[known_N]
        labels_N[:length][learnt_N & known_N] = indices_N[learnt_N & known_N]
        sidecar = read_sidecar(data.directory / folder)
        reward_N, ended_N = _after(sidecar, "reward", frames), _after(sidecar, "terminated", frames)
        probes_NP = self._probes(sidecar, frames)
        begins = [*np.flatnonzero(np.asarray(data.begins_N[span])).tolist(), frames]
        seeds = {int(e["start_frame"]): int(e["seed"]) for e in _episode_of(sidecar).get("episodes", ())}
        place = recording_hash(data.games[unit], folder)
        episodes = []
        for begin, end in itertools.pairwise(begins):
            its = slice(begin, end)
            executed_NA = executed_N[its, None].copy()
            executed_NA[-1] = UNKNOWN  # upon the last frame of an episode nothing is done
            reward_of = reward_N[its].astype(np.float32)
            reward_of[-1] = 0.0
            episodes.append(
                GameEpisode(
                    name=f"{Path(folder).name}-{begin}",
                    seed=seeds.get(begin, UNKNOWN),
                    place=place,
                    frames_NHWC=frames_NSSC[its],
                    executed_NA=executed_NA,
                    labels_NA=labels_N[its, None],
                    reward_N=reward_of,
                    terminated=bool(end - begin > 1 and ended_N[end - 2]),
                    probes_NP=probes_NP[its],
                )
            )
        return episodes

    def _frames(self, reader: VideoReader, count: int) -> NDArray[np.uint8]:
        out = np.empty((count, self._size, self._size, 3), np.uint8)
        same = reader.height == reader.width == self._size
        for place, frame in zip(out, reader.frames(0, count), strict=True):
            place[:] = frame if same else resize(frame, self._size, self._size, HAMMING_V1)
        return out

    def _probes(self, sidecar: Sidecar | None, frames: int) -> NDArray[np.float32]:
        out = np.zeros((frames, len(self.probe_names)), np.float32)
        if sidecar is None or not self.probe_names:
            return out
        for column, name in enumerate(self.probe_names):
            base, _, part = name.partition(f"{_ANGLE}_")
            values = sidecar.arrays.get(_ANGLE if part and not base else name)
            if values is None or len(values) < frames:
                raise DataLossError(f"sidecar has no {name} of {frames} frames; other recordings here have")
            turned = np.deg2rad(values[:frames].astype(np.float64))
            out[:, column] = {"sin": np.sin(turned), "cos": np.cos(turned)}.get(part, values[:frames])
        return out


def _video_size(directory: Path, size: int) -> int:
    """Return the side of the smallest square video of the first recording that is not smaller than `size`."""
    folders = list_recordings(directory) if directory.is_dir() else []
    if not folders:
        raise NotFoundError(f"{directory} holds no recording; make some with `playserve data record doom`, say")
    sizes = [height for height, width in video_sizes(folders[0]) if height == width]
    fitting = [side for side in sizes if side >= size]
    if not fitting:
        raise BadSettingError(f"{folders[0]} has videos of {sizes} pixels a side, wanted {size} or more")
    return min(fitting)


def _episode_of(sidecar: Sidecar | None) -> Mapping[str, Any]:
    return sidecar.episode if sidecar is not None else {}


def _probe_names(sidecar: Sidecar | None) -> tuple[str, ...]:
    """Return the names of the probes: an angle is two, which do not jump where it does."""
    if sidecar is None:
        return ()
    named = sidecar.episode.get("probes") or [name for name in sorted(sidecar.arrays) if name not in _NO_PROBES]
    names: list[str] = []
    for name in named:
        names += [f"{_ANGLE}_sin", f"{_ANGLE}_cos"] if name == _ANGLE else [str(name)]
    return tuple(names)


def _after(sidecar: Sidecar | None, name: str, frames: int) -> NDArray[Any]:
    """Return what the sidecar's rows say of what was done upon each frame: the next row's; nothing upon the last."""
    values = sidecar.arrays.get(name) if sidecar is not None else None
    out = np.zeros(frames, np.float64)
    if values is not None:
        told = values[1:frames]
        out[: len(told)] = np.nan_to_num(told.astype(np.float64))
    return out
