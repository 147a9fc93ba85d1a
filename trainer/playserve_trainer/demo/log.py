"""The demo's own record, ``demo.json``: its plan, each stage with its command and times, and at the end the outcome."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from playserve.errors import BadSettingError, DataLossError
from playserve.files import write_json
from playserve_trainer.wording import utc_now

__all__ = ["FORMAT_VERSION", "LOG_NAME", "DemoLog", "describe_machine"]

FORMAT_VERSION = 1
LOG_NAME = "demo.json"


class Plan(Protocol):
    """What is to be done."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value, the same as it comes back from a file."""


class DemoLog:
    """``demo.json`` of one folder, on disk after every change.

    Attributes:
        value: The JSON object.
    """

    def __init__(self, out: Path, value: dict[str, Any]) -> None:
        self.path = out / LOG_NAME
        self.value = value

    @classmethod
    def open(cls, out: Path, plan: Plan) -> DemoLog:
        """Begin the record of `out`, or go on with it.

        Raises:
            BadSettingError: The folder was begun with another plan.
            DataLossError: The file is damaged.
        """
        path = out / LOG_NAME
        if not path.exists():
            log = cls(out, {
                "format_version": FORMAT_VERSION, "plan": plan.to_json(), "started_at": utc_now(),
                "machine": describe_machine(), "stages": [],
            })  # fmt: skip
            log.save()
            return log
        try:
            value = json.loads(path.read_text())
            found, begun = value["format_version"], value["plan"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError(f"{path} is damaged ({error}); start over with --fresh") from error
        if (found, begun) != (FORMAT_VERSION, plan.to_json()):
            raise BadSettingError(
                f"{out} was begun with another plan ({begun.get('name')}, format {found}); start over with --fresh, "
                "or choose another --out"
            )
        for stage in value["stages"]:
            for attempt in stage["attempts"]:
                if attempt["status"] == "running":  # killed outright: nobody knows how long it took
                    attempt["status"] = "killed"
        return cls(out, value)

    @contextmanager
    def stage(self, name: str, title: str, command: list[str]) -> Iterator[None]:
        """Time one attempt at a stage; how it ended is kept whatever happens."""
        stage = next((item for item in self.value["stages"] if item["name"] == name), None)
        if stage is None:
            stage = {"name": name, "title": title, "command": command, "attempts": []}
            self.value["stages"].append(stage)
        stage["command"] = command
        attempt: dict[str, Any] = {
            "started_at": utc_now(), "status": "running", "seconds": None, "cpu_seconds": None,
            "load_before": _load(), "load_after": None,
        }  # fmt: skip
        stage["attempts"].append(attempt)
        self.save()
        started, cpu = time.monotonic(), _children_cpu_s()
        try:
            yield
            attempt["status"] = "finished"
        except KeyboardInterrupt:
            attempt["status"] = "interrupted"
            raise
        except BaseException:
            attempt["status"] = "failed"
            raise
        finally:
            attempt["seconds"] = round(time.monotonic() - started, 3)
            attempt["cpu_seconds"] = round(_children_cpu_s() - cpu, 3)
            attempt["load_after"] = _load()
            self.save()

    def seconds(self) -> dict[str, float]:
        """Return the time of each stage, all attempts together."""
        return {
            stage["name"]: round(sum(attempt["seconds"] or 0.0 for attempt in stage["attempts"]), 3)
            for stage in self.value["stages"]
        }

    def total_s(self) -> float:
        """Return the time of all stages together."""
        return round(sum(self.seconds().values()), 3)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set keys, and save."""
        self.value.update(values)
        self.save()

    def save(self) -> None:
        """Write the file, atomically."""
        write_json(self.path, self.value)


def describe_machine() -> dict[str, Any]:
    """Return what the demo runs on, as JSON; what cannot be found out is None."""
    packages = {}
    for name in ("playserve", "torch", "ale-py", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": packages,
    }


def _children_cpu_s() -> float:
    # Of children that have ended, workers of theirs included: on a busy machine it tells more than the clock.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
