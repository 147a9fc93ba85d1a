"""`playserve recap`: lets unmodified clients of Open Pixel2Play play at our server."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError
from playserve_client.commands.dialing import add_dial_arguments, dial_options

if TYPE_CHECKING:
    from playserve_client.recap.connection import Limits

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Serve clients of Open Pixel2Play (Recap) on a Unix socket or TCP, each with a session of its own."

#: Where their client looks.
_DEFAULT_SOCKET = Path("/tmp/uds.recap")  # noqa: S108 - it is theirs to choose


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("address", metavar="ADDRESS", help="host:port of the policy server")
    add("--policy", required=True, metavar="NAME", help="a policy of RGB frames, keyboard and mouse")
    add("--version", default="", help="its version or alias (default: the newest)")
    add("--instruction", default="", metavar="TEXT", help="for policies that take one; the same for every client")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--unix", type=Path, default=_DEFAULT_SOCKET, metavar="PATH", help="default %(default)s")
    where.add_argument("--tcp", metavar="HOST:PORT", help="listen there instead")
    add(
        "--socket-mode", default="600", metavar="OCTAL", help="who may connect (default 600: the owner; theirs has 777)"
    )
    add("--insecure-listen", action="store_true", help="listen beyond loopback: the protocol has neither TLS nor keys")
    add("--max-clients", type=int, default=16, help="connections at once (default 16)")
    add("--max-frame-mib", type=int, default=8, help="largest message in MiB (default 8: a screen of 1920 x 1080)")
    add("--idle-s", type=float, default=60.0, help="a client without a frame for so long is gone (default 60)")
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="longest wait for our server (default 10)")
    add_dial_arguments(add)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from playserve_client.recap.connection import Limits

    if args.max_clients < 1 or args.max_frame_mib < 1 or not args.idle_s > 0:
        raise BadSettingError("wanted 1 or more clients, frames of 1 MiB or more, and an idle time of more than 0 s")
    limits = Limits(
        max_message_bytes=args.max_frame_mib * 1024 * 1024, idle_s=args.idle_s, max_clients=args.max_clients
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    mode = _mode(args.socket_mode)
    tcp = None if args.tcp is None else _host_and_port(args.tcp)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(args, limits, mode, tcp))
    return 0


async def _serve(args: argparse.Namespace, limits: Limits, mode: int, tcp: tuple[str, int] | None) -> None:
    from playserve_client.aio import PolicyClient
    from playserve_client.recap.adapter import RecapAdapter

    stopped = asyncio.Event()
    with suppress(NotImplementedError):  # Windows: there Ctrl-C interrupts
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with (
        PolicyClient(args.address, timeout_s=args.timeout, **dial_options(args)) as client,
        RecapAdapter(client, args.policy, version=args.version, instruction=args.instruction, limits=limits) as adapter,
    ):
        if tcp is None:
            await adapter.listen_unix(args.unix, mode)
            where = f"unix={args.unix}"
        else:
            where = f"tcp={tcp[0]}:{await adapter.listen_tcp(*tcp, insecure=args.insecure_listen)}"
        # The one line that programs which start an adapter wait for.
        print(f"playserve recap ready {where}", flush=True)
        await stopped.wait()


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise BadSettingError(f"--socket-mode {text!r}, wanted octal digits such as 600 or 660")
    return mode


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and int(port) <= 65535):
        raise BadSettingError(f"--tcp {text!r}, wanted HOST:PORT, such as 127.0.0.1:9000")
    return host.strip("[]"), int(port)
