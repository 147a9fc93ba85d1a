"""Budget of the NetHack import: frames/s from ttyrecs to checked shards against nle.dataset.TtyrecDataset alone.

Both decode the same games with the same number of decoding threads, beside the thread that takes the frames (ours: one
of each in every worker process; with one worker, in this process). The peer keeps nothing of what it decodes; we check
every game for damage, pack it and write it to disk. The peer runs in two shapes, a row of 256 frames a thread and
as many rows of 32 frames as there are games, and its better one counts. Contenders take turns in each round. Reading
the shards back, as training does it, is measured beside it.

    python tests/bench/bench_import.py --data ../shared/data/nld-aa-mini --out runs/bench/import.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nle.dataset as nld
import numpy as np
from harness import machine, report_console, write_json
from rich.progress import track
from rich.table import Table

from playserve_client.nethack.nld import import_nld
from playserve_client.nethack.shards import TtyBatch, TtyDataset

_REPO = Path(__file__).resolve().parents[2]
_GOAL = 1.0
_JITTER = 0.3  # relative spread (interquartile range over median) of the peer beyond which nothing is concluded
_PEERS = {"peer, a row a thread": (0, 256), "peer, a row a game": (1 << 20, 32)}


@contextlib.contextmanager
def _some_games(data: Path, games: int, scratch: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder with the first games of `data`, and nle's index of them."""
    root = scratch / "some"
    left = games
    for xlogfile in sorted(data.rglob("*.xlogfile")):
        lines = [line for line in xlogfile.read_text().splitlines(keepends=True) if "ttyrecname=" in line][:left]
        folder = root / xlogfile.parent.name
        folder.mkdir(parents=True)
        (folder / xlogfile.name).write_text("".join(lines))
        for line in lines:
            name = line.partition("ttyrecname=")[2].strip()
            (folder / name).symlink_to((xlogfile.parent / name).resolve())
        left -= len(lines)
        if not left:
            break
    database = scratch / "index.db"
    with contextlib.redirect_stdout(io.StringIO()):
        nld.db.create(str(database))
        nld.add_nledata_directory(str(root), "games", str(database))
    yield root, database


def _peer(database: Path, threads: int, rows: int, steps: int, games: int) -> float:
    """Return frames/s of one pass of the peer."""
    with ThreadPoolExecutor(threads) as pool:
        dataset = nld.TtyrecDataset(
            "games", batch_size=min(rows or threads, games), seq_length=steps, dbfilename=str(database),
            threadpool=pool, shuffle=False,
        )  # fmt: skip
        frames = 0
        began = time.perf_counter()
        for batch in dataset:
            frames += int(np.count_nonzero(batch["gameids"]))
        return frames / (time.perf_counter() - began)


def _ours(root: Path, threads: int) -> float:
    """Return frames/s of one import."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        report = import_nld(root, Path(folder), workers=0 if threads == 1 else threads)
        seconds = time.perf_counter() - began
    if report.damaged:
        raise SystemExit(f"damaged: {report.damaged}")
    return report.frames / seconds


def _read_back(dataset: TtyDataset, rows: int = 64, steps: int = 64, batches: int = 16) -> float:
    """Return frames/s of batches at random places."""
    rng = np.random.default_rng(0)
    out = TtyBatch.empty(rows, steps)
    games = rng.integers(0, len(dataset.games), (batches, rows))
    starts = (rng.random((batches, rows)) * (dataset.lengths[games] - steps)).astype(np.int64)
    began = time.perf_counter()
    for game_B, start_B in zip(games, starts, strict=True):
        dataset.frames(np.repeat(game_B[:, None], steps, 1), start_B[:, None] + np.arange(steps), out)
    return batches * rows * steps / (time.perf_counter() - began)


def _cpu_s() -> float:
    """Return processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _measure(args: argparse.Namespace, threads: int, root: Path, database: Path, frames: int) -> dict[str, Any]:
    contenders: dict[str, Callable[[], float]] = {"ours": lambda: _ours(root, threads)}
    for name, (rows, steps) in _PEERS.items():
        contenders[name] = lambda rows=rows, steps=steps: _peer(database, threads, rows, steps, args.games)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_us: dict[str, list[float]] = {name: [] for name in contenders}
    for number in track(range(args.rounds), f"{threads} threads", transient=True):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = _cpu_s()
            rates[name].append(contenders[name]())
            cpu_us[name].append((_cpu_s() - began) / frames * 1e6)
    peers = {name: rate for name, rate in rates.items() if name != "ours"}
    ratios = [ours / max(others) for ours, *others in zip(rates["ours"], *peers.values(), strict=True)]
    best = max(rates["ours"]) / max(max(rate) for rate in peers.values())
    median = statistics.median(ratios)
    peer = max(peers.values(), key=max)
    quartiles = statistics.quantiles(peer, n=4) if len(peer) > 1 else [0.0, 0.0, 0.0]
    jitter = (quartiles[2] - quartiles[0]) / statistics.median(peer)
    verdict = "met" if median >= _GOAL else "inconclusive" if jitter > _JITTER else "missed"
    return {
        "threads": threads,
        "frames_per_second": {
            name: {"best": max(rate), "median": statistics.median(rate), "rounds": rate} for name, rate in rates.items()
        },
        "cpu_us_a_frame": {
            name: {"best": min(used), "median": statistics.median(used)} for name, used in cpu_us.items()
        },
        "peer_jitter": jitter,
        "ratio": {"best": best, "median": median, "rounds": ratios},
        "verdict": verdict,
    }


def main() -> int:
    """Measure; return 1 if the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_REPO.parent / "shared" / "data" / "nld-aa-mini")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--games", type=int, default=6, help="games a pass (default %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"skipped: there is no {args.data}")  # noqa: T201
        return 0
    report: dict[str, Any] = {"benchmark": "import", "goal_ratio": _GOAL, "games": args.games, "rounds": args.rounds}
    with machine(report), tempfile.TemporaryDirectory() as scratch:
        with _some_games(args.data, args.games, Path(scratch)) as (root, database):
            frames = import_nld(root, Path(scratch) / "shards", workers=0).frames  # also the warm-up
            report["results"] = [_measure(args, threads, root, database, frames) for threads in args.threads]
            dataset = TtyDataset.open(Path(scratch) / "shards")
            rates = [_read_back(dataset) for _ in range(args.rounds)]
            report["frames"] = dataset.frames_total
            report["bytes_a_frame"] = dataset.nbytes / dataset.frames_total
            report["read_back"] = {"best": max(rates), "median": statistics.median(rates), "rounds": rates}
    write_json(args.out, report)
    table = Table("threads", "contender", "best", "median", "CPU us a frame", "ratio (median of rounds)", "verdict")
    for result in report["results"]:
        for name, rate in result["frames_per_second"].items():
            ours = name == "ours"
            table.add_row(
                str(result["threads"]), name, f"{rate['best']:,.0f}", f"{rate['median']:,.0f}",
                f"{result['cpu_us_a_frame'][name]['median']:.1f}",
                f"{result['ratio']['median']:.2f} (best {result['ratio']['best']:.2f})" if ours else "",
                result["verdict"] if ours else "",
            )  # fmt: skip
    console = report_console()
    console.print(table)
    read = report["read_back"]
    console.print(
        f"frames/s; read back {read['best']:,.0f} best, {read['median']:,.0f} median (64 rows of 64); "
        f"{report['bytes_a_frame']:.0f} bytes a frame"
    )
    return 1 if any(result["verdict"] == "missed" for result in report["results"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
