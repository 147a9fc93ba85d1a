"""Predictions by trying: a few training steps of every size, in a process of their own, with the real data.

``python -m playserve_trainer.grid.probe REQUEST OUT`` is started by :func:`probe`. What was measured is kept in the
grid's probes.json under the machine's name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from playserve.errors import ServerFault
from playserve.files import read_json, write_json
from playserve_trainer.grid.plan import Plan, Prediction, Run
from playserve_trainer.grid.tables import parse, to_json
from playserve_trainer.processes import before_exec

__all__ = ["main", "predicted", "probe"]

_WARM_STEPS = 3
_LEAST_STEPS = 5
_MEASURE_S = 1.5
_TAIL = 2000
# A learning rate under which nothing moves: a rate that makes training diverge is the run's to report.
_STILL = 1e-12


def probe(
    plan: Plan, root: Path, *, threads: int = 0, device: str = "auto", on_size: Callable[[str], None] = lambda _: None
) -> Plan:
    """Return the plan with predictions; sizes that were measured on this machine before are not measured again.

    Args:
        plan: The plan.
        root: The grid's folder.
        threads: CPU threads that a run will have; 0: all cores.
        device: torch device, or "auto".
        on_size: Told what is measured.

    Raises:
        ServerFault: A size cannot be trained: memory, data, or settings.
    """
    machine = f"{platform.node()} {device} {threads or 'all'} threads"
    path = root / "probes.json"
    known: dict[str, Any] = read_json(path) or {}
    here = known.setdefault(machine, {})
    todo: dict[str, list[str]] = {}
    for run in plan.runs:
        if _key(run) not in here and all(_key(plan.run(name)) != _key(run) for name in todo.get(run.task, [])):
            todo.setdefault(run.task, []).append(run.name)
    for names in todo.values():
        for name, result in _measured(plan, sorted(names, key=lambda n: plan.run(n).params), root, threads, device):
            here[_key(plan.run(name))] = result
            write_json(path, known)
            on_size(name)
    runs = tuple(dataclasses.replace(run, prediction=predicted(run, here[_key(run)])) for run in plan.runs)
    return dataclasses.replace(plan, runs=runs, machine=machine)


def predicted(run: Run, measured: dict[str, Any]) -> Prediction:
    """Return what a measured size says of a run."""
    unique = max(1, round(measured["unique_samples"] * run.unique / measured["unique"]))
    return Prediction(
        wall_s=run.samples / measured["samples_per_s"],
        peak_mib=measured["peak_mib"],
        flops_per_s=measured["samples_per_s"] * run.flops_per_sample,
        unique_samples=unique,
        epochs=run.samples / unique,
    )


def _key(run: Run) -> str:
    return f"{run.task} {run.variant} {run.size} batch {run.batch_size}"


def _measured(
    plan: Plan, names: list[str], root: Path, threads: int, device: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (run, what was measured), as the other process finds it."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".probe-") as scratch:
        request = Path(scratch) / "request.json"
        write_json(request, {"plan": to_json(plan), "runs": names, "threads": threads, "device": device})
        log = Path(scratch) / "log.txt"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "playserve_trainer.grid.probe", str(request)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=before_exec(),
            )  # fmt: skip
        assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
        try:
            for line in process.stdout:
                result = json.loads(line)
                yield result.pop("run"), result
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if status:
            tail = log.read_text(errors="replace")[-_TAIL:]
            raise ServerFault(f"a few steps of each size could not be trained (--no-probe leaves them out):\n{tail}")


def main(argv: list[str] | None = None) -> int:
    """Measure the runs of a request, and print a line of JSON for each."""
    request = json.loads(Path((sys.argv[1:] if argv is None else argv)[0]).read_text())
    plan = parse(Plan, request["plan"], "request")
    from playserve_trainer.grid.running import DataCache

    data = DataCache()
    for name in request["runs"]:
        found = _try_out(plan, plan.run(name), data, request["threads"], request["device"])
        sys.stdout.write(json.dumps({"run": name, **found}) + "\n")
        sys.stdout.flush()
    return 0


class _Speed:
    """Keeps the last speed that a run told of."""

    samples_per_s = 0.0

    def update(self, status: Any) -> None:
        self.samples_per_s = status.samples_per_s


def _try_out(plan: Plan, run: Run, data: Any, threads: int, device: str) -> dict[str, Any]:
    from playserve_trainer.grid.settings import run_config
    from playserve_trainer.recipes.families import recipe_of
    from playserve_trainer.train.loop import Trainer

    speed = _Speed()
    with tempfile.TemporaryDirectory() as out:
        config = run_config(plan, run, Path(out), lr=_STILL, threads=threads, device=device)
        config = dataclasses.replace(config, log_every_steps=1_000_000, max_flops=None, max_steps=_WARM_STEPS)
        prepared = recipe_of(config.family).prepare(config, data=data.read(config))
        _forget_peak()
        trainer = Trainer(config, prepared.policy, prepared.source, reporter=speed)
        trainer.run()
        steps = _LEAST_STEPS
        # The first guess of the speed says how many steps are worth timing.
        for _ in range(2):
            trainer.go_on_with(dataclasses.replace(config, max_steps=trainer.step + steps))
            trainer.run()
            steps = max(_LEAST_STEPS, round(_MEASURE_S * speed.samples_per_s / run.samples_per_step))
    return {
        "samples_per_s": speed.samples_per_s, "peak_mib": _peak_mib(),
        "unique_samples": prepared.source.num_samples, "unique": run.unique,
    }  # fmt: skip


def _forget_peak() -> None:
    """Have the kernel measure the peak of resident memory anew, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


if __name__ == "__main__":
    sys.exit(main())
