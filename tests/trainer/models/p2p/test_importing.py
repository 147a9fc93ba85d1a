"""Files that are not what they should be are refused by name; a file of the 150M keys and shapes is taken whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_trainer.models.p2p import P2PPolicy, config_of_size
from playserve_trainer.models.p2p.importing import config_of_yaml, import_open_p2p, open_p2p_keys

MakeSmall = Callable[..., P2PPolicy]


def their_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that Open P2P gives a tensor of ours (or of the stack that ours is)."""
    if key.endswith("_sinks"):
        return (1, *shape[-3:])
    if key.endswith(("q_norm.scale", "k_norm.scale")):
        return shape[-1:]
    if key.startswith("bc_transformer.") and key.count(".") == 1:  # learnt vectors
        return (1, 1, shape[-1]) if len(shape) == 1 else (1, *shape)
    return shape


def lightning(policy: P2PPolicy, draw: Callable[[tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """Return a state dict in Open P2P's layout, the image tokenizer twice."""
    state = {}
    for ours, keys in open_p2p_keys(policy).items():
        tensor = policy.state_dict()[ours]
        for key in keys:
            drawn = draw(their_shape(key, tuple(tensor.shape)))
            state[key] = drawn.long() if key.endswith("num_batches_tracked") else drawn
    copies = {f"bc_transformer.{key}": value for key, value in state.items() if key.startswith("image_tokenizer.")}
    return {**state, **copies}


def write_yaml(path: Path, policy: P2PPolicy, **changes: Any) -> None:
    config = policy.config
    model = {
        "action_decoder": {"embed_dim": config.width, "n_kv_head": config.decoder_heads,
                           "n_q_head": config.decoder_heads, "n_transformer_layers": config.decoder_layers},
        "attention_history_len": list(config.histories), "model_type": "dense", "n_kv_head": config.heads,
        "n_q_head": config.heads, "n_kv_sink_tokens": 0, "n_thinking_tokens": 1,
        "n_transformer_layers": config.layers, "transformer_dim": config.width, "z_loss_weight": 1e-4, **changes,
    }  # fmt: skip
    shared = {
        "action_mapping": {"max_keys": 4, "max_mouse_keys": 2}, "frame_height": config.frame_size,
        "frame_width": config.frame_size, "n_seq_timesteps": 200,
        "text_tokenizer_config": {"text_embedding_shape": [1, config.text_width], "text_tokenizer_name": "gemma"},
        "tokenizer": {"conv_tokenizer_config": {"num_tokens": 1}, "type": "conv"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump({"policy_model": model, "shared": shared, "stage3_finetune": {"nonsense": 1}}))


class Files:
    """A small checkpoint in their layout, and its yaml."""

    def __init__(self, folder: Path, policy: P2PPolicy) -> None:
        self.folder, self.policy = folder, policy
        generator = torch.Generator().manual_seed(5)
        self.state = lightning(policy, lambda shape: torch.randn(shape, generator=generator))
        self.yaml = folder / "model_config.yaml"
        write_yaml(self.yaml, policy)

    def write(self, state: dict[str, Tensor] | None = None) -> Path:
        path = self.folder / "checkpoint-step=00000007.ckpt"
        torch.save({"state_dict": self.state if state is None else state, "global_step": 7}, path)
        return path


@pytest.fixture
def files(tmp_path: Path, small: MakeSmall) -> Files:
    return Files(tmp_path, small(trunk="efficientnet_b0", text_encoder="none", decoder_heads=4))


def test_all_weights_arrive(files: Files) -> None:
    config = config_of_yaml(files.yaml)
    imported = import_open_p2p(files.write({**files.state, "loss_fn.weight": torch.zeros(3)}), config)
    assert imported.unused == ("loss_fn.weight",)
    assert imported.step == 7
    assert config.histories == files.policy.config.histories
    ours = imported.policy.state_dict()
    for name, keys in open_p2p_keys(imported.policy).items():
        wanted = torch.stack([files.state[key] for key in keys]).reshape(ours[name].shape)
        assert torch.equal(ours[name], wanted), name


def test_prefixes_of_compiled_modules_are_taken_off(files: Files) -> None:
    compiled = {key.replace("bc_transformer.", "bc_transformer._orig_mod.", 1): x for key, x in files.state.items()}
    assert import_open_p2p(files.write(compiled), config_of_yaml(files.yaml)).unused == ()


def test_copies_that_differ_are_refused(files: Files) -> None:
    state = dict(files.state)
    key = "bc_transformer.image_tokenizer.mlp.0.bias"
    state[key] = state[key] + 1
    with pytest.raises(
        DataLossError, match=r"differ in 1 tensors, among them bc_transformer\.image_tokenizer\.mlp\.0\.bias"
    ):
        import_open_p2p(files.write(state), config_of_yaml(files.yaml))


def test_what_is_missing_or_of_another_shape_is_named(files: Files) -> None:
    state = dict(files.state)
    del state["bc_transformer.action_decoder.pos_tokens"]
    with pytest.raises(
        DataLossError, match=r"lacks 1 weights, among them \['bc_transformer.action_decoder.pos_tokens'"
    ):
        import_open_p2p(files.write(state), config_of_yaml(files.yaml))
    state["bc_transformer.action_decoder.pos_tokens"] = torch.zeros(8, 32)
    with pytest.raises(DataLossError, match=r"pos_tokens has shape \[8, 32\]; the config makes \[9, 32\]"):
        import_open_p2p(files.write(state), config_of_yaml(files.yaml))


def test_a_file_that_runs_code_is_refused(files: Files) -> None:
    path = files.folder / "evil.ckpt"
    torch.save({"state_dict": {"x": print}}, path)
    with pytest.raises(DataLossError, match="not a Lightning checkpoint of weights alone"):
        import_open_p2p(path, config_of_yaml(files.yaml))
    with pytest.raises(NotFoundError, match=r"nothing\.ckpt"):
        import_open_p2p(files.folder / "nothing.ckpt", config_of_yaml(files.yaml))


def test_a_yaml_of_another_model_is_refused(files: Files) -> None:
    write_yaml(files.yaml, files.policy, n_kv_head=1)
    with pytest.raises(BadSettingError, match=r"policy_model\.n_kv_head is 1; this code has 2"):
        config_of_yaml(files.yaml)
    files.yaml.write_text("policy_model: {}\n")
    with pytest.raises(BadSettingError, match=r"not Open P2P.s model_config\.yaml"):
        config_of_yaml(files.yaml)
    with pytest.raises(NotFoundError, match="--config"):
        config_of_yaml(files.folder / "no.yaml")


@pytest.mark.slow
def test_a_file_of_the_150m_keys_and_shapes(tmp_path: Path) -> None:
    with torch.device("meta"):
        policy = P2PPolicy(config_of_size("150m", text_encoder="embeddinggemma"))
    state = lightning(policy, lambda shape: torch.full(shape, 0.5))
    write_yaml(tmp_path / "model_config.yaml", policy, attention_history_len=200)
    torch.save({"state_dict": state, "global_step": 500_000}, tmp_path / "checkpoint-step=00500000.ckpt")
    config = config_of_yaml(tmp_path / "model_config.yaml", state_dtype="bfloat16")
    assert config == policy.config
    imported = import_open_p2p(tmp_path / "checkpoint-step=00500000.ckpt", config)
    assert imported.unused == ()
    assert imported.step == 500_000
    assert imported.policy.num_params() == 183_209_888
