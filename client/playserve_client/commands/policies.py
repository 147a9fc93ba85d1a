"""`playserve policies`: lists what a server holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from playserve.specs import DiscreteActionSpec, PolicyKind
from playserve_client.client import PolicyClient
from playserve_client.commands.dialing import add_dial_arguments, dial_options
from playserve_client.results import PolicyInfo

SUMMARY = "list the policies of a server"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--prefix", default="", help="only policies whose name starts with this")
    add_dial_arguments(parser.add_argument)
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the full specs there, too")


def run(args: argparse.Namespace) -> int:
    """Print one line a version."""
    with PolicyClient(args.server, timeout_s=args.timeout, **dial_options(args)) as client:
        policies = client.list_policies(args.prefix)
    if args.json is not None:
        args.json.write_text(json.dumps([as_json(info) for info in policies], indent=2) + "\n")
    if not policies:
        print(f"{args.server} holds no policies" + (f" whose name starts with {args.prefix!r}" if args.prefix else ""))
        return 0
    head = ("POLICY", "VERSION", "FAMILY", "INPUTS", "ACTIONS", "RATE", "SLOTS FREE", "ALIASES")
    rows = [head, *(_row(info) for info in policies)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(info: PolicyInfo) -> tuple[str, ...]:
    spec = info.spec
    is_world = spec.kind is PolicyKind.WORLD  # what it shows says more of it
    tensors = " ".join(
        f"{t.name}:{t.dtype}[{','.join('?' if d < 0 else str(d) for d in t.shape)}]"
        for t in (spec.outputs if is_world else spec.inputs)
    )
    inputs = f"(world) {tensors}" if is_world else tensors
    actions = f"{spec.action.n}" if isinstance(spec.action, DiscreteActionSpec) else "desktop"
    rate = f"{spec.rate_hz:g} Hz" if spec.rate_hz else "any"
    slots = f"{info.slots_free}/{info.slots_total}"
    return spec.name, spec.version, spec.family, inputs, actions, rate, slots, ",".join(info.aliases) or "-"


def as_json(info: PolicyInfo) -> dict[str, object]:
    """Return what the table shows, and the whole spec."""
    return {
        "spec": info.spec.to_json(),
        "aliases": list(info.aliases),
        "slots_total": info.slots_total,
        "slots_free": info.slots_free,
        "state_layout": info.state_layout,
        "state_bytes_per_session": info.state_bytes_per_session,
    }
