"""What a tokenizer's training looks at beside pixels: who learns from it, and who does not notice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from toy_tokens import square_frames, tiny_tokenizer

from playserve.errors import BadSettingError
from playserve_trainer.flops import count_flops
from playserve_trainer.models.policy import LabelCounts
from playserve_trainer.models.registry import build, describe
from playserve_trainer.models.tokenizer import VQTokenizer, aids


def _frames(count: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(square_frames(np.random.default_rng(seed).integers(0, 16, count)))


def _put(tokenizer: VQTokenizer) -> VQTokenizer:
    """Have the codes lie where they are, so that nothing is drawn and nothing moves."""
    tokenizer.codebook.learner._codebook.initted.fill_(True)
    return tokenizer


def _loss(tokenizer: VQTokenizer, frames: torch.Tensor) -> torch.Tensor:
    labels = frames.to(torch.int16).view(len(frames), 1, -1)
    none = torch.full((len(frames), 1, 1), -1)
    logits = tokenizer({"frame": frames.unsqueeze(1)}, none, none[..., 0] < 0, None).logits
    return tokenizer.loss(logits, labels, LabelCounts.of(labels))


def _gradients(tokenizer: VQTokenizer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    tokenizer.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in tokenizer.named_parameters() if p.grad is not None}


def _pair(**settings: float) -> tuple[VQTokenizer, VQTokenizer]:
    """Return a tokenizer with aids and one without, of the same weights."""
    torch.manual_seed(0)
    still = {"dead_below": 0.0, "decay": 1 - 1e-12}
    aided, plain = _put(tiny_tokenizer(**still, **settings)), _put(tiny_tokenizer(**still))
    plain.load_state_dict({k: v for k, v in aided.state_dict().items() if k in plain.state_dict()})
    return aided.train(), plain.train()


def test_one_backward_pass_is_that_of_two_players() -> None:
    aided, plain = _pair(adversarial=0.3)
    assert aided.adversary is not None
    frames = _frames()
    together = _gradients(aided, _loss(aided, frames))

    # As it is written in two: the adversary on frames that are given; the tokenizer against an adversary that is given.
    real = (frames.float() - 127.5).permute(0, 3, 1, 2) / 127.5
    made = plain._pixels(plain.codebook(plain.features(frames).float())[0])
    made = (made - 127.5).permute(0, 3, 1, 2) / 127.5
    hinge = nn.functional.relu(1 - aided.adversary(real)) + nn.functional.relu(1 + aided.adversary(made.detach()))
    aided.zero_grad()
    hinge.mean().backward()
    for name, parameter in aided.adversary.named_parameters():
        torch.testing.assert_close(together[f"adversary.{name}"], parameter.grad)

    aided.adversary.requires_grad_(False)
    made = plain._pixels(plain.codebook(plain.features(frames).float())[0]).sub(127.5).div(127.5).permute(0, 3, 1, 2)
    apart = _gradients(plain, _loss(plain, frames) - 0.3 * aided.adversary(made).mean())
    assert set(apart) == {name for name in together if not name.startswith("adversary.")}
    for name, gradient in apart.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_verdict_counts_after_so_many_passes() -> None:
    aided, plain = _pair(adversarial=5.0, adversarial_after=1)
    frames = _frames()
    first, second = _gradients(aided, _loss(aided, frames)), _gradients(aided, _loss(aided, frames))
    wanted = _gradients(plain, _loss(plain, frames))
    for name, gradient in wanted.items():
        torch.testing.assert_close(first[name], gradient)
    assert not torch.allclose(second["decoder.out.weight"], wanted["decoder.out.weight"], rtol=0.01)
    assert first["adversary.layers.0.weight"].abs().sum() > 0, "it learns from the first"


def test_an_adversary_tells_what_does_not_change_from_what_is_real() -> None:
    torch.manual_seed(0)
    adversary, frames = aids.Adversary(1, 8), _frames(64).permute(0, 3, 1, 2).float() / 127.5 - 1
    blurred = nn.functional.avg_pool2d(frames, 5, 1, 2)
    optimizer = torch.optim.Adam(adversary.parameters(), 2e-3)
    for _ in range(60):
        _, own = adversary.losses(frames, blurred)
        optimizer.zero_grad()
        own.mean().backward()
        optimizer.step()
    fooled, own = adversary.losses(frames, blurred)
    assert own.mean() < 1.0, "2 is what one who says nothing gets"
    assert fooled.mean() > adversary.losses(frames, frames)[0].mean()


def test_nobody_but_the_training_notices() -> None:
    aided, plain = _pair(adversarial=0.3, perceptual=1.0)
    aided.eval(), plain.eval()
    frames = _frames()
    assert torch.equal(aided.encode(frames), plain.encode(frames))
    assert torch.equal(aided.decode(aided.encode(frames)), plain.decode(plain.encode(frames)))
    torch.testing.assert_close(_loss(aided, frames), _loss(plain, frames))
    assert aided.num_params() == plain.num_params()
    assert aided.digest() == plain.digest()
    again = build(*describe(aided))
    again.load_state_dict(aided.state_dict())
    assert isinstance(again, VQTokenizer)
    assert again.digest() == aided.digest()
    aided.train()
    assert count_flops(aided).forward > count_flops(plain.train()).forward, "the adversary's FLOPs are spent"


def test_lpips_is_torchmetrics_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net's pretrained weights cannot be had here: its linear weights are real, its features are random."""
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")

    class Features(nn.Module):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()
            torch.manual_seed(3)
            widths = (3, 64, 192, 384, 256, 256)
            pairs = itertools.pairwise(widths)
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, padding=1) for a, b in pairs)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            maps = []
            for layer in self.layers:
                x = torch.relu(layer(x))
                maps.append(x)
            return maps

    monkeypatch.setattr(lpips, "Alexnet", Features)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    aided, plain = _pair(perceptual=2.0, perceptual_net="alex")  # type: ignore[arg-type]
    frames = _frames(4)
    distance = aids.perceptual_distance("alex")
    real = frames.permute(0, 3, 1, 2).float()
    assert distance(real, real).abs().max() < 1e-6
    made = plain._pixels(plain.codebook(plain.features(frames).float())[0]).permute(0, 3, 1, 2)
    assert distance(real, made).min() > 0
    torch.testing.assert_close(_loss(aided, frames), _loss(plain, frames) + 2.0 * distance(real, made).mean())
    assert _gradients(aided, _loss(aided, frames)).keys() == dict(plain.named_parameters()).keys()


def test_a_small_thing_that_is_missed_weighs_much() -> None:
    """Two pixels that are far off, or a hundred times as many that are as much off together."""
    still = {"dead_below": 0.0, "decay": 1 - 1e-12}
    with_it, without = (
        _put(tiny_tokenizer(missed=1.0, **still)).train(),
        _put(tiny_tokenizer(missed=0.0, **still)).train(),
    )
    labels = torch.zeros(1, 1, 256, dtype=torch.int16)
    few, many = torch.zeros(1, 1, 256), torch.full((1, 1, 256), 127.5 / 128**0.5)
    few[..., :2] = 127.5
    nothing = torch.zeros(1, 1, 1), torch.zeros(1, 1, 4, dtype=torch.int64)
    counts = LabelCounts.of(labels)
    plain = [float(without.loss((made, *nothing), labels, counts)) for made in (few, many)]
    assert plain[0] == pytest.approx(plain[1]) == pytest.approx(2 / 256)
    more = [float(with_it.loss((made, *nothing), labels, counts)) - plain[0] for made in (few, many)]
    assert more[0] == pytest.approx((2 / 256) ** 0.5, rel=1e-2)
    assert more[1] == pytest.approx(1 / 128, rel=1e-2)
    with_it.eval()
    assert float(with_it.loss((few, *nothing), labels, counts)) == pytest.approx(plain[0])


def test_what_cannot_be_had_is_said() -> None:
    try:
        import torchvision  # noqa: F401
    except Exception:  # noqa: BLE001 - an installation that does not fit torch's fails in its own ways
        aided, _ = _pair(perceptual=1.0)
        with pytest.raises(BadSettingError, match="torchvision"):
            _loss(aided, _frames())
    for wrong in (
        {"missed": -1.0},
        {"adversarial": -1.0},
        {"perceptual": -0.1},
        {"perceptual_net": "resnet"},
        {"adversary_filters": 0},
    ):
        with pytest.raises(BadSettingError):
            tiny_tokenizer(**wrong)
