"""Worlds of a game that waits for its player, as NetHack does: each key typed is one step, and no key is no step."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from playserve.specs import ActionSpec, DiscreteActionSpec
from playserve_client.nethack.keys import ACTION_NAMES, KEY_TO_ACTION
from playserve_client.worlds.bindings import Bindings, Held

__all__ = ["TypedKeys", "bindings_of"]

#: What keys without a character type: steps in eight directions.
_WALKS: Mapping[str, str] = MappingProxyType({
    "ArrowUp": "k", "ArrowDown": "j", "ArrowLeft": "h", "ArrowRight": "l",
    "Home": "y", "PageUp": "u", "End": "b", "PageDown": "n",
})  # fmt: skip


def bindings_of(spec: ActionSpec) -> Bindings | TypedKeys:
    """Return what turns keys into a world's actions: what is typed where it is NetHack, else what is held."""
    if isinstance(spec, DiscreteActionSpec) and spec.names and set(spec.names) <= set(ACTION_NAMES):
        return TypedKeys(spec)
    return Bindings(spec)


class TypedKeys:
    """Turns what is typed into actions of one world, in order; none is lost while the world is slow.

    Args:
        spec: The world's actions, named as NetHack's keys are.
    """

    uses_mouse = False

    def __init__(self, spec: DiscreteActionSpec) -> None:
        self._actions = {name: index for index, name in enumerate(spec.names)}

    def take(self, held: Held, *, ready: bool) -> int | None:
        """Return the action of the next key that means something; None: there is none, or no room for it yet.

        Args:
            held: What was typed.
            ready: Whether an action would be sent now.
        """
        held.take()  # what is held down means nothing here
        while ready and held.typed:
            code, text = held.typed.popleft()
            text = _WALKS.get(code, text)
            number = ord(text) if len(text) == 1 else -1
            if not 0 <= number < len(KEY_TO_ACTION):
                continue
            index = self._actions.get(ACTION_NAMES[KEY_TO_ACTION[number]]) if KEY_TO_ACTION[number] >= 0 else None
            if index is not None:
                return index
        return None

    def help(self) -> str:
        """Return one line that says which keys do what."""
        return "NetHack's keys, one a step: hjklyubn or arrows walk, Alt is Meta"
