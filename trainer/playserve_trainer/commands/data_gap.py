"""``playserve data gap``: how differently a policy answers to live frames and to the same frames out of recordings."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_trainer.data.gap import Gap, LiveClip
    from playserve_trainer.models.p2p import P2PPolicy

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Measure what video encodings change in a policy's answers, against live frames."

_ENCODINGS = ("rgb", "yuv")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--checkpoint", action="append", required=True, metavar="[NAME=]DIR",
        help="a p2p checkpoint; repeat to compare one trained with augmentation and one without",
    )  # fmt: skip
    live = parser.add_mutually_exclusive_group(required=True)
    live.add_argument("--doom", metavar="SCENARIO", help="live frames of this scenario, as the policy plays it")
    live.add_argument(
        "--recordings", type=Path, metavar="DIR",
        help="recordings whose video.mp4 stands for the screen (without it their training video does)",
    )  # fmt: skip
    parser.add_argument("--clips", type=int, default=4, help="clips of live frames (default %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="frames of a clip (default %(default)s)")
    parser.add_argument("--crf", default="6,12,17", help="qualities of the videos (default %(default)s)")
    parser.add_argument(
        "--draws", type=int, default=3, help="augmentations of each clip; 0: none (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the game and the augmentations (default %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path("gap.json"), help="where all numbers go (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; every number is also in the JSON file."""
    from playserve_client.p2p.video import VideoSettings
    from playserve_trainer import checkpoint
    from playserve_trainer.data.gap import measure_gap
    from playserve_trainer.models.p2p import P2PPolicy

    encodings = [VideoSettings(encoding=name, crf=crf) for name in _ENCODINGS for crf in _qualities(args.crf)]
    found: dict[str, list[Gap]] = {}
    for text in args.checkpoint:
        name, _, folder = text.rpartition("=")
        policy, manifest = checkpoint.load(folder)
        if not isinstance(policy, P2PPolicy):
            raise BadSettingError(f"{folder} holds a policy of {manifest.family}; the gap is measured for p2p only")
        clips = _live_clips(args, policy)
        found[name or Path(folder).name] = measure_gap(policy, clips, encodings, draws=args.draws, seed=args.seed)
    value = {
        "live": args.doom or str(args.recordings), "clips": args.clips, "length": args.length, "seed": args.seed,
        "policies": {name: [dataclasses.asdict(gap) for gap in gaps] for name, gaps in found.items()},
    }  # fmt: skip
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    _print(found)
    return 0


def _qualities(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadSettingError(f"crf {text!r}, wanted whole numbers separated by commas, such as 6,12,17") from None


def _live_clips(args: argparse.Namespace, policy: P2PPolicy) -> list[LiveClip]:
    if args.clips < 1 or args.length < 2:
        raise BadSettingError(f"{args.clips} clips of {args.length} frames, wanted 1 or more of 2 or more")
    clips = list(_doom_clips(args, policy) if args.doom else _recorded_clips(args, policy))
    if not clips:
        raise BadSettingError(f"{args.recordings} has no recording of {args.length} frames: lower --length")
    return clips


def _doom_clips(args: argparse.Namespace, policy: P2PPolicy) -> Iterator[LiveClip]:
    from playserve_client.envs.doom import DoomEnv
    from playserve_trainer.data.gap import play_live

    env = DoomEnv(args.doom, frame_size=policy.config.frame_size)
    try:
        for number in range(args.clips):
            yield play_live(policy, env, args.length, args.seed + number)
    finally:
        env.close()


def _recorded_clips(args: argparse.Namespace, policy: P2PPolicy) -> Iterator[LiveClip]:
    """Take the first frames of each recording, resized as a client would."""
    import numpy as np

    from playserve.errors import PlayserveError
    from playserve.resize import resize
    from playserve_client.p2p.recording import FULL_VIDEO, align, list_recordings, read_recording, video_path
    from playserve_client.p2p.video import VideoReader
    from playserve_trainer.data.gap import LiveClip

    size, made = policy.config.frame_size, 0
    for folder in list_recordings(args.recordings):
        if made == args.clips:
            return
        path = folder / FULL_VIDEO
        try:
            recording = read_recording(folder)
            with VideoReader(path if path.exists() else video_path(folder, size, size)) as reader:
                aligned = align(recording, reader.num_frames)
                if len(aligned) < args.length:
                    continue
                frames = [resize(f, size, size, policy.config.resize) for f in reader.frames(0, args.length)]
        except PlayserveError as error:
            print(f"left out: {error}")
            continue
        at = aligned.instruction[0]
        text = recording.instructions[at].text if at >= 0 else ""
        tokens = np.array([policy.encode_action(action) for action in aligned.actions[: args.length]], np.int64)
        made += 1
        yield LiveClip(np.stack(frames), tokens, text)


def _print(found: Mapping[str, Sequence[Gap]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "policy", "frames", "crf", "augmented", "pixel error", "KL, nats", "of other frames", "other action", box=None
    )
    for name, gaps in found.items():
        for gap in gaps:
            row: list[Any] = [
                name, gap.frames, "" if gap.crf is None else gap.crf, "yes" if gap.augmented else "no",
                f"{gap.pixel_error:.2f}", f"{gap.kl:.3g}", "" if gap.of_other is None else f"{gap.of_other:.1%}",
                f"{gap.changed:.1%}",
            ]  # fmt: skip
            table.add_row(*map(str, row))
    Console().print(table)
