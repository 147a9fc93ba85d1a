"""NetHack's screen as tokens: characters come back, crops lie around the cursor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from playserve.errors import BadSettingError, NotImplementedHereError, ShapeMismatchError
from playserve_trainer import checkpoint
from playserve_trainer.models.tokenizer import NetHackTokenizer, NetHackTokenizerConfig
from playserve_trainer.models.tokenizer.nethack import crop_screens


def _screens(count: int) -> torch.Tensor:
    return torch.randint(32, 127, (count, 24, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_characters_come_back() -> None:
    tokenizer = NetHackTokenizer(NetHackTokenizerConfig(height=24, width=80))
    screens = _screens(3).unsqueeze(-1)
    tokens = tokenizer.encode(screens)
    assert tokens.shape == (3, 1920)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocabulary
    assert torch.equal(tokenizer.decode(tokens), screens)


def test_what_is_not_printable_is_a_space_or_a_question_mark() -> None:
    tokenizer = NetHackTokenizer(NetHackTokenizerConfig(height=1, width=3))
    frame = torch.tensor([0, 127, 200], dtype=torch.uint8).view(1, 1, 3, 1)
    assert bytes(tokenizer.decode(tokenizer.encode(frame)).flatten().tolist()) == b" ??"


def test_a_crop_lies_around_the_cursor_and_beyond_the_edge_are_spaces() -> None:
    screens = _screens(3)
    cursor = torch.tensor([[10, 40], [0, 0], [23, 79]], dtype=torch.uint8)
    crops = crop_screens(screens, cursor, 5, 7)
    assert crops.shape == (3, 5, 7, 1)
    assert torch.equal(crops[0, ..., 0], screens[0, 8:13, 37:44])
    assert torch.equal(crops[1, 2:, 3:, 0], screens[1, :3, :4])
    assert (crops[1, :2] == 32).all()
    assert (crops[2, 3:] == 32).all()
    assert crops[2, 2, 3, 0] == screens[2, 23, 79]
    assert torch.equal(crop_screens(screens, cursor, 24, 80)[..., 0], screens)
    with pytest.raises(ShapeMismatchError, match="24, 80"):
        crop_screens(screens[:, :5], cursor, 3, 3)


def test_a_checkpoint_without_parameters_is_one(tmp_path: Path) -> None:
    tokenizer = NetHackTokenizer(NetHackTokenizerConfig(height=3, width=5))
    assert tokenizer.num_params() == 0
    checkpoint.save(tmp_path / "one", tokenizer, checkpoint.Manifest.describe(tokenizer))
    loaded, manifest = checkpoint.load(tmp_path / "one")
    assert isinstance(loaded, NetHackTokenizer)
    assert manifest.family == "tokenizer-nethack"
    assert loaded.digest() == tokenizer.digest()
    assert loaded.device().type == "cpu"
    other = NetHackTokenizer(NetHackTokenizerConfig(height=5, width=3))
    assert other.digest() != tokenizer.digest()


def test_there_is_nothing_to_train() -> None:
    tokenizer = NetHackTokenizer(NetHackTokenizerConfig())
    with pytest.raises(NotImplementedHereError, match="learns nothing"):
        tokenizer({}, torch.zeros(1, 1, 1), torch.zeros(1, 1))


@pytest.mark.parametrize("size", [(8, 9), (9, 81), (24, 9), (0, 3), (9, 80)])
def test_odd_crops_are_named(size: tuple[int, int]) -> None:
    with pytest.raises(BadSettingError, match="tokenizer-nethack"):
        NetHackTokenizerConfig(height=size[0], width=size[1])
