"""Budget of played worlds: frames a second of the small world through the endpoint, against 10.

One server holds a world for each rate of tokens and each way of drawing them: N 0.7 M and more, as the carried one is,
of random weights, since what a step costs does not hang on them. Each is played in turns, in each round, by one session
that sends an action when the frame before has come; then by several at once, which the server batches.

    python tests/bench/bench_world.py --out runs/bench/world.json
    python tests/bench/bench_world.py --operators      # what a GPU would have to launch for a frame; nothing is timed
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from harness import machine, report_console, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from playserve.settings import Pace
from playserve.specs import DiscreteActionSpec
from playserve_client.client import PolicyClient
from playserve_client.session import Session
from playserve_services.inference.sampling import BatchSampler
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.policy import Memory, Policy
from playserve_trainer.models.registry import build
from playserve_trainer.models.tokenizer.actions import action_spec_to_json
from playserve_trainer.processes import serve
from playserve_trainer.store import CheckpointStore

#: Frames a second that one session wants.
GOAL_HZ = 10.0
#: (tokens of a frame, tokens drawn at once): the ways that the budget names, and what they are compared with.
_WAYS = ((16, 1), (36, 1), (36, 6), (36, 36), (64, 1), (64, 8), (64, 64), (100, 1), (256, 1), (256, 16), (256, 256))
#: Of which one is to reach the goal: 36 in sequence, or 64 in parallel.
_BUDGET = ((36, 1), (64, 8))
#: A small kernel of a captured graph, start to start (NVIDIA, "Getting Started with CUDA Graphs": 3.4 on a V100).
_KERNEL_US = 3.4


def _world(tokens: int, drawn: int, width: int, context: int) -> Policy:
    """Return a world of random weights that goes on for ever."""
    torch.manual_seed(0)
    tokenizer = {"height": 84, "width": 84, "channels": 1, "tokens": tokens}
    policy = build(
        "wm-token",
        {
            "width": width, "context": context, "tokenizer": {"family": "tokenizer", "config": tokenizer},
            "action": {"spec": action_spec_to_json(DiscreteActionSpec(n=4)), "heads": [4]},
            "parallel_tokens": drawn, "start_frames": context,
        },
    )  # fmt: skip
    with torch.no_grad():
        policy.get_buffer("tokenizer.net.codebook.learner._codebook.embed").normal_()
        policy.get_parameter("end_head.bias").copy_(torch.tensor([30.0, 0.0]))
    return policy.eval()


class _Operators(TorchDispatchMode):
    """Counts what computes: about one kernel each on a GPU. Views and allocations are none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "empty" in func.__name__ or "unsafe_view" in func.__name__)
        return func(*args, **(kwargs or {}))


def _operators(way: tuple[int, int], args: argparse.Namespace) -> int:
    """Return the operators of a step of one session, drawn as the server draws."""
    policy = _world(*way, args.width, args.context)
    tensors = {name: torch.zeros(2, *of.shape, dtype=of.dtype) for name, of in policy.state_layout().items()}
    memory = Memory(tensors, torch.tensor([0]), torch.tensor([False]))
    sampler = BatchSampler([1], [1], way[0] + 3, [1.0], [False], torch.device("cpu"), want_log_prob=False)
    with _Operators() as counted:
        policy.step({}, torch.zeros(1, policy.executed_size(), dtype=torch.int64), memory, sampler)
    return counted.count


def _count_operators(args: argparse.Namespace, console: Console) -> int:
    table = Table("tokens", "at once", "operators a frame", f"frames/s at {_KERNEL_US} us each")
    for way in args.ways:
        count = _operators(way, args)
        table.add_row(str(way[0]), str(way[1]), f"{count:,}", f"{1e6 / (count * _KERNEL_US):,.0f}")
    console.print(table)
    return 0


def _name(way: tuple[int, int]) -> str:
    return f"world-{way[0]}-{way[1]}"


def _publish(store: Path, args: argparse.Namespace) -> dict[tuple[int, int], int]:
    """Publish every world; return their parameters."""
    sizes = {}
    for way in args.ways:
        policy = _world(*way, args.width, args.context)
        with tempfile.TemporaryDirectory(dir=store.parent) as folder:
            checkpoint.save(Path(folder) / "checkpoint", policy, Manifest.describe(policy))
            CheckpointStore(str(store)).publish(_name(way), Path(folder) / "checkpoint")
        sizes[way] = policy.num_params()
    return sizes


def _play(session: Session, until: float) -> int:
    """Play until the time; return the frames."""
    frames = 0
    while time.monotonic() < until:
        session.step_world(frames % 4)
        frames += 1
    return frames


def _frames_per_s(sessions: list[Session], seconds: float) -> float:
    """Return the frames a second of sessions that play at once, each waiting for its own."""
    counts, began = [0] * len(sessions), time.monotonic()

    def play(index: int) -> None:
        counts[index] = _play(sessions[index], began + seconds)

    threads = [threading.Thread(target=play, args=(index,)) for index in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def _measure(client: PolicyClient, args: argparse.Namespace, console: Console) -> dict[Any, dict[int, list[float]]]:
    found: dict[Any, dict[int, list[float]]] = {way: {1: [], args.sessions: []} for way in args.ways}
    crowds = {
        way: [client.play(_name(way), pace=Pace.LOCKSTEP, seed=seed) for seed in range(args.sessions)]
        for way in args.ways
    }
    for sessions in crowds.values():  # the first steps compile, and fill the window
        for session in sessions:
            for _ in range(args.context + 1):
                session.step_world(0)
    for number in track(range(args.rounds), "worlds", console=console, transient=True):
        # Who is first changes: a machine that warms up or slows down must not favour one of them.
        for way in args.ways[number % len(args.ways) :] + args.ways[: number % len(args.ways)]:
            for count, rates in found[way].items():
                rates.append(_frames_per_s(crowds[way][:count], args.seconds))
    for sessions in crowds.values():
        for session in sessions:
            session.close()
    return found


def _row(way: tuple[int, int], params: int, rates: dict[int, list[float]]) -> dict[str, Any]:
    fps = {str(count): {"best": max(of), "median": statistics.median(of), "rounds": of} for count, of in rates.items()}
    verdict = ("met" if fps["1"]["median"] >= GOAL_HZ else "missed") if way in _BUDGET else ""
    return {
        "tokens": way[0], "drawn_at_once": way[1], "num_params": params, "fps_by_sessions": fps, "verdict": verdict,
        "ratio": {"best": fps["1"]["best"] / GOAL_HZ, "median": fps["1"]["median"] / GOAL_HZ},
    }  # fmt: skip


def _show(report: dict[str, Any], out: Path, console: Console) -> int:
    write_json(out, report)
    counts = list(report["results"][0]["fps_by_sessions"])
    heads = [f"{count} session{'s' * (count != '1')}, {kind}" for count in counts for kind in ("best", "median")]
    table = Table("tokens", "at once", "N", *heads, "ratio", "verdict")
    for row in report["results"]:
        table.add_row(
            str(row["tokens"]), str(row["drawn_at_once"]), f"{row['num_params']:,}",
            *(f"{row['fps_by_sessions'][count][kind]:.1f}" for count in counts for kind in ("best", "median")),
            f"{row['ratio']['median']:.2f} (best {row['ratio']['best']:.2f})", row["verdict"],
        )  # fmt: skip
    console.print(table)
    load = report["machine"]["load_before"]
    console.print(f"frames/s in all; limit: one session, median {GOAL_HZ:g} or more; load before {load:.1f}; {out}")
    return 1 if all(row["verdict"] != "met" for row in report["results"] if row["verdict"]) else 0


def _way(text: str) -> tuple[int, int]:
    tokens, _, drawn = text.partition("/")
    return int(tokens), int(drawn or 1)


def main() -> int:
    """Measure every way; return 1 if no way of the budget reaches the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/world.json"))
    parser.add_argument("--ways", type=_way, nargs="+", default=list(_WAYS), metavar="TOKENS[/AT ONCE]")
    parser.add_argument("--width", type=int, default=128, help="of the net (default %(default)s: N 0.7 M)")
    parser.add_argument("--context", type=int, default=4, help="frames of its window (default %(default)s)")
    parser.add_argument("--sessions", type=int, default=4, help="that play at once, beside one (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in each round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto", help="of the server (default %(default)s)")
    parser.add_argument("--operators", action="store_true", help="count the operators of a frame, and stop")
    args, console = parser.parse_args(), report_console()
    if args.operators:
        return _count_operators(args, console)
    report: dict[str, Any] = {"benchmark": "world", "goal_hz": GOAL_HZ, "width": args.width, "context": args.context}
    with machine(report), tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        sizes = _publish(store, args)
        command = ("serve", "--store", str(store), "--port", "0", "--device", args.device, "--slots", "8")
        with serve(command, Path(folder) / "serve.log") as address, PolicyClient(address) as client:
            for way in args.ways:
                client.wait_ready(120.0, policy=_name(way))
            rates = _measure(client, args, console)
        report["results"] = [_row(way, sizes[way], rates[way]) for way in args.ways]
    report["machine"] |= {"torch": torch.__version__}
    return _show(report, args.out, console)


if __name__ == "__main__":
    raise SystemExit(main())
