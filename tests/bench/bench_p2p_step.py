"""Budgets of the p2p family's step on a CPU: age of a session, roofline of the 150M model, sessions in a batch.

1. `--age`: a session of 10,000 frames takes at most 5% longer a frame than one of 300, and its memory does not grow.
   Both sessions play every one of their frames.
2. `--roofline`: the 150M model's step takes at most 1.5 times the sum over its stages of max(bytes / read bandwidth at
   the same working set, FLOPs / peak of a large matrix product), the decoder's weights counted 8 times, keys and values
   once. Bandwidth and peak are measured in the same run, on the same threads. The decoder guesses the action before:
   timed with all guesses right (2 passes), with a wrong dx (3, what the verdict is on: the carried Doom policy needs
   that many or fewer in 97% of its frames, see bench_p2p_guesses.py), and with all of them wrong (8).
3. `--batch`: eight sessions in one batch cost less than 3 times one, without the trunk, which is reported apart. A
   third of the frames has a wrong guess of dx, as the carried Doom policy has.

    python tests/bench/bench_p2p_step.py --out runs/bench/p2p_step.json
    python tests/bench/bench_p2p_step.py --roofline --precision float32 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import machine, report_console, write_json
from torch import Tensor

from playserve_trainer.flops import count_flops
from playserve_trainer.models.p2p import P2PPolicy, config_of_size
from playserve_trainer.models.p2p.backbone import Backbone
from playserve_trainer.models.p2p.drawing import draw_action
from playserve_trainer.models.p2p.packed import HalfLinear
from playserve_trainer.models.p2p.ring import Rings, make_rings
from playserve_trainer.models.policy import Memory

_AGE_LIMIT, _ROOFLINE_LIMIT, _BATCH_LIMIT, _BATCH = 1.05, 1.5, 3.0, 8
_AGE_STEPS = 50  # of each session in a round


def _policy(size: str, precision: str) -> P2PPolicy:
    torch.manual_seed(0)
    policy = P2PPolicy(config_of_size(size)).eval().requires_grad_(False)
    policy.prepare_for_play(precision)
    return policy


def _argmax(logits_BA: Tensor, head: int) -> Tensor:
    return logits_BA.argmax(-1)


def _draws_first(logits_BA: Tensor, head: int) -> Tensor:
    """Do an argmax's work, and draw token 0."""
    return logits_BA.argmax(-1) * 0


def _guess(policy: P2PPolicy, wrong: Sequence[int]) -> Tensor:
    """Return what is guessed [1, H] where token 0 of every head will be drawn."""
    return torch.tensor([[int(head in wrong) for head in range(len(policy.heads()))]])


class Sessions:
    """Slots of one policy, fed with random frames."""

    def __init__(self, policy: P2PPolicy, slots: int, *, age: int = 0) -> None:
        self.policy = policy
        layout = policy.state_layout()
        self.pools = {n: torch.zeros(slots + 1, *t.shape, dtype=t.dtype) for n, t in layout.items()}
        self.pools["steps"].fill_(age)
        side, generator = policy.config.frame_size, torch.Generator().manual_seed(0)
        self._frames = torch.randint(0, 256, (16, slots, side, side, 3), generator=generator).to(torch.uint8)
        self._drawn = torch.zeros(slots, len(policy.heads()), dtype=torch.int64)
        self._step = 0

    def memory(self, slots: Sequence[int]) -> Memory:
        """Return the memory of some slots."""
        return Memory(self.pools, torch.tensor(slots), torch.zeros(len(slots), dtype=torch.bool))

    def frames(self, rows: int) -> Tensor:
        """Return the next frames [rows, S, S, 3]."""
        self._step += 1
        return self._frames[self._step % len(self._frames), :rows]

    def play(self, slots: Sequence[int]) -> None:
        """Step some slots once."""
        frames = {"frame": self.frames(len(slots))}
        out = self.policy.step(frames, self._drawn[: len(slots)], self.memory(slots), _argmax)
        self._drawn[: len(slots)] = out.actions_BH

    def play_moving(self, slots: Sequence[int]) -> None:
        """Step some slots once; the guess of dx is wrong in every third frame of each."""
        guess_BH = torch.zeros(len(slots), len(self.policy.heads()), dtype=torch.int64)
        guess_BH[:, -2] = (self._step + torch.arange(len(slots))) % 3 == 0
        self.policy.step({"frame": self.frames(len(slots))}, guess_BH, self.memory(slots), _draws_first)

    def step(self, guess_BH: Tensor) -> None:
        """Step slot 1 once, with a guess that is right where it is 0."""
        self.policy.step({"frame": self.frames(1)}, guess_BH, self.memory([1]), _draws_first)

    def bytes_per_session(self) -> int:
        """Return what one slot holds."""
        return sum(pool[0].nbytes for pool in self.pools.values())


def _timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Return seconds of each call, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def age(size: str, precision: str, old: int, young: int, rounds: int) -> dict[str, Any]:
    """Return times of an old and a young session, stepped in turns."""
    sessions = Sessions(_policy(size, precision), 2)
    for _ in range(young):
        sessions.play([1])
        sessions.play([2])
    before = _resident_mb()
    for _ in range(old - young):
        sessions.play([1])
    grown = _resident_mb() - before
    times: dict[str, list[float]] = {"old": [], "young": []}
    for number in range(rounds):
        sessions.pools["steps"][2] = young  # or the young one would grow old
        order = (("old", 1), ("young", 2)) if number % 2 else (("young", 2), ("old", 1))
        for name, slot in order:
            times[name].append(statistics.median(_timed(lambda slot=slot: sessions.play([slot]), _AGE_STEPS)))  # type: ignore[misc]
    ratio = statistics.median(a / b for a, b in zip(times["old"], times["young"], strict=True))
    return {
        "size": size, "old": old, "young": young, "limit": _AGE_LIMIT, "ratio": ratio,
        "old_ms": 1e3 * statistics.median(times["old"]), "young_ms": 1e3 * statistics.median(times["young"]),
        "bytes_per_session": sessions.bytes_per_session(), "resident_mb_grown": grown,
        "verdict": "met" if ratio <= _AGE_LIMIT else "missed",
    }  # fmt: skip


class _TimedRings:
    """Rings that count the seconds of attention, storing included."""

    def __init__(self, rings: Rings) -> None:
        self._rings, self.seconds = rings, 0.0

    @property
    def steps_B(self) -> Tensor:
        return self._rings.steps_B

    def attend(self, layer: int, query_BAQE: Tensor, key_BAQE: Tensor, value_BAQE: Tensor, rows: slice) -> Tensor:
        began = time.perf_counter()
        read = self._rings.attend(layer, query_BAQE, key_BAQE, value_BAQE, rows)
        self.seconds += time.perf_counter() - began
        return read

    def close(self) -> None:
        self._rings.close()


def _stages(sessions: Sessions, guess_BH: Tensor) -> dict[str, float]:
    """Return the seconds of each stage of one step of one session, computed as `P2PPolicy.step` does."""
    policy, clock = sessions.policy, [time.perf_counter()]
    image = policy.image(sessions.frames(1))
    clock.append(time.perf_counter())
    idle = torch.tensor([policy.vocabulary.idle()])
    tokens = torch.cat([policy.tokens.actions(policy.embedding(idle)), policy.tokens(image, None)], dim=1)
    rings = _TimedRings(make_rings(sessions.memory([1]), policy.config.histories, len(policy.heads())))
    backbone: Backbone = policy.backbone
    out = backbone.step(tokens, rings)
    clock.append(time.perf_counter())
    parts = (policy.decoder, policy.embedding, policy.logits)
    draw_action(out, parts, _draws_first, guess_BH)
    clock.append(time.perf_counter())
    return {
        "trunk": clock[1] - clock[0],
        "backbone": clock[2] - clock[1] - rings.seconds,
        "attention": rings.seconds,
        "decoder": clock[3] - clock[2],
    }


def _stage_bytes(policy: P2PPolicy, session_bytes: int) -> dict[str, int]:
    """Return the bytes that each stage has to read."""

    def held(module: torch.nn.Module) -> int:
        halves = [m for m in module.modules() if isinstance(m, HalfLinear)]
        return sum(p.nbytes for p in module.parameters()) + sum(2 * m.in_features * m.out_features for m in halves)

    heads, decoder = len(policy.heads()), policy.decoder
    return {
        "trunk": held(policy.image),
        "backbone": held(policy.backbone),
        "attention": session_bytes,
        "decoder": heads * held(decoder.layers) + held(decoder.input) + held(policy.logits),
    }


def _stage_flops(size: str) -> dict[str, int]:
    """Return the FLOPs of each stage of one step."""
    with torch.device("meta"):
        policy = P2PPolicy(config_of_size(size))
    stages = dict.fromkeys(("trunk", "backbone", "attention", "decoder"), 0)
    for name, flops in count_flops(policy).by_layer.items():
        first, depth = name.partition(".")[0], name.count(".")
        stage = {"image": "trunk", "logits": "decoder", "tokens": "backbone"}.get(first, first)
        stages["attention" if first == "backbone" and depth == 2 else stage] += flops
    return stages


def _bandwidth(num_bytes: int) -> float:
    """Return the fastest read of a working set of so many bytes, bytes a second."""
    floats = torch.randn(max(1 << 18, num_bytes // 4))
    half = len(floats) // 2
    reads = (floats.sum, floats.max, lambda: torch.dot(floats[:half], floats[half : 2 * half]))
    return floats.nbytes / min(min(_timed(read, 5)) for read in reads)


def _peak() -> float:
    """Return FLOP/s of a large product of float32 matrices."""
    size = 1024
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(_timed(lambda: a @ b, 9))


def roofline(size: str, precision: str, repeats: int) -> dict[str, Any]:
    """Return each stage's time beside what its bytes and FLOPs allow."""
    policy = _policy(size, precision)
    sessions = Sessions(policy, 1, age=1_000)
    num_bytes, flops = _stage_bytes(policy, sessions.bytes_per_session()), _stage_flops(size)
    cases = {"right": (), "dx wrong": (len(policy.heads()) - 2,), "all wrong": range(len(policy.heads()))}
    guesses = {name: _guess(policy, wrong) for name, wrong in cases.items()}
    _stages(sessions, guesses["right"])
    measured, steps = [], {name: [] for name in guesses}
    for _ in range(repeats):
        measured.append(_stages(sessions, guesses["dx wrong"]))
        for name, guess in guesses.items():
            began = time.perf_counter()
            sessions.step(guess)
            steps[name].append(time.perf_counter() - began)
    decoder_set = num_bytes["decoder"] // len(policy.heads())
    peak, stages = _peak(), {}
    for name in num_bytes:
        speed = _bandwidth(decoder_set if name == "decoder" else num_bytes[name])
        bound = max(num_bytes[name] / speed, flops[name] / peak)
        took = statistics.median(item[name] for item in measured)
        stages[name] = {
            "ms": 1e3 * took, "bound_ms": 1e3 * bound, "ratio": took / bound, "mb": num_bytes[name] / 1e6,
            "gflop": flops[name] / 1e9, "read_gb_s": speed / 1e9,
        }  # fmt: skip
    bound_ms = sum(stage["bound_ms"] for stage in stages.values())
    step_ms = 1e3 * statistics.median(steps["dx wrong"])
    return {
        "size": size, "precision": precision, "threads": torch.get_num_threads(), "stages": stages, "step_ms": step_ms,
        "step_ms_by_guess": {name: 1e3 * statistics.median(times) for name, times in steps.items()},
        "best_step_ms": 1e3 * min(steps["dx wrong"]), "bound_ms": bound_ms, "ratio": step_ms / bound_ms,
        "limit": _ROOFLINE_LIMIT, "rate_hz": 1e3 / step_ms, "peak_gflop_s": peak / 1e9,
        "verdict": "met" if step_ms <= _ROOFLINE_LIMIT * bound_ms else "missed",
    }  # fmt: skip


def batch(size: str, precision: str, rounds: int) -> dict[str, Any]:
    """Return the time of one session and of eight in a batch, the trunk apart."""
    sessions = Sessions(_policy(size, precision), _BATCH, age=1_000)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for rows in (1, _BATCH):
            slots, frames = list(range(1, rows + 1)), sessions.frames(rows)
            whole = statistics.median(_timed(lambda slots=slots: sessions.play_moving(slots), 12))  # type: ignore[misc]
            trunk = statistics.median(_timed(lambda frames=frames: sessions.policy.image(frames), 10))  # type: ignore[misc]
            times.setdefault(f"rest_{rows}", []).append(whole - trunk)
            times.setdefault(f"trunk_{rows}", []).append(trunk)
    medians = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["rest_1"], times[f"rest_{_BATCH}"], strict=True))
    return {
        "size": size, "precision": precision, "limit": _BATCH_LIMIT, "ratio": ratio, **medians,
        "verdict": "met" if ratio < _BATCH_LIMIT else "missed",
    }  # fmt: skip


def _show(report: Mapping[str, Any]) -> None:
    console = report_console()
    if result := report.get("age"):
        console.print(
            f"age ({result['size']}): frame {result['old']:,} {result['old_ms']:.2f} ms, frame {result['young']:,} "
            f"{result['young_ms']:.2f} ms, ratio {result['ratio']:.3f}, limit {result['limit']}: {result['verdict']}; "
            f"{result['bytes_per_session'] / 1e6:.1f} MB a session, process grew {result['resident_mb_grown']:.1f} MB"
        )
    if result := report.get("roofline"):
        for name, stage in result["stages"].items():
            console.print(
                f"  {name:10} {stage['ms']:8.2f} ms, bound {stage['bound_ms']:8.2f} ms ({stage['mb']:8.1f} MB at "
                f"{stage['read_gb_s']:.1f} GB/s, {stage['gflop']:.2f} GFLOP), ratio {stage['ratio']:.2f}"
            )
        console.print(
            f"roofline ({result['size']}, {result['precision']}, {result['threads']} threads): {result['step_ms']:.1f} "
            f"ms ({result['rate_hz']:.1f} Hz), bound {result['bound_ms']:.1f} ms at {result['peak_gflop_s']:.0f} "
            f"GFLOP/s, ratio {result['ratio']:.2f}, limit {result['limit']}: {result['verdict']}; by guesses: "
            + ", ".join(f"{name} {ms:.1f} ms" for name, ms in result["step_ms_by_guess"].items())
        )
    for result in report.get("batch", []):
        console.print(
            f"batch ({result['size']}): one {result['rest_1_ms']:.2f} ms, eight {result[f'rest_{_BATCH}_ms']:.2f} ms, "
            f"ratio {result['ratio']:.2f}, limit {result['limit']}: {result['verdict']}; trunk "
            f"{result['trunk_1_ms']:.2f} and {result[f'trunk_{_BATCH}_ms']:.2f} ms"
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for part in ("age", "roofline", "batch"):
        parser.add_argument(f"--{part}", action="store_true", help="this budget (default: all)")
    parser.add_argument("--size", default="150m", help="of the roofline (default %(default)s)")
    parser.add_argument("--age-size", default="6m", help="(default %(default)s)")
    parser.add_argument("--batch-sizes", nargs="+", default=["1m", "6m", "16m"])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16",
                        help="as `playserve serve` has it (default %(default)s: half-precision weights)")  # fmt: skip
    parser.add_argument("--old", type=int, default=10_000)
    parser.add_argument("--young", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=15, help="steps behind the roofline's medians")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if not (args.age or args.roofline or args.batch):
        args.age = args.roofline = args.batch = True
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 where a budget is missed."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"benchmark": "p2p_step", "arguments": {k: str(v) for k, v in vars(args).items()}}
    results: list[dict[str, Any]] = []
    with machine(report), torch.inference_mode():
        if args.age:
            report["age"] = age(args.age_size, args.precision, args.old, args.young, args.rounds)
            results.append(report["age"])
        if args.roofline:
            report["roofline"] = roofline(args.size, args.precision, args.repeats)
            results.append(report["roofline"])
        if args.batch:
            report["batch"] = [batch(size, args.precision, args.rounds) for size in args.batch_sizes]
            results += report["batch"]
    _show(report)
    write_json(args.out, report)
    return int(any(result["verdict"] == "missed" for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
