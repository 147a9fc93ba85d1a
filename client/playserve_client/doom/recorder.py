"""One recording of Doom: episodes that an expert plays, perturbed now and then, in Open P2P's format."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve.resize import HAMMING_V1
from playserve_client.doom.experts import EXPERT_VERSION, make_expert, needs_of
from playserve_client.doom.facts import FRAMES_PER_S
from playserve_client.doom.game import PROBES
from playserve_client.doom.maps import EVALUATION_SEED
from playserve_client.doom.noise import Perturbation
from playserve_client.doom.scenarios import DEGREES_PER_PIXEL, TICS_PER_FRAME, scenario_of
from playserve_client.envs.doom import MAX_STEPS, DoomEnv
from playserve_client.p2p.recording import Source
from playserve_client.p2p.video import VideoSettings
from playserve_client.p2p.writer import RecordingWriter

__all__ = ["SEEDS_PER_RECORDING", "DoomRecorder", "DoomSettings"]

#: Seeds that belong to one recording; it holds at most so many episodes.
SEEDS_PER_RECORDING = 64

_REPORT_FRAMES = 100
# Keeps the noise apart from everything else that is seeded with the episode's seed.
_NOISE_STREAM = 0x6E6F6973
# The game draws at 320x240.
_SIZES = (48, 64, 96, 128, 192)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoomSettings:
    """What is recorded.

    Attributes:
        scenario: A scenario.
        goal: One of its goals.
        size: Side of the frames, pixels.
        full_video: Whether the game's own screens go to video.mp4.
        epsilon: Share of the frames on which something random is done instead of what the expert chose; that is
            recorded as the system's, which is history and no target.
        noise_length: One random action is held for 1 to this many frames.
        min_frames: A recording is of whole episodes until it has so many frames; 0: of one.
        max_steps: Frames after which an episode is cut.
        seed_start: Seed of the first episode of recording 0.
        encoding: "yuv" or "rgb".
        crf: Quality of the video, 0 to 51.
        preset: Of x264.
    """

    scenario: str
    goal: str
    size: int = 96
    full_video: bool = False
    epsilon: float = 0.1
    noise_length: int = 8
    min_frames: int = 200
    max_steps: int = MAX_STEPS
    seed_start: int = 10_000
    encoding: str = "yuv"
    crf: int = 12
    preset: str = "veryfast"

    def __post_init__(self) -> None:
        scenario_of(self.scenario).goal(self.goal)
        if self.size not in _SIZES:
            raise BadSettingError(f"frames of {self.size} pixels, wanted one of {', '.join(map(str, _SIZES))}")
        if not 0.0 <= self.epsilon < 1.0:
            raise BadSettingError(f"epsilon is at least 0 and below 1, not {self.epsilon}")
        if self.noise_length < 1 or self.min_frames < 0 or self.max_steps < 1 or self.seed_start < 0:
            raise BadSettingError(
                f"noise_length and max_steps are at least 1, min_frames and seed_start 0, not {self.noise_length}, "
                f"{self.max_steps}, {self.min_frames}, {self.seed_start}"
            )
        VideoSettings(encoding=self.encoding, crf=self.crf, preset=self.preset)

    def seeds(self, index: int) -> range:
        """Return the seeds that belong to recording `index`; BadSettingError where evaluations use them."""
        first = self.seed_start + index * SEEDS_PER_RECORDING
        if first + SEEDS_PER_RECORDING > EVALUATION_SEED:
            raise BadSettingError(f"recording {index} would use seeds from {EVALUATION_SEED}, which are evaluated on")
        return range(first, first + SEEDS_PER_RECORDING)


class DoomRecorder:
    """Plays and writes recordings of one scenario and goal. Takes the fields of :class:`DoomSettings`; close it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings_ = DoomSettings(**settings)
        scenario = scenario_of(settings_.scenario)
        needs = needs_of(scenario, settings_.goal)
        self._env = DoomEnv(
            settings_.scenario,
            goal=settings_.goal,
            frame_size=settings_.size,
            phrasing="training",
            max_steps=settings_.max_steps,
            record_labels=needs.depth or needs.walls,
        )
        self._expert = make_expert(scenario, settings_.goal)

    def close(self) -> None:
        """End the game."""
        self._env.close()

    def record(self, index: int, folder: Path, on_frames: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Write recording `index` into `folder`; return what it holds, a JSON value.

        Args:
            index: Its number; what is played follows from it and the settings.
            folder: Gets a folder named by a uuid.
            on_frames: Told now and then how many more frames are written.
        """
        settings, env = self.settings, self._env
        episodes: list[dict[str, Any]] = []
        with RecordingWriter(
            folder,
            env="doom",
            env_subtype=settings.scenario,
            env_version=version("vizdoom"),
            fps=FRAMES_PER_S,
            frame_size=(settings.size, settings.size),
            full_video=settings.full_video,
            video=VideoSettings(encoding=settings.encoding, crf=settings.crf, preset=settings.preset),
            full=VideoSettings(preset=settings.preset) if settings.full_video else None,
        ) as writer:
            for seed in settings.seeds(index):
                episodes.append(self._play(writer, seed, on_frames))
                if writer.num_frames >= settings.min_frames:
                    break
            summary = {
                "index": index,
                "scenario": settings.scenario,
                "goal": settings.goal,
                "frames": writer.num_frames,
                "perturbed": sum(episode["perturbed"] for episode in episodes),
                "episodes": episodes,
                "settings": asdict(settings),
                "expert": f"doom-{env.goal.name}",
                "expert_version": EXPERT_VERSION,
                "probes": [name.lower() for name in PROBES],
                "tics_per_frame": TICS_PER_FRAME,
                "degrees_per_pixel": DEGREES_PER_PIXEL,
                "resize_id": HAMMING_V1,
                "packages": {name: version(name) for name in ("playserve", "vizdoom", "av", "pillow", "numpy")},
                "recorded_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            writer.describe(**summary)
        return summary

    def _play(self, writer: RecordingWriter, seed: int, on_frames: Callable[[int], None]) -> dict[str, Any]:
        settings, env, expert = self.settings, self._env, self._expert
        rng = np.random.default_rng([_NOISE_STREAM, seed])
        # A shot that nobody asked for would be the opposite of the goal.
        noise = Perturbation(
            env.scenario, settings.epsilon, settings.noise_length, rng, attack=settings.goal != "hold_fire"
        )
        observation, info = env.reset(seed=seed)
        expert.reset()
        first = writer.num_frames
        full = settings.full_video
        # Held as the episode begins: nothing. Upon the last frame of an episode before it nobody chose that, so that
        # it is the system's.
        self._add(writer, observation["frame"], DesktopAction(), Source.SYSTEM, full, {"first": True})
        perturbed, terminated, truncated = 0, False, False
        while not (terminated or truncated):
            chosen = expert.act(env.view())
            instead = noise.next()
            action, source = (chosen, Source.USER) if instead is None else (instead, Source.SYSTEM)
            perturbed += instead is not None
            observation, reward, terminated, truncated, info = env.step(action)
            row = {"reward": reward, "terminated": terminated, "truncated": truncated, "perturbed": instead is not None}
            self._add(writer, observation["frame"], action, source, full, row)
            if env.steps % _REPORT_FRAMES == 0:
                on_frames(_REPORT_FRAMES)
        frames = writer.num_frames - first
        on_frames(frames - env.steps // _REPORT_FRAMES * _REPORT_FRAMES)
        writer.instruct(env.instruction, first, frames, version="playserve-doom")
        return {
            "seed": seed,
            "start_frame": first,
            "frames": frames,
            "instruction": env.instruction,
            "score": env.score,
            "terminated": terminated,
            "truncated": truncated,
            "perturbed": perturbed,
            "facts": info["episode_facts"],
        }

    def _add(
        self,
        writer: RecordingWriter,
        frame: Any,
        action: DesktopAction,
        source: Source,
        full: bool,
        row: Mapping[str, float | int | bool],
    ) -> None:
        values = {"first": False, "reward": 0.0, "terminated": False, "truncated": False, "perturbed": False, **row}
        values.update(zip((name.lower() for name in PROBES), self._env.probes().tolist(), strict=True))
        writer.add(frame, action, source, full_frame=self._env.screen() if full else None, sidecar=values)
