"""Agents in served worlds: the world is the environment, and what it dreams is the score."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.evaluate.families.base import Choice, FactColumn, Progress, Recordings
from playserve_client.evaluate.families.generic import GenericFamily, most_frequent_of

if TYPE_CHECKING:
    from playserve.specs import PolicySpec
    from playserve_client.evaluate.journal import Journal
    from playserve_client.evaluate.plan import EnvChoice, Settings

__all__ = ["WorldFamily"]


class WorldFamily(GenericFamily):
    """See :class:`playserve_client.evaluate.families.base.Family`."""

    max_steps = 1000
    packages = ("gymnasium", "numpy")
    columns = (FactColumn("uncertainty", "uncertainty (nats)"),)
    records_films = False
    summary = "a served world in the place of the game: world:NAME, or world --name NAME"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the world's name, and where it is served."""
        parser.add_argument("--name", required=True, metavar="NAME", help="the world at the server")
        parser.add_argument("--world-version", default="", help="its version or alias (default: the newest)")
        parser.add_argument("--world-server", metavar="HOST:PORT", help="its server (default: that of --server)")

    def choose(self, args: argparse.Namespace, options: Mapping[str, Any], max_steps: int) -> Choice:
        """Return the world as it is served, and how the agent sees it."""
        from playserve_client.client import PolicyClient
        from playserve_client.commands.dialing import dial_options
        from playserve_client.envs.world import eyes_of
        from playserve_client.evaluate.plan import EnvChoice
        from playserve_client.worlds.view import check_world

        if args.stickiness:
            raise BadSettingError(f"--stickiness {args.stickiness} has no meaning in a world")
        server, dial = args.world_server or args.server, dial_options(args)
        with PolicyClient(server, **dial) as client:
            world = client.get_policy(args.name, args.world_version).spec
        check_world(world)
        known: dict[str, Any] = {"version": world.version}
        if args.policy and not args.no_agent:
            with PolicyClient(args.server, **dial) as client:
                agent = client.get_policy(args.policy, args.version).spec
            known["eyes"] = asdict(eyes_of(agent))
        env = EnvChoice(family="world", game=args.name, options={**known, **options}, max_steps=max_steps)
        action, notes = most_frequent_of(args, world.environment.get("game", ""))
        tls = dial["tls"] if isinstance(dial["tls"], bool) else dial["tls"].to_json()
        return Choice(
            env=env,
            most_frequent=action,
            notes=(f"the world is version {world.version} of {world.name!r} (family {world.family})", *notes),
            dial={**dial, "tls": tls, "server": server},
        )

    def default_policy(self, env: EnvChoice) -> str:
        """Return nothing: a world does not say who plays in it."""
        return ""

    def title(self, env: EnvChoice) -> str:
        """Return the world's name."""
        return f"the world {env.game}"

    def factory_options(self, env: EnvChoice, stickiness: float | None) -> dict[str, Any]:
        """Return the world's version, how the agent sees it, and the cap."""
        return {**env.options, "max_steps": env.max_steps}

    def protocol(self, settings: Settings) -> list[str]:
        """Return that nothing here is the game."""
        return ["every frame, reward and end is the world's own: no emulator runs; its session has the episode's seed"]

    def check_policy(self, settings: Settings, spec: PolicySpec) -> list[str]:
        """Accept every policy: inputs and actions are checked elsewhere."""
        return []

    def record(self, settings: Settings, journal: Journal, count: int, progress: Progress) -> Recordings:
        """Film nothing here: `playserve play --world` does, by an episode's seed and actions."""
        made = Recordings()
        made.notes.append(
            f"no films here: playserve play --world {settings.env.game} --film F.mp4 --seed SEED --actions "
            f"{journal.actions_dir}/ROW/EPISODE.npz shows an episode again"
        )
        return made
