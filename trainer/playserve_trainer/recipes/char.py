"""The `char` recipe: a language model of characters, whose labels can be made sparse and coarse."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from playserve_trainer.recipes import Prepared, held_out_maker, take_flags
from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from playserve_trainer.data.chars import CharClips, Text
    from playserve_trainer.models.policy import Policy

__all__ = ["DEFAULTS", "MODEL_FLAGS", "OPTION_FLAGS", "SUMMARY", "TASK_FLAG", "configure", "prepare", "read",
           "settings", "sketch"]  # fmt: skip

SUMMARY = "a transformer on the characters of a text, with dense, sparse or coarse labels"
TASK_FLAG = "text"
MODEL_FLAGS: tuple[str, ...] = ("width", "layers", "heads", "context", "classes")
OPTION_FLAGS: tuple[str, ...] = ("sparse",)

_FAMILY = "char"
_DEFAULT_TEXT = "kjv"

#: Settings of every size.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "model": MappingProxyType({"width": 64}),
        "batch_size": 32,
        "sequence_length": 128,
        "optimizer": "adamw",
        "lr": 3e-3,
        "weight_decay": 0.01,
        "beta2": 0.99,
        "clip_norm": 1.0,
        "warmup_steps": 50,
        "schedule": "cosine",
        "eval_samples": 65_536,
        "eval_every_steps": 500,
    }
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the family's flags."""
    only: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("--text", help=f"name of the text: DATA/<name>.txt (default {_DEFAULT_TEXT})", **only)
    parser.add_argument("--width", type=int, help="the size dial (default 64)", **only)
    parser.add_argument("--layers", type=int, help="of the core (default: by the width)", **only)
    parser.add_argument("--heads", type=int, help="attention heads (default: by the width)", **only)
    parser.add_argument("--context", type=int, help="characters that it looks back over (default 128)", **only)
    parser.add_argument(
        "--classes", type=int, help="predict one of so many classes of characters, dealt out at random", **only
    )
    parser.add_argument("--sparse", type=int, help="learn from one character in so many (default 1)", **only)


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings for the flags given; `text` becomes `task`."""
    rest = dict(given)
    text = rest.pop(TASK_FLAG, _DEFAULT_TEXT)
    model = {**DEFAULTS["model"], **take_flags(rest, MODEL_FLAGS)}
    options = {"sparse": 1, **take_flags(rest, OPTION_FLAGS)}
    return {**DEFAULTS, "family": _FAMILY, "task": text, "model": model, "options": options, **rest}


def read(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Text:
    """Read the text.

    Raises:
        NotFoundError: There is none.
    """
    from playserve_trainer.data.chars import load_text

    return load_text(Path(config.data), config.task, held_out_fraction=config.held_out)


def prepare(
    config: TrainConfig, progress: Callable[[int, int], None] | None = None, *, data: Text | None = None
) -> Prepared:
    """Read the text, unless it is given, and make the policy for its alphabet.

    The held-out labels are dense, whatever the run's are: what is compared is one measure.

    Raises:
        NotFoundError: There is no text.
        BadSettingError: Clips do not fit, or there are more classes than characters.
    """
    import torch

    from playserve_trainer.data.chars import char_baselines
    from playserve_trainer.data.split import share_digest, share_of_episodes

    text = read(config, progress) if data is None else data
    torch.manual_seed(config.seed)
    policy = _policy(config, text.alphabet)
    classes = _classes(config, text.alphabet)
    learnt = share_of_episodes(text.select(held_out=False), text.places_E, text.lengths_E, config.data_share)
    source = _source(text, learnt, classes, config, sparse=int(config.options.get("sparse", 1)))
    digest = share_digest(text.report.digest, config.data_share)
    report = dataclasses.replace(text.report, samples=source.num_samples, digest=digest)
    if not config.held_out:
        return Prepared(policy=policy, source=source, held_out=None, report=report)
    held_out = text.select(held_out=True)
    return Prepared(
        policy=policy,
        source=source,
        held_out=_source(text, held_out, classes, config),
        report=report,
        baselines=char_baselines(text, classes),
        held_out_as=held_out_maker(
            config, text.names, lambda cut: _source(text, held_out, classes, cut, tell_episodes=True)
        ),
    )


def sketch(config: TrainConfig) -> Policy:
    """Return a policy of the run's shapes; the text decides the size of its alphabet."""
    return _policy(config, read(config).alphabet)


def _policy(config: TrainConfig, alphabet: str) -> Policy:
    from playserve_trainer.models.registry import build

    return build(_FAMILY, {"alphabet": alphabet, **config.model})


def _classes(config: TrainConfig, alphabet: str) -> NDArray[np.int64]:
    from playserve_trainer.models.gpt.char import class_of

    classes: NDArray[np.int64] = class_of(alphabet, int(config.model.get("classes", 0))).numpy()
    return classes


def _source(
    text: Text,
    chosen: NDArray[np.int64],
    classes: NDArray[np.int64],
    config: TrainConfig,
    *,
    sparse: int = 1,
    tell_episodes: bool = False,
) -> CharClips:
    from playserve_trainer.data.chars import CharClips

    return CharClips(
        text,
        chosen,
        classes,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        seed=config.seed,
        sparse=sparse,
        tell_episodes=tell_episodes,
    )
