"""``playserve checkpoints``: look into a checkpoint store, and publish into it."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "list, show and publish checkpoints of a store"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands list, show, publish and alias."""
    commands = parser.add_subparsers(dest="checkpoints_command", required=True, metavar="ACTION")
    listing = commands.add_parser("list", help="every published version")
    show = commands.add_parser("show", help="the manifest of one version")
    publish = commands.add_parser("publish", help="publish a checkpoint's folder as the next version")
    alias = commands.add_parser("alias", help="point an alias at a version")
    for sub in (listing, show, publish, alias):
        sub.add_argument("--store", required=True, help="folder or fsspec URL of the store")
    for sub in (listing, show, publish):
        sub.add_argument("--json", action="store_true", help="print JSON, for programs")
    for sub in (show, publish, alias):
        sub.add_argument("policy", help="name of the policy")
    show.add_argument("version", nargs="?", default="latest", help="version, alias or 'latest' (default)")
    publish.add_argument("directory", help="folder with model.safetensors and manifest.json")
    publish.add_argument("--alias", help="point this alias at the new version")
    alias.add_argument("alias", help="name of the alias")
    alias.add_argument("version", help="version that it shall mean")


def run(args: argparse.Namespace) -> int:
    """Do one action; errors of the store are raised typed."""
    from playserve_trainer.store import CheckpointStore  # torch is slow to import, and --help does not need it

    store = CheckpointStore(args.store)
    if args.checkpoints_command == "list":
        _list(store, as_json=args.json)
    elif args.checkpoints_command == "show":
        version = store.resolve(args.policy, args.version)
        _show(store.manifest(args.policy, version).to_json(), as_json=args.json)
    elif args.checkpoints_command == "publish":
        version = store.publish(args.policy, args.directory)
        if args.alias:
            store.set_alias(args.policy, args.alias, version)
        print(json.dumps({"policy": args.policy, "version": version}) if args.json else f"{args.policy} {version}")
    else:
        version = store.resolve(args.policy, args.version)
        store.set_alias(args.policy, args.alias, version)
        print(f"{args.policy} {args.alias} -> {version}")
    return 0


def _list(store: Any, *, as_json: bool) -> None:
    rows = []
    aliases: dict[str, dict[str, str]] = {}
    for entry in store.list():
        if entry.policy not in aliases:
            aliases[entry.policy] = store.aliases(entry.policy)
        manifest = store.manifest(entry.policy, entry.version)
        rows.append(
            {
                "policy": entry.policy,
                "version": entry.version,
                "aliases": sorted(a for a, version in aliases[entry.policy].items() if version == entry.version),
                "family": manifest.family,
                "num_params": manifest.num_params,
                "samples_seen": manifest.samples_seen,
                "created_at": manifest.created_at,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    header = ["policy", "version", "aliases", "family", "num_params", "samples_seen", "created_at"]
    cells = [header] + [[_text(row[name]) for name in header] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show(manifest: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(manifest, indent=2))
        return
    for name, value in manifest.items():
        print(f"{name:30} {_text(value)}")


def _text(value: Any) -> str:
    """Return a value for a person: digits in groups, lists by commas, the rest as JSON."""
    if isinstance(value, bool | dict):
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    return ",".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
