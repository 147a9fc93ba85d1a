"""The LSTM core: memory without bound, in two vectors a layer.

Shape legend: B rows, T steps, D width, L layers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from playserve_trainer.models.nethack.config import NetHackConfig
from playserve_trainer.models.policy import Memory, StateTensor

__all__ = ["LSTMCore"]


class LSTMCore(nn.Module):
    """torch's LSTM (oneDNN, cuDNN), whole sequences at once; only at the begin of an episode is a sequence cut.

    What comes in is added to what comes out: most keys can be guessed from the screen alone, and with this shortcut
    the loss falls several times faster. A hand-written loop with its own backward pass was slower than oneDNN's.
    """

    def __init__(self, config: NetHackConfig) -> None:
        super().__init__()
        self.width, self.layers = config.width, config.layers
        self.lstm = nn.LSTM(config.width, config.width, config.layers)
        with torch.no_grad():
            for name, bias in self.lstm.named_parameters():
                if "bias" in name:
                    # Gates lie as input, forget, cell, output. The forget gates begin open.
                    bias.zero_()
                    if "bias_ih" in name:
                        bias[config.width : 2 * config.width] = 1.0

    def layout(self) -> dict[str, StateTensor]:
        """Return the memory tensors of one slot."""
        row = StateTensor((self.layers, self.width), torch.float32)
        return {"hidden": row, "cell": row}

    def forward(
        self, x_BTD: Tensor, first_BT: Tensor, state: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return vectors [B, T, D] and the state afterwards; the memory is empty where `first_BT` is True."""
        num_rows, num_steps = first_BT.shape
        if state is None:
            zero = x_BTD.new_zeros(self.layers, num_rows, self.width)
            hidden_LBD, cell_LBD = zero, zero
        else:
            hidden_LBD, cell_LBD = (state[name].transpose(0, 1).to(x_BTD.dtype) for name in ("hidden", "cell"))
        x_TBD = x_BTD.transpose(0, 1)
        # On the meta device there are no data to look at.
        begins = [] if first_BT.is_meta else (first_BT.any(0)[1:].nonzero().flatten() + 1).tolist()
        cuts = [0, *begins, num_steps]
        pieces = []
        for begin, end in itertools.pairwise(cuts):
            keep_1B1 = (~first_BT[:, begin]).view(1, -1, 1)
            hidden_LBD, cell_LBD = hidden_LBD * keep_1B1, cell_LBD * keep_1B1
            y_TBD, hidden_LBD, cell_LBD = self._run(x_TBD[begin:end], hidden_LBD, cell_LBD)
            pieces.append(y_TBD)
        y_TBD = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return x_BTD + y_TBD.transpose(0, 1), _state(hidden_LBD, cell_LBD)

    def step(self, x_BD: Tensor, memory: Memory) -> Tensor:
        """Advance the slots by one step; return vectors [B, D]."""
        hidden_LBD, cell_LBD = (memory.read(name).transpose(0, 1).to(x_BD.dtype) for name in ("hidden", "cell"))
        if torch.compiler.is_compiling():
            y_BD, hidden_LBD, cell_LBD = self._cells(x_BD, hidden_LBD, cell_LBD)
        else:
            y_1BD, hidden_LBD, cell_LBD = self._run(x_BD.unsqueeze(0), hidden_LBD, cell_LBD)
            y_BD = y_1BD.squeeze(0)
        for name, rows in _state(hidden_LBD, cell_LBD).items():
            memory.write(name, rows)
        return x_BD + y_BD

    def _cells(self, y_BD: Tensor, hidden_LBD: Tensor, cell_LBD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance by one step without torch's LSTM module, which its compiler refuses."""
        hidden, cell = [], []
        for layer, state in enumerate(zip(hidden_LBD, cell_LBD, strict=True)):
            y_BD, cell_BD = torch.lstm_cell(y_BD, state, *self.lstm.all_weights[layer])
            hidden.append(y_BD)
            cell.append(cell_BD)
        return y_BD, torch.stack(hidden), torch.stack(cell)

    def _run(self, x_TBD: Tensor, hidden_LBD: Tensor, cell_LBD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # oneDNN has no bfloat16 LSTM on most CPUs: there it stays in float32, whatever autocast wants.
        on_cpu = x_TBD.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if on_cpu else contextlib.nullcontext():
            state = (hidden_LBD.contiguous(), cell_LBD.contiguous())
            y_TBD, (hidden_LBD, cell_LBD) = self.lstm(x_TBD.contiguous(), state)
        return y_TBD, hidden_LBD, cell_LBD


def _state(hidden_LBD: Tensor, cell_LBD: Tensor) -> dict[str, Tensor]:
    return {"hidden": hidden_LBD.transpose(0, 1).float(), "cell": cell_LBD.transpose(0, 1).float()}
