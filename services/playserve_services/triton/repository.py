"""Model repositories for Triton's Python backend: what `playserve triton export` writes.

A **batch** repository serves fronts (`playserve serve --engine triton`): one request a batch, versions out of the
checkpoint store as fronts ask for them. A **sequence** repository serves plain tritonclient users: Triton's own
sequence batcher, one version, its checkpoint inside the repository. ::

    DIR/<policy>/config.pbtxt
    DIR/<policy>/1/model.py                   a few lines: the code is playserve's
    DIR/<policy>/1/checkpoint/                sequence only

Triton's process needs playserve[serve] importable (an image with it installed, or PYTHONPATH).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from playserve.errors import StateError
from playserve.files import write_text
from playserve.specs import PolicySpec
from playserve_services.inference.decoding import num_heads, refuse_world
from playserve_services.triton.host import HostSettings
from playserve_services.triton.sequence_config import add_input, add_output, describe_sequences, triton_dtype
from playserve_services.triton.tensors import BLOB, CONTROL, INPUT, OUTPUT, ROW_TENSORS
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import MANIFEST_NAME, WEIGHTS_NAME
from playserve_trainer.models.policy import INSTRUCTION, TICKS, Policy
from playserve_trainer.store import CheckpointStore

__all__ = ["export_batch", "export_sequence"]

_VERSION = "1"
_MODEL = '''"""Triton calls {name} of playserve, which says what it does."""

import os
import sys

# Triton's interpreter does not read PYTHONPATH by itself.
sys.path += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]

from playserve_services.triton.backend import {name} as TritonPythonModel  # noqa: E402, F401
'''
_IDLE_US = 60_000_000
_QUEUE_DELAY_US = 1_000


def export_batch(settings: HostSettings, out: Path, *, version: str = "") -> Path:
    """Write the repository of a policy for fronts; return the model's folder.

    Args:
        settings: Of the host; name and store say which policy.
        out: Folder of the repository; it may hold other models.
        version: Whose inputs it takes; empty: the newest. Versions of other shapes need a repository of their own.

    Raises:
        StateError: The model is there already.
        PolicyNotFoundError, VersionNotFoundError, DataLossError: As the store's.
    """
    spec, policy, _ = _look(settings, version)
    heads = num_heads(spec, policy)
    config = _config(settings, "fronts of playserve")
    for name, dtype, per_head in ROW_TENSORS:
        add_input(config, name, triton_dtype(np.dtype(dtype)), (-1, heads) if per_head else (-1,))
    for tensor in spec.inputs:
        add_input(config, INPUT + tensor.name, triton_dtype(tensor.numpy_dtype), (-1, *tensor.shape))
    if (text := policy.context_inputs().get(INSTRUCTION)) is not None:
        kind = triton_dtype(torch.empty(0, dtype=text.dtype).numpy().dtype)
        add_input(config, INPUT + INSTRUCTION, kind, (-1, *text.shape))
    for name in (CONTROL, BLOB):
        add_input(config, name, "UINT8", (-1,))
    add_output(config, "actions", "INT64", (-1, heads))
    add_output(config, "log_probs", "FP32", (-1, heads))
    add_output(config, "values", "FP32", (-1,))
    for tensor in spec.outputs:
        add_output(config, OUTPUT + tensor.name, triton_dtype(tensor.numpy_dtype), (-1, *tensor.shape))
    for name in (CONTROL, BLOB):
        add_output(config, name, "UINT8", (-1,))
    return _write(config, out, "BatchModel")


def export_sequence(settings: HostSettings, out: Path, *, version: str = "") -> Path:
    """Write the sequence-batched repository of one version; return the model's folder. Arguments as `export_batch`."""
    spec, policy, found = _look(settings, version)
    with tempfile.TemporaryDirectory() as cache:
        folder = CheckpointStore(settings.store).fetch(settings.policy, found, cache)
        model = _write(_sequence_config(settings, spec, policy), out, "SequenceModel")
        inside = model / _VERSION / "checkpoint"
        inside.mkdir()
        for name in (WEIGHTS_NAME, MANIFEST_NAME):
            shutil.copyfile(folder / name, inside / name)
    return model


def _sequence_config(settings: HostSettings, spec: PolicySpec, policy: Policy) -> triton.ModelConfig:
    config = _config(settings, "plain Triton clients: one sequence an episode, one request a frame")
    config.max_batch_size = settings.max_batch
    describe_sequences(
        config, spec, num_heads(spec, policy), sequences=settings.slots, idle_us=_IDLE_US,
        queue_delay_us=_QUEUE_DELAY_US,
    )  # fmt: skip
    return config


def _look(settings: HostSettings, version: str) -> tuple[PolicySpec, Policy, str]:
    """Return the spec of a version of the store, its policy without weights, and its number; no world's."""
    store = CheckpointStore(settings.store)
    found = store.resolve(settings.policy, version)
    manifest = store.manifest(settings.policy, found)
    refuse_world(manifest.policy_spec(), "there is no Triton model of it")
    policy = checkpoint.outline(manifest)
    if unknown := set(policy.context_inputs()) - {TICKS, INSTRUCTION}:
        raise StateError(f"policy {settings.policy} has context inputs {sorted(unknown)}, which do not travel")
    return manifest.policy_spec(), policy, found


def _config(settings: HostSettings, whom: str) -> triton.ModelConfig:
    config = triton.ModelConfig(name=settings.policy, backend="python", max_batch_size=0)
    # One instance: the memory of all slots lies in its process.
    device = torch.device(settings.device)
    group = config.instance_group.add(count=1, kind="KIND_CPU" if device.type == "cpu" else "KIND_GPU")
    if device.type != "cpu":
        group.gpus.append(device.index or 0)
    for name, value in settings.to_parameters().items():
        config.parameters[name].string_value = value
    config.parameters["serves"].string_value = whom
    return config


def _write(config: triton.ModelConfig, out: Path, name: str) -> Path:
    model = out / str(config.name)
    if model.exists():
        raise StateError(f"{model} is there already: choose another folder, or remove it")
    (model / _VERSION).mkdir(parents=True)
    write_text(model / _VERSION / "model.py", _MODEL.format(name=name))
    write_text(model / "config.pbtxt", text_format.MessageToString(config))
    return model
