"""The runtime on a CUDA device: the same memory and the same actions as on the CPU. `make gpu` runs it."""

from __future__ import annotations

import copy
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch
from desktop_policy import DesktopPolicy

from playserve_services.inference.graphs import CudaGraphSteps, EagerSteps, GraphMode, RecompiledError
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import Row, TorchRuntime
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.models.p2p.config import config_of_size
from playserve_trainer.models.p2p.policy import P2PPolicy
from playserve_trainer.models.policy import Policy, StepOutput
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def make(family: str) -> Policy:
    torch.manual_seed(1)
    if family == "desktop":
        return DesktopPolicy(instruction=False)
    if family == "p2p":
        return P2PPolicy(config_of_size("1m", history=(4,))).eval()
    if family == "atari":
        return AtariPolicy(AtariConfig(game="breakout", num_actions=4, width=8)).eval()
    return TinyRecurrentPolicy(TinyRecurrentConfig()).eval()


def load(policy: Policy, device: str, **options: Any) -> TorchRuntime:
    factory = RuntimeFactory(slots=4, max_batch=4, buckets=[1, 2, 4], device=device, **options)
    policy = copy.deepcopy(policy).to(device)
    spec = dataclasses.replace(policy.spec(), name="p", version="1")
    runtime = factory.make(spec, policy, factory.pool(policy)).runtime
    assert isinstance(runtime, TorchRuntime)
    return runtime


def play(runtime: TorchRuntime, heads: tuple[int, ...] = (4,)) -> tuple[list[Any], list[Any]]:
    """Run ragged batches of three slots for 20 rounds, with every kind of sampling."""
    rng = np.random.default_rng(0)
    actions, log_probs, steps = [], [], [0, 0, 0]
    for t in range(20):
        rows = []
        for i in range(3):
            inputs = {x.name: rng.integers(0, 256, x.shape).astype(x.numpy_dtype) for x in runtime.spec.inputs}
            if (t + i) % 3:
                executed = tuple(t % min(4, choices) for choices in heads)
                rows.append(Row(i + 1, steps[i] == 0, inputs, executed, i, steps[i], 1.0 + i / 4, argmax=t % 7 == i))
                steps[i] += 1
        result = runtime.run(rows, want_log_prob=True)
        actions.append(result.actions)
        assert result.log_probs is not None
        log_probs.append(result.log_probs)
    return actions, log_probs


def assert_same(one: tuple[list[Any], list[Any]], other: tuple[list[Any], list[Any]], atol: float) -> None:
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("graphs", ["off", "cuda", "compile"])
@pytest.mark.parametrize("family", ["atari", "tiny_recurrent", "desktop", "p2p"])
def test_a_cuda_device_plays_as_the_cpu_does(family: str, graphs: GraphMode) -> None:
    policy = make(family)
    runtime = load(policy, "cuda", graphs=graphs)
    assert_same(play(load(policy, "cpu"), policy.heads()), play(runtime, policy.heads()), atol=1e-3)
    if graphs == "cuda":
        assert isinstance(runtime.steps, CudaGraphSteps)
    assert runtime.pool.export_slot(1).keys() == policy.state_layout().keys()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("family", ["atari", "tiny_recurrent", "desktop", "p2p"])
def test_captured_graphs_play_as_eager_steps_do(family: str, autocast: bool) -> None:
    policy = make(family)
    eager, captured = (load(policy, "cuda", graphs=graphs, autocast=autocast) for graphs in ("off", "cuda"))
    assert_same(play(eager, policy.heads()), play(captured, policy.heads()), atol=1e-5)
    for name, data in eager.pool.export_slot(1).items():
        dtype = eager.pool.tensors[name].dtype
        a, b = (torch.frombuffer(bytearray(x), dtype=dtype) for x in (data, captured.pool.export_slot(1)[name]))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_every_bucket_is_captured_and_nothing_is_afterwards() -> None:
    runtime = load(make("tiny_recurrent"), "cuda", graphs="cuda")
    assert isinstance(runtime.steps, CudaGraphSteps)
    assert runtime.steps.captured == [1, 2, 4]
    play(runtime)
    assert runtime.steps.captured == [1, 2, 4]
    with pytest.raises(RecompiledError, match="3 rows were not captured"):
        runtime.steps(runtime.staging.of(3))


def test_batches_are_staged_in_pinned_memory() -> None:
    runtime = load(make("atari"), "cuda", graphs="cuda")
    assert runtime.staging.pinned
    staged = runtime.staging.of(2)
    assert all(tensor.is_cuda for tensor in staged.device.values())
    assert not load(make("atari"), "cpu").staging.pinned


class Peeking(TinyRecurrentPolicy):
    """Its step looks at a value on the host, which no graph can hold."""

    def step(self, inputs: Any, executed_BH: Any, memory: Any, sample: Any) -> StepOutput:
        if int(executed_BH.sum().item()) > 1 << 40:
            raise AssertionError
        return super().step(inputs, executed_BH, memory, sample)


@pytest.mark.parametrize("graphs", ["cuda", "compile"])
def test_a_policy_that_cannot_be_captured_is_computed_without(
    graphs: GraphMode, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    policy = Peeking(TinyRecurrentConfig()).eval()
    runtime = load(policy, "cuda", graphs=graphs)
    assert isinstance(runtime.steps, EagerSteps)
    assert len([r for r in caplog.records if "is computed without graphs" in r.getMessage()]) == 1
    assert_same(play(load(policy, "cpu")), play(runtime), atol=1e-3)


def test_a_policy_is_captured_while_another_one_plays() -> None:
    policy = make("tiny_recurrent")
    playing = load(policy, "cuda", graphs="cuda")
    expected = play(load(policy, "cpu"))
    stop, results = threading.Event(), []

    def engine() -> None:
        while not stop.is_set():
            results.append(play(playing))

    thread = threading.Thread(target=engine)
    thread.start()
    try:
        for _ in range(3):
            assert isinstance(load(make("atari"), "cuda", graphs="cuda").steps, CudaGraphSteps)
    finally:
        stop.set()
        thread.join()
    assert results
    for result in results:
        assert_same(expected, result, atol=1e-3)
