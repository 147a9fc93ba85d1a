"""A control plane behind a real port, and a fleet to show on its dashboard: for tests, and for the docs' pictures."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from playserve_services.auth.keys import Scope
from playserve_services.control.app import create_app
from playserve_services.control.context import Context
from playserve_services.control.history import PolicyCounts
from playserve_services.control.repository.audit import SYSTEM, revision
from playserve_services.control.repository.evaluations import record_evaluation, summary_of_scores
from playserve_services.control.repository.keys import add_key
from playserve_services.control.repository.policies import VersionFacts, register_version
from playserve_services.control.repository.replicas import Beat, heartbeat
from playserve_services.control.settings import ControlSettings

__all__ = ["Site", "fill_fleet", "fill_hour", "serving_site", "tell"]

BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Site:
    """A control plane that listens.

    Attributes:
        url: Of its dashboard, without a slash at the end.
        app: The application.
    """

    url: str
    app: FastAPI

    @property
    def context(self) -> Context:
        """Its collaborators."""
        context: Context = self.app.state.context
        return context

    def key(self, *scopes: str, principal: str = "me") -> str:
        """Return a new key."""
        with self.context.database.change() as session:
            text, _ = add_key(session, SYSTEM, principal, frozenset(Scope(scope) for scope in scopes))
        return text


@contextlib.contextmanager
def serving_site(**options: Any) -> Iterator[Site]:
    """Serve a control plane with these settings, on a free port, until the context ends."""
    app = create_app(ControlSettings(**options), watch_jobs=False)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    started = threading.Event()
    ready = server.startup

    async def startup(sockets: Any = None) -> None:
        await ready(sockets)
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert started.wait(30)
        yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}/dashboard", app)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def fill_fleet(context: Context) -> None:
    """Give a control plane two replicas, and a policy with two versions and evaluations."""
    with context.database.change() as session:
        for number, (address, used) in enumerate((("10.0.0.1:50051", 3), ("10.0.0.2:50051", 30))):
            beat = Beat(
                instance="one",
                address=address,
                admin_address="",
                server_version="0.1",
                slots_total=32,
                slots_used=used,
                versions={"breakout": ["1", "2"]},
                view_revision=revision(session),
                draining=False,
            )
            heartbeat(session, SYSTEM, f"replica-{number}", beat)
        for version in ("1", "2"):
            facts = VersionFacts(policy="breakout", version=version, weights_sha256=version * 64, size_bytes=5_000_000,
                                 facts={"family": "atari", "num_params": 1_200_000})  # fmt: skip
            register_version(session, SYSTEM, facts)
            scores = [10.0 * int(version) + index for index in range(10)]
            record_evaluation(session, SYSTEM, "breakout", version, summary_of_scores("100 episodes", scores, "a"))
    tell(context, 0)
    tell(context, 100)


def tell(context: Context, answered: int, replica: str = "replica-0") -> None:
    """Have a replica tell that it answered so many frames since its start."""
    counts = PolicyCounts(answered, answered // 10, answered // 20, (0.005, 0.05), (answered // 2, answered // 2, 0))
    context.history.add(replica, "one", {"breakout": counts})


def fill_hour(context: Context, replicas: dict[str, float], minutes: float = 60.0) -> None:
    """Give the history frames that replicas answered in the last minutes: a made-up load that rises and falls.

    Args:
        context: Of the control plane.
        replicas: Frames a second of each, at the most.
        minutes: How long ago it begins.
    """
    history = context.history
    clock = history._clock
    now, totals, late = clock(), {name: [0] * (len(BOUNDS_S) + 1) for name in replicas}, dict.fromkeys(replicas, 0)
    try:
        for second in range(0, int(60 * minutes) + 60, 5):
            history._clock = lambda second=second: now - 60 * minutes + second  # type: ignore[misc]
            for number, (name, most) in enumerate(replicas.items()):
                load = 0.55 + 0.3 * math.sin(second / 700 + number) + 0.06 * math.sin(second / 41 + 2 * number)
                frames = int(5 * most * max(0.05, load))
                slow = max(0.004, 0.02 * load**6)
                shares = (0.02, 0.62 - load / 3, 0.33 - slow + load / 3, 0.03 - slow / 2, slow, slow / 2, 0.0)
                for bucket, share in enumerate(shares):
                    totals[name][bucket] += int(frames * share + (bucket == 2))
                late[name] += int(frames * slow / 2 + (second % 20 == 0))
                answered = sum(totals[name])
                counts = PolicyCounts(answered, late[name], answered // 180, BOUNDS_S, tuple(totals[name]))
                history.add(name, "one", {"breakout": counts})
    finally:
        history._clock = clock
