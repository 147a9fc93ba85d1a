"""The runtime on a CUDA device: the same memory and the same actions as on the CPU. `make gpu` runs it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import Row
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def make(family: str) -> Policy:
    torch.manual_seed(1)
    if family == "atari":
        return AtariPolicy(AtariConfig(game="breakout", num_actions=4, width=8)).eval()
    return TinyRecurrentPolicy(TinyRecurrentConfig()).eval()


def play(policy: Policy, device: str) -> tuple[list[Any], list[Any], Any]:
    """Run ragged batches of three slots for 20 rounds."""
    factory = RuntimeFactory(slots=4, max_batch=4, buckets=[1, 2, 4], device=device)
    policy = copy.deepcopy(policy).to(device)
    spec = dataclasses.replace(policy.spec(), name="p", version="1")
    loaded = factory.make(spec, policy, factory.pool(policy))
    rng = np.random.default_rng(0)
    actions, log_probs, steps = [], [], [0, 0, 0]
    for t in range(20):
        rows = []
        for i in range(3):
            inputs = {x.name: rng.integers(0, 256, x.shape).astype(x.numpy_dtype) for x in spec.inputs}
            if (t + i) % 3:
                rows.append(Row(i + 1, steps[i] == 0, inputs, (t % 4,), i, steps[i], 1.0, argmax=False))
                steps[i] += 1
        result = loaded.runtime.run(rows, want_log_prob=True)
        actions.append(result.actions)
        assert result.log_probs is not None
        log_probs.append(result.log_probs)
    return actions, log_probs, loaded.pool.export_slot(1)


@pytest.mark.parametrize("family", ["atari", "tiny_recurrent"])
def test_a_cuda_device_plays_as_the_cpu_does(family: str) -> None:
    policy = make(family)
    actions, log_probs, _ = play(policy, "cpu")
    cuda_actions, cuda_log_probs, blob = play(policy, "cuda")
    assert cuda_actions == actions
    for a, b in zip(log_probs, cuda_log_probs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert blob.keys() == policy.state_layout().keys()
