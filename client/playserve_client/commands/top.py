"""`playserve top`: a terminal view of one inference server."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playserve.errors import BadSettingError
from playserve_client.commands.dialing import add_dial_arguments, dial_options
from playserve_client.top.table import lines_of
from playserve_client.top.watch import Watcher

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Show a server's policies, slots, sessions and times, again and again."

# Lines of the screen that are not sessions: the head, the gaps, the "more".
_OTHER_LINES = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("address", metavar="ADDRESS", help="host:port of AdminService (playserve serve --admin-port)")
    add(
        "--metrics",
        default="",
        metavar="URL",
        help="its /metrics (playserve serve --metrics-port), for rates and times",
    )
    add("--policy", default="", metavar="NAME", help="only this policy's sessions")
    add("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks (default 2)")
    add("--once", action="store_true", help="look twice, an interval apart, print one table and leave")
    add("--json", action="store_true", help="one JSON object a line, for programs")
    add("--timeout", type=float, default=5.0, metavar="SECONDS", help="longest wait for an answer (default 5)")
    add_dial_arguments(add)
    parser.epilog = "Where the server wants keys, it wants one with the scope admin."


def run(args: argparse.Namespace, sleep: Callable[[float], None] = time.sleep) -> int:
    """Look until Ctrl-C; with --once 1 where the server cannot be reached."""
    if not args.interval > 0:
        raise BadSettingError(f"an interval of {args.interval:g} s, wanted more than 0")
    with Watcher(
        args.address,
        metrics_url=args.metrics,
        policy=args.policy,
        timeout_s=args.timeout,
        **dial_options(args),
    ) as watcher:
        if args.once:
            view = watcher.look()
            if view["reachable"]:  # rates are between two looks
                sleep(args.interval)
                view = watcher.look()
            print(json.dumps(view) if args.json else "\n".join(lines_of(view)), flush=True)
            return 0 if view["reachable"] else 1
        with _showing(as_json=args.json) as show:
            try:
                while True:
                    show(watcher.look())
                    sleep(args.interval)
            except KeyboardInterrupt:
                return 0


@contextmanager
def _showing(*, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Draw on the whole screen of a terminal; elsewhere print one view after another."""
    if as_json:
        yield lambda view: print(json.dumps(view), flush=True)
    elif not sys.stdout.isatty():
        yield lambda view: print("\n".join(lines_of(view)) + "\n", flush=True)
    else:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(), screen=True, auto_refresh=False) as live:

            def draw(view: dict[str, Any]) -> None:
                policies = len(view.get("policies", ()))
                rows = max(3, shutil.get_terminal_size().lines - policies - _OTHER_LINES)
                live.update(Text("\n".join(lines_of(view, rows=rows)), no_wrap=True, overflow="crop"), refresh=True)

            yield draw
