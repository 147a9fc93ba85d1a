"""``playserve data tokenize``: recorded games as a token cache, which worlds and agents on tokens are trained on."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_trainer.data.tokens.cache import TokenCache
    from playserve_trainer.models.tokenizer import Tokenizer

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Write recorded games as tokens, once: what worlds and agents on tokens are trained on."

_NETHACK = "nethack"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="recorded games of one kind")
    parser.add_argument("--game", required=True, help="an Atari game such as breakout, doom, or nethack")
    parser.add_argument(
        "--tokenizer", metavar="CKPT",
        help="folder of a tokenizer's checkpoint, or with --store its name, or name@version; NetHack needs none",
    )  # fmt: skip
    parser.add_argument("--store", metavar="URL", help="store of checkpoints: a folder or an fsspec URL")
    parser.add_argument("--out", type=Path, required=True, metavar="CACHE", help="folder of the cache")
    parser.add_argument("--frames", action="store_true", help="keep the frames, too; without --tokenizer they are all")
    parser.add_argument("--size", type=int, default=0, help="side of the frames (default: the tokenizer's)")
    parser.add_argument("--crop", default="9x9", help="of NetHack's screen; 24x80: all of it (default %(default)s)")
    parser.add_argument("--character", default="@", help='of NetHack\'s games; "@": all (default %(default)s)')
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="share of the episodes that is held out (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that decode (default %(default)s)")
    parser.add_argument("--device", default="auto", help='of the tokenizer: torch device, or "auto"')


def run(args: argparse.Namespace) -> int:
    """Write the cache, or find it there; return 0."""
    from playserve_trainer.data.tokens.cache import write_cache
    from playserve_trainer.data.tokens.sources import open_games
    from playserve_trainer.train.progress import ProgressBar

    if args.workers < 1 or not 0 <= args.held_out < 1 or args.size < 0:
        raise BadSettingError(
            f"--workers is at least 1, --held-out at least 0 and below 1, --size at least 0, not {args.workers}, "
            f"{args.held_out}, {args.size}"
        )
    tokenizer = _tokenizer(args)
    crop, size = _crop(args.crop), args.size
    if tokenizer is not None and args.game != _NETHACK:
        size = size or tokenizer.frame_shape[0]
    if tokenizer is not None and args.game == _NETHACK:
        crop = tokenizer.frame_shape[:2]
    with ProgressBar(f"tokenize {args.game}") as bar:
        games = open_games(args.data, args.game, size=size, crop=crop, character=args.character, progress=bar.reading)
        cache = write_cache(
            args.out, games, tokenizer, keep_frames=args.frames, held_out=args.held_out, workers=args.workers,
            progress=bar.reading,
        )  # fmt: skip
    _print(args.out, cache)
    return 0


def _tokenizer(args: argparse.Namespace) -> Tokenizer | None:
    """Return the tokenizer that is asked for, on its device; NetHack's is made here where none is named."""
    from playserve_trainer import checkpoint
    from playserve_trainer.models.device import resolve_device
    from playserve_trainer.models.tokenizer import NetHackTokenizer, NetHackTokenizerConfig, Tokenizer

    if args.tokenizer is None:
        if args.game == _NETHACK:
            height, width = _crop(args.crop)
            return NetHackTokenizer(NetHackTokenizerConfig(height=height, width=width))
        if not args.frames:
            raise BadSettingError("which tokenizer? give --tokenizer, or --frames for a cache of frames alone")
        return None
    with tempfile.TemporaryDirectory() as folder:
        policy, manifest = checkpoint.load(_folder(args.tokenizer, args.store, Path(folder)))
    if not isinstance(policy, Tokenizer):
        raise BadSettingError(f"{args.tokenizer} is a policy of {manifest.family}, no tokenizer")
    return policy.to(resolve_device(args.device))


def _folder(named: str, store: str | None, cache: Path) -> Path:
    """Return the folder of a checkpoint that is named by its folder, or in a store."""
    from playserve_trainer.store import CheckpointStore

    if store is None:
        return Path(named)
    name, _, reference = named.partition("@")
    stored = CheckpointStore(store)
    return stored.fetch(name, stored.resolve(name, reference), cache)


def _crop(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise BadSettingError(f"crop {text!r}, wanted rows x columns, such as 9x9")
    return int(rows), int(columns)


def _print(folder: Path, cache: TokenCache) -> None:
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(show_header=False, box=None)
    held_out = int(cache.lengths_E[cache.held_out_E].sum())
    table.add_row("cache", f"{folder}, {cache.digest[:16]}")
    table.add_row("episodes", f"{len(cache.lengths_E):,}, {int(cache.held_out_E.sum()):,} held out")
    table.add_row("frames", f"{cache.num_frames:,}, {held_out:,} held out")
    table.add_row("tokens", f"{cache.num_tokens} a frame of {cache.vocabulary:,} codes; actions of {cache.heads}")
    if cache.frames is not None:
        table.add_row("kept", f"frames of {' x '.join(map(str, cache.frame_shape))}")
    console.print(table)
    for unit, error in cache.damaged:
        console.print(f"left out: {unit}: {error}", style="yellow", markup=False, soft_wrap=True)
