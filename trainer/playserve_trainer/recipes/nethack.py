"""The `nethack` recipe: whole games of an expert, the memory carried along, and guesses to compare with."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from playserve_trainer.recipes import Prepared, held_out_maker, take_flags
from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from playserve_client.nethack.stats import KeyStatistics
    from playserve_trainer.data.nethack import NetHackGames, NetHackStreams
    from playserve_trainer.models.policy import Policy

__all__ = ["DEFAULTS", "MODEL_FLAGS", "SUMMARY", "TASK_FLAG", "configure", "prepare", "read", "settings",
           "sketch"]  # fmt: skip

SUMMARY = "an LSTM or a causal transformer, on NetHack games of an expert"
TASK_FLAG = "character"
MODEL_FLAGS: tuple[str, ...] = ("width", "core", "layers", "context", "inventory", "message", "map")

_FAMILY = "nethack"
_DEFAULT_CHARACTER = "mon-hum-neu-mal"

#: Settings of every core, and beneath a core's name those in which it differs.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "": MappingProxyType(
            {
                "model": {"width": 192},
                "batch_size": 16,
                "sequence_length": 32,
                "optimizer": "adamw",
                "lr": 3e-3,
                "weight_decay": 0.01,
                "beta2": 0.99,
                "clip_norm": 1.0,
                "warmup_steps": 50,
                "schedule": "cosine",
                "eval_samples": 16_384,
                "eval_every_steps": 500,
            }
        ),
        "lstm": MappingProxyType({}),
        "transformer": MappingProxyType({"lr": 2e-3, "warmup_steps": 200}),
    }
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the family's flags."""
    given_only: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument(
        "--character", **given_only,
        help=f'role, race, alignment and gender of the games, such as {_DEFAULT_CHARACTER} (the default); "@": all',
    )  # fmt: skip
    parser.add_argument("--core", choices=("lstm", "transformer"), help="what remembers (default lstm)", **given_only)
    parser.add_argument("--width", type=int, help="the size dial: units of the core", **given_only)
    parser.add_argument("--layers", type=int, help="layers of the core (default 1)", **given_only)
    parser.add_argument("--context", type=int, help="steps that a transformer looks back over", **given_only)
    parser.add_argument(
        "--inventory", action="store_true", help="learn from inv_glyphs too; the games must hold them", **given_only
    )
    parser.add_argument(
        "--no-message", dest="message", action="store_false", help="leave out the message line", **given_only
    )
    parser.add_argument(
        "--no-map", dest="map", action="store_false",
        help="leave out the map, the crop around the cursor, and the cursor's place", **given_only,
    )  # fmt: skip


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings for the flags given; `character` becomes `task`, the model's flags `model`."""
    rest = dict(given)
    character = rest.pop(TASK_FLAG, _DEFAULT_CHARACTER)
    model = take_flags(rest, MODEL_FLAGS)
    values: dict[str, Any] = {**DEFAULTS[""], **DEFAULTS.get(model.get("core", "lstm"), {})}
    values |= {"family": _FAMILY, "task": character, "model": {**values["model"], **model}}
    return {**values, **rest}


@dataclass(frozen=True, slots=True)
class _Data:
    """Games, and what guesses know of them.

    Attributes:
        games: The games.
        sides: Keys of the games to learn from, and of those held out.
    """

    games: NetHackGames
    sides: tuple[KeyStatistics, KeyStatistics]


def read(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> _Data:
    """Open the games, and count their keys.

    Raises:
        NotFoundError: There are no games, or none of the character.
        NoKeysError: They hold screens but no keys.
    """
    from playserve_client.nethack.stats import key_statistics
    from playserve_trainer.data.nethack import load_nethack

    games = load_nethack(Path(config.data), held_out_fraction=config.held_out, character=config.task, progress=progress)
    learnt, held_out = (key_statistics(games.dataset, games.select(held_out=side)) for side in (False, True))
    return _Data(games, (learnt, held_out))


def prepare(
    config: TrainConfig, progress: Callable[[int, int], None] | None = None, *, data: _Data | None = None
) -> Prepared:
    """Open the games, unless they are given, and make the policy.

    Raises:
        NotFoundError: There are no games, or none of the character.
        NoKeysError: They hold screens but no keys.
        BadSettingError: The inventory is wanted, and the games do not hold it.
    """
    import torch

    from playserve_trainer.data.key_baselines import key_baselines
    from playserve_trainer.data.nethack import game_hash
    from playserve_trainer.data.split import share_digest, share_of_episodes, unique_names

    data = read(config, progress) if data is None else data
    games, metas = data.games, data.games.dataset.games
    torch.manual_seed(config.seed)
    policy = sketch(config)
    lengths, hashes = games.dataset.lengths, [game_hash(meta) for meta in metas]
    learnt = share_of_episodes(games.select(held_out=False), hashes, lengths, config.data_share)
    source = _source(games, learnt, config)
    digest = share_digest(games.report.digest, config.data_share)
    report = dataclasses.replace(games.report, samples=source.num_samples, digest=digest)
    if not config.held_out:
        return Prepared(policy=policy, source=source, held_out=None, report=report)
    names, held_out = unique_names([meta.name for meta in metas]), games.select(held_out=True)
    steps = int(lengths[held_out].sum())
    return Prepared(
        policy=policy,
        source=source,
        held_out=_source(games, held_out, _of_rows(config, steps)),
        report=report,
        baselines=key_baselines(*data.sides),
        held_out_as=held_out_maker(
            config, names, lambda cut: _source(games, held_out, _of_rows(cut, steps), tell_episodes=True)
        ),
    )


def sketch(config: TrainConfig) -> Policy:
    """Return a policy of the run's shapes; the data decide none of them."""
    from playserve_client.nethack.keys import ACTION_NAMES, NUM_ACTIONS
    from playserve_trainer.models.registry import build

    protocol = {"character": config.task, "num_actions": NUM_ACTIONS, "action_names": list(ACTION_NAMES)}
    return build(_FAMILY, {**protocol, **config.model})


def _of_rows(config: TrainConfig, steps: int) -> TrainConfig:
    """Return the settings with as many rows as held-out games of so many steps fill: maybe fewer than training has."""
    rows = min(config.batch_size, max(1, steps // config.sequence_length))
    return dataclasses.replace(config, batch_size=rows, accumulate=1)


def _source(
    games: NetHackGames, chosen: NDArray[np.int64], config: TrainConfig, *, tell_episodes: bool = False
) -> NetHackStreams:
    """Return the batches of some games, cut as the settings say."""
    from playserve_trainer.data.nethack import NetHackStreams

    return NetHackStreams(
        games.dataset,
        chosen,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        seed=config.seed,
        inventory=bool(config.model.get("inventory", False)),
        tell_episodes=tell_episodes,
    )
