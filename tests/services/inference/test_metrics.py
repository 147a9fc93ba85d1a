"""What /metrics says, in the text that Prometheus reads."""

from __future__ import annotations

from typing import Any

import pytest
from hash_policy import live_skip, lockstep
from prometheus_client import generate_latest as generate_text
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from playserve_services.inference.metrics import Metrics
from playserve_services.inference.sessions import EndReason


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return every sample by name and labels."""
    text = generate_text(metrics.registry).decode()
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "layout")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_session_s_life_is_counted(rig: Any) -> None:
    policy = rig.load("hash", live_skip())
    session = rig.open(policy, [], live=True)
    for seq in (1, 2, 3):
        rig.step(session, seq)
    rig.advance(0.06)  # later than 20 Hz allows
    rig.engine.run_all()
    rig.core.end(session, EndReason.EXPIRED)
    rig.open(rig.load("other", lockstep()))
    found = samples(rig.core.metrics)
    assert found["playserve_sessions_opened_total", "kind=live,policy=hash"] == 1
    assert found["playserve_sessions_ended_total", "policy=hash,reason=expired"] == 1
    assert found["playserve_sessions_open", "policy=hash"] == 0
    assert found["playserve_frames_total", "policy=hash"] == 2
    assert found["playserve_frames_dropped_total", "policy=hash"] == 1
    assert found["playserve_deadline_misses_total", "policy=hash"] == 2
    assert found["playserve_slots_total", "policy=hash"] == 4
    assert found["playserve_slots_used", "policy=other"] == 1
    assert found["playserve_batch_rows_count", "policy=hash"] == 2
    assert found["playserve_total_seconds_bucket", "le=0.05,policy=hash"] == 0
    assert found["playserve_total_seconds_bucket", "le=0.075,policy=hash"] == 2
    assert found["playserve_total_seconds_bucket", "le=+Inf,policy=hash"] == 2
    assert found["playserve_total_seconds_sum", "policy=hash"] == pytest.approx(0.12)


def test_the_text_is_valid_openmetrics_too(rig: Any) -> None:
    session = rig.open(rig.load("hash", lockstep()), [])
    rig.step(session, 1)
    rig.engine.run_all()
    assert generate_latest(rig.core.metrics.registry).endswith(b"# EOF\n")
