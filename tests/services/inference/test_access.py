"""A session and the key under which it runs: what it takes of the quota, who may have it back, and its end."""

from __future__ import annotations

from typing import Any

import pytest
from rig import Rig

from playserve.errors import AccessDeniedError, AccessEndedError, NoFreeSlotError, QuotaExceededError
from playserve_services.auth.gate import Caller
from playserve_services.auth.keys import Quota, Scope
from playserve_services.auth.principal import Anonymous, Principal
from playserve_services.auth.quotas import Accounts
from playserve_services.inference.access import end_revoked
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.sessions import EndReason, SessionState
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy


class Door(Anonymous):
    """Knows which keys were revoked."""

    def __init__(self) -> None:
        super().__init__()
        self.revoked: set[str] = set()

    def holds(self, principal: Principal) -> bool:
        return principal.key_id not in self.revoked


class House:
    """Callers with keys of several people."""

    def __init__(self) -> None:
        self.door, self.accounts = Door(), Accounts()

    def caller(self, name: str, key: str, **quota: Any) -> Caller:
        principal = Principal(name=name, scopes=frozenset(Scope), method="anonymous", key_id=key, quota=Quota(**quota))
        return Caller(principal, self.accounts, self.door)


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def policy(rig: Rig) -> LoadedPolicy:
    return rig.load("p", TinyRecurrentPolicy(TinyRecurrentConfig(hidden=4)))


def test_every_end_gives_the_quota_back(rig: Rig, house: House, policy: LoadedPolicy) -> None:
    ann = house.caller("ann", "a", sessions=1, environments=3)
    for reason in EndReason:
        session = rig.open(policy, principal="ann", caller=ann)
        rollout = rig.open(policy, principal="ann", caller=ann, rollout=True, num_slots=3)
        assert (ann.account.sessions, ann.account.environments) == (1, 3)
        for each in (session, rollout):
            rig.core.end(each, reason)
            rig.core.end(each, reason)
        assert (ann.account.sessions, ann.account.environments) == (0, 0)
    assert policy.pool.free == 4


def test_what_is_refused_takes_neither_slots_nor_quota(rig: Rig, house: House, policy: LoadedPolicy) -> None:
    ann = house.caller("ann", "a", environments=4)
    with pytest.raises(QuotaExceededError):
        rig.open(policy, caller=ann, rollout=True, num_slots=5)
    rig.open(policy)
    with pytest.raises(NoFreeSlotError):
        rig.open(policy, caller=ann, rollout=True, num_slots=4)
    house.door.revoked.add("a")
    with pytest.raises(AccessEndedError, match="a was revoked, or has expired"):
        rig.open(policy, caller=ann)
    assert (ann.account.environments, policy.pool.free, len(rig.core)) == (0, 3, 1)


def test_another_key_of_the_owner_takes_the_session_over_with_its_quota(
    rig: Rig, house: House, policy: LoadedPolicy
) -> None:
    first, second = house.caller("ann", "a", sessions=1), house.caller("ann", "b", sessions=1)
    session = rig.open(policy, principal="ann", caller=first)
    rig.core.detach(session)
    assert rig.core.resume(session.resume_token, "ann", second) is session
    assert (first.account.sessions, second.account.sessions) == (0, 1)
    house.door.revoked.add("a")
    assert end_revoked(rig.core) == 0, "the old key has no part in it any more"
    house.door.revoked.add("b")
    assert end_revoked(rig.core) == 1
    assert (session.end_reason, second.account.sessions) == (EndReason.ACCESS_ENDED, 0)


def test_a_resume_that_is_refused_leaves_the_running_stream_alone(rig: Rig, house: House, policy: LoadedPolicy) -> None:
    first, full = house.caller("ann", "a"), house.caller("ann", "b", sessions=0)
    session = rig.open(policy, principal="ann", caller=first)
    for who, caller, error in (
        ("ann", full, QuotaExceededError),
        ("bob", house.caller("bob", "c"), AccessDeniedError),
    ):
        with pytest.raises(error):
            rig.core.resume(session.resume_token, who, caller)
    house.door.revoked.add("d")
    with pytest.raises(AccessEndedError):
        rig.core.resume(session.resume_token, "ann", house.caller("ann", "d"))
    assert session.state is SessionState.OPEN
    assert session.caller is first
    assert first.account.sessions == 1


def test_a_stream_is_told_why_its_session_ends(rig: Rig, house: House, policy: LoadedPolicy) -> None:
    told: list[Any] = []
    running = rig.open(policy, caller=house.caller("ann", "a"))
    running.on_end = told.append
    detached = rig.open(policy, caller=house.caller("ann", "a"))
    rig.core.detach(detached)
    rig.open(policy)
    house.door.revoked.add("a")
    assert end_revoked(rig.core) == 2
    assert [type(error) for error in told] == [AccessEndedError]
    assert len(rig.core) == 1
