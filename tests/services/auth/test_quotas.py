"""The token bucket, for whatever comes in; and accounts of keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import QuotaExceededError
from playserve_services.auth.keys import Quota
from playserve_services.auth.principal import Principal
from playserve_services.auth.quotas import Account, Accounts, TokenBucket

S = 1_000_000_000
rates = st.floats(0.05, 500, allow_nan=False)
gaps_ns = st.lists(st.integers(0, 3 * S), min_size=1, max_size=200)


@given(rate=rates, gaps=gaps_ns)
def test_no_window_of_time_lets_more_through_than_the_rate_and_one_burst(rate: float, gaps: list[int]) -> None:
    bucket, now, passed = TokenBucket(rate, 0), 0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            passed.append(now)
    for i, begin in enumerate(passed):
        for j in range(i, len(passed)):
            allowed = bucket.burst + rate * (passed[j] - begin) / S
            assert j - i + 1 <= allowed + 1e-6


@given(rate=rates, count=st.integers(1, 300), start=st.integers(0, 10 * S))
def test_who_keeps_to_the_rate_loses_nothing(rate: float, count: int, start: int) -> None:
    bucket = TokenBucket(rate, start)
    period = int(S / rate) + 1
    assert all(bucket.take(start + i * period) for i in range(count))


@given(rate=rates, gaps=gaps_ns)
def test_after_the_wait_that_it_names_there_is_a_token(rate: float, gaps: list[int]) -> None:
    bucket, now = TokenBucket(rate, 0), 0
    for gap in gaps:
        now += gap
        bucket.take(now)
    assert bucket.take(now + int(bucket.wait_s() * S) + 1000)


@given(rate=rates, times=st.lists(st.integers(0, 100 * S), min_size=1, max_size=100))
def test_a_clock_that_seems_to_go_back_gives_nothing_for_free(rate: float, times: list[int]) -> None:
    bucket = TokenBucket(rate, 0)
    passed = sum(bucket.take(now) for now in times)
    assert passed <= bucket.burst + rate * max(times) / S + 1e-6


def test_an_account_gives_out_no_more_than_its_quota() -> None:
    account = Account("k", Quota(sessions=2, environments=8))
    account.take(1, 0)
    account.take(1, 0)
    with pytest.raises(QuotaExceededError, match="1 more sessions for key k, which has 2 and may have 2") as refused:
        account.take(1, 0)
    assert refused.value.retry_after_s is not None
    account.take(0, 8)
    account.give_back(1, 0)
    account.take(1, 0)
    assert (account.sessions, account.environments) == (2, 8)


def test_what_could_never_be_given_is_refused_without_a_time_to_retry() -> None:
    with pytest.raises(QuotaExceededError) as refused:
        Account("k", Quota(environments=8)).take(0, 9)
    assert refused.value.retry_after_s is None
    with pytest.raises(QuotaExceededError):
        Account("k", Quota(sessions=0)).take(1, 0)


def test_without_a_quota_nothing_is_counted_against_anybody() -> None:
    account = Account("k", Quota())
    account.take(1000, 1000)
    assert all(account.frame(now) for now in range(1000))


def _principal(quota: Quota) -> Principal:
    return Principal(name="ann", scopes=frozenset(), method="api_key", key_id="k", quota=quota)


def test_a_new_quota_counts_for_what_runs_already() -> None:
    accounts = Accounts()
    accounts.of(_principal(Quota(sessions=5))).take(3, 0)
    accounts.renew(_principal(Quota(sessions=3, frames_per_s=1.0)))
    account = accounts.of(_principal(Quota(sessions=5)))
    with pytest.raises(QuotaExceededError):
        account.take(1, 0)
    assert [account.frame(0), account.frame(1)] == [True, False]


def test_accounts_in_use_are_not_forgotten() -> None:
    accounts = Accounts()
    account = accounts.of(_principal(Quota()))
    account.take(1, 0)
    accounts.forget_idle()
    assert accounts.of(_principal(Quota())) is account
    account.give_back(1, 0)
    accounts.forget_idle()
    assert accounts.of(_principal(Quota())) is not account
