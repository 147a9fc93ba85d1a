"""Ids of traces: derived alike on both sides, sampled alike, and never taken from what is no traceparent."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import BadSettingError
from playserve.tracing import STEP_SPAN, TRACEPARENT, TRACESTATE, SessionTrace, check_ratio, span_id


@given(ratio=st.floats(1e-6, 1.0), seq=st.integers(0, (1 << 64) - 1))
def test_who_reads_the_metadata_names_and_samples_the_same_steps(ratio: float, seq: int) -> None:
    ours = SessionTrace.new(ratio)
    theirs = SessionTrace.from_metadata([("other", "x"), *ours.to_metadata()])
    assert theirs == ours
    assert theirs.step(seq) == ours.step(seq)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1])
def test_the_share_of_the_steps_is_the_one_that_was_asked_for(ratio: float) -> None:
    trace = SessionTrace(7, 7, SessionTrace.new(ratio).threshold)
    sampled = sum(trace.step(seq) is not None for seq in range(4000))
    assert abs(sampled - ratio * 4000) <= 120


def test_of_a_smaller_share_every_step_is_in_the_larger_one() -> None:
    larger = SessionTrace(3, 4)
    smaller = larger.at_most(0.2)
    assert smaller.at_most(0.7) == smaller
    both = [(larger.step(seq), smaller.step(seq)) for seq in range(500)]
    assert all(small is None or small == large for large, small in both)
    assert 0 < sum(small is not None for _, small in both) < 500


def test_spans_of_a_step_have_ids_of_their_own() -> None:
    trace = SessionTrace(1, 1).step(5)
    assert trace is not None
    names = (STEP_SPAN, "playserve.serve", "playserve.capture", "playserve.compute", "playserve.write")
    assert len({span_id(trace, name) for name in names}) == len(names)
    assert all(0 < span_id(trace, name) < 1 << 64 for name in names)


@given(parent=st.text(max_size=80), state=st.text(max_size=40))
def test_what_is_no_traceparent_is_none(parent: str, state: str) -> None:
    assert SessionTrace.from_metadata([(TRACEPARENT, parent), (TRACESTATE, state)]) is None


@pytest.mark.parametrize(
    "parent",
    [
        f"00-{'0' * 32}-{'1' * 16}-01",  # ids of nothing
        f"00-{'1' * 32}-{'0' * 16}-01",
        f"00-{'1' * 32}-{'1' * 16}-00",  # not sampled
        f"ff-{'1' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'1' * 16}-01-more",
    ],
)
def test_traces_that_say_nothing_are_not_followed(parent: str) -> None:
    assert SessionTrace.from_metadata([(TRACEPARENT, parent)]) is None


@pytest.mark.parametrize(("state", "threshold"), [
    ("", 0), ("ot=th:8", 8 << 52), ("vendor=1,ot=rv:12;th:0", 0), ("ot=th:xyz", 0), ("not=th:8", 0),
])  # fmt: skip
def test_the_threshold_is_opentelemetrys(state: str, threshold: int) -> None:
    found = SessionTrace.from_metadata([(TRACEPARENT, f"00-{1:032x}-{2:016x}-01"), (TRACESTATE, state)])
    assert found == SessionTrace(1, 2, threshold)


def test_shares_are_shares() -> None:
    assert check_ratio(0.25) == 0.25
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(BadSettingError, match="wanted a share"):
            check_ratio(wrong)


def test_nobody_who_does_not_trace_imports_opentelemetry() -> None:
    program = (
        "import sys, playserve_client.aio, playserve_client.commands.play, playserve_services.inference.app; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "[]"
