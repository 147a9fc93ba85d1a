"""`playserve serve`: one inference server."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any

from playserve.errors import BadSettingError
from playserve.specs import check_policy_name
from playserve_services.commands.issuer import add_issuer_flags

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Serve policies over gRPC."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; the defaults are those of ServeSettings, which a missing extra must not keep us from."""
    add = parser.add_argument
    add("--store", help="folder or URL of the checkpoint store; its newest versions are served as they are published")
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME=MODULE:FACTORY",
        dest="policy_factories",
        help="also serve the playserve_trainer Policy that a function returns (repeatable)",
    )
    add("--host", help="address to listen on (default 127.0.0.1)")
    add("--port", type=int, help="gRPC port (default 50051; 0: any free one)")
    add("--admin-port", type=int, help="port of AdminService (default: not served)")
    add("--metrics-port", type=int, help="HTTP port of /metrics (default: not served)")
    add("--health-port", type=int, help="port for health probes only (default: not served)")
    add("--insecure-listen", action="store_true", default=None, help="listen beyond loopback without TLS or keys")
    _add_security(parser)
    _add_registry(parser)
    add("--engine", choices=["torch", "triton"], help="who computes batches: this process, or Triton (default torch)")
    add("--triton-url", metavar="HOST:PORT", help="Triton's gRPC; its repository is one of `playserve triton export`")
    add("--triton-front", type=int, metavar="I", help="number of this front of that Triton, from 0 (default 0)")
    add("--device", help='torch device, or "auto": cuda where there is one (default cpu)')
    add("--threads", type=int, help="threads of one computation on a CPU (default 1)")
    add("--precision", choices=["float32", "bfloat16"], help="of the computation (default float32)")
    add("--slots", type=int, help="most sessions of each state layout (default 256); fewer where memory is short")
    add(
        "--session-memory-mib",
        type=int,
        metavar="MIB",
        help="memory of the sessions of each state layout (default: half of what is free, 70%% on a GPU)",
    )
    add("--max-batch", type=int, help="most sessions of one batch (default 64)")
    add(
        "--fixed-batch",
        action="store_true",
        default=None,
        help="pad every batch to --max-batch: repeatable bit for bit",
    )
    add(
        "--graphs",
        choices=["auto", "off", "cuda", "compile"],
        help="a CUDA graph, or compiled code, for each batch size (default auto: CUDA graphs where there is CUDA)",
    )
    add("--max-steps-in-flight", type=int, help="unanswered lockstep steps of one game (default 8)")
    add("--max-message-mb", type=int, help="largest message in MiB (default 32)")
    add("--idle-timeout-s", type=float, help="silent sessions expire after (default 60)")
    add("--detach-window-s", type=float, help="sessions outlive their stream by (default 30)")
    add("--lockstep-patience-s", type=float, help="lockstep waits at most so long behind live (default 1)")
    add("--live-dispatch-ms", type=float, help="longest batch with lockstep rows while live sessions play (default 10)")
    add("--inline-ms", type=float, help="batches that short skip the engine's thread on a CPU (default 4; 0: none)")
    add("--drain-grace-s", type=float, help="after SIGTERM sessions may play on for (default 30)")
    add("--poll-s", type=float, help="how often to look at the store (default 1)")
    add("--keep-versions", type=int, help="versions of a policy that stay loaded (default 4)")
    add("--trace", type=float, metavar="SHARE", help="export the spans of at most this share of the steps by "
        "OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT says (default 0: none)")  # fmt: skip
    add("--record-sessions", metavar="DIR", help="keep the games of players who consent to it, as P2P recordings")
    add("--log-format", choices=["text", "json"], help="lines for people or for programs (default text)")


def _add_security(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who may call")
    add = group.add_argument
    add("--tls-cert", metavar="FILE", help="certificate chain of the gRPC ports (PEM); read again when it changes")
    add("--tls-key", metavar="FILE", help="its private key")
    add("--tls-client-ca", metavar="FILE", help="mutual TLS: callers must show a certificate of these authorities")
    add(
        "--tls-client-scopes",
        metavar="SCOPES",
        help="scopes of callers with a certificate and no key (default: play,rollout, or none where there are keys)",
    )
    add("--keys", metavar="FILE", help="file of API keys (playserve keys issue); read again when it changes")
    add_issuer_flags(group)
    add("--anonymous", action="store_true", default=None, help="serve callers without a key, too, for play and rollout")


def _add_registry(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("in a fleet")
    add = group.add_argument
    add("--registry", metavar="URL", help="follow the registry of this control plane: keys, aliases, canaries, drains")
    add("--registry-key-file", metavar="FILE", help="file with the API key for it")
    add("--registry-ca", metavar="FILE", help="authorities to trust for it instead of the system's (PEM)")
    add("--registry-cache", metavar="FILE", help="keeps its last view, to start from when it is down")
    add("--registry-poll-s", type=float, help="how often to ask (default 2)")
    add("--replica", metavar="NAME", help="name of this server in the fleet (default: the host's)")
    add("--advertise", metavar="HOST:PORT", help="where clients reach this server (default: what it listens on)")
    add("--peers", metavar="HOST:PORT,...", help="other replicas, to which a drain hands its sessions")
    add("--peers-dns", metavar="NAME:PORT", help="each address of this name is such a replica")
    add("--peers-key-file", metavar="FILE", help="file with an API key of scope admin for them")
    add("--peers-ca", metavar="FILE", help="authorities to trust for them (PEM; default: --tls-client-ca)")
    add("--peers-name", metavar="NAME", help="name in their certificates, if not the host of their address")
    add("--redirect", action="store_true", default=None, help="send players whom this server has no room for to a peer "
        "that has; players must reach the peers' addresses")  # fmt: skip
    add("--handoff-sessions", type=int, help="sessions on their way to them at a time (default 4)")
    add("--advertise-admin", metavar="HOST:PORT", help="where the control plane reaches AdminService")


def _factory(text: str) -> tuple[str, Callable[[], Any]]:
    name, _, target = text.partition("=")
    module, _, attribute = target.partition(":")
    if not (name and module and attribute):
        raise BadSettingError(f"--policy {text!r}, wanted NAME=MODULE:FACTORY")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BadSettingError(f"--policy {text!r}: {error}") from error
    if not callable(factory):
        raise BadSettingError(f"--policy {text!r}: {attribute} is not a function")
    return check_policy_name(name), factory


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from prometheus_client import disable_created_metrics
    from pydantic import ValidationError

    from playserve_services.inference.app import InferenceServer
    from playserve_services.inference.logs import configure_logs
    from playserve_services.inference.settings import ServeSettings
    from playserve_services.validation import in_words
    from playserve_trainer.models.device import resolve_device

    skipped = {"command", "run", "policy_factories"}
    given = {key: value for key, value in vars(args).items() if key not in skipped and value is not None}
    try:
        settings = ServeSettings(**given)
    except ValidationError as error:
        raise BadSettingError(in_words(error.errors(), whole="settings")) from error
    settings = settings.model_copy(update={"device": str(resolve_device(settings.device))})
    factories = dict(_factory(text) for text in args.policy_factories)
    if not settings.store and not factories:
        raise BadSettingError("nothing to serve: give --store or --policy")
    configure_logs(settings.log_format)
    disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for every counter, which nobody here reads

    def started(server: InferenceServer) -> None:
        # What is loaded now stays: without it each full collection walks all of torch, 50 ms in the middle of a game.
        gc.collect()
        gc.freeze()
        # The collector puts off a full collection until a quarter of what the last one saw is new. It shall see only
        # what is not frozen, or the cycles of ended sessions pile up by the ten thousand.
        gc.collect()
        # The one line that programs which start a server wait for.
        ports = {"port": server.port, "admin": server.admin_port, "metrics": server.metrics_port,
                 "health": server.health_port}  # fmt: skip
        shown = " ".join(f"{name}={port}" for name, port in ports.items() if port)
        print(f"playserve ready host={settings.host} {shown}", flush=True)

    async def main() -> None:
        await InferenceServer(settings, factories).run(started)

    if sys.platform == "win32":
        asyncio.run(main())
    else:
        import uvloop

        uvloop.run(main())
    return 0
