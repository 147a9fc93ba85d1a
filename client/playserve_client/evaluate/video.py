"""Replays: an episode is its seed and its actions, so nothing is filmed during play; the film is made afterwards.

Films are animated GIFs, which any browser shows, and are cut after so many steps; what was cut is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import Action, DesktopAction
from playserve.errors import BadSettingError, DataLossError
from playserve_client.envs.registry import make_env
from playserve_client.evaluate.families.base import Progress, Recordings
from playserve_client.evaluate.journal import Journal, Result
from playserve_client.evaluate.plan import EnvChoice, Row, Settings

__all__ = ["Video", "choose_episodes", "record_videos", "write_gif"]

_MAX_STEPS, _STRIDE, _MAX_WIDTH = 1500, 2, 320


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """One film.

    Attributes:
        path: Relative to the run's folder.
        row: Key of the episode's row.
        number: The episode's number.
        score: Its score.
        steps: Its steps.
        shown_steps: Steps that the film shows; less than `steps` where it was cut.
        seconds: How long the film runs.
    """

    path: str
    row: str
    number: int
    score: float
    steps: int
    shown_steps: int
    seconds: float


def choose_episodes(settings: Settings, journal: Journal, count: int) -> list[Result]:
    """Return the best episode of the sampled agent, then its first, then the next best, `count` in all."""
    kinds = [kind for kind in ("sample", "argmax", "expert", "random") if _of_kind(settings, journal, kind)]
    if not kinds:
        return []
    results = _of_kind(settings, journal, kinds[0])
    first = results[0]
    best = sorted(results, key=lambda result: -result.score)
    chosen = [best[0], first, *best[1:]]
    return list({(r.row, r.number): r for r in chosen}.values())[:count]


def _of_kind(settings: Settings, journal: Journal, kind: str) -> list[Result]:
    planned = [
        a for row in settings.rows() if row.kind == kind for a in row.assignments(settings.seed_start, settings.shard)
    ]
    return [journal.results[a.row, a.number] for a in planned if journal.has(a)]


def record_videos(
    settings: Settings,
    journal: Journal,
    count: int,
    progress: Progress,
    *,
    render: Mapping[str, Any],
    step_s: Callable[[Any], float],
) -> Recordings:
    """Film `count` episodes into ``OUT/videos``.

    Args:
        settings: Of the run.
        journal: Its episodes.
        count: Films.
        progress: Told of each.
        render: What the factory takes to make an environment that can be filmed, where it takes that.
        step_s: Returns how long a step of an environment is for people.
    """
    made = Recordings()
    rows = {row.key: row for row in settings.rows()}
    for result in choose_episodes(settings, journal, count):
        try:
            made.videos.append(asdict(_film(settings, journal, rows[result.row], result, render, step_s)))
        except (BadSettingError, DataLossError, FileNotFoundError) as error:
            made.notes.append(f"no video of {result.row} episode {result.number}: {error}")
        progress(result.steps, 1)
    return made


def _film(
    settings: Settings,
    journal: Journal,
    row: Row,
    result: Result,
    render: Mapping[str, Any],
    step_s: Callable[[Any], float],
) -> Video:
    actions = journal.actions(result)
    frames, score = [], 0.0
    env = _make(settings.env, row.stickiness, render)
    seconds = step_s(env)
    for step, (frame, reward) in enumerate(_replay(env, result.env_seed, actions)):
        score += reward
        if step < _MAX_STEPS and step % _STRIDE == 0 and frame is not None:
            frames.append(_shrunk(frame))
    if score != result.score or len(actions) != result.steps:
        raise DataLossError(
            f"replayed it scores {score:g} in {len(actions)} steps, played {result.score:g} in {result.steps}: the "
            "environment is not a function of its seed and its actions"
        )
    if not frames:
        raise BadSettingError("the environment renders nothing; it needs rgb(), or render_mode 'rgb_array'")
    name = f"{settings.policy or 'baseline'}-{row.key}-{result.number:06d}.gif"
    path = journal.out / "videos" / name
    frame_ms = max(20, round(seconds * _STRIDE * 100) * 10)
    write_gif(path, frames, frame_ms)
    return Video(
        path=f"videos/{name}",
        row=row.key,
        number=result.number,
        score=result.score,
        steps=result.steps,
        shown_steps=min(result.steps, _MAX_STEPS),
        seconds=len(frames) * frame_ms / 1000,
    )


def _make(env_choice: EnvChoice, stickiness: float | None, render: Mapping[str, Any]) -> Any:
    options = env_choice.factory_options(stickiness)
    try:
        return make_env(env_choice.family, env_choice.game, **{**render, **options})
    except TypeError:  # a factory that takes no render_mode
        return make_env(env_choice.family, env_choice.game, **options)


def _replay(env: Any, env_seed: int, actions: Sequence[Action]) -> Iterator[tuple[NDArray[np.uint8] | None, float]]:
    """Play an episode again; yield (frame before the step, uint8 [H, W, 3] or None, reward). Closes `env`."""
    first = int(getattr(getattr(env, "action_space", None), "start", 0))
    try:
        env.reset(seed=env_seed)
        for step, action in enumerate(actions):
            frame = _render(env) if step < _MAX_STEPS and step % _STRIDE == 0 else None
            _, reward, _, _, _ = env.step(action if isinstance(action, DesktopAction) else action + first)
            yield frame, float(reward)
    finally:
        env.close()


def _render(env: Any) -> NDArray[np.uint8] | None:
    if hasattr(env, "rgb"):
        frame = env.rgb()
    elif getattr(env, "render_mode", None) == "rgb_array":
        frame = env.render()
    else:
        return None
    return frame if isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.dtype == np.uint8 else None


def _shrunk(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    stride = -(-frame.shape[1] // _MAX_WIDTH)
    return frame[::stride, ::stride, :3]


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]], frame_ms: int) -> None:
    """Write frames, uint8 [H, W, 3], as an animated GIF that loops; exact where they have at most 256 colours."""
    from PIL import Image

    packed = [frame.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32) for frame in frames]
    colours = np.unique(np.concatenate([np.unique(frame) for frame in packed]))
    if len(colours) <= 256:  # an Atari screen has at most 128: the film is exact
        palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8).tobytes()
        images = []
        for frame in packed:
            image = Image.fromarray(np.searchsorted(colours, frame).astype(np.uint8))
            image.putpalette(palette)
            images.append(image)
    else:
        images = [Image.fromarray(frame).quantize(256) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=frame_ms, loop=0)
