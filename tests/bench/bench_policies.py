"""Policies for benchmarks: put ``tests/bench`` on PYTHONPATH and serve ``bench_policies:trivial`` or ``:costly``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from playserve.actions import Action, DesktopAction
from playserve.resize import HAMMING_V1
from playserve.specs import DesktopActionSpec, DiscreteActionSpec, ImageFormat, PolicySpec, TensorSpec
from playserve_trainer.models.policy import ForwardOutput, Memory, Policy, Sampler, StateTensor, StepOutput

__all__ = ["CostlyPolicy", "DesktopPolicy", "TrivialPolicy", "costly", "desktop", "nethack", "recurrent", "trivial"]

_ACTIONS = 18


class TrivialPolicy(Policy):
    """Answers action 0, as the Triton model and the echo do: what is measured is the server.

    Args:
        state_floats: Size of a memory that counts the steps of each slot; 0: no memory.
    """

    def __init__(self, state_floats: int = 0) -> None:
        super().__init__()
        self._state_floats = state_floats
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)  # says which device it is on

    def spec(self) -> PolicySpec:
        """Return the spec: one 21 KB frame."""
        return PolicySpec(
            name="trivial",
            family="bench",
            inputs=(TensorSpec(name="FRAME", dtype="uint8", shape=(84, 84, 3)),),
            action=DiscreteActionSpec(n=_ACTIONS),
            context_frames=0 if self._state_floats else 1,
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return the memory of one slot."""
        return {"count": StateTensor((self._state_floats,), torch.float32)} if self._state_floats else {}

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """Return flat logits."""
        return ForwardOutput(logits=(torch.zeros(*first_BT.shape, _ACTIONS),), state=state or {})

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Return action 0 of every row."""
        if self._state_floats:
            memory.write("count", memory.read("count") + 1)
        return StepOutput(actions_BH=torch.zeros(executed_BH.shape[0], 1, dtype=torch.int64))


class CostlyPolicy(TrivialPolicy):
    """A small convolutional network, for a dispatch that takes milliseconds."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 8, stride=4), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * width * 81, _ACTIONS),
        )  # fmt: skip

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Run the network and sample."""
        logits_BA = self.net(inputs["FRAME"].permute(0, 3, 1, 2).float() / 255)
        return StepOutput(actions_BH=sample(logits_BA, 0)[:, None])


class DesktopPolicy(TrivialPolicy):
    """Holds W and a button at every other frame and moves the mouse: each answer is a press or a release, and motion.

    Its frames are those of Open P2P: 192 x 192, its resize.
    """

    def __init__(self) -> None:
        super().__init__(state_floats=1)

    def spec(self) -> PolicySpec:
        """Return the spec."""
        frame = TensorSpec(
            name="frame", dtype="uint8", shape=(192, 192, 3), image_format=ImageFormat.RGB8, resize_id=HAMMING_V1
        )
        action = DesktopActionSpec(keys=("KeyW",), buttons=(0,), max_mouse_px=100.0)
        return PolicySpec(name="desktop", family="bench", inputs=(frame,), action=action, rate_hz=20.0)

    def heads(self) -> tuple[int, ...]:
        """Return one head of two."""
        return (2,)

    def encode_action(self, action: Action) -> tuple[int, ...]:
        """Return whether W is held."""
        return (int(isinstance(action, DesktopAction) and "KeyW" in action.keys),)

    def decode_action(self, values: Sequence[int], uniforms: Sequence[float], decode: str = "") -> Action:
        """Return the action of a number."""
        if values[0]:
            return DesktopAction(keys=frozenset({"KeyW"}), buttons=frozenset({0}), mouse_dx_px=3.0)
        return DesktopAction(mouse_dx_px=-3.0)

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Return 1 and 0 by turns."""
        count_B1 = memory.read("count") + 1
        memory.write("count", count_B1)
        return StepOutput(actions_BH=(count_B1 % 2).long())


def desktop() -> Policy:
    """Return a policy that plays keyboard and mouse and computes nothing."""
    return DesktopPolicy()


def trivial() -> Policy:
    """Return the trivial policy of the budgets."""
    return TrivialPolicy()


def recurrent() -> Policy:
    """Return a trivial policy with 4 KB of memory a slot."""
    return TrivialPolicy(state_floats=1024)


def costly() -> Policy:
    """Return a policy whose batches of 64 take milliseconds."""
    torch.manual_seed(0)
    return CostlyPolicy().eval()


def nethack() -> Policy:
    """Return the untrained LSTM of the `nethack` family that is nearest to a million parameters."""
    from playserve_trainer.models.nethack import NetHackConfig, NetHackPolicy

    torch.manual_seed(0)
    policies = (NetHackPolicy(NetHackConfig(width=width)) for width in range(32, 257, 16))
    return min(policies, key=lambda policy: abs(policy.num_params() - 1_000_000)).eval()
