"""Instructions through the endpoint: embedded beside the game, in force from Configured on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from playserve.errors import EngineFailedError, PlayserveError
from playserve.settings import Extras
from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
from playserve_client.aio import PolicyClient
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings
from playserve_trainer.models.policy import (
    INSTRUCTION,
    TICKS,
    ForwardOutput,
    Memory,
    Policy,
    Sampler,
    StateTensor,
    StepOutput,
)


class Reader(Policy):
    """Its value is 1000 * ticks + the length of the instruction; it reads slowly where a gate is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
        self.gate = threading.Event()
        self.gate.set()

    def spec(self) -> PolicySpec:
        return PolicySpec(
            name="",
            family="reader",
            inputs=(TensorSpec(name="observation", dtype="uint8", shape=(1,)),),
            action=DiscreteActionSpec(n=2),
            context_frames=1,
            takes_instruction=True,
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        return {}

    def context_inputs(self) -> Mapping[str, StateTensor]:
        return {TICKS: StateTensor((), torch.int64), INSTRUCTION: StateTensor((1,), torch.float32)}

    def embed_instruction(self, text: str) -> Tensor:
        assert self.gate.wait(10)
        if text == "unreadable":
            raise ValueError(text)
        return torch.full((1,), float(len(text)))

    def forward(self, *args: Any, **options: Any) -> ForwardOutput:
        raise NotImplementedError

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        value_B = 1000.0 * inputs[TICKS] + inputs[INSTRUCTION][:, 0]
        return StepOutput(torch.zeros(len(value_B), 1, dtype=torch.int64), value_B)


async def _value(session: Any, ticks: int = 0) -> float:
    seq = await session.send_step(np.zeros(1, np.uint8), ticks=ticks)
    result = await session.recv(5.0)
    assert result.seq == seq
    return float(result.value)


def test_the_old_instruction_stays_in_force_while_the_new_one_is_embedded() -> None:
    async def main() -> None:
        policy = Reader()
        async with (
            InferenceServer(ServeSettings(port=0), {"reader": lambda: policy}) as server,
            PolicyClient(f"127.0.0.1:{server.port}") as client,
            client.play("reader", instruction="go", extras=Extras(value=True)) as session,
        ):
            assert await _value(session) == 1002.0
            policy.gate.clear()
            configuring = asyncio.create_task(session.configure(instruction="go north"))
            assert [await _value(session) for _ in range(3)] == [1002.0] * 3
            assert not configuring.done()
            policy.gate.set()
            assert await configuring == 2
            assert await _value(session, ticks=3) == 3008.0

    asyncio.run(main())


def test_an_instruction_that_cannot_be_embedded_is_refused_and_the_game_goes_on() -> None:
    async def main() -> None:
        async with (
            InferenceServer(ServeSettings(port=0), {"reader": Reader}) as server,
            PolicyClient(f"127.0.0.1:{server.port}") as client,
        ):
            async with client.play("reader", instruction="go", extras=Extras(value=True)) as session:
                with pytest.raises(PlayserveError):
                    await session.configure(instruction="unreadable")
                assert await _value(session) == 1002.0
            with pytest.raises(EngineFailedError, match="embedded"):
                async with client.play("reader", instruction="unreadable"):
                    pass

    asyncio.run(main())
