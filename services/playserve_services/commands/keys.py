"""`playserve keys`: issue, list and revoke the API keys of a key file."""

from __future__ import annotations

import argparse
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError, NotFoundError

if TYPE_CHECKING:
    from playserve_services.auth.keys import ApiKey

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Issue, list and revoke API keys in a file that `playserve serve --keys` reads."
_SCOPES = ("play", "rollout", "publish", "replica", "admin")
_SPAN = re.compile(r"(\d+)([mhd])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    issue = actions.add_parser("issue", help="add a key, and show it: this once, and never again")
    issue.add_argument("principal", help="who it stands for; sessions belong to a principal, whichever key was used")
    issue.add_argument(
        "--scope", action="append", choices=_SCOPES, dest="scopes", help="what it may do (repeatable; default play)"
    )
    issue.add_argument("--expires", metavar="WHEN", help="90d, 12h, 30m, or a time such as 2027-01-31T12:00+00:00")
    issue.add_argument("--sessions", type=int, metavar="N", help="play sessions at once")
    issue.add_argument("--environments", type=int, metavar="N", help="rollout environments at once")
    issue.add_argument("--frames-per-s", type=float, metavar="N", help="live steps a second over all its sessions")
    revoke = actions.add_parser("revoke", help="remove keys; what runs under them ends within seconds")
    revoke.add_argument("ids", nargs="+", metavar="ID", help="ids, the first part of a key: psk_<ID>_...")
    shown = actions.add_parser("list", help="show the keys, without their secrets")
    shown.add_argument("--json", action="store_true", help="for programs")
    for action in (issue, revoke, shown):
        action.add_argument("--file", required=True, type=Path, help="the key file; made with mode 0600")


def _expiry(text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    if match := _SPAN.fullmatch(text):
        try:
            return now + timedelta(**{_UNITS[match[2]]: int(match[1])})
        except OverflowError as error:
            raise BadSettingError(f"--expires {text!r} is beyond all calendars") from error
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSettingError(f"--expires {text!r}, wanted 90d, 12h, 30m or a time in ISO 8601") from error
    if when.tzinfo is None:
        raise BadSettingError(f"--expires {text!r} has no time zone; for example {text}+00:00")
    if when <= now:
        raise BadSettingError(f"--expires {text!r} is past")
    return when


def _issue(args: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from playserve_services.auth.keyring import KeyFile
    from playserve_services.auth.keys import Quota, Scope, issue_key
    from playserve_services.validation import in_words

    expires_at = _expiry(args.expires, datetime.now(UTC))
    try:
        quota = Quota(sessions=args.sessions, environments=args.environments, frames_per_s=args.frames_per_s)
        text, kept = issue_key(args.principal, frozenset(map(Scope, args.scopes or ["play"])), quota, expires_at)
    except ValidationError as error:
        raise BadSettingError(in_words(error.errors())) from error
    KeyFile(args.file).change(lambda keys: [*keys, kept], missing_ok=True)
    print(text)  # alone on its line, for scripts
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from playserve_services.auth.keyring import KeyFile

    def without(keys: list[ApiKey]) -> list[ApiKey]:
        unknown = sorted(set(args.ids) - {key.id for key in keys})
        if unknown:
            # Whoever pastes a whole key must not find it in a log.
            shown = ", ".join(name if len(name) <= 12 else "(a text too long for an id)" for name in unknown)
            raise NotFoundError(f"no key {shown} in {args.file}; nothing was revoked")
        return [key for key in keys if key.id not in args.ids]

    KeyFile(args.file).change(without)
    print(f"revoked: {', '.join(args.ids)}")
    return 0


def _facts(key: ApiKey) -> dict[str, Any]:
    facts: dict[str, Any] = key.model_dump(mode="json", exclude={"secret_sha256"})
    return {**facts, "scopes": sorted(facts["scopes"])}


def _list(args: argparse.Namespace) -> int:
    from playserve_services.auth.keyring import KeyFile

    facts = [_facts(key) for key in KeyFile(args.file).read()]
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    now = datetime.now(UTC)
    rows = [("ID", "PRINCIPAL", "SCOPES", "EXPIRES", "QUOTA")]
    for fact in facts:
        quota = ", ".join(f"{name} {value:g}" for name, value in fact["quota"].items() if value is not None)
        expires = fact["expires_at"] or "never"
        if fact["expires_at"] and datetime.fromisoformat(fact["expires_at"]) <= now:
            expires += " (over)"
        rows.append((fact["id"], fact["principal"], ",".join(fact["scopes"]), expires, quota or "none"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    return {"issue": _issue, "revoke": _revoke, "list": _list}[args.action](args)
