"""``playserve worlds``: how good a learned world is, against the real game, to the eye, and for ranking agents."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_trainer.worlds.judging import JudgeSettings
    from playserve_trainer.worlds.subject import Subject

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Judge learned worlds: against the real game, by eye, and by how they rank agents."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands judge, grid, strip, probe and rank."""
    commands = parser.add_subparsers(dest="worlds_command", required=True, metavar="ACTION")
    judge = commands.add_parser(
        "judge", help="roll a world out on recorded actions, and compare with what really happened",
        description="Compare open-loop roll-outs from held-out starts with the real game, beside baselines.",
    )  # fmt: skip
    _add_subject(judge)
    _add_judging(judge)
    judge.add_argument("--json", type=Path, default=Path("judged.json"), metavar="FILE", help="default %(default)s")
    grid = commands.add_parser(
        "grid", help="judge every finished world of a grid, into a table of loss beside quality",
        description="Judge every finished wm-token cell of a grid, into DIR/judged; the same command goes on.",
    )  # fmt: skip
    grid.add_argument("folder", type=Path, metavar="DIR", help="folder of the grid")
    grid.add_argument("--cell", action="append", default=[], metavar="CELL", help="only this cell (repeatable)")
    grid.add_argument("--device", default="cpu", help='torch device, or "auto" (default %(default)s)')
    _add_drawing(grid)
    _add_judging(grid)
    strip = commands.add_parser("strip", help="a film strip: real frames above dreamed ones")
    _add_subject(strip)
    strip.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, such as strip.png")
    strip.add_argument("--film", type=Path, metavar="FILE", help="also a film, .gif or .mp4: real left, dreamed right")
    strip.add_argument("--starts", type=int, default=3, help="rows (default %(default)s)")
    strip.add_argument("--steps", default="0,1,5,20,50,100", metavar="LIST", help="columns (default %(default)s)")
    probe = commands.add_parser("probe", help="fit the probes of a token cache, keep them, and say what they read")
    _add_cache(probe)
    probe.add_argument("--refit", action="store_true", help="fit anew what is kept")
    probe.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    rank = commands.add_parser("rank", help="returns of agents in a world against those in the real game")
    for side, what in (("real", "in the real game"), ("imagined", "in the world")):
        rank.add_argument(
            f"--{side}", type=Path, nargs="+", required=True, metavar="DIR", help=f"rollouts of agents {what}"
        )
        rank.add_argument(f"--{side}-row", default="", metavar="KEY", help="row of these tables (default: sampled)")
    rank.add_argument("--few", action="store_true", help="go on with fewer than 10 agents")
    rank.add_argument("--resamples", type=int, default=4000, help="draws of an interval (default %(default)s)")
    rank.add_argument("--seed", type=int, default=0, help="of the draws (default %(default)s)")
    rank.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="CACHE", help="token cache of the game")
    parser.add_argument(
        "--held-out", type=float, metavar="SHARE", help="share that is held out (default: as the cache was written)"
    )
    parser.add_argument("--device", default="cpu", help='torch device, or "auto" (default %(default)s)')


def _add_judging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--starts", type=int, default=64, help="roll-outs (default %(default)s)")
    parser.add_argument(
        "--horizons", default="1,5,20,100", metavar="LIST", help="steps after which is compared (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="roll-outs at a time (default %(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, help="draws of an interval (default %(default)s)")
    parser.add_argument(
        "--inverse", type=Path, metavar="CKPT",
        help="inverse p2p checkpoint whose features the Fréchet distance is of (default: the tokenizer's)",
    )  # fmt: skip


def _add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "world", metavar="WORLD", help="folder of the world's checkpoint, or with --store its name, or name@version"
    )
    parser.add_argument("--store", metavar="URL", help="store of checkpoints: a folder or an fsspec URL")
    _add_cache(parser)
    _add_drawing(parser)


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--given", type=int, default=0, metavar="FRAMES",
        help="real frames that the world is given (default: as many as it is served with)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of starts and draws (default %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the draws; 0: the likeliest (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Do one action; every number that is printed is also in a file, where one is named."""
    actions = {"judge": _judge, "grid": _grid, "strip": _strip, "probe": _probe, "rank": _rank}
    return actions[args.worlds_command](args)


def _judge(args: argparse.Namespace) -> int:
    from rich.console import Console

    from playserve.files import write_json
    from playserve_trainer.train.progress import ProgressBar
    from playserve_trainer.worlds.judging import judge
    from playserve_trainer.worlds.tables import print_judged

    settings = _settings(args)
    with _subject(args) as subject, ProgressBar("roll out") as bar:
        found = judge(subject, settings, inverse=args.inverse, progress=bar.counting)
    write_json(args.json, found)
    print_judged(Console(), found)
    print(f"all numbers: {args.json}")
    return 0


def _settings(args: argparse.Namespace) -> JudgeSettings:
    from playserve_trainer.worlds.judging import JudgeSettings

    return JudgeSettings(
        starts=args.starts, horizons=_numbers("--horizons", args.horizons, 1), given=args.given, seed=args.seed,
        temperature=args.temperature, batch=args.batch, resamples=args.resamples,
    )  # fmt: skip


def _grid(args: argparse.Namespace) -> int:
    from playserve_trainer.grid.folder import GridFolder
    from playserve_trainer.models.device import resolve_device
    from playserve_trainer.train.progress import ProgressBar
    from playserve_trainer.worlds.cells import judge_cells

    with ProgressBar("judge") as bar:
        table = judge_cells(
            GridFolder(args.folder), _settings(args), cells=args.cell, inverse=args.inverse,
            device=str(resolve_device(args.device)), progress=bar.counting,
        )  # fmt: skip
    print(f"table: {table}; does loss stand for quality? `playserve laws meta {table} --column psnr_20`")
    return 0


def _strip(args: argparse.Namespace) -> int:
    from playserve_trainer.worlds.strips import dream_beside, write_film, write_strip

    steps = _numbers("--steps", args.steps, 0)
    if args.starts < 1:
        raise BadSettingError(f"--starts is at least 1, not {args.starts}")
    with _subject(args) as subject:
        dreams = dream_beside(
            subject, starts=args.starts, steps=max(1, *steps), seed=args.seed, given=args.given,
            temperature=args.temperature,
        )  # fmt: skip
        write_strip(args.out, dreams, steps)
        print(f"film strip: {args.out}")
        if args.film is not None:
            made = write_film(args.film, dreams[0], float(subject.cache.game.get("rate_hz", 0.0)))
            print(f"film: {made['film']}, {made['frames']} frames from {made['start']}")
    return 0


def _probe(args: argparse.Namespace) -> int:
    from rich.console import Console

    from playserve.files import write_json
    from playserve_trainer.data.tokens.cache import load_tokenizer, open_cache
    from playserve_trainer.data.tokens.frames import kept_frames
    from playserve_trainer.models.device import resolve_device
    from playserve_trainer.worlds.features import TokenizerFeatures
    from playserve_trainer.worlds.probes import kept_probes
    from playserve_trainer.worlds.report import probes_as_json
    from playserve_trainer.worlds.tables import print_probes

    cache = open_cache(args.data, held_out=args.held_out)
    frames = kept_frames(cache)
    features = TokenizerFeatures(load_tokenizer(cache).to(resolve_device(args.device)))
    found = probes_as_json(kept_probes(cache, features, lambda places: frames[places], refit=args.refit))
    if args.json:
        write_json(args.json, found)
    print_probes(Console(), found)
    return 0


def _rank(args: argparse.Namespace) -> int:
    from rich.console import Console

    from playserve.files import write_json
    from playserve_trainer.worlds.ranking import rank_agents, read_played
    from playserve_trainer.worlds.tables import print_ranks

    if min(args.resamples, args.seed) < 0:
        raise BadSettingError(f"--resamples and --seed are at least 0, not {args.resamples}, {args.seed}")
    real = [read_played(folder, args.real_row) for folder in args.real]
    imagined = [read_played(folder, args.imagined_row) for folder in args.imagined]
    found = rank_agents(real, imagined, few=args.few, resamples=args.resamples, seed=args.seed)
    if args.json:
        write_json(args.json, found)
    print_ranks(Console(), found)
    return 0


@contextmanager
def _subject(args: argparse.Namespace) -> Iterator[Subject]:
    """Yield the world and the cache that are named."""
    from playserve_trainer.models.device import resolve_device
    from playserve_trainer.store import CheckpointStore
    from playserve_trainer.worlds.subject import open_subject

    device = str(resolve_device(args.device))
    with tempfile.TemporaryDirectory() as fetched:
        folder = Path(args.world)
        if args.store is not None:
            name, _, reference = args.world.partition("@")
            store = CheckpointStore(args.store)
            folder = store.fetch(name, store.resolve(name, reference), fetched)
        yield open_subject(folder, args.data, held_out=args.held_out, device=device)


def _numbers(flag: str, text: str, least: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) >= least for part in parts):
        raise BadSettingError(f"{flag} is a list of whole numbers from {least} on, such as 1,5,20, not {text!r}")
    return tuple(sorted({int(part) for part in parts}))
