"""``playserve recordings``: send recordings to a control plane, list those that it has, and fetch them."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.commands.dialing import key_of

if TYPE_CHECKING:
    from playserve_client.pushing.rest import ControlRest

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Send recordings to a control plane, list and fetch them."
_URL = "PLAYSERVE_CONTROL_URL"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    push = actions.add_parser("push", help="upload recordings; the same command goes on where it broke off")
    push.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH",
        help="episodes (.npz), folders in Open P2P's format, shards of NetHack games, ttyrecs; or folders of those",
    )  # fmt: skip
    push.add_argument("--policy", default="", metavar="NAME", help="which policy played (default: not said)")
    push.add_argument("--version", default="", metavar="V", help="its version")
    push.add_argument("--session", default="", metavar="ID", help="in which session")
    push.add_argument("--principal", default="", metavar="NAME", help="whose they are (default: yours; others' need "
        "an admin's key)")  # fmt: skip
    push.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    push.set_defaults(act=_push)

    shown = actions.add_parser("list", help="show the recordings that you may see, newest first")
    shown.add_argument("--policy", default="", metavar="NAME", help="only of this policy")
    shown.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (default %(default)s)")
    shown.set_defaults(act=_list)

    pull = actions.add_parser("pull", help="fetch recordings; their digests are checked")
    pull.add_argument("ids", nargs="+", type=int, metavar="ID", help="as `list` shows them")
    pull.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that they go to")
    pull.set_defaults(act=_pull)
    for action in (push, shown, pull):
        _add_common(action)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--control", metavar="URL", help=f"the control plane, such as https://control:8080 (or {_URL})")
    add("--json", action="store_true", help="for programs")
    hint = "others on this machine see arguments: @FILE reads it from a file"
    add("--api-key", metavar="KEY", help=f"API key (or PLAYSERVE_API_KEY); {hint}")
    add("--token", metavar="JWT", help="token instead of a key (or PLAYSERVE_TOKEN); @FILE likewise")
    add("--insecure-key", action="store_true", help="send the key over plain http to another machine, where everybody "
        "on the way can read it")  # fmt: skip
    add("--tls-ca", type=Path, metavar="FILE", help="trust these root certificates (PEM) (or PLAYSERVE_CA)")
    add("--tls-cert", type=Path, metavar="FILE", help="the client's own certificate, where one is wanted")
    add("--tls-key", type=Path, metavar="FILE", help="its private key")


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    return int(args.act(args))


def _rest(args: argparse.Namespace) -> ControlRest:
    from playserve_client.channels import TlsConfig
    from playserve_client.pushing.rest import ControlRest

    url = args.control or os.environ.get(_URL, "")
    if not url:
        raise BadSettingError(f"no control plane: give --control URL, or set {_URL}")
    ca = args.tls_ca or (Path(os.environ["PLAYSERVE_CA"]) if os.environ.get("PLAYSERVE_CA") else None)
    tls = TlsConfig(root_certificates=ca, certificate=args.tls_cert, private_key=args.tls_key)
    return ControlRest(url, key=key_of(args), tls=tls, allow_insecure_key=args.insecure_key)


def _push(args: argparse.Namespace) -> int:
    from playserve_client.commands.recordings_progress import show_bytes
    from playserve_client.pushing.bundle import Bundle
    from playserve_client.pushing.push import Facts, Pusher
    from playserve_client.pushing.units import find_units

    units = [(unit, Bundle(unit.path)) for unit in find_units(args.paths)]
    total = sum(bundle.size for _, bundle in units)
    if args.dry_run:
        for unit, bundle in units:
            print(f"{unit.format:<14} {bundle.size:>15,}  {unit.path}")
        print(f"{len(units)} recordings, {total:,} bytes")
        return 0
    facts = Facts(policy=args.policy, version=args.version, session_id=args.session, principal=args.principal)
    done: list[dict[str, Any]] = []
    with _rest(args) as rest, show_bytes("uploading", total) as advance:
        pusher = Pusher(rest, facts, advance)
        for unit, bundle in units:
            listed = pusher.push(unit, bundle)
            done.append(listed)
            if not args.json:
                print(f"{listed['id']:>6}  {listed['sha256'][:12]}  {unit.path}", flush=True)
    if args.json:
        print(json.dumps(done, indent=2))
    return 0


def _list(args: argparse.Namespace) -> int:
    with _rest(args) as rest:
        query = {"limit": args.limit, **({"policy": args.policy} if args.policy else {})}
        rows = rest.call("GET", "/v1/recordings", query=query)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = [("ID", "FORMAT", "BYTES", "OWNER", "POLICY", "HERE", "NAME")]
    for row in rows:
        played = "/".join(filter(None, (row["policy"], row["version"]))) or "-"
        here = "yes" if row["stored"] else "no"
        table.append((
            str(row["id"]), row["format"] or "-", f"{row['size_bytes']:,}", row["principal"], played, here, row["name"],
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _pull(args: argparse.Namespace) -> int:
    from playserve_client.commands.recordings_progress import show_bytes
    from playserve_client.pushing.push import pull

    done = []
    with _rest(args) as rest:
        total = sum(int(rest.call("GET", f"/v1/recordings/{identity}")["size_bytes"]) for identity in args.ids)
        with show_bytes("fetching", total) as advance:
            for identity in args.ids:
                path = pull(rest, identity, args.out, advance)
                done.append({"id": identity, "path": str(path)})
                if not args.json:
                    print(f"{identity:>6}  {path}", flush=True)
    if args.json:
        print(json.dumps(done, indent=2))
    return 0
