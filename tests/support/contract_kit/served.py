"""Policies that the real server is started with: each of a size of its own, so that each has slots of its own."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from desktop_policy import DesktopPolicy
from tiny_world import TinyWorld

from playserve.specs import Codec, ImageFormat, PolicySpec
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.models.policy import Policy, StepOutput
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

__all__ = [
    "atari", "catch_up", "desktop", "desktop_catch_up", "desktop_live", "frames", "live", "memory", "world",
    "world_agent", "world_desktop",
]  # fmt: skip

SLOW_STEP_S = 0.03


class _Frames(TinyRecurrentPolicy):
    def spec(self) -> PolicySpec:
        spec = super().spec()
        frame = dataclasses.replace(spec.inputs[0], image_format=ImageFormat.RGB8, codecs=(Codec.LZ4, Codec.JPEG))
        return dataclasses.replace(spec, inputs=(frame,))


class _Slow(TinyRecurrentPolicy):
    def step(self, *args: Any, **kwargs: Any) -> StepOutput:
        time.sleep(SLOW_STEP_S)
        return super().step(*args, **kwargs)


def memory() -> Policy:
    """Recurrent and turn based."""
    torch.manual_seed(1)
    return TinyRecurrentPolicy(TinyRecurrentConfig(hidden=24))


def frames() -> Policy:
    """Frames 84 x 84 x 3, plain, LZ4 or JPEG."""
    torch.manual_seed(2)
    return _Frames(TinyRecurrentConfig(hidden=16, observation_shape=(84, 84, 3)))


def live() -> Policy:
    """20 Hz, gap rule SKIP, slow enough that a burst of steps must be merged."""
    torch.manual_seed(3)
    return _Slow(TinyRecurrentConfig(hidden=20, rate_hz=20.0))


def catch_up() -> Policy:
    """20 Hz, gap rule CATCH_UP(8)."""
    torch.manual_seed(4)
    return TinyRecurrentPolicy(TinyRecurrentConfig(hidden=28, rate_hz=20.0, catch_up_frames=8))


class _SlowDesktop(DesktopPolicy):
    def step(self, *args: Any, **kwargs: Any) -> StepOutput:
        time.sleep(SLOW_STEP_S)
        return super().step(*args, **kwargs)


def desktop() -> Policy:
    """Keyboard and mouse, turn based."""
    return DesktopPolicy()


def desktop_live() -> Policy:
    """Keyboard and mouse, 20 Hz, gap rule SKIP, slow."""
    return _SlowDesktop(rate_hz=20.0, state_bytes=8)


def desktop_catch_up() -> Policy:
    """Keyboard and mouse, 20 Hz, gap rule CATCH_UP(4), slow."""
    return _SlowDesktop(rate_hz=20.0, catch_up_frames=4, state_bytes=16)


def atari() -> Policy:
    """An untrained net for Freeway's three actions."""
    torch.manual_seed(5)
    return AtariPolicy(AtariConfig(game="freeway", num_actions=3, width=4, action_names=("NOOP", "UP", "DOWN")))


def world() -> Policy:
    """A world with six actions at 20 Hz, slow enough that actions wait behind each other."""
    return TinyWorld(step_s=SLOW_STEP_S)


def world_desktop() -> Policy:
    """A world that is played with keyboard and mouse."""
    return TinyWorld(side=32, desktop=True)


def world_agent() -> Policy:
    """An agent for the world's six actions, which sees frames 84 x 84 in colour."""
    torch.manual_seed(6)
    return _Frames(TinyRecurrentConfig(hidden=12, observation_shape=(84, 84, 3), num_actions=6))
