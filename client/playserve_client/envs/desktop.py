"""The action space of environments that are played with keyboard and mouse."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from playserve.actions import DesktopAction
from playserve.specs import DesktopActionSpec

__all__ = ["DesktopSpace"]


class DesktopSpace(gymnasium.Space[DesktopAction]):
    """Held keys and buttons, and mouse motion.

    Args:
        spec: Keys, buttons and the largest motion.
        seed: Of :meth:`sample`.
    """

    def __init__(self, spec: DesktopActionSpec, seed: int | None = None) -> None:
        super().__init__(None, None, seed)
        self.spec = spec

    @property
    def is_np_flattenable(self) -> bool:
        """Return False: there is no array of it."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> DesktopAction:
        """Return an action: each key and button by a fair coin, motion to the sides up to the largest."""
        spec, rng = self.spec, self.np_random
        return DesktopAction(
            keys=frozenset(key for key in spec.keys if rng.random() < 0.5),
            buttons=frozenset(button for button in spec.buttons if rng.random() < 0.5),
            mouse_dx_px=float(np.round(rng.uniform(-1, 1) * spec.max_mouse_px)),
        )

    def contains(self, x: Any) -> bool:
        """Return whether `x` is an action of the spec."""
        spec = self.spec
        return (
            isinstance(x, DesktopAction)
            and x.keys <= set(spec.keys)
            and x.buttons <= set(spec.buttons)
            and abs(x.mouse_dx_px) <= spec.max_mouse_px
            and abs(x.mouse_dy_px) <= spec.max_mouse_px
        )

    def __eq__(self, other: object) -> bool:
        """Return whether the specs are equal."""
        return isinstance(other, DesktopSpace) and self.spec == other.spec

    __hash__ = None  # type: ignore[assignment]
