"""The families `bc-token` and `bc-cnn`: agents that imitate from what a world model sees, and from pixels.

Both run the same core over the same frames and past actions. To `bc-token` a frame is the action before it and the K
tokens of a frozen tokenizer; to `bc-cnn` it is one vector, the sum of what a convolutional net, trained with the rest,
makes of the frame, and of the action before it. The numbers of an action are predicted independently, of what the core
makes of the frame's last token.

Shape legend: B rows, T frames (steps), H numbers of an action, K image tokens, P tokens of a frame, D width, A choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from playserve.errors import BadSettingError
from playserve.specs import Codec, GapMode, GapRule, ImageFormat, PolicySpec, TensorSpec
from playserve_trainer.models.gpt.core import initialise
from playserve_trainer.models.gpt.game import Frozen, GameActions, GamePolicy
from playserve_trainer.models.gpt.policy import ActionEmbedding, known_actions
from playserve_trainer.models.gpt.shape import CoreConfig, Shape
from playserve_trainer.models.gpt.world import TOKENS
from playserve_trainer.models.policy import UNKNOWN_ACTION, StateTensor

__all__ = ["FRAME", "AgentConfig", "CnnAgent", "CnnAgentConfig", "TokenAgent", "TokenAgentConfig"]

#: Name of the input that agents play from.
FRAME = "frame"

_CATCH_UP_FRAMES = 4  # most frames that enter the memory at once after a delay, where the game does not wait
# Kernel, stride and padding of the convolutions: an eighth of the side is left, then its half.
_CONVOLUTIONS = ((8, 4, 2), (4, 2, 1), (3, 2, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig(CoreConfig):
    """What both kinds of agents are told beside the core's size.

    Attributes:
        action: The game's actions as the token cache describes them: "spec", "heads", "combos".
        past_actions: Whether it sees what was executed.
        rate_hz: Of the game; 0: turn based.
        environment: What the spec says of the game.
    """

    action: Mapping[str, Any]
    past_actions: bool = True
    rate_hz: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)

    def shape(self, tokens: int) -> Shape:
        """Return the shape of the core for so many tokens of a frame."""
        return self.core(tuple(range(1, tokens + 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAgentConfig(AgentConfig):
    """What `bc-token` is told beside.

    Attributes:
        tokenizer: {"family", "config"} of the frozen tokenizer.
    """

    tokenizer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnAgentConfig(AgentConfig):
    """What `bc-cnn` is told beside.

    Attributes:
        frame_shape: H, W, C of a frame.
        resize_id: Resize that makes a frame from a screen (see playserve.resize); empty: none prescribed.
        channels: Of the first convolution; the others have twice as many.
        pixel_background: The commonest pixel, 0 to 255: it is seen as 0.
        pixel_scale: Root mean square distance of pixels from it: it is seen as 1.
    """

    frame_shape: tuple[int, ...] = (84, 84, 1)
    resize_id: str = ""
    channels: int = 16
    pixel_background: float = 0.0
    pixel_scale: float = 255.0

    def __post_init__(self) -> None:
        if len(self.frame_shape) != 3 or min(self.frame_shape) < 1 or min(self.frame_shape[:2]) < 16:
            raise BadSettingError(
                f"bc-cnn: frame_shape is H, W, C of at least 16 pixels a side, not {self.frame_shape}"
            )
        if self.channels < 1 or not self.pixel_scale > 0:
            raise BadSettingError("bc-cnn: channels is at least 1, pixel_scale above 0")


class _Agent(GamePolicy):
    """What both agents share.

    Args:
        config: Its settings.
        actions: The game's.
        tokens: P.
    """

    def __init__(self, config: AgentConfig, actions: GameActions, tokens: int) -> None:
        super().__init__(config.shape(tokens), actions)
        self._settings = config
        self.embed_action = ActionEmbedding(actions.heads, config.width)
        self.action_heads = nn.ModuleList(nn.Linear(config.width, count) for count in actions.heads)
        initialise(self.action_heads)

    def heads(self) -> tuple[int, ...]:
        """Return the choices of each number of an action."""
        return self.actions.heads

    def read(self, y_BTPD: Tensor) -> tuple[Tensor, ...]:
        """Return the logits [B, T, A] of each number of the action."""
        last_BTD = y_BTPD[:, :, -1]
        return tuple(head(last_BTD) for head in self.action_heads)

    def _before(self, executed_BTH: Tensor, first_BT: Tensor) -> Tensor:
        """Return the vectors [B, T, H, D] of the actions before each frame."""
        if not self._settings.past_actions:
            executed_BTH = torch.full_like(executed_BTH, UNKNOWN_ACTION)
        before_BTHD: Tensor = self.embed_action(known_actions(executed_BTH, first_BT))
        return before_BTHD

    def _spec(self, family: str, frame: TensorSpec) -> PolicySpec:
        config = self._settings
        live = GapRule(mode=GapMode.CATCH_UP, catch_up_frames=_CATCH_UP_FRAMES)
        return PolicySpec(
            name="",
            family=family,
            inputs=(frame,),
            action=self.actions.spec,
            rate_hz=config.rate_hz,
            context_frames=self.core.shape.layers * (config.context - 1) + 1,
            gap_rule=live if config.rate_hz else GapRule(),
            uses_executed_actions=config.past_actions,
            environment=dict(config.environment),
        )


class TokenAgent(_Agent):
    """The `bc-token` family; see the module's docstring."""

    def __init__(self, config: TokenAgentConfig) -> None:
        tokenizer, actions = Frozen(config.tokenizer), GameActions(config.action)
        count = tokenizer.net.num_tokens
        super().__init__(config, actions, len(actions.heads) + count)
        self.config, self.tokenizer, self._count = config, tokenizer, count
        self.embed_token = nn.Embedding(tokenizer.net.vocabulary, config.width)
        self.embed_place = nn.Embedding(self.core.shape.tokens, config.width)
        for table in (self.embed_token, self.embed_place):
            initialise(table)

    def spec(self) -> PolicySpec:
        """Return the spec: the tokenizer's frame in, an action out."""
        return self._spec("bc-token", self.tokenizer.net.spec().inputs[0])

    def training_inputs(self) -> Mapping[str, StateTensor]:
        """Return the tokens of a frame."""
        return {TOKENS: StateTensor((self._count,), torch.int64)}

    def tokens(self, inputs: Mapping[str, Tensor], executed_BTH: Tensor, first_BT: Tensor) -> Tensor:
        """See :class:`GptPolicy`; `tokens` int64 [B, T, K], or `frame` uint8 [B, T, H, W, C]."""
        tokens_BTK = inputs[TOKENS] if TOKENS in inputs else self.tokenizer.encode(inputs[FRAME])
        before_BTHD = self._before(executed_BTH, first_BT)
        x_BTPD: Tensor = torch.cat([before_BTHD, self.embed_token(tokens_BTK)], dim=2) + self.embed_place.weight
        return x_BTPD


class CnnAgent(_Agent):
    """The `bc-cnn` family; see the module's docstring."""

    def __init__(self, config: CnnAgentConfig) -> None:
        super().__init__(config, GameActions(config.action), 1)
        self.config = config
        self.cnn = _FrameNet(config)

    def spec(self) -> PolicySpec:
        """Return the spec: a frame in, an action out."""
        shape = self.config.frame_shape
        image_format = {1: ImageFormat.GRAY8, 3: ImageFormat.RGB8}.get(shape[2], ImageFormat.NONE)
        frame = TensorSpec(
            name=FRAME, dtype="uint8", shape=shape, image_format=image_format, resize_id=self.config.resize_id,
            codecs=(Codec.LZ4,),
        )  # fmt: skip
        return self._spec("bc-cnn", frame)

    def num_params_without_embeddings(self) -> int:
        """Return N without the tables of actions and without the convolutional net, which embeds frames."""
        return super().num_params_without_embeddings() - sum(p.numel() for p in self.cnn.parameters())

    def tokens(self, inputs: Mapping[str, Tensor], executed_BTH: Tensor, first_BT: Tensor) -> Tensor:
        """See :class:`GptPolicy`; `frame` is uint8 [B, T, H, W, C]."""
        frames = inputs[FRAME]
        seen_MD: Tensor = self.cnn(frames.flatten(0, 1))
        seen_BTD = seen_MD.view(*frames.shape[:2], -1)
        return (seen_BTD + self._before(executed_BTH, first_BT).sum(2)).unsqueeze(2)


class _FrameNet(nn.Module):
    """Three convolutions, each with a ReLU, and a projection: frames uint8 [M, H, W, C] to vectors [M, D]."""

    def __init__(self, config: CnnAgentConfig) -> None:
        super().__init__()
        self.background, self.scale = config.pixel_background, config.pixel_scale
        height, width, channels_in = config.frame_shape
        convolutions = []
        for number, (kernel, stride, padding) in enumerate(_CONVOLUTIONS):
            channels = config.channels * (2 if number else 1)
            convolutions.append(nn.Conv2d(channels_in, channels, kernel, stride, padding))
            channels_in = channels
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        self.convolutions = nn.ModuleList(convolutions)
        self.project = nn.Linear(channels_in * height * width, config.width)
        self.norm = nn.LayerNorm(config.width)
        for conv in convolutions:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
        initialise(self.project)

    def forward(self, frames_MHWC: Tensor) -> Tensor:
        """Return vectors [M, D]."""
        x = (frames_MHWC.permute(0, 3, 1, 2).to(self.project.weight.dtype) - self.background) / self.scale
        for conv in self.convolutions:
            x = torch.relu(conv(x))
        seen_MD: Tensor = self.norm(self.project(x.flatten(1)))
        return seen_MD
