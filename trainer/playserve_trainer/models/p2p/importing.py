"""Open P2P's checkpoints as ours: a Lightning file and its yaml in, a policy out, with a list of what was not used.

The file is read with `weights_only`: nothing in it can run code. Both copies of the image tokenizer must agree.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.p2p.vocabulary import OPEN_P2P, MouseDecode
from playserve_trainer.models.p2p.config import SIZES, P2PConfig
from playserve_trainer.models.p2p.policy import P2PPolicy
from playserve_trainer.models.p2p.tokens import groups

__all__ = ["Imported", "config_of_yaml", "import_open_p2p", "open_p2p_keys"]

_TOKENIZER = "image_tokenizer."
_COPY = "bc_transformer.image_tokenizer."
_BODY = "bc_transformer."
_BATCHES_TRACKED = ".num_batches_tracked"

# Their name of each group of heads: embedding, and linear layer.
_GROUPS = {
    "key": ("key_action_embedding", "keyboard_out_logits"),
    "button": ("mouse_button_embedding", "mouse_button_out_logits"),
    "dx": ("mouse_delta_x_embedding", "mouse_delta_x_out_logits"),
    "dy": ("mouse_delta_y_embedding", "mouse_delta_y_out_logits"),
}
_VECTORS = {
    "no_text": "text_embedding_for_no_text_input",
    "text_position": "text_pos_tokens",
    "image_position": "img_pos_tokens",
    "thinking": "thinking_pos_tokens",
    "action_out": "action_out_token",
    "action_position": "action_pos_tokens",
}
_BLOCK = {
    "norm1.scale": ("self_attention_norm.scale",),
    "qkv.weight": ("self_attention.c_attn.weight",),
    "qk_norm.scale": ("self_attention.q_norm.scale", "self_attention.k_norm.scale"),
    "out.weight": ("self_attention.c_proj.weight",),
    "norm2.scale": ("ffn_norm.scale",),
    "ffn.w13.weight": ("ffn.w13.weight",),
    "ffn.w2.weight": ("ffn.w2.weight",),
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import gives.

    Attributes:
        policy: With the checkpoint's weights, in eval mode.
        unused: Keys of the state dict that were not used.
        duplicates: How many keys were there twice, equal both times.
        step: Training steps that the checkpoint counts.
    """

    policy: P2PPolicy
    unused: tuple[str, ...]
    duplicates: int
    step: int


def open_p2p_keys(policy: P2PPolicy) -> Mapping[str, tuple[str, ...]]:
    """Return, for each of our weights, Open P2P's key; or several, whose tensors are stacked."""
    return dict(_pairs(policy))


def _pairs(policy: P2PPolicy) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in policy.image.trunk.state_dict():
        yield f"image.trunk.{name}", (f"{_TOKENIZER}efficientnet_preprocess.{name}",)
    for part in ("weight", "bias"):
        yield f"image.project.{part}", (f"{_TOKENIZER}mlp.0.{part}",)
        yield f"image.norm.{part}", (f"{_TOKENIZER}mlp.1.{part}",)
        yield f"decoder.input.{part}", (f"{_BODY}action_decoder.input_proj.{part}",)
    yield "tokens.text.weight", (f"{_BODY}text_embed_mlp.weight",)
    for ours, theirs in _VECTORS.items():
        yield f"tokens.{ours}", (_BODY + theirs,)
    for name, _, _ in groups(policy.vocabulary):
        embedding, logits = _GROUPS[name]
        yield f"embedding.{name}.weight", (f"{embedding}.weight",)
        yield f"logits.{name}.weight", (f"{logits}.weight",)
        yield f"logits.{name}.bias", (f"{logits}.bias",)
    yield "decoder.position", (f"{_BODY}action_decoder.pos_tokens",)
    for place, count, prefix in (
        ("backbone", policy.config.layers, "_transformer"),
        ("decoder", policy.config.decoder_layers, "action_decoder"),
    ):
        for layer in range(count):
            theirs = f"{_BODY}{prefix}.transformer_layers.{layer}."
            for ours, keys in _BLOCK.items():
                yield f"{place}.layers.{layer}.{ours}", tuple(theirs + key for key in keys)
            if place == "decoder":
                sinks = (f"{theirs}self_attention.k_sinks", f"{theirs}self_attention.v_sinks")
                yield f"decoder.layers.{layer}.sinks", sinks


def config_of_yaml(path: str | Path, **changes: Any) -> P2PConfig:
    """Return the config that a model_config.yaml describes; keyword arguments replace single settings.

    Only `policy_model` and `shared` describe the model; the rest of the file holds defaults that contradict them.

    Raises:
        NotFoundError: There is no such file.
        BadSettingError: It lacks a setting, or describes what this code does not have.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; the checkpoint's model_config.yaml was wanted (--config)")
    try:
        loaded = yaml.safe_load(path.read_text())
        model, shared = loaded["policy_model"], loaded["shared"]
        settings = _settings(model, shared)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise BadSettingError(f"{path}: not Open P2P's model_config.yaml ({type(error).__name__}: {error})") from error
    except BadSettingError as error:
        raise BadSettingError(f"{path}: {error}") from error
    config = P2PConfig(**{**settings, **changes})
    return dataclasses.replace(config, size=_size_of(config)) if not config.size else config


def _settings(model: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    layers = model["n_transformer_layers"]
    decoder, tokenizer = model["action_decoder"], shared["tokenizer"]
    for name, found, wanted in (
        ("policy_model.model_type", model.get("model_type", "dense"), "dense"),
        ("policy_model.n_kv_head", model["n_kv_head"], model["n_q_head"]),
        ("policy_model.n_kv_sink_tokens", model.get("n_kv_sink_tokens", 0), 0),
        ("policy_model.n_thinking_tokens", model.get("n_thinking_tokens", 1), 1),
        ("policy_model.action_decoder.embed_dim", decoder["embed_dim"], model["transformer_dim"]),
        ("policy_model.action_decoder.n_kv_head", decoder["n_kv_head"], decoder["n_q_head"]),
        ("shared.frame_width", shared["frame_width"], shared["frame_height"]),
        ("shared.tokenizer.type", tokenizer["type"], "conv"),
        ("shared.tokenizer.conv_tokenizer_config.num_tokens",
         tokenizer.get("conv_tokenizer_config", {}).get("num_tokens", 1), 1),
    ):  # fmt: skip
        if found != wanted:
            raise BadSettingError(f"{name} is {found!r}; this code has {wanted!r}")
    history = model.get("attention_history_len", shared["n_seq_timesteps"])
    mapping = shared.get("action_mapping", {})
    vocabulary = dataclasses.replace(
        OPEN_P2P, max_keys=mapping.get("max_keys", 4), max_buttons=mapping.get("max_mouse_keys", 2)
    )
    text = shared.get("text_tokenizer_config") or {}
    encoder = {"gemma": "embeddinggemma"}.get(text.get("text_tokenizer_name", ""), "none")
    return {
        "layers": layers,
        "width": model["transformer_dim"],
        "heads": model["n_q_head"],
        "decoder_layers": decoder["n_transformer_layers"],
        "decoder_heads": decoder["n_q_head"],
        "history": _history(history),
        "frame_size": shared["frame_height"],
        "z_weight": float(model.get("z_loss_weight", 1e-4)),
        "text_encoder": encoder,
        "text_width": text.get("text_embedding_shape", [1, 768])[-1],
        "vocabulary": vocabulary.to_json(),
        "mouse_decode": MouseDecode.TRUNCATED_NORMAL.value,
    }


def _history(value: Any) -> tuple[int, ...]:
    history = tuple(value) if isinstance(value, list | tuple) else (value,)
    return history[:1] if len(set(history)) == 1 else history


def _size_of(config: P2PConfig) -> str:
    """Return the named size that the config has, or ""."""
    for size, settings in SIZES.items():
        if all(getattr(config, name) == settings[name] for name in ("layers", "width", "heads")):
            return size
    return ""


def import_open_p2p(checkpoint: str | Path, config: P2PConfig) -> Imported:
    """Return the policy of a Lightning checkpoint.

    Raises:
        NotFoundError: There is no such file.
        DataLossError: It is no such checkpoint, lacks weights, has them in other shapes, or its two copies of the image
            tokenizer differ.
    """
    state, step = _read(Path(checkpoint))
    duplicates = _check_copies(state, str(checkpoint))
    with torch.device("meta"):
        policy = P2PPolicy(config)
    wanted, used = policy.state_dict(), set[str]()
    weights: dict[str, Tensor] = {}
    pairs = open_p2p_keys(policy)
    missing = sorted({key for keys in pairs.values() for key in keys} - set(state))
    if missing:
        raise DataLossError(f"{checkpoint}: lacks {len(missing)} weights, among them {missing[:4]}")
    for ours, keys in pairs.items():
        shape = wanted[ours].shape
        tensor = torch.stack([state[key] for key in keys]) if len(keys) > 1 else state[keys[0]]
        if tensor.numel() != shape.numel() or not _same_but_ones(tensor.shape, shape):
            raise DataLossError(
                f"{checkpoint}: {keys[0]} has shape {list(state[keys[0]].shape)}; the config makes {list(shape)}"
            )
        weights[ours] = tensor.reshape(shape).to(wanted[ours].dtype).contiguous().clone()
        used.update(keys)
    lacking = sorted(set(wanted) - set(weights))
    if lacking:
        raise DataLossError(f"{checkpoint}: nothing gives {lacking[:4]}")
    policy.load_state_dict(weights, assign=True)
    unused = sorted(key for key in state if key not in used and not key.startswith(_COPY))
    return Imported(policy.eval(), tuple(unused), duplicates, step)


def _read(path: Path) -> tuple[dict[str, Tensor], int]:
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; a Lightning checkpoint was wanted")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = {str(key): value for key, value in loaded["state_dict"].items()}
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataLossError(f"{path}: not a Lightning checkpoint of weights alone ({line})") from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise DataLossError(f"{path}: its state_dict holds what is no tensor")
    return _unwrapped(state), int(loaded.get("global_step", 0))


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the prefixes that torch.compile leaves in names."""
    return {re.sub(r"(^|\.)_orig_mod\.", r"\1", key): value for key, value in state.items()}


def _check_copies(state: Mapping[str, Tensor], source: str) -> int:
    """Return how many keys are there twice; the copies must be equal."""
    copies = {key: key.removeprefix(_BODY) for key in state if key.startswith(_COPY)}
    differ = [
        key
        for key, first in copies.items()
        if first in state and not key.endswith(_BATCHES_TRACKED) and not torch.equal(state[key], state[first])
    ]
    if differ:
        raise DataLossError(f"{source}: its two copies of the image tokenizer differ in {len(differ)} tensors, "
                            f"among them {differ[0]}")  # fmt: skip
    return sum(first in state for first in copies.values())


def _same_but_ones(found: torch.Size, wanted: torch.Size) -> bool:
    return [size for size in found if size != 1] == [size for size in wanted if size != 1]
