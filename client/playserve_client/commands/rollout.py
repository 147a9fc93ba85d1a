"""``playserve rollout``: play many episodes against a policy server and print how good the policy is."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import sys
from collections import UserDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.commands.dialing import add_dial_arguments, dial_options
from playserve_client.commands.pairs import json_pairs
from playserve_client.workers import sigterm_interrupts

if TYPE_CHECKING:
    from playserve_client.evaluate.families import Choice
    from playserve_client.evaluate.plan import Settings

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Play many episodes against a policy server and print a table with error bars."

_FEW = 20


class _Families(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Lets "world:NAME" stand for "world --name NAME"."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.choices: Any = _Choices(self._name_parser_map)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        family, _, name = values[0].partition(":")
        named = [family, "--name", name, *values[1:]] if name else values
        super().__call__(parser, namespace, named, option_string)


class _Choices(UserDict[str, Any]):
    """The families, to which "world:NAME" belongs."""

    def __init__(self, families: dict[str, Any]) -> None:
        self.data = families  # not a copy: they are added later

    def __contains__(self, name: object) -> bool:
        return ("world" if str(name).startswith("world:") else name) in self.data


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each family, ``merge``, and the options of a user's own environment."""
    from playserve_client.evaluate.families import COMMANDS

    # The options stand at `rollout` with their defaults, and at `rollout atari` without: they may be given on
    # either side of the word.
    _add_options(parser, top=True)
    parser.add_argument("--env", metavar="MODULE:FACTORY", help="play your own Gymnasium environment")
    parser.add_argument("--env-game", metavar="NAME", default="", help="first argument of that factory")
    families = parser.add_subparsers(dest="family", metavar="FAMILY", action=_Families)
    for name, family in COMMANDS.items():
        command = families.add_parser(name, help=family.summary)
        family.configure(command)
        _add_options(command, top=False)
    merge = families.add_parser("merge", help="put the shards of one run together")
    merge.add_argument("folders", nargs="+", type=Path, metavar="OUT", help="one folder a shard")
    merge.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder of the whole run")
    merge.add_argument("--partial", action="store_true", help="also where shards or episodes are missing")


def _add_options(parser: argparse.ArgumentParser, *, top: bool) -> None:
    def add(name: str, *, default: Any = None, **options: Any) -> None:
        parser.add_argument(name, default=default if top else argparse.SUPPRESS, **options)

    add("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="policy server, or several by commas "
        "(default 127.0.0.1:50051)")  # fmt: skip
    add("--policy", metavar="NAME", help="policy at the server (default: the game)")
    add("--version", default="", help="its version or alias (default: the newest)")
    add("--episodes", default=100, type=int, help="episodes of the sampled agent at each stickiness (default 100)")
    add("--argmax-episodes", type=int, help="episodes of the agent without sampling; 0: none (default 20 or "
        "--episodes; nethack: 0)")  # fmt: skip
    add("--baseline-episodes", type=int, help="episodes of each baseline (default 20 or --episodes)")
    add("--no-baselines", default=False, action="store_true", help="no rows beside the agent's")
    add("--no-agent", default=False, action="store_true", help="baselines only; needs no server")
    add("--most-frequent", type=int, metavar="ACTION", help="the expert's most frequent action, for its row")
    add("--data", type=Path, metavar="DIR", help="or: recordings or shards to count the expert's actions in")
    add("--envs", default=16, type=int, help="environments at a time (default 16)")
    add("--workers", type=int, help="processes that run them (default: the number of cores)")
    add("--stickiness", type=float, action="append", help="chance that a frame repeats the last action (repeatable; "
        "default 0 and 0.25; Atari only)")  # fmt: skip
    add("--max-steps", type=int, help="cut episodes after so many steps (default 27000; nethack: 100000)")
    add(
        "--env-option", default=[], action="append", metavar="KEY=JSON", help="argument of the environment (repeatable)"
    )
    add("--instruction", metavar="TEXT", help="told to the agent in every episode (default: what the environment says)")
    add("--mouse-decode", choices=["mean", "conservative", "truncated_normal"], help="how coarse mouse motion becomes "
        "pixels (default: as the policy does)")  # fmt: skip
    add("--seed-start", default=1_000_000, type=int, help="environment seed of episode 0 (default 1000000)")
    add("--shard", default="0/1", metavar="I/N", help="play part I (from 0) of N only; `rollout merge` joins them")
    add("--out", type=Path, help="folder of the run; the same command goes on there (default runs/rollout/...)")
    add(
        "--record",
        default=0,
        type=int,
        metavar="N",
        help="record N episodes: films of the best, the first, ...; nethack: ttyrecs of the first N",
    )
    add("--reconnect-s", default=60.0, type=float, help="how long the server may be away (default 60)")
    add("--codec", default="raw", choices=["raw", "lz4"], help="packing of observations (default raw)")
    add_dial_arguments(add)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; 130 after SIGINT or SIGTERM, with what is finished kept."""
    import rich  # noqa: F401 - brings the missing-extra hint before anything is done

    if args.family == "merge":
        return _merge(args)
    from playserve.specs import Codec
    from playserve_client.evaluate.run import RunOptions, evaluate
    from playserve_client.evaluate.table import print_report

    settings, choice = _settings(args)
    out = args.out or _default_out(settings)
    options = RunOptions(
        out=out,
        server=args.server,
        version=args.version,
        envs=args.envs,
        workers=args.workers if args.workers is not None else os.cpu_count() or 1,
        reconnect_s=args.reconnect_s,
        record=args.record,
        **dial_options(args),
        codecs=(Codec.LZ4,) if args.codec == "lz4" else (),
        notes=choice.notes,
        knowledge=choice.knowledge,
        dial=choice.dial,
    )
    for line in settings.protocol():
        print(line, file=sys.stderr)
    print(f"episodes go to {out} as they end; the same command with --out {out} goes on there", file=sys.stderr)
    with sigterm_interrupts():
        report = evaluate(settings, options)
    print_report(report)
    for video in report["videos"]:
        cut = f", its first {video['shown_steps']:,} steps" if video["shown_steps"] < video["steps"] else ""
        print(
            f"video of episode {video['number']} ({video['row']}, score {video['score']:g}{cut}): {out / video['path']}"
        )
    for item in report["recordings"]:
        print(f"recording of episode {item['number']} ({item['row']}, score {item['score']:g}): {out / item['path']}")
    print(f"every episode is in {out / 'results.json'}")
    return 130 if report["run"]["interrupted"] else 0


def _settings(args: argparse.Namespace) -> tuple[Settings, Choice]:
    from playserve_client.evaluate.families import family_of
    from playserve_client.evaluate.plan import Settings, Shard

    if args.family is None and not args.env:
        raise BadSettingError("nothing to play: name a family (playserve rollout atari --game ...) or --env")
    if args.family is not None and args.env:
        raise BadSettingError(f"--env {args.env} and the family {args.family!r}: give one of them")
    family = family_of(args.family or args.env)
    if args.record and family.records_films:
        import PIL  # noqa: F401 - brings the missing-extra hint before anything is done
    max_steps = family.max_steps if args.max_steps is None else args.max_steps
    choice = family.choose(args, json_pairs(args.env_option, "--env-option"), max_steps)
    policy = "" if args.no_agent else args.policy or family.default_policy(choice.env)
    if not (policy or args.no_agent):
        raise BadSettingError(f"{args.family or '--env'} needs --policy: the policy's name at the server")
    few = min(args.episodes, _FEW)
    argmax_episodes = few if choice.argmax_episodes is None else choice.argmax_episodes
    settings = Settings(
        env=choice.env,
        policy=policy,
        episodes=args.episodes,
        argmax_episodes=argmax_episodes if args.argmax_episodes is None else args.argmax_episodes,
        baseline_episodes=0 if args.no_baselines else few if args.baseline_episodes is None else args.baseline_episodes,
        seed_start=args.seed_start,
        stickiness=choice.stickiness,
        most_frequent=choice.most_frequent,
        expert=choice.expert,
        knowledge=_stamp(choice),
        instruction=args.instruction,
        mouse_decode=args.mouse_decode,
        shard=Shard.parse(args.shard),
    )
    if not settings.rows():
        raise BadSettingError("nothing to play: --no-agent and --no-baselines leave no player")
    return settings, choice


def _stamp(choice: Choice) -> dict[str, str]:
    """Return what tells whether two runs' baselines draw from the same file."""
    if not choice.knowledge:
        return {}
    return {"source": choice.knowledge_source, "sha256": hashlib.sha256(choice.knowledge).hexdigest()}


def _default_out(settings: Settings) -> Path:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    name = settings.policy or settings.env.game or "baselines"
    return Path("runs") / "rollout" / f"{name}-{stamp}-{os.getpid()}"


def _merge(args: argparse.Namespace) -> int:
    from playserve_client.evaluate.merge import merge_runs
    from playserve_client.evaluate.table import print_report

    if args.out is None:
        raise BadSettingError("merge needs --out: the folder of the whole run")
    report = merge_runs(args.folders, args.out, partial=args.partial)
    print_report(report)
    print(f"every episode is in {args.out / 'results.json'}")
    return 0
