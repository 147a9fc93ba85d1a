"""Makes what a policy wants held into edges: presses what is new, releases what is gone, moves the mouse."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Protocol, Self

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve_client.actuate.base import Backend
from playserve_client.actuate.codes import BUTTONS

__all__ = ["Actuator", "Witness"]


class Witness(Protocol):
    """Is told of each press before it happens, so that it can release it when this process no longer can."""

    def note(self, name: str, down: bool) -> None:
        """Take the name of a key, or "button N", that is about to be pressed, or was released."""
        ...


class Actuator:
    """Applies held state as edges. Not thread-safe.

    Whatever goes wrong between two edges, what may be down counts as held, so that :meth:`release_all` lifts it.

    Args:
        backend: Presses.
        mouse_scale: Pixels of mouse motion for one pixel that the policy asks for.
        witness: See :class:`Witness`.
    """

    def __init__(self, backend: Backend, *, mouse_scale: float = 1.0, witness: Witness | None = None) -> None:
        if not 0 < mouse_scale <= 100:
            raise BadSettingError(f"mouse scale {mouse_scale:g}, wanted more than 0, at most 100")
        self._backend, self._scale, self._witness = backend, mouse_scale, witness
        self._keys: set[str] = set()
        self._buttons: set[int] = set()
        self._rest = [0.0, 0.0, 0.0]  # of dx, dy and scroll: what was less than a whole pixel
        self.unknown: set[str] = set()  # keys that were asked for and that this desktop does not have

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def held(self) -> DesktopAction:
        """Return what is down now, without motion."""
        return DesktopAction(keys=frozenset(self._keys), buttons=frozenset(self._buttons))

    def apply(self, action: DesktopAction) -> None:
        """Make `action` the held state. Its motion and scrolling happen once."""
        wanted = {code for code in action.keys if self._backend.can_press(code)}
        self.unknown |= action.keys - wanted
        buttons = action.buttons & BUTTONS.keys()
        self.unknown |= {f"button {button}" for button in action.buttons - buttons}
        self._release(self._keys - wanted, self._buttons - buttons)
        for code in sorted(wanted - self._keys):
            self._note(code, True)
            self._keys.add(code)
            self._backend.key(code, True)
        # The mouse before its buttons: a shot goes where the action aims.
        dx, dy = self._whole(0, action.mouse_dx_px * self._scale), self._whole(1, action.mouse_dy_px * self._scale)
        if dx or dy:
            self._backend.move(dx, dy)
        for button in sorted(buttons - self._buttons):
            self._note(f"button {button}", True)
            self._buttons.add(button)
            self._backend.button(button, True)
        if steps := self._whole(2, action.scroll):
            self._backend.scroll(steps)
        self._backend.flush()

    def release_all(self) -> None:
        """Lift everything that is down; one key that cannot be lifted does not keep the others down."""
        self._rest = [0.0, 0.0, 0.0]
        first: BaseException | None = None
        for code in sorted(self._keys):
            try:
                self._release({code}, set())
            except Exception as error:  # noqa: BLE001 - raised below, after the others
                first = first or error
        for button in sorted(self._buttons):
            try:
                self._release(set(), {button})
            except Exception as error:  # noqa: BLE001 - raised below, after the others
                first = first or error
        if first is not None:
            raise first
        self._backend.flush()

    def close(self) -> None:
        """Lift everything and let go of the system."""
        try:
            self.release_all()
        finally:
            self._backend.close()

    def _release(self, keys: set[str], buttons: set[int]) -> None:
        for button in sorted(buttons):
            self._backend.button(button, False)
            self._buttons.discard(button)
            self._note(f"button {button}", False)
        for code in sorted(keys):
            self._backend.key(code, False)
            self._keys.discard(code)
            self._note(code, False)

    def _note(self, name: str, down: bool) -> None:
        if self._witness is not None:
            self._witness.note(name, down)

    def _whole(self, axis: int, amount: float) -> int:
        """Return the whole pixels of what was asked for so far; the rest waits for the next action."""
        total = self._rest[axis] + amount
        whole = math.trunc(total)
        self._rest[axis] = total - whole
        return whole
