"""The action vocabulary: a desktop action as a few small integers, and back.

The heads of one step are, in order, ``max_keys`` keys, ``max_buttons`` buttons, mouse dx and mouse dy. Keys and
buttons are held state: the sorted ids of what is held, 0 (none) after them, the lowest ids where there are too many.
Mouse motion falls into bins: with edges e, bin i holds e[i-1] < v <= e[i], in whole pixels a frame.

A vocabulary travels in a checkpoint's configuration (:meth:`Vocabulary.to_json`), so that no two sides assume one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.errors import BadActionError
from playserve.specs import DesktopActionSpec

__all__ = ["OPEN_P2P", "MouseDecode", "Vocabulary"]


class MouseDecode(Enum):
    """What a bin of mouse motion becomes.

    Attributes:
        MEAN: The middle of the bin, towards zero.
        CONSERVATIVE: The bin's edge nearest zero, cut to whole pixels: a motion of one pixel becomes none.
        TRUNCATED_NORMAL: A draw from a normal distribution around 0, cut to the bin's whole pixels (Open P2P's way).
    """

    MEAN = "mean"
    CONSERVATIVE = "conservative"
    TRUNCATED_NORMAL = "truncated_normal"


@dataclass(frozen=True)
class Vocabulary:
    """Keys, buttons and mouse bins of a policy.

    Attributes:
        keys: W3C codes; the token of a key is its index + 1, and 0 is none.
        buttons: W3C buttons; the token of a button is its index + 1, and 0 is none.
        dx_edges: Ascending edges of the bins of motion to the right, pixels; one bin more than edges.
        dy_edges: The same downwards.
        max_keys: Key heads.
        max_buttons: Button heads.
        dx_std: Standard deviation of TRUNCATED_NORMAL to the right, pixels.
        dy_std: The same downwards.
    """

    keys: tuple[str, ...]
    buttons: tuple[int, ...]
    dx_edges: tuple[float, ...]
    dy_edges: tuple[float, ...]
    max_keys: int = 4
    max_buttons: int = 2
    dx_std: float = 96.0
    dy_std: float = 22.0

    def __post_init__(self) -> None:
        for name in ("keys", "buttons"):
            listed = getattr(self, name)
            if len(set(listed)) != len(listed):
                raise ValueError(f"vocabulary {name} repeat: {list(listed)}")
        for name in ("dx_edges", "dy_edges"):
            edges = getattr(self, name)
            if not edges or list(edges) != sorted(set(edges)) or not all(map(math.isfinite, edges)):
                raise ValueError(f"vocabulary {name} are {list(edges)}, wanted finite numbers in ascending order")
            if any(math.floor(high) <= math.floor(low) for low, high in itertools.pairwise(edges)):
                raise ValueError(f"vocabulary {name} are {list(edges)}: a bin has no whole pixel")
        if self.max_keys < 1 or self.max_buttons < 0:
            raise ValueError(
                f"vocabulary has {self.max_keys} key and {self.max_buttons} button heads, wanted 1+ and 0+"
            )

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of choices of each head."""
        return (
            *(len(self.keys) + 1,) * self.max_keys,
            *(len(self.buttons) + 1,) * self.max_buttons,
            len(self.dx_edges) + 1,
            len(self.dy_edges) + 1,
        )

    @cached_property
    def _key_ids(self) -> Mapping[str, int]:
        return {code: index + 1 for index, code in enumerate(self.keys)}

    @cached_property
    def _button_ids(self) -> Mapping[int, int]:
        return {button: index + 1 for index, button in enumerate(self.buttons)}

    def encode(self, action: DesktopAction) -> tuple[int, ...]:
        """Return the token of each head; what has no token is left out (:meth:`dropped` names it)."""
        if not (math.isfinite(action.mouse_dx_px) and math.isfinite(action.mouse_dy_px)):
            raise BadActionError(f"mouse motion of {(action.mouse_dx_px, action.mouse_dy_px)}, wanted finite numbers")
        return (
            *_slots(self._held_keys(action), self.max_keys),
            *_slots(self._held_buttons(action), self.max_buttons),
            bisect_left(self.dx_edges, action.mouse_dx_px),
            bisect_left(self.dy_edges, action.mouse_dy_px),
        )

    def encode_arrays(self, actions: Sequence[DesktopAction]) -> NDArray[np.int64]:
        """Return the tokens of many actions, int64 [N, heads]; equal to :meth:`encode` of each."""
        tokens_NH = np.zeros((len(actions), len(self.heads)), np.int64)
        held: dict[tuple[frozenset[str], frozenset[int]], tuple[int, ...]] = {}
        for row, action in zip(tokens_NH, actions, strict=True):
            what = (action.keys, action.buttons)
            if what not in held:
                keys, buttons = self._held_keys(action), self._held_buttons(action)
                held[what] = (*_slots(keys, self.max_keys), *_slots(buttons, self.max_buttons))
            row[:-2] = held[what]
        motion_N2 = np.array([(action.mouse_dx_px, action.mouse_dy_px) for action in actions], np.float64).reshape(
            -1, 2
        )
        if not np.isfinite(motion_N2).all():
            raise BadActionError("mouse motion that is not finite, wanted finite numbers")
        tokens_NH[:, -2] = np.searchsorted(np.array(self.dx_edges), motion_N2[:, 0], side="left")
        tokens_NH[:, -1] = np.searchsorted(np.array(self.dy_edges), motion_N2[:, 1], side="left")
        return tokens_NH

    def dropped(self, action: DesktopAction) -> frozenset[str]:
        """Return what of `action` its tokens do not say: W3C codes, "Button3" for buttons, "Scroll"."""
        keys, buttons = self._held_keys(action), self._held_buttons(action)
        lost = {code for code in action.keys if self._key_ids.get(code) not in keys[: self.max_keys]}
        lost |= {
            f"Button{button}"
            for button in action.buttons
            if self._button_ids.get(button) not in buttons[: self.max_buttons]
        }
        return frozenset(lost | ({"Scroll"} if action.scroll else set()))

    def decode(
        self,
        tokens: Sequence[int],
        mode: MouseDecode = MouseDecode.TRUNCATED_NORMAL,
        uniforms: Sequence[float] | None = None,
    ) -> DesktopAction:
        """Return the action of the tokens of one step.

        Args:
            tokens: One token for each head.
            mode: What mouse bins become.
            uniforms: Two numbers in [0, 1), for dx and dy; only TRUNCATED_NORMAL needs them.

        Raises:
            BadActionError: A token is out of range, or uniforms are missing or out of range.
        """
        heads = self.heads
        if len(tokens) != len(heads) or not all(0 <= token < n for token, n in zip(tokens, heads, strict=True)):
            raise BadActionError(f"tokens {list(tokens)}, wanted one below each of {list(heads)}")
        drawn: Sequence[float] = (0.5, 0.5)
        if mode is MouseDecode.TRUNCATED_NORMAL:
            if uniforms is None or len(uniforms) < 2 or not all(0.0 <= u < 1.0 for u in uniforms[:2]):
                raise BadActionError(f"uniforms {uniforms}, wanted two numbers in [0, 1)")
            drawn = uniforms
        keys, rest = tokens[: self.max_keys], tokens[self.max_keys :]
        buttons, (dx, dy) = rest[: self.max_buttons], rest[self.max_buttons :]
        return DesktopAction(
            keys=frozenset(self.keys[token - 1] for token in keys if token),
            buttons=frozenset(self.buttons[token - 1] for token in buttons if token),
            mouse_dx_px=float(_decode_bin(self.dx_edges, int(dx), mode, self.dx_std, drawn[0])),
            mouse_dy_px=float(_decode_bin(self.dy_edges, int(dy), mode, self.dy_std, drawn[1])),
        )

    def idle(self) -> tuple[int, ...]:
        """Return the tokens of no keys, no buttons and no motion."""
        return self.encode(DesktopAction())

    def centres(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what each dx bin and each dy bin decodes to under MEAN, pixels."""
        return _centres(self.dx_edges), _centres(self.dy_edges)

    def action_spec(self) -> DesktopActionSpec:
        """Return the action set that can be decoded."""
        dx, dy = self.centres()
        reach = max(map(abs, (*dx, *dy)))
        return DesktopActionSpec(keys=self.keys, buttons=self.buttons, max_mouse_px=float(reach))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(item) if isinstance(item, tuple) else item for name, item in value.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Vocabulary:
        """Return the vocabulary of a JSON value; unknown or missing keys raise ValueError."""
        try:
            fields: dict[str, Any] = {k: tuple(item) if isinstance(item, list) else item for k, item in value.items()}
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"vocabulary is incomplete or has unknown keys: {error}") from error

    def _held_keys(self, action: DesktopAction) -> list[int]:
        return sorted(self._key_ids[code] for code in action.keys if code in self._key_ids)

    def _held_buttons(self, action: DesktopAction) -> list[int]:
        return sorted(self._button_ids[button] for button in action.buttons if button in self._button_ids)


def _slots(ids: list[int], count: int) -> tuple[int, ...]:
    return (*ids[:count], *(0,) * (count - len(ids)))


def _whole_pixels(edges: Sequence[float], index: int) -> tuple[int, int]:
    """Return the lowest and highest whole pixel of a bin; the outermost bins are one pixel wide."""
    if index == 0:
        return math.floor(edges[0]), math.floor(edges[0])
    low = math.floor(edges[index - 1]) + 1
    return (low, low) if index == len(edges) else (low, math.floor(edges[index]))


def _centres(edges: Sequence[float]) -> tuple[int, ...]:
    return tuple(_centre(edges, index) for index in range(len(edges) + 1))


def _centre(edges: Sequence[float], index: int) -> int:
    low, high = _whole_pixels(edges, index)
    return int((low + high) / 2)  # towards zero


def _decode_bin(edges: Sequence[float], index: int, mode: MouseDecode, std: float, uniform: float) -> int:
    if mode is MouseDecode.MEAN:
        return _centre(edges, index)
    if mode is MouseDecode.CONSERVATIVE:
        below = edges[index - 1] if index else -math.inf
        above = edges[index] if index < len(edges) else math.inf
        return int(min((below, above), key=abs))
    low, high = _whole_pixels(edges, index)
    return _truncated_normal(low, high, std, uniform)


def _truncated_normal(low: int, high: int, std: float, uniform: float) -> int:
    """Return the quantile `uniform` of N(0, std) cut to [low, high], in whole pixels."""
    if low == high:
        return low
    if low >= 0:  # the lower tail keeps its digits where the upper one is 1 - tiny
        return -_truncated_normal(-high, -low, std, 1.0 - uniform)
    below, above = (0.5 * math.erfc(-edge / std / math.sqrt(2.0)) for edge in (low, high))
    share = below + uniform * (above - below)
    value = NormalDist(0.0, std).inv_cdf(share) if 0.0 < share < 1.0 else float(low if uniform < 0.5 else high)
    return round(min(max(value, low), high))


#: Open Pixel2Play's own: 8 heads of 20, 20, 20, 20, 4, 4, 23 and 17 choices.
OPEN_P2P = Vocabulary(
    keys=(
        "Space", "Digit1", "Digit2", "Digit3", "Digit4", "KeyA", "KeyD", "KeyE", "KeyF", "KeyQ", "KeyW", "KeyS",
        "KeyZ", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "ShiftLeft", "ShiftRight",
    ),
    buttons=(0, 2, 1),
    dx_edges=(
        -500.1, -144.1, -76.1, -46.1, -29.1, -18.1, -11.1, -6.1, -3.1, -1.1, -0.1, 0.0, 1.0, 3.0, 6.0, 11.0, 18.0,
        29.0, 46.0, 76.0, 144.0, 500.0,
    ),
    dy_edges=(-150.1, -24.1, -12.1, -7.1, -4.1, -3.1, -1.1, -0.1, 0.0, 1.0, 3.0, 4.0, 7.0, 12.0, 24.0, 150.0),
)  # fmt: skip
