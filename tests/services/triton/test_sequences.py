"""Sequences of plain Triton clients: what each remembers, who makes room, and how a real Triton plays them."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client
from tiny_p2p import POLICY
from triton_models import triton_server
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from playserve.errors import StateError
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import TorchRuntime
from playserve_services.triton.host import HostSettings
from playserve_services.triton.repository import export_sequence
from playserve_services.triton.sequences import Sequences, SequenceStep
from playserve_trainer.store import CheckpointStore, Entry


def _runtime(store: Path, slots: int = 2) -> TorchRuntime:
    factory = RuntimeFactory(slots=slots, max_batch=4)
    policy, spec = factory.read(CheckpointStore(store), Entry(POLICY, "1"), store)
    return factory.make_runtime(spec, policy, factory.pool(policy))


def _frame(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def _step(runtime: TorchRuntime, sequence: int, number: int, **flags: Any) -> SequenceStep:
    name = runtime.spec.inputs[0].name
    return SequenceStep(
        sequence, flags.pop("start", number == 0), flags.pop("end", False), {name: _frame(number)}, **flags
    )


def _actions(found: Sequence[Any]) -> list[list[int]]:
    return [outputs["action"].tolist() for outputs in found]


def test_a_sequence_does_not_depend_on_the_others(tiny_store: Path) -> None:
    runtime = _runtime(tiny_store)
    together, alone = Sequences(runtime), Sequences(_runtime(tiny_store))
    for number in range(6):
        pair = together.step([_step(runtime, 7, number, seed=3), _step(runtime, 8, 50 + number, start=number == 0)])
        (single,) = alone.step([_step(runtime, 7, number, seed=3)])
        assert isinstance(single, dict)
        assert _actions(pair)[0] == single["action"].tolist()


def test_the_end_of_a_sequence_frees_its_slot_and_the_start_empties_its_memory(tiny_store: Path) -> None:
    runtime = _runtime(tiny_store)
    sequences = Sequences(runtime)
    first = [_actions(sequences.step([_step(runtime, 7, n, end=n == 2)]))[0] for n in range(3)]
    assert (len(sequences), runtime.pool.used) == (0, 0)
    assert [_actions(sequences.step([_step(runtime, 7, n)]))[0] for n in range(3)] == first


def test_who_was_silent_longest_makes_room_and_is_told_so(tiny_store: Path) -> None:
    runtime = _runtime(tiny_store, slots=2)
    sequences = Sequences(runtime)
    for number, sequence in enumerate((1, 2)):
        sequences.step([_step(runtime, sequence, number, start=True)])
    sequences.step([_step(runtime, 1, 5)])
    sequences.step([_step(runtime, 3, 6, start=True)])  # instead of 2
    gone, stays = sequences.step([_step(runtime, 2, 7), _step(runtime, 1, 8)])
    assert isinstance(gone, StateError)
    assert "sequence 2 has no memory here" in str(gone)
    assert isinstance(stays, dict)


@pytest.fixture(scope="module")
def sequence_server(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("sequences")
    settings = HostSettings(policy=POLICY, store=str(tiny_store), slots=4, max_batch=4)
    model = export_sequence(settings, root / "models", version="1")
    assert (model / "1" / "checkpoint" / "manifest.json").exists()
    with triton_server(root / "models") as address:
        yield address


def _inputs(name: str, number: int, text: str) -> list[client.InferInput]:
    arrays = {
        name: _frame(number)[None], "seed": np.array([[11]], np.uint64),
        "instruction": np.frombuffer(text.encode(), np.uint8)[None],
    }  # fmt: skip
    found = []
    for key, array in arrays.items():
        tensor = client.InferInput(key, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_an_unmodified_triton_client_plays_sequences(sequence_server: str, tiny_store: Path) -> None:
    runtime = _runtime(tiny_store, slots=4)
    name, ours = runtime.spec.inputs[0].name, Sequences(runtime)
    answers: queue.Queue[Any] = queue.Queue()
    with client.InferenceServerClient(sequence_server) as triton:
        triton.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(5):
            for sequence, text in ((21, "go"), (22, "shoot the left one")):  # texts of different lengths
                triton.async_stream_infer(
                    POLICY, _inputs(name, sequence + number, text), sequence_id=sequence, sequence_start=number == 0,
                    sequence_end=number == 4,
                )  # fmt: skip
                result, error = answers.get(timeout=60)
                assert error is None, str(error)
                step = SequenceStep(sequence, number == 0, number == 4, {name: _frame(sequence + number)}, text, 11)
                (expected,) = ours.step([step])
                assert isinstance(expected, dict)
                assert result.as_numpy("action")[0].tolist() == expected["action"].tolist()
                assert result.as_numpy("desktop_action")[0].tobytes() == expected["desktop_action"].tobytes()
        triton.stop_stream()
        with pytest.raises(InferenceServerException, match="must specify the START flag"):
            triton.infer(POLICY, _inputs(name, 0, "go"), sequence_id=99)
