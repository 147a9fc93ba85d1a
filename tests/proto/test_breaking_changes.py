"""Wire-breaking changes are found, and each needs a line in the changelog."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import wirecheck
from google.protobuf import descriptor_pb2 as pb
from google.protobuf import text_format

SAMPLE = """
file {
  name: "playserve/v1/sample.proto" package: "playserve.v1" syntax: "proto3"
  message_type {
    name: "Step"
    field { name: "seq" number: 1 type: TYPE_UINT64 label: LABEL_OPTIONAL }
    field { name: "frame" number: 2 type: TYPE_BYTES label: LABEL_OPTIONAL }
    field { name: "index" number: 3 type: TYPE_INT32 label: LABEL_OPTIONAL oneof_index: 0 }
    field { name: "pace" number: 4 type: TYPE_ENUM type_name: ".playserve.v1.Pace" label: LABEL_OPTIONAL }
    oneof_decl { name: "kind" }
    nested_type { name: "Part" field { name: "size" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL } }
  }
  message_type { name: "StepResult" }
  enum_type {
    name: "Pace" value { name: "PACE_UNSPECIFIED" number: 0 } value { name: "PACE_LIVE" number: 1 }
  }
  service {
    name: "PolicyService"
    method { name: "Play" input_type: ".playserve.v1.Step" output_type: ".playserve.v1.StepResult" client_streaming: true server_streaming: true }
  }
}
"""  # noqa: E501


def sample() -> pb.FileDescriptorSet:
    return text_format.Parse(SAMPLE, pb.FileDescriptorSet())


def step(files: pb.FileDescriptorSet) -> pb.DescriptorProto:
    return files.file[0].message_type[0]


def field(files: pb.FileDescriptorSet, name: str) -> pb.FieldDescriptorProto:
    return next(found for found in step(files).field if found.name == name)


def change(number: int) -> Callable[[pb.FileDescriptorSet], object]:
    """Return one of the ways to break SAMPLE, in the order of BROKEN."""
    edits: list[Callable[[pb.FileDescriptorSet], object]] = [
        lambda f: step(f).field.pop(0),
        lambda f: setattr(field(f, "frame"), "number", 9),
        lambda f: setattr(field(f, "frame"), "name", "image"),
        lambda f: setattr(field(f, "seq"), "type", pb.FieldDescriptorProto.TYPE_INT32),
        lambda f: setattr(field(f, "pace"), "type_name", ".playserve.v1.Other"),
        lambda f: setattr(field(f, "frame"), "label", pb.FieldDescriptorProto.LABEL_REPEATED),
        lambda f: setattr(field(f, "seq"), "proto3_optional", True),
        lambda f: field(f, "index").ClearField("oneof_index"),
        lambda f: setattr(field(f, "frame"), "oneof_index", 0),
        lambda f: f.file[0].message_type.pop(1),
        lambda f: step(f).nested_type.pop(),
        lambda f: step(f).nested_type[0].field.pop(),
        lambda f: f.file[0].enum_type[0].value.pop(),
        lambda f: setattr(f.file[0].enum_type[0].value[1], "number", 2),
        lambda f: setattr(f.file[0].enum_type[0].value[1], "name", "PACE_FAST"),
        lambda f: f.file[0].enum_type.pop(),
        lambda f: f.file[0].service.pop(),
        lambda f: f.file[0].service[0].method.pop(),
        lambda f: setattr(f.file[0].service[0].method[0], "client_streaming", False),
        lambda f: setattr(f.file[0].service[0].method[0], "server_streaming", False),
        lambda f: setattr(f.file[0].service[0].method[0], "output_type", ".playserve.v1.Step"),
    ]
    return edits[number]


BROKEN = [
    "Step.seq: field 1 removed",
    "Step.frame: number 2 became 9",
    "Step.frame: field 2 renamed to image",
    "Step.seq: type uint64 became int32",
    "Step.pace: type Pace became Other",
    "Step.frame: label singular became repeated",
    "Step.seq: label singular became optional",
    "Step.index: oneof kind became none",
    "Step.frame: oneof none became kind",
    "StepResult: message removed",
    "Step.Part: message removed",
    "Step.Part.size: field 1 removed",
    "Pace.PACE_LIVE: value 1 removed",
    "Pace.PACE_LIVE: number 1 became 2",
    "Pace.PACE_LIVE: value 1 renamed to PACE_FAST",
    "Pace: enum removed",
    "PolicyService: service removed",
    "PolicyService.Play: rpc removed",
    "PolicyService.Play: request stream Step became Step",
    "PolicyService.Play: response stream StepResult became StepResult",
    "PolicyService.Play: response stream StepResult became stream Step",
]


@pytest.mark.parametrize(("number", "expected"), list(enumerate(BROKEN)), ids=BROKEN)
def test_each_kind_of_break_is_found(number: int, expected: str) -> None:
    after = sample()
    change(number)(after)
    assert [str(item) for item in wirecheck.breaks(sample(), after)] == [expected]


def test_additions_are_no_breaks() -> None:
    after = sample()
    step(after).field.add(name="added", number=12, type=pb.FieldDescriptorProto.TYPE_BOOL)
    after.file[0].message_type.add(name="Added")
    after.file[0].enum_type[0].value.add(name="PACE_LOCKSTEP", number=2)
    after.file[0].service[0].method.add(name="Rollout", input_type=".playserve.v1.Step")
    assert wirecheck.breaks(sample(), after) == []
    assert wirecheck.breaks(sample(), sample()) == []


def test_a_break_is_allowed_only_by_a_changelog_line_that_names_it() -> None:
    found = [wirecheck.Break("Step.ticks", "field 5 removed"), wirecheck.Break("Step.tick", "field 6 removed")]
    changelog = (
        "# Changelog\n\n## [Unreleased]\n\n### Changed\n"
        "- wire: `Step.ticks` is gone;\n  use Step.seq.\n- Step.tick is nice.\n\n"
        "## [0.1.0]\n- wire: Step.tick was renamed.\n"
    )
    assert wirecheck.wire_lines(changelog) == ["`Step.ticks` is gone; use Step.seq."]
    assert wirecheck.unnamed(found, changelog) == [found[1]]
    assert wirecheck.unnamed(found, "# Changelog\n") == found


def test_the_wire_breaks_nothing_that_the_changelog_does_not_name() -> None:
    baseline = pb.FileDescriptorSet.FromString(wirecheck.BASELINE.read_bytes())
    assert len(baseline.file) >= 4
    found = wirecheck.breaks(baseline, wirecheck.current())
    left = wirecheck.unnamed(found, wirecheck.CHANGELOG.read_text(encoding="utf-8"))
    assert left == [], "name each in CHANGELOG.md under Unreleased: '- wire: Message.field ...'"
