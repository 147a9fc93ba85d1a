"""The `p2p` recipe: Open Pixel2Play's architecture on recordings in its format, at its sizes or at those for a CPU."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer.recipes import Prepared, held_out_maker, take_flags
from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from playserve_trainer.data.episodes import DataReport
    from playserve_trainer.data.p2p import Recordings
    from playserve_trainer.data.p2p_clips import Clips, ClipSet
    from playserve_trainer.data.p2p_frames import FrameStore
    from playserve_trainer.models.p2p import P2PPolicy
    from playserve_trainer.models.policy import Policy

__all__ = ["DEFAULTS", "MODEL_FLAGS", "OPTION_FLAGS", "READ_MODEL_FLAGS", "SUMMARY", "TASK_FLAG", "configure",
           "parse_mix", "prepare", "read", "settings", "sketch"]  # fmt: skip

SUMMARY = "vision, text and past actions to keyboard and mouse, on recordings in Open P2P's format"
TASK_FLAG = "game"
MODEL_FLAGS: tuple[str, ...] = (
    "size", "text_encoder", "dropout", "mouse_decode", "history", "past_actions", "layers", "decoder", "inverse",
)  # fmt: skip
#: Model flags that decide how the data are read: a size has its frames, an inverse model learns whatever was done.
READ_MODEL_FLAGS: tuple[str, ...] = ("size", "inverse")
OPTION_FLAGS: tuple[str, ...] = (
    "augment", "mix", "cache", "cache_limit_mib", "text_dropout", "decoders", "trunk_weights", "trunk_from",
)  # fmt: skip

_FAMILY = "p2p"
_DECODERS = ("autoregressive", "direct")
_SIZE = "1m"
_EVERY_GAME = "all"
#: Prefix of the trunk's parameters.
_TRUNK = "image.trunk."

_SMALL: Mapping[str, Any] = MappingProxyType(
    {"batch_size": 16, "sequence_length": 64, "lr": 1e-3, "weight_decay": 0.01, "beta2": 0.99, "warmup_steps": 100}
)
_LARGE: Mapping[str, Any] = MappingProxyType(
    {"batch_size": 8, "sequence_length": 200, "lr": 1e-4, "weight_decay": 1e-4, "warmup_steps": 1000}
)

#: Settings of every size, and beneath a size's name those in which it differs.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "": MappingProxyType(
            {
                "optimizer": "adamw", "clip_norm": 1.0, "schedule": "cosine", "ema_decay": 0.999,
                "eval_samples": 16_384, "eval_every_steps": 500,
            }
        ),
        "1m": _SMALL,
        "6m": MappingProxyType({**_SMALL, "lr": 7e-4}),
        "16m": MappingProxyType({**_SMALL, "lr": 5e-4}),
        "150m": MappingProxyType({**_LARGE, "batch_size": 10}),
        "300m": _LARGE,
        "600m": _LARGE,
        "1.2b": MappingProxyType({**_LARGE, "batch_size": 5, "lr": 3e-5}),
    }
)  # fmt: skip

_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "augment": True,
        "mix": [],
        "cache": "",
        "cache_limit_mib": 8192,
        "text_dropout": 0.0,
        "decoders": 0,
        "trunk_weights": "",
        "trunk_from": "",
    }
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the family's flags."""
    only: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument(
        "--game", help="only recordings of this game, such as doom or doom/basic (default: all)", **only
    )
    parser.add_argument(
        "--size", choices=[size for size in DEFAULTS if size], help=f"size of the net (default {_SIZE})", **only
    )
    parser.add_argument(
        "--text-encoder", metavar="NAME", **only,
        help='"none", "words", "embeddinggemma" or a sentence-transformers model (default: words, where there are any)',
    )  # fmt: skip
    parser.add_argument("--history", type=int, help="past steps that each layer looks back over", **only)
    parser.add_argument(
        "--no-past-actions", dest="past_actions", action="store_false", **only,
        help="the backbone does not see the actions taken: small policies else learn to repeat them",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, help="of the backbone (default: the size's)", **only)
    parser.add_argument(
        "--decoder", choices=_DECODERS, **only,
        help="how an action's tokens are predicted: each from those before it, or all at once (default autoregressive)",
    )  # fmt: skip
    parser.add_argument(
        "--inverse", action=argparse.BooleanOptionalAction, **only,
        help="train an inverse model: it sees frames before and after, no actions and no texts; it labels recordings",
    )  # fmt: skip
    parser.add_argument("--dropout", type=float, help="of what attention adds, in training", **only)
    parser.add_argument("--mouse-decode", help="how mouse bins become pixels when it plays", **only)
    parser.add_argument("--freeze-trunk", action="store_true", help="do not train what sees the frame", **only)
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="show frames as they are", **only)
    parser.add_argument(
        "--mix", action="append", metavar="NAME=DIR:SHARE", **only,
        help="take this share of the clips from other recordings, such as corrections=DIR:0.2; may be repeated",
    )  # fmt: skip
    parser.add_argument("--text-dropout", type=float, help="share of clips that see no instruction (default 0)", **only)
    parser.add_argument(
        "--cache", metavar="DIR", help="where what is read is kept (default: .playserve in DATA)", **only
    )
    parser.add_argument(
        "--cache-limit-mib", type=int, metavar="N", **only,
        help="decode frames once into a file in the cache if it is at most this long; 0: never (default 8192)",
    )  # fmt: skip
    parser.add_argument(
        "--trunk-weights", metavar="FILE", **only,
        help="begin EfficientNet with ImageNet's weights: torchvision's efficientnet_b0 state dict, a local file",
    )  # fmt: skip
    parser.add_argument(
        "--trunk-from", metavar="DIR", help="begin the trunk with that of another p2p checkpoint, causal or not", **only
    )
    parser.add_argument("--decoders", type=int, help="threads that decode (default: one for each core)", **only)


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings for the flags given: `game` becomes `task`, the rest goes to `model` and `options`."""
    rest = dict(given)
    task = rest.pop(TASK_FLAG, _EVERY_GAME)
    model, options = take_flags(rest, MODEL_FLAGS), take_flags(rest, OPTION_FLAGS)
    size = model.get("size", _SIZE)
    if not rest.get("init_from"):  # whose checkpoint says its size
        model["size"] = size
    if model.get("inverse"):
        model = {"past_actions": False, "text_encoder": "none", **model}
    if isinstance(model.get("history"), int):
        model["history"] = [model["history"]]
    if rest.pop("freeze_trunk", False):
        rest["freeze"] = ",".join(filter(None, (rest.get("freeze", ""), _TRUNK)))
    for text in options.get("mix", ()):
        parse_mix(text)
    if options.get("trunk_weights") and options.get("trunk_from"):
        raise BadSettingError("trunk_weights and trunk_from: give one of them, not both")
    values: dict[str, Any] = {**DEFAULTS[""], **DEFAULTS.get(size, {})}
    values |= {"family": _FAMILY, "task": task, "model": model, "options": {**_OPTIONS, **options}}
    return {**values, **rest}


def parse_mix(text: str) -> tuple[str, Path, float]:
    """Return (name, folder, share) of "NAME=DIR:SHARE".

    Raises:
        BadSettingError: It is not of that form, or the share is not between 0 and 1.
    """
    name, equals, place = text.partition("=")
    folder, colon, share = place.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not (name and equals and folder and colon and 0.0 < value < 1.0):
        raise BadSettingError(f"mix {text!r}, wanted NAME=DIR:SHARE with a share between 0 and 1")
    return name, Path(folder), value


_Read = tuple["Recordings", list[tuple["Recordings", float]]]


def read(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> _Read:
    """Read the recordings, and those that are mixed in with their shares.

    Raises:
        NotFoundError: There are no recordings.
        NoEpisodesError: None can be used, or too few to hold one out.
    """
    from playserve.p2p.vocabulary import Vocabulary
    from playserve_trainer.data.p2p import with_known_actions

    base = _model(config)
    vocabulary = Vocabulary.from_json(base["vocabulary"])
    main, mixed = _read(config, {**_OPTIONS, **config.options}, vocabulary, int(base["frame_size"]), progress)
    if base.get("inverse"):
        return with_known_actions(main), [(with_known_actions(part), share) for part, share in mixed]
    return main, mixed


def prepare(
    config: TrainConfig, progress: Callable[[int, int], None] | None = None, *, data: _Read | None = None
) -> Prepared:
    """Read the recordings, unless they are given, and make the policy.

    Raises:
        NotFoundError: There are no recordings, or none of the game.
        NoEpisodesError: None can be used, or too few to hold one out.
        BadSettingError: A setting does not fit the data, the memory or the checkpoint to begin from.
    """
    from playserve.p2p.vocabulary import Vocabulary
    from playserve_trainer.data.p2p_scores import ActionScores, Guesses, guess_baselines
    from playserve_trainer.models.p2p.tokens import groups
    from playserve_trainer.train.evaluate import evaluation_batches

    options = {**_OPTIONS, **config.options}
    main, mixed = read(config, progress) if data is None else data
    policy = _fresh(config, options, has_texts=any(part.texts for part in (main, *(m for m, _ in mixed))))
    maker = _Maker(config, options, policy)
    stores = [maker.store(part, progress) for part in (main, *(m for m, _ in mixed))]
    main = stores[0][0]
    rest = 1.0 - sum(share for _, share in mixed)
    sets = [maker.clip_set(*stores[0], held_out=False, share=rest)]
    sets += [
        maker.clip_set(*store, held_out=False, share=share) for store, (_, share) in zip(stores[1:], mixed, strict=True)
    ]
    source = maker.clips(sets, training=True)
    report = _report([store[0] for store in stores], options["mix"], config.data_share, source.num_samples)
    if not config.held_out:
        return Prepared(policy=policy, source=source, held_out=None, report=report)
    held_out = maker.clips([maker.clip_set(*stores[0], held_out=True, share=1.0)], training=False)

    def again(cut: TrainConfig) -> Clips:
        its = _Maker(cut, options, policy)
        return its.clips([its.clip_set(*stores[0], held_out=True, share=1.0)], training=False, tell_episodes=True)

    of_heads = groups(Vocabulary.from_json(_model(config)["vocabulary"]))
    guesses = Guesses.fit(main, maker.chosen(main, held_out=False), of_heads)
    baselines = guess_baselines(guesses, held_out, evaluation_batches(held_out, config.eval_samples), of_heads)
    by_frequency = {name: baselines[0].scores[f"ce_{name}"] for name, _, _ in of_heads}
    return Prepared(
        policy=policy,
        source=source,
        held_out=held_out,
        report=report,
        baselines=baselines,
        scores=ActionScores(of_heads, by_frequency),
        held_out_as=held_out_maker(config, tuple(main.folders), again),
        # As in the loss: each group is one mean over its heads, in units of guessing.
        head_weights=tuple(1 / (heads * math.log(choices)) for _, choices, heads in of_heads for _ in range(heads)),
    )


def _fresh(config: TrainConfig, options: Mapping[str, Any], *, has_texts: bool) -> Policy:
    """Return the policy that a run begins with, its weights drawn by the run's seed."""
    import torch

    from playserve_trainer.models.p2p.text import width_of
    from playserve_trainer.models.p2p.trunk import load_torchvision_trunk
    from playserve_trainer.models.registry import build
    from playserve_trainer.train.start import copy_trunk

    base = _model(config)
    if "text_encoder" not in base:
        base["text_encoder"] = "words" if has_texts else "none"
    if not config.init_from:
        base["text_width"] = width_of(base["text_encoder"]) or base["text_width"]
    torch.manual_seed(config.seed)
    policy = build(_FAMILY, base)
    if options["trunk_weights"]:
        load_torchvision_trunk(cast("P2PPolicy", policy).image, options["trunk_weights"])
    if options["trunk_from"]:
        copy_trunk(cast("P2PPolicy", policy), options["trunk_from"])
    return policy


def _report(parts: Sequence[Recordings], mixes: Sequence[str], share: float, samples: int) -> DataReport:
    """Return the report of what is learnt from: of the first recordings, their digest that of all."""
    from playserve_trainer.data.split import share_digest

    report = parts[0].report
    if len(parts) > 1:
        report = dataclasses.replace(report, digest=_digest([part.report.digest for part in parts], mixes))
    if share < 1:
        report = dataclasses.replace(report, samples=samples, digest=share_digest(report.digest, share))
    return report


def sketch(config: TrainConfig) -> Policy:
    """Return a policy of the run's shapes; it takes instructions, unless the settings say "none"."""
    from playserve_trainer.models.p2p.text import width_of
    from playserve_trainer.models.registry import build

    base = {"text_encoder": "words", **_model(config)}
    base["text_width"] = width_of(base["text_encoder"]) or base["text_width"]
    return build(_FAMILY, base)


def _model(config: TrainConfig) -> dict[str, Any]:
    """Return the policy's config as JSON: the named size's, or the checkpoint's to begin from, and what was chosen."""
    from playserve_trainer import checkpoint
    from playserve_trainer.models.p2p.config import config_of_size
    from playserve_trainer.models.registry import config_to_json

    chosen = dict(config.model)
    if config.init_from:
        manifest = checkpoint.read_manifest(config.init_from)
        if manifest.family != _FAMILY:
            raise BadSettingError(f"init_from: {config.init_from} holds a policy of {manifest.family}, not {_FAMILY}")
        return {**manifest.config, **chosen}
    base = config_to_json(config_of_size(chosen.pop("size", _SIZE)))
    del base["text_encoder"]  # by default it goes by the data
    return {**base, **chosen}


def _read(
    config: TrainConfig,
    options: Mapping[str, Any],
    vocabulary: Any,
    frame_size: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Recordings, list[tuple[Recordings, float]]]:
    """Return the run's recordings, and those that are mixed in with their shares."""
    from playserve_trainer.data.p2p import load_recordings

    mixes = [parse_mix(text) for text in options["mix"]]
    if sum(share for _, _, share in mixes) >= 1:
        raise BadSettingError(f"mix: the shares of {', '.join(options['mix'])} leave nothing for the data themselves")
    cache = Path(options["cache"]) if options["cache"] else None
    found = []
    for folder, fraction in ((Path(config.data), config.held_out), *((folder, 0.0) for _, folder, _ in mixes)):
        found.append(
            load_recordings(
                folder, vocabulary, frame_size=frame_size, held_out_fraction=fraction, cache=cache, progress=progress
            )
        )
    main, *others = found
    held_out = {Path(main.folders[r]).name for r in main.select(held_out=True)}
    for number, other in enumerate(others):
        # What is held out of the data is not learnt by another way.
        keep = other.held_out_R | [Path(folder).name in held_out for folder in other.folders]
        others[number] = dataclasses.replace(other, held_out_R=keep)
    return main, list(zip(others, (share for _, _, share in mixes), strict=True))


def _digest(digests: Sequence[str], mixes: Sequence[str]) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps([digests, [parse_mix(text)[2] for text in mixes]]).encode()).hexdigest()


def _learnt(recordings: Recordings, chosen: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Return the recordings of a share of the frames to learn from."""
    from playserve_trainer.data.p2p import recording_hash
    from playserve_trainer.data.split import share_of_episodes

    pairs = zip(recordings.games, recordings.folders, strict=True)
    return share_of_episodes(chosen, [recording_hash(*pair) for pair in pairs], recordings.lengths_R, share)


class _Maker:
    """Makes frames, clips and text vectors as a run's settings say."""

    def __init__(self, config: TrainConfig, options: Mapping[str, Any], policy: Any) -> None:
        self._config, self._options = config, options
        self._policy: P2PPolicy = policy

    def chosen(self, recordings: Recordings, *, held_out: bool) -> NDArray[np.int64]:
        """Return the recordings of the wanted game on one side of the split."""
        import numpy as np

        game = self._config.task
        of_game = [game in (_EVERY_GAME, env, f"{env}/{subtype}") for env, subtype in recordings.games]
        if not any(of_game):
            known = sorted({f"{env}/{subtype}" if subtype else env for env, subtype in recordings.games})
            raise NotFoundError(f"{recordings.directory} has no recording of {game!r}; it has {', '.join(known)}")
        both = np.flatnonzero(np.array(of_game) & (recordings.held_out_R == held_out))
        if not len(both):
            side = "held out" if held_out else "to learn from"
            raise NotFoundError(f"{recordings.directory} has no recording of {game!r} {side}: record more of it")
        return both

    def store(
        self, recordings: Recordings, progress: Callable[[int, int], None] | None
    ) -> tuple[Recordings, FrameStore]:
        """Return the frames, decoded once where the file is short enough; without labels where they cannot be."""
        import os

        from playserve_trainer.data.p2p import default_cache, without_labels
        from playserve_trainer.data.p2p_frames import VideoFrames, cache_bytes, cache_frames

        if cache_bytes(recordings) > int(self._options["cache_limit_mib"]) << 20:
            return recordings, VideoFrames(recordings)
        cache = Path(self._options["cache"]) if self._options["cache"] else default_cache(recordings.directory)
        workers = self._options["decoders"] or len(os.sched_getaffinity(0))
        frames, broken = cache_frames(recordings, cache, workers, progress)
        return without_labels(recordings, broken), frames

    def clip_set(self, recordings: Recordings, frames: FrameStore, *, held_out: bool, share: float) -> ClipSet:
        """Return the clips of one side of the split."""
        from playserve_trainer.data.p2p_clips import ClipOrder, ClipSet

        config = self._config
        chosen = self.chosen(recordings, held_out=held_out)
        if not held_out:
            chosen = _learnt(recordings, chosen, config.data_share)
        order = ClipOrder(recordings, chosen, config.sequence_length, config.seed, moving=not held_out)
        return ClipSet(recordings, frames, order, share)

    def clips(self, sets: Sequence[ClipSet], *, training: bool, tell_episodes: bool = False) -> Clips:
        """Return the batches."""
        from playserve_trainer.data.p2p_augment import Augmenter
        from playserve_trainer.data.p2p_clips import Clips

        config, options = self._config, self._options
        return Clips(
            sets,
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
            text_vectors=self._text_vectors(sets),
            text_width=self._policy.config.text_width,
            text_dropout=options["text_dropout"] if training else 0.0,
            augment=Augmenter() if training and options["augment"] else None,
            workers=options["decoders"],
            memory_limit_bytes=config.memory_limit_mib << 20,
            batches_ahead=config.prefetch,
            tell_episodes=tell_episodes,
        )

    def _text_vectors(self, sets: Sequence[ClipSet]) -> dict[str, NDArray[np.float32]] | None:
        from playserve_trainer.data.p2p_texts import embed_texts
        from playserve_trainer.models.policy import INSTRUCTION

        if INSTRUCTION not in self._policy.context_inputs():
            return None
        vectors: dict[str, NDArray[np.float32]] = {}
        for part in sets:
            vectors |= embed_texts(part.recordings, self._policy, self._options["cache"])
        return vectors
