"""Drawing an action's tokens, each from what the decoder says after those before it.

A pass of the decoder reads all its weights for one token, 8 times an action. Guessed tokens let one pass answer several
positions: what it says at a position is exact if all tokens before it were guessed right, and the guess (the action
before: keys are held for many frames) is thrown away from the first wrong one on. The tokens drawn are those that one
at a time would give, up to the rounding of products of several rows.

Shape legend: B rows, N positions of a pass, H heads of an action, D width, A choices of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from playserve_trainer.models.p2p.decoder import ActionDecoder, DirectHeads
from playserve_trainer.models.p2p.tokens import ActionEmbedding, ActionLogits
from playserve_trainer.models.policy import Sampler

__all__ = ["draw_action"]

# At this width a CPU multiplies so many rows by a matrix in little more time than it takes to read the matrix. A
# narrower model's pass costs what its operators cost, whatever the rows: the narrower, the more.
_ROWS, _WIDTH = 6, 1024


def draw_action(
    out_BD: Tensor,
    parts: tuple[ActionDecoder | DirectHeads, ActionEmbedding, ActionLogits],
    sample: Sampler,
    guess_BH: Tensor | None = None,
) -> Tensor:
    """Return the tokens drawn, int64 [B, H].

    Args:
        out_BD: What the backbone left of action_out.
        parts: The decoder, and what stands before and after it.
        sample: Called once for each head, in order.
        guess_BH: What may be drawn, int64. It looks at what was drawn, so for a CPU only, and not to be compiled.
    """
    decoder, embedding, logits = parts
    at_once = 1 if guess_BH is None else max(1, _ROWS * _WIDTH // out_BD.numel())
    guessed_BHD = embedding(guess_BH) if at_once > 1 else None
    x_BD, cache = decoder.begin(out_BD)
    drawn: list[Tensor] = []
    while len(drawn) < decoder.num_actions:
        first = len(drawn)
        last = min(first + at_once, decoder.num_actions) - 1
        x_BND = x_BD.unsqueeze(1)
        if guessed_BHD is not None:
            x_BND = torch.cat([x_BND, guessed_BHD[:, first:last].to(x_BND.dtype)], dim=1)
        y_BND = decoder.advance(x_BND, first, cache)
        for head in range(first, last + 1):
            drawn.append(sample(logits(y_BND[:, head - first], head), head))
            if head < last and guess_BH is not None and not torch.equal(drawn[-1], guess_BH[:, head]):
                break
        if len(drawn) < decoder.num_actions:
            x_BD = embedding.head(drawn[-1], len(drawn) - 1)
    return torch.stack(drawn, dim=1)
