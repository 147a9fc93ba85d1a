"""The end in Triton: the versions of one policy, and the memory of their slots. It knows no Triton itself.

One process has one host. Batches run one at a time on the caller's thread; a version is loaded and warmed up in a
thread of its own, while batches of others go on (both touch different slots, as in a server that computes by itself).
"""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from playserve.errors import BadSettingError, DataLossError, NotReadyError, PlayserveError
from playserve_services.inference.instructions import GivenInstructions
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import TorchRuntime
from playserve_services.inference.slots import SlotPool
from playserve_services.inference.staging import Array
from playserve_services.triton.tensors import (
    CONTROL,
    INPUT,
    answer_arrays,
    control_arrays,
    control_of,
    rows_of,
)
from playserve_services.validation import in_words
from playserve_trainer.models.policy import INSTRUCTION
from playserve_trainer.store import CheckpointStore, Entry

__all__ = ["HostSettings", "SlotHost"]


class HostSettings(BaseModel):
    """Settings of one model; they travel as strings in its parameters, beside what is somebody else's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    policy: str
    """Its name in the store."""
    store: str
    """Folder or fsspec URL of the checkpoint store."""
    slots: int = Field(default=256, ge=1)
    """Slots of all fronts together, or sequences."""
    max_batch: int = Field(default=64, ge=1)
    """Most rows of a request."""
    fixed_batch: bool = False
    """Compute every batch at max_batch rows."""
    device: str = "cpu"
    """Torch device."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a computation."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the computation."""

    def to_parameters(self) -> dict[str, str]:
        """Return name and value as strings."""
        return {name: str(value) for name, value in self.model_dump().items()}

    @classmethod
    def from_parameters(cls, given: Mapping[str, str]) -> HostSettings:
        """Return the settings of a model's parameters.

        Raises:
            BadSettingError: One is missing or has a value that it cannot have.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise BadSettingError(f"the model's parameters: {in_words(error.errors())}") from error

    def factory(self, *, translates: bool) -> RuntimeFactory:
        """Return what makes versions; see `TorchRuntime` for `translates`."""
        return RuntimeFactory(
            slots=self.slots, max_batch=self.max_batch, buckets=[self.max_batch] if self.fixed_batch else None,
            device=self.device, autocast=self.precision == "bfloat16", translates=translates,
        )  # fmt: skip


class SlotHost:
    """See the module's docstring.

    Args:
        settings: Its settings.
    """

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        torch.set_num_threads(settings.threads)
        self._factory = settings.factory(translates=False)
        self._cache = tempfile.TemporaryDirectory(prefix="playserve-triton-")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="playserve-loader")
        self._versions: dict[str, Future[TorchRuntime]] = {}
        self._lock = threading.Lock()
        #: Changes with every start: memory of slots does not outlive it.
        self.boot = secrets.token_hex(8)

    def close(self) -> None:
        """Stop the thread that loads, and remove its files."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._cache.cleanup()

    def answer(self, arrays: Mapping[str, Array], parameters: Mapping[str, Any]) -> dict[str, Array]:
        """Return the tensors of the answer to a request.

        Args:
            arrays: Of the request: a round of a batch, or a control message.
            parameters: "version" and "log_prob" of a round.

        Raises:
            PlayserveError: It is neither, or of a version that is not loaded.
        """
        if CONTROL in arrays:
            value, blob = control_of(arrays)
            return control_arrays(*self._control(value, blob))
        runtime = self._runtime(str(parameters.get("version", "")))
        rows = rows_of(arrays, [tensor.name for tensor in runtime.spec.inputs])
        for row in rows:
            if not 0 < row.slot <= runtime.pool.capacity:
                raise BadSettingError(f"slot {row.slot} of 1 to {runtime.pool.capacity}")
        if isinstance(runtime.instructions, GivenInstructions):
            runtime.instructions.rows = _of(arrays, INPUT + INSTRUCTION, len(rows))
        return answer_arrays(runtime.run(rows, bool(parameters.get("log_prob"))))

    def _runtime(self, version: str) -> TorchRuntime:
        found = self._versions.get(version)
        if found is None or not found.done():
            raise NotReadyError(f"version {version!r} of {self._settings.policy} is not loaded here", retry_after_s=1.0)
        return found.result()

    def _control(self, value: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        action = value.get("do")
        if action == "load":
            return self._load(str(value["version"])), b""
        if action == "unload":
            self._versions.pop(str(value["version"]), None)
            return {"boot": self.boot}, b""
        if action in ("read", "write"):
            pool = self._runtime(str(value["version"])).pool
            return {"boot": self.boot}, self._move(pool, value, blob)
        raise BadSettingError(f"control message {action!r}; there are load, unload, read and write")

    def _load(self, version: str) -> dict[str, Any]:
        """Begin to load a version unless that has begun; return whether it is ready, and what it is."""
        with self._lock:
            if version not in self._versions:
                self._versions[version] = self._loader.submit(self._make, version)
            future = self._versions[version]
        if not future.done():
            return {"boot": self.boot, "ready": False}
        if (error := future.exception()) is not None:
            del self._versions[version]  # it may be mended, and asked for again
            what = str(error) if isinstance(error, PlayserveError) else f"{type(error).__name__}: {error}"
            return {"boot": self.boot, "ready": False, "error": what}
        runtime = future.result()
        return {
            "boot": self.boot, "ready": True, "layout": runtime.pool.digest, "slots": runtime.pool.capacity,
            "max_batch": self._settings.max_batch, "fixed_batch": self._settings.fixed_batch,
        }  # fmt: skip

    def _make(self, version: str) -> TorchRuntime:
        settings = self._settings
        entry = Entry(settings.policy, version)
        policy, spec = self._factory.read(CheckpointStore(settings.store), entry, Path(self._cache.name))
        with self._lock:
            pool = self._factory.pool(policy, settings.policy)
        return self._factory.make_runtime(spec, policy, pool)

    @staticmethod
    def _move(pool: SlotPool, value: Mapping[str, Any], blob: bytes) -> bytes:
        """Read or write a piece of a slot's memory."""
        slot, name, begin = int(value["slot"]), str(value["tensor"]), int(value["begin"])
        if not 0 < slot <= pool.capacity or name not in pool.tensors:
            raise BadSettingError(f"slot {slot} of 1 to {pool.capacity}, tensor {name!r} of {sorted(pool.tensors)}")
        size = int(value["size"]) if value["do"] == "read" else len(blob)
        if not 0 <= begin <= begin + size <= pool.sizes()[name]:
            raise BadSettingError(f"bytes {begin} to {begin + size} of {pool.sizes()[name]} of the tensor {name!r}")
        if value["do"] == "write":
            pool.write_chunk(slot, name, blob, begin)
            return b""
        out = bytearray(size)
        if size:
            pool.read_chunk(slot, name, memoryview(out), begin)
        return bytes(out)


def _of(arrays: Mapping[str, Array], name: str, rows: int) -> Array:
    if name not in arrays or len(arrays[name]) != rows:
        raise DataLossError(f"a batch of {rows} rows without as many of the tensor {name!r}")
    return arrays[name]
