"""What worlds and agents share: their game's actions as numbers, and the frozen tokenizer of its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from playserve.actions import Action, DesktopAction
from playserve.errors import BadActionError, BadSettingError
from playserve.specs import DiscreteActionSpec
from playserve_trainer.models.gpt.policy import GptPolicy
from playserve_trainer.models.gpt.shape import Shape
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.tokenizer import Tokenizer
from playserve_trainer.models.tokenizer.actions import ComboActions, action_spec_from_json

__all__ = ["Frozen", "GameActions", "GamePolicy", "build_tokenizer", "one_action"]


def one_action(count: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the description of one of `count` actions, as a token cache has it."""
    return {"spec": {"discrete": {"n": count, "names": list(names)}}, "heads": [count]}


class GameActions:
    """A game's actions, and the H numbers by which they are told.

    Args:
        action: As a token cache describes them: "spec", "heads", and of desktop actions "combos".

    Attributes:
        spec: Of the actions.
        heads: Choices of each number.

    Raises:
        BadSettingError: Keys are missing, or desktop actions have no "combos".
    """

    def __init__(self, action: Mapping[str, Any]) -> None:
        if missing := sorted({"spec", "heads"} - set(action)):
            raise BadSettingError(f"actions: {missing} missing of a description that has {sorted(action)}")
        self.spec = action_spec_from_json(action["spec"])
        self.heads = tuple(int(count) for count in action["heads"])
        self._combos: ComboActions | None = None
        if not isinstance(self.spec, DiscreteActionSpec):
            if "combos" not in action:
                raise BadSettingError("actions: desktop actions want combos, by which an index is keys and mouse")
            self._combos = ComboActions.from_json(action["combos"])
        elif self.heads != (self.spec.n,):
            raise BadSettingError(f"actions: one of {self.spec.n} is one number of {self.spec.n}, not {self.heads}")

    def encode(self, action: Action) -> tuple[int, ...]:
        """Return the numbers of an action.

        Raises:
            BadActionError: It is of another kind.
        """
        if self._combos is not None:
            if not isinstance(action, DesktopAction):
                raise BadActionError(f"action {action!r}, wanted a DesktopAction")
            return (self._combos.encode(action),)
        if isinstance(action, bool) or not isinstance(action, int):
            raise BadActionError(f"action {action!r}, wanted an index")
        return (action,)

    def decode(self, values: Sequence[int]) -> Action:
        """Return the action of its numbers."""
        if self._combos is not None:
            return self._combos.decode(int(values[0]))
        return int(values[0])


def build_tokenizer(tokenizer: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer {"family", "config"}, freshly initialised.

    Raises:
        BadSettingError: It is no tokenizer's.
    """
    from playserve_trainer.models.registry import build  # it imports this family, too

    if set(tokenizer) != {"family", "config"}:
        raise BadSettingError(f"tokenizer: wanted family and config, not {sorted(tokenizer)}")
    built = build(tokenizer["family"], tokenizer["config"])
    if not isinstance(built, Tokenizer):
        raise BadSettingError(f"tokenizer: family {tokenizer['family']!r} turns no frames into tokens")
    return built


class Frozen(nn.Module):
    """Holds a tokenizer that is part of a checkpoint, and neither learns nor counts.

    Args:
        tokenizer: {"family", "config"}.
    """

    def __init__(self, tokenizer: Mapping[str, Any]) -> None:
        super().__init__()
        self.net = build_tokenizer(tokenizer).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode."""
        return super().train(False)

    def num_params(self) -> int:
        """Return the number of its parameters, which N leaves out."""
        return sum(p.numel() for p in self.parameters())

    def num_embeddings(self) -> int:
        """Return how many of them lie in embedding tables."""
        return sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Embedding))

    @torch.no_grad()
    def encode(self, frames_XHWC: Tensor) -> Tensor:
        """Return the tokens int64 [..., K] of frames uint8 [..., H, W, C]."""
        tokens_MK = self.net.encode(frames_XHWC.flatten(0, -4))
        return tokens_MK.view(*frames_XHWC.shape[:-3], -1)

    @torch.no_grad()
    def decode(self, tokens_MK: Tensor) -> Tensor:
        """Return the frames uint8 [M, H, W, C] of tokens int64 [M, K]."""
        return self.net.decode(tokens_MK)

    def load(self, tokenizer: Policy) -> None:
        """Take over the weights of a tokenizer of the same family and config."""
        self.net.load_state_dict(tokenizer.state_dict())


class GamePolicy(GptPolicy):
    """A policy on the core that knows a game's actions; a frozen tokenizer, if it holds one, does not count.

    Args:
        shape: Of the core.
        actions: The game's.
    """

    def __init__(self, shape: Shape, actions: GameActions) -> None:
        super().__init__(shape)
        self.actions = actions

    def encode_action(self, action: Action) -> tuple[int, ...]:
        """See :class:`Policy`."""
        return self.actions.encode(action)

    def decode_action(self, values: Sequence[int], uniforms: Sequence[float], decode: str = "") -> Action:
        """Return the action of the numbers by which it is told."""
        return self.actions.decode(values)

    def num_params(self) -> int:
        """Return N, without the tokenizer."""
        return super().num_params() - sum(m.num_params() for m in self.children() if isinstance(m, Frozen))

    def num_params_without_embeddings(self) -> int:
        """Return N without the tables of tokens, places and actions."""
        frozen = sum(m.num_embeddings() for m in self.children() if isinstance(m, Frozen))
        return super().num_params_without_embeddings() + frozen
