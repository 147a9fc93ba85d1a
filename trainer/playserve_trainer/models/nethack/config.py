"""Settings of the `nethack` family: one size dial, from which every shape follows."""

from __future__ import annotations

from dataclasses import dataclass

from playserve.errors import BadSettingError

__all__ = ["CORES", "DEFAULT_CHARACTER", "NUM_ACTIONS", "NetHackConfig"]

CORES = ("lstm", "transformer")

#: A human, neutral, male monk: the character of Tuyls et al. (2307.09423) and of the carried games.
DEFAULT_CHARACTER = "mon-hum-neu-mal"

#: Actions of NetHackChallenge.
NUM_ACTIONS = 121

_HEAD_SIZE = 32  # of an attention head; widths of transformers are multiples of it


@dataclass(frozen=True, slots=True, kw_only=True)
class NetHackConfig:
    """Size of the net, and the game that it was trained for.

    Attributes:
        width: The size dial: units of the core, and of everything that the encoder adds up.
        core: What remembers: "lstm" or "transformer".
        layers: Layers of the core, at least 1.
        context: Steps that each layer of a transformer looks back over, the present one included; no matter to an LSTM,
            whose memory has no bound.
        inventory: Whether the policy sees `inv_glyphs`; ttyrecs do not hold them, replayed games do.
        message: Whether it sees the message line, row 0 of the terminal. Text that the game draws over the map (menus,
            the further lines of a long message) belongs to the map.
        map: Whether it sees rows 1 to 21 of the terminal, the crop around the cursor, and where the cursor is. Without
            it there remain the message, the status lines, the previous action and the inventory.
        character: Role, race, alignment and gender as NLE names them; "@": any.
        num_actions: Size of the action set.
        action_names: Names by index, empty or `num_actions` long.
    """

    width: int = 256
    core: str = "lstm"
    layers: int = 1
    context: int = 64
    inventory: bool = False
    message: bool = True
    map: bool = True
    character: str = DEFAULT_CHARACTER
    num_actions: int = NUM_ACTIONS
    action_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("width", "layers", "context", "num_actions"):
            if getattr(self, name) < 1:
                raise BadSettingError(f"nethack: {name} is at least 1, not {getattr(self, name)}")
        if self.core not in CORES:
            raise BadSettingError(f"nethack: core is one of {', '.join(CORES)}, not {self.core!r}")
        if self.core == "transformer" and self.width % _HEAD_SIZE:
            raise BadSettingError(f"nethack: width of a transformer is a multiple of {_HEAD_SIZE}, not {self.width}")
        if self.action_names and len(self.action_names) != self.num_actions:
            raise BadSettingError(f"nethack: {len(self.action_names)} action names for {self.num_actions} actions")
        if not self.character:
            raise BadSettingError("nethack: character is empty; '@' stands for any")

    @property
    def num_heads(self) -> int:
        """Attention heads of a transformer."""
        return self.width // _HEAD_SIZE
