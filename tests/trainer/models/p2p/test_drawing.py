import pytest
import torch

from playserve_trainer.models.p2p.drawing import draw_action


class _Draws:
    """A sampler that draws by Gumbel's trick from noise fixed beforehand, as the server's draws are."""

    def __init__(self, heads: tuple[int, ...], rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._noise = [torch.rand(rows, choices, generator=generator).log().neg().log().neg() for choices in heads]
        self.logits: list[torch.Tensor] = []

    def __call__(self, logits_BA: torch.Tensor, head: int) -> torch.Tensor:
        assert head == len(self.logits)
        self.logits.append(logits_BA)
        return (logits_BA + self._noise[head]).argmax(-1)


class _Passes:
    """A decoder that counts its passes."""

    def __init__(self, decoder) -> None:
        self._decoder, self.passes = decoder, []

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def advance(self, x_BND, head, cache):
        self.passes.append(x_BND.shape[1])
        return self._decoder.advance(x_BND, head, cache)


def _draw(policy, out_BD, guess_BH, seed=0):
    sampler, decoder = _Draws(policy.heads(), len(out_BD), seed), _Passes(policy.decoder)
    drawn_BH = draw_action(out_BD, (decoder, policy.embedding, policy.logits), sampler, guess_BH)
    return drawn_BH, torch.cat(sampler.logits, dim=1), decoder.passes


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_guesses_change_nothing_that_is_drawn(small, rows):
    policy = small()
    heads = torch.tensor(policy.heads())
    out_BD = torch.randn(rows, policy.config.width)
    for seed in range(8):
        wanted_BH, logits, _ = _draw(policy, out_BD, None, seed)
        generator = torch.Generator().manual_seed(seed)
        wrong_BH = (wanted_BH + 1 + (torch.rand(wanted_BH.shape, generator=generator) * (heads - 1)).long()) % heads
        mixed_BH = torch.where(torch.rand(wanted_BH.shape, generator=generator) < 0.7, wanted_BH, wrong_BH)
        for guess_BH in (wanted_BH, wrong_BH, mixed_BH):
            drawn_BH, seen, _ = _draw(policy, out_BD, guess_BH, seed)
            assert torch.equal(drawn_BH, wanted_BH)
            torch.testing.assert_close(seen, logits, atol=1e-5, rtol=1e-5)


def test_right_guesses_save_passes(small):
    policy = small(width=1024)
    out_BD = torch.randn(1, policy.config.width)
    drawn_BH, _, passes = _draw(policy, out_BD, None)
    assert passes == [1] * 8
    assert _draw(policy, out_BD, drawn_BH)[2] == [6, 2]
    late_BH = drawn_BH.clone()
    late_BH[0, 3] = (late_BH[0, 3] + 1) % policy.heads()[3]
    assert _draw(policy, out_BD, late_BH)[2] == [6, 4]
    assert _draw(policy, out_BD, (drawn_BH + 1) % torch.tensor(policy.heads()))[2] == [6, 6, 6, 5, 4, 3, 2, 1]


def test_narrow_models_take_all_at_once(small):
    policy = small()
    out_BD = torch.randn(8, policy.config.width)
    drawn_BH, _, _ = _draw(policy, out_BD, None)
    assert _draw(policy, out_BD, drawn_BH)[2] == [8]


def test_many_rows_take_one_at_a_time(small):
    policy = small(width=1024)
    out_BD = torch.randn(4, policy.config.width)
    drawn_BH, _, _ = _draw(policy, out_BD, None)
    assert _draw(policy, out_BD, drawn_BH)[2] == [1] * 8
