"""The toy environment: its stream, its networks against torch, its command."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from playserve.errors import BadSettingError
from playserve_trainer.causality.toy import Curve, ToySettings, mean_interval, run_toy
from playserve_trainer.causality.toy_nets import WIDTH, Net, NetStack
from playserve_trainer.causality.toy_verdict import judge
from playserve_trainer.causality.toy_world import LIGHT_ONLY, NUM_INPUTS, OBSTACLE_ONLY, Streams, obstacles
from playserve_trainer.commands import causality

_DEPTHS = (4, 3, 3, 2, 1, 1, 0, 0)


def test_obstacles_come_and_go_as_they_would_step_by_step() -> None:
    uniform = np.random.default_rng(0).random((500, 4)) ** 3  # many low draws
    before = np.array([False, True, False, True])
    state, wanted = before.copy(), []
    for row in uniform:
        state = np.where(state, row >= 0.025, row < 0.1)
        wanted.append(state)
    assert np.array_equal(obstacles(uniform, before), np.stack(wanted))


def test_a_stream_is_the_same_in_blocks_of_any_size_and_the_light_shows_the_last_action() -> None:
    whole, parts = Streams((1, 2)), Streams((1, 2))
    inputs, braked = whole.next(4000)
    blocks = [parts.next(n) for n in (1, 999, 3000)]
    assert np.array_equal(np.concatenate([b[0] for b in blocks]), inputs)
    assert np.array_equal(np.concatenate([b[1] for b in blocks]), braked)
    assert np.array_equal(inputs[:, 0], braked)
    assert np.array_equal(inputs[1:, 1], braked[:-1])
    assert not inputs[0, 1].any()
    assert not np.array_equal(inputs[..., 0], inputs[..., 1])
    assert inputs[:, 2:].std() == pytest.approx(1 / np.sqrt(12), abs=0.01)
    # 0.1 / (0.1 + 0.025) of the time there is an obstacle.
    assert Streams((3,)).next(100_000)[1].mean() == pytest.approx(0.8, abs=0.03)


def _torch_twin(stack: NetStack, number: int) -> nn.Sequential:
    """Return a torch network with the weights of one of the stack."""
    net = stack.nets[number]
    layers: list[nn.Module] = []
    for layer in range(net.depth):
        linear = nn.Linear(NUM_INPUTS if layer == 0 else WIDTH, WIDTH, bias=net.bias)
        linear.weight.data = torch.from_numpy(stack.weights[layer][:, :, number].copy())
        if net.bias:
            linear.bias.data = torch.from_numpy(stack.biases[layer][:, number].copy())
        layers += [linear, nn.ReLU()]
    last = nn.Linear(WIDTH if net.depth else NUM_INPUTS, 1, bias=net.bias)
    deep = stack.out_deep.shape[1]
    weight = stack.out_deep[:, number] if net.depth else stack.out_linear[:, number - deep]
    last.weight.data = torch.from_numpy(weight.copy())[None]
    if net.bias:
        last.bias.data = torch.from_numpy(stack.out_bias_N[number : number + 1].copy())
    return nn.Sequential(*layers, last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_the_update_is_torchs_sgd(dtype: type[Any], tolerance: float) -> None:
    nets = [
        Net(depth=depth, bias=number % 2 == 0, lr=0.05 if number % 3 else 0.2, replica=number % 2, seed=number)
        for number, depth in enumerate(_DEPTHS)
    ]
    stack = NetStack(nets, dtype)
    twins = [_torch_twin(stack, number) for number in range(len(nets))]
    inputs, braked = (part.astype(dtype) for part in Streams((5, 6)).next(300))
    replica = np.array([net.replica for net in nets])
    stack.learn(inputs[:, :, replica], braked[:, replica])
    probes = np.array([OBSTACLE_ONLY, LIGHT_ONLY], dtype)
    for number, (net, twin) in enumerate(zip(nets, twins, strict=True)):
        start = twin(torch.from_numpy(probes))[:, 0].detach().numpy().copy()
        sgd = torch.optim.SGD(twin.parameters(), lr=net.lr)
        for x, y in zip(inputs[:, :, net.replica], braked[:, net.replica], strict=True):
            sgd.zero_grad()
            loss = nn.functional.binary_cross_entropy(
                torch.sigmoid(twin(torch.from_numpy(x.copy()))[0]), torch.tensor(y)
            )
            loss.backward()
            sgd.step()
        wanted = twin(torch.from_numpy(probes))[:, 0].detach().numpy()
        assert np.abs(wanted - start).max() > 0.1, "the test is empty where nothing is learnt"
        np.testing.assert_allclose(stack.logits(probes)[:, number], wanted, rtol=0, atol=tolerance * 10)
        for layer in range(net.depth):
            linear = twin[2 * layer]
            assert isinstance(linear, nn.Linear)
            np.testing.assert_allclose(
                stack.weights[layer][:, :, number], linear.weight.detach().numpy(), rtol=0, atol=tolerance
            )
            if net.bias:
                np.testing.assert_allclose(
                    stack.biases[layer][:, number], linear.bias.detach().numpy(), rtol=0, atol=tolerance
                )
            else:
                assert not stack.biases[layer][:, number].any()


def test_initial_weights_are_drawn_as_torch_draws_them() -> None:
    nets = [Net(depth=2, bias=True, lr=1.0, replica=0, seed=seed) for seed in range(300)]
    stack = NetStack(nets, np.float64)
    for array, fan_in in ((stack.weights[0], 5), (stack.weights[1], 10), (stack.biases[1], 10), (stack.out_deep, 10)):
        bound = 1 / np.sqrt(fan_in)
        assert np.abs(array).max() <= bound
        assert np.abs(array).max() > 0.98 * bound
        assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    with pytest.raises(BadSettingError, match="deepest first"):
        NetStack([nets[0], Net(depth=3, bias=True, lr=1.0, replica=0, seed=0)])


def _run(**settings: Any) -> list[Curve]:
    return run_toy(ToySettings(**{"steps": 120, "replicas": 3, "points": 4, "lrs": (0.05,), **settings}))


def test_curves_begin_at_the_initial_weights_and_follow_from_the_seed() -> None:
    curves = _run()
    assert [(c.depth, c.bias) for c in curves] == [(d, b) for d in (4, 3, 2, 1, 0) for b in (True, False)]
    assert curves[0].steps == (0, 30, 60, 90, 120)
    nets = [Net(depth=0, bias=True, lr=0.05, replica=r, seed=r) for r in range(3)]
    stack = NetStack(nets)
    obstacle, light = 1 / (1 + np.exp(-stack.logits(np.array([OBSTACLE_ONLY, LIGHT_ONLY]))))
    linear = next(c for c in curves if c.depth == 0 and c.bias)
    np.testing.assert_allclose(linear.c_PR[0], np.log(obstacle) - np.log(light), atol=1e-6)
    again, other = _run(), _run(seed=1)
    assert all(np.array_equal(a.c_PR, b.c_PR) for a, b in zip(curves, again, strict=True))
    # Replica 1 of one run is replica 0 of the run whose seeds begin one later.
    assert all(np.array_equal(a.c_PR[:, 1:], b.c_PR[:, :2]) for a, b in zip(curves, other, strict=True))
    assert not any(np.array_equal(a.c_PR[1:, 0], a.c_PR[1:, 1]) for a in curves)


def test_an_interval_is_students() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(mean - low) == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)


def _curves(ends: dict[int, float], *, spread: float = 0.1) -> list[Curve]:
    """Return curves that rise evenly to an end, with replicas around it."""
    steps, around = tuple(range(0, 101, 10)), spread * np.array([-1.0, 0.0, 1.0, 0.5, -0.5])
    noise = {depth: np.roll(around, depth) for depth in ends}
    return [
        Curve(depth=d, bias=b, lr=1e-4, steps=steps, c_PR=np.linspace(0, 1, 11)[:, None] * (end + noise[d]))
        for d, end in ends.items()
        for b in (True, False)
    ]


def test_the_verdict_says_what_was_seen() -> None:
    verdict = judge(_curves({4: 5.0, 3: 4.0, 2: 3.0, 1: 2.0, 0: 0.0}))
    assert [entry["steps"] for entry in verdict["depth"]] == [10, 30, 100, 10, 30, 100]
    assert {entry["verdict"] for entry in verdict["depth"]} == {"at every layer"}
    assert verdict["depth"][2]["layers"][1]["mean"] == pytest.approx(1.0)
    assert {entry["verdict"] for entry in verdict["linear"]} == {"makes no progress that can be seen"}
    verdict = judge(_curves({4: 3.0, 3: 3.0, 2: 3.0, 1: 2.0, 0: 1.0}))
    assert {entry["verdict"] for entry in verdict["depth"]} == {"at some layers only"}
    assert [layer["verdict"] for layer in verdict["depth"][0]["layers"]] == ["faster", "faster", "open", "open"]
    assert {entry["verdict"] for entry in verdict["linear"]} == {"makes progress and goes on"}
    verdict = judge(_curves({4: 0.0, 3: 1.0, 2: 2.0, 1: 3.0, 0: -1.0}))
    assert {entry["verdict"] for entry in verdict["depth"]} == {"at no layer"}
    assert "1 to 2 -1.00 [" in verdict["sentences"][2]
    assert "slower" in verdict["sentences"][2]
    assert verdict["depth"][0]["whole"]["verdict"] == "slower"
    assert verdict["bias"][0]["adds"]["2"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert {entry["verdict"] for entry in verdict["linear"]} == {"goes back"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"steps": 0}, "steps is at least 1"), ({"replicas": 1}, "replicas is at least 2"), ({"lrs": ()}, "positive"),
     ({"lrs": (0.1, 0.1)}, "told apart"), ({"dtype": "int8"}, "float32, float64, not 'int8'")],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSettingError, match=said):
        ToySettings(**settings)


def test_the_command_writes_numbers_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="missing package: matplotlib")
    parser = argparse.ArgumentParser()
    causality.configure(parser)
    out = tmp_path / "new" / "toy"
    assert causality.run(parser.parse_args(["toy", "--out", str(out), "--steps", "40", "--replicas", "2"])) == 0
    value = json.loads((out / "toy.json").read_text())
    assert value["settings"]["lrs"] == [1e-4, 1e-2]
    assert len(value["curves"]) == 20
    assert all(len(c["c"]) == 2 and len(c["c"][0]) == len(c["steps"]) == len(c["mean"]) for c in value["curves"])
    assert (out / "toy.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "toy.svg").read_text()
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in value["verdict"]["sentences"])
