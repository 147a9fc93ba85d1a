"""Words and numbers of terminal lines, as integers: fixed functions, computed for many lines at once.

A word is a run of printing characters; its code is a polynomial hash, so that a table of embeddings can know any word
without a vocabulary. Everything is exact integer arithmetic: the same on every device, in any batch.

Shape legend: N lines, L columns, W words, F numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LineNumbers", "WordCodes"]

_PRIME = 2_147_483_629  # products of two residues fit into int64
_BASE = 69_069
_MIX = 40_503
_SPACE, _ZERO, _NINE = 32, 48, 57
_MAX_DIGITS = 7


class WordCodes(nn.Module):
    """Codes of a line's words, of their pairs, and of the whole line.

    Args:
        num_columns: L.
        num_words: W: words of a line that are looked at.
        num_codes: Codes are 1 to `num_codes` - 1; 0 stands for no word.
        digits: Whether digits belong to words; if not, they part them.
    """

    falling: Tensor
    rising: Tensor

    def __init__(self, num_columns: int, num_words: int, num_codes: int, *, digits: bool = True) -> None:
        super().__init__()
        self.num_words, self.num_codes, self.digits = num_words, num_codes, digits
        inverse = pow(_BASE, -1, _PRIME)
        falling = [pow(inverse, i, _PRIME) for i in range(num_columns)]
        rising = [pow(_BASE, i, _PRIME) for i in range(num_columns)]
        self.register_buffer("falling", torch.tensor(falling), persistent=False)
        self.register_buffer("rising", torch.tensor(rising), persistent=False)

    def forward(self, line_NL: Tensor) -> Tensor:
        """Return codes int64 [N, 2 W] of lines uint8 [N, L]: W words, W - 1 pairs, and the line."""
        text_NL = line_NL > _SPACE
        if not self.digits:
            text_NL = text_NL & ((line_NL < _ZERO) | (line_NL > _NINE))
        last_NL = text_NL.clone()
        last_NL[:, :-1] &= ~text_NL[:, 1:]
        # sum of char[j] * base**-j up to each column; a word's is a difference, freed from its place by base**end.
        sums_NL = (line_NL * text_NL * self.falling).cumsum(1)
        end_NW = _places(last_NL, self.num_words)
        known_NW = end_NW < line_NL.shape[1]
        end_NW = end_NW.clamp(max=line_NL.shape[1] - 1)
        upto_NW = sums_NL.gather(1, end_NW)
        own_NW = torch.diff(upto_NW, dim=1, prepend=torch.zeros_like(upto_NW[:, :1])) % _PRIME
        word_NW = (own_NW * self.rising[end_NW] % _PRIME).where(known_NW, 0)
        pair_NV = (word_NW[:, :-1] * _MIX + word_NW[:, 1:]).where(known_NW[:, 1:], 0)
        whole_N1 = (sums_NL[:, -1:] + 1) % _PRIME * _MIX
        codes_NC = torch.cat([word_NW, pair_NV, whole_N1], dim=1)
        return ((codes_NC % _PRIME) % (self.num_codes - 1) + 1).where(codes_NC != 0, 0)


class LineNumbers(nn.Module):
    """The numbers in a line, in order.

    Args:
        num_numbers: F: numbers of a line that are looked at.
    """

    powers: Tensor

    def __init__(self, num_numbers: int) -> None:
        super().__init__()
        self.num_numbers = num_numbers
        self.register_buffer("powers", 10 ** torch.arange(_MAX_DIGITS), persistent=False)

    def forward(self, line_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers int64 [N, F] of lines uint8 [N, L], 0 where there is none, and which there are, bool."""
        digit_NL = (line_NL >= _ZERO) & (line_NL <= _NINE)
        last_NL = digit_NL.clone()
        last_NL[:, :-1] &= ~digit_NL[:, 1:]
        end_NF = _places(last_NL, self.num_numbers)
        known_NF = end_NF < line_NL.shape[1]
        place_NFD = end_NF.unsqueeze(2) - torch.arange(_MAX_DIGITS, device=line_NL.device)
        inside_NFD = (place_NFD >= 0) & known_NF.unsqueeze(2)
        flat_NK = place_NFD.clamp(0, line_NL.shape[1] - 1).flatten(1)
        own_NFD = digit_NL.gather(1, flat_NK).view(place_NFD.shape) & inside_NFD
        own_NFD = own_NFD.cumprod(2)
        value_NFD = line_NL.gather(1, flat_NK).view(place_NFD.shape).long() - _ZERO
        return (value_NFD * own_NFD * self.powers).sum(2), known_NF


def _places(mask_NL: Tensor, count: int) -> Tensor:
    """Return the columns int64 [N, count] of the first True of each row, L where there are no more."""
    num_rows, num_columns = mask_NL.shape
    rank_NL = mask_NL.cumsum(1) - 1
    # What is False, or comes too late, goes to a column that is cut off.
    rank_NL = rank_NL.where(mask_NL & (rank_NL < count), count)
    columns_NL = torch.arange(num_columns, device=mask_NL.device).expand(num_rows, -1)
    places = torch.full((num_rows, count + 1), num_columns, dtype=torch.int64, device=mask_NL.device)
    return places.scatter_(1, rank_NL, columns_NL)[:, :count]
