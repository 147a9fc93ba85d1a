"""Following the registry: its view is polled, kept on disk, and gone on with when the control plane is down."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from playserve.files import write_private
from playserve_services.auth.http import HttpError, Response, check_url, fetch
from playserve_services.registry_view import VIEW_FORMAT, RegistryView

__all__ = ["RegistryClient", "RegistryFollower", "ViewCache", "default_cache"]

_log = logging.getLogger(__name__)


def default_cache(url: str) -> Path:
    """Return the file where the view of a registry is kept, unless the settings name another."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "playserve" / f"registry-{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"


class ViewCache:
    """The last view, on disk. It holds digests of keys, no secret; its owner alone can read it all the same.

    Args:
        path: The file.
        on_failure: Called when it cannot be written.
    """

    def __init__(self, path: Path, on_failure: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._on_failure = on_failure

    def read(self) -> RegistryView | None:
        """Return the last view; None: there is none, or it is damaged, which is logged."""
        try:
            return RegistryView.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            _log.error("the view of the registry in %s cannot be used: %s", self.path, type(error).__name__)
            return None

    def write(self, view: RegistryView) -> None:
        """Replace it; a disk that is full is logged, and costs nothing but the next start."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self.path, view.model_dump_json())
        except OSError as error:
            self._on_failure()
            _log.error("the view of the registry cannot be kept in %s: %s", self.path, error.strerror)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryClient:
    """The two calls that a replica makes. They block: the follower makes them in a thread.

    Attributes:
        url: Of the control plane, without a path.
        key: API key, read again for each call, so that it can be changed while we run; empty: none.
        timeout_s: Longest wait for an answer.
        ca: Roots to trust instead of the system's.
    """

    url: str
    key: Callable[[], str] = lambda: ""
    timeout_s: float = 5.0
    ca: Path | None = None

    def __post_init__(self) -> None:
        check_url("registry", self.url)

    def view(self, etag: str) -> Response:
        """Ask for the view; status 304: it is still the one with this ETag. Raises HttpError."""
        return self._fetch("GET", "/v1/view", {"If-None-Match": etag} if etag else {}, None)

    def heartbeat(self, replica: str, state: dict[str, Any]) -> Response:
        """Say how this replica is. Raises HttpError."""
        return self._fetch(
            "PUT", f"/v1/replicas/{replica}", {"Content-Type": "application/json"}, json.dumps(state).encode()
        )

    def _fetch(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Response:
        key = self.key()
        if key:
            headers = {**headers, "Authorization": f"Bearer {key}"}
        return fetch(
            self.url.rstrip("/") + path, method=method, headers=headers, body=body, timeout_s=self.timeout_s, ca=self.ca
        )


class RegistryFollower:
    """See the module's docstring. Event loop's thread only.

    Args:
        client: Asks the control plane.
        cache: Keeps the view.
        replica: Name that this server gives of itself.
        apply: Takes each newer view.
        drain: Called when the view tells this replica to drain.
        state: Returns what a heartbeat says.
        on_reached: Told after each round whether the control plane answered.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        client: RegistryClient,
        cache: ViewCache,
        replica: str,
        apply: Callable[[RegistryView], None],
        drain: Callable[[], None],
        state: Callable[[], dict[str, Any]],
        on_reached: Callable[[bool], None] = lambda reached: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._cache = cache
        self._replica = replica
        self._apply = apply
        self._drain = drain
        self._state = state
        self._on_reached = on_reached
        self._clock = clock
        self._etag = ""
        self._reached: bool | None = None
        self._confirmed: float | None = None
        self.view: RegistryView | None = None

    @property
    def revision(self) -> int:
        """Of the view in force; -1: there is none."""
        return -1 if self.view is None else self.view.revision

    def age_s(self) -> float:
        """Return the seconds since the control plane confirmed the view; infinite: it never did since our start."""
        return float("inf") if self._confirmed is None else self._clock() - self._confirmed

    async def start(self) -> None:
        """Take the view that there is: the control plane's, else the one on disk."""
        cached = await asyncio.to_thread(self._cache.read)
        if cached is not None:
            self._take(cached)
        await self._poll()
        if self._reached is False:
            what = f"revision {self.revision}, from {self._cache.path}" if self.view else "nothing: nobody has a key"
            _log.warning("the registry %s does not answer; starting with %s", self._client.url, what)

    async def run(self, poll_s: float) -> None:
        """Ask, and say how we are, for ever."""
        known = False  # to the control plane, since our start
        while True:
            known = await self._beat() or known
            # Not all replicas at once, after a restart of the control plane.
            await asyncio.sleep(poll_s * random.uniform(0.8, 1.2))
            await self._poll()
            # Before it knows of us, the view may still tell the process that had our name to drain.
            if known and self._reached and self.view is not None and self._replica in self.view.draining:
                self._drain()

    async def _poll(self) -> None:
        try:
            answer = await asyncio.to_thread(self._client.view, self._etag)
            if answer.status == 200:
                view = RegistryView.model_validate_json(answer.body)
                if view.format_version != VIEW_FORMAT:
                    raise HttpError(f"a view of format {view.format_version}, wanted {VIEW_FORMAT}")
                self._etag = answer.etag
                if self._take(view):
                    await asyncio.to_thread(self._cache.write, view)
            elif answer.status != 304:
                raise HttpError(f"status {answer.status}")
        except (HttpError, ValidationError) as error:
            # A ValidationError's text would quote the document.
            self._note(False, str(error) if isinstance(error, HttpError) else "its view is no RegistryView")
        else:
            self._confirmed = self._clock()
            self._note(True)

    def _take(self, view: RegistryView) -> bool:
        """Apply a view if it is newer than the one in force."""
        if view.revision <= self.revision:
            if view.revision < self.revision:
                _log.warning("the registry showed revision %d after %d; ignored", view.revision, self.revision)
            return False
        self.view = view
        self._apply(view)
        _log.info("registry revision %d: %d policies, %d keys", view.revision, len(view.policies), len(view.keys))
        return True

    async def _beat(self) -> bool:
        try:
            answer = await asyncio.to_thread(self._client.heartbeat, self._replica, self._state())
            if answer.status >= 300:
                raise HttpError(f"status {answer.status}")
        except HttpError as error:
            if self._reached:  # otherwise it is known already
                _log.warning("the registry did not take our heartbeat: %s", error)
            return False
        return True

    def _note(self, reached: bool, why: str = "") -> None:
        """Log changes only: a control plane that is down for a day is one line."""
        if self._reached is not False and not reached:
            _log.warning("the registry %s cannot be followed: %s; going on with the last view", self._client.url, why)
        elif self._reached is False and reached:
            _log.info("the registry %s answers again", self._client.url)
        self._reached = reached
        self._on_reached(reached)
