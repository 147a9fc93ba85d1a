"""A small recurrent policy that plays keyboard and mouse: several heads, each of which sees what the earlier ones drew.

Its memory is a hash of every observation, executed action and instruction, so that any leak, loss or swap changes its
answers; :func:`enter` is the same arithmetic in plain Python.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from playserve.actions import Action, DesktopAction
from playserve.errors import BadActionError
from playserve.specs import (
    Codec,
    DesktopActionSpec,
    GapMode,
    GapRule,
    ImageFormat,
    MouseDecode,
    PolicySpec,
    TensorSpec,
)
from playserve_trainer.models.policy import (
    INSTRUCTION,
    UNKNOWN_ACTION,
    ForwardOutput,
    Memory,
    Policy,
    Sampler,
    StateTensor,
    StepOutput,
)

__all__ = ["BINS", "HEADS", "KEYS", "DesktopPolicy", "decode", "encode", "enter"]

KEYS = ("KeyW", "KeyA", "KeyD", "Space")
BUTTONS = (0, 2)
#: Smallest and largest pixel of each step of motion, either axis.
BINS = ((-60, -30), (-29, -1), (0, 0), (1, 29), (30, 60))
#: key, key, button, dx, dy
HEADS = (len(KEYS) + 1, len(KEYS) + 1, len(BUTTONS) + 1, len(BINS), len(BINS))
_PRIME = 1_000_003
SPEC = DesktopActionSpec(keys=KEYS, buttons=BUTTONS, max_mouse_px=60.0, mouse_decode=MouseDecode.MEAN)


def encode(action: DesktopAction) -> tuple[int, ...]:
    """Return five numbers: held keys in the order of the table, at most two; one button; two steps of motion."""
    keys = ([i + 1 for i, key in enumerate(KEYS) if key in action.keys] + [0, 0])[:2]
    button = next((i + 1 for i, button in enumerate(BUTTONS) if button in action.buttons), 0)
    return (*keys, button, _step(action.mouse_dx_px), _step(action.mouse_dy_px))


def _step(pixels: float) -> int:
    return next((i for i, (_, high) in enumerate(BINS) if pixels <= high), len(BINS) - 1)


def decode(values: Sequence[int], uniforms: Sequence[float], mode: str = "") -> DesktopAction:
    """Return the action of five numbers."""
    return DesktopAction(
        keys=frozenset(KEYS[v - 1] for v in values[:2] if v),
        buttons=frozenset(BUTTONS[v - 1] for v in values[2:3] if v),
        mouse_dx_px=_pixels(values[3], uniforms[0], mode),
        mouse_dy_px=_pixels(values[4], uniforms[1], mode),
    )


def _pixels(step: int, uniform: float, mode: str) -> float:
    low, high = BINS[step]
    if mode == "conservative":
        return float(min(low, high, key=abs))
    if mode == "truncated_normal":
        return float(low + int(uniform * (high - low + 1)))
    return (low + high) / 2


def enter(state: int, seen: int, executed: Sequence[int] | None, text: str = "") -> int:
    """Return the memory after one frame whose bytes add up to `seen`."""
    told = [UNKNOWN_ACTION] * len(HEADS) if executed is None else executed
    mixed = sum((v + 2) * 257 ** (i + 1) for i, v in enumerate(told))
    return (state * 31 + seen + mixed + 7919 * len(text)) % _PRIME


_decode = decode  # the method of that name has an argument of that name


class DesktopPolicy(Policy):
    """Input: `observation` uint8 [8, 8]. Its value is its memory.

    Args:
        rate_hz: 0: turn based.
        catch_up_frames: Gap rule CATCH_UP of so many frames; 0: SKIP.
        instruction: Whether it takes an instruction.
        state_bytes: Further memory of a slot that nothing looks at.
    """

    def __init__(
        self, *, rate_hz: float = 0.0, catch_up_frames: int = 0, instruction: bool = True, state_bytes: int = 0
    ) -> None:
        super().__init__()
        self._rate_hz = rate_hz
        self._rule = GapRule(mode=GapMode.CATCH_UP, catch_up_frames=catch_up_frames) if catch_up_frames else GapRule()
        self._instruction = instruction
        self._state_bytes = state_bytes
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
        self._place_H: Tensor
        self._order_A: Tensor
        self.register_buffer("_place_H", torch.tensor([257 ** (i + 1) for i in range(len(HEADS))]), persistent=False)
        self.register_buffer("_order_A", torch.arange(1, max(HEADS) + 1), persistent=False)
        #: Shut: texts that begin with "go" wait. Texts in the order in which they were embedded.
        self.gate = threading.Event()
        self.gate.set()
        self.embedded: list[str] = []
        self.embedded_by: set[str] = set()  # names of threads

    def spec(self) -> PolicySpec:
        observation = TensorSpec(
            name="observation", dtype="uint8", shape=(8, 8), image_format=ImageFormat.GRAY8, codecs=(Codec.LZ4,)
        )
        return PolicySpec(
            name="desktop",
            family="desktop-test",
            inputs=(observation,),
            action=SPEC,
            context_frames=0,
            rate_hz=self._rate_hz,
            gap_rule=self._rule,
            takes_instruction=self._instruction,
            uses_executed_actions=True,
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        layout = {"hash": StateTensor((1,), torch.int64)}
        if self._state_bytes:
            layout["history"] = StateTensor((self._state_bytes,), torch.uint8)
        return layout

    def context_inputs(self) -> Mapping[str, StateTensor]:
        return {INSTRUCTION: StateTensor((1,), torch.float32)} if self._instruction else {}

    def embed_instruction(self, text: str) -> Tensor:
        assert not text.startswith("go") or self.gate.wait(20)
        if text == "unreadable":
            raise ValueError(text)
        self.embedded.append(text)
        self.embedded_by.add(threading.current_thread().name)
        return torch.full((1,), float(len(text)))

    def heads(self) -> tuple[int, ...]:
        return HEADS

    def encode_action(self, action: Action) -> tuple[int, ...]:
        if not isinstance(action, DesktopAction):
            raise BadActionError(f"action {action!r}, wanted a DesktopAction")
        return encode(action)

    def decode_action(self, values: Sequence[int], uniforms: Sequence[float], decode: str = "") -> Action:
        return _decode(values, uniforms, decode)

    def forward(self, *args: Any, **options: Any) -> ForwardOutput:
        raise NotImplementedError

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        seen_B = inputs["observation"].flatten(1).long().sum(1)
        state_B = memory.read("hash")[:, 0] * 31 + seen_B + ((executed_BH + 2) * self._place_H).sum(1)
        if INSTRUCTION in inputs:
            state_B = state_B + 7919 * inputs[INSTRUCTION][:, 0].long()
        state_B = state_B % _PRIME
        memory.write("hash", state_B[:, None])
        drawn: list[Tensor] = []
        before_B = torch.zeros_like(state_B)
        for head, choices in enumerate(HEADS):
            angle_BA = (state_B + 17 * before_B)[:, None] * self._order_A[:choices] + head
            drawn.append(sample(2.0 * torch.sin(angle_BA.float() * 0.37), head))
            before_B = before_B * 8 + drawn[-1]
        return StepOutput(torch.stack(drawn, 1), state_B.float())
