"""``playserve replay``: watch a recorded NetHack game in the terminal, print a frame of it, or write it as a page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_client.terminal.open import GameEntry
    from playserve_client.terminal.recording import Recording

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Watch a recorded NetHack game."
_MOST_LISTED = 200
_MIN_SPEED, _MAX_SPEED = 0.01, 100_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``replay``."""
    parser.add_argument(
        "game",
        metavar="FILE",
        help="a ttyrec file; or a folder of ttyrecs or shards, a file of keys, or 'expert' (the games that come "
        "with playserve): these list their games, and FILE#GAME is one of them",
    )
    parser.add_argument("--speed", type=float, default=10.0, help="steps a second at the start (default %(default)g)")
    parser.add_argument(
        "--start", type=int, metavar="STEP", help="first step shown, from 0, and wait there (default: play at once)"
    )
    parser.add_argument("--plain", action="store_true", help="print the frame of --start as text, and end")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page that plays the game in a browser")
    parser.add_argument(
        "--frames",
        type=int,
        default=5000,
        help="of a longer game the page shows so many steps: from --start, or else those in which the score grows "
        "most (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Watch, print, write or list."""
    try:
        return _run(args)
    except BrokenPipeError:  # `playserve replay DIR | head`; nothing more can be said there, at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    from playserve_client.terminal.open import choose_game, list_games, split_target

    if not _MIN_SPEED <= args.speed <= _MAX_SPEED:
        raise BadSettingError(f"--speed is {_MIN_SPEED:g} to {_MAX_SPEED:,} steps a second, not {args.speed:g}")
    path, name = split_target(args.game)
    entries = list_games(path)
    if not name and len(entries) > 1:
        return _list(args.game, entries)
    recording = choose_game(path, entries, name).open()
    if args.start is not None and not 0 <= args.start < len(recording):
        raise BadSettingError(f"--start is 0 to {len(recording) - 1:,}, not {args.start:,}")
    try:
        return _show(recording, args)
    finally:
        if recording.problem and len(recording):
            print(
                f"playserve: {recording.name} is damaged: {recording.problem}; its first {len(recording):,} frames "
                "are whole",
                file=sys.stderr,
            )


def _show(recording: Recording, args: argparse.Namespace) -> int:
    if args.html is not None:
        return _write_page(recording, args)
    # Named so late because curses is not there on Windows.
    if not args.plain and sys.stdin.isatty() and sys.stdout.isatty():
        from playserve_client.terminal.viewer import watch

        watch(recording, start=args.start, speed=args.speed)
        return 0
    _print_frame(recording, args.start or 0)
    return 0


def _print_frame(recording: Recording, step: int) -> None:
    from playserve_client.terminal.keys import key_name

    print(recording.screen(step).text())
    key, score = recording.key(step), recording.score(step)
    facts = [f"step {step:,} of {len(recording) - 1:,}"]
    facts += [] if key is None else [f"next key {key_name(key)}"]
    facts += [] if score is None else [f"score {score:,}"]
    print(f"[{' | '.join(facts)}]")


def _list(target: str, entries: list[GameEntry]) -> int:
    for entry in entries[:_MOST_LISTED]:
        facts = ", ".join(f"{name} {value}" for name, value in entry.facts.items())
        print(f"{entry.name}  {facts}".rstrip())
    if len(entries) > _MOST_LISTED:
        print(f"... and {len(entries) - _MOST_LISTED:,} more")
    print(f"{len(entries):,} games; watch one with: playserve replay '{target}#{entries[0].name}'", file=sys.stderr)
    return 0


def _write_page(recording: Recording, args: argparse.Namespace) -> int:
    from playserve_client.terminal.html import render_page, render_recording

    replay = render_recording(recording, element_id="replay", start=args.start, frames=args.frames)
    args.html.parent.mkdir(parents=True, exist_ok=True)
    args.html.write_text(render_page(replay, recording.name), encoding="utf-8")
    print(f"wrote {args.html}, {args.html.stat().st_size / 1e6:.2f} MB")
    return 0
