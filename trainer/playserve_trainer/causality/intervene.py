"""Does a policy do what its frames ask for, or what its past actions suggest? Measured where the right answer is known.

The score of :mod:`.score` cannot tell a policy that is right from one that is nervous. Here two clips A and B of one
Doom scenario and goal are taken, of two recordings, whose experts now, at the last frame, do different things; and the
policy is asked about the **mixed clip**: the frames of A under the executed actions of B. In Doom frames decide, so
that what A's expert does is right (for goals whose expert remembers something, nearly: they are marked). So we know
not only that an answer moved, but which way:

* (a) *one video, two histories*: KL( frames A, actions A || frames A, actions B ), what the history moved;
* (b) *two videos, one history*: KL( frames B, actions B || frames A, actions B ), what the frames moved;
* *towards the frames*: how often the answer to the mixed clip is what A's expert does now;
* *towards the history*: how often it is what B's expert does now, with B's actions before;
* *copied*: how often it is B's last executed action, where that is not right: what a policy does that repeats itself;
* *own history*: how often the answer to A's own clip is what A's expert does, the most that can be hoped for.

Details. L, frames of a clip, is 20, or the policy's longest history where that is shorter; all L are of one episode and
the memory is empty before them. Answers are the likeliest token of each head given the likeliest before it. An answer
is judged by the decisions in which A's and B's experts differ (keys; buttons; side of the mouse, left, none or right,
on each axis), each decision alike within a pair. Divergences are teacher-forced by the right answer in all three clips,
in the score's unit, and in nats of the whole action. The instruction is A's throughout, so that in (b) nothing but
frames changes. Every pair is taken both ways, so that a policy that always answers the same is right as often as it
follows the history. Intervals are 95%, bootstrap over recordings within a task; a pair is drawn as often as both its
recordings are. "frames_minus_history" is taken in pairs.

A policy that sees no past actions (`past_actions` false) answers the mixed clip as it answers A's own: (a) is exactly 0
by construction, by test, and the report says so.

Shape legend: P pairs, L frames, H heads, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve.errors import BadSettingError, PlayserveError
from playserve_trainer.causality.answers import kl_by_head
from playserve_trainer.causality.clips import Clip, ClipReader, Subject, Window
from playserve_trainer.causality.resampling import Resampler
from playserve_trainer.causality.situations import (
    EXPERTS_WITH_MEMORY,
    Decisions,
    Pair,
    Task,
    differing,
    draw_pairs,
    find_moments,
)
from playserve_trainer.data.episodes import NoEpisodesError

__all__ = ["DEFINITION", "MEASURES", "InterveneSettings", "NoPairsError", "intervene"]

#: Counts up when the same checkpoint and clips would get other numbers.
DEFINITION = 1

#: What is measured of a pair, in the order of a report.
MEASURES = ("towards_frames", "towards_history", "frames_minus_history", "copied", "own_history", "kl_history",
            "kl_frames", "kl_history_nats", "kl_frames_nats")  # fmt: skip

_MAX_FRAMES = 20
_PAIRS_AT_ONCE = 16

_log = logging.getLogger(__name__)


class NoPairsError(NoEpisodesError):
    """No two recordings of one Doom scenario and goal hold moments that want different things."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneSettings:
    """What is drawn.

    Attributes:
        pairs: Most pairs of a task, each taken both ways.
        seed: Of the pairs.
    """

    pairs: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadSettingError(f"intervene: {name} is at least {least}, not {getattr(self, name)}")


def intervene(
    subject: Subject, settings: InterveneSettings, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return what was measured, a JSON object.

    Args:
        subject: Checkpoint and recordings.
        settings: What is drawn.
        progress: Called with (pairs done, pairs).

    Raises:
        NoPairsError: There is no pair.
    """
    length = min(_MAX_FRAMES, subject.history)
    decisions = Decisions(subject.answers.policy.vocabulary)
    tasks, left_out = find_moments(subject.recordings, subject.chosen, length)
    plan, empty = dict[Task, list[Pair]](), dict[str, str]()
    for task, moments in sorted(tasks.items()):
        pairs = draw_pairs(subject.recordings, task, moments, length, settings.pairs, decisions, settings.seed)
        if pairs:
            plan[task] = pairs
        else:
            sources = len(moments.firsts)
            empty[str(task)] = "one recording" if sources < 2 else "its experts always do the same"
    if not plan:
        told = "; ".join(f"{name}: {why}" for name, why in (empty or left_out).items())
        raise NoPairsError(f"{subject.recordings.directory}: no two moments of one Doom task that differ ({told})")
    total, done = sum(map(len, plan.values())), 0
    asker, table = _Asker(subject, length, decisions), _Table()
    try:
        for task, pairs in plan.items():
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                some = pairs[start : start + _PAIRS_AT_ONCE]
                table.add(task, *asker.ask(some))
                done += len(some)
                if progress is not None:
                    progress(done, total)
    finally:
        asker.close()
    if not table.pairs:
        raise NoPairsError(f"{subject.recordings.directory}: no clip of a pair can be decoded")
    past_actions = subject.answers.policy.config.past_actions
    return {
        "measure": "causality intervention",
        "definition": DEFINITION,
        **subject.to_json(),
        "settings": {
            **asdict(settings), "clip_frames": length, "unit": "log(choices), mean over keys, buttons, dx, dy",
        },
        "sees_past_actions": past_actions,
        "note": "" if past_actions else "the policy sees no past actions: kl_history is 0 by construction, and the "
        "answer to a mixed clip is that to the frames' own",
        **table.to_json(subject),
        "tasks_without_pairs": empty,
        "left_out": {**left_out, **asker.broken},
    }  # fmt: skip


class _Asker:
    """Asks about pairs."""

    def __init__(self, subject: Subject, length: int, decisions: Decisions) -> None:
        self._answers, self._decisions = subject.answers, decisions
        self._folders, self._last = subject.recordings.folders, length - 1
        self._reader = ClipReader(subject, length)
        self.broken: dict[str, str] = {}

    def close(self) -> None:
        """Close the videos."""
        self._reader.close()

    def ask(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[dict[str, float]], list[dict[str, Any]]]:
        """Return those pairs that can be read, what is measured of each, and its decisions by name."""
        clips = {window: self._read(window) for window in {window for pair in pairs for window in pair}}
        kept = [pair for pair in pairs if clips[pair.a] is not None and clips[pair.b] is not None]
        if not kept:
            return [], [], []
        of_a, of_b = ([clip for pair in kept if (clip := clips[pair[side]]) is not None] for side in (0, 1))
        right = self._actions(of_a)[:, -1]
        own, mixed, theirs = (self._out(*which) for which in ((of_a, of_a, of_a), (of_a, of_b, of_a),
                                                              (of_b, of_b, of_a)))  # fmt: skip
        own_p, mixed_p, theirs_p = (self._answers.log_probs(out, right) for out in (own, mixed, theirs))
        kl_history_PH, kl_frames_PH = kl_by_head(own_p, mixed_p), kl_by_head(theirs_p, mixed_p)
        own_PH, mixed_PH = self._answers.choose(own), self._answers.choose(mixed)
        weights = self._answers.weights()
        values, details = [], []
        for p in range(len(kept)):
            judged = self._judge(of_a[p], of_b[p], own_PH[p], mixed_PH[p])
            values.append(
                {
                    **{name: _mean(list(found.values())) for name, found in judged.items()},
                    "kl_history": float(kl_history_PH[p] @ weights),
                    "kl_frames": float(kl_frames_PH[p] @ weights),
                    "kl_history_nats": float(kl_history_PH[p].sum()),
                    "kl_frames_nats": float(kl_frames_PH[p].sum()),
                }
            )
            values[-1]["frames_minus_history"] = values[-1]["towards_frames"] - values[-1]["towards_history"]
            details.append(judged)
        return kept, values, details

    def _read(self, window: Window) -> Clip | None:
        try:
            return self._reader.read(window)
        except PlayserveError as error:
            self.broken[self._folders[window.recording]] = str(error)
            _log.warning("a clip that cannot be decoded is left out: %s", error)
            return None

    def _out(self, seen: Sequence[Clip], done: Sequence[Clip], told: Sequence[Clip]) -> Tensor:
        """Return the backbone's answer [P, D] at the last frame of clips of some frames, past actions and texts."""
        texts = [clip.instruction_TW for clip in told if clip.instruction_TW is not None]
        first_PL = torch.stack([clip.first_T for clip in seen])
        return self._answers.out(
            torch.stack([clip.image_TD for clip in seen]),
            torch.stack(texts) if texts else None,
            self._actions(done),
            first_PL,
            [self._last],
        )[:, 0]

    def _actions(self, clips: Sequence[Clip]) -> Tensor:
        return torch.stack([clip.actions_TH for clip in clips])

    def _judge(
        self, a: Clip, b: Clip, own_H: NDArray[np.int64], mixed_H: NDArray[np.int64]
    ) -> dict[str, dict[str, float]]:
        """Return how an answer is judged, by measure and decision; only decisions that tell the two apart."""
        of = self._decisions.of
        right, other = of(a.actions_TH[-1].cpu().numpy()), of(b.actions_TH[-1].cpu().numpy())
        own, mixed = of(own_H), of(mixed_H)
        names, apart = Decisions.names, differing(right, other)
        found = {
            "towards_frames": {names[i]: float(mixed[i] == right[i]) for i in apart},
            "towards_history": {names[i]: float(mixed[i] == other[i]) for i in apart},
            "own_history": {names[i]: float(own[i] == right[i]) for i in apart},
            "copied": dict[str, float](),
        }
        if self._last:  # a clip of one frame has no action before it
            before = of(b.actions_TH[-2].cpu().numpy())
            found["copied"] = {names[i]: float(mixed[i] == before[i]) for i in differing(right, before)}
        return found


class _Table:
    """What was measured of all pairs."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Task, Pair]] = []
        self._values: list[dict[str, float]] = []
        self._details: list[dict[str, Any]] = []

    def add(
        self, task: Task, pairs: Sequence[Pair], values: Sequence[dict[str, float]], details: Sequence[dict[str, Any]]
    ) -> None:
        """Take in pairs of a task."""
        self.pairs += [(task, pair) for pair in pairs]
        self._values += values
        self._details += details

    def to_json(self, subject: Subject) -> dict[str, Any]:
        """Return every number."""
        keys = sorted({(task, window.recording) for task, pair in self.pairs for window in pair})
        sides = [
            np.array([keys.index((task, pair[side].recording)) for task, pair in self.pairs], np.int64)
            for side in (0, 1)
        ]
        resampler = Resampler([task for task, _ in keys])
        values = {name: np.array([value[name] for value in self._values]) for name in MEASURES}

        def report(which: NDArray[np.bool_]) -> dict[str, Any]:
            found: dict[str, Any] = {
                name: resampler.summary(np.where(which, values[name], np.nan), *sides) for name in MEASURES
            }
            moved = (found["kl_history_nats"]["mean"] or 0.0) + (found["kl_frames_nats"]["mean"] or 0.0)
            found["history_share"] = found["kl_history_nats"]["mean"] / moved if moved else None
            found["by_decision"] = {
                name: {
                    measure: resampler.summary(self._of(which, measure, name), *sides)
                    for measure in ("towards_frames", "towards_history", "own_history", "copied")
                }
                for name in Decisions.names
                if any(name in detail["towards_frames"] for detail, w in zip(self._details, which, strict=True) if w)
            }
            its = np.flatnonzero(which)
            found["pairs"] = len(its)
            found["recordings"] = len({int(side[i]) for side in sides for i in its})
            return found

        tasks = [task for task, _ in self.pairs]
        memoryless = np.array([task.goal not in EXPERTS_WITH_MEMORY for task in tasks])
        return {
            "all": report(np.ones(len(tasks), np.bool_)),
            "memoryless_experts": report(memoryless) if memoryless.any() else None,
            "by_task": {
                str(task): {
                    "expert_remembers": task.goal in EXPERTS_WITH_MEMORY,
                    **report(np.array([t == task for t in tasks])),
                }
                for task in dict.fromkeys(tasks)
            },
            "rows": [
                {
                    "task": str(task),
                    "frames_of": [subject.recordings.folders[pair.a.recording], pair.a.first],
                    "actions_of": [subject.recordings.folders[pair.b.recording], pair.b.first],
                    **{name: None if np.isnan(v := value[name]) else v for name in MEASURES},
                }
                for (task, pair), value in zip(self.pairs, self._values, strict=True)
            ],
        }

    def _of(self, which: NDArray[np.bool_], measure: str, decision: str) -> NDArray[np.float64]:
        """Return a measure of one decision for each pair, nan where it does not count."""
        return np.array(
            [
                detail[measure].get(decision, np.nan) if w else np.nan
                for detail, w in zip(self._details, which, strict=True)
            ]
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
