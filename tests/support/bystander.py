"""A player whom the fault beside it does not touch: it plays all through, and its every answer is looked at."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Self

import numpy as np

from playserve.codec import Action
from playserve.errors import NoFreeSlotError
from playserve_client import PolicyClient
from playserve_client.session import Session

__all__ = ["Bystander"]

_PAUSE_S = 0.01
_PATIENCE_S = 60.0


class Bystander:
    """A context manager: plays in a thread of its own from its beginning to its end, never on a second stream.

    At its end it fails if a step had an error, if it did not play meanwhile, or if an answer is not that of a player
    to whom nothing happened. The server must compute with --fixed-batch.

    Args:
        address: Of the server.
        policy: Takes uint8 [8, 8], turn based.
        options: Of the client.
    """

    def __init__(self, address: str, policy: str = "memory", **options: Any) -> None:
        self._client = PolicyClient(address, **{"timeout_s": _PATIENCE_S, **options})
        self._policy = policy
        self._enough = threading.Event()
        self._played = threading.Condition()
        self._answers: list[Action] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._play, name="bystander", daemon=True)

    def __enter__(self) -> Self:
        self._session = self._client.play(self._policy, seed=11, resume=False)
        self._thread.start()
        self.plays_on()
        return self

    def plays_on(self, steps: int = 5) -> None:
        """Wait until it has played more steps than it had when this was called."""
        with self._played:
            goal = len(self._answers) + steps
            done = self._played.wait_for(lambda: len(self._answers) >= goal or self._error is not None, _PATIENCE_S)
        if self._error is not None:
            raise self._error
        assert done, f"the bystander stands still after {len(self._answers)} steps"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.plays_on()
            self._enough.set()
            self._thread.join(_PATIENCE_S)
            self._session.close()
            if kind is None:
                self._compare()
        finally:
            self._enough.set()
            self._client.close()

    def _compare(self) -> None:
        if self._error is not None:
            raise self._error
        assert self._session.last_seq == len(self._answers)
        version = self._session.spec.version
        with self._open_again(version) as undisturbed:
            wanted = [undisturbed.step(_frame(index)) for index in range(len(self._answers))]
        assert self._answers == wanted

    def _open_again(self, version: str) -> Session:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._client.play(self._policy, seed=11, version=version)
            except NoFreeSlotError:  # others have gone, and their slots are kept for a while
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _play(self) -> None:
        try:
            while not self._enough.wait(_PAUSE_S):
                answer = self._session.step(_frame(len(self._answers)))
                with self._played:
                    self._answers.append(answer)
                    self._played.notify_all()
        except Exception as error:  # noqa: BLE001 - raised where the test is
            with self._played:
                self._error = error
                self._played.notify_all()


def _frame(index: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index % 64).integers(0, 256, (8, 8), dtype=np.uint8)
