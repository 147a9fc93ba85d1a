"""Recordings in Open P2P's format as training reads them: actions and instructions of all of them end to end.

Nothing of a video is decoded here. What was read is kept beside the data (:func:`load_recordings`' `cache`) and mapped
from there the next time: an action takes 14 bytes, so that even Open P2P's 600 million fit a disk, not a memory.

Shape legend: N frames with a target, of all recordings; R recordings; H heads of an action.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from playserve.errors import NotFoundError, PlayserveError
from playserve.p2p.vocabulary import Vocabulary
from playserve_client.p2p.problems import BrokenRecordingError
from playserve_client.p2p.recording import (
    ANNOTATION,
    AlignedFrames,
    Recording,
    align,
    list_recordings,
    read_recording,
    video_path,
)
from playserve_client.p2p.sidecar import read_sidecar
from playserve_client.p2p.video import VideoReader
from playserve_trainer.data.episodes import DataReport, NoEpisodesError
from playserve_trainer.data.split import held_out_episodes, split_hash

__all__ = ["Recordings", "default_cache", "episode_begins", "load_recordings", "recording_hash", "with_known_actions",
           "without_labels"]  # fmt: skip

_FORMAT = 3
_ARRAYS = ("tokens_NH", "learnt_N", "known_N", "span_N", "begins_N")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recordings:
    """Actions and instructions of whole recordings, end to end.

    Attributes:
        directory: Where they lie.
        folders: Folder of each recording, relative to it. [R]
        games: (environment, its subtype) of each. [R]
        frame_size: Side of the square video that is trained on, pixels.
        tokens_NH: uint8, tokens of each frame's target action; idle where it is unknown.
        learnt_N: bool, whether the target is a person's, and therefore learnt.
        known_N: bool, whether it is known what led from this frame to the next, be it a policy's action or noise.
        span_N: int32, index into `spans` of the instruction in force, -1 none.
        begins_N: bool, whether an episode begins, as a recorder of several may say; at play a memory begins there.
        lengths_R: int64, frames with a target.
        held_out_R: bool, whether a recording is held out.
        texts: Every instruction once.
        spans: For each span the indices into `texts` of its phrasings.
        embeddings: Vectors that recordings bring, by encoder ("gemma") and text.
        report: For people.
    """

    directory: Path
    folders: tuple[str, ...]
    games: tuple[tuple[str, str], ...]
    frame_size: int
    tokens_NH: NDArray[np.uint8]
    learnt_N: NDArray[np.bool_]
    known_N: NDArray[np.bool_]
    span_N: NDArray[np.int32]
    begins_N: NDArray[np.bool_]
    lengths_R: NDArray[np.int64]
    held_out_R: NDArray[np.bool_]
    texts: tuple[str, ...]
    spans: tuple[tuple[int, ...], ...]
    embeddings: Mapping[str, Mapping[str, NDArray[np.float32]]]
    report: DataReport

    @property
    def starts_R(self) -> NDArray[np.int64]:
        """Index of the first frame of each recording, int64."""
        return np.cumsum(self.lengths_R) - self.lengths_R

    def select(self, *, held_out: bool) -> NDArray[np.int64]:
        """Return the indices of the recordings of one side of the split."""
        return np.flatnonzero(self.held_out_R == held_out)

    def video(self, recording: int) -> Path:
        """Return where the frames of a recording lie."""
        return video_path(self.directory / self.folders[recording], self.frame_size, self.frame_size)


@dataclass(slots=True)
class _Read:
    """What was read so far."""

    tokens: list[NDArray[np.uint8]] = field(default_factory=list)
    learnt: list[NDArray[np.bool_]] = field(default_factory=list)
    known: list[NDArray[np.bool_]] = field(default_factory=list)
    span: list[NDArray[np.int32]] = field(default_factory=list)
    begins: list[NDArray[np.bool_]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    games: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)
    spans: dict[tuple[int, ...], int] = field(default_factory=dict)
    embeddings: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)


def default_cache(directory: Path) -> Path:
    """Return where what is read from a folder of recordings is kept, unless somebody says otherwise."""
    return directory / ".playserve"


def recording_hash(game: tuple[str, str], folder: str) -> float:
    """Return the place of a recording between 0 and 1 that decides its side of the split; see :mod:`.split`.

    It goes by the recording's name, a uuid, wherever its folder lies.
    """
    digest = hashlib.sha256(Path(folder).name.encode()).digest()
    return split_hash(game[0], game[1], int.from_bytes(digest[:8], "big"))


def load_recordings(
    directory: Path,
    vocabulary: Vocabulary,
    *,
    frame_size: int,
    held_out_fraction: float = 0.1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recordings:
    """Read the annotations of every recording under `directory`, or map what an earlier call read.

    Recordings that cannot be used are named in the report and left out. The digest covers annotations by their bytes,
    videos by their length.

    Args:
        directory: Recordings in any depth.
        vocabulary: What makes tokens of actions.
        frame_size: Side of the videos to train on, pixels: ``<S>x<S>.mp4``.
        held_out_fraction: Share of the recordings to hold out; 0: none.
        cache: Where what is read is kept; None: :func:`default_cache`.
        progress: Called with (recordings read, recordings).

    Raises:
        NotFoundError: There is no recording.
        NoEpisodesError: There is no usable recording for one side of the split.
    """
    folders = list_recordings(directory) if directory.is_dir() else []
    if not folders:
        raise NotFoundError(f"{directory} holds no recording; make some with `playserve data record doom`, say")
    place = (cache or default_cache(directory)) / f"index-{_fingerprint(directory, folders, vocabulary, frame_size)}"
    if not (place / "index.json").exists():
        read = _read_all(directory, folders, vocabulary, frame_size, progress)
        if not read.folders:
            raise NoEpisodesError(f"{directory}: none of {len(folders)} recordings can be used" + _why(read.damaged))
        _keep(place, read)
    return _open(place, directory, frame_size, held_out_fraction)


def _fingerprint(directory: Path, folders: Sequence[Path], vocabulary: Vocabulary, frame_size: int) -> str:
    """Return a digest of names, lengths and times of all files, without opening any."""
    digest = hashlib.sha256(json.dumps([_FORMAT, frame_size, vocabulary.to_json()]).encode())
    for folder in folders:
        for path in (folder / ANNOTATION, video_path(folder, frame_size, frame_size)):
            stat = path.stat() if path.exists() else None
            known = (stat.st_size, stat.st_mtime_ns) if stat else None
            digest.update(f"{path.relative_to(directory)} {known}\n".encode())
    return digest.hexdigest()[:16]


def _read_all(
    directory: Path,
    folders: Sequence[Path],
    vocabulary: Vocabulary,
    frame_size: int,
    progress: Callable[[int, int], None] | None,
) -> _Read:
    read = _Read()
    for number, folder in enumerate(folders):
        video = video_path(folder, frame_size, frame_size)
        try:
            recording = read_recording(folder)
            with VideoReader(video) as frames:
                aligned = align(recording, frames.num_frames)
            if not aligned.loss_mask.any():
                raise NoEpisodesError(f"{folder}: no frame has a person's action to learn from")
        except PlayserveError as error:
            read.damaged.append((str(folder), str(error)))
        else:
            name = str(folder.relative_to(directory))
            read.folders.append(name)
            read.games.append((recording.metadata.env, recording.metadata.env_subtype))
            read.digest.update(f"{name} {video.stat().st_size} ".encode() + (folder / ANNOTATION).read_bytes())
            _add(read, recording, aligned, vocabulary)
        if progress is not None:
            progress(number + 1, len(folders))
    return read


def _add(read: _Read, recording: Recording, aligned: AlignedFrames, vocabulary: Vocabulary) -> None:
    read.tokens.append(vocabulary.encode_arrays(aligned.actions).astype(np.uint8))
    begins = episode_begins(recording)
    read.learnt.append(aligned.loss_mask)
    read.known.append((aligned.user_mask | aligned.system_mask) & ~begins[1 : len(aligned) + 1])
    spans = np.full(len(recording.instructions) + 1, -1, np.int32)  # the last entry is that of index -1
    for number, instruction in enumerate(recording.instructions):
        # Texts of one span are phrasings of one instruction.
        same = (instruction.start_frame, instruction.num_frames)
        phrasings = [other for other in recording.instructions if (other.start_frame, other.num_frames) == same]
        texts = tuple(sorted({read.texts.setdefault(other.text, len(read.texts)) for other in phrasings}))
        spans[number] = read.spans.setdefault(texts, len(read.spans))
        for encoder, vector in instruction.embeddings.items():
            read.embeddings.setdefault(encoder, {})[instruction.text] = vector.reshape(-1)
    read.span.append(spans[aligned.instruction])
    read.begins.append(begins[: len(aligned)])


def episode_begins(recording: Recording) -> NDArray[np.bool_]:
    """Return which frames begin an episode, bool [frames]: the first and, by the sidecar's column "first", others."""
    begins = np.zeros(len(recording.frames), np.bool_)
    with contextlib.suppress(BrokenRecordingError):
        sidecar = read_sidecar(recording.path)
        said = sidecar.arrays.get("first") if sidecar is not None else None
        if said is not None and said.dtype == np.bool_ and said.shape == begins.shape:
            begins |= said
    begins[:1] = True
    return begins


def _keep(place: Path, read: _Read) -> None:
    """Write what was read so that a kill leaves all of it or nothing."""
    index = {
        "folders": read.folders, "games": read.games, "texts": list(read.texts), "spans": [list(s) for s in read.spans],
        "lengths": [len(tokens) for tokens in read.tokens], "digest": read.digest.hexdigest(), "damaged": read.damaged,
        "encoders": {encoder: list(vectors) for encoder, vectors in read.embeddings.items()},
    }  # fmt: skip
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        for name, arrays in zip(_ARRAYS, (read.tokens, read.learnt, read.known, read.span, read.begins), strict=True):
            np.save(part / f"{name}.npy", np.concatenate(cast(list[NDArray[Any]], arrays)))
        for encoder, vectors in read.embeddings.items():
            np.save(part / f"{encoder}.npy", np.stack(list(vectors.values())))
        (part / "index.json").write_text(json.dumps(index))
        os.rename(part, place)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not (place / "index.json").exists():  # another process was as quick
            raise


def _open(place: Path, directory: Path, frame_size: int, held_out_fraction: float) -> Recordings:
    index = json.loads((place / "index.json").read_text())
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    games = tuple((str(env), str(subtype)) for env, subtype in index["games"])
    hashes = [recording_hash(game, folder) for game, folder in zip(games, index["folders"], strict=True)]
    held_out_R = np.array(held_out_episodes(hashes, held_out_fraction), np.bool_)
    damaged = tuple((str(path), str(error)) for path, error in index["damaged"])
    if held_out_R.all() or (held_out_fraction > 0 and not held_out_R.any()):
        raise NoEpisodesError(
            f"{directory}: {len(games)} usable recordings; wanted at least {2 if held_out_fraction else 1}, so that "
            "one can be learnt from and one held out" + _why(damaged)
        )
    lengths_R = np.array(index["lengths"], np.int64)
    report = DataReport(
        directory=str(directory),
        episodes=len(games),
        held_out_episodes=int(held_out_R.sum()),
        samples=int(lengths_R[~held_out_R].sum()),
        held_out_samples=int(lengths_R[held_out_R].sum()),
        digest=index["digest"],
        mean_score=0.0,
        damaged=damaged,
    )
    return Recordings(
        directory=directory,
        folders=tuple(index["folders"]),
        games=games,
        frame_size=frame_size,
        lengths_R=lengths_R,
        held_out_R=held_out_R,
        texts=tuple(index["texts"]),
        spans=tuple(tuple(span) for span in index["spans"]),
        embeddings={
            encoder: dict(zip(texts, np.load(place / f"{encoder}.npy"), strict=True))
            for encoder, texts in index["encoders"].items()
        },
        report=report,
        **arrays,
    )


def _why(damaged: Sequence[tuple[str, str]]) -> str:
    return "".join(f"\n  {error}" for _, error in damaged[:20])


def with_known_actions(recordings: Recordings) -> Recordings:
    """Return the recordings with every known action to be learnt, as an inverse model learns them.

    What the expert wanted can be guessed from the frame before; noise is to be read off the frame after only.
    """
    return dataclasses.replace(recordings, learnt_N=recordings.known_N)


def without_labels(recordings: Recordings, broken: Mapping[int, str]) -> Recordings:
    """Return the recordings with nothing to learn in some of them, which the report names as damaged.

    Args:
        recordings: All of them.
        broken: What is wrong with those whose frames cannot be decoded, by index.
    """
    if not broken:
        return recordings
    learnt_N, starts_R = np.array(recordings.learnt_N), recordings.starts_R
    for recording in broken:
        learnt_N[starts_R[recording] : starts_R[recording] + recordings.lengths_R[recording]] = False
    broken_R = np.isin(np.arange(len(recordings.folders)), list(broken))
    kept, held_out_R = ~broken_R, recordings.held_out_R
    report = dataclasses.replace(
        recordings.report,
        episodes=int(kept.sum()),
        held_out_episodes=int((kept & held_out_R).sum()),
        samples=int(recordings.lengths_R[kept & ~held_out_R].sum()),
        held_out_samples=int(recordings.lengths_R[kept & held_out_R].sum()),
        damaged=(*recordings.report.damaged, *((recordings.folders[r], error) for r, error in broken.items())),
    )
    return dataclasses.replace(recordings, learnt_N=learnt_N, report=report)
