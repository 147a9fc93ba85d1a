"""The 12 tokens of a step, and which of them see which.

A step is text, image, thinking, action_out, and the 8 tokens of the action taken at it (as many as the vocabulary has
heads). action_out is what the action is read from: it sees the past and the first three tokens, and nothing later sees
it; so each prediction sees all earlier actions and never its own. Shape legend: B rows, T steps, K tokens of a step,
H heads of an action, D width, N = T * K.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from playserve.p2p.vocabulary import Vocabulary

__all__ = [
    "ACTION_OUT",
    "NEW_TOKENS",
    "ActionEmbedding",
    "ActionLogits",
    "TokenAssembly",
    "groups",
    "step_mask",
    "window_mask",
]

#: Tokens of a step that are there before its action: text, image, thinking, action_out.
NEW_TOKENS = 4

#: Index of action_out in a step.
ACTION_OUT = 3

_VECTOR_STD = 0.05
_EMBEDDING_STD = 0.1


def groups(vocabulary: Vocabulary) -> tuple[tuple[str, int, int], ...]:
    """Return (name, choices, heads) of the groups of heads that share an embedding and a linear layer, in order."""
    heads = vocabulary.heads
    counts = (vocabulary.max_keys, vocabulary.max_buttons, 1, 1)
    first = (0, vocabulary.max_keys, len(heads) - 2, len(heads) - 1)
    choices = (len(vocabulary.keys) + 1, len(vocabulary.buttons) + 1, heads[first[2]], heads[first[3]])
    return tuple(zip(("key", "button", "dx", "dy"), choices, counts, strict=True))


class ActionEmbedding(nn.Module):
    """One table for each group of heads, shared by the backbone and the decoder."""

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.heads: list[str] = []
        for name, choices, count in groups(vocabulary):
            table = nn.Embedding(choices, width)
            nn.init.normal_(table.weight, std=_EMBEDDING_STD)
            self.add_module(name, table)
            self.heads += [name] * count

    def head(self, tokens: Tensor, head: int) -> Tensor:
        """Return the rows [..., D] of one head's tokens [...]."""
        row: Tensor = self.get_submodule(self.heads[head])(tokens)
        return row

    def forward(self, tokens_XH: Tensor) -> Tensor:
        """Return the rows [..., H, D] of whole actions [..., H]."""
        parts, start = [], 0
        while start < len(self.heads):
            name = self.heads[start]
            stop = start + self.heads.count(name)
            parts.append(self.get_submodule(name)(tokens_XH[..., start:stop]))
            start = stop
        return torch.cat(parts, dim=-2)


class ActionLogits(nn.Module):
    """One linear layer for each group of heads."""

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.heads: list[str] = []
        for name, choices, count in groups(vocabulary):
            self.add_module(name, nn.Linear(width, choices))
            self.heads += [name] * count

    def forward(self, y: Tensor, head: int) -> Tensor:
        """Return float32 logits [..., A] of one head from the decoder's vectors [..., D]."""
        linear = self.get_submodule(self.heads[head])
        logits: Tensor = linear(y.to(next(linear.parameters()).dtype))
        return logits.float()


class TokenAssembly(nn.Module):
    """Adds the learnt vectors to the contents of the tokens."""

    def __init__(self, width: int, text_width: int, num_actions: int) -> None:
        super().__init__()
        self.text = nn.Linear(text_width, width, bias=False)
        self.no_text = _vector(width)
        self.text_position = _vector(width)
        self.image_position = _vector(width)
        self.thinking = _vector(width)
        self.action_out = _vector(width)
        self.action_position = _vector(num_actions, width)

    def forward(self, image_XD: Tensor, text_XW: Tensor | None) -> Tensor:
        """Return text, image, thinking and action_out, float32 [..., 4, D].

        Args:
            image_XD: Contents of the image tokens.
            text_XW: Embeddings of the instructions; all zero where there is none. None: nowhere is one.
        """
        lead = image_XD.shape[:-1]
        text = self.no_text.expand(*lead, -1)
        if text_XW is not None:
            absent = (text_XW == 0).all(-1, keepdim=True)
            text = torch.where(absent, text, self.text(text_XW.to(self.text.weight.dtype)))
        fixed = torch.stack([self.thinking, self.action_out]).expand(*lead, 2, -1)
        seen = torch.stack([text + self.text_position, image_XD + self.image_position], dim=-2)
        return torch.cat([seen.float(), fixed.float()], dim=-2)

    def actions(self, embedded_XHD: Tensor) -> Tensor:
        """Return the action tokens of the backbone, float32 [..., H, D]."""
        return (embedded_XHD + self.action_position).float()

    def forward_flops(self, args: tuple[Any, ...], output: Any) -> int:
        """Return 0: the linear layer of the text counts itself."""
        return 0


def _vector(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * _VECTOR_STD)


def step_mask(num_actions: int, device: torch.device | None = None) -> Tensor:
    """Return bool [K, K]: which tokens (columns) of its own step a token (row) sees."""
    role = torch.arange(NEW_TOKENS + num_actions, device=device)
    before, after = role < ACTION_OUT, role > ACTION_OUT
    row_before, row_out, row_after = before[:, None], (role == ACTION_OUT)[:, None], after[:, None]
    is_out = (role == ACTION_OUT)[None, :]
    return (row_before & before) | (row_out & (before | is_out)) | (row_after & ~is_out)


def window_mask(
    segment_BT: Tensor, history: int, num_actions: int, *, only_out: bool = False, ahead: bool = False
) -> Tensor:
    """Return bool [B, 1, Q, N]: which tokens of whole sequences see which.

    Args:
        segment_BT: int64, episode of each step; nothing is seen across episodes. B may be 1 for all rows.
        history: Past steps that are visible.
        num_actions: H.
        only_out: Rows are the T action_out tokens alone, else all N tokens.
        ahead: Whether as many steps to come are visible, too, as the past ones.
    """
    num_steps, device = segment_BT.shape[1], segment_BT.device
    step = torch.arange(num_steps, device=device)
    ago_TT = step[:, None] - step
    other_TT = ago_TT != 0 if ahead else ago_TT >= 1
    past_BTT = other_TT & (ago_TT.abs() <= history) & (segment_BT[:, :, None] == segment_BT[:, None, :])
    own_KK = step_mask(num_actions, device)
    kept_K = torch.arange(len(own_KK), device=device) != ACTION_OUT
    if only_out:
        own_KK = own_KK[ACTION_OUT : ACTION_OUT + 1]
    mask = past_BTT[:, :, None, :, None] & kept_K
    mask = mask | ((ago_TT == 0)[:, None, :, None] & own_KK[:, None, :])
    return mask.flatten(3, 4).flatten(1, 2).unsqueeze(1)
