"""One worker process: steps several environments, writes what they show into shared memory, and reports ready rows.

It knows nothing of servers. A row whose player is local goes on by itself; any other waits for its action. Ready rows
are reported in bulk, but never kept waiting for a slow environment or a reset.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from playserve.actions import Action, DesktopAction
from playserve.errors import PlayserveError
from playserve.files import replacing
from playserve_client.envs.registry import make_env
from playserve_client.evaluate import messages
from playserve_client.evaluate.actions import pack_actions, packed_bytes
from playserve_client.evaluate.families.base import AGENTS
from playserve_client.evaluate.observations import EnvSpec, SharedRows
from playserve_client.evaluate.plan import EnvChoice
from playserve_client.evaluate.players import Player
from playserve_client.evaluate.waiting import Waiter

__all__ = ["work"]

# A ready row is reported at the latest after this long, and before any step expected to take longer than that.
_REPORT_S = 0.02
# Local rows report their steps so often.
_PROGRESS_S = 0.2


def work(connection: Connection, config: str) -> None:
    """Live in a worker process until the parent closes the pipe. `config` is JSON, made in `pool`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionError):
        try:
            worker = _Worker(connection, messages.json_of(b"J" + config.encode()))
            try:
                worker.run()
            finally:
                worker.close()
        except (EOFError, BrokenPipeError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
            kind = type(error).__name__
            value = {"failed": f"{error}" if isinstance(error, PlayserveError) else f"{kind}: {error}", "kind": kind}
            connection.send_bytes(messages.json_message(value))


@dataclass(slots=True)
class _Slot:
    """One row: its environment and the episode that is played in it."""

    row: int
    env: Any = None
    env_key: str = ""
    task: Mapping[str, Any] = field(default_factory=dict)
    tag: int = 0
    player: Player | None = None
    steps: int = 0
    score: float = 0.0
    instruction: str = ""
    actions: list[Action] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    step_s: float = 0.0
    started: float = 0.0


class _Worker:
    def __init__(self, connection: Connection, config: Mapping[str, Any]) -> None:
        self._connection = connection
        self._env, self._dial = EnvChoice(**config["env"]), dict(config["dial"])
        self._rows, self._first = int(config["rows"]), int(config["first_row"])
        self._actions_dir = Path(config["actions"]) if config["actions"] else None
        self._slots = {row: _Slot(row) for row in range(self._first, self._first + self._rows)}
        self._runnable: deque[tuple[_Slot, int, Action]] = deque()  # slot, tag, action (-1: ask the player)
        self._ready: list[tuple[int, int]] = []
        self._new_steps = 0
        self._reported = time.perf_counter()
        # Half of the rows a message: the server works on one half while this worker steps the other.
        self._bulk = max(1, (self._rows + 1) // 2)
        first = self._slots[self._first]
        self._make_env(first, config["stickiness"])
        self._spec = EnvSpec.of(first.env)
        knowledge = Path(config["knowledge"]) if config["knowledge"] else None
        self._players = self._env.rules.players(self._env, self._spec.num_actions, knowledge)
        self._shared: SharedRows | None = None
        self._send({"hello": self._spec.to_json()})

    def run(self) -> None:
        """Work until the pipe is closed."""
        connection, runnable, waiter = self._connection, self._runnable, Waiter()
        waiter.add(connection)
        while True:
            if not runnable:
                self._report()
                self._take(connection.recv_bytes())
            while waiter.wait(0):
                self._take(connection.recv_bytes())
            for _ in range(len(runnable)):
                slot, tag, action = runnable.popleft()
                if tag == slot.tag:
                    self._step(slot, action)

    def close(self) -> None:
        """Let the environments go: those that are served hold a session each."""
        for slot in self._slots.values():
            if slot.env is not None:
                with contextlib.suppress(Exception):
                    slot.env.close()

    def _take(self, message: bytes) -> None:
        if message[0] == messages.ACTIONS:
            for row, tag, action in messages.array_of(message, 3).tolist():
                self._runnable.append((self._slots[row], tag, action))
            return
        if message[0] == messages.DESKTOP:
            self._runnable.extend((self._slots[row], tag, action) for row, tag, action in messages.desktop_of(message))
            return
        value = messages.json_of(message)
        if "attach" in value:
            self._shared = SharedRows.attach(value["attach"], self._spec, value["rows"])
        for task in value.get("assign", ()):
            self._begin(self._slots[task["row"]], task)

    def _begin(self, slot: _Slot, task: Mapping[str, Any]) -> None:
        self._report()  # a reset takes long
        slot.task, slot.tag = task, task["tag"]
        slot.steps, slot.score, slot.actions, slot.rewards = 0, 0.0, [], []
        slot.started = time.perf_counter()
        self._make_env(slot, task["stickiness"])
        observation, info = slot.env.reset(seed=task["env_seed"])
        given, before = task.get("instruction"), slot.instruction
        slot.instruction = str(info.get("instruction", "")) if given is None else given
        if slot.instruction != before:
            self._send({"instruction": {"row": slot.row, "text": slot.instruction}})
        if task["player"] in AGENTS:
            slot.player = None
            self._show(slot, observation)
        else:
            slot.player = self._players(task["player"], task["action"])
            slot.player.reset(task["sampling_seed"])
            self._runnable.append((slot, slot.tag, -1))

    def _make_env(self, slot: _Slot, stickiness: float | None) -> None:
        key = repr(stickiness)
        if slot.env is not None and slot.env_key == key:
            return
        if slot.env is not None:
            slot.env.close()
        slot.env = make_env(self._env.family, self._env.game, **self._env.factory_options(stickiness), **self._dial)
        slot.env_key = key
        # OpenCV's own threads would only fight the other workers.
        if (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(1)

    def _step(self, slot: _Slot, action: Action) -> None:
        begin = time.perf_counter()
        late = begin - self._reported > _REPORT_S or slot.step_s > _REPORT_S
        if self._ready and late:
            self._report()
        if slot.player is not None:
            action = slot.player.act(slot.env)
        played = action if isinstance(action, DesktopAction) else action + self._spec.first_action
        observation, reward, terminated, truncated, info = slot.env.step(played)
        slot.steps += 1
        slot.score += float(reward)
        slot.actions.append(action)
        slot.rewards.append(float(reward))
        self._new_steps += 1
        slot.step_s = time.perf_counter() - begin
        truncated = truncated or (slot.steps >= self._env.max_steps and not terminated)
        if terminated or truncated:
            self._finish(slot, bool(terminated), bool(truncated), info)
        elif slot.player is None:
            self._show(slot, observation)
        else:
            self._runnable.append((slot, slot.tag, -1))
            if time.perf_counter() - self._reported > _PROGRESS_S:
                self._report()

    def _show(self, slot: _Slot, observation: Any) -> None:
        assert self._shared is not None  # noqa: S101 - the parent assigns only after it said where the memory is
        self._shared.write(slot.row, observation)
        if not self._ready:
            self._reported = time.perf_counter()
        self._ready.append((slot.row, slot.tag))
        if len(self._ready) >= self._bulk:
            self._report()

    def _report(self) -> None:
        if self._ready or self._new_steps:
            self._connection.send_bytes(messages.ready_message(self._new_steps, self._ready))
            self._ready, self._new_steps = [], 0
        self._reported = time.perf_counter()

    def _finish(self, slot: _Slot, terminated: bool, truncated: bool, info: Mapping[str, Any]) -> None:
        self._report()
        actions = pack_actions(slot.actions, self._spec.num_actions)
        rewards = np.array(slot.rewards, np.float64)
        if self._actions_dir is not None:
            _write_actions(self._actions_dir / slot.task["path"], actions, rewards)
        digest = hashlib.sha256(packed_bytes(actions) + rewards.tobytes()).hexdigest()[:16]
        self._send({
            "finished": {
                "row": slot.row,
                "tag": slot.tag,
                "score": slot.score,
                "steps": slot.steps,
                "terminated": terminated,
                "truncated": truncated,
                "digest": digest,
                "seconds": round(time.perf_counter() - slot.started, 3),
                "facts": {**({"instruction": slot.instruction} if slot.instruction else {}), **_facts(info)},
            }
        })  # fmt: skip
        slot.tag = 0

    def _send(self, value: Mapping[str, Any]) -> None:
        self._connection.send_bytes(messages.json_message(value))


def _facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the environment says of its episode, as JSON knows it: numbers, words, truth."""
    facts = {}
    for name, value in (info.get("episode_facts") or {}).items():
        plain = value.item() if isinstance(value, np.generic) else value
        facts[str(name)] = plain if isinstance(plain, bool | int | float | str) else str(plain)
    return facts


def _write_actions(path: Path, actions: Mapping[str, Any], rewards: Any) -> None:
    """Write the episode's actions, atomically: with the seed they are the episode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **actions, reward=rewards)
