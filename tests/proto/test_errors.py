"""The error tree: documented, reachable from each gRPC code and reason, and faithful across the wire."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from playserve import errors
from playserve.errors import PlayserveError


def every_class(cls: type[PlayserveError] = PlayserveError) -> list[type[PlayserveError]]:
    # Other packages may derive errors of their own, which never travel.
    subclasses = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return [cls, *(found for sub in subclasses for found in every_class(sub))]


def documented() -> dict[str, tuple[str, str]]:
    """Return {class: (parent, rest of the line)} as the tree of the module's docstring draws it."""
    found: dict[str, tuple[str, str]] = {}
    above: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        if match := re.fullmatch(r"\s{4}((?:[│ ]\s{3})*)(?:[├└]── )?(\w+)(.*)", line):
            depth = len(match[1]) // 4 + ("── " in line)
            above[depth:] = [match[2]]
            found[match[2]] = (above[depth - 1] if depth else "", match[3].strip())
    return found


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_every_grpc_code_has_an_exception(code: grpc.StatusCode) -> None:
    error = errors.from_status(status_pb2.Status(code=code.value[0], message="said"))
    assert str(error) == "said"
    if code is not grpc.StatusCode.OK:
        assert type(error) is not PlayserveError
        assert isinstance(error, PlayserveError)


def test_a_code_that_nobody_knows_is_the_servers_fault() -> None:
    assert type(errors.from_status(status_pb2.Status(code=99))) is errors.ServerFault


@pytest.mark.parametrize("reason", sorted(errors.REASONS))
def test_every_reason_survives_the_wire(reason: str) -> None:
    cls = errors.REASONS[reason]
    status = errors.to_status(cls("what came, what was wanted", retry_after_s=1.5))
    assert status.code == cls.code.value[0]
    back = errors.from_status(status_pb2.Status.FromString(status.SerializeToString()))
    assert type(back) is cls
    assert (str(back), back.reason, back.code, back.retry_after_s) == (
        "what came, what was wanted",
        reason,
        cls.code,
        1.5,
    )


@settings(max_examples=50)
@given(
    message=st.text(max_size=200), retry=st.none() | st.floats(0, 1e6), reason=st.sampled_from(sorted(errors.REASONS))
)
def test_messages_and_delays_round_trip(message: str, retry: float | None, reason: str) -> None:
    back = errors.from_status(errors.to_status(errors.REASONS[reason](message, retry_after_s=retry)))
    assert str(back) == (message or reason)
    assert back.retry_after_s is None if retry is None else back.retry_after_s == pytest.approx(retry, abs=1e-6)


def test_the_docstring_draws_the_whole_tree() -> None:
    tree = documented()
    assert set(tree) == {cls.__name__ for cls in every_class()}
    for cls in every_class()[1:]:
        parent, text = tree[cls.__name__]
        assert cls.__mro__[1].__name__ == parent, cls
        assert cls.__doc__
        if cls.reason:
            assert text.split()[0] == cls.reason, cls
        else:
            assert text.split()[0] == cls.code.name, cls
        if "(code " in text:
            assert f"(code {cls.code.name})" in text, cls


def test_reasons_are_unique_and_every_class_is_public() -> None:
    named = [cls.reason for cls in every_class() if cls.reason]
    assert sorted(named) == sorted(errors.REASONS)
    assert len(set(named)) == len(named)
    assert {cls.__name__ for cls in every_class()} <= set(errors.__all__)


@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_errors_survive_copying(cls: type[PlayserveError]) -> None:
    error = cls("text", retry_after_s=2.0)
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is cls
        assert (str(twin), twin.retry_after_s, twin.code, twin.reason) == ("text", 2.0, cls.code, cls.reason)
    assert str(cls())


def test_a_foreign_reason_is_not_ours() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="POLICY_NOT_FOUND", domain="example.org"))
    assert type(errors.from_status(status)) is errors.NotFoundError


@pytest.mark.parametrize(
    "detail",
    [
        any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff"),
        any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff\xff"),
        any_pb2.Any(type_url="type.googleapis.com/nobody.knows.This", value=b"x"),
    ],
)
def test_a_damaged_detail_in_a_trailer_does_not_hide_the_error(detail: any_pb2.Any) -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="gone", details=[detail])

    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        raise AssertionError

    with serving(fail) as call, pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert isinstance(errors.from_rpc_error(caught.value), errors.NotFoundError)


Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(handler: Handler, *, limit: int = 4096) -> Iterator[Callable[..., bytes]]:
    """Run a server whose one method is `handler`, on raw bytes; yield the call."""
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", limit)])
    methods = {"Call": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    options = [("grpc.max_receive_message_length", limit)]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield channel.unary_unary("/test.Service/Call")
    finally:
        server.stop(None).wait()


def converted(call: Callable[..., bytes], request: bytes, **options: float) -> PlayserveError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, **options)
    return errors.from_rpc_error(caught.value)


def test_a_real_server_that_answers_with_our_status() -> None:
    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        status = errors.to_status(errors.NoFreeSlotError("64 of 64 slots are taken", retry_after_s=3.0))
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, status.message)
        raise AssertionError

    with serving(fail) as call:
        error = converted(call, b"")
    assert type(error) is errors.NoFreeSlotError
    assert error.retry_after_s == 3.0
    assert str(error) == "64 of 64 slots are taken"


def test_messages_too_large_in_either_direction() -> None:
    with serving(lambda request, context: b"x" * 10_000) as call:
        up = converted(call, b"x" * 10_000)
        down = converted(call, b"x")
    assert type(up) is errors.MessageTooLargeError
    assert type(down) is errors.MessageTooLargeError
    assert "10000" in str(up)


def test_a_handler_that_raises_is_the_servers_fault() -> None:
    def broken(request: bytes, context: grpc.ServicerContext) -> bytes:
        raise ZeroDivisionError

    with serving(broken) as call:
        assert type(converted(call, b"")) is errors.ServerFault


def test_no_server_no_method_no_time() -> None:
    with serving(lambda request, context: request) as call:
        pass
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        assert type(converted(channel.unary_unary("/a/B"), b"")) is errors.ServerUnavailableError
    held = futures.Future[bytes]()
    with serving(lambda request, context: held.result()) as call:
        assert type(converted(call, b"", timeout=0.05)) is errors.TimeoutExceededError
        held.set_result(b"")
    with serving(lambda request, context: b"") as call:
        assert call(b"") == b""


async def test_errors_of_the_asyncio_client_convert_too() -> None:
    async def fail(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        status = errors.to_status(errors.PolicyNotFoundError("no policy 'x'"))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(grpc.StatusCode.NOT_FOUND, status.message)
        raise AssertionError

    server = grpc.aio.server()
    methods = {"Call": grpc.unary_unary_rpc_method_handler(fail)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test.Service/Call")(b"")
            assert type(errors.from_rpc_error(caught.value)) is errors.PolicyNotFoundError
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test.Service/Other")(b"")
            assert type(errors.from_rpc_error(caught.value)) is errors.UnsupportedError
    finally:
        await server.stop(None)
