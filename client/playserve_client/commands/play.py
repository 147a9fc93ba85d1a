"""``playserve play``: a policy plays a game in a window of this desktop; ``play doctor`` says what is missing.

``play --world`` is the other way round: a person plays in a world that the server makes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playserve.errors import BadSettingError
from playserve_client.commands.dialing import add_dial_arguments, add_trace_argument
from playserve_client.commands.play_world import add_world_arguments, play_world

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Let a policy play a game in a window of this desktop, take over at any moment; or play in a served world."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options, and `doctor`."""
    _add_options(parser, top=True)
    add = parser.add_argument
    add("--text", default="", metavar="INSTRUCTION", help="what to do; typed lines change it during play")
    add("--rate", type=float, default=20.0, metavar="HZ", help="frames a second, for policies without a rate of their "
        "own (default 20)")  # fmt: skip
    add("--mouse-scale", type=float, default=1.0, metavar="X", help="pixels of mouse motion for one that the policy "
        "means (default 1): the game's sensitivity against that of the training data")  # fmt: skip
    add("--deadline-ms", type=float, default=100.0, help="age of a frame beyond which its answer is never applied "
        "(default 100)")  # fmt: skip
    add("--max-missed", type=int, default=3, metavar="N", help="deadlines missed in a row after which all keys are "
        "lifted (default 3)")  # fmt: skip
    add("--resume-key", default="BracketLeft", metavar="CODE", help="gives control back to the policy; the "
        "game sees it, too (default BracketLeft)")  # fmt: skip
    add("--panic-key", default="F12", metavar="CODE", help="ends it all (default F12)")
    add("--takeover-px", type=float, default=1.0, metavar="PX", help="mouse motion within a frame by which you take "
        "over (default 1)")  # fmt: skip
    add("--temperature", type=float, default=1.0, help="of the sampling (default 1)")
    add("--argmax", action="store_true", help="take the most probable action")
    add("--mouse-decode", default="default", metavar="NAME", help="how mouse motion becomes pixels: default, mean, "
        "conservative, truncated_normal")  # fmt: skip
    add("--seed", type=int, help="of the sampling (default: the server draws one)")
    add("--dry-run", action="store_true", help="print actions instead of pressing them; you play meanwhile")
    add("--allow-watching", action="store_true", help="the server's operators may watch: your window's frames and the "
        "policy's keys (default: nobody may)")  # fmt: skip
    add("--allow-recording", action="store_true", help="the server may keep recordings of the window's frames and of "
        "what was pressed (default: it may not)")  # fmt: skip
    add("--record", type=Path, metavar="DIR", help="keep P2P recordings there: yours as user, the policy's as system")
    add("--game", default="", help="its name in the recordings (default: the window's title)")
    add("--seconds", type=float, metavar="S", help="end after so long (default: never)")
    add_trace_argument(add)
    add_world_arguments(add)
    add("--out", type=Path, metavar="FILE", help="JSON file of the run's numbers (default: runs/play/...)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    doctor = actions.add_parser("doctor", help="check display, permissions, mouse, server and rate")
    _add_options(doctor, top=False)
    doctor.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="JSON file of the findings")


def _add_options(parser: argparse.ArgumentParser, *, top: bool) -> None:
    def add(name: str, *, default: object = None, **options: object) -> None:
        parser.add_argument(name, default=default if top else argparse.SUPPRESS, **options)  # type: ignore[arg-type]

    add("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="policy server, or several by commas "
        "(default 127.0.0.1:50051)")  # fmt: skip
    add("--policy", metavar="NAME", help="policy at the server")
    add("--version", default="", help="its version or alias (default: the newest)")
    add("--window", metavar="TITLE", help="the game's window, by its title or a part of it")
    add("--region", metavar="X,Y,W,H", help="or a part of the screen, and the window that lies there")
    add("--codec", default="raw", choices=["raw", "lz4", "jpeg"], help="packing of frames; jpeg is lossy (default raw)")
    add_dial_arguments(add)


def run(args: argparse.Namespace) -> int:
    """Play, or look for what is missing: 0, 1 where the doctor found a hindrance, 130 after SIGINT or SIGTERM."""
    if args.action == "doctor":
        from playserve_client.commands.play_doctor import examine

        return examine(args)
    if args.world:
        return play_world(args)
    if args.film is not None:
        raise BadSettingError("--film needs --world NAME: only a world can be played without a window")
    from playserve_client.commands.playing import play

    if bool(args.window) == bool(args.region):
        raise BadSettingError("what to play: give --window TITLE or --region X,Y,W,H")
    if not args.policy:
        raise BadSettingError("who plays: give --policy NAME")
    return play(args)
