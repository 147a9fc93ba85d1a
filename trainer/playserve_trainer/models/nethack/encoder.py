"""The encoder of the `nethack` family: a terminal screen becomes one vector, cheaply.

It sees what Tuyls et al. (2307.09423) feed their agents (message line, status lines, screen, 9x9 crop around the
cursor, previous action, inventory if asked for), but spends its time otherwise, because frames a second decide what a
minute of training is worth:

- text goes through embeddings of hashed words and through the numbers of the status lines, not through one-hot GEMMs;
- the crop is embedded cell by cell, by one look-up of (character, colour), and multiplied flat;
- the rest of the screen is counted: how many cells of each kind lie in each zone around the cursor. Zones grow with
  the distance. The counts need no gradient.

The parts add up, which is what concatenation before a linear layer would do. What the settings leave out (message,
map, inventory) has no weights and takes no time. Tuyls et al. cut the crop out of the map and read the cursor for that
alone: without the map this encoder knows neither the crop nor the cursor, and without the message the crop, which here
is cut out of the whole terminal, does not show row 0 either.

What needs no gradient is computed in numpy on a CPU, for all lines at once: a step of few rows is otherwise spent on
the calls of hundreds of operators.

Shape legend: N frames, D width, P = 81 cells of the crop, Z zones, K kinds of cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from playserve_trainer.models.nethack.config import NetHackConfig
from playserve_trainer.models.nethack.text import LineNumbers, WordHashes, in_numpy
from playserve_trainer.models.policy import UNKNOWN_ACTION

__all__ = ["NetHackEncoder", "crop_codes"]

_ROWS, _COLUMNS = 24, 80
_CELLS = _ROWS * _COLUMNS
_MAP = slice(1, 22)  # rows of the main screen; row 0 is the message, 22 and 23 are the status
_COLORS = 16
_CODES = 128 * _COLORS  # of (character, colour)
_MESSAGE, _STATUS = 0, (22, 23)
_SPACE, _ZERO, _NINE = 32, 48, 57
_RADIUS = 4
_CODE_SIZE = 16  # numbers that embed one cell of the crop
_MESSAGE_CODES = 4096
_STATUS_CODES = 512  # few words stand there
_MESSAGE_WORDS = 16
_STATUS_WORDS = 12
_STATUS_NUMBERS = 12
_NO_GLYPH = 5976  # nle's, in empty places of the inventory

# Zones are intervals of the distance to the cursor, to either side: 0, 1, 2..3, and so on.
_ROW_ZONES = (0, 2, 5)
_COLUMN_ZONES = (0, 2, 5, 10, 20)


class NetHackEncoder(nn.Module):
    """Frames to vectors; see the module's docstring."""

    def __init__(self, config: NetHackConfig) -> None:
        super().__init__()
        width, first_row = config.width, _MESSAGE if config.message else _MAP.start
        self.hashes = WordHashes(_COLUMNS, max(_MESSAGE_WORDS, _STATUS_WORDS))
        self.message = _Words(self.hashes, _MESSAGE_WORDS, _MESSAGE_CODES, width) if config.message else None
        self.status_words = _Words(self.hashes, _STATUS_WORDS, _STATUS_CODES, width)
        self.status = _Status(width)
        self.crop = _Crop(width, first_row) if config.map else None
        self.zones = _Zones(width) if config.map else None
        self.executed = nn.Embedding(config.num_actions - UNKNOWN_ACTION, width)
        self.row = nn.Embedding(_ROWS, width) if config.map else None
        self.column = nn.Embedding(_COLUMNS, width) if config.map else None
        self.inventory = (
            nn.EmbeddingBag(_NO_GLYPH + 1, width, mode="sum", padding_idx=_NO_GLYPH) if config.inventory else None
        )
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        # What matters from the first step on begins loud; tables of thousands of rows begin quiet, not as noise.
        for embedding, std in ((self.executed, 1.0), (self.row, 0.3), (self.column, 0.1)):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=std)

    def forward(
        self, chars_NRC: Tensor, colors_NRC: Tensor, cursor_N2: Tensor, executed_N: Tensor, inventory: Tensor | None
    ) -> Tensor:
        """Return vectors [N, D].

        Args:
            chars_NRC: uint8 [N, 24, 80].
            colors_NRC: int8 [N, 24, 80].
            cursor_N2: uint8 [N, 2], row and column.
            executed_N: int64 [N], the previous action.
            inventory: int16 [N, 55] glyphs, or None.
        """
        x_ND = self._words(chars_NRC) + self.status(chars_NRC) + self.executed(executed_N - UNKNOWN_ACTION)
        if self.row is not None and self.column is not None and self.crop is not None and self.zones is not None:
            row_N = cursor_N2[:, 0].long().clamp(max=_ROWS - 1)
            column_N = cursor_N2[:, 1].long().clamp(max=_COLUMNS - 1)
            x_ND = x_ND + self.row(row_N) + self.column(column_N)
            x_ND = x_ND + self.crop(chars_NRC, colors_NRC, row_N, column_N)
            x_ND = x_ND + self.zones(chars_NRC, colors_NRC, row_N, column_N)
        if self.inventory is not None and inventory is not None:
            x_ND = x_ND + self.inventory(inventory.long().clamp(0, _NO_GLYPH))
        x_ND = self.norm(x_ND)
        mixed_ND: Tensor = x_ND + self.mix(F.relu(x_ND))
        return mixed_ND

    def _words(self, chars_NRC: Tensor) -> Tensor:
        """Return vectors [N, D] of the words of the message, and of the last status line, where digits are none."""
        rows = [_STATUS[-1]] if self.message is None else [_MESSAGE, _STATUS[-1]]
        line_NRL = torch.stack([chars_NRC[:, row] for row in rows], dim=1)
        text_NRL = line_NRL > _SPACE
        text_NRL[:, -1] &= (line_NRL[:, -1] < _ZERO) | (line_NRL[:, -1] > _NINE)
        hashes_NRH = self.hashes(line_NRL.flatten(0, 1), text_NRL.flatten(0, 1)).view(len(chars_NRC), len(rows), -1)
        x_ND: Tensor = self.status_words(hashes_NRH[:, -1])
        return x_ND if self.message is None else self.message(hashes_NRH[:, 0]) + x_ND


class _Words(nn.Module):
    """Embeddings of the words of a line, added up."""

    def __init__(self, hashes: WordHashes, num_words: int, num_codes: int, width: int) -> None:
        super().__init__()
        self.codes, self.num_words, self.num_codes = hashes.codes, num_words, num_codes
        self.bag = nn.EmbeddingBag(num_codes, width, mode="sum", padding_idx=0)
        nn.init.normal_(self.bag.weight, std=0.02)

    def forward(self, hashes_NC: Tensor) -> Tensor:
        vectors_ND: Tensor = self.bag(self.codes(hashes_NC, self.num_codes, self.num_words))
        return vectors_ND


class _Status(nn.Module):
    """The numbers of the status lines: how large they are, and for pairs (hit points) their ratio."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.numbers = LineNumbers(_STATUS_NUMBERS)
        self.linear = nn.Linear(len(_STATUS) * _STATUS_NUMBERS * 4, width)

    def forward(self, chars_NRC: Tensor) -> Tensor:
        number_MF, known_MF = self.numbers(chars_NRC[:, _STATUS[0] : _STATUS[-1] + 1].flatten(0, 1))
        value_MF = number_MF.to(self.linear.weight.dtype)
        following_MF = F.pad(value_MF[:, 1:], (0, 1))
        ratio_MF = value_MF / following_MF.clamp(min=1.0)
        features_MG = torch.cat([torch.log1p(value_MF) * 0.5, ratio_MF.clamp(max=2.0), (value_MF * 0.05).clamp(max=2.0),
                                 known_MF.to(value_MF.dtype)], dim=1)  # fmt: skip
        vectors_ND: Tensor = self.linear(features_MG.view(len(chars_NRC), -1))
        return vectors_ND


class _Crop(nn.Module):
    """The 9x9 cells around the cursor; rows above `first_row` are not looked at."""

    def __init__(self, width: int, first_row: int = 0) -> None:
        super().__init__()
        self.first_row, side = first_row, 2 * _RADIUS + 1
        self.embed = nn.Embedding(_CODES, _CODE_SIZE)
        self.linear = nn.Linear(side * side * _CODE_SIZE, width)
        nn.init.normal_(self.embed.weight, std=0.3)

    def forward(self, chars_NRC: Tensor, colors_NRC: Tensor, row_N: Tensor, column_N: Tensor) -> Tensor:
        if in_numpy(chars_NRC):
            screens = (chars_NRC.numpy(), colors_NRC.numpy(), row_N.numpy(), column_N.numpy())
            code_NP = torch.from_numpy(crop_codes(*screens, self.first_row))
        else:
            code_NP = self.codes(chars_NRC, colors_NRC, row_N, column_N)
        vectors_ND: Tensor = self.linear(self.embed(code_NP).flatten(1))
        return vectors_ND

    def codes(self, chars_NRC: Tensor, colors_NRC: Tensor, row_N: Tensor, column_N: Tensor) -> Tensor:
        """Return the code int64 [N, P] of each cell of the crop, 0 outside of what is looked at."""
        around = torch.arange(-_RADIUS, _RADIUS + 1, device=chars_NRC.device)
        row_NS, column_NS = row_N.unsqueeze(1) + around, column_N.unsqueeze(1) + around
        inside_NSS = ((row_NS >= self.first_row) & (row_NS < _ROWS)).unsqueeze(2) & (
            (column_NS >= 0) & (column_NS < _COLUMNS)
        ).unsqueeze(1)
        place_NSS = row_NS.clamp(0, _ROWS - 1).unsqueeze(2) * _COLUMNS + column_NS.clamp(0, _COLUMNS - 1).unsqueeze(1)
        place_NP = place_NSS.flatten(1)
        code_NP = (chars_NRC.flatten(1).gather(1, place_NP).long() & 127) * _COLORS
        code_NP = code_NP + (colors_NRC.flatten(1).gather(1, place_NP).long() & (_COLORS - 1))
        return code_NP * inside_NSS.flatten(1)


def crop_codes(
    chars_NRC: NDArray[np.uint8],
    colors_NRC: NDArray[np.int8],
    row_N: NDArray[np.int64],
    column_N: NDArray[np.int64],
    first_row: int = 0,
) -> NDArray[np.int64]:
    """Do what `_Crop.codes` does, in numpy: whole pieces of rows, cut from a screen with a frame of zeros."""
    side, num_screens = 2 * _RADIUS + 1, len(chars_NRC)
    framed = np.zeros((num_screens, _ROWS + side - 1, _COLUMNS + side - 1), np.int16)
    inner = framed[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    np.multiply(chars_NRC & 127, _COLORS, out=inner, dtype=np.int16)
    inner += colors_NRC & (_COLORS - 1)
    inner[:, :first_row] = 0
    windows = sliding_window_view(framed, (side, side), axis=(1, 2))
    return windows[np.arange(num_screens), row_N, column_N].reshape(num_screens, -1).astype(np.int64)


class _Zones(nn.Module):
    """Counts of the kinds of cells in zones around the cursor."""

    kinds: Tensor
    row_zones: Tensor
    column_zones: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_kinds = len(_KINDS) + 1
        self.num_zones = (2 * len(_ROW_ZONES) - 1) * (2 * len(_COLUMN_ZONES) - 1)
        self.register_buffer("kinds", _kind_table(), persistent=False)
        # The zone of a cell is the sum of its row's and its column's.
        row_zones = _zone_table(_ROW_ZONES, _ROWS) * (2 * len(_COLUMN_ZONES) - 1)
        self.register_buffer("row_zones", row_zones.to(torch.int16), persistent=False)
        column_zones = _zone_table(_COLUMN_ZONES, _COLUMNS)
        self.register_buffer("column_zones", column_zones.to(torch.int16), persistent=False)
        self.linear = nn.Linear(self.num_zones * self.num_kinds, width, bias=False)

    def counts(self, chars_NRC: Tensor, colors_NRC: Tensor, row_N: Tensor, column_N: Tensor) -> Tensor:
        """Return whole numbers [N, Z * K]."""
        if in_numpy(chars_NRC):
            filled = self._counts_of_filled(chars_NRC.numpy(), colors_NRC.numpy(), row_N.numpy(), column_N.numpy())
            return torch.from_numpy(filled)
        return self.counts_of_all(chars_NRC, colors_NRC, self.zones_of_cells(row_N, column_N))

    def zones_of_cells(self, row_N: Tensor, column_N: Tensor) -> Tensor:
        """Return the zones int16 [N, 21, 80] of the main screen's cells, as seen from cursors."""
        rows = torch.arange(_MAP.start, _MAP.stop, device=row_N.device)
        columns = torch.arange(_COLUMNS, device=row_N.device)
        row_NR = self.row_zones[rows - row_N.unsqueeze(1) + _ROWS]
        column_NC = self.column_zones[columns - column_N.unsqueeze(1) + _COLUMNS]
        return row_NR.unsqueeze(2) + column_NC.unsqueeze(1)

    def counts_of_all(self, chars_NRC: Tensor, colors_NRC: Tensor, zone_NRC: Tensor) -> Tensor:
        """Count where no shape may depend on the data (CUDA graphs)."""
        chars_NRC, colors_NRC = chars_NRC[:, _MAP], colors_NRC[:, _MAP]
        code_NRC = chars_NRC.long() * _COLORS + (colors_NRC & (_COLORS - 1))
        bins_NRC = zone_NRC.long() * self.num_kinds + self.kinds[code_NRC & (_CODES - 1)]
        counts = torch.zeros(len(chars_NRC), self.num_zones * self.num_kinds, device=chars_NRC.device)
        return counts.scatter_add_(1, bins_NRC.flatten(1), (chars_NRC > _SPACE).float().flatten(1))

    def _counts_of_filled(
        self,
        chars_NRC: NDArray[np.uint8],
        colors_NRC: NDArray[np.int8],
        row_N: NDArray[np.int64],
        column_N: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Count on a CPU: most of a screen is empty, and only what is not is looked at."""
        num_screens, size = len(chars_NRC), self.num_zones * self.num_kinds
        chars, colors = chars_NRC[:, _MAP].ravel(), colors_NRC[:, _MAP].ravel()
        filled = np.flatnonzero(chars > _SPACE)
        code = (chars[filled].astype(np.int16) * _COLORS + (colors[filled] & (_COLORS - 1))) & (_CODES - 1)
        line, column = np.divmod(filled, _COLUMNS)
        screen, row = np.divmod(line, _MAP.stop - _MAP.start)
        zone = self.row_zones.numpy()[row + (_MAP.start + _ROWS - row_N)[screen]]
        zone = zone + self.column_zones.numpy()[column + (_COLUMNS - column_N)[screen]]
        place = screen * size + zone * np.int16(self.num_kinds) + self.kinds.numpy()[code]
        return np.bincount(place, minlength=num_screens * size).reshape(num_screens, size)

    def forward(self, chars_NRC: Tensor, colors_NRC: Tensor, row_N: Tensor, column_N: Tensor) -> Tensor:
        counts = self.counts(chars_NRC, colors_NRC, row_N, column_N)
        vectors_ND: Tensor = self.linear(counts.sqrt().to(self.linear.weight.dtype))
        return vectors_ND


# Kinds of cells: (characters, colours or None for all). A cell is of the first kind that it fits, or of kind 0.
_DOOR_COLORS = (3, 11)
_KINDS: tuple[tuple[str, tuple[int, ...] | None], ...] = (
    ("|-", _DOOR_COLORS),  # open doors
    ("+", _DOOR_COLORS),  # closed doors
    ("|-", None),  # walls
    (".", None),
    ("#", None),
    ("<", None),
    (">", None),
    ("_{}\\", None),
    ("^", None),
    ("@", None),
    ("$", None),
    ("%", None),
    (')[(?!/="+*`', None),
    ("abcdefghijklmnopqrstuvwxyz", None),
    ("ABCDEFGHIJKLMNOPQRSTUVWXYZ&;:~'", None),
)


def _kind_table() -> Tensor:
    table = torch.zeros(_CODES, dtype=torch.int64)
    for kind, (characters, colors) in reversed(list(enumerate(_KINDS, start=1))):
        for character in characters:
            for color in range(_COLORS) if colors is None else colors:
                table[ord(character) * _COLORS + color] = kind
    return table


def _zone_table(edges: Sequence[int], size: int) -> Tensor:
    """Return the zone of each signed distance, by distance + size."""
    distance = torch.arange(-size, size + 1)
    zone = torch.bucketize(distance.abs(), torch.tensor(edges), right=True) - 1
    return len(edges) - 1 + torch.where(distance < 0, -zone, zone)
