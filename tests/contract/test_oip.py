"""The Open Inference Protocol: one unmodified tritonclient against our own port and against a real Triton.

Triton serves what `playserve triton export --sequence` writes of the same policies. Both compute every batch at one
size, so that answers are compared bit for bit, with what our engine computes in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
from contract_kit.servers import serving
from tiny_p2p import POLICY as DESKTOP
from tiny_p2p import tiny_policy
from triton_models import triton_server
from triton_requests import frame, inputs, outputs_of
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from playserve_services.inference.loader import RuntimeFactory
from playserve_services.triton.host import HostSettings
from playserve_services.triton.repository import export_sequence
from playserve_services.triton.sequences import Sequences, SequenceStep
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
from playserve_trainer.store import CheckpointStore, Entry

pytestmark = pytest.mark.timeout(300)

DISCRETE = "recurrent"
_SHAPES = {DESKTOP: (32, 32, 3), DISCRETE: (8, 8)}
_SLOTS, _MAX_BATCH = 4, 4
_BOTH = ["ours", pytest.param("triton", marks=pytest.mark.triton)]


@pytest.fixture(autouse=True)
def bystander() -> None:
    """Nobody plays beside these tests: the contract of PolicyService is another file's."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with one version of each policy."""
    root = tmp_path_factory.mktemp("oip")
    for name, policy in (
        (DESKTOP, tiny_policy()),
        (DISCRETE, TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8, num_actions=6))),
    ):
        checkpoint.save(root / f"made-{name}", policy, Manifest.describe(policy, samples_seen=1))
        CheckpointStore(root / "store").publish(name, root / f"made-{name}")
    return root / "store"


@contextlib.contextmanager
def _triton(store: Path, models: Path) -> Iterator[str]:
    for name in _SHAPES:
        settings = HostSettings(policy=name, store=str(store), slots=_SLOTS, max_batch=_MAX_BATCH, fixed_batch=True)
        export_sequence(settings, models)
    with triton_server(models) as address:
        yield address


@pytest.fixture(scope="module", params=_BOTH)
def address(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of one of the two servers."""
    if request.param == "triton":
        with _triton(store, tmp_path_factory.mktemp("models")) as found:
            yield found
    else:
        flags = ["--slots", str(_SLOTS), "--max-batch", str(_MAX_BATCH), "--fixed-batch"]
        with serving([], "--store", str(store), *flags) as process:
            yield process.address
            assert "Traceback" not in process.log()


@pytest.fixture
def client(address: str) -> Iterator[sync.InferenceServerClient]:
    with sync.InferenceServerClient(address) as made:
        yield made


@pytest.fixture(scope="module")
def expected(store: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that gives the answers to an episode, as our engine computes them here."""
    factory = RuntimeFactory(slots=_SLOTS, max_batch=_MAX_BATCH, buckets=[_MAX_BATCH])
    made: dict[str, Sequences] = {}
    for name in _SHAPES:
        policy, spec = factory.read(CheckpointStore(store), Entry(name, "1"), store)
        made[name] = Sequences(factory.make_runtime(spec, policy, factory.pool(policy)))

    def play(model: str, sequence: int, frames: list[int], **how: Any) -> list[dict[str, Any]]:
        found = []
        for n, number in enumerate(frames):
            arrays = {_INPUT[model]: frame(number, *_SHAPES[model])}
            step = SequenceStep(sequence, n == 0, n == len(frames) - 1, arrays, **how)
            (outputs,) = made[model].step([step])
            assert isinstance(outputs, dict)
            found.append({name: array.tolist() for name, array in outputs.items()})
        return found

    return play


_INPUT = {DESKTOP: "frame", DISCRETE: "observation"}


def _tensors(model: str, number: int, **more: Any) -> list[sync.InferInput]:
    return inputs(**{_INPUT[model]: frame(number, *_SHAPES[model])}, **more)


def _play(client: Any, model: str, sequence: Any, frames: list[int], **more: Any) -> list[dict[str, Any]]:
    """Play an episode by unary calls."""
    options = more.pop("options", {})
    return [
        outputs_of(
            client.infer(
                model,
                _tensors(model, number, **more),
                sequence_id=sequence,
                sequence_start=n == 0,
                sequence_end=n == len(frames) - 1,
                **options,
            )
        )
        for n, number in enumerate(frames)
    ]


# -- what is there ----------------------------------------------------------------------------------------------------


def test_the_server_and_its_models_are_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    for model in _SHAPES:
        assert client.is_model_ready(model)
        assert client.is_model_ready(model, "1")
        assert not client.is_model_ready(model, "9")
    assert not client.is_model_ready("nobody")
    about = client.get_server_metadata()
    assert {"sequence", "model_configuration", "statistics"} <= set(about.extensions)
    index = {(entry.name, entry.version): entry.state for entry in client.get_model_repository_index().models}
    assert index == {(model, "1"): "READY" for model in _SHAPES}


_METADATA = {
    DESKTOP: (
        [("frame", "UINT8", [-1, 32, 32, 3]), ("instruction", "UINT8", [-1, -1]), ("seed", "UINT64", [-1, 1])],
        [("action", "INT64", [-1, 8]), ("log_prob", "FP32", [-1, 8]), ("desktop_action", "UINT8", [-1, -1])],
    ),
    DISCRETE: (
        [("observation", "UINT8", [-1, 8, 8]), ("seed", "UINT64", [-1, 1])],
        [("action", "INT64", [-1, 1]), ("log_prob", "FP32", [-1, 1])],
    ),
}


@pytest.mark.parametrize("model", _METADATA)
def test_models_have_the_same_tensors(client: Any, model: str) -> None:
    found = client.get_model_metadata(model)
    assert (found.name, list(found.versions)) == (model, ["1"])
    for tensors, wanted in zip((found.inputs, found.outputs), _METADATA[model], strict=True):
        assert [(t.name, t.datatype, list(t.shape)) for t in tensors] == wanted


@pytest.mark.parametrize("model", _METADATA)
def test_models_have_the_same_configuration(client: Any, model: str) -> None:
    config = client.get_model_config(model).config
    assert (config.name, config.max_batch_size) == (model, _MAX_BATCH)
    takes, gives = _METADATA[model]
    for tensors, wanted in ((config.input, takes), (config.output, gives)):
        described = [(t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in tensors]
        assert described == [(name, f"TYPE_{kind}", shape[1:]) for name, kind, shape in wanted]
    optional = {tensor.name for tensor in config.input if tensor.optional}
    assert optional == {"seed", "instruction"} & {name for name, _, _ in takes}
    batching = config.sequence_batching
    assert batching.max_sequence_idle_microseconds == 60_000_000
    assert batching.oldest.max_candidate_sequences == _SLOTS
    assert [control.name for control in batching.control_input] == ["START", "END", "CORRID"]


def _alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Assert equal actions; log-probabilities of attention may have another last bit beside mates of other ages."""
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.pop("log_prob"), other.pop("log_prob"), rtol=0, atol=1e-5)
        assert one == other


# -- what is played ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", _SHAPES)
def test_unary_calls_play_a_sequence(client: Any, expected: Any, model: str) -> None:
    frames = list(range(10))  # past the end of the ring
    assert _play(client, model, 21, frames) == expected(model, 21, frames)
    assert _play(client, model, 21, frames, seed=1 << 63) == expected(model, 21, frames, seed=1 << 63)
    best = _play(client, model, 21, frames, options={"parameters": {"argmax": True}})
    assert best == expected(model, 21, frames, argmax=True)


def test_instructions_go_with_the_frames(client: Any, expected: Any) -> None:
    for text in ("shoot the left one", "zurück!"):
        found = _play(client, DESKTOP, 5, [1, 2, 3], instruction=text, seed=4)
        assert found == expected(DESKTOP, 5, [1, 2, 3], instruction=text, seed=4)


def test_a_callback_stream_plays_several_sequences(client: Any, expected: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    sequences, steps, found = (31, 32, 33), 6, {}
    for n in range(steps):
        for sequence in sequences:
            client.async_stream_infer(
                DESKTOP, _tensors(DESKTOP, 100 * sequence + n, seed=sequence), sequence_id=sequence,
                sequence_start=n == 0, sequence_end=n == steps - 1, request_id=f"{sequence}",
            )  # fmt: skip
        for _ in sequences:
            result, error = answers.get(timeout=60)
            assert error is None, str(error)
            found.setdefault(int(result.get_response().id), []).append(outputs_of(result))
    client.stop_stream()
    for sequence in sequences:
        frames = [100 * sequence + n for n in range(steps)]
        _alike(found[sequence], expected(DESKTOP, sequence, frames, seed=sequence))


async def test_an_asyncio_stream_plays_without_waiting(address: str, expected: Any) -> None:
    sequences, steps = (41, 42), 20

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for n in range(steps):
            for sequence in sequences:
                yield {
                    "model_name": DISCRETE, "inputs": _tensors(DISCRETE, 100 * sequence + n), "sequence_id": sequence,
                    "sequence_start": n == 0, "sequence_end": n == steps - 1, "request_id": f"{sequence}/{n}",
                }  # fmt: skip

    async with aio.InferenceServerClient(address) as client:
        found = [(result, error) async for result, error in client.stream_infer(requests())]
    assert all(error is None for _, error in found)
    # Answers come in the order of the requests.
    assert [r.get_response().id for r, _ in found] == [f"{s}/{n}" for n in range(steps) for s in sequences]
    for i, sequence in enumerate(sequences):
        frames = [100 * sequence + n for n in range(steps)]
        assert [outputs_of(r) for r, _ in found[i::2]] == expected(DISCRETE, sequence, frames)


async def test_asyncio_unary_calls_share_batches(address: str, expected: Any) -> None:
    async def one(client: Any, sequence: int) -> list[Any]:
        frames = [100 * sequence + n for n in range(5)]
        return [
            outputs_of(
                await client.infer(
                    DESKTOP,
                    _tensors(DESKTOP, number),
                    sequence_id=sequence,
                    sequence_start=n == 0,
                    sequence_end=n == len(frames) - 1,
                )
            )
            for n, number in enumerate(frames)
        ]

    async with aio.InferenceServerClient(address) as client:
        found = await asyncio.gather(*(one(client, sequence) for sequence in range(51, 55)))
    for sequence, answers in zip(range(51, 55), found, strict=True):
        _alike(answers, expected(DESKTOP, sequence, [100 * sequence + n for n in range(5)]))


def test_a_start_in_the_middle_begins_anew(client: Any, expected: Any) -> None:
    client.infer(DISCRETE, _tensors(DISCRETE, 7), sequence_id=61, sequence_start=True)
    assert _play(client, DISCRETE, 61, [1, 2, 3]) == expected(DISCRETE, 61, [1, 2, 3])


@pytest.mark.parametrize("address", ["ours"], indirect=True)
def test_a_sequence_may_be_named_by_a_text(client: Any, expected: Any) -> None:
    """Of a real Triton only by a number: 2.51 writes a text over the bytes of one (docs/decisions.md, 54)."""
    seeds = {"left": 3, "right": 4, "7": 5, 7: 6}
    found: dict[Any, list[Any]] = {name: [] for name in seeds}
    for n in range(4):
        for name, seed in seeds.items():
            tensors = _tensors(DISCRETE, 10 * seed + n, seed=seed)
            result = client.infer(DISCRETE, tensors, sequence_id=name, sequence_start=n == 0, sequence_end=n == 3)
            found[name].append(outputs_of(result))
    for name, seed in seeds.items():
        assert found[name] == expected(DISCRETE, 1, [10 * seed + n for n in range(4)], seed=seed)


def test_only_the_outputs_that_are_asked_for_come(client: Any) -> None:
    for names in (["action"], ["log_prob", "action"]):
        result = client.infer(
            DISCRETE, _tensors(DISCRETE, 1), sequence_id=62, sequence_start=True, sequence_end=True, request_id="r7",
            outputs=[sync.InferRequestedOutput(name) for name in names],
        )  # fmt: skip
        response = result.get_response()
        assert {output.name for output in response.outputs} == set(names)
        assert (response.id, response.model_name, response.model_version) == ("r7", DISCRETE, "1")


# -- what is refused --------------------------------------------------------------------------------------------------


def _bad_shape() -> list[sync.InferInput]:
    return inputs(observation=frame(1, 8, 9))


def _bad_type() -> list[sync.InferInput]:
    return inputs(observation=np.zeros((8, 8), np.float32))


def _two_rows() -> list[sync.InferInput]:
    tensor = sync.InferInput("observation", (2, 8, 8), "UINT8")
    tensor.set_data_from_numpy(np.zeros((2, 8, 8), np.uint8))
    return [tensor]


def _too_few_bytes() -> list[sync.InferInput]:
    (tensor,) = inputs(observation=frame(1, 8, 8))
    tensor._raw_content = tensor._raw_content[:-1]
    return [tensor]


_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"model": "nobody"}, "NOT_FOUND"),
    "unknown version": ({"version": "9"}, "NOT_FOUND"),
    "missing input": ({"tensors": list}, "INVALID_ARGUMENT"),
    "only another input": ({"tensors": lambda: inputs(seed=3)}, "INVALID_ARGUMENT"),
    "unknown input": (
        {"tensors": lambda: inputs(observation=frame(1, 8, 8), nothing=frame(1, 2))}, "INVALID_ARGUMENT",
    ),
    "wrong shape": ({"tensors": _bad_shape}, "INVALID_ARGUMENT"),
    "wrong type": ({"tensors": _bad_type}, "INVALID_ARGUMENT"),
    "two rows": ({"tensors": _two_rows}, "INVALID_ARGUMENT"),
    "too few bytes": ({"tensors": _too_few_bytes}, "INVALID_ARGUMENT"),
    "unknown output": ({"outputs": "nothing"}, "INVALID_ARGUMENT"),
    "no start": ({"sequence": 79}, "INVALID_ARGUMENT"),
    "no sequence": ({"sequence": 0}, "INVALID_ARGUMENT"),
}  # fmt: skip


def _asked(number: int, **how: Any) -> dict[str, Any]:
    """Return the arguments of frame `number` of sequence 71, spoilt as `how` says."""
    sequence = how.get("sequence", 71)
    found: dict[str, Any] = {
        "model_name": how.get("model", DISCRETE), "model_version": how.get("version", ""), "sequence_id": sequence,
        "inputs": how.get("tensors", lambda: _tensors(DISCRETE, number))(),
        "sequence_start": number == 0 and sequence == 71,
    }  # fmt: skip
    if "outputs" in how:
        found["outputs"] = [sync.InferRequestedOutput(how["outputs"])]
    return found


@pytest.mark.parametrize("what", _REFUSED)
def test_a_request_is_refused_with_the_same_code_and_the_sequence_goes_on(
    client: Any, expected: Any, what: str
) -> None:
    how, code = _REFUSED[what]
    wanted = expected(DISCRETE, 71, [0, 1, 2])
    for number in range(3):
        if number:
            with pytest.raises(InferenceServerException) as caught:
                client.infer(**_asked(number, **how))
            assert caught.value.status() == f"StatusCode.{code}", caught.value.message()
        assert outputs_of(client.infer(**_asked(number))) == wanted[number]


@pytest.mark.parametrize("what", ["unknown model", "wrong shape", "no start"])
async def test_a_bad_request_of_a_stream_costs_only_itself(address: str, expected: Any, what: str) -> None:
    how, _ = _REFUSED[what]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            yield _asked(number)
            if number:
                yield _asked(number, **how)

    async with aio.InferenceServerClient(address) as client:
        found = [(result, error) async for result, error in client.stream_infer(requests())]
    assert [error is None for _, error in found] == [True, True, False, True, False]
    assert [outputs_of(r) for r, error in found if error is None] == expected(DISCRETE, 71, [0, 1, 2])


def test_after_its_end_a_sequence_must_be_begun_again(client: Any) -> None:
    _play(client, DISCRETE, 81, [1, 2])
    with pytest.raises(InferenceServerException, match="must specify the START flag") as caught:
        client.infer(DISCRETE, _tensors(DISCRETE, 1), sequence_id=81)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    _play(client, DISCRETE, 81, [1, 2])


def test_models_that_are_not_there_have_no_metadata(client: Any) -> None:
    for ask in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException) as caught:
            ask("nobody")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException):
        client.get_inference_statistics("nobody")
    client.get_model_metadata(DISCRETE)


def test_statistics_count_the_requests_of_sequences(client: Any) -> None:
    def counts() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics(DISCRETE).model_stats
        assert (stats.name, stats.version) == (DISCRETE, "1")
        assert stats.execution_count <= stats.inference_count
        return stats.inference_count, stats.inference_stats.success.count

    before = counts()
    _play(client, DISCRETE, 91, [1, 2, 3])
    wanted, deadline = (before[0] + 3, before[1] + 3), time.monotonic() + 10.0
    while counts() != wanted and time.monotonic() < deadline:
        time.sleep(0.01)  # Triton counts a request after it has answered it
    assert counts() == wanted
