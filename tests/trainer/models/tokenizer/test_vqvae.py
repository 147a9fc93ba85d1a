"""The VQ-VAE as a policy and as a tokenizer: shapes on the dial, tokens that last, codes that live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_tokens import SIDE, square_frames, tiny_tokenizer

from playserve.errors import BadSettingError, ShapeMismatchError
from playserve.specs import ImageFormat
from playserve_trainer import checkpoint
from playserve_trainer.data.tokens.frames import place_statistics
from playserve_trainer.flops import count_flops
from playserve_trainer.models.policy import IGNORED_LABEL, LabelCounts, Memory
from playserve_trainer.models.registry import build
from playserve_trainer.models.tokenizer import TokenizerConfig, VQTokenizer
from playserve_trainer.models.tokenizer.nets import Levels, grid_of


def _frames(count: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(square_frames(np.random.default_rng(seed).integers(0, 16, count)))


def _learn(tokenizer: VQTokenizer, steps: int, frames: torch.Tensor) -> list[float]:
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    labels = frames.to(torch.int16).view(len(frames), 1, -1)
    losses = []
    tokenizer.train()
    for _ in range(steps):
        logits = _forward(tokenizer, frames)
        loss = tokenizer.loss(logits, labels, LabelCounts.of(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tokenizer.eval()
    return losses


def _forward(tokenizer: VQTokenizer, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
    none = torch.full((len(frames), 1, 1), -1)
    return tokenizer({"frame": frames.unsqueeze(1)}, none, none[..., 0] < 0, None).logits


@pytest.fixture(scope="module")
def learnt() -> VQTokenizer:
    torch.manual_seed(0)
    tokenizer, frames = tiny_tokenizer(filters=16, decoder_filters=16, codes=16, decay=0.9), _frames(64)
    tokenizer.standardise_by(*map(torch.from_numpy, place_statistics(frames.numpy())))
    _learn(tokenizer, 90, frames)
    return tokenizer


@pytest.mark.parametrize(
    ("frame", "tokens", "grid"),
    [
        ((84, 84, 1), 16, (4, 4)), ((84, 84, 1), 36, (6, 6)), ((84, 84, 1), 64, (8, 8)), ((84, 84, 1), 100, (10, 10)),
        ((84, 84, 1), 256, (16, 16)), ((64, 64, 3), 36, (6, 6)), ((96, 96, 3), 256, (16, 16)),
        ((64, 64, 3), 16, (4, 4)), ((180, 300, 3), 540, (18, 30)),
    ],
)  # fmt: skip
def test_any_number_of_tokens_comes_out_of_any_frame(
    frame: tuple[int, int, int], tokens: int, grid: tuple[int, int]
) -> None:
    height, width, channels = frame
    config = TokenizerConfig(
        height=height, width=width, channels=channels, tokens=tokens, codes=8, code_width=4, filters=4,
        decoder_filters=4,
    )  # fmt: skip
    assert config.grid == grid
    tokenizer = VQTokenizer(config).eval()
    frames = torch.randint(0, 256, (2, *frame), dtype=torch.uint8)
    encoded = tokenizer.encode(frames)
    assert (encoded.shape, encoded.dtype) == ((2, tokens), torch.int64)
    decoded = tokenizer.decode(encoded)
    assert (decoded.shape, decoded.dtype) == (frames.shape, torch.uint8)


def test_nothing_is_interpolated_where_frame_and_grid_differ_by_a_power_of_two() -> None:
    for tokens in (16, 64, 256):
        levels = Levels.between((64, 64), grid_of(tokens, 64, 64))
        assert levels.maps[-1] == levels.double


def test_the_spec_is_a_policys(learnt: VQTokenizer) -> None:
    spec = learnt.spec()
    assert [tensor.name for tensor in spec.inputs] == ["frame"]
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in spec.outputs} == {
        "tokens": ("int32", (4,)),
        "reconstruction": ("uint8", (SIDE, SIDE, 1)),
    }
    assert spec.inputs[0].image_format is ImageFormat.GRAY8
    assert learnt.heads() == (1,)
    assert not learnt.state_layout()


def test_a_step_answers_tokens_and_what_they_stand_for(learnt: VQTokenizer) -> None:
    frames = _frames(3, seed=5)
    memory = Memory({}, torch.arange(1, 4), torch.zeros(3, dtype=torch.bool))
    done = learnt.step({"frame": frames}, torch.full((3, 1), -1), memory, lambda logits, _head: logits.argmax(-1))
    assert done.actions_BH.tolist() == [[0], [0], [0]]
    assert done.outputs["tokens"].dtype == torch.int32
    assert torch.equal(done.outputs["tokens"].long(), learnt.encode(frames))
    assert torch.equal(done.outputs["reconstruction"], learnt.decode(learnt.encode(frames)))


def test_tokens_are_those_of_training_and_do_not_depend_on_who_else_is_asked(learnt: VQTokenizer) -> None:
    frames = _frames(24, seed=3)
    together = learnt.encode(frames)
    assert torch.equal(together, torch.cat([learnt.encode(frame.unsqueeze(0)) for frame in frames]))
    assert torch.equal(together, learnt.encode(frames))
    made, _, tokens = _forward(learnt, frames)
    assert torch.equal(tokens.squeeze(1), together)
    decoded = made.view(frames.shape).round().clamp(0, 255)
    assert (decoded - learnt.decode(together).float()).abs().max() <= 1  # what it is trained for is what is shown


def test_learning_makes_the_reconstruction_good(learnt: VQTokenizer) -> None:
    frames = _frames(64)
    error = (learnt.decode(learnt.encode(frames)).float() - frames.float()).square().mean()
    guess = (frames.float().mean(0) - frames.float()).square().mean()
    assert error < 0.2 * guess


def test_the_loss_is_the_squared_error_in_spreads_and_the_commitment() -> None:
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer(commitment=0.5).eval()
    spread = torch.full((SIDE, SIDE, 1), 10.0)
    tokenizer.standardise_by(torch.zeros(SIDE, SIDE, 1), spread)
    frames = _frames(5)
    logits = _forward(tokenizer, frames)
    labels = frames.to(torch.int16).view(5, 1, -1)
    wanted = ((logits[0] - labels) / 10).square().mean() + 0.5 * logits[1].mean()
    assert tokenizer.loss(logits, labels, LabelCounts.of(labels)).item() == pytest.approx(wanted.item(), rel=1e-5)
    # Parts of a batch add up, and what is no frame counts for nothing.
    counts = LabelCounts.of(labels)
    parts = [tokenizer.loss([x[rows] for x in logits], labels[rows], counts) for rows in (slice(0, 2), slice(2, 5))]
    assert sum(part.item() for part in parts) == pytest.approx(wanted.item(), rel=1e-5)
    labels[3:] = IGNORED_LABEL
    ignored = tokenizer.loss(logits, labels, LabelCounts.of(labels))
    alone = tokenizer.loss([x[:3] for x in logits], labels[:3], LabelCounts.of(labels[:3]))
    assert ignored.item() == pytest.approx(alone.item(), rel=1e-5)
    hits, total = tokenizer.count_hits([labels.float()], labels)
    assert (hits.item(), total.item()) == (3 * SIDE * SIDE, 3 * SIDE * SIDE)


def test_codes_that_nobody_uses_are_put_where_they_are_used() -> None:
    torch.manual_seed(2)
    frames = _frames(64)
    used = {}
    for dead_below in (0.0, 0.5):
        tokenizer = tiny_tokenizer(codes=32, dead_below=dead_below, decay=0.8)
        _learn(tokenizer, 1, frames)
        # All codes but one far away: nothing is nearest to them.
        book = tokenizer.codebook.learner._codebook
        book.embed[:, 1:] = 1e3
        book.embed_avg[:, 1:] = 1e3
        book.cluster_size[:, 1:] = 0.01
        _learn(tokenizer, 5, frames)
        used[dead_below] = len(tokenizer.encode(frames).unique())
    assert used[0.5] > used[0.0]


def test_a_checkpoint_gives_the_same_tokens_and_the_same_digest(learnt: VQTokenizer, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one", learnt, checkpoint.Manifest.describe(learnt))
    loaded, manifest = checkpoint.load(tmp_path / "one")
    assert isinstance(loaded, VQTokenizer)
    assert manifest.family == "tokenizer"
    frames = _frames(9, seed=8)
    assert torch.equal(loaded.encode(frames), learnt.encode(frames))
    assert loaded.digest() == learnt.digest()
    with torch.no_grad():
        next(loaded.parameters()).add_(1e-3)
    assert loaded.digest() != learnt.digest()


def test_flops_are_those_of_the_layers_and_of_the_look_up() -> None:
    tokenizer = tiny_tokenizer()
    count = count_flops(tokenizer)
    assert count.by_layer["codebook"] == 2 * 4 * 4 * 8  # K tokens, D wide, V codes
    assert count.by_layer["encoder.stem"] == 2 * 4 * 4 * 8 * 36  # map of 4 x 4, F filters, kernel of 6
    assert sum(p.numel() for p in tokenizer.parameters()) == tokenizer.num_params()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokens": 0}, "tokens is at least 1"), ({"tokens": 37}, "37 tokens make a grid"),
        ({"channels": 4}, "channels"), ({"codes": 1}, "codes is 2 to"), ({"decay": 1.0}, "decay"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(BadSettingError, match=named):
        tiny_tokenizer(**settings)


def test_frames_and_tokens_of_other_shapes_are_refused(learnt: VQTokenizer) -> None:
    with pytest.raises(ShapeMismatchError, match=r"\[M, \*\[16, 16, 1\]\]"):
        learnt.encode(torch.zeros(2, 8, 8, 1, dtype=torch.uint8))
    with pytest.raises(ShapeMismatchError, match="float32"):
        learnt.encode(torch.zeros(2, SIDE, SIDE, 1))
    with pytest.raises(ShapeMismatchError, match=r"\[M, 4\]"):
        learnt.decode(torch.zeros(2, 5, dtype=torch.int64))


def test_the_registry_builds_it() -> None:
    config = {"height": 16, "width": 16, "channels": 3, "tokens": 16, "filters": 4, "decoder_filters": 4}
    policy = build("tokenizer", config)
    assert policy.spec().inputs[0].image_format is ImageFormat.RGB8
