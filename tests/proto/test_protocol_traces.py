"""docs/protocol.md is true: its names are on the wire, its errors are the code's, its traces keep its rules."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

pytest.importorskip("tritonclient.grpc")
from wire_traces.others import JUDGES
from wire_traces.parse import read, read_text
from wire_traces.rules import BrokenRuleError, check
from wire_traces.talk import as_events, random_requests

from playserve import errors
from playserve.specs import DiscreteActionSpec, GapMode, GapRule, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakePolicyServer
from playserve.v1 import admin_service_pb2, policy_service_pb2, state_transfer_service_pb2, types_pb2
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub
from playserve_client.channels import POLICY_KEY, ROUTE_KEY

REPOSITORY = Path(__file__).parents[2]
DOC = (REPOSITORY / "docs" / "protocol.md").read_text()
TRACES = sorted((Path(__file__).parent / "traces").glob("*.textproto"))
WIRE = [types_pb2, policy_service_pb2, admin_service_pb2, state_transfer_service_pb2]


# ---- the traces


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_the_contract_expresses_the_game(path: Path) -> None:
    check(read(path), JUDGES)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_the_page_shows_the_trace(path: Path) -> None:
    shown = re.search(rf"<!-- trace: {path.stem} -->\n```text\n(.*?)```", DOC, re.DOTALL)
    assert shown, f"docs/protocol.md has no <!-- trace: {path.stem} -->"
    assert shown[1] == path.read_text(), f"copy {path.name} into docs/protocol.md, below its marker"


def test_the_page_shows_no_other_trace() -> None:
    assert re.findall(r"<!-- trace: (\w+) -->", DOC) == ["minimal", "rollout", "live", "world", "handoff", "triton"]
    assert len(TRACES) == 6


# (trace, text of it, what it becomes, what the judge says)
BROKEN = [
    ("minimal", "play > open { policy", "play > ping {}\nplay > open { policy", "NOT_OPEN"),
    ("minimal", "play > close", 'play > open { policy: "toy" }\nplay > close', "ALREADY_OPEN"),
    ("minimal", "play > step { seq: 1", "play > step { seq: 0", "SEQ_NOT_INCREASING"),
    ("minimal", "play < result {\n  seq: 1", "play < result {\n  seq: 2", "step 2, which was never sent"),
    ("minimal", "index: 2", "index: 3", "BAD_ACTION"),
    ("minimal", "<12 bytes>", "<11 bytes>", "step 1, which was never sent"),
    ("minimal", "play x OK", "play > step { seq: 2 }\nplay x OK", "after close"),
    ("minimal", 'version: "1" config_revision: 1', 'version: "2" config_revision: 1', "changed its version"),
    ("minimal", "codecs: CODEC_RAW max", "codecs: [CODEC_RAW, CODEC_LZ4] max", "did not offer"),
    ("minimal", 'play > close { reason: "that was all" }\n', "", "OK without a close"),
    ("minimal", "play x OK", "", "without an end"),
    ("rollout", "<0 to 63>", "<1 to 64>", "not there"),
    ("rollout", "[65, 7, 43]", "[65, 42, 43]", "EPISODE_REUSED for environment 41"),
    ("rollout", "[65, 43, <1 to 32>]", "[41, 43, <1 to 32>]", "out of order"),
    ("rollout", "log_prob: true", "log_prob: false", "asked for"),
    ("rollout", "<84672 bytes>", "<84671 bytes>", "SIZE_MISMATCH"),
    ("rollout", "nonce: 1 }\n\n", "nonce: 2 }\n\n", "without its ping"),
    ("rollout", "env_id: 3 action", "env_id: 64 action", "which has no row"),
    ("live", "catch_up_frames: 4 }\n    takes", "catch_up_frames: 3 }\n    takes", "the gap rule allows 2"),
    ("live", "  dropped { seq: 5 reason: DROP_REASON_SUPERSEDED in_memory: true }\n", "", "[5] have no answer"),
    ("live", "  gap_ticks: 1\n", "", "gap_ticks 0"),
    ("live", "pace: PACE_LIVE", "pace: PACE_LOCKSTEP", "superseded in LOCKSTEP"),
    ("live", "rate_hz: 20 codecs", "rate_hz: 30 codecs", "RATE_MISMATCH"),
    ("live", "play < configured { revision: 2 }\n", "", "revision 2 was not in force"),
    ("live", 'buttons: 0 mouse_dy_px: 40 } } source', 'buttons: 7 mouse_dy_px: 40 } } source', "BAD_ACTION"),
    ("live", "seq: 10 source: ACTION_SOURCE_UNKNOWN", "seq: 10", "source 0"),
    ("live", "1600000000 budget_us: 30000", "1600000000", "no budget"),
    ("live", "seq: 9 capture_time_ns: 1500000000 observe_only: true", "seq: 9", "[9] have no answer"),
    ("live", "resumed: true last_seq: 12", "last_seq: 12", "resumed is False"),
    ("live", 'again > open { resume_token: "a', 'again > open { resume_token: "no', "SESSION_NOT_FOUND"),
    ("live", "play x UNAVAILABLE", "play x ABORTED SESSION_EXPIRED", "cannot be resumed"),
    ("live", "code: 9 message", "code: 3 message", "FAILED_PRECONDITION"),
    ("live", 'reason: "EXECUTED_UNKNOWN"', 'reason: "EXECUTED_TOO_LATE"', "no documented reason"),
    ("world", "DROP_REASON_SUPERSEDED in_memory: true", "DROP_REASON_SUPERSEDED", "may not be dropped"),
    ("world", "dream > step { seq: 2 action { desktop", "dream > step { seq: 2 } # {", "never sent"),
    ("world", "reset { episode_id: 1 seed", "reset { episode_id: 0 seed", "reset to 0"),
    ("world", "dream > close {}", "dream > close {}\ndream > ping {}", "after close"),
    ("handoff", "offset: 4096", "offset: 4000", "a chunk at 4000"),
    ("handoff", "<sha256 of 4500 bytes>", "<sha256 of 4501 bytes>", "DATA_LOSS"),
    ("handoff", 'state_layout: "9c0b" state_bytes: 4500', 'state_layout: "9c0c" state_bytes: 4500', "layout"),
    ("handoff", 'moved { address: "replica-b:50051"', 'moved { address: "replica-c:50051"', "another place"),
    ("handoff", 'again < moved { address: "replica-b', 'again < moved { address: "replica-c', "another place"),
    ("handoff", 'token: "another secret of B" }\nagain x', 'token: "no secret" }\nagain x', "no transfer was"),
    ("handoff", 'again > open { resume_token: "another', 'again > open { resume_token: "no', "SESSION_NOT_FOUND"),
    ("handoff", "lost x UNAVAILABLE\n", "", "cannot be resumed"),
    ("handoff", "commit { last_seq: 2", "commit { last_seq: 1", "last_seq is not the transfer's"),
    ("triton", "<i32 1 7 4>", "<i32 1 7 1>", "each appears once"),
    ("triton", "<bool 0 1>\n  raw_input_contents: <i64 3 -1>", "<bool 0 0>\n  raw_input_contents: <i64 3 -1>", "reset"),
    ("triton", "<u64 3 1 9>\nbatch1", "<u64 3 3 9>\nbatch1", "other generations"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "said"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)])
def test_the_judge_finds_what_is_wrong(name: str, old: str, new: str, said: str) -> None:
    text = next(path for path in TRACES if path.stem == name).read_text()
    assert old in text
    with pytest.raises(BrokenRuleError, match=re.escape(said)):
        check(read_text(text.replace(old, new, 1)), JUDGES)


# ---- the same judge on a server's own words


@pytest.mark.parametrize("pace", [ps.PACE_LOCKSTEP, ps.PACE_LIVE])
@pytest.mark.parametrize("mode", [GapMode.SKIP, GapMode.CATCH_UP])
def test_the_fake_server_keeps_the_rules(pace: ps.Pace.ValueType, mode: GapMode) -> None:
    view = TensorSpec(name="view", dtype="uint8", shape=(4,))
    spec = PolicySpec(
        name="toy", family="toy", inputs=(view,), action=DiscreteActionSpec(n=3), rate_hz=20.0,
        # As many as there are steps: the fake server decides step by step, so its passes may grow while they run.
        gap_rule=GapRule(mode=mode, catch_up_frames=64),
    )  # fmt: skip
    with FakePolicyServer(FakePolicy(spec=spec, handler=lambda *_: 1), delay_s=0.002) as server:
        for seed in range(5):
            requests = random_requests(spec.to_proto(), pace, random.Random(seed))
            with grpc.insecure_channel(server.address) as channel:
                answers = list(PolicyServiceStub(channel).Play(iter(requests), timeout=30))
            check(as_events(requests, answers), JUDGES)


# ---- the page's words


def _table(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head."""
    lines = DOC[DOC.index(f"\n## {heading}") :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_table_of_errors_is_the_codes() -> None:
    table = {row[0].strip("`"): row[1].strip("`") for row in _table("8. Errors")}
    assert table == {reason: cls.code.name for reason, cls in errors.REASONS.items()}
    for reason, _, where, session, advice in _table("8. Errors"):
        assert where in ("in-band", "ends the stream", "both"), reason
        assert session, reason
        assert advice, reason


def test_the_states_are_the_wires() -> None:
    states = [row[0] for row in _table("2. The states of a session")]
    listed = [name.removeprefix("SESSION_STATE_") for name in admin_service_pb2.SessionState.keys()[1:]]
    assert states == [*listed, "ENDED"]


def _wire_names() -> tuple[dict[str, set[str]], set[str]]:
    """Return {message or service: its fields or methods}, and every other name of the wire."""
    members: dict[str, set[str]] = {}
    others: set[str] = set()
    for module in WIRE:
        file = module.DESCRIPTOR
        for message in file.message_types_by_name.values():
            members[message.name] = {field.name for field in message.fields}
            others |= members[message.name]
        for service in file.services_by_name.values():
            members[service.name] = {method.name for method in service.methods}
            others |= members[service.name]
        for enum in file.enum_types_by_name.values():
            members[enum.name] = {value.name for value in enum.values}
            others |= members[enum.name]
    return members, others


#: Names of gRPC, google.rpc, the Open Inference Protocol, proxies and this repository.
FOREIGN = {
    "ErrorInfo", "ErrorInfo.reason", "RetryInfo", "google.rpc.Status", "grpc-status-details-bin", "ModelInferRequest",
    "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "Check", "Watch", "liveness", "readiness",
    "playserve.v1", "playserve.v2", "max_stream_duration", "max_connection_duration", "stream_idle_timeout",
    "idle_timeout", "timeout", "retry_policy", "http2_protocol_options", "connection_keepalive", "interval",
    "grpc_read_timeout", "grpc_send_timeout", "client_body_timeout", "send_timeout", "client_max_body_size",
    "keepalive_time", "keepalive_requests", "grpc_next_upstream", "off", "terminationGracePeriodSeconds", "x",
    "upstream", "inference.GRPCInferenceService", "desktop_action", "frame", "reward", "terminated", "uncertainty",
    POLICY_KEY, ROUTE_KEY,
}  # fmt: skip


def _spans() -> Iterator[str]:
    prose = re.sub(r"^```.*?^```$", "", DOC, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`\n]+)`", prose):
        # What has a space, a slash or brackets is a command, a path or an example.
        if re.fullmatch(r"[A-Za-z][\w.-]*", span):
            yield span


def test_every_name_is_on_the_wire() -> None:
    members, others = _wire_names()
    codes = {code.name for code in grpc.StatusCode}
    unknown = []
    for span in sorted(set(_spans())):
        owner, _, member = span.partition(".")
        known = (
            span in FOREIGN
            or span in errors.REASONS
            or span in codes
            or span in others
            or (owner in members and (not member or member in members[owner]))
            or span.endswith((".md", ".proto"))
        )
        if not known:
            unknown.append(span)
    assert not unknown


def test_foreign_names_are_used() -> None:
    spans = set(_spans())
    assert sorted(name for name in FOREIGN if name not in spans) == []


def test_every_message_of_play_and_rollout_is_explained() -> None:
    spans = set(_spans()) | {span.partition(".")[0] for span in _spans()}
    for envelope in (ps.PlayRequest, ps.PlayResponse, ps.RolloutRequest, ps.RolloutResponse):
        for field in envelope.DESCRIPTOR.fields:
            assert field.message_type.name in spans, field.message_type.name
