"""Open P2P's own outputs: the import of its checkpoint, then forward and step, agree to 1e-4 in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.importing import Imported, config_of_yaml, import_open_p2p
from playserve_trainer.models.p2p.ring import BatchRings
from playserve_trainer.models.policy import IGNORED_LABEL, INSTRUCTION, TARGETS, UNKNOWN_ACTION, Memory

CLOSE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def imported(golden_dir: Path) -> Imported:
    config = config_of_yaml(golden_dir / "model_config.yaml")
    result = import_open_p2p(golden_dir / "checkpoint-step=00000000.ckpt", config)
    result.policy.requires_grad_(False)
    return result


class Golden:
    """The set in our words: frames [2, 40, S, S, 3], actions [2, 40, 8], logits of 8 heads."""

    def __init__(self, folder: Path) -> None:
        self.tensors = load_file(folder / "golden.safetensors")
        self.json: dict[str, Any] = json.loads((folder / "golden.json").read_text())
        parts = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
        self.actions_BTH = torch.cat([self.tensors[name].long() for name in parts], dim=-1)
        self.logits = [x for name in parts for x in self.tensors[f"logits_{name}"].unbind(2)]
        self.inputs = {
            "frame": self.tensors["frames"].permute(0, 1, 3, 4, 2).contiguous(),
            INSTRUCTION: self.tensors["text_embedding"].squeeze(2),
        }
        self.first_BT = torch.zeros(self.actions_BTH.shape[:2], dtype=torch.bool)
        self.first_BT[:, 0] = True
        self.executed_BTH = self.actions_BTH.roll(1, 1)
        self.executed_BTH[:, 0] = UNKNOWN_ACTION


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir)


@pytest.fixture(scope="module")
def image_BTD(imported: Imported, golden: Golden) -> Tensor:
    """The trunk's answer, computed once: it takes most of the time."""
    frames = golden.inputs["frame"]
    return imported.policy.image(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


class Seen(torch.nn.Module):
    """Stands in for the trunk with what it gave: image tokens of "frames" that are their own indices."""

    def __init__(self, image_BTD: Tensor) -> None:
        super().__init__()
        self.flat_MD = image_BTD.flatten(0, 1)

    def forward(self, index: Tensor) -> Tensor:
        return self.flat_MD[index]


@pytest.fixture
def with_seen(imported: Imported, image_BTD: Tensor) -> Iterator[P2PPolicy]:
    policy, trunk = imported.policy, imported.policy.image
    policy.image = Seen(image_BTD)  # type: ignore[assignment]
    yield policy
    policy.image = trunk


def test_everything_is_used_and_counts_as_theirs(imported: Imported, golden: Golden) -> None:
    assert imported.unused == ()
    assert imported.duplicates == 246
    assert imported.policy.num_params() == golden.json["params"]
    config = imported.policy.config
    assert (config.width, config.histories, config.text_encoder) == (64, (40, 5, 9), "embeddinggemma")


def test_image_tokens(image_BTD: Tensor, golden: Golden) -> None:
    torch.testing.assert_close(image_BTD, golden.tensors["image_tokens"].squeeze(2), **CLOSE)


def indices(golden: Golden) -> Tensor:
    return torch.arange(golden.first_BT.numel()).view(golden.first_BT.shape)


def test_forward_logits_and_losses(with_seen: P2PPolicy, golden: Golden) -> None:
    inputs = {**golden.inputs, "frame": indices(golden)}
    out_BTD, _ = with_seen.action_out(inputs, golden.actions_BTH, golden.first_BT)
    torch.testing.assert_close(out_BTD, golden.tensors["action_out_tokens"], **CLOSE)
    for given in ({**inputs, TARGETS: golden.actions_BTH}, inputs):  # the same but for the last step's teacher
        output = with_seen(given, golden.executed_BTH, golden.first_BT)
        steps = slice(None) if TARGETS in given else slice(0, -1)
        for logits, wanted in zip(output.logits, golden.logits, strict=True):
            torch.testing.assert_close(logits[:, steps], wanted[:, steps], **CLOSE)
    labels = golden.actions_BTH.masked_fill(~golden.tensors["label_mask"].bool().unsqueeze(-1), IGNORED_LABEL)
    output = with_seen({**inputs, TARGETS: golden.actions_BTH}, golden.executed_BTH, golden.first_BT)
    parts = with_seen.loss_parts(output.logits, labels)
    assert parts.total.item() == pytest.approx(golden.json["loss"], abs=1e-4)
    assert parts.total.item() == pytest.approx(golden.tensors["loss_total"].item(), abs=1e-4)
    assert parts.z.item() == pytest.approx(golden.tensors["loss_z"].item(), abs=1e-4)
    wanted = list(golden.json["cross_entropy"].values())
    assert [entropy.item() for entropy in parts.cross_entropy] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("batched", [False, True])
def test_step_by_step(with_seen: P2PPolicy, golden: Golden, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if batched:
        monkeypatch.setattr("playserve_trainer.models.p2p.policy.make_rings", BatchRings)
    check_steps(with_seen, golden, indices(golden))


def test_step_by_step_from_the_pixels(imported: Imported, golden: Golden) -> None:
    check_steps(imported.policy, golden, golden.inputs["frame"], steps=8)


def check_steps(policy: P2PPolicy, golden: Golden, frames: Tensor, steps: int = 40) -> None:
    pools = {n: torch.full((4, *t.shape), 77, dtype=t.dtype) for n, t in policy.state_layout().items()}
    for t in range(steps):
        seen: list[Tensor] = []
        inputs = {"frame": frames[:, t], INSTRUCTION: golden.inputs[INSTRUCTION][:, t]}

        def sample(logits_BA: Tensor, head: int, t: int = t, seen: list[Tensor] = seen) -> Tensor:
            seen.append(logits_BA)
            return golden.actions_BTH[:, t, head]

        memory = Memory(pools, torch.tensor([3, 1]), golden.first_BT[:, t])
        output = policy.step(inputs, golden.executed_BTH[:, t], memory, sample)
        assert torch.equal(output.actions_BH, golden.actions_BTH[:, t])
        for logits, wanted in zip(seen, golden.logits, strict=True):
            torch.testing.assert_close(logits, wanted[:, t], **CLOSE)
