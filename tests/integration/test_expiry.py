"""Time limits of a session: silence, and a lost stream that nobody resumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contract_kit.servers import serving

from playserve.v1 import policy_service_pb2 as ps


@pytest.fixture(scope="module")
def hasty() -> Any:
    """Yield a server that waits for nobody."""
    with serving(["memory"], "--idle-timeout-s", "1", "--detach-window-s", "0.5", "--slots", "4") as server:
        yield server


def _free(wire: Any) -> int:
    return wire.stub.GetPolicy(ps.GetPolicyRequest(policy="memory"), timeout=30).policy.slots_free


def test_a_silent_session_expires_and_its_slot_is_free(hasty: Any, connect: Callable[[str], Any]) -> None:
    wire = connect(hasty.address)
    session = wire.play("memory")
    assert session.opened.idle_timeout_us == 1_000_000
    session.step(1)
    assert session.ends() == "SESSION_EXPIRED"
    assert wire.begin(resume_token=session.opened.resume_token).ends() == "SESSION_NOT_FOUND"
    assert _free(wire) == 4


def test_a_silent_rollout_expires(hasty: Any, connect: Callable[[str], Any]) -> None:
    wire = connect(hasty.address)
    rows = wire.rollout("memory", 4)
    rows.rows([0], 1).actions(1)
    assert rows.ends() == "SESSION_EXPIRED"
    assert _free(wire) == 4


def test_pings_keep_a_session(hasty: Any, connect: Callable[[str], Any], eventually: Callable[..., Any]) -> None:
    wire = connect(hasty.address)
    kept, silent = wire.play("memory"), wire.play("memory")
    done: list[str] = []

    def silent_is_over() -> bool:
        kept.ping()
        if _free(wire) == 3:
            done.append(silent.ends())
        return bool(done)

    eventually(silent_is_over, "the silent session to expire")
    assert done == ["SESSION_EXPIRED"]
    kept.step(1)


def test_a_lost_session_is_kept_for_the_detach_window_only(
    hasty: Any, connect: Callable[[str], Any], eventually: Callable[..., Any]
) -> None:
    wire = connect(hasty.address)
    session = wire.play("memory")
    assert session.opened.detach_window_us == 500_000
    session.step(1)
    session.cancel()
    assert _free(wire) == 3  # its slot is its own until then
    eventually(lambda: _free(wire) == 4, "the window to end")
    assert wire.begin(resume_token=session.opened.resume_token).ends() == "SESSION_NOT_FOUND"
