"""Actions as one small number each: action specs as JSON, and desktop actions as an index among those that occur.

A world or an agent on tokens has one token an action. A game's own index is that token; what is done at a desktop
becomes the index of a combination of held keys, buttons and mouse bins, of which recordings of a game hold few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError
from playserve.p2p.vocabulary import MouseDecode, Vocabulary
from playserve.specs import ActionSpec, DesktopActionSpec, PolicySpec

__all__ = ["ComboActions", "action_spec_from_json", "action_spec_to_json"]

# What another key or button held counts, beside one bin of mouse motion, where the nearest combination is looked for.
_HELD_WEIGHT = 8


def action_spec_to_json(spec: ActionSpec) -> dict[str, Any]:
    """Return an action spec as a JSON object (protobuf's mapping of playserve.v1.ActionSpec)."""
    value: dict[str, Any] = PolicySpec(name="", family="", inputs=(), action=spec).to_json()["action"]
    return value


def action_spec_from_json(value: Mapping[str, Any]) -> ActionSpec:
    """Return the action spec of a JSON object."""
    return PolicySpec.from_json({"kind": "POLICY_KIND_AGENT", "action": dict(value)}).action


@dataclass(frozen=True)
class ComboActions:
    """Desktop actions as an index among combinations.

    Attributes:
        vocabulary: Makes one number a head of an action: keys, buttons, bins of mouse motion.
        combos: Those numbers of each combination, the commonest first, all different.
    """

    vocabulary: Vocabulary
    combos: tuple[tuple[int, ...], ...]
    _index: dict[tuple[int, ...], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        heads = self.vocabulary.heads
        if not self.combos or len(set(self.combos)) != len(self.combos):
            raise BadSettingError(f"{len(self.combos)} combinations, wanted one or more, all different")
        for combo in self.combos:
            if len(combo) != len(heads) or not all(0 <= token < n for token, n in zip(combo, heads, strict=True)):
                raise BadSettingError(f"combination {combo}, wanted one number below each of {heads}")
        object.__setattr__(self, "_index", {combo: index for index, combo in enumerate(self.combos)})

    @classmethod
    def of(cls, vocabulary: Vocabulary, tokens_NH: NDArray[Any]) -> ComboActions:
        """Return the combinations that occur among the tokens [N, H] of actions (Vocabulary.encode_arrays)."""
        found, counts = np.unique(np.asarray(tokens_NH), axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return cls(vocabulary, tuple(tuple(int(token) for token in found[row]) for row in order))

    @property
    def n(self) -> int:
        """Number of combinations."""
        return len(self.combos)

    def encode(self, action: DesktopAction) -> int:
        """Return the index of an action; of one that never occurred, that of the combination nearest to it.

        Raises:
            BadActionError: The action is of another kind, or its motion is not finite.
        """
        if not isinstance(action, DesktopAction):
            raise BadActionError(f"action {action!r}, wanted a DesktopAction")
        return self.index_of(self.vocabulary.encode(action))

    def index_of(self, tokens: Sequence[int]) -> int:
        """Return the index of an action's tokens; raises nothing: the nearest combination answers for others."""
        wanted = tuple(int(token) for token in tokens)
        found = self._index.get(wanted)
        if found is None:
            found = min(range(len(self.combos)), key=lambda index: (self._distance(self.combos[index], wanted), index))
            self._index[wanted] = found  # asked for again, most likely
        return found

    def indices_of(self, tokens_NH: NDArray[Any]) -> NDArray[np.int32]:
        """Return the index int32 [N] of each row of tokens [N, H]."""
        if not len(tokens_NH):
            return np.zeros(0, np.int32)
        found, inverse = np.unique(np.asarray(tokens_NH), axis=0, return_inverse=True)
        return np.array([self.index_of(row) for row in found], np.int32)[inverse.reshape(-1)]

    def decode(self, index: int) -> DesktopAction:
        """Return the action of an index, mouse motion in the middle of its bin.

        Raises:
            BadActionError: There is no such combination.
        """
        if not 0 <= index < len(self.combos):
            raise BadActionError(f"combination {index}, wanted 0 to {len(self.combos) - 1}")
        return self.vocabulary.decode(self.combos[index], MouseDecode.MEAN)

    def spec(self) -> DesktopActionSpec:
        """Return the action set: the keys, buttons and motion that occur in a combination."""
        actions = [self.decode(index) for index in range(self.n)]
        keys = {key for action in actions for key in action.keys}
        buttons = {button for action in actions for button in action.buttons}
        reach = max(max(abs(action.mouse_dx_px), abs(action.mouse_dy_px)) for action in actions)
        return DesktopActionSpec(
            keys=tuple(key for key in self.vocabulary.keys if key in keys),
            buttons=tuple(button for button in self.vocabulary.buttons if button in buttons),
            max_mouse_px=float(reach),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"vocabulary": self.vocabulary.to_json(), "combos": [list(combo) for combo in self.combos]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ComboActions:
        """Return the combinations of a JSON object.

        Raises:
            BadSettingError: It is none.
        """
        try:
            combos = tuple(tuple(int(token) for token in combo) for combo in value["combos"])
            return cls(Vocabulary.from_json(value["vocabulary"]), combos)
        except (KeyError, TypeError, ValueError) as error:
            raise BadSettingError(f"combinations of actions: {error!r}") from error

    def _distance(self, combo: Sequence[int], wanted: Sequence[int]) -> int:
        first, last = self.vocabulary.max_keys, self.vocabulary.max_keys + self.vocabulary.max_buttons
        held = [
            (set(c) - {0}) ^ (set(w) - {0})
            for c, w in ((combo[:first], wanted[:first]), (combo[first:last], wanted[first:last]))
        ]
        moved = sum(abs(a - b) for a, b in zip(combo[last:], wanted[last:], strict=True))
        return _HELD_WEIGHT * sum(map(len, held)) + moved
