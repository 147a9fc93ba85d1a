"""Finds wire-breaking changes between two descriptor sets, and keeps the baseline.

A break is allowed only when a line of CHANGELOG.md's Unreleased section that begins with "- wire:" names its subject
(``- wire: Step.ticks is uint64 ...``). Names count as wire: manifests and the Node client read protobuf's JSON.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

__all__ = ["BASELINE", "Break", "breaks", "current", "unnamed", "wire_lines"]

REPOSITORY = Path(__file__).resolve().parents[2]
BASELINE = REPOSITORY / "tests/proto/baseline.binpb"
CHANGELOG = REPOSITORY / "CHANGELOG.md"
PROTO_ROOT = REPOSITORY / "proto"


@dataclass(frozen=True, slots=True, order=True)
class Break:
    """One incompatible change: `subject` without the package ("Step.ticks"), and what happened to it."""

    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"


def current() -> pb.FileDescriptorSet:
    """Return the descriptors of the committed generated code."""
    result = pb.FileDescriptorSet()
    for path in sorted((PROTO_ROOT / "playserve/v1").rglob("*.proto")):
        name = path.relative_to(PROTO_ROOT).with_suffix("").as_posix().replace("/", ".") + "_pb2"
        importlib.import_module(name).DESCRIPTOR.CopyToProto(result.file.add())
    return result


def breaks(old: pb.FileDescriptorSet, new: pb.FileDescriptorSet) -> list[Break]:
    """Return every change from `old` to `new` that a peer built on `old` would notice, sorted."""
    found: list[Break] = []
    old_messages, new_messages = dict(_messages(old)), dict(_messages(new))
    for name, message in old_messages.items():
        if name in new_messages:
            found += _field_breaks(name, message, new_messages[name])
        else:
            found.append(Break(name, "message removed"))
    old_enums, new_enums = dict(_enums(old)), dict(_enums(new))
    for name, enum in old_enums.items():
        if name in new_enums:
            found += _value_breaks(name, enum, new_enums[name])
        else:
            found.append(Break(name, "enum removed"))
    old_services = {service.name: service for file in old.file for service in file.service}
    new_services = {service.name: service for file in new.file for service in file.service}
    for name, service in old_services.items():
        if name in new_services:
            found += _method_breaks(name, service, new_services[name])
        else:
            found.append(Break(name, "service removed"))
    return sorted(found)


def _field_breaks(name: str, old: pb.DescriptorProto, new: pb.DescriptorProto) -> Iterator[Break]:
    by_number = {field.number: field for field in new.field}
    by_name = {field.name: field for field in new.field}
    for field in old.field:
        subject = f"{name}.{field.name}"
        if field.name in by_name and by_name[field.name].number != field.number:
            yield Break(subject, f"number {field.number} became {by_name[field.name].number}")
            continue
        if field.number not in by_number:
            yield Break(subject, f"field {field.number} removed")
            continue
        after = by_number[field.number]
        if after.name != field.name:
            yield Break(subject, f"field {field.number} renamed to {after.name}")
        if (before_type := _type(field)) != (after_type := _type(after)):
            yield Break(subject, f"type {before_type} became {after_type}")
        if (before_label := _label(field)) != (after_label := _label(after)):
            yield Break(subject, f"label {before_label} became {after_label}")
        if (before_oneof := _oneof(old, field)) != (after_oneof := _oneof(new, after)):
            yield Break(subject, f"oneof {before_oneof} became {after_oneof}")


def _value_breaks(name: str, old: pb.EnumDescriptorProto, new: pb.EnumDescriptorProto) -> Iterator[Break]:
    by_number = {value.number: value.name for value in new.value}
    by_name = {value.name: value.number for value in new.value}
    for value in old.value:
        subject = f"{name}.{value.name}"
        if by_name.get(value.name, value.number) != value.number:
            yield Break(subject, f"number {value.number} became {by_name[value.name]}")
        elif value.number not in by_number:
            yield Break(subject, f"value {value.number} removed")
        elif by_number[value.number] != value.name:
            yield Break(subject, f"value {value.number} renamed to {by_number[value.number]}")


def _method_breaks(name: str, old: pb.ServiceDescriptorProto, new: pb.ServiceDescriptorProto) -> Iterator[Break]:
    by_name = {method.name: method for method in new.method}
    for method in old.method:
        subject = f"{name}.{method.name}"
        after = by_name.get(method.name)
        if after is None:
            yield Break(subject, "rpc removed")
            continue
        for side, before, now in zip(("request", "response"), _sides(method), _sides(after), strict=True):
            if before != now:
                yield Break(subject, f"{side} {before} became {now}")


def _sides(method: pb.MethodDescriptorProto) -> tuple[str, str]:
    up = ("stream " if method.client_streaming else "") + _short(method.input_type)
    down = ("stream " if method.server_streaming else "") + _short(method.output_type)
    return up, down


def _type(field: pb.FieldDescriptorProto) -> str:
    return _short(field.type_name) or pb.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _label(field: pb.FieldDescriptorProto) -> str:
    if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
        return "repeated"
    return "optional" if field.proto3_optional else "singular"


def _oneof(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    # proto3's `optional` makes a oneof of its own, which _label tells already.
    if not field.HasField("oneof_index") or field.proto3_optional:
        return "none"
    return message.oneof_decl[field.oneof_index].name


def _short(full_name: str) -> str:
    return re.sub(r"^\.?playserve\.v\d+\.", "", full_name).removeprefix(".")


def _messages(files: pb.FileDescriptorSet) -> Iterator[tuple[str, pb.DescriptorProto]]:
    for file in files.file:
        yield from _nested("", file.message_type)


def _nested(prefix: str, messages: Iterable[pb.DescriptorProto]) -> Iterator[tuple[str, pb.DescriptorProto]]:
    for message in messages:
        yield prefix + message.name, message
        yield from _nested(f"{prefix}{message.name}.", message.nested_type)


def _enums(files: pb.FileDescriptorSet) -> Iterator[tuple[str, pb.EnumDescriptorProto]]:
    for file in files.file:
        for enum in file.enum_type:
            yield enum.name, enum
    for name, message in _messages(files):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def wire_lines(changelog: str) -> list[str]:
    """Return the "- wire:" entries of the Unreleased section, continuation lines joined."""
    section = re.search(r"^## \[?Unreleased\]?.*?$(.*?)(?=^## |\Z)", changelog, re.M | re.S | re.I)
    if section is None:
        return []
    entries = re.findall(r"^- wire:(.*?)(?=^- |^#|^\s*$|\Z)", section[1], re.M | re.S)
    return [" ".join(entry.split()) for entry in entries]


def unnamed(found: Iterable[Break], changelog: str) -> list[Break]:
    """Return the breaks whose subject no "- wire:" entry of the changelog names."""
    words = {word.strip("`'\".,:;()") for line in wire_lines(changelog) for word in line.split()}
    return [item for item in found if item.subject not in words]


def main() -> int:
    """Print the breaks since the baseline; with --update, make today's wire the baseline."""
    parser = argparse.ArgumentParser(description="Compare the wire with its baseline.")
    parser.add_argument("--update", action="store_true", help="write the baseline anew")
    args = parser.parse_args()
    now = current()
    old = pb.FileDescriptorSet.FromString(BASELINE.read_bytes()) if BASELINE.exists() else pb.FileDescriptorSet()
    found = breaks(old, now)
    for item in found:
        print(f"wirecheck: {item}")
    if left := unnamed(found, CHANGELOG.read_text(encoding="utf-8")):
        print(f"wirecheck: CHANGELOG.md names no '- wire:' entry for {', '.join(item.subject for item in left)}")
        return 1
    if args.update:
        BASELINE.write_bytes(now.SerializeToString(deterministic=True))
        print(f"wirecheck: wrote {BASELINE.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
