"""A core with a clock and an engine that tests drive by hand."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from playserve_services.inference.catalog import Catalog, LoadedPolicy
from playserve_services.inference.core import CoreLimits, InferenceCore, OpenRequest
from playserve_services.inference.engine import Batch, Engine, run_batch
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.metrics import Metrics
from playserve_services.inference.sessions import Answer, Frame, Session, Settings
from playserve_trainer.models.policy import Policy


class ManualEngine(Engine):
    """Keeps what it is given until the test says go."""

    def __init__(self, on_result: Callable[..., None]) -> None:
        self.on_result = on_result
        self.jobs: deque[Callable[[], None]] = deque()

    def submit(self, batch: Batch) -> None:
        self.jobs.append(lambda: self.on_result(batch, run_batch(batch)))

    def call(self, function: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        self.jobs.append(lambda: done(function(), None))

    def run_one(self) -> bool:
        if not self.jobs:
            return False
        self.jobs.popleft()()
        return True

    def run_all(self) -> None:
        while self.run_one():
            pass


class Rig:
    """A core under test."""

    def __init__(
        self,
        *,
        slots: int = 4,
        max_batch: int = 8,
        limits: CoreLimits | None = None,
        defer: Callable[[Callable[[], None]], Any] | None = None,
    ) -> None:
        self.now_ns = 1_000_000_000
        self.catalog = Catalog()
        self.core = InferenceCore(
            self.catalog,
            dataclasses.replace(limits or CoreLimits(), max_batch=max_batch),
            Metrics(lambda: self.catalog),
            lambda: self.now_ns,
            defer,
        )
        self.engine = ManualEngine(self.core.on_result)
        self.core.attach_engine(self.engine)
        self.factory = RuntimeFactory(slots=slots, max_batch=max_batch)

    def load(self, name: str, policy: Policy, version: str = "1") -> LoadedPolicy:
        spec = dataclasses.replace(policy.spec(), name=name, version=version)
        loaded = self.factory.make(spec, policy, self.factory.pool(policy))
        self.catalog.add(loaded)
        return loaded

    def open(self, policy: LoadedPolicy, answers: list[Answer] | None = None, **options: Any) -> Session:
        options.setdefault("principal", "me")
        options.setdefault("settings", Settings())
        if options.get("live"):
            options.setdefault("rate_hz", policy.spec.rate_hz)
        session = self.core.open(OpenRequest(policy=policy, **options))
        if answers is not None:
            session.sink = answers.extend
        return session

    def frame(self, session: Session, seq: int, observation: int = 0, **options: Any) -> Frame:
        inputs = {"observation": np.array([observation], np.int32)}
        options.setdefault("episode_id", session.slots[0].seen_episode)
        return Frame(seq=seq, inputs=inputs, arrived_ns=self.now_ns, settings=session.settings, **options)

    def step(self, session: Session, seq: int, observation: int = 0, row: int = 0, **options: Any) -> None:
        """Let a frame arrive, and pump."""
        self.core.arrive(session.slots[row], self.frame(session, seq, observation, **options))
        self.core.pump()

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
