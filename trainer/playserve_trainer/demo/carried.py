"""Checkpoints that this package carries, so that a demo can play games which take too long to learn on the spot.

    python -m playserve_trainer.demo.carried runs/doom
    python -m playserve_trainer.demo.carried runs/dream --world

takes the checkpoint that the Doom recipe published in that folder, or that of a world's training; its manifest then
says how it was made.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve_trainer.data.tokens.cache import INDEX_NAME
from playserve_trainer.demo.files import read_json
from playserve_trainer.models.p2p.text import missing_library

__all__ = ["LARGEST_BYTES", "carried_checkpoint", "carry", "carry_world", "main", "origin_of", "why_absent"]

#: A package is no place for more.
LARGEST_BYTES = 10_000_000

_FOLDER = Path(__file__).parent / "checkpoints"
_POLICY, _WORLD = "doom", "world"


def carried_checkpoint(name: str, folder: Path = _FOLDER) -> Path | None:
    """Return the folder of a checkpoint that is carried; None: it is not."""
    path = folder / name
    return path if (path / "manifest.json").is_file() and (path / "model.safetensors").is_file() else None


def why_absent(name: str, folder: Path = _FOLDER) -> str:
    """Return why a carried checkpoint cannot play here; "": it can."""
    path = carried_checkpoint(name, folder)
    if path is None:
        return "this package carries no checkpoint of it"
    encoder = str(read_json(path / "manifest.json").get("config", {}).get("text_encoder", "none"))
    missing = missing_library(encoder)
    return f"its instructions are read by {missing}: pip install 'playserve[text]'" if missing else ""


def carry(out: Path, folder: Path = _FOLDER) -> Path:
    """Copy the newest checkpoint that the Doom recipe published in `out`; return where it lies now.

    Raises:
        BadSettingError: It is larger than a package should carry.
        PlayserveError: There is none, or it is damaged.
    """
    from playserve_trainer.store import CheckpointStore

    store = out / "store"
    version = CheckpointStore(str(store)).resolve(_POLICY, "latest")
    return _copy(store / _POLICY / version, folder / _POLICY, origin_of(out))


def carry_world(run: Path, folder: Path = _FOLDER) -> Path:
    """Copy the checkpoint of a run of ``playserve train wm-token``; return where it lies; raises as :func:`carry`."""
    config = read_json(run / "summary.json")["config"]
    cache = read_json(Path(config["data"]) / INDEX_NAME)
    origin = {
        "made_by": "playserve train wm-token",
        "game": cache["game"],
        "trained": {"settings": {key: value for key, value in config.items() if key not in ("data", "out")}},
    }
    return _copy(run / "checkpoint", folder / _WORLD, origin)


def _copy(source: Path, target: Path, origin: Mapping[str, Any]) -> Path:
    from playserve_trainer import checkpoint

    manifest = checkpoint.verify(source)
    size = (source / checkpoint.WEIGHTS_NAME).stat().st_size
    if size > LARGEST_BYTES:
        raise BadSettingError(f"{source}: {size:,} bytes of weights; a package carries at most {LARGEST_BYTES:,}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(source / checkpoint.WEIGHTS_NAME, target / checkpoint.WEIGHTS_NAME)
    # Who publishes it gives it a name and a version.
    manifest = dataclasses.replace(manifest.published_as("", ""), origin=origin)
    (target / checkpoint.MANIFEST_NAME).write_bytes(manifest.to_bytes())
    checkpoint.verify(target)
    return target


def origin_of(out: Path) -> dict[str, Any]:
    """Return how the checkpoint in a folder of the Doom recipe was made, as far as its files say."""
    train = read_json(out / "train" / "summary.json")
    recorded = read_json(out / "data" / "summary.json")
    found: dict[str, Any] = {
        "made_by": "playserve demo doom --full",
        "recorded": {
            "seconds": recorded["seconds"],
            "goals": [_only(goal, "scenario", "goal", "frames", "episodes", "settings") for goal in recorded["goals"]],
        },
        "trained": {
            "settings": {key: value for key, value in train["config"].items() if key not in ("data", "out")},
            "seconds": train["elapsed_s"],
        },
    }
    results = out / "results.json"
    if results.exists():
        found["verdicts"] = read_json(results)["verdicts"]
    return found


def _only(value: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value[key] for key in keys if key in value}


def main(arguments: list[str] | None = None) -> int:
    """Carry a checkpoint; see the module."""
    parser = argparse.ArgumentParser(prog="python -m playserve_trainer.demo.carried")
    parser.add_argument("out", type=Path, help="folder of `playserve demo doom --full`")
    parser.add_argument("--world", action="store_true", help="it is that of `playserve train wm-token`")
    parser.add_argument("--to", type=Path, default=_FOLDER, help="folder of carried checkpoints (default: ours)")
    args = parser.parse_args(arguments)
    sys.stdout.write(f"{(carry_world if args.world else carry)(args.out, args.to)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
