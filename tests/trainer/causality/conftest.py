"""Recordings of a made-up Doom: the bright half of a frame says what is right, for runs of frames; tiny policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from playserve.actions import DesktopAction
from playserve_client.p2p.recording import Source
from playserve_client.p2p.video import VideoSettings
from playserve_client.p2p.writer import RecordingWriter
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.p2p import P2PConfig, P2PPolicy

SIZE = 32
#: By scenario: its goal, and what is right where the left half is bright, and the right half.
TASKS = {
    "basic": ("shoot_monster", (DesktopAction(frozenset({"KeyA"})), DesktopAction(frozenset({"KeyD"})))),
    "take_cover": (
        "dodge",
        (DesktopAction(mouse_dx_px=-24.0), DesktopAction(buttons=frozenset({0}), mouse_dx_px=24.0)),
    ),
}
# So that a frame shows its scenario.
COLOURS = {"basic": (220, 220, 220), "take_cover": (220, 40, 40)}

MakePolicy = Callable[..., P2PPolicy]


def write_doom(
    root: Path, scenario: str, seed: int, frames: int = 50, episode: int = 25, task: bool = True, size: int = SIZE
) -> Path:
    """Write one recording of two episodes; every eleventh action is a wrong one, of the recorder's noise."""
    goal, right = TASKS[scenario]
    rng = np.random.default_rng([seed, len(scenario)])
    sides = np.repeat(rng.integers(0, 2, frames), rng.integers(4, 10, frames))[:frames]
    settings = VideoSettings(encoding="rgb", crf=6, preset="ultrafast", keyframe_every=16)
    with RecordingWriter(
        root / scenario, env="doom", env_subtype=scenario, frame_size=(size, size), video=settings
    ) as writer:
        for number in range(frames):
            picture = np.full((size, size, 3), 40, np.uint8)
            half = size // 2
            picture[:, half * sides[number] : half * (1 + sides[number])] = COLOURS[scenario]
            noise = number % 11 == 0
            action = right[(sides[max(0, number - 1)] + noise) % 2]
            writer.add(
                picture, action, Source.SYSTEM if noise else Source.USER, sidecar={"first": number % episode == 0}
            )
        writer.instruct("play well", 0, frames)
        if task:
            writer.describe(scenario=scenario, goal=goal)
    return writer.path


@pytest.fixture(scope="session")
def record_doom() -> Callable[..., Path]:
    """Return :func:`write_doom`."""
    return write_doom


@pytest.fixture(scope="session")
def doom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return recordings of two scenarios, three of each."""
    root = tmp_path_factory.mktemp("doom")
    for scenario in TASKS:
        for seed in range(3):
            write_doom(root, scenario, seed)
    return root


@pytest.fixture(scope="session")
def make_policy() -> MakePolicy:
    """Return a function that makes a tiny policy, the same each time; `blind`: its image projection is cut."""

    def make(*, blind: bool = False, seed: int = 0, **config: object) -> P2PPolicy:
        values = {
            "size": "tiny", "layers": 2, "width": 32, "heads": 2, "decoder_layers": 1, "decoder_heads": 2,
            "trunk": "conv3", "frame_size": SIZE, "history": (8,), "text_width": 16, "dropout": 0.0, **config,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = P2PPolicy(P2PConfig(**values))  # type: ignore[arg-type]
        if blind:
            with torch.no_grad():
                policy.image.project.weight.zero_()
            policy.image.project.weight.requires_grad_(False)
        return policy.eval()

    return make


@pytest.fixture(scope="session")
def save_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[P2PPolicy], Path]:
    """Return a function that writes a checkpoint and returns its folder."""

    def save(policy: P2PPolicy) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        checkpoint.save(folder, policy, Manifest.describe(policy, samples_seen=123))
        return folder

    return save
