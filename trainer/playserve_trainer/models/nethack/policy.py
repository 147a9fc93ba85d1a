"""The `nethack` family's policy: a screen goes through the encoder, the core remembers, a linear layer chooses a key.

Shape legend: B rows, T steps, N = B * T frames, D width, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from playserve.specs import Codec, DiscreteActionSpec, PolicySpec, TensorSpec
from playserve_trainer.models.nethack.config import NetHackConfig
from playserve_trainer.models.nethack.encoder import NetHackEncoder
from playserve_trainer.models.nethack.lstm import LSTMCore
from playserve_trainer.models.nethack.transformer import TransformerCore
from playserve_trainer.models.policy import (
    UNKNOWN_ACTION,
    ForwardOutput,
    Memory,
    Policy,
    Sampler,
    StateTensor,
    StepOutput,
)

__all__ = ["NetHackPolicy"]


class NetHackPolicy(Policy):
    """Encoder, core and head; see the module's docstring."""

    def __init__(self, config: NetHackConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = NetHackEncoder(config)
        self.core: LSTMCore | TransformerCore = LSTMCore(config) if config.core == "lstm" else TransformerCore(config)
        self.head = nn.Linear(config.width, config.num_actions)
        # Not smaller, though the first loss is above ln(A) so: a small head takes many steps until it teaches the rest.
        nn.init.normal_(self.head.weight, std=config.width**-0.5)
        nn.init.zeros_(self.head.bias)

    def spec(self) -> PolicySpec:
        """Return the spec: the terminal in, one of the keys out."""
        config = self.config
        inputs = [
            TensorSpec(name="tty_chars", dtype="uint8", shape=(24, 80), codecs=(Codec.LZ4,)),
            TensorSpec(name="tty_colors", dtype="int8", shape=(24, 80), codecs=(Codec.LZ4,)),
            TensorSpec(name="tty_cursor", dtype="uint8", shape=(2,)),
        ]
        if config.inventory:
            inputs.append(TensorSpec(name="inv_glyphs", dtype="int16", shape=(55,)))
        return PolicySpec(
            name="",
            family="nethack",
            inputs=tuple(inputs),
            action=DiscreteActionSpec(n=config.num_actions, names=config.action_names),
            context_frames=config.layers * (config.context - 1) + 1 if config.core == "transformer" else 0,
            uses_executed_actions=True,
            environment={"family": "nethack", "character": config.character},
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return the core's memory tensors."""
        return self.core.layout()

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """Return logits [B, T, A] for the inputs of the spec, each [B, T, *shape]."""
        # What was executed before an episode belongs to another one.
        executed_BT = executed_BTH[..., 0].masked_fill(first_BT, UNKNOWN_ACTION)
        flat = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        x_ND = self._encode(flat, executed_BT.flatten())
        y_BTD, after = self.core(x_ND.view(*first_BT.shape, -1), first_BT, state)
        return ForwardOutput((self.head(y_BTD),), after)

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Advance each row's memory by one screen, and draw one key a row."""
        executed_B = executed_BH[:, 0].masked_fill(memory.reset_B, UNKNOWN_ACTION)
        y_BD = self.core.step(self._encode(inputs, executed_B), memory)
        logits_BA = self.head(y_BD).float()
        return StepOutput(sample(logits_BA, 0).unsqueeze(1))

    def _encode(self, inputs: Mapping[str, Tensor], executed_N: Tensor) -> Tensor:
        x_ND: Tensor = self.encoder(
            inputs["tty_chars"], inputs["tty_colors"], inputs["tty_cursor"], executed_N, inputs.get("inv_glyphs")
        )
        return x_ND
