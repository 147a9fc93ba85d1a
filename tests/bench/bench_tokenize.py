"""Budget of tokenising: frames/s of writing a token cache against those of decoding the same games alone.

The games are written here, by the recorders' own writers: Doom-like video of moving pictures, Atari-like episodes, and
NetHack screens. Both sides read them by the same source, in as many threads; writing a cache also encodes every frame,
and writes, syncs and closes the files. The two run in turns in each round; the ratio of a round is cache / decode. What
encoding takes by itself is told beside it. The weights are random: what a net costs does not hang on them.

    python tests/bench/bench_tokenize.py --out runs/bench/tokenize.json
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine, report_console, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from playserve.actions import DesktopAction
from playserve_client.nethack.keys import ACTION_KEYS
from playserve_client.nethack.shards import GameMeta, ShardWriter
from playserve_client.nethack.tty import TtyChunk
from playserve_client.p2p.recording import Source
from playserve_client.p2p.video import VideoSettings
from playserve_client.p2p.writer import RecordingWriter
from playserve_client.recordings import Episode, EpisodeMeta, episode_path, write_episode
from playserve_trainer.data.tokens.cache import write_cache
from playserve_trainer.data.tokens.filling import tokenise
from playserve_trainer.data.tokens.games import GameSource
from playserve_trainer.data.tokens.sources import open_games
from playserve_trainer.models.device import resolve_device
from playserve_trainer.models.tokenizer import (
    NetHackTokenizer,
    NetHackTokenizerConfig,
    Tokenizer,
    TokenizerConfig,
    VQTokenizer,
)
from playserve_trainer.train.compute import set_threads

#: Least share of the decoder's frames/s.
GOAL = 0.8
# Relative spread (interquartile range over median) of decoding beyond which nothing is concluded.
_JITTER = 0.3

_UNITS = 4
# Frames of a kind's unit in those of a video's: so many that what a cache costs once, such as its syncs, is not what is
# measured.
_TIMES = {"doom": 1, "atari": 2, "nethack": 20}


def _moving(frames: int, size: int, channels: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return uint8 [frames, size, size, channels]: a textured wall that drifts, and three squares that move."""
    wall = np.kron(rng.integers(40, 140, (size // 4 + 1, size // 2 + 1, channels)), np.ones((4, 4, 1)))
    out = np.empty((frames, size, size, channels), np.uint8)
    speeds = rng.integers(-3, 4, (3, 2))
    for number, frame in enumerate(out):
        frame[:] = np.roll(wall, number, axis=1)[:size, :size]
        for square, speed in enumerate(speeds):
            row, column = (np.array([17, 31]) * (square + 1) + number * speed) % (size - 6)
            frame[row : row + 6, column : column + 6] = 250 - 60 * square
    return out


def _record_doom(root: Path, units: int, frames: int, size: int) -> None:
    rng = np.random.default_rng(0)
    keys = [frozenset[str](), frozenset({"KeyA"}), frozenset({"KeyD"})]
    for _ in range(units):
        with RecordingWriter(root, env="doom", frame_size=(size, size), video=VideoSettings(crf=12)) as writer:
            for frame in _moving(frames, size, 3, rng):
                writer.add(frame, DesktopAction(keys=keys[int(rng.integers(3))]), Source.USER)


def _record_atari(root: Path, units: int, frames: int) -> None:
    rng = np.random.default_rng(0)
    for seed in range(units):
        label = rng.integers(0, 4, frames).astype(np.int16)
        meta = EpisodeMeta(
            env="atari", game="bench", seed=seed, steps=frames, score=0.0, terminated=True, truncated=False,
            action_names=("NOOP", "FIRE", "RIGHT", "LEFT"), frame_skip=4,
        )  # fmt: skip
        episode = Episode(
            meta=meta, frames=_moving(frames, 84, 1, rng)[..., 0], label=label, executed=label,
            reward=np.zeros(frames, np.float32), probes=np.zeros((frames, 128), np.uint8),
        )  # fmt: skip
        write_episode(episode_path(root, "atari", "bench", seed), episode)


def _record_nethack(root: Path, units: int, frames: int) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(root, max_shard_bytes=1 << 30) as writer:
        for seed in range(units):
            chars = np.repeat(rng.integers(32, 127, (1, 24, 80), dtype=np.uint8), frames, 0)
            cursor = np.clip(np.cumsum(rng.integers(-1, 2, (frames, 2)), 0) + np.array([12, 40]), 0, [23, 79]).astype(
                np.uint8
            )
            chars[np.arange(frames), cursor[:, 0], cursor[:, 1]] = ord("@")
            keys = rng.choice(np.array(ACTION_KEYS[:8], np.uint8), frames)
            writer.begin(GameMeta(name=f"{seed}", character="mon", source="bench", score=0, steps=frames, seed=seed))
            zeros, ones = np.zeros(frames, np.int32), np.ones(frames, np.bool_)
            writer.append(TtyChunk(chars, np.zeros_like(chars, np.int8), cursor, keys, zeros, ones))
            writer.end()


def _games(kind: str, root: Path, args: argparse.Namespace) -> GameSource:
    """Write the games of a kind, and return them as a cache reads them."""
    folder, frames = root / kind, args.frames * _TIMES[kind]
    folder.mkdir()
    if kind == "doom":
        _record_doom(folder, _UNITS, frames, args.video)
        return open_games(folder, "doom", size=64)
    if kind == "atari":
        _record_atari(folder, _UNITS, frames)
        return open_games(folder, "bench")
    _record_nethack(folder, _UNITS, frames)
    return open_games(folder, "nethack")


def _tokenizer(kind: str, tokens: int, device: torch.device) -> Tokenizer:
    if kind == "nethack":
        return NetHackTokenizer(NetHackTokenizerConfig())
    height, channels = (64, 3) if kind == "doom" else (84, 1)
    config = TokenizerConfig(height=height, width=height, channels=channels, tokens=tokens)
    tokenizer = VQTokenizer(config).eval().to(device)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        tokenizer.codebook.table.normal_()
    return tokenizer


def _decode(games: GameSource, workers: int) -> int:
    """Read every unit and keep nothing; return the frames."""
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda unit: sum(len(episode.frames_NHWC) for episode in games.read(unit)), range(len(games)))
        return sum(done)


def _timed(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    frames = work()
    return frames / (time.perf_counter() - began)


def _measure(
    kind: str, tokens: int, games: GameSource, root: Path, args: argparse.Namespace, console: Console
) -> dict[str, Any]:
    device = resolve_device(args.device)
    tokenizer = _tokenizer(kind, tokens, device)

    def cache() -> int:
        try:
            return write_cache(root / "cache", games, tokenizer, workers=args.workers).num_frames
        finally:
            shutil.rmtree(root / "cache", ignore_errors=True)

    def decode() -> int:
        return _decode(games, args.workers)

    kept = np.concatenate([episode.frames_NHWC for episode in games.read(0)])
    cache(), decode(), tokenise(tokenizer, kept)
    rounds: list[tuple[float, float, float]] = []
    title = f"{kind}, {tokenizer.num_tokens} tokens"
    for number in track(range(args.rounds), title, console=console, transient=True):
        # Who is first changes: a machine that warms up or slows down must not favour one of them.
        first, second = (cache, decode) if number % 2 else (decode, cache)
        one, two = _timed(first), _timed(second)
        encoding = _timed(lambda: len(tokenise(tokenizer, kept)))
        rounds.append((one, two, encoding) if first is cache else (two, one, encoding))
    sides = dict(zip(("cache", "decode", "encode"), zip(*rounds, strict=True), strict=True))
    quartiles = statistics.quantiles(sides["decode"], n=4) if args.rounds > 1 else [0.0, 0.0, 0.0]
    jitter = (quartiles[2] - quartiles[0]) / statistics.median(sides["decode"])
    ratio = statistics.median(a / b for a, b, _ in rounds)
    fps = {
        f"{side}_fps": {"best": max(values), "median": statistics.median(values), "rounds": list(values)}
        for side, values in sides.items()
    }
    return {
        "kind": kind, "tokens": tokenizer.num_tokens, "frame_shape": list(tokenizer.frame_shape),
        "num_params": tokenizer.num_params(), "device": str(device), "workers": args.workers, **fps,
        "ratio": {"best": max(sides["cache"]) / max(sides["decode"]), "median": ratio}, "decode_jitter": jitter,
        "verdict": "inconclusive" if jitter > _JITTER else "met" if ratio >= GOAL else "missed",
    }  # fmt: skip


def _show(report: dict[str, Any], out: Path, console: Console) -> int:
    write_json(out, report)
    table = Table(
        "games", "tokens", "cache best", "median", "decode best", "median", "encode median", "ratio", "verdict"
    )
    for row in report["results"]:
        table.add_row(
            row["kind"], str(row["tokens"]),
            *(f"{row[side][kind]:,.0f}" for side in ("cache_fps", "decode_fps") for kind in ("best", "median")),
            f"{row['encode_fps']['median']:,.0f}", f"{row['ratio']['median']:.2f} (best {row['ratio']['best']:.2f})",
            row["verdict"],
        )  # fmt: skip
    console.print(table)
    load = report["machine"]["load_before"]
    console.print(f"frames/s; goal: median ratio {GOAL} or more; load before {load:.1f}; {out}", soft_wrap=True)
    return 1 if any(row["verdict"] == "missed" for row in report["results"]) else 0


def main() -> int:
    """Measure every kind of game; return 1 if a budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/tokenize.json"))
    parser.add_argument(
        "--kinds", nargs="+", choices=("doom", "atari", "nethack"), default=["doom", "atari", "nethack"]
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 36, 64], help="of a frame; NetHack has its own")
    parser.add_argument(
        "--frames",
        type=int,
        default=1500,
        help=f"of each of {_UNITS} videos (default %(default)s); other games have more",
    )
    parser.add_argument("--video", type=int, default=64, help="side of the Doom-like video (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1, help="threads that decode, on both sides")
    parser.add_argument("--threads", type=int, default=0, help="of the tokenizer; 0: one for each core")
    parser.add_argument("--device", default="auto")
    args, console = parser.parse_args(), report_console()
    report: dict[str, Any] = {"benchmark": "tokenize", "goal_ratio": GOAL, "threads": set_threads(args.threads, 1)}
    with machine(report), tempfile.TemporaryDirectory() as folder:
        report["results"] = []
        for kind in args.kinds:
            games = _games(kind, Path(folder), args)
            for tokens in [0] if kind == "nethack" else args.tokens:
                report["results"].append(_measure(kind, tokens, games, Path(folder), args, console))
    report["machine"] |= {"torch": torch.__version__, "capabilities": torch.backends.cpu.get_cpu_capability()}
    return _show(report, args.out, console)


if __name__ == "__main__":
    raise SystemExit(main())
