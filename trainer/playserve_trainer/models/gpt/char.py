"""The `char` family: a language model of characters, for what sparse labels and coarse labels do to scaling.

A step is a character; the action is the class of the next one. With as many classes as characters it is a language
model; with fewer, each class is a super-class of characters (see scaling.md §2.3). It is trained, stored and served as
any other policy.

Shape legend: B rows, T characters, D width, V characters of the alphabet, A classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from playserve.errors import BadSettingError
from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
from playserve_trainer.models.gpt.core import initialise
from playserve_trainer.models.gpt.policy import GptPolicy
from playserve_trainer.models.gpt.shape import CoreConfig, Shape

__all__ = ["CHAR", "CharConfig", "CharPolicy", "class_of"]

#: Name of the one input: the index of a character in the alphabet.
CHAR = "char"


@dataclass(frozen=True, slots=True, kw_only=True)
class CharConfig(CoreConfig):
    """What a language model of characters is told beside the core's size.

    Attributes:
        context: Characters that can influence an answer.
        alphabet: The characters, in order of their indices; what else comes is the last of them.
        classes: Classes of the next character; 0: one for each character.
    """

    context: int = 128
    alphabet: str = " "
    classes: int = 0

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) != len(self.alphabet):
            raise BadSettingError(f"char: the alphabet has different characters, one at least, not {self.alphabet!r}")
        if self.classes and not 2 <= self.classes <= len(self.alphabet):
            raise BadSettingError(f"char: classes is 2 to {len(self.alphabet)}, or 0 for all, not {self.classes}")
        self.shape()

    def shape(self) -> Shape:
        """Return the shape of the core."""
        return self.core((1,))

    @property
    def num_classes(self) -> int:
        """Return A."""
        return self.classes or len(self.alphabet)


class CharPolicy(GptPolicy):
    """Embedding, core, head; see the module's docstring."""

    def __init__(self, config: CharConfig) -> None:
        super().__init__(config.shape())
        self.config = config
        self.embed = nn.Embedding(len(config.alphabet), config.width)
        self.head = nn.Linear(config.width, config.num_classes)
        for module in (self.embed, self.head):
            initialise(module)

    def spec(self) -> PolicySpec:
        """Return the spec: the index of a character in, the class of the next one out."""
        config = self.config
        names = () if config.classes else tuple(config.alphabet)
        char = TensorSpec(name=CHAR, dtype="uint8", shape=(1,), minimum=0.0, maximum=float(len(config.alphabet) - 1))
        return PolicySpec(
            name="",
            family="char",
            inputs=(char,),
            action=DiscreteActionSpec(n=config.num_classes, names=names),
            context_frames=config.shape().layers * (config.context - 1) + 1,
            environment={"alphabet": str(len(config.alphabet))},
        )

    def tokens(self, inputs: Mapping[str, Tensor], executed_BTH: Tensor, first_BT: Tensor) -> Tensor:
        """See :class:`GptPolicy`; what was executed does not matter."""
        index_BT1 = inputs[CHAR].long().clamp(max=len(self.config.alphabet) - 1)
        x_BT1D: Tensor = self.embed(index_BT1)
        return x_BT1D

    def read(self, y_BTPD: Tensor) -> tuple[Tensor, ...]:
        """Return the logits [B, T, A] of the next character's class."""
        return (self.head(y_BTPD.squeeze(2)),)


def class_of(alphabet: str, classes: int, seed: int = 0) -> Tensor:
    """Return the class int64 [V] of each character: dealt out at random, as evenly as it goes.

    Args:
        alphabet: The characters.
        classes: How many classes; 0: each character is its own.
        seed: Of the dealing.
    """
    count = len(alphabet)
    if not classes:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    dealt = torch.empty(count, dtype=torch.int64)
    dealt[order] = torch.arange(count) % classes
    return dealt
