"""The `tiny_recurrent` family: a small LSTM policy that keeps the service honest about memory.

It is for tests and examples, and learns easy games. Its answers depend on every observation and every executed action
of the episode (the LSTM begins with open forget gates), so that a leak between sessions, a lost step or a step taken
twice changes them. Its memory has three tensors of different shapes and dtypes.

Shape legend: B rows, T steps, H = 1 head, A actions, D hidden units, P numbers in an observation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from playserve.errors import BadSettingError
from playserve.specs import Codec, DiscreteActionSpec, GapMode, GapRule, PolicySpec, TensorSpec
from playserve_trainer.models.policy import (
    UNKNOWN_ACTION,
    ForwardOutput,
    Memory,
    Policy,
    Sampler,
    StateTensor,
    StepOutput,
)

__all__ = ["TinyRecurrentConfig", "TinyRecurrentPolicy"]

_AGE_PERIOD = 16.0  # steps after which the age feature repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyRecurrentConfig:
    """Shapes, size and pace.

    Attributes:
        num_actions: Size of the discrete action set, at least 1.
        hidden: Hidden units of the LSTM, the size dial.
        observation_shape: Dimensions of one observation.
        observation_dtype: "uint8" (0..255) or "float32".
        value_head: Whether steps return a value estimate.
        rate_hz: Steps a second for real-time play; 0: turn based.
        catch_up_frames: Gap rule CATCH_UP(n) if at least 1, SKIP if 0.
    """

    num_actions: int = 4
    hidden: int = 32
    observation_shape: tuple[int, ...] = (8, 8)
    observation_dtype: str = "uint8"
    value_head: bool = True
    rate_hz: float = 0.0
    catch_up_frames: int = 0

    def __post_init__(self) -> None:
        if self.num_actions < 1 or self.hidden < 1:
            raise BadSettingError(
                f"tiny_recurrent: num_actions and hidden are at least 1, not {self.num_actions}, {self.hidden}"
            )
        if not self.observation_shape or min(self.observation_shape) < 1:
            raise BadSettingError(f"tiny_recurrent: observation_shape {self.observation_shape} has no positive size")
        if self.observation_dtype not in ("uint8", "float32"):
            raise BadSettingError(
                f"tiny_recurrent: observation_dtype is uint8 or float32, not {self.observation_dtype!r}"
            )
        if self.rate_hz < 0 or self.catch_up_frames < 0:
            raise BadSettingError(
                f"tiny_recurrent: rate_hz and catch_up_frames are at least 0, not {self.rate_hz}, "
                f"{self.catch_up_frames}"
            )


class TinyRecurrentPolicy(Policy):
    """Observation, last executed action and age of the episode into an LSTM cell; see the module's docstring."""

    def __init__(self, config: TinyRecurrentConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.encode = nn.Linear(math.prod(config.observation_shape), hidden)
        self.embed_executed = nn.Embedding(config.num_actions + 1, hidden)  # row 0: unknown
        self.embed_age = nn.Linear(1, hidden, bias=False)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.head = nn.Linear(hidden, config.num_actions)
        self.value = nn.Linear(hidden, 1) if config.value_head else None
        self._init_weights()

    def _init_weights(self) -> None:
        # Noise pixels (standard deviation 0.3), executed actions and memory move the gates about equally.
        nn.init.normal_(self.encode.weight, std=3.0 * self.encode.in_features**-0.5)
        nn.init.normal_(self.cell.weight_ih, std=2.0 * self.config.hidden**-0.5)
        nn.init.orthogonal_(self.cell.weight_hh)
        with torch.no_grad():
            # Gates lie as input, forget, cell, output. A forget bias of 3 keeps 95% of the cell at each step.
            self.cell.bias_ih[self.config.hidden : 2 * self.config.hidden] = 3.0
        # Large logits: argmax actions differ from step to step even before training.
        nn.init.normal_(self.head.weight, std=4.0 * self.config.hidden**-0.5)

    def spec(self) -> PolicySpec:
        """Return the spec: one observation in, one action out, memory without bound."""
        config = self.config
        observation = TensorSpec(
            name="observation",
            dtype=config.observation_dtype,
            shape=config.observation_shape,
            codecs=(Codec.LZ4,),
        )
        catch_up = config.catch_up_frames
        return PolicySpec(
            name="",
            family="tiny_recurrent",
            inputs=(observation,),
            action=DiscreteActionSpec(n=config.num_actions),
            rate_hz=config.rate_hz,
            context_frames=0,
            gap_rule=GapRule(mode=GapMode.CATCH_UP, catch_up_frames=catch_up) if catch_up else GapRule(),
            uses_executed_actions=True,
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return the LSTM's two rows and the number of steps since the episode began."""
        row = StateTensor((self.config.hidden,), torch.float32)
        return {"hidden": row, "cell": row, "age": StateTensor((), torch.int64)}

    def _advance(
        self, observation: Tensor, executed_B: Tensor, reset_B: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features [B, D] and the next state for observations [B, *shape]; `state` is zero where reset."""
        dtype = self.head.weight.dtype
        x_BP = observation.flatten(1).to(dtype)
        if self.config.observation_dtype == "uint8":
            x_BP = x_BP * (1.0 / 255.0) - 0.5
        # What was executed before an episode belongs to another one.
        executed_B = executed_B.masked_fill(reset_B, UNKNOWN_ACTION)
        angle_B = state["age"].to(torch.float32) * (2.0 * math.pi / _AGE_PERIOD)
        x_BD = torch.tanh(
            self.encode(x_BP)
            + self.embed_executed(executed_B - UNKNOWN_ACTION)
            + self.embed_age(torch.sin(angle_B).to(dtype).unsqueeze(1))
        )
        hidden_BD, cell_BD = self.cell(x_BD, (state["hidden"].to(dtype), state["cell"].to(dtype)))
        after = {"hidden": hidden_BD.float(), "cell": cell_BD.float(), "age": state["age"] + 1}
        return hidden_BD, after

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """Return logits [B, T, A] for `observation` [B, T, *shape]."""
        observation = inputs["observation"]
        num_rows, num_steps = first_BT.shape
        now = {
            name: torch.zeros(num_rows, *tensor.shape, dtype=tensor.dtype, device=observation.device)
            if state is None
            else state[name].to(tensor.dtype)
            for name, tensor in self.state_layout().items()
        }
        features = []
        for t in range(num_steps):
            first_B = first_BT[:, t]
            now = {name: rows.masked_fill(first_B.view(-1, *([1] * (rows.dim() - 1))), 0) for name, rows in now.items()}
            features_BD, now = self._advance(observation[:, t], executed_BTH[:, t, 0], first_B, now)
            features.append(features_BD)
        return ForwardOutput((self.head(torch.stack(features, dim=1)),), now)

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Advance each row's memory by `observation` [B, *shape] and draw one action a row."""
        state = {name: memory.read(name) for name in self.state_layout()}
        features_BD, after = self._advance(inputs["observation"], executed_BH[:, 0], memory.reset_B, state)
        for name, rows in after.items():
            memory.write(name, rows)
        actions_B = sample(self.head(features_BD).float(), 0)
        value_B = None if self.value is None else self.value(features_BD).squeeze(1).float()
        return StepOutput(actions_B.unsqueeze(1), value_B)
