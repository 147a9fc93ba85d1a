"""One recorded Atari episode: the expert chooses, noise now and then acts instead, everything is kept."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np

from playserve.errors import BadSettingError
from playserve_client.envs.atari import MAX_STEPS, AtariEnv
from playserve_client.experts import make_expert
from playserve_client.recordings import Episode, EpisodeMeta

__all__ = ["AtariRecorder", "AtariSettings"]

#: Steps between two reports of progress.
_REPORT_STEPS = 100
# Keeps the noise apart from everything else that is seeded with the episode's seed.
_NOISE_STREAM = 0x6E6F6973


@dataclass(frozen=True, slots=True, kw_only=True)
class AtariSettings:
    """What is recorded.

    Attributes:
        game: A game that has an expert.
        epsilon: Share of the steps that execute a random action; the label is the expert's all the same.
        noise_length: One random action is held for 1 to this many steps. Single ones are soon mended: only after runs
            of them does a learner see how the expert comes back from where the learner's own errors will take it.
        stickiness: Probability that an emulator frame repeats the previous action.
        max_steps: Steps after which an episode is cut (truncated).
        serve_delay: Where the game waits for a serve (Breakout), one random action is held for 0 to this many steps
            first. The expert seldom loses a ball: else a learner would see one serve in a thousand steps.
    """

    game: str
    epsilon: float = 0.03
    noise_length: int = 8
    stickiness: float = 0.0
    max_steps: int = MAX_STEPS
    serve_delay: int = 16

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon <= 1.0:
            raise BadSettingError(f"epsilon is between 0 and 1, not {self.epsilon}")
        if self.noise_length < 1 or self.serve_delay < 0:
            raise BadSettingError(
                f"noise_length is at least 1 and serve_delay 0, not {self.noise_length}, {self.serve_delay}"
            )


class AtariRecorder:
    """Plays episodes of one game with its expert. Takes the fields of :class:`AtariSettings`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = AtariSettings(**settings)
        # One process records one episode at a time; OpenCV's own threads would only fight the other workers.
        cv2.setNumThreads(1)
        self._env = AtariEnv(self.settings.game, stickiness=self.settings.stickiness, max_steps=self.settings.max_steps)
        self._expert = make_expert(self.settings.game)

    def record(self, seed: int, on_steps: Callable[[int], None] = lambda _: None) -> Episode:
        """Return the episode of `seed`; `on_steps` is told now and then how many more steps are done."""
        env, expert = self._env, self._expert
        noise = _Noise(self.settings, len(env.action_names), seed)
        env.reset(seed=seed)
        expert.reset()
        frames, probes, labels, executed, rewards = [], [], [], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            ram = env.ram()
            label = expert.act(ram)
            action = noise.action(label, serving=expert.serving(ram))
            frames.append(env.single_frame())
            probes.append(ram)
            labels.append(label)
            executed.append(action)
            _, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            if len(labels) % _REPORT_STEPS == 0:
                on_steps(_REPORT_STEPS)
        on_steps(len(labels) % _REPORT_STEPS)
        meta = EpisodeMeta(
            env="atari",
            game=env.game,
            seed=seed,
            steps=len(labels),
            score=env.score,
            terminated=terminated,
            truncated=truncated,
            action_names=env.action_names,
            frame_skip=env.frame_skip,
            stickiness=env.stickiness,
            noops=env.noops,
            epsilon=self.settings.epsilon,
            expert=expert.name,
            expert_version=expert.version,
            packages={name: version(name) for name in ("playserve", "ale-py", "opencv-python-headless", "numpy")},
            recorded_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            extra={
                "max_steps": env.max_steps,
                "noise_length": self.settings.noise_length,
                "serve_delay": self.settings.serve_delay,
            },
        )
        return Episode(
            meta=meta,
            frames=np.stack(frames),
            probes=np.stack(probes),
            label=np.array(labels, np.int16),
            executed=np.array(executed, np.int16),
            reward=np.array(rewards, np.float32),
        )


class _Noise:
    """Decides where an episode executes a random action, as a function of its seed."""

    def __init__(self, settings: AtariSettings, actions: int, seed: int) -> None:
        self._noise_length = settings.noise_length
        self._serve_delay = settings.serve_delay
        self._actions = actions
        self._random = np.random.default_rng([_NOISE_STREAM, seed])
        self._held, self._left, self._served = 0, 0, True
        # With this chance a step begins a run; then the runs fill a share `epsilon` of the steps.
        mean_length, epsilon = (1 + settings.noise_length) / 2, settings.epsilon
        self._chance = epsilon / (epsilon + mean_length * (1 - epsilon))

    def action(self, label: int, *, serving: bool) -> int:
        """Return the action to execute where the expert chose `label`."""
        if serving and self._served:
            self._left = int(self._random.integers(self._serve_delay + 1))
            # Any action but the serve.
            self._held = (label + 1 + int(self._random.integers(self._actions - 1))) % self._actions
        elif not self._left and self._random.random() < self._chance:
            self._left = int(self._random.integers(1, self._noise_length + 1))
            self._held = int(self._random.integers(self._actions))
        self._served = not serving
        if not self._left:
            return label
        self._left -= 1
        return self._held
