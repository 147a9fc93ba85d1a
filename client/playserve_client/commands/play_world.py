"""`playserve play --world`: a served world in a window, with keyboard and mouse; or a film of it, without a window."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve.settings import Pace, Sampling, SamplingMode
from playserve_client.client import PolicyClient
from playserve_client.commands.dialing import dial_options
from playserve_client.results import PolicyInfo
from playserve_client.session import Session
from playserve_client.workers import signals_call
from playserve_client.worlds.bindings import Bindings
from playserve_client.worlds.game import WorldGame
from playserve_client.worlds.paint import Painter
from playserve_client.worlds.typed import TypedKeys, bindings_of

__all__ = ["add_world_arguments", "play_world"]

_OVER_S = 1.5  # a world that has ended is looked at for so long before the next one begins


def add_world_arguments(add: Any) -> None:
    """Add what --world needs beside the options of `play`, by a parser's `add_argument`."""
    add("--world", metavar="NAME", help="play in a world at the server, in a window of its own (instead of --policy "
        "and --window)")  # fmt: skip
    add("--film", type=Path, metavar="OUT.mp4|OUT.gif", help="with --world: no window, a film instead")
    add("--actions", default="random", metavar="random|FILE", help="with --film: what is done (default random); an "
        ".npz of `playserve rollout`, or text with an action a line")  # fmt: skip
    add("--steps", type=int, default=300, help="with --film: most frames (default 300)")


def play_world(args: argparse.Namespace) -> int:
    """Play or film until somebody ends it: 0, or 130 after SIGINT or SIGTERM."""
    if args.policy or args.window or args.region:
        raise BadSettingError("--world plays by itself: leave out --policy, --window and --region")
    if args.film is not None and args.steps < 1:
        raise BadSettingError(f"--steps {args.steps}, wanted 1 or more")
    if args.film is None:
        from playserve_client.worlds.window import load_pygame

        load_pygame()  # brings the missing-extra hint before anything is done
    sampling = Sampling(mode=SamplingMode.ARGMAX if args.argmax else SamplingMode.SAMPLE, temperature=args.temperature)
    with PolicyClient(args.server, **dial_options(args)) as client:
        info = client.get_policy(args.world, args.version)
        paint = Painter(info.spec)
        rate_hz = info.spec.rate_hz or args.rate
        pace = Pace.LIVE if args.film is None else Pace.LOCKSTEP
        with client.play(
            args.world, version=info.spec.version, pace=pace, sampling=sampling, seed=args.seed, rate_hz=rate_hz
        ) as session:
            if args.film is not None:
                numbers = _film(args, session, rate_hz, paint)
            else:
                numbers = _window(args, info, session, rate_hz, paint)
    report = {
        "world": info.spec.name, "version": info.spec.version, "server": args.server, "seed": session.seed,
        "rate_hz": rate_hz, **numbers,
    }  # fmt: skip
    ended = report.pop("ended_by", "")
    print(json.dumps(report))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 130 if ended else 0


def _film(args: argparse.Namespace, session: Session, rate_hz: float, paint: Painter) -> dict[str, Any]:
    from playserve_client.worlds.film import FilmWriter, actions_of, film

    actions = actions_of(args.actions, session.spec.action, session.seed)
    with FilmWriter(args.film, paint.size, rate_hz) as writer:
        numbers = film(session, actions, args.steps, lambda shown: writer.add(paint(shown.frame)))
    return {"film": str(args.film), **numbers}


def _window(
    args: argparse.Namespace, info: PolicyInfo, session: Session, rate_hz: float, paint: Painter
) -> dict[str, Any]:
    from playserve_client.worlds.window import WorldWindow

    bindings = bindings_of(session.spec.action)
    game = WorldGame(session, rate_hz, min(session.ping() for _ in range(3)))
    title = f"{info.spec.name} {info.spec.version} - playserve"
    with WorldWindow(title, paint.size, holds_mouse=bindings.uses_mouse) as window:
        mouse = "a click holds the mouse, Escape lets it go; " if bindings.uses_mouse else ""
        print(
            f"playing in {info.spec.name!r} at {rate_hz:g} Hz; {bindings.help()}; {mouse}F2 another world, F3 stop and "
            "go on, F12 ends",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        ended = _Run(game, window, bindings, rate_hz, paint).play(args.seconds)
    return {**ended, **game.report()}


class _Run:
    """The loop of a window."""

    def __init__(
        self, game: WorldGame, window: Any, bindings: Bindings | TypedKeys, rate_hz: float, paint: Painter
    ) -> None:
        self._game, self._window, self._bindings, self._paint = game, window, bindings, paint
        self._period_s = 1 / rate_hz
        self._paused = False
        self._over_at: float | None = None
        self._ended_by = ""

    def play(self, seconds: float | None) -> dict[str, Any]:
        """Play until the window is closed, or `seconds` are over, or a signal comes."""
        began = due = time.monotonic()
        with signals_call(self._signalled, signal.SIGINT, signal.SIGTERM):
            while not self._ended_by and (seconds is None or time.monotonic() - began < seconds):
                if not self._turn():
                    break
                due = max(due + self._period_s, time.monotonic() - self._period_s)  # after a pause there is no rush
                time.sleep(max(0.0, due - time.monotonic()))
        return {"ended_by": self._ended_by} if self._ended_by else {}

    def _signalled(self, number: int, _frame: Any) -> None:
        self._ended_by = signal.Signals(number).name

    def _turn(self) -> bool:
        """Play one period; return whether to go on."""
        game, window, wishes = self._game, self._window, self._window.read()
        if wishes.quit:
            return False
        self._paused ^= wishes.pause
        if game.over and self._over_at is None:
            self._over_at = time.monotonic()
        rested = self._over_at is not None and time.monotonic() - self._over_at > _OVER_S
        if wishes.begin or rested:
            game.begin()
            self._over_at = None
        shown = None
        if not self._paused:
            shown = game.tick(self._bindings.take(window.held, ready=game.ready))
        window.draw(None if shown is None else self._paint(shown.frame), self._text())
        return True

    def _text(self) -> str:
        game, score = self._game, self._game.score
        state = "stopped" if self._paused else "over" if game.over else f"{game.frames_per_s():.0f} frames/s"
        unsure = "" if score.uncertainty is None else f"   uncertainty {score.uncertainty:.2f} nats"
        return (
            f"reward {score.reward:g}   step {score.steps}{unsure}   {state}   {score.latency_ms:.0f} ms   "
            f"world {score.episode + 1}"
        )
