"""``playserve rollout``: play many episodes against a policy server and print how good the policy is."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_client.evaluate.plan import Settings

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Play many episodes against a policy server and print a table with error bars."

_DEFAULT_STICKINESS = (0.0, 0.25)
_FEW = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``atari``, ``merge``, and the options of a user's own environment."""
    # The options stand at `rollout` with their defaults, and at `rollout atari` without: they may be given on
    # either side of the word.
    _add_options(parser, top=True)
    parser.add_argument("--env", metavar="MODULE:FACTORY", help="play your own Gymnasium environment")
    parser.add_argument("--env-game", metavar="NAME", default="", help="first argument of that factory")
    families = parser.add_subparsers(dest="family", metavar="FAMILY")
    atari = families.add_parser("atari", help="Atari, in the emulator that comes with ale-py")
    atari.add_argument("--game", required=True, help="such as breakout")
    _add_options(atari, top=False)
    merge = families.add_parser("merge", help="put the shards of one run together")
    merge.add_argument("folders", nargs="+", type=Path, metavar="OUT", help="one folder a shard")
    merge.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder of the whole run")
    merge.add_argument("--partial", action="store_true", help="also where shards or episodes are missing")


def _add_options(parser: argparse.ArgumentParser, *, top: bool) -> None:
    def add(name: str, *, default: Any = None, **options: Any) -> None:
        parser.add_argument(name, default=default if top else argparse.SUPPRESS, **options)

    add("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="policy server (default 127.0.0.1:50051)")
    add("--policy", metavar="NAME", help="policy at the server (default: the game)")
    add("--version", default="", help="its version or alias (default: the newest)")
    add("--episodes", default=100, type=int, help="episodes of the sampled agent at each stickiness (default 100)")
    add(
        "--argmax-episodes", type=int, help="episodes of the agent without sampling (default 20 or --episodes; 0: none)"
    )
    add("--baseline-episodes", type=int, help="episodes of each baseline (default 20 or --episodes)")
    add("--no-baselines", default=False, action="store_true", help="no random, most-frequent and expert rows")
    add("--no-agent", default=False, action="store_true", help="baselines only; needs no server")
    add("--most-frequent", type=int, metavar="ACTION", help="the expert's most frequent action, for its row")
    add("--data", type=Path, metavar="DIR", help="or: recordings to find it in")
    add("--envs", default=16, type=int, help="environments at a time (default 16)")
    add("--workers", type=int, help="processes that run them (default: the number of cores)")
    add("--stickiness", type=float, action="append", help="chance that a frame repeats the last action (repeatable; "
        "default 0 and 0.25; Atari only)")  # fmt: skip
    add("--max-steps", default=27_000, type=int, help="cut episodes after so many steps (default 27000)")
    add(
        "--env-option", default=[], action="append", metavar="KEY=JSON", help="argument of the environment (repeatable)"
    )
    add("--seed-start", default=1_000_000, type=int, help="environment seed of episode 0 (default 1000000)")
    add("--shard", default="0/1", metavar="I/N", help="play part I (from 0) of N only; `rollout merge` joins them")
    add("--out", type=Path, help="folder of the run; the same command goes on there (default runs/rollout/...)")
    add("--record", default=0, type=int, metavar="N", help="film the best episode, the first, ... N in all")
    add("--reconnect-s", default=60.0, type=float, help="how long the server may be away (default 60)")
    add("--codec", default="raw", choices=["raw", "lz4"], help="packing of observations (default raw)")
    add("--tls", default=False, action="store_true", help="dial with TLS; the key is read from PLAYSERVE_API_KEY")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; 130 after SIGINT or SIGTERM, with what is finished kept."""
    import rich  # noqa: F401 - brings the missing-extra hint before anything is done

    if args.family == "merge":
        return _merge(args)
    from playserve.specs import Codec
    from playserve_client.evaluate.run import RunOptions, evaluate
    from playserve_client.evaluate.table import print_report

    if args.record:
        import PIL  # noqa: F401 - the same
    settings, notes = _settings(args)
    out = args.out or _default_out(settings)
    options = RunOptions(
        out=out,
        server=args.server,
        version=args.version,
        envs=args.envs,
        workers=args.workers if args.workers is not None else os.cpu_count() or 1,
        reconnect_s=args.reconnect_s,
        record=args.record,
        api_key=os.environ.get("PLAYSERVE_API_KEY"),
        tls=args.tls,
        codecs=(Codec.LZ4,) if args.codec == "lz4" else (),
        notes=tuple(notes),
    )
    for line in settings.protocol():
        print(line, file=sys.stderr)
    print(f"episodes go to {out} as they end; the same command with --out {out} goes on there", file=sys.stderr)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        report = evaluate(settings, options)
    finally:
        signal.signal(signal.SIGTERM, before)
    print_report(report)
    for video in report["videos"]:
        cut = f", its first {video['shown_steps']:,} steps" if video["shown_steps"] < video["steps"] else ""
        print(
            f"video of episode {video['number']} ({video['row']}, score {video['score']:g}{cut}): {out / video['path']}"
        )
    print(f"every episode is in {out / 'results.json'}")
    return 130 if report["run"]["interrupted"] else 0


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _settings(args: argparse.Namespace) -> tuple[Settings, list[str]]:
    from playserve_client.evaluate.plan import EnvChoice, Settings, Shard
    from playserve_client.evaluate.players import has_expert

    if args.family is None and not args.env:
        raise BadSettingError("nothing to play: name a family (playserve rollout atari --game ...) or --env")
    if args.family is not None and args.env:
        raise BadSettingError(f"--env {args.env} and the family {args.family!r}: give one of them")
    atari = args.family == "atari"
    env = EnvChoice(
        family=args.family or args.env,
        game=args.game if atari else args.env_game,
        options=_options(args.env_option),
        max_steps=args.max_steps,
    )
    policy = "" if args.no_agent else args.policy or env.game
    if not (policy or args.no_agent):
        raise BadSettingError("--env needs --policy: the policy's name at the server")
    if not atari and args.stickiness:
        raise BadSettingError(f"--stickiness {args.stickiness} has no meaning for --env; pass it by --env-option")
    if atari:
        _check_game(env)
    action, notes = _most_frequent(args, env.game)
    few = min(args.episodes, _FEW)
    settings = Settings(
        env=env,
        policy=policy,
        episodes=args.episodes,
        argmax_episodes=few if args.argmax_episodes is None else args.argmax_episodes,
        baseline_episodes=0 if args.no_baselines else few if args.baseline_episodes is None else args.baseline_episodes,
        seed_start=args.seed_start,
        stickiness=tuple(args.stickiness or _DEFAULT_STICKINESS) if atari else (),
        most_frequent=action,
        expert=has_expert(env.family, env.game),
        shard=Shard.parse(args.shard),
    )
    if not settings.rows():
        raise BadSettingError("nothing to play: --no-agent and --no-baselines leave no player")
    if not settings.expert and not args.no_baselines:
        notes.append(f"no expert row: there is no scripted expert for {env.game or env.family}")
    return settings, notes


def _check_game(env: Any) -> None:
    """Name a wrong game or option here, not in a worker."""
    from playserve_client.envs.atari import AtariEnv

    try:
        AtariEnv(env.game, **env.factory_options(None))
    except TypeError as error:
        raise BadSettingError(f"--env-option: {error}") from error


def _options(pairs: list[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not (separator and key.isidentifier()):
            raise BadSettingError(f"--env-option {pair!r} is not KEY=JSON")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def _most_frequent(args: argparse.Namespace, game: str) -> tuple[int | None, list[str]]:
    from playserve_client.evaluate.players import most_frequent_action

    if args.no_baselines:
        return None, []
    if args.most_frequent is not None:
        return args.most_frequent, []
    if args.data is not None:
        action, share = most_frequent_action(args.data, game)
        return action, [f"action {action} is the most frequent in {args.data}: {share:.1%} of the steps"]
    return None, ["no most-frequent-action row: it is unknown; give --most-frequent ACTION or --data DIR"]


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
