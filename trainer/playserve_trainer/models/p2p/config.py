"""Settings of the `p2p` family, and the named sizes: the four of Open P2P, and small ones for CPUs on the same dial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from playserve.errors import BadSettingError
from playserve.p2p.vocabulary import OPEN_P2P, MouseDecode, Vocabulary

__all__ = ["DECODERS", "SIZES", "STATE_DTYPES", "TRUNKS", "P2PConfig", "config_of_size"]

TRUNKS = ("efficientnet_b0", "conv3")
STATE_DTYPES = ("float32", "bfloat16")
DECODERS = ("autoregressive", "direct")


@dataclass(frozen=True, slots=True, kw_only=True)
class P2PConfig:
    """Shape of the net, and everything that it was trained for.

    Attributes:
        size: Name of the size, for manifests; see :data:`SIZES`.
        layers: Of the backbone.
        width: D, of backbone and decoder.
        heads: Attention heads of the backbone.
        decoder: What makes tokens of the backbone's answer, one of :data:`DECODERS`: Open P2P's decoder, each token
            seeing those before it, or, as a control, every token predicted from action_out by itself.
        decoder_layers: Of the action decoder.
        decoder_heads: Attention heads of the action decoder.
        history: Past steps that a layer looks back over, one number for all layers or one for each.
        past_actions: Whether the backbone sees the actions taken. Without them a small policy that was taught by few
            experts cannot learn to repeat itself instead of looking; Open P2P has them.
        inverse: Whether this is Open P2P's inverse-dynamics model: the same net that sees `history` steps ahead as well
            as back, and neither actions nor instructions. It labels recordings; it cannot play.
        trunk: What sees the frame, one of :data:`TRUNKS`.
        frame_size: Side of the square frame, pixels.
        dropout: Of what attention adds to the residual, in training.
        z_weight: Weight of the z-loss.
        text_encoder: "none", "embeddinggemma", "words", or a sentence-transformers model by name or path.
        text_width: Of the text encoder's vectors.
        vocabulary: Keys, buttons and mouse bins, as Vocabulary.to_json() gives them.
        mouse_decode: How mouse bins become pixels where a session does not say: a MouseDecode value.
        resize: Id of the resize that made the frames.
        rate_hz: Frames a second.
        catch_up_frames: Most frames that enter the memory at once after a delay.
        state_dtype: Of the keys and values that a session keeps, one of :data:`STATE_DTYPES`.
    """

    size: str = ""
    layers: int
    width: int
    heads: int
    decoder: str = "autoregressive"
    decoder_layers: int = 3
    decoder_heads: int = 8
    history: tuple[int, ...] = (200,)
    past_actions: bool = True
    inverse: bool = False
    trunk: str = "efficientnet_b0"
    frame_size: int = 192
    dropout: float = 0.1
    z_weight: float = 1e-4
    text_encoder: str = "none"
    text_width: int = 768
    vocabulary: Mapping[str, Any] = field(default_factory=OPEN_P2P.to_json)
    mouse_decode: str = MouseDecode.TRUNCATED_NORMAL.value
    resize: str = "hamming-v1"
    rate_hz: float = 20.0
    catch_up_frames: int = 4
    state_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "decoder_layers", "decoder_heads", "text_width", "catch_up_frames"):
            if getattr(self, name) < 1:
                raise BadSettingError(f"p2p: {name} is at least 1, not {getattr(self, name)}")
        for name, choices in (("trunk", TRUNKS), ("state_dtype", STATE_DTYPES), ("decoder", DECODERS),
                              ("mouse_decode", tuple(mode.value for mode in MouseDecode))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise BadSettingError(f"p2p: {name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("heads", "decoder_heads"):
            if self.width % (2 * getattr(self, name)):
                raise BadSettingError(f"p2p: width {self.width} is no multiple of 2 * {name} ({getattr(self, name)})")
        if len(self.history) not in (1, self.layers) or any(steps < 1 for steps in self.history):
            raise BadSettingError(
                f"p2p: history is one number of steps, or one for each of {self.layers} layers, not {self.history}"
            )
        if self.inverse and (self.past_actions or self.text_encoder != "none"):
            raise BadSettingError(
                f"p2p: an inverse model sees neither actions nor instructions: past_actions is {self.past_actions} and "
                f"text_encoder {self.text_encoder!r}, wanted false and 'none'"
            )
        if self.frame_size < 32 or self.frame_size % 16:
            raise BadSettingError(f"p2p: frame_size is a multiple of 16 from 32 on, not {self.frame_size}")
        try:
            Vocabulary.from_json(self.vocabulary)
        except ValueError as error:
            raise BadSettingError(f"p2p: {error}") from error

    @property
    def histories(self) -> tuple[int, ...]:
        """History of each layer, steps."""
        return self.history * self.layers if len(self.history) == 1 else self.history

    @property
    def hidden(self) -> int:
        """Hidden units of a SwiGLU layer: 2/3 of 4 D, rounded up to a multiple of 8."""
        return -(-self.width // 3) * 8


#: What tells the sizes apart. Open P2P's four keep their sessions in bfloat16; the small ones see 96x96 pixels through
#: three convolutions, since EfficientNet alone would take a CPU longer than all the rest.
SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "150m": {"layers": 10, "width": 1024, "heads": 16, "state_dtype": "bfloat16"},
        "300m": {"layers": 20, "width": 1024, "heads": 16, "state_dtype": "bfloat16"},
        "600m": {"layers": 9, "width": 2048, "heads": 16, "state_dtype": "bfloat16"},
        "1.2b": {"layers": 22, "width": 2048, "heads": 16, "state_dtype": "bfloat16"},
        "1m": {"layers": 3, "width": 128, "heads": 4, "trunk": "conv3", "frame_size": 96, "history": (64,)},
        "6m": {"layers": 4, "width": 256, "heads": 8, "trunk": "conv3", "frame_size": 96, "history": (64,)},
        "16m": {"layers": 6, "width": 384, "heads": 12, "trunk": "conv3", "frame_size": 96, "history": (64,)},
    }
)


def config_of_size(size: str, **changes: Any) -> P2PConfig:
    """Return the config of a named size; keyword arguments replace single settings.

    Raises:
        BadSettingError: There is no such size, or a setting is out of range.
    """
    if size not in SIZES:
        raise BadSettingError(f"p2p: size is one of {', '.join(SIZES)}, not {size!r}")
    return P2PConfig(**{"size": size, **SIZES[size], **changes})
