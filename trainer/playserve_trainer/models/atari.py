"""The `atari` family: a memoryless convolutional net on four stacked grey frames, with its width as the one size dial.

The net is that of Tuyls et al. (2307.09423): three convolutions and one linear layer, no ReLU after the third
convolution. Shape legend: B rows, T steps, N = B * T frames, H = W = 84, C = 4 stacked frames, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve.errors import BadSettingError
from playserve.specs import Codec, DiscreteActionSpec, ImageFormat, PolicySpec, TensorSpec
from playserve_trainer.models.policy import ForwardOutput, Memory, Policy, Sampler, StateTensor, StepOutput

__all__ = ["FRAME_SHAPE", "AtariConfig", "AtariPolicy"]

#: Height, width and stack depth of one observation; the newest frame is the last channel.
FRAME_SHAPE = (84, 84, 4)

_FEATURES_PER_WIDTH = 7 * 7 * 2  # the third convolution gives [2 * width, 7, 7]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtariConfig:
    """Size of the net and the protocol of the environment that it was trained for.

    Attributes:
        game: Game in snake case, as the recordings name it ("breakout").
        num_actions: Size of the game's action set, at least 1.
        width: The size dial: channels of the first convolution, at least 1.
        action_names: Names by index, empty or `num_actions` long.
        frame_skip: Emulator frames that one action lasts.
        stickiness: Probability with which the training environment repeated the last action, 0 to 1.
        resize_id: Resize that made the frames from the screen (see playserve.resize); empty: none prescribed.
        pixel_background: The commonest pixel of the game, 0 to 255; the net sees (pixel - background) / scale.
        pixel_scale: How far pixels are from it (root mean square), above 0.
    """

    game: str
    num_actions: int
    width: int
    action_names: tuple[str, ...] = ()
    frame_skip: int = 4
    stickiness: float = 0.0
    resize_id: str = ""
    pixel_background: float = 0.0
    pixel_scale: float = 255.0

    def __post_init__(self) -> None:
        for name in ("num_actions", "width", "frame_skip"):
            if getattr(self, name) < 1:
                raise BadSettingError(f"atari: {name} is at least 1, not {getattr(self, name)}")
        if not 0.0 <= self.stickiness <= 1.0:
            raise BadSettingError(f"atari: stickiness is between 0 and 1, not {self.stickiness}")
        if not 0.0 <= self.pixel_background <= 255.0 or not 0.0 < self.pixel_scale <= 255.0:
            raise BadSettingError(
                f"atari: pixel_background is between 0 and 255, and pixel_scale above 0 and at most 255, not "
                f"{self.pixel_background}, {self.pixel_scale}"
            )
        if self.action_names and len(self.action_names) != self.num_actions:
            raise BadSettingError(f"atari: {len(self.action_names)} action names for {self.num_actions} actions")
        if not self.game:
            raise BadSettingError("atari: game is empty")


class PixelConv2d(nn.Conv2d):
    """A convolution of pixels 0..255 that behaves as one of (pixel - background) / scale.

    Both go into the weights and the bias at each pass: that costs nothing, and leaves the input exact in bfloat16,
    which holds every integer up to 256. Without padding it is the same set of functions whatever they are; but only
    where empty screen is 0 do the few pixels that matter stand out, and games on a bright background are not learnt
    at all without.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        *,
        pixel_background: float,
        pixel_scale: float,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self._pixel_background = pixel_background
        self._pixel_scale = pixel_scale

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` [N, C, H, W], pixels 0..255 in the compute dtype."""
        # Rounded first, so that the background cancels exactly.
        weight = (self.weight * (1.0 / self._pixel_scale)).to(input.dtype)
        bias = self.bias
        if self._pixel_background and bias is not None:
            bias = bias - self._pixel_background * weight.to(bias.dtype).sum((1, 2, 3))
        output: Tensor = self._conv_forward(input, weight, bias)
        return output


class AtariPolicy(Policy):
    """Convolutions and one linear layer; see the module's docstring."""

    def __init__(self, config: AtariConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = PixelConv2d(
            FRAME_SHAPE[2],
            width,
            kernel_size=8,
            stride=4,
            pixel_background=config.pixel_background,
            pixel_scale=config.pixel_scale,
        )
        self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=4, stride=2)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, kernel_size=3, stride=1)
        self.head = nn.Linear(_FEATURES_PER_WIDTH * width, config.num_actions)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv3.weight, nonlinearity="linear")
        for conv in (self.conv1, self.conv2, self.conv3):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        # Small logits: the first loss is ln(A), and no action is preferred before anything was learnt.
        nn.init.normal_(self.head.weight, std=0.1 * self.head.in_features**-0.5)
        nn.init.zeros_(self.head.bias)

    def spec(self) -> PolicySpec:
        """Return the spec: one frame stack in, one of the game's actions out."""
        config = self.config
        frames = TensorSpec(
            name="frames",
            dtype="uint8",
            shape=FRAME_SHAPE,
            image_format=ImageFormat.GRAY8_STACK,
            resize_id=config.resize_id,
            codecs=(Codec.LZ4,),
        )
        return PolicySpec(
            name="",
            family="atari",
            inputs=(frames,),
            action=DiscreteActionSpec(n=config.num_actions, names=config.action_names),
            context_frames=1,
            environment={
                "game": config.game,
                "frame_skip": str(config.frame_skip),
                "frame_stack": str(FRAME_SHAPE[2]),
                "stickiness": str(config.stickiness),
            },
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return nothing: the family is memoryless."""
        return {}

    def logits(self, frames_NHWC: Tensor) -> Tensor:
        """Return logits [N, A] in the compute dtype for frames uint8 [N, 84, 84, 4], whatever their order in time."""
        # A permuted HWC array already lies in channels_last order: neither the view nor the cast moves memory twice.
        x_NCHW = frames_NHWC.permute(0, 3, 1, 2).to(_compute_dtype(self.head.weight))
        x_NCHW = F.relu(self.conv1(x_NCHW))
        x_NCHW = F.relu(self.conv2(x_NCHW))
        x_NCHW = self.conv3(x_NCHW)
        logits_NA: Tensor = self.head(x_NCHW.flatten(1))
        return logits_NA

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """Return logits [B, T, A] for `frames` uint8 [B, T, 84, 84, 4]; the other arguments do not matter."""
        frames_BTHWC = inputs["frames"]
        logits_NA = self.logits(frames_BTHWC.flatten(0, 1))
        return ForwardOutput((logits_NA.view(*frames_BTHWC.shape[:2], -1),), {})

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Draw one action a row for `frames` uint8 [B, 84, 84, 4]; the memory is left alone."""
        logits_BA = self.logits(inputs["frames"]).float()
        return StepOutput(sample(logits_BA, 0).unsqueeze(1))


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype that autocast will compute in, or else the weights' own: one cast from uint8, not two."""
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
