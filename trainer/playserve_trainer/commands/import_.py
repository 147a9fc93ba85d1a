"""``playserve import``: checkpoints of other projects as ours."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_trainer.models.p2p.importing import Imported

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "turn a checkpoint of another project into one of ours"

_CONFIG_NAME = "model_config.yaml"
_REPORT_NAME = "import.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each project."""
    projects = parser.add_subparsers(dest="project", required=True, metavar="PROJECT")
    p2p = projects.add_parser(
        "open-p2p",
        help="Open Pixel2Play: a Lightning checkpoint and its model_config.yaml",
        description="Import a released or self-trained checkpoint of elefant-ai/open-p2p. The file is read as weights "
        "alone: nothing in it can run code.",
    )
    p2p.add_argument("checkpoint", help="the .ckpt file")
    p2p.add_argument("--config", help=f"its yaml (default: {_CONFIG_NAME} beside it)")
    p2p.add_argument("--out", help="folder that the checkpoint is written to")
    p2p.add_argument("--store", help="folder or fsspec URL of a store to publish to; needs --name")
    p2p.add_argument("--name", help="name of the policy in the store")
    p2p.add_argument("--alias", help="point this alias at the new version")
    p2p.add_argument(
        "--text-encoder", help='"none", "embeddinggemma", or another of the same width (default: its yaml)'
    )
    p2p.add_argument("--state-dtype", choices=["float32", "bfloat16"], default="bfloat16",
                     help="of the keys and values that a session keeps (default %(default)s)")  # fmt: skip
    p2p.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Import one checkpoint; what was not used is reported."""
    if not args.out and not args.store:
        raise BadSettingError("import: say --out FOLDER, or --store STORE --name NAME")
    if bool(args.store) != bool(args.name):
        raise BadSettingError("import: --store and --name go together")
    # torch is slow to import, and --help does not need it
    from playserve_trainer.models.p2p.importing import config_of_yaml, import_open_p2p

    changes: dict[str, Any] = {"state_dtype": args.state_dtype}
    if args.text_encoder:
        changes["text_encoder"] = args.text_encoder
    config = config_of_yaml(args.config or Path(args.checkpoint).with_name(_CONFIG_NAME), **changes)
    imported = import_open_p2p(args.checkpoint, config)
    report = _write(args, imported)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _write(args: argparse.Namespace, imported: Imported) -> dict[str, Any]:
    """Write and publish the checkpoint, and return the report, which lies beside it as import.json."""
    from playserve_trainer.checkpoint import Manifest, file_sha256, save

    policy = imported.policy
    report: dict[str, Any] = {
        "source": str(args.checkpoint),
        "source_sha256": file_sha256(args.checkpoint),
        "size": policy.config.size or "(none of the released ones)",
        "num_params": policy.num_params(),
        "bytes_per_session": sum(_bytes(policy.state_layout())),
        "step": imported.step,
        "unused_keys": list(imported.unused),
        "duplicate_keys": imported.duplicates,
    }
    manifest = dataclasses.replace(Manifest.describe(policy), code_version=f"open-p2p sha256 {report['source_sha256']}")
    with tempfile.TemporaryDirectory(prefix="playserve-import-") as scratch:
        folder = Path(args.out or scratch)
        save(folder, policy, manifest)
        if args.store:
            from playserve_trainer.store import CheckpointStore

            store = CheckpointStore(args.store)
            report |= {"policy": args.name, "version": store.publish(args.name, folder)}
            if args.alias:
                store.set_alias(args.name, args.alias, report["version"])
        if args.out:
            report["out"] = str(folder)
            (folder / _REPORT_NAME).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _bytes(layout: Any) -> list[int]:
    import torch

    return [torch.empty(row.shape, dtype=row.dtype, device="meta").nbytes for row in layout.values()]


def _print(report: dict[str, Any]) -> None:
    unused = report["unused_keys"]
    print(f"{report['source']}: {report['num_params']:,} parameters, size {report['size']}, step {report['step']:,}")
    print(f"a session keeps {report['bytes_per_session'] / 1e6:.1f} MB")
    print(f"{report['duplicate_keys']} keys were there twice and agree; {len(unused)} keys were not used"
          + (":" if unused else ""))  # fmt: skip
    for key in unused:
        print(f"  {key}")
    if "version" in report:
        print(f"published as {report['policy']} {report['version']}")
    if "out" in report:
        print(f"written to {report['out']}")
