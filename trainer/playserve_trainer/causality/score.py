"""Open P2P's causality score of a checkpoint: how much its answers change when frames are swapped and actions are not.

The paper (arXiv 2601.04575, its score; no code was released) writes the sum over clips b and chunks c of
KL( f(o_bc, a_bc) || f(o~_bc, a_bc) ) and leaves much open. What is fixed here, under :data:`DEFINITION`:

* **Clips.** As in the paper 200 frames in C = 10 chunks of 20, where a policy looks back that far. T is the largest
  multiple of 20 frames that is at most 200 and at most the longest history of a layer, C = T / 20; a policy that looks
  back less than 20 frames has T = history and C = 1 (:func:`clip_shape`). Scores of different T are not comparable; T
  and C are in the output. Clips are cut end to end from the first frame of each recording, shorter rests are left out.
  A memory is empty before a clip and, as at play, wherever an episode begins within it.
* **Which recordings.** Those that training held out, if it held out the same share (`held_out`, 0.1 by default).
* **Grouping.** A group is up to B = 32 clips of one game; a game is (env, subtype), so a Doom scenario. Each game gives
  the same number of clips (`clips_per_game`, drawn by the seed), if it has so many, cut into groups of nearly equal
  size. A game of which there is one clip only is refused (:class:`LoneClipError`); one without any is named in the
  output.
* **Swap.** Each frame, the compared ones included, is replaced with probability p = 0.5, by the frame at the same place
  of another clip of its group; which one is drawn anew for each frame, evenly. Never a frame of the same clip or of
  another game; it may be of the same recording. Actions, instruction and starts of episodes stay.
* **Seeds.** A swap follows from (seed, number of the swap, game, number of the group) and from T and the group's size
  alone: policies of all sizes with the same T see the same swap of the same clips. `swaps` draws are averaged; their
  standard deviation is in the output.
* **Which answer.** The answer at the last frame of each chunk, as it is: all 8 tokens, teacher-forced, that is each
  head given that the heads before it are as recorded. (An unknown recorded action is an idle one.)
* **Direction.** KL(with the recorded frames || with the swapped ones).
* **Normalisation.** A head's divergence in nats, over log(its choices); mean over the heads of a group (keys, buttons,
  dx, dy); mean over the four groups; mean over chunks, swaps and clips. So every clip counts alike, and 1 is a policy
  that knows everything with the recorded frames and guesses with the others. "kl_nats" is the plain sum over the 8
  tokens, mean over the rest.
* **Intervals.** 95%, percentile bootstrap over clips within games, of clips' means over chunks and swaps; beside it, by
  recording within games, which is the wider and the more honest one where several clips are of one recording.
* **Precision.** The policy's own; divergences in float64.

It measures sensitivity to frames, not whether the answer is right: a policy that over-reacts scores high. What of it is
right, :mod:`.intervene` asks. The parts "frame_swapped" and "frame_kept" are the means over compared frames that were
themselves replaced, and that were not.

Shape legend: B clips of a group, T frames, S swaps, C chunks, H heads, D width, M answers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve.errors import BadSettingError, PlayserveError
from playserve_trainer.causality.answers import Answers, kl_by_head
from playserve_trainer.causality.clips import Clip, ClipReader, Subject, Window, game_name
from playserve_trainer.causality.resampling import Resampler, Summary
from playserve_trainer.data.episodes import NoEpisodesError
from playserve_trainer.data.p2p import Recordings

__all__ = ["DEFINITION", "LoneClipError", "ScoreSettings", "clip_shape", "draw_swap", "plan_clips", "score", "swap_kl"]

#: Counts up when the same checkpoint and clips would get another score.
DEFINITION = 1

_MAX_FRAMES = 200
_CHUNK = 20
_GROUP = 32
_SHARE = 0.5

_log = logging.getLogger(__name__)


class LoneClipError(NoEpisodesError):
    """A game has one clip, and there is no other to take frames of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """What is drawn.

    Attributes:
        clips_per_game: Most clips of a game.
        swaps: Draws of the swap.
        seed: Of clips and swaps.
    """

    clips_per_game: int = 32
    swaps: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("clips_per_game", 2), ("swaps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadSettingError(f"score: {name} is at least {least}, not {getattr(self, name)}")


def clip_shape(history: int) -> tuple[int, int]:
    """Return (T, C), frames and chunks of a clip, of a policy whose layers look back over so many steps."""
    if history < _CHUNK:
        return max(1, history), 1
    chunks = min(_MAX_FRAMES, history) // _CHUNK
    return chunks * _CHUNK, chunks


def plan_clips(
    recordings: Recordings, chosen: NDArray[np.int64], length: int, settings: ScoreSettings
) -> tuple[dict[str, list[list[Window]]], list[str]]:
    """Return the groups of clips of each game, and the games that have no clip.

    Raises:
        LoneClipError: A game has one clip.
        NoEpisodesError: No game has any.
    """
    found: dict[str, list[Window]] = {}
    for recording in chosen.tolist():
        windows = found.setdefault(game_name(recordings, recording), [])
        length_R = int(recordings.lengths_R[recording])
        windows += [Window(recording, first) for first in range(0, length_R - length + 1, length)]
    lone = sorted(game for game, windows in found.items() if len(windows) == 1)
    if lone:
        raise LoneClipError(
            f"{recordings.directory}: {', '.join(lone)} with one clip of {length} frames, wanted at least 2, so that "
            "frames can be swapped: record more of it, lower --held-out to 0, or name other games (--game)"
        )
    empty = sorted(game for game, windows in found.items() if not windows)
    if len(empty) == len(found):
        raise NoEpisodesError(f"{recordings.directory}: no recording of {', '.join(empty)} has {length} frames")
    groups: dict[str, list[list[Window]]] = {}
    for game in sorted(set(found) - set(empty)):
        windows, rng = found[game], np.random.default_rng([settings.seed, _number(game)])
        drawn = [windows[i] for i in rng.permutation(len(windows))[: settings.clips_per_game]]
        count = -(-len(drawn) // _GROUP)
        groups[game] = [drawn[part::count] for part in range(count)]
    return groups, empty


def draw_swap(rng: np.random.Generator, num_clips: int, length: int) -> NDArray[np.int64]:
    """Return of which clip of the group each frame is shown, int64 [B, T]; its own where it is kept.

    Raises:
        LoneClipError: The group has one clip.
    """
    if num_clips < 2:
        raise LoneClipError(f"a group of {num_clips} clips, wanted at least 2, so that frames can be swapped")
    own_B1 = np.arange(num_clips)[:, None]
    other_BT = rng.integers(0, num_clips - 1, (num_clips, length))
    other_BT += other_BT >= own_B1
    found: NDArray[np.int64] = np.where(rng.random((num_clips, length)) < _SHARE, other_BT, own_B1)
    return found


def swap_kl(
    answers: Answers, clips: Sequence[Clip], swaps_SBT: Sequence[NDArray[np.int64]], at: Sequence[int]
) -> NDArray[np.float64]:
    """Return KL(recorded || swapped), nats, of each head of the answers at some steps, float64 [B, S, len(at), H].

    Args:
        answers: The policy.
        clips: Of one game.
        swaps_SBT: Of which clip each frame is shown, one array a swap.
        at: Steps.
    """
    image_BTD = torch.stack([clip.image_TD for clip in clips])
    actions_BTH = torch.stack([clip.actions_TH for clip in clips])
    first_BT = torch.stack([clip.first_T for clip in clips])
    texts = [clip.instruction_TW for clip in clips if clip.instruction_TW is not None]
    instruction_BTW = torch.stack(texts) if texts else None
    forced_MH = actions_BTH[:, list(at)].flatten(0, 1)

    def ask(shown_BTD: Tensor) -> list[Tensor]:
        out_BCD = answers.out(shown_BTD, instruction_BTW, actions_BTH, first_BT, at)
        return answers.log_probs(out_BCD.flatten(0, 1), forced_MH)

    recorded, step_T = ask(image_BTD), torch.arange(image_BTD.shape[1])
    found = [
        kl_by_head(recorded, ask(image_BTD[torch.from_numpy(swap_BT), step_T])).reshape(len(clips), len(at), -1)
        for swap_BT in swaps_SBT
    ]
    return np.stack(found, axis=1)


def score(
    subject: Subject, settings: ScoreSettings, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return the score of a checkpoint and all that is behind it, a JSON object.

    Args:
        subject: Checkpoint and recordings.
        settings: What is drawn.
        progress: Called with (clips done, clips).

    Raises:
        LoneClipError: A game has one clip (that can be read).
        NoEpisodesError: There is no clip.
    """
    length, chunks = clip_shape(subject.history)
    at = [(chunk + 1) * (length // chunks) - 1 for chunk in range(chunks)]
    plan, empty = plan_clips(subject.recordings, subject.chosen, length, settings)
    total, done = sum(len(group) for groups in plan.values() for group in groups), 0
    reader = ClipReader(subject, length)
    table, broken = _Table(), dict[str, str]()
    try:
        for game, groups in plan.items():
            for number, group in enumerate(groups):
                clips = []
                for window in group:
                    try:
                        clips.append(reader.read(window))
                    except PlayserveError as error:
                        broken[subject.recordings.folders[window.recording]] = str(error)
                        _log.warning("a clip that cannot be decoded is left out: %s", error)
                    done += 1
                    if progress is not None:
                        progress(done, total)
                swaps = [
                    draw_swap(
                        np.random.default_rng([settings.seed, 1 + swap, _number(game), number]), len(clips), length
                    )
                    for swap in range(settings.swaps)
                ]
                table.add(game, clips, swap_kl(subject.answers, clips, swaps, at), np.stack(swaps, axis=1)[:, :, at])
    finally:
        reader.close()
    return {
        "measure": "causality score",
        "definition": DEFINITION,
        **subject.to_json(),
        "settings": {
            **asdict(settings), "clip_frames": length, "chunks": chunks, "chunk_frames": length // chunks,
            "as_in_the_paper": length == _MAX_FRAMES, "swap_share": _SHARE, "group": _GROUP,
            "direction": "KL(recorded || swapped)", "unit": "log(choices), mean over keys, buttons, dx, dy",
        },
        **table.to_json(subject),
        "games_without_clips": empty,
        "left_out": broken,
    }  # fmt: skip


class _Table:
    """The divergences of all clips."""

    def __init__(self) -> None:
        self._games: list[str] = []
        self._windows: list[Window] = []
        self._kl: list[NDArray[np.float64]] = []
        self._swapped: list[NDArray[np.bool_]] = []

    def add(self, game: str, clips: Sequence[Clip], kl_BSCH: NDArray[np.float64], shown_BSC: NDArray[np.int64]) -> None:
        """Take in a group; `shown_BSC` is of which clip the compared frames were shown."""
        self._games += [game] * len(clips)
        self._windows += [clip.window for clip in clips]
        self._kl.append(kl_BSCH)
        self._swapped.append(shown_BSC != np.arange(len(clips))[:, None, None])

    def to_json(self, subject: Subject) -> dict[str, Any]:
        """Return every number."""
        kl_NSCH, swapped_NSC = np.concatenate(self._kl), np.concatenate(self._swapped)
        score_NSC = kl_NSCH @ subject.answers.weights()
        score_N, games = score_NSC.mean((1, 2)), np.array(self._games)
        by_clip = Resampler(self._games)
        recordings = sorted({window.recording for window in self._windows})
        recording_N = np.array([recordings.index(window.recording) for window in self._windows])
        game_of = dict(zip(recording_N.tolist(), self._games, strict=True))
        by_recording = Resampler([game_of[r] for r in range(len(recordings))])

        def both(which: NDArray[np.bool_]) -> dict[str, Summary]:
            values = np.where(which, score_N, np.nan)
            return {
                "by_clip": by_clip.summary(values, np.arange(len(values))),
                "by_recording": by_recording.summary(values, recording_N),
            }

        all_N = np.ones(len(score_N), np.bool_)
        by_swap = score_NSC.mean((0, 2))
        first, parts = 0, {}
        for name, choices, heads in subject.answers.groups:
            nats = float(kl_NSCH[..., first : first + heads].sum(-1).mean())
            parts[name] = {"kl_nats": nats, "score": nats / heads / float(np.log(choices))}
            first += heads
        return {
            "score": float(score_N.mean()),
            "intervals": both(all_N),
            "swap_std": float(by_swap.std(ddof=1)) if len(by_swap) > 1 else None,
            "by_swap": by_swap.tolist(),
            "kl_nats": float(kl_NSCH.sum(-1).mean()),
            "by_group": parts,
            "frame_swapped": _mean(score_NSC[swapped_NSC]),
            "frame_kept": _mean(score_NSC[~swapped_NSC]),
            "by_game": {
                game: {"score": float(score_N[games == game].mean()), "intervals": both(games == game)}
                for game in dict.fromkeys(self._games)
            },
            "clips": [
                {"game": game, "recording": subject.recordings.folders[w.recording], "first": w.first, "score": value}
                for game, w, value in zip(self._games, self._windows, score_N.tolist(), strict=True)
            ],
        }


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None


def _number(game: str) -> int:
    """Return a number that follows from a game's name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(game.encode()).digest()[:4], "big")
