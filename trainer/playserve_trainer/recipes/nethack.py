"""The `nethack` recipe: whole games of an expert, the memory carried along, and guesses to compare with."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from playserve_trainer.recipes import Prepared
from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    from playserve_trainer.data.nethack import NetHackStreams

__all__ = ["DEFAULTS", "MODEL_FLAGS", "SUMMARY", "TASK_FLAG", "configure", "prepare", "settings"]

SUMMARY = "an LSTM or a causal transformer, on NetHack games of an expert"
TASK_FLAG = "character"
MODEL_FLAGS: tuple[str, ...] = ("width", "core", "layers", "context", "inventory")

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


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings for the flags given; `character` becomes `task`, the model's flags `model`."""
    rest = dict(given)
    character = rest.pop(TASK_FLAG, _DEFAULT_CHARACTER)
    model = {flag: rest.pop(flag) for flag in MODEL_FLAGS if flag in rest}
    values: dict[str, Any] = {**DEFAULTS[""], **DEFAULTS.get(model.get("core", "lstm"), {})}
    values |= {"family": _FAMILY, "task": character, "model": {**values["model"], **model}}
    return {**values, **rest}


def prepare(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Open the games and make the policy.

    Raises:
        NotFoundError: There are no games, or none of the character.
        NoKeysError: They hold screens but no keys.
        BadSettingError: The inventory is wanted, and the games do not hold it.
    """
    import torch

    from playserve_client.nethack.keys import ACTION_NAMES, NUM_ACTIONS
    from playserve_client.nethack.stats import key_statistics
    from playserve_trainer.data.key_baselines import key_baselines
    from playserve_trainer.data.nethack import NetHackStreams, load_nethack
    from playserve_trainer.models.registry import build

    games = load_nethack(Path(config.data), held_out_fraction=config.held_out, character=config.task, progress=progress)
    protocol = {"character": config.task, "num_actions": NUM_ACTIONS, "action_names": list(ACTION_NAMES)}
    torch.manual_seed(config.seed)
    policy = build(_FAMILY, {**protocol, **config.model})

    def source(held_out: bool) -> NetHackStreams:
        chosen = games.select(held_out=held_out)
        frames = int(games.dataset.lengths[chosen].sum())
        # A handful of held-out games may fill fewer rows than a batch of training has.
        rows = min(config.batch_size, max(1, frames // config.sequence_length)) if held_out else config.batch_size
        return NetHackStreams(
            games.dataset,
            chosen,
            batch_size=rows,
            sequence_length=config.sequence_length,
            seed=config.seed,
            inventory=bool(config.model.get("inventory", False)),
        )

    sides = [key_statistics(games.dataset, games.select(held_out=held_out)) for held_out in (False, True)]
    return Prepared(
        policy=policy,
        source=source(False),
        held_out=source(True) if config.held_out else None,
        report=games.report,
        baselines=key_baselines(*sides) if config.held_out else (),
    )
