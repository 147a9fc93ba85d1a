"""Words and numbers of terminal lines, as integers: fixed functions, computed for many lines at once.

A word is a run of printing characters; its code is a polynomial hash, so that a table of embeddings can know any word
without a vocabulary. Everything is exact integer arithmetic: the same on every device, in any batch. Each function is
written twice, with equal results: for a CPU in numpy, which looks only at the words that are there, at a third of
torch's cost; and in torch for GPUs and compilers, where no shape may depend on the data.

Shape legend: N lines, L columns, W words, F numbers, E ends of words (or numbers) in all lines together.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["LineNumbers", "WordHashes", "in_numpy"]

_PRIME = 2_147_483_629  # products of two residues fit into int64
_BASE = 69_069
_MIX = 40_503
_ZERO, _NINE = 48, 57
_MAX_DIGITS = 7


def in_numpy(tensor: Tensor) -> bool:
    """Return whether fixed functions of `tensor` are computed in numpy: on a CPU, when nothing is traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


class WordHashes(nn.Module):
    """Hashes of a line's words, of their pairs, and of the whole line.

    Args:
        num_columns: L.
        num_words: W: words of a line that are looked at.
    """

    falling: Tensor
    rising: Tensor

    def __init__(self, num_columns: int, num_words: int) -> None:
        super().__init__()
        self.num_words = num_words
        inverse = pow(_BASE, -1, _PRIME)
        falling = [pow(inverse, i, _PRIME) for i in range(num_columns)]
        rising = [pow(_BASE, i, _PRIME) for i in range(num_columns)]
        self.register_buffer("falling", torch.tensor(falling), persistent=False)
        self.register_buffer("rising", torch.tensor(rising), persistent=False)

    def forward(self, line_NL: Tensor, text_NL: Tensor) -> Tensor:
        """Return hashes int64 [N, 2 W]: W words, W - 1 pairs, and the line; from 0, which stands for no word.

        Args:
            line_NL: uint8 [N, L], the characters.
            text_NL: bool [N, L], which of them belong to words.
        """
        if in_numpy(line_NL):
            return torch.from_numpy(self._of_words(line_NL.numpy(), text_NL.numpy()))
        return self.of_lines(line_NL, text_NL)

    def _of_words(self, line_NL: NDArray[np.uint8], text_NL: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Compute on a CPU: after the sums up to each column, only the ends of words are looked at."""
        sums_NL = np.cumsum((line_NL * text_NL) * self.falling.numpy(), axis=1)
        row_E, column_E, rank_E = _ends(text_NL, self.num_words)
        upto_E = sums_NL[row_E, column_E]
        own_E = upto_E.copy()
        own_E[1:] -= upto_E[:-1] * (rank_E[1:] > 0)
        word_E = own_E % _PRIME * self.rising.numpy()[column_E] % _PRIME
        hashes_NC = np.zeros((len(line_NL), 2 * self.num_words), np.int64)
        hashes_NC[row_E, rank_E] = word_E
        later = np.flatnonzero(rank_E)
        hashes_NC[row_E[later], self.num_words - 1 + rank_E[later]] = word_E[later - 1] * _MIX + word_E[later]
        hashes_NC[:, -1] = (sums_NL[:, -1] + 1) % _PRIME * _MIX
        return hashes_NC

    def of_lines(self, line_NL: Tensor, text_NL: Tensor) -> Tensor:
        """Compute in torch, with fixed shapes."""
        last_NL = _last_of_runs(text_NL)
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
        return torch.cat([word_NW, pair_NV, whole_N1], dim=1)

    def codes(self, hashes_NC: Tensor, num_codes: int, num_words: int | None = None) -> Tensor:
        """Return codes int64 [N, 2 W'] from 1 to `num_codes` - 1, and 0 for no word, of the first W' words."""
        if num_words is not None and num_words < self.num_words:
            pairs = slice(self.num_words, self.num_words + num_words - 1)
            hashes_NC = torch.cat([hashes_NC[:, :num_words], hashes_NC[:, pairs], hashes_NC[:, -1:]], dim=1)
        if in_numpy(hashes_NC):
            hashes = hashes_NC.numpy()
            return torch.from_numpy((hashes % _PRIME % (num_codes - 1) + 1) * (hashes != 0))
        return ((hashes_NC % _PRIME) % (num_codes - 1) + 1).where(hashes_NC != 0, 0)


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
        if in_numpy(line_NL):
            number_NF, known_NF = self._of_digits(line_NL.numpy())
            return torch.from_numpy(number_NF), torch.from_numpy(known_NF)
        return self.of_lines(line_NL)

    def _of_digits(self, line_NL: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Compute on a CPU: only digits are looked at."""
        num_columns = line_NL.shape[1]
        # Before the first column stands one that is no digit, so that nothing is read from the line above.
        digit = np.zeros((len(line_NL), num_columns + 1), np.uint8)
        digit[:, 1:] = line_NL - np.uint8(_ZERO) + np.uint8(1)  # wraps around: 1 to 10 for digits
        digit *= digit <= _NINE - _ZERO + 1
        row_E, column_E, rank_E = _ends(digit[:, 1:] > 0, self.num_numbers)
        flat, place_E = digit.ravel(), row_E * (num_columns + 1) + column_E + 1
        number_E, value_E = np.zeros(len(row_E), np.int64), flat[place_E]
        for power in range(_MAX_DIGITS):
            number_E += (value_E.astype(np.int64) - (value_E > 0)) * 10**power
            place_E = place_E - (value_E > 0)
            value_E = flat[place_E] * (value_E > 0)
            if not value_E.any():
                break
        number_NF = np.zeros((len(line_NL), self.num_numbers), np.int64)
        known_NF = np.zeros(number_NF.shape, bool)
        number_NF[row_E, rank_E] = number_E
        known_NF[row_E, rank_E] = True
        return number_NF, known_NF

    def of_lines(self, line_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Compute in torch, with fixed shapes."""
        digit_NL = (line_NL >= _ZERO) & (line_NL <= _NINE)
        end_NF = _places(_last_of_runs(digit_NL), self.num_numbers)
        known_NF = end_NF < line_NL.shape[1]
        place_NFD = end_NF.unsqueeze(2) - torch.arange(_MAX_DIGITS, device=line_NL.device)
        inside_NFD = (place_NFD >= 0) & known_NF.unsqueeze(2)
        flat_NK = place_NFD.clamp(0, line_NL.shape[1] - 1).flatten(1)
        own_NFD = digit_NL.gather(1, flat_NK).view(place_NFD.shape) & inside_NFD
        own_NFD = own_NFD.cumprod(2)
        value_NFD = line_NL.gather(1, flat_NK).view(place_NFD.shape).long() - _ZERO
        return (value_NFD * own_NFD * self.powers).sum(2), known_NF


def _ends(mask_NL: NDArray[np.bool_], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (row, column, rank in its row) of the last True of each run, of the first `count` runs of each row."""
    last_NL = mask_NL.copy()
    last_NL[:, :-1] &= ~mask_NL[:, 1:]
    row_E, column_E = np.divmod(np.flatnonzero(last_NL), mask_NL.shape[1])
    rank_E = np.arange(len(row_E)) - np.searchsorted(row_E, row_E)
    if rank_E.size and rank_E.max() >= count:
        kept = np.flatnonzero(rank_E < count)
        row_E, column_E, rank_E = row_E[kept], column_E[kept], rank_E[kept]
    return row_E, column_E, rank_E


def _last_of_runs(mask_NL: Tensor) -> Tensor:
    last_NL = mask_NL.clone()
    last_NL[:, :-1] &= ~mask_NL[:, 1:]
    return last_NL


def _places(mask_NL: Tensor, count: int) -> Tensor:
    """Return the columns int64 [N, count] of the first True of each row, L where there are no more."""
    num_rows, num_columns = mask_NL.shape
    rank_NL = mask_NL.cumsum(1) - 1
    # What is False, or comes too late, goes to a column that is cut off.
    rank_NL = rank_NL.where(mask_NL & (rank_NL < count), count)
    columns_NL = torch.arange(num_columns, device=mask_NL.device).expand(num_rows, -1)
    places = torch.full((num_rows, count + 1), num_columns, dtype=torch.int64, device=mask_NL.device)
    return places.scatter_(1, rank_NL, columns_NL)[:, :count]
