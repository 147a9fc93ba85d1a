"""What a key may use at once and a second. Event loop's thread only; the time is an argument."""

from __future__ import annotations

from playserve.errors import QuotaExceededError
from playserve_services.auth.keys import Quota
from playserve_services.auth.principal import Principal

__all__ = ["Account", "Accounts", "TokenBucket"]

# Somebody else's session, or one's own, may end any moment.
_RETRY_S = 5.0


class TokenBucket:
    """Lets through `rate` frames a second on the average, and as many as one second's at once.

    Args:
        rate: Frames a second, more than 0.
        now_ns: Monotonic clock; the bucket is full then.
    """

    def __init__(self, rate: float, now_ns: int) -> None:
        self.rate = rate
        # Less than one frame would never let one through.
        self.burst = max(1.0, rate)
        self._tokens = self.burst
        self._filled_ns = now_ns

    def take(self, now_ns: int) -> bool:
        """Take one frame's token; return whether there was one."""
        if now_ns > self._filled_ns:  # messages of two streams may be stamped in another order than they come
            self._tokens = min(self.burst, self._tokens + (now_ns - self._filled_ns) * 1e-9 * self.rate)
            self._filled_ns = now_ns
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def wait_s(self) -> float:
        """Return the seconds from the last :meth:`take` until there is a token."""
        return max(0.0, (1.0 - self._tokens) / self.rate)


class Account:
    """What one key uses now, over all its sessions.

    Args:
        key_id: Of the key, for messages.
        quota: Its limits.
    """

    def __init__(self, key_id: str, quota: Quota) -> None:
        self._key_id = key_id
        self.quota = quota
        self.sessions = 0
        self.environments = 0
        self._bucket: TokenBucket | None = None

    def take(self, sessions: int, environments: int) -> None:
        """Take a session, or a rollout's environments.

        Raises:
            QuotaExceededError: That would be more than the key may have; nothing is taken.
        """
        for what, more, have, most in (
            ("sessions", sessions, self.sessions, self.quota.sessions),
            ("environments", environments, self.environments, self.quota.environments),
        ):
            if more and most is not None and have + more > most:
                raise QuotaExceededError(
                    f"{more} more {what} for key {self._key_id}, which has {have} and may have {most} at once",
                    retry_after_s=_RETRY_S if more <= most else None,  # more than its whole quota: never
                )
        self.sessions += sessions
        self.environments += environments

    def admit(self, sessions: int, environments: int) -> None:
        """Count what another server has let in already, even if that is more than the key may have here."""
        self.sessions += sessions
        self.environments += environments

    def give_back(self, sessions: int, environments: int) -> None:
        """Give back what was taken."""
        self.sessions -= sessions
        self.environments -= environments

    def frame(self, now_ns: int) -> bool:
        """Return whether one more live frame is within the quota of frames a second."""
        rate = self.quota.frames_per_s
        if rate is None:
            return True
        if self._bucket is None or self._bucket.rate != rate:
            self._bucket = TokenBucket(rate, now_ns)
        return self._bucket.take(now_ns)

    def frame_wait_s(self) -> float:
        """Return the seconds until :meth:`frame` may say yes again."""
        return 0.0 if self._bucket is None else self._bucket.wait_s()


class Accounts:
    """One account a key."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def of(self, principal: Principal) -> Account:
        """Return the account of the key that a principal showed."""
        account = self._accounts.get(principal.key_id)
        if account is None:
            account = self._accounts[principal.key_id] = Account(principal.key_id, principal.quota)
        return account

    def renew(self, principal: Principal) -> None:
        """Put an account under the quota that its key has now; what runs already counts against it."""
        if principal.key_id in self._accounts:
            self._accounts[principal.key_id].quota = principal.quota

    def forget_idle(self) -> None:
        """Forget the accounts of keys that use nothing and have no frames to answer for: tokens come and go."""
        for key_id in [
            k for k, a in self._accounts.items() if not (a.sessions or a.environments or a.quota.frames_per_s)
        ]:
            del self._accounts[key_id]
