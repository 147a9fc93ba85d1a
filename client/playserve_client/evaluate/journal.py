"""The folder of one run: its settings, each finished episode as it ends, and nothing that a kill could tear.

``settings.json`` is written once, before the first episode; ``episodes.jsonl`` gets one line an episode, at once. The
same command on the same folder goes on where the last one stopped; other settings are refused.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from playserve.actions import Action
from playserve.errors import BadSettingError, DataLossError
from playserve.files import replacing, write_json
from playserve_client.evaluate.actions import unpack_actions
from playserve_client.evaluate.driver import Finished
from playserve_client.evaluate.plan import Assignment, Settings

__all__ = ["FORMAT_VERSION", "Journal", "Result", "differences"]

FORMAT_VERSION = 1
_SETTINGS, _EPISODES, _LOCK, _KNOWLEDGE = "settings.json", "episodes.jsonl", ".lock", "knowledge.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One finished episode, as it is kept. Fields as in :class:`Finished` and :class:`Assignment`.

    Attributes:
        row: Key of its row.
        number: Its number.
        env_seed: Seed of the environment.
        sampling_seed: Seed of the player's draws.
        score: Sum of unclipped rewards.
        steps: Steps of the environment.
        terminated: Whether the game ended by itself.
        truncated: Whether it was cut.
        digest: Digest of actions and rewards.
        attempts: How often it was begun.
        version: Policy version; empty for local players.
        seconds: How long it took.
        facts: What the environment said of the episode at its end.
    """

    row: str
    number: int
    env_seed: int
    sampling_seed: int
    score: float
    steps: int
    terminated: bool
    truncated: bool
    digest: str
    attempts: int = 1
    version: str = ""
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, finished: Finished) -> Result:
        """Return what is kept of an episode that ended."""
        assignment = finished.assignment
        return cls(
            row=assignment.row,
            number=assignment.number,
            env_seed=assignment.env_seed,
            sampling_seed=assignment.sampling_seed,
            score=finished.score,
            steps=finished.steps,
            terminated=finished.terminated,
            truncated=finished.truncated,
            digest=finished.digest,
            attempts=finished.attempts,
            version=finished.version,
            seconds=finished.seconds,
            facts=finished.facts,
        )


class Journal:
    """The folder `out`.

    Attributes:
        results: Finished episodes by (row key, number).
        version: Policy version that the folder's episodes were played by; empty before the first stream.
        damaged: Lines of ``episodes.jsonl`` that could not be read; their episodes are played again.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.results: dict[tuple[str, int], Result] = {}
        self.version = ""
        self.damaged = 0
        self._file: IO[bytes] | None = None
        self._head: dict[str, Any] = {}

    @property
    def actions_dir(self) -> Path:
        """Return where the actions of each episode lie."""
        return self.out / "actions"

    @property
    def knowledge(self) -> Path | None:
        """Return the folder's copy of the file that baselines draw from; None where there is none."""
        path = self.out / _KNOWLEDGE
        return path if path.exists() else None

    @contextmanager
    def open(self, settings: Settings, packages: Mapping[str, str], knowledge: bytes = b"") -> Iterator[Journal]:
        """Begin, or go on with, the run of `settings`; the folder is this process's until the end of the block.

        Args:
            settings: What is played.
            packages: Versions that decide what an episode is.
            knowledge: Content of the file that baselines draw from; `settings` holds its digest.

        Raises:
            BadSettingError: The folder holds a run of other settings or packages, or another process has it open.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _locked(self.out / _LOCK):
            head = {
                "format_version": FORMAT_VERSION,
                "settings": settings.to_json(),
                "packages": dict(packages),
                "version": "",
            }
            if (self.out / _SETTINGS).exists():
                self.load()
                changed = differences(self._head, head)
                if changed:
                    raise BadSettingError(f"{self.out} holds another run: {'; '.join(changed)}. Give another --out")
            else:
                self._head = head
                write_json(self.out / _SETTINGS, head)
            if knowledge:
                with replacing(self.out / _KNOWLEDGE) as temporary:
                    temporary.write_bytes(knowledge)
            self._file = open(self.out / _EPISODES, "ab")  # noqa: SIM115 - closed below
            try:
                self._end_line(self._file)
                yield self
            finally:
                self._file.close()
                self._file = None

    def load(self) -> Settings:
        """Read settings and results of a folder; return its settings."""
        path = self.out / _SETTINGS
        try:
            self._head = json.loads(path.read_text())
            if self._head["format_version"] != FORMAT_VERSION:
                raise BadSettingError(
                    f"{path} is of format version {self._head['format_version']}, wanted {FORMAT_VERSION}"
                )
            settings = Settings.from_json(self._head["settings"])
        except FileNotFoundError:
            raise BadSettingError(f"{self.out} holds no rollout: there is no {path.name}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError(f"{path} is damaged: {error}") from error
        self.version = self._head["version"]
        self._read_episodes()
        return settings

    @property
    def packages(self) -> dict[str, str]:
        """Return the versions of the packages that shape results."""
        return dict(self._head["packages"])

    def set_version(self, version: str) -> None:
        """Keep which version plays, once it is known; a second, other one is refused."""
        if self.version and version != self.version:
            raise BadSettingError(f"{self.out} was played by version {self.version!r}; the server now has {version!r}")
        if not self.version:
            self.version = self._head["version"] = version
            write_json(self.out / _SETTINGS, self._head)

    def has(self, assignment: Assignment) -> bool:
        """Return whether an episode is finished."""
        return (assignment.row, assignment.number) in self.results

    def actions(self, result: Result) -> list[Action]:
        """Return the actions of a finished episode, one a step; FileNotFoundError where they were not kept."""
        path = self.actions_dir / result.row / f"{result.number:06d}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return unpack_actions(stored)
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataLossError(f"{path} is damaged: {error}") from error

    def add(self, result: Result) -> None:
        """Keep one finished episode, on disk before this returns."""
        assert self._file is not None  # noqa: S101 - only an open journal is added to
        self.results[result.row, result.number] = result
        self._file.write(json.dumps(asdict(result)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _end_line(self, file: IO[bytes]) -> None:
        """Give a line that a kill tore an end, so that the next one stands alone."""
        path = self.out / _EPISODES
        if path.stat().st_size:
            with open(path, "rb") as existing:
                existing.seek(-1, os.SEEK_END)
                torn = existing.read(1) != b"\n"
            if torn:
                file.write(b"\n")
                file.flush()

    def _read_episodes(self) -> None:
        path = self.out / _EPISODES
        if not path.exists():
            return
        for line in path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError):
                self.damaged += 1
                continue
            self.results[result.row, result.number] = result


def differences(came: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in words where two heads of a journal differ, the policy's version left out."""
    flat_came, flat_wanted = _flat(came), _flat(wanted)
    return [
        f"{key} is {flat_came.get(key)!r}, not {flat_wanted.get(key)!r}"
        for key in sorted(flat_came.keys() | flat_wanted.keys())
        if key != "version" and flat_came.get(key) != flat_wanted.get(key)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = key if not prefix or prefix == "settings" else f"{prefix}.{key}"
        flat.update(_flat(item, name) if isinstance(item, Mapping) else {name: item})
    return flat


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: two runs in one folder are not noticed there
        yield
        return
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadSettingError(f"another rollout is running in {path.parent}") from None
        yield
