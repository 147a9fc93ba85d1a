"""The gap between training and play: what a policy answers to live frames, and to what recordings give back of them.

A video codec changes a frame a little; which encoding (RGB, or YUV with its coarser colours) and how well it was
compressed decide how much, and a policy that leans on such traces plays worse than it learnt. The gap is the divergence
KL(live || read back) of the policy's answers under the same past actions.

Shape legend: T frames of a clip, S side, H heads of an action, A choices of a head.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve_client.p2p.video import VideoReader, VideoSettings, VideoWriter
from playserve_trainer.data.p2p_augment import Augmenter
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.tokens import groups
from playserve_trainer.models.policy import INSTRUCTION, TARGETS, UNKNOWN_ACTION, Memory

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Gap", "LiveClip", "measure_gap", "play_live", "read_back"]

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LiveClip:
    """Frames as a client captured them, and what was done upon them.

    Attributes:
        frames_TSS3: uint8 [T, S, S, 3].
        tokens_TH: int64 [T, H], the policy's tokens of the actions.
        text: The instruction; "": none.
    """

    frames_TSS3: Frames
    tokens_TH: NDArray[np.int64]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far the answers to one kind of frames are from those to live ones.

    Attributes:
        frames: "rgb" or "yuv", "live" (the same frames, augmented only), or "other": frames of another clip, the
            largest gap that there can be.
        crf: Quality of the encoding, None where there is none.
        augmented: Whether the frames were augmented after they were read, as in training.
        pixel_error: Mean absolute difference from the live frames, of 255.
        kl: Mean divergence of a step's whole action, nats.
        kl_by_group: The same by keys, buttons, dx and dy; they add up to `kl`.
        changed: Share of steps whose likeliest action is another one.
        of_other: `kl` as a share of that of "other" frames, None with one clip.
    """

    frames: str
    crf: int | None
    augmented: bool
    pixel_error: float
    kl: float
    kl_by_group: dict[str, float] = field(default_factory=dict)
    changed: float = 0.0
    of_other: float | None = None


def read_back(frames_TSS3: Frames, settings: VideoSettings, fps: float = 20.0) -> Frames:
    """Return the frames as a recording with such a video gives them back."""
    with tempfile.TemporaryDirectory(prefix="playserve-gap-") as folder:
        path = Path(folder) / "frames.mp4"
        height, width = frames_TSS3.shape[1:3]
        with VideoWriter(path, width, height, fps, settings) as writer:
            for frame in frames_TSS3:
                writer.write(frame)
        with VideoReader(path) as reader:
            return reader.read(0, len(frames_TSS3))


def measure_gap(
    policy: P2PPolicy,
    clips: Sequence[LiveClip],
    encodings: Iterable[VideoSettings],
    *,
    draws: int = 3,
    seed: int = 0,
) -> list[Gap]:
    """Return the gap of each encoding, plain and augmented, and of the two that it is to be seen between.

    Args:
        policy: In eval mode.
        clips: Live frames.
        encodings: How videos are made.
        draws: Augmentations drawn for each clip; 0: none.
        seed: Of the augmentations.
    """
    live = [_answers(policy, clip, clip.frames_TSS3) for clip in clips]
    augment = Augmenter()

    def augmented(frames: Sequence[Frames], draw: int) -> list[Frames]:
        return [augment(f, np.random.default_rng([seed, draw, number])) for number, f in enumerate(frames)]

    def gap(name: str, crf: int | None, versions: Sequence[Sequence[Frames]], is_augmented: bool) -> Gap:
        tallies = []
        for version in versions:
            for clip, wanted, frames in zip(clips, live, version, strict=True):
                error = float(np.abs(frames.astype(np.int16) - clip.frames_TSS3).mean())
                tallies.append((len(frames), error, *_compare(policy, wanted, _answers(policy, clip, frames))))
        weights = np.array([tally[0] for tally in tallies], np.float64)
        means = [float(np.average([tally[i] for tally in tallies], weights=weights)) for i in (1, 3)]
        kl_H = np.average([tally[2] for tally in tallies], axis=0, weights=weights)
        by_group = _by_group(policy, kl_H)
        return Gap(
            frames=name, crf=crf, augmented=is_augmented, pixel_error=means[0], kl=sum(by_group.values()),
            kl_by_group=by_group, changed=means[1],
        )  # fmt: skip

    own = [clip.frames_TSS3 for clip in clips]
    found = []
    if draws:
        found.append(gap("live", None, [augmented(own, draw) for draw in range(draws)], True))
    for settings in encodings:
        back = [read_back(frames, settings) for frames in own]
        found.append(gap(settings.encoding, settings.crf, [back], False))
        if draws:
            versions = [augmented(back, draw) for draw in range(draws)]
            found.append(gap(settings.encoding, settings.crf, versions, True))
    if len(clips) > 1:
        others = [np.resize(own[i - 1], own[i].shape) for i in range(len(own))]
        found.append(gap("other", None, [others], False))
        largest = max(found[-1].kl, sys.float_info.min)
        found = [dataclasses.replace(one, of_other=one.kl / largest) for one in found]
    return found


@torch.no_grad()
def play_live(policy: P2PPolicy, env: gymnasium.Env[Any, Any], length: int, seed: int) -> LiveClip:
    """Have the policy play, and return what it saw and did; an episode that ends is followed by the next.

    Args:
        policy: In eval mode.
        env: Gives {"frame": uint8 [S, S, 3]} and takes desktop actions, as the doom environment does.
        length: T.
        seed: Of the game and of the policy's draws.
    """
    device, generator = policy.device(), torch.Generator().manual_seed(seed)
    pools = {
        name: torch.zeros(2, *tensor.shape, dtype=tensor.dtype, device=device)  # slot 0 is scratch
        for name, tensor in policy.state_layout().items()
    }
    slot_B, frames, tokens = torch.tensor([1], device=device), [], []

    def sample(logits_BA: Tensor, head: int) -> Tensor:
        chances = logits_BA.float().softmax(-1).cpu()
        return torch.multinomial(chances, 1, generator=generator).squeeze(1).to(device)

    observation, info = env.reset(seed=seed)
    text, fresh = str(info.get("instruction", "")), True
    vector = policy.embed_instruction(text).to(device) if INSTRUCTION in policy.context_inputs() else None
    executed_BH = torch.full((1, len(policy.heads())), UNKNOWN_ACTION, device=device)
    for _ in range(length):
        frames.append(observation["frame"])
        inputs = {"frame": torch.from_numpy(np.ascontiguousarray(observation["frame"])).to(device).unsqueeze(0)}
        if vector is not None:
            inputs[INSTRUCTION] = vector.unsqueeze(0)
        memory = Memory(pools, slot_B, torch.tensor([fresh], device=device))
        executed_BH = policy.step(inputs, executed_BH, memory, sample).actions_BH
        tokens.append(executed_BH[0].cpu().numpy())
        uniforms = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        observation, _, terminated, truncated, _ = env.step(policy.decode_action(tokens[-1].tolist(), uniforms))
        fresh = bool(terminated or truncated)
        if fresh:
            observation, _ = env.reset()
            executed_BH = torch.full_like(executed_BH, UNKNOWN_ACTION)
    return LiveClip(np.stack(frames), np.stack(tokens), text)


@torch.no_grad()
def _answers(policy: P2PPolicy, clip: LiveClip, frames_TSS3: Frames) -> list[Tensor]:
    """Return the log-probabilities [T, A] of each head, given the actions that were really done."""
    device = policy.device()
    targets = torch.from_numpy(clip.tokens_TH).to(device).unsqueeze(0)
    executed = torch.cat([torch.full_like(targets[:, :1], UNKNOWN_ACTION), targets[:, :-1]], 1)
    inputs = {"frame": torch.from_numpy(np.ascontiguousarray(frames_TSS3)).to(device).unsqueeze(0), TARGETS: targets}
    if INSTRUCTION in policy.context_inputs():
        vector = policy.embed_instruction(clip.text).to(device)
        inputs[INSTRUCTION] = vector.expand(1, targets.shape[1], -1)
    first = torch.zeros(targets.shape[:2], dtype=torch.bool, device=device)
    first[:, 0] = True
    return [head[0].double().log_softmax(-1) for head in policy(inputs, executed, first).logits]


def _compare(policy: P2PPolicy, live: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[NDArray[np.float64], float]:
    """Return the mean divergence of each head [H], and the share of steps whose likeliest action differs."""
    kl_H = np.array([float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(live, other, strict=True)])
    changed = torch.stack([p.argmax(-1) != q.argmax(-1) for p, q in zip(live, other, strict=True)]).any(0)
    return kl_H, float(changed.float().mean())


def _by_group(policy: P2PPolicy, kl_H: NDArray[np.float64]) -> dict[str, float]:
    by_group, first = {}, 0
    for name, _, heads in groups(policy.vocabulary):
        by_group[name] = float(kl_H[first : first + heads].sum())
        first += heads
    return by_group
