"""`playserve control`: the registry and its REST service."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError, StateError
from playserve_services.commands.issuer import add_issuer_flags

if TYPE_CHECKING:
    from playserve_services.control.settings import ControlSettings

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Keep the registry of policies, keys and replicas, and serve it over REST."

_DATABASE = (
    "The database is PLAYSERVE_CONTROL_DATABASE (postgresql://user:password@host/name or sqlite:///FILE; default: "
    "registry.db in --data). It is no flag, since everybody on a machine can read those."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions; defaults are those of ControlSettings, which a missing extra must not keep us from."""
    parser.epilog = _DATABASE
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="serve REST; brings the database up to date first", epilog=_DATABASE)
    _add_common(serve)
    _add_serve(serve)
    serve.set_defaults(act=_serve)

    migrate = actions.add_parser("migrate", help="bring the database up to date, or back", epilog=_DATABASE)
    _add_common(migrate)
    migrate.add_argument("--to", metavar="REVISION", default="head", help="revision to go up to (default head)")
    migrate.add_argument(
        "--down", metavar="REVISION", help="revision to go back to (base: nothing is left); what it drops is lost"
    )
    migrate.set_defaults(act=_migrate)

    sync = actions.add_parser(
        "sync", help="register what the store has and the registry has not, such as after the loss of its database",
        epilog=_DATABASE,
    )  # fmt: skip
    _add_common(sync)
    sync.add_argument("--store", metavar="URL", help="folder or URL of the checkpoint store (default: store in --data)")
    sync.set_defaults(act=_sync)

    first = actions.add_parser("init-key", help="issue the first admin key, and print it", epilog=_DATABASE)
    _add_common(first)
    first.add_argument("--principal", default="admin", help="whom it stands for (default %(default)s)")
    first.add_argument("--again", action="store_true", help="also where an admin key holds already")
    first.set_defaults(act=_init_key)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of registry, uploads and jobs (default "
        "runs/control)")  # fmt: skip
    parser.add_argument("--log-format", choices=["text", "json"], help="lines for people or for programs")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--store", metavar="URL", help="folder or URL of the checkpoint store (default: store in --data)")
    add("--grids", type=Path, metavar="DIR", help="folder of planned grids that jobs may train (default: none)")
    add("--host", help="address to listen on (default 127.0.0.1)")
    add("--port", type=int, help="HTTP port (default 8080; 0: any free one)")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM)")
    add("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    add("--insecure-listen", action="store_true", default=None, help="listen beyond loopback without TLS and keys")
    add(
        "--require-keys",
        action=argparse.BooleanOptionalAction,
        help="whether calls need API keys or tokens (default: beyond loopback, and where there is an issuer)",
    )
    add_issuer_flags(parser)
    add("--max-upload-mb", type=int, metavar="MIB", help="largest checkpoint (default 8192)")
    add("--recordings", metavar="URL", help="folder or URL of uploaded recordings (default: recordings in --data)")
    add("--max-recording-mb", type=int, metavar="MIB", help="largest recording (default 8192)")
    add("--upload-silence-s", type=float, metavar="S", help="silent uploads are given up after (default 60)")
    add("--replica-timeout-s", type=float, metavar="S", help="silent replicas are not asked after (default 30)")
    add("--replica-insecure-key", action="store_true", default=None, help="send the replicas' key in plain text, too")
    add("--replica-tls", action="store_true", default=None, help="dial replicas with TLS")
    add("--replica-tls-ca", type=Path, metavar="FILE", help="trust these root certificates (PEM) for that")
    add("--replica-tls-cert", type=Path, metavar="FILE", help="certificate (PEM) to show them, for mutual TLS")
    add("--replica-tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    add("--max-jobs", type=int, metavar="N", help="jobs at once (default 1; 0: none may be started)")
    add("--max-job-log-mb", type=int, metavar="MIB", help="a job's log is begun anew after (default 64)")
    add("--cluster", type=Path, metavar="FILE", help="run jobs as Kubernetes Jobs, as this file says")
    add("--cancel-grace-s", type=float, metavar="S", help="cancelled jobs are killed after (default 30)")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    from playserve_services.inference.logs import configure_logs

    settings = _settings(args)
    # The other actions print what they did; nothing shall stand before a key that a script reads.
    configure_logs(settings.log_format, logging.INFO if args.action == "serve" else logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # the lines of `migrate` say all of it
    return int(args.act(args, settings))


def _settings(args: argparse.Namespace) -> ControlSettings:
    from pydantic import ValidationError

    from playserve_services.control.settings import ControlSettings
    from playserve_services.validation import in_words

    given = {
        name: value for name, value in vars(args).items() if name in ControlSettings.model_fields and value is not None
    }
    try:
        return ControlSettings(**given)
    except ValidationError as error:
        raise BadSettingError(in_words(error.errors(), whole="settings")) from error


def _serve(args: argparse.Namespace, settings: ControlSettings) -> int:
    from playserve_services.control.app import create_app
    from playserve_services.control.server import serve

    def started(port: int) -> None:
        # The one line that programs which start a server wait for.
        print(f"playserve control ready host={settings.host} port={port}", flush=True)

    serve(create_app(settings), settings, started)
    return 0


def _migrate(args: argparse.Namespace, settings: ControlSettings) -> int:
    from playserve_services.control.database import Database
    from playserve_services.control.migrate import downgrade, upgrade

    database = Database(settings.database_url)
    try:
        at = upgrade(database, args.to) if args.down is None else downgrade(database, args.down)
    finally:
        database.close()
    print(f"the registry is at revision {at}")
    return 0


def _sync(args: argparse.Namespace, settings: ControlSettings) -> int:
    from playserve_services.control.database import Database
    from playserve_services.control.migrate import upgrade
    from playserve_services.control.publishing import Publisher
    from playserve_services.control.repository.audit import SYSTEM
    from playserve_trainer.store import CheckpointStore

    database = Database(settings.database_url)
    try:
        upgrade(database)
        publisher = Publisher(CheckpointStore(settings.store_url), database, settings.data.absolute() / "uploads")
        done = publisher.sync(SYSTEM)
    finally:
        database.close()
    for name in (*done.registered, *done.aliases):
        print(f"registered {name}")
    for name, why in done.failed.items():
        print(f"failed {name}: {why}")
    print(f"{len(done.registered)} versions and {len(done.aliases)} aliases registered, {len(done.failed)} failed")
    return 1 if done.failed else 0


def _init_key(args: argparse.Namespace, settings: ControlSettings) -> int:
    from playserve_services.auth.keys import Scope
    from playserve_services.control.database import Database
    from playserve_services.control.migrate import upgrade
    from playserve_services.control.repository.audit import SYSTEM
    from playserve_services.control.repository.keys import add_key, live_keys

    database = Database(settings.database_url)
    try:
        upgrade(database)
        with database.change() as session:
            held = [key.id for key in live_keys(session) if Scope.ADMIN in key.scopes]
            if held and not args.again:
                raise StateError(f"admin key {held[0]} holds already; --again issues another one")
            text, _ = add_key(session, SYSTEM, args.principal, frozenset({Scope.ADMIN}))
    finally:
        database.close()
    print(text)
    return 0
