"""The end in a front: what stands in for slots, for a version, and for the factory that makes both.

A front has a range of Triton's slots to itself, `first_slot + 1` to `first_slot + slots`; several fronts of one Triton
are given ranges that do not meet. It holds no weights: a policy without them knows its layout, translates actions and
embeds instructions.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from playserve.errors import BadSettingError, LayoutMismatchError, ServerUnavailableError
from playserve.specs import PolicySpec
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.decoding import DesktopDecoder, num_heads, refuse_world
from playserve_services.inference.instructions import InstructionCache
from playserve_services.inference.runtime import Row, Rows, check_context
from playserve_services.inference.slots import SlotPool
from playserve_services.inference.staging import Array
from playserve_services.triton.link import TritonLink
from playserve_services.triton.tensors import control_arrays, control_of, request_arrays, rows_of_answer
from playserve_trainer import checkpoint
from playserve_trainer.models.policy import INSTRUCTION, Policy
from playserve_trainer.store import CheckpointStore, Entry

__all__ = ["TritonFactory", "TritonPool", "TritonRuntime"]

_POLL_S = 0.1
_LOAD_S = 600.0


class TritonPool(SlotPool):
    """Who owns which slot; their memory lies in Triton. Pieces of it are read and written by requests.

    Args:
        digest: Layout digest.
        policy: Without weights; it knows the layout.
        capacity: Slots of this front.
        first_slot: Of Triton's slots, the one before this front's first.
        link: To Triton.
    """

    def __init__(self, digest: str, policy: Policy, capacity: int, first_slot: int, link: TritonLink) -> None:
        super().__init__(digest, {}, capacity)
        self.layout = dict(policy.state_layout())
        self.first_slot = first_slot
        self._link = link
        #: Name and version of any model that is loaded there: pieces go through it.
        self.through: tuple[str, str] = ("", "")

    @property
    def bytes_per_slot(self) -> int:
        """See :class:`SlotPool`."""
        return sum(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """See :class:`SlotPool`."""
        return {name: torch.Size(t.shape).numel() * t.dtype.itemsize for name, t in self.layout.items()}

    def read_chunk(self, slot: int, name: str, out: memoryview, begin: int = 0) -> None:
        """See :class:`SlotPool`; it waits for Triton, so never call it on the loop's thread."""
        out[:] = self._move("read", slot, b"", tensor=name, begin=begin, size=len(out))

    def write_chunk(self, slot: int, name: str, data: memoryview | bytes, begin: int = 0) -> None:
        """See :class:`SlotPool`; it waits for Triton, so never call it on the loop's thread."""
        self._move("write", slot, data, tensor=name, begin=begin)

    def export_slot(self, slot: int) -> dict[str, bytes]:
        """See :class:`SlotPool`."""
        found = {name: bytearray(size) for name, size in self.sizes().items()}
        for name, data in found.items():
            if data:
                self.read_chunk(slot, name, memoryview(data))
        return {name: bytes(data) for name, data in found.items()}

    def _move(self, do: str, slot: int, data: memoryview | bytes, **what: str | int) -> bytes:
        model, version = self.through
        asked = {"do": do, "slot": self.first_slot + slot, "version": version, **what}
        _, blob = control_of(self._link.ask_blocking(model, control_arrays(asked, data)))
        return blob


class TritonRuntime:
    """One policy version whose batches Triton computes; a `Runtime`.

    Args:
        spec: Spec of the version, with name and version; the name is also that of Triton's model.
        policy: Without weights.
        pool: Of its layout.
        link: To Triton.
    """

    def __init__(self, spec: PolicySpec, policy: Policy, pool: TritonPool, link: TritonLink) -> None:
        self.spec, self.pool = spec, pool
        self._link = link
        refuse_world(spec, "Triton does not compute those")
        self._heads = num_heads(spec, policy)
        self._decoder = DesktopDecoder.of(spec, policy, self._heads)
        self._inputs = [tensor.name for tensor in spec.inputs]
        layout = check_context(spec, policy.context_inputs()).get(INSTRUCTION)
        self.instructions = (
            None if layout is None else InstructionCache(policy.embed_instruction, layout, 2 * pool.capacity + 1)
        )
        self._fixed = 0

    @property
    def heads(self) -> int:
        """See `Runtime`."""
        return self._heads

    def request(self, rows: Sequence[Row]) -> dict[str, Array]:
        """Return the tensors of a round."""
        if self._decoder is None:
            executed = [row.executed if isinstance(row.executed, tuple) else None for row in rows]
        else:
            executed = [self._decoder.encoded(row.executed) for row in rows]
        given = None if self.instructions is None else [self.instructions.get(row.instruction) for row in rows]
        return request_arrays(
            rows, self._inputs, self._heads, executed_BH=executed, instructions=given, first_slot=self.pool.first_slot
        )

    def answer(self, rows: Sequence[Row], arrays: Mapping[str, Array]) -> Rows:
        """Return what a round gave, from the tensors of its answer."""
        found = rows_of_answer(arrays)
        if self._decoder is not None:
            found.decoded, found.executed = self._decoder.decode(rows, found.actions)
        return found

    def run(self, rows: Sequence[Row], want_log_prob: bool) -> Rows:
        """See `Runtime`; it waits for Triton, so never call it on the loop's thread."""
        sent = self.request(rows)
        return self.answer(
            rows, self._link.ask_blocking(self.spec.name, sent, version=self.spec.version, log_prob=want_log_prob)
        )

    def padded(self, rows: int) -> int:
        """See `Runtime`."""
        return self._fixed or rows

    def warm_up(self) -> None:
        """Have Triton load the version, and wait until it is warm there. Never on the loop's thread.

        Raises:
            ServerUnavailableError: It is not loaded in time, or cannot be.
            LayoutMismatchError: What is there has another state layout.
            BadSettingError: Triton has fewer slots than this front's range needs.
        """
        deadline = time.monotonic() + _LOAD_S
        name = f"policy {self.spec.name} version {self.spec.version}"
        while True:
            asked = control_arrays({"do": "load", "version": self.spec.version})
            value, _ = control_of(self._link.ask_blocking(self.spec.name, asked))
            if value.get("ready"):
                break
            if "error" in value or time.monotonic() > deadline:
                raise ServerUnavailableError(f"{name} in Triton: {value.get('error', 'not loaded in time')}")
            time.sleep(_POLL_S)
        if value["layout"] != self.pool.digest:
            raise LayoutMismatchError(f"{name}: Triton has layout {value['layout']}, here it is {self.pool.digest}")
        last = self.pool.first_slot + self.pool.capacity
        if value["slots"] < last:
            raise BadSettingError(f"{name}: slots up to {last} are wanted; Triton's model has {value['slots']}")
        self._fixed = int(value["max_batch"]) if value["fixed_batch"] else 0
        self.pool.through = (self.spec.name, self.spec.version)
        if self.instructions is not None:
            self.instructions.prepare("")

    def prepare_instruction(self, text: str) -> None:
        """See `Runtime`."""
        if self.instructions is not None:
            self.instructions.prepare(text)

    def knows_instruction(self, text: str) -> bool:
        """See `Runtime`."""
        return self.instructions is None or self.instructions.knows(text)


@dataclasses.dataclass(slots=True)
class TritonFactory:
    """Makes versions that Triton computes; what `RuntimeFactory` is where a server computes by itself.

    Attributes:
        link: To Triton.
        slots: Of this front, for each state layout.
        first_slot: Of Triton's, the one before this front's first.
        pools: By layout digest.
    """

    link: TritonLink
    slots: int
    first_slot: int = 0
    pools: dict[str, TritonPool] = dataclasses.field(default_factory=dict)

    def read(self, store: CheckpointStore, entry: Entry, cache: Path) -> tuple[Policy, PolicySpec]:
        """Return the policy of a version without its weights, and its spec; raises as the store does."""
        manifest = store.manifest(entry.policy, entry.version)
        return checkpoint.outline(manifest), dataclasses.replace(
            manifest.policy_spec(), name=entry.policy, version=entry.version
        )

    def pool(self, policy: Policy, name: str = "") -> TritonPool:
        """Return the slots of a policy's layout. Event loop's thread only."""
        digest = policy.layout()
        if digest not in self.pools:
            self.pools[digest] = TritonPool(digest, policy, self.slots, self.first_slot, self.link)
        return self.pools[digest]

    def make(self, spec: PolicySpec, policy: Policy, pool: SlotPool) -> LoadedPolicy:
        """Return a version that is warm in Triton. Never on the loop's thread; raises as `TritonRuntime.warm_up`."""
        assert isinstance(pool, TritonPool)  # noqa: S101 - this factory made it
        runtime = TritonRuntime(spec, policy, pool, self.link)
        runtime.warm_up()
        return LoadedPolicy(runtime)
