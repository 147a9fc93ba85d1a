"""The Open Inference Protocol on our own port, by an unmodified tritonclient: what is ours alone about it.

What it has in common with a real Triton is in tests/contract/test_oip.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from triton_requests import frame, inputs, outputs_of
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from playserve.errors import from_rpc_error
from playserve.settings import Extras, Pace
from playserve_client.aio import PolicyClient
from playserve_services.auth.keyring import KeyFile
from playserve_services.auth.keys import Quota, Scope, issue_key
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

POLICY = "memory"
_SHAPE = (8, 8)


def _policy() -> TinyRecurrentPolicy:
    return TinyRecurrentPolicy(TinyRecurrentConfig(hidden=6))


async def _served(**settings: Any) -> InferenceServer:
    return InferenceServer(ServeSettings(port=0, slots=4, **settings), {POLICY: _policy})


@pytest.fixture
async def server() -> AsyncIterator[InferenceServer]:
    async with await _served() as running:
        yield running


@pytest.fixture
async def client(server: InferenceServer) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as made:
        yield made


@pytest.fixture
async def stub(server: InferenceServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _observation(number: int) -> np.ndarray[Any, Any]:
    return frame(number, *_SHAPE)


async def _step(client: Any, number: int, *, sequence: Any = 3, start: bool | None = None, **options: Any) -> Any:
    tensors = options.pop("tensors", None) or inputs(observation=_observation(number), seed=5)
    return await client.infer(
        POLICY, tensors, sequence_id=sequence, sequence_start=number == 0 if start is None else start, **options
    )


async def test_a_sequence_is_a_session_in_lockstep(server: InferenceServer, client: Any) -> None:
    """What tritonclient's users get is what players get."""
    found = [outputs_of(await _step(client, n)) for n in range(5)]
    async with (
        PolicyClient(f"127.0.0.1:{server.port}") as player,
        player.play(POLICY, pace=Pace.LOCKSTEP, seed=5, extras=Extras(log_prob=True)) as session,
    ):
        for n in range(5):
            await session.send_step({"observation": _observation(n)})
            result = await session.recv(30.0)
            assert [result.action] == found[n]["action"]
            assert list(result.log_prob) == found[n]["log_prob"]


async def test_only_the_outputs_that_are_asked_for_come(client: Any) -> None:
    await _step(client, 0)
    result = await _step(client, 1, outputs=[InferRequestedOutput("action")], request_id="mine")
    assert list(outputs_of(result)) == ["action"]
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine", POLICY, "1")


async def test_the_most_probable_action_can_be_asked_for(client: Any) -> None:
    picked = []
    for seed in range(6):
        tensors = inputs(observation=_observation(0), seed=seed)
        picked.append(outputs_of(await _step(client, 0, tensors=tensors, parameters={"argmax": True}))["action"])
    assert all(action == picked[0] for action in picked)


async def test_typed_contents_are_as_good_as_raw_ones(client: Any, stub: Any) -> None:
    expected = outputs_of(await _step(client, 0))
    request = service_pb2.ModelInferRequest(model_name=POLICY)
    request.parameters["sequence_id"].int64_param = 3
    request.parameters["sequence_start"].bool_param = True
    tensor = request.inputs.add(name="observation", datatype="UINT8", shape=(1, *_SHAPE))
    tensor.contents.uint_contents.extend(_observation(0).flatten().tolist())
    request.inputs.add(name="seed", datatype="UINT64", shape=(1, 1)).contents.uint64_contents.append(5)
    response = await stub.ModelInfer(request)
    assert np.frombuffer(response.raw_output_contents[0], np.int64).tolist() == expected["action"]
    tensor.contents.uint_contents[0] = 256
    await _refused(stub.ModelInfer(request), "OUT_OF_BOUNDS", "elements from")
    tensor.contents.uint_contents[0] = 1
    tensor.contents.uint_contents.append(1)
    await _refused(stub.ModelInfer(request), "SIZE_MISMATCH", "65 elements")
    request.raw_input_contents.extend([b"", b""])
    await _refused(stub.ModelInfer(request), "SIZE_MISMATCH", "beside raw_input_contents")


async def _refused(call: Any, reason: str, text: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert error.reason == reason
    assert text in str(error)


def _shared(name: str) -> list[Any]:
    tensor = InferInput(name, (1, *_SHAPE), "UINT8")
    tensor.set_shared_memory("region", 64)
    return [tensor]


_BAD: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "unknown parameter": (
        lambda: {"parameters": {"temperature": 2.0}}, "INVALID_ARGUMENT", "parameter 'temperature' is unknown",
    ),
    "parameter of another type": (
        lambda: {"parameters": {"argmax": "yes"}}, "INVALID_ARGUMENT", "is a string_param, wanted bool_param",
    ),
    "priority": (lambda: {"priority": 3}, "INVALID_ARGUMENT", "no priorities here"),
    "negative timeout": (lambda: {"timeout": -1}, "INVALID_ARGUMENT", "timeout of -1"),
    "sequence id": (lambda: {"sequence": "x" * 129}, "INVALID_ARGUMENT", "sequence_id of 129 bytes"),
    "shared memory": (lambda: {"tensors": _shared("observation")}, "UNIMPLEMENTED", "shared memory is not served"),
    "input twice": (
        lambda: {"tensors": [*inputs(observation=_observation(1)), *inputs(observation=_observation(1))]},
        "INVALID_ARGUMENT", "came twice",
    ),
    "instruction where none is taken": (
        lambda: {"tensors": inputs(observation=_observation(1), instruction="go")}, "INVALID_ARGUMENT", "is unknown",
    ),
    "classes": (
        lambda: {"outputs": [InferRequestedOutput("action", class_count=3)]}, "UNIMPLEMENTED", "classification",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", _BAD)
async def test_a_bad_request_costs_only_itself(server: InferenceServer, client: Any, what: str) -> None:
    make, code, text = _BAD[what]
    expected = [outputs_of(await _step(client, n)) for n in range(3)]
    for n in range(3):
        with pytest.raises(InferenceServerException, match=text) as caught:
            await _step(client, n, **make())
        assert caught.value.status() == f"StatusCode.{code}"
        assert outputs_of(await _step(client, n)) == expected[n]
    assert len(server.core) == 1


async def test_answers_of_a_stream_come_in_the_order_of_its_requests(server: InferenceServer, client: Any) -> None:
    alone = [outputs_of(await _step(client, n, sequence=1)) for n in range(4)]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for n in range(4):
            for sequence in (1, 2, 3):
                tensors = inputs(observation=_observation(n), seed=5)
                yield {
                    "model_name": POLICY, "inputs": tensors, "sequence_id": sequence, "sequence_start": n == 0,
                    "sequence_end": n == 3, "request_id": f"{sequence}/{n}",
                }  # fmt: skip
        yield {
            "model_name": POLICY,
            "inputs": inputs(observation=_observation(0)),
            "sequence_id": 9,
            "request_id": "bad",
        }

    found = [(result, error) async for result, error in client.stream_infer(requests())]
    assert "[BAD_SETTING]" in str(found[-1][1])
    assert all(error is None for _, error in found[:-1])
    ids = [result.get_response().id for result, _ in found[:-1]]
    assert ids == [f"{sequence}/{n}" for n in range(4) for sequence in (1, 2, 3)]
    assert [outputs_of(result)["action"] for result, _ in found[:12:3]] == [one["action"] for one in alone]
    assert len(server.core) == 0


async def test_a_stream_can_be_told_to_end_at_the_first_error(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "nobody", "inputs": inputs(observation=_observation(0)), "sequence_id": 9}
        await asyncio.sleep(30)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in client.stream_infer(requests(), headers={"triton_grpc_error": "true"}):
            pass
    assert from_rpc_error(caught.value).reason == "POLICY_NOT_FOUND"


async def test_an_answer_says_that_it_is_the_last_one_where_that_is_asked(stub: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name=POLICY)
    request.parameters["sequence_id"].string_param = "mine"
    request.parameters["sequence_start"].bool_param = True
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.inputs.add(name="observation", datatype="UINT8", shape=(1, *_SHAPE))
    request.raw_input_contents.append(_observation(0).tobytes())
    call = stub.ModelStreamInfer()
    await call.write(request)
    answer = await call.read()
    assert answer.infer_response.parameters["triton_final_response"].bool_param is True
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_sequences_outlive_their_streams(server: InferenceServer, client: Any) -> None:
    expected = [outputs_of(await _step(client, n, sequence=1)) for n in range(3)]

    async def one(n: int) -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": POLICY, "inputs": inputs(observation=_observation(n), seed=5), "sequence_id": 2,
            "sequence_start": n == 0,
        }  # fmt: skip

    found = [outputs_of(result) for n in range(3) async for result, _ in client.stream_infer(one(n))]
    assert found == expected
    assert len(server.core) == 2


async def test_the_server_says_what_it_is(server: InferenceServer, client: Any) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready(POLICY)
    assert not await client.is_model_ready(POLICY, "7")
    about = await client.get_server_metadata()
    assert about.name == "playserve"
    assert "sequence(string_id)" in about.extensions
    (entry,) = (await client.get_model_repository_index()).models
    assert (entry.name, entry.version, entry.state) == (POLICY, "1", "READY")
    config = (await client.get_model_config(POLICY)).config
    assert (config.backend, config.max_batch_size) == ("playserve", server.core.limits.max_batch)
    assert config.sequence_batching.max_sequence_idle_microseconds == 60_000_000
    assert config.sequence_batching.oldest.max_candidate_sequences == 4
    await _step(client, 0)
    (stats,) = (await client.get_inference_statistics()).model_stats
    assert (stats.name, stats.inference_count, stats.inference_stats.success.count) == (POLICY, 1, 1)
    server.core.start_drain()
    assert not await client.is_server_ready()


async def test_what_is_not_served_is_said(client: Any, stub: Any) -> None:
    for call in (
        client.load_model(POLICY), client.unload_model(POLICY), client.get_system_shared_memory_status(),
        client.get_trace_settings(), client.get_log_settings(),
    ):  # fmt: skip
        with pytest.raises(InferenceServerException, match="is not served here") as caught:
            await call
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    await _refused(stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(repository_name="x")), "NOT_IMPLEMENTED", "")
    with pytest.raises(InferenceServerException, match="no policy 'nobody'"):
        await client.get_model_metadata("nobody")


async def test_reflection_knows_the_protocol(server: InferenceServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService")
        )
        answer = await call.read()
        assert answer.file_descriptor_response.file_descriptor_proto
        await call.done_writing()


async def test_a_request_larger_than_the_server_takes_is_refused_before_it_is_read() -> None:
    async with await _served(max_message_mb=1) as server:
        async with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            big = np.zeros((2048, 1024), np.uint8)
            with pytest.raises(InferenceServerException) as caught:
                await _step(client, 0, tensors=inputs(observation=big))
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            await _step(client, 0)


async def test_a_silent_sequence_expires() -> None:
    async with (
        await _served(idle_timeout_s=0.2) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        config = (await client.get_model_config(POLICY)).config
        assert config.sequence_batching.max_sequence_idle_microseconds == 200_000
        await _step(client, 0)
        async with asyncio.timeout(30):
            while len(server.core):  # noqa: ASYNC110 - the server's own ticker ends it
                await asyncio.sleep(0.05)
        with pytest.raises(InferenceServerException, match="silent too long"):
            await _step(client, 1)


async def test_keys_scopes_and_quotas_are_those_of_sessions(tmp_path: Path) -> None:
    file, texts = KeyFile(tmp_path / "keys.json"), {}
    for name, scope, quota in (("ann", "play", None), ("bob", "play", Quota(sessions=1)), ("cat", "rollout", None)):
        text, kept = issue_key(name, frozenset({Scope(scope)}), quota)
        texts[name] = {"authorization": f"Bearer {text}"}
        file.change(lambda keys, kept=kept: [*keys, kept], missing_ok=True)
    async with (
        await _served(keys=file.path) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        for call, code in (
            (client.get_server_metadata(), "UNAUTHENTICATED"),
            (_step(client, 0), "UNAUTHENTICATED"),
            (_step(client, 0, headers=texts["cat"]), "PERMISSION_DENIED"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                await call
            assert caught.value.status() == f"StatusCode.{code}"
        await client.get_server_metadata(headers=texts["cat"])
        await _step(client, 0, headers=texts["ann"])
        with pytest.raises(InferenceServerException, match="START"):  # ann's is nobody else's
            await _step(client, 1, headers=texts["bob"])
        await _step(client, 0, headers=texts["bob"])
        with pytest.raises(InferenceServerException) as caught:
            await _step(client, 0, sequence=4, headers=texts["bob"])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert sorted(session.principal for session in server.core.sessions()) == ["ann", "bob"]
