"""Computing batches with graphs: compiled on the CPU here; CUDA graphs are in test_gpu.py."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from playserve.errors import BadSettingError, StepFailedError
from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
from playserve_services.inference.graphs import CompiledSteps, EagerSteps, RecompiledError, resolve_graphs
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import Row, TorchRuntime
from playserve_services.inference.sampling import BatchSampler, StaticSampler, uniforms
from playserve_services.inference.staging import Computed, Field, Readback, Staging, pack
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.models.nethack import NetHackConfig, NetHackPolicy
from playserve_trainer.models.policy import ForwardOutput, Memory, Policy, Sampler, StateTensor, StepOutput
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

CPU = torch.device("cpu")
# Dynamo traces as for any other compiler, and hands the graph over unchanged: no C++ compiler, no long wait.
QUICK = "eager"


class Doubler(Policy):
    """Two heads, an output, a value, and whatever trouble a test asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        self.factor = 1.0
        self.python_sees_values = False

    def spec(self) -> PolicySpec:
        return PolicySpec(
            name="",
            family="doubler",
            inputs=(TensorSpec(name="view", dtype="float32", shape=(3,)),),
            outputs=(TensorSpec(name="image", dtype="uint8", shape=(2, 2)),),
            action=DiscreteActionSpec(n=4),
            context_frames=0,
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        return {"sum": StateTensor((3,), torch.float32)}

    def forward(self, inputs, executed_BTH, first_BT, state=None) -> ForwardOutput:  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        total_BV = memory.read("sum") + inputs["view"] * self.factor
        if self.python_sees_values and total_BV[0, 0].item() > 1e9:
            total_BV = total_BV * 0
        memory.write("sum", total_BV)
        actions_B = sample(total_BV @ self.weight, 0)
        image = actions_B.to(torch.uint8).view(-1, 1, 1).expand(-1, 2, 2)
        return StepOutput(actions_B[:, None], total_BV.sum(-1), {"image": image})


def make(policy: Policy, graphs: str = "off", **options: Any) -> TorchRuntime:
    options = {"slots": 8, "max_batch": 8, "buckets": [1, 2, 4, 8], "compiler": QUICK, **options}
    factory = RuntimeFactory(graphs=graphs, **options)  # type: ignore[arg-type]
    spec = dataclasses.replace(policy.spec(), name="p", version="1")
    runtime = factory.make(spec, policy, factory.pool(policy)).runtime
    assert isinstance(runtime, TorchRuntime)
    return runtime


def play(runtime: TorchRuntime, rounds: int = 12) -> list[Any]:
    """Ragged batches of one to eight rows, with every kind of sampling."""
    rng = np.random.default_rng(0)
    results, steps = [], [0] * 8
    for t in range(rounds):
        rows = []
        for i in range(8):
            inputs = {x.name: rng.integers(0, 256, x.shape).astype(x.numpy_dtype) / 1 for x in runtime.spec.inputs}
            inputs = {x.name: inputs[x.name].astype(x.numpy_dtype) for x in runtime.spec.inputs}
            if t == 0 or rng.random() < (t % 5) / 4:
                executed = None if steps[i] == 0 else (t % 4,)
                rows.append(Row(i + 1, steps[i] == 0, inputs, executed, i, steps[i], 0.5 + i / 4, argmax=i in (2, 5)))
                steps[i] += 1
        if rows:
            results.append((len(rows), runtime.run(rows, want_log_prob=t % 2 == 0)))
    return results


def assert_same(a: list[Any], b: list[Any], atol: float = 0.0) -> None:
    assert len({n for n, _ in a}) > 3, "batches of one size show little"
    for (_, one), (_, other) in zip(a, b, strict=True):
        assert one.actions == other.actions
        assert (one.log_probs is None) == (other.log_probs is None)
        if one.log_probs is not None:
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=atol)
        if one.values is not None:
            np.testing.assert_allclose(one.values, other.values, atol=atol * 100)
        assert one.outputs.keys() == other.outputs.keys()
        for name in one.outputs:
            np.testing.assert_array_equal(one.outputs[name], other.outputs[name])


def policies() -> list[Policy]:
    torch.manual_seed(1)
    return [
        Doubler().eval(),
        TinyRecurrentPolicy(TinyRecurrentConfig()).eval(),
        AtariPolicy(AtariConfig(game="breakout", num_actions=4, width=2)).eval(),
    ]


def test_compiled_steps_play_as_eager_ones_and_compile_nothing_after_warm_up() -> None:
    for policy in policies():
        plain, compiled = make(policy), make(policy, "compile")
        assert isinstance(compiled.steps, CompiledSteps)
        assert compiled.steps.num_compiled == 4, "one graph a bucket"
        assert_same(play(plain), play(compiled))
        assert compiled.steps.num_compiled == 4
        assert plain.pool.export_slot(3) == compiled.pool.export_slot(3)


@pytest.mark.parametrize("core", ["lstm", "transformer"])
def test_nethack_s_steps_are_compiled_too(core: str) -> None:
    torch.manual_seed(1)
    policy = NetHackPolicy(NetHackConfig(width=32, core=core, layers=2, context=8)).eval()
    plain, compiled = make(policy, buckets=[2, 8]), make(policy, "compile", buckets=[2, 8])
    assert isinstance(compiled.steps, CompiledSteps)
    # Compiled, an LSTM runs its cells: the same numbers but for their last bits.
    assert_same(play(plain), play(compiled), atol=1e-4)
    assert compiled.steps.num_compiled == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # inductor's own
def test_inductor_s_code_plays_as_eager_steps_do() -> None:
    policy = policies()[1]
    plain = make(policy, buckets=[2, 8])
    compiled = make(policy, "compile", buckets=[2, 8], compiler="inductor")
    assert isinstance(compiled.steps, CompiledSteps)
    assert_same(play(plain), play(compiled), atol=1e-4)
    assert compiled.steps.num_compiled == 2


def test_bfloat16_is_computed_under_a_graph_too() -> None:
    policy = policies()[1]
    assert_same(play(make(policy, autocast=True)), play(make(policy, "compile", autocast=True)), atol=1e-6)


def test_two_versions_of_one_policy_compile_their_own_graphs() -> None:
    torch.manual_seed(1)
    first, second = (TinyRecurrentPolicy(TinyRecurrentConfig()).eval() for _ in range(2))
    runtimes = [make(first, "compile"), make(second, "compile")]
    for policy, runtime in zip((first, second), runtimes, strict=True):
        assert_same(play(make(policy)), play(runtime))


def test_compiling_again_after_warm_up_is_an_error_and_the_memory_stays() -> None:
    policy = Doubler().eval()
    runtime = make(policy, "compile")
    row = Row(1, True, {"view": np.ones(3, np.float32)}, None, 0, 0, 1.0, argmax=True)
    runtime.run([row], want_log_prob=False)
    before = runtime.pool.export_slot(1)
    policy.factor = 2.0  # the graph was made for another number
    with pytest.raises(RecompiledError, match="1 rows would have been compiled again after warm-up") as raised:
        runtime.run([row], want_log_prob=False)
    assert isinstance(raised.value, StepFailedError)
    assert runtime.pool.export_slot(1) == before
    policy.factor = 1.0
    assert runtime.run([row], want_log_prob=False).actions, "the graph of before is still there"


def test_a_size_without_a_graph_is_an_error() -> None:
    runtime = make(Doubler().eval(), "compile")
    assert runtime.steps is not None
    with pytest.raises(RecompiledError, match=r"3 rows were not compiled, only of \[1, 2, 4, 8\]"):
        runtime.steps(runtime.staging.of(3))


def test_a_policy_that_cannot_be_compiled_is_computed_without_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = Doubler().eval()
    policy.python_sees_values = True
    with caplog.at_level(logging.WARNING):
        runtime = make(policy, "compile")
    assert isinstance(runtime.steps, EagerSteps)
    assert [r.getMessage().startswith("policy p version 1: its step cannot be compiled") for r in caplog.records] == [
        True
    ]
    assert_same(play(make(Doubler().eval())), play(runtime))


def test_a_policy_that_cannot_be_computed_at_all_is_not_served() -> None:
    policy = Doubler().eval()
    policy.factor = "much"  # type: ignore[assignment]
    for graphs in ("off", "compile"):
        with pytest.raises(TypeError):
            make(policy, graphs)


def test_graphs_need_buckets_and_cuda_graphs_need_cuda() -> None:
    with pytest.raises(BadSettingError, match="need batch buckets"):
        make(Doubler().eval(), "compile", buckets=None)
    assert resolve_graphs("auto", "cpu") == "off"
    assert resolve_graphs("auto", "cuda:1") == "cuda"
    assert resolve_graphs("compile", "cpu") == "compile"
    assert resolve_graphs("off", "cuda") == "off"
    with pytest.raises(BadSettingError, match="need a CUDA device"):
        resolve_graphs("cuda", "cpu")


def test_both_samplers_draw_the_same() -> None:
    n, heads = 64, 3
    generator = torch.Generator().manual_seed(0)
    seeds, counters = list(range(n)), [7 * i for i in range(n)]
    temperatures, argmax = [0.25 + i / 8 for i in range(n)], [i % 5 == 0 for i in range(n)]
    rows = BatchSampler(seeds, counters, heads, temperatures, argmax, CPU, want_log_prob=True)
    static = StaticSampler(
        torch.from_numpy(uniforms(seeds, counters, heads)),
        torch.tensor([[1.0 / t] for t in temperatures], dtype=torch.float64),
        torch.tensor(argmax),
    )
    for head in range(heads):
        logits_BA = torch.randn(n, 5 + head, generator=generator)
        assert torch.equal(rows(logits_BA, head), static(logits_BA, head))
    log_probs_BH = static.log_probs_BH()
    assert log_probs_BH is not None
    np.testing.assert_array_equal(rows.log_probs(), log_probs_BH.numpy())


def test_a_size_s_arrays_lie_in_one_buffer_and_on_a_cpu_both_sides_are_one() -> None:
    fields = [
        Field("flag", (), np.dtype(np.bool_)),
        Field("view", (2, 3), np.dtype(np.float32)),
        Field("number", (1,), np.dtype(np.int64)),
    ]
    staging = Staging(fields, 4, CPU)
    for size in (4, 1, 3):
        staged = staging.of(size)
        staged.host["flag"][:] = True
        staged.host["view"][:] = np.arange(6).reshape(2, 3)
        staged.host["number"][:] = -5
        staging.send(staged)
        assert staged.device["flag"].all()
        assert staged.device["view"].shape == (size, 2, 3)
        assert staged.device["view"][size - 1].flatten().tolist() == list(range(6))
        assert staged.device["number"].flatten().tolist() == [-5] * size
        assert all(t.is_contiguous() and t.data_ptr() % 64 == 0 for t in staged.device.values())
        assert staged.num_bytes == 64 * sum(-(-f.row_bytes * size // 64) for f in fields)
        assert staging.of(size) is staged


def test_results_come_back_as_they_were_packed() -> None:
    computed = Computed(
        torch.tensor([[3], [1], [2]]),
        torch.tensor([[-0.5], [-1.0], [-2.0]]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
        {"image": torch.arange(15, dtype=torch.uint8).view(3, 5), "flag": torch.tensor([True, False, True])},
    )
    packed = pack(computed)
    assert packed.data.dtype == torch.uint8
    arrays = Readback(CPU).fetch(packed)
    assert arrays["actions"].tolist() == [[3], [1], [2]]
    assert arrays["log_probs"].dtype == np.float32
    assert arrays["value"].tolist() == [1.0, 2.0, 3.0]
    assert arrays["output/image"].tolist() == torch.arange(15).view(3, 5).tolist()
    assert arrays["output/flag"].tolist() == [True, False, True]
