"""What a policy is told beside its observation: game ticks, and the instruction in force."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from rig import Rig
from torch import Tensor

from playserve.errors import BadSettingError, StepFailedError
from playserve.specs import DiscreteActionSpec, GapMode, GapRule, PolicySpec, TensorSpec
from playserve_services.inference.instructions import InstructionCache
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import Row, Rows, TorchRuntime
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

CLOCK = (TICKS,)
TEXT = (INSTRUCTION,)


class Listener(Policy):
    """Its value is 1000 * ticks + the length of the instruction; its memory counts steps."""

    def __init__(self, context: tuple[str, ...] = CLOCK + TEXT, **spec: Any) -> None:
        super().__init__()
        self._context = context
        self._spec = spec
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
        self.embedded: list[str] = []
        self.threads: set[int] = set()
        self.shape: tuple[int, ...] = (2,)

    def spec(self) -> PolicySpec:
        spec: dict[str, Any] = {"takes_instruction": INSTRUCTION in self._context, **self._spec}
        return PolicySpec(
            name="",
            family="listener",
            inputs=(TensorSpec(name="observation", dtype="int32", shape=(1,)),),
            action=DiscreteActionSpec(n=2),
            context_frames=0,
            **spec,
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        return {"steps": StateTensor((), torch.int64)}

    def context_inputs(self) -> Mapping[str, StateTensor]:
        rows = {TICKS: StateTensor((), torch.int64), INSTRUCTION: StateTensor((2,), torch.float32)}
        return {name: rows.get(name, StateTensor((), torch.int64)) for name in self._context}

    def embed_instruction(self, text: str) -> Tensor:
        self.embedded.append(text)
        self.threads.add(threading.get_ident())
        return torch.full(self.shape, float(len(text)))

    def forward(self, inputs, executed_BTH, first_BT, state=None) -> ForwardOutput:  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        steps_B = memory.read("steps") + 1
        memory.write("steps", steps_B)
        value_B = torch.zeros(len(steps_B))
        if TICKS in inputs:
            value_B = value_B + 1000.0 * inputs[TICKS]
        if INSTRUCTION in inputs:
            value_B = value_B + inputs[INSTRUCTION].mean(-1)
        return StepOutput(sample(torch.zeros(len(steps_B), 2), 0)[:, None], value_B)


def make(policy: Policy, **options: Any) -> TorchRuntime:
    factory = RuntimeFactory(**{"slots": 4, "max_batch": 4, **options})
    spec = dataclasses.replace(policy.spec(), name="p", version="1")
    runtime = factory.make(spec, policy, factory.pool(policy)).runtime
    assert isinstance(runtime, TorchRuntime)
    return runtime


def row(slot: int, **context: Any) -> Row:
    return Row(slot, False, {"observation": np.zeros(1, np.int32)}, None, 0, 0, 1.0, argmax=True, **context)


def values(result: Rows) -> list[float]:
    assert result.values is not None
    return [float(v) for v in result.values]


@pytest.mark.parametrize(
    "options",
    [{}, {"buckets": [4]}, {"buckets": [1, 2, 4], "graphs": "compile", "compiler": "eager"}],
    ids=["plain", "padded", "compiled"],
)
def test_each_row_brings_its_own_ticks_and_instruction(options: dict[str, Any]) -> None:
    runtime = make(Listener(), **options)
    rows = [row(1), row(2, ticks=7), row(3, instruction="go", ticks=2)]
    assert values(runtime.run(rows, want_log_prob=False)) == [1000.0, 7000.0, 2002.0]
    assert values(runtime.run([row(3, instruction="stop here")], want_log_prob=False)) == [1009.0]


@pytest.mark.parametrize(("context", "value"), [((), 0.0), (CLOCK, 3000.0), (TEXT, 4.0)])
def test_a_policy_gets_what_it_declares_and_no_more(context: tuple[str, ...], value: float) -> None:
    policy = Listener(context)
    runtime = make(policy)
    runtime.prepare_instruction("what")
    assert values(runtime.run([row(1, ticks=3, instruction="what")], want_log_prob=False)) == [value]
    assert ("what" in policy.embedded) == (INSTRUCTION in context)


def test_an_instruction_is_embedded_once_and_not_by_the_engine() -> None:
    policy = Listener()
    runtime = make(policy)
    policy.embedded.clear()
    policy.threads.clear()
    thread = threading.Thread(target=runtime.prepare_instruction, args=("find the key",))
    thread.start()
    thread.join()
    for _ in range(3):
        runtime.prepare_instruction("find the key")
        runtime.run([row(1, instruction="find the key")], want_log_prob=False)
    assert policy.embedded == ["find the key"]
    assert threading.get_ident() not in policy.threads
    # Nobody prepared this one: a moved session, say. It is computed all the same.
    assert values(runtime.run([row(1, instruction="x")], want_log_prob=False)) == [1001.0]


def test_the_cache_keeps_the_newest_texts_and_all_that_sessions_can_use() -> None:
    calls: list[str] = []

    def embed(text: str) -> Tensor:
        calls.append(text)
        return torch.tensor([float(len(text))])

    cache = InstructionCache(embed, StateTensor((1,), torch.float32), capacity=2)
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        assert cache.get(text).tolist() == [len(text)]
    assert calls == ["a", "bb", "ccc", "bb"]
    assert len(cache) == 2


def test_an_embedding_of_another_shape_is_an_error() -> None:
    policy = Listener()
    runtime = make(policy)
    policy.shape = (3,)
    with pytest.raises(StepFailedError, match=r"has shape \(3,\); the policy declares \(2,\)"):
        runtime.prepare_instruction("new")


def test_a_policy_that_contradicts_itself_is_not_served() -> None:
    with pytest.raises(BadSettingError, match="takes_instruction is True, and it lacks"):
        make(Listener(CLOCK, takes_instruction=True))
    with pytest.raises(BadSettingError, match="takes_instruction is False, and it has"):
        make(Listener(TEXT, takes_instruction=False))
    with pytest.raises(BadSettingError, match=r"context inputs \['@weather'\]"):
        make(Listener(("@weather",)))


def entered(rig: Rig, session: Any) -> list[int]:
    """Take what waits into the memory, as the core does; return the ticks of each frame."""
    slot = session.slots[0]
    ticks = []
    while slot.queue:
        slot.enter(slot.queue.popleft())
        ticks.append(slot.entered_ticks)
    return ticks


def arrive(rig: Rig, session: Any, seq: int, ticks: int = 1, **options: Any) -> None:
    session.slots[0].arrive(rig.frame(session, seq, ticks=ticks, **options), 8)


def live(rule: GapRule) -> tuple[Rig, Any]:
    rig = Rig()
    return rig, rig.open(rig.load("p", Listener(gap_rule=rule, rate_hz=20.0)), live=True)


def test_ticks_of_frames_that_were_left_out_go_to_the_next_that_enters() -> None:
    rig, session = live(GapRule(mode=GapMode.SKIP))
    arrive(rig, session, 1, ticks=9)
    assert entered(rig, session) == [1], "nothing came before the first frame of an episode"
    for seq, ticks in ((2, 2), (3, 1), (4, 3)):
        arrive(rig, session, seq, ticks)
    assert entered(rig, session) == [6]
    arrive(rig, session, 5)
    assert entered(rig, session) == [1]


def test_catching_up_frames_bring_their_own_ticks() -> None:
    rig, session = live(GapRule(mode=GapMode.CATCH_UP, catch_up_frames=2))
    arrive(rig, session, 1)
    assert entered(rig, session) == [1]
    for seq in (2, 3, 4, 5):
        arrive(rig, session, seq, ticks=2)
    assert entered(rig, session) == [6, 2], "two frames did not fit"


def test_a_new_episode_and_a_lost_stream_forget_missed_ticks() -> None:
    rig, session = live(GapRule(mode=GapMode.SKIP))
    arrive(rig, session, 1)
    entered(rig, session)
    arrive(rig, session, 2, ticks=5)
    arrive(rig, session, 3, episode_id=1)
    assert entered(rig, session) == [1]
    arrive(rig, session, 4, ticks=2)
    arrive(rig, session, 5, ticks=2)
    session.slots[0].drop_waiting()
    arrive(rig, session, 4, ticks=2)  # both are sent again
    arrive(rig, session, 5, ticks=2)
    assert entered(rig, session) == [4]
