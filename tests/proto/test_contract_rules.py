"""The contract follows buf's standard names and comments on everything, checked on what protoc itself says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2 as pb

pytest.importorskip("grpc_tools")
import protogen

SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
PASCAL = re.compile(r"([A-Z][a-z0-9]*)+")
UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[pb.FileDescriptorProto]:
    path: Path = tmp_path_factory.mktemp("descriptors") / "wire.binpb"
    protogen.describe(path)
    return list(pb.FileDescriptorSet.FromString(path.read_bytes()).file)


def messages(files: list[pb.FileDescriptorProto]) -> Iterator[tuple[str, pb.DescriptorProto]]:
    def walk(prefix: str, found: list[pb.DescriptorProto]) -> Iterator[tuple[str, pb.DescriptorProto]]:
        for message in found:
            if not message.options.map_entry:
                yield prefix + message.name, message
                yield from walk(f"{prefix}{message.name}.", list(message.nested_type))

    for file in files:
        yield from walk("", list(file.message_type))


def enums(files: list[pb.FileDescriptorProto]) -> Iterator[pb.EnumDescriptorProto]:
    for file in files:
        yield from file.enum_type
    for _, message in messages(files):
        yield from message.enum_type


def methods(files: list[pb.FileDescriptorProto]) -> list[pb.MethodDescriptorProto]:
    return [method for file in files for service in file.service for method in service.method]


def test_files_lie_where_their_package_says(files: list[pb.FileDescriptorProto]) -> None:
    assert files
    for file in files:
        folder, _, name = file.name.rpartition("/")
        assert folder == file.package.replace(".", "/")
        assert SNAKE.fullmatch(name.removesuffix(".proto")), name
        assert re.fullmatch(r"playserve(\.[a-z]+)*\.v\d+", file.package)
        assert file.syntax == "proto3"
        assert bool(file.service) == name.endswith("_service.proto"), f"{name}: services live in *_service.proto"


def test_enums_have_an_unspecified_zero_and_prefixed_values(files: list[pb.FileDescriptorProto]) -> None:
    for enum in enums(files):
        assert PASCAL.fullmatch(enum.name)
        zero = enum.value[0]
        assert zero.number == 0, enum.name
        prefix = zero.name.removesuffix("_UNSPECIFIED")
        assert prefix != zero.name, f"{enum.name}: {zero.name} does not end in _UNSPECIFIED"
        # The field writes "dtype" as one word, so DType's prefix is DTYPE_ and not D_TYPE_.
        assert prefix.replace("_", "") == enum.name.upper(), f"{enum.name}: prefix {prefix}"
        for value in enum.value:
            assert UPPER_SNAKE.fullmatch(value.name), value.name
            assert value.name.startswith(prefix + "_"), value.name


def test_services_and_their_requests_are_named_after_each_other(files: list[pb.FileDescriptorProto]) -> None:
    for file in files:
        for service in file.service:
            assert PASCAL.fullmatch(service.name)
            assert service.name.endswith("Service")
            for method in service.method:
                assert PASCAL.fullmatch(method.name)
                assert method.input_type == f".{file.package}.{method.name}Request"
                assert method.output_type == f".{file.package}.{method.name}Response"
    used = [name for method in methods(files) for name in (method.input_type, method.output_type)]
    assert len(set(used)) == len(used), "a request or a response serves two methods"


def test_messages_fields_and_oneofs_have_standard_names(files: list[pb.FileDescriptorProto]) -> None:
    for name, message in messages(files):
        assert PASCAL.fullmatch(message.name), name
        for field in message.field:
            assert SNAKE.fullmatch(field.name), f"{name}.{field.name}"
        for oneof in message.oneof_decl:
            assert SNAKE.fullmatch(oneof.name.removeprefix("_")), f"{name}.{oneof.name}"


def test_bulk_data_is_bytes(files: list[pb.FileDescriptorProto]) -> None:
    names = [field.name for _, message in messages(files) for field in message.field if field.name == "data"]
    kinds = {field.type for _, message in messages(files) for field in message.field if field.name == "data"}
    assert names
    assert kinds == {pb.FieldDescriptorProto.TYPE_BYTES}


def _uncommented(file: pb.FileDescriptorProto) -> Iterator[str]:
    """Yield each declaration of `file` that has no leading comment, as "<kind> <name>"."""
    commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}

    def message_parts(path: tuple[int, ...], prefix: str, message: pb.DescriptorProto) -> Iterator[tuple[object, str]]:
        name = prefix + message.name
        yield path, f"message {name}"
        for index, field in enumerate(message.field):
            yield (*path, 2, index), f"field {name}.{field.name}"
        for index, oneof in enumerate(message.oneof_decl):
            synthetic = oneof.name.startswith("_")  # made by protoc for `optional`
            if not synthetic:
                yield (*path, 8, index), f"oneof {name}.{oneof.name}"
        for index, enum in enumerate(message.enum_type):
            yield from enum_parts((*path, 4, index), f"{name}.", enum)
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from message_parts((*path, 3, index), f"{name}.", nested)

    def enum_parts(path: tuple[int, ...], prefix: str, enum: pb.EnumDescriptorProto) -> Iterator[tuple[object, str]]:
        yield path, f"enum {prefix}{enum.name}"
        for index, value in enumerate(enum.value):
            yield (*path, 2, index), f"value {value.name}"

    def parts() -> Iterator[tuple[object, str]]:
        for index, message in enumerate(file.message_type):
            yield from message_parts((4, index), "", message)
        for index, enum in enumerate(file.enum_type):
            yield from enum_parts((5, index), "", enum)
        for index, service in enumerate(file.service):
            yield (6, index), f"service {service.name}"
            for number, method in enumerate(service.method):
                yield (6, index, 2, number), f"rpc {service.name}.{method.name}"

    return (name for path, name in parts() if path not in commented)


def test_everything_has_a_comment(files: list[pb.FileDescriptorProto]) -> None:
    assert [f"{file.name}: {name}" for file in files for name in _uncommented(file)] == []


def test_every_file_says_what_it_is_for(files: list[pb.FileDescriptorProto]) -> None:
    for file in files:
        syntax = [place for place in file.source_code_info.location if list(place.path) == [12]]
        assert syntax, file.name
        assert syntax[0].leading_comments.strip(), f"{file.name} begins without a comment"


def test_the_comment_check_sees_a_missing_comment(files: list[pb.FileDescriptorProto]) -> None:
    file = next(file for file in files if file.service)
    stripped = pb.FileDescriptorProto()
    stripped.CopyFrom(file)
    for place in stripped.source_code_info.location:
        if list(place.path) == [6, 0, 2, 0]:
            place.ClearField("leading_comments")
    service = file.service[0]
    assert list(_uncommented(stripped)) == [f"rpc {service.name}.{service.method[0].name}"]
