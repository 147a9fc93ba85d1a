"""Brings policy versions into the catalog: from the store, as they are published or asked for, and from Python.

The newest version of every policy in the store is loaded as soon as it is seen; others when somebody opens them. A
version is in the catalog only when it is warm. A damaged checkpoint is reported once and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from playserve.errors import BadSettingError, NotFoundError, NotReadyError, PlayserveError
from playserve.specs import PolicySpec
from playserve_services.inference.catalog import Catalog, LoadedPolicy, version_key
from playserve_services.inference.graphs import GraphMode
from playserve_services.inference.memory import SessionMemory
from playserve_services.inference.runtime import TorchRuntime
from playserve_services.inference.slots import SlotPool
from playserve_trainer import checkpoint
from playserve_trainer.models.policy import Policy
from playserve_trainer.store import CheckpointStore, Entry

__all__ = ["Factory", "PolicyLoader", "RuntimeFactory"]

_log = logging.getLogger(__name__)


class Factory(Protocol):
    """Makes versions that are ready to play, out of what a store has."""

    def read(self, store: CheckpointStore, entry: Entry, cache: Path) -> tuple[Policy, PolicySpec]:
        """Return the policy of a version as :meth:`make` wants it, and its spec. Any thread."""

    def pool(self, policy: Policy, name: str = "") -> SlotPool:
        """Return the slots of a policy's layout. Event loop's thread."""

    def make(self, spec: PolicySpec, policy: Policy, pool: SlotPool) -> LoadedPolicy:
        """Return a warm version. A thread that may wait."""


@dataclasses.dataclass(slots=True)
class RuntimeFactory:
    """Makes warm runtimes; versions of one state layout share a pool.

    Attributes:
        slots: Capacity of each pool, where memory allows it.
        max_batch: Most rows of a batch.
        buckets: Batch sizes to pad to, or None.
        device: Torch device.
        autocast: Compute in bfloat16: with weights that the policy makes for it, or else under autocast.
        graphs: One graph for each bucket, see `TorchRuntime`.
        compiler: Backend of torch.compile.
        session_bytes: Most memory of one pool; None: see `SessionMemory`.
        translates: See `TorchRuntime`.
        pools: By layout digest.
    """

    slots: int
    max_batch: int
    buckets: Sequence[int] | None = None
    device: str = "cpu"
    autocast: bool = False
    graphs: GraphMode = "off"
    compiler: str = "inductor"
    session_bytes: int | None = None
    translates: bool = True
    pools: dict[str, SlotPool] = dataclasses.field(default_factory=dict)

    def pool(self, policy: Policy, name: str = "") -> SlotPool:
        """Return the pool of a policy's layout; `name` is for people. Event loop's thread only.

        Raises:
            BadSettingError: Its memory does not hold one session.
        """
        digest = policy.layout()
        if digest not in self.pools:
            layout, memory = policy.state_layout(), SessionMemory(self.session_bytes, self.device)
            promised = sum(pool.bytes_per_slot * pool.capacity for pool in self.pools.values())
            capacity = memory.slots(name or policy.spec().family, layout, self.slots, promised)
            self.pools[digest] = SlotPool(digest, layout, capacity, self.device)
        return self.pools[digest]

    def read(self, store: CheckpointStore, entry: Entry, cache: Path) -> tuple[Policy, PolicySpec]:
        """Return the policy of a version as :meth:`make` wants it, and its spec. Raises as the store."""
        folder = store.fetch(entry.policy, entry.version, cache)
        policy, manifest = checkpoint.load(folder, device=torch.device(self.device))
        return policy, dataclasses.replace(manifest.policy_spec(), name=entry.policy, version=entry.version)

    def make(self, spec: PolicySpec, policy: Policy, pool: SlotPool) -> LoadedPolicy:
        """Return a warm version, its weights made for play. May run in any thread: it touches the scratch slot only."""
        return LoadedPolicy(self.make_runtime(spec, policy, pool))

    def make_runtime(self, spec: PolicySpec, policy: Policy, pool: SlotPool) -> TorchRuntime:
        """Return what runs it; see :meth:`make`."""
        prepared = policy.prepare_for_play("bfloat16" if self.autocast else "float32")
        autocast = self.autocast and not prepared
        runtime = TorchRuntime(
            spec,
            policy,
            pool,
            max_batch=self.max_batch,
            buckets=self.buckets,
            autocast=autocast,
            graphs=self.graphs,
            compiler=self.compiler,
            translates=self.translates,
        )
        runtime.warm_up()
        return runtime


class PolicyLoader:
    """See the module's docstring. Event loop's thread only; files are read and models warmed in a thread of its own.

    Args:
        catalog: Where versions go.
        factory: Makes them.
        store: Where they come from, or None.
        keep_versions: Versions of a policy that stay loaded.
        on_ready: Told each version that became ready.
        on_refused: Told the policy of each version that the store has and that cannot be served.
    """

    def __init__(
        self,
        catalog: Catalog,
        factory: Factory,
        store: CheckpointStore | None = None,
        keep_versions: int = 4,
        on_ready: Callable[[LoadedPolicy], None] = lambda policy: None,
        on_refused: Callable[[str], None] = lambda policy: None,
    ) -> None:
        self._catalog = catalog
        self._factory = factory
        self._store = store
        self._keep = keep_versions
        self._on_ready = on_ready
        self._on_refused = on_refused
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="playserve-loader")
        self._loading: dict[Entry, asyncio.Task[LoadedPolicy]] = {}
        self._damaged: set[Entry] = set()
        self._known: dict[Entry, PolicySpec] = {}
        self.ready = False  # set once everything that was there at the start is loaded
        self._cache = contextlib.ExitStack()
        self._cache_dir = Path(self._cache.enter_context(tempfile.TemporaryDirectory(prefix="playserve-cache-")))

    def close(self) -> None:
        """Stop the thread and remove the cache of remote checkpoints."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._cache.close()

    async def add_policy(self, name: str, policy: Policy, version: str = "1") -> LoadedPolicy:
        """Serve a policy object under a name."""
        spec = dataclasses.replace(policy.spec(), name=name, version=version)
        pool = self._factory.pool(policy, name)
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(self._threads, self._factory.make, spec, policy.eval(), pool)
        self._add(loaded)
        return loaded

    async def acquire(self, name: str, version: str = "") -> LoadedPolicy:
        """Return a version, loading it if the store has it.

        Raises:
            PolicyNotFoundError, VersionNotFoundError: Nobody has it.
            NotReadyError: Perhaps it is being loaded: the server has just started.
            DataLossError: The checkpoint is damaged.
        """
        try:
            return self._catalog.resolve(name, version)
        except NotFoundError:
            if self._store is None and not self.ready:
                raise NotReadyError("the server is still loading its policies", retry_after_s=1.0) from None
            if self._store is None:
                raise
        store = self._store
        loop = asyncio.get_running_loop()
        try:
            resolved = await loop.run_in_executor(self._threads, store.resolve, name, version)
        except (NotFoundError, BadSettingError):  # what cannot be a name is nobody's
            if not self.ready:
                raise NotReadyError("the server is still loading its policies", retry_after_s=1.0) from None
            return self._catalog.resolve(name, version)  # for its message: what is here
        return await self._load(Entry(name, resolved))

    def known(self) -> list[PolicySpec]:
        """Return the specs of versions that the store has and that are not loaded."""
        loaded = {(p.spec.name, p.spec.version) for p in self._catalog}
        return [spec for entry, spec in self._known.items() if (entry.policy, entry.version) not in loaded]

    async def refresh(self) -> None:
        """Look at the store once: take new newest versions and aliases, unload what is old and idle."""
        if self._store is None:
            return
        store, loop = self._store, asyncio.get_running_loop()
        entries = await loop.run_in_executor(self._threads, store.list)
        newest: dict[str, Entry] = {}
        for entry in entries:
            if entry.policy not in newest or version_key(entry.version) > version_key(newest[entry.policy].version):
                newest[entry.policy] = entry
        await loop.run_in_executor(self._threads, self._read_specs, entries)
        for name, entry in newest.items():
            try:
                self._catalog.set_aliases(name, await loop.run_in_executor(self._threads, store.aliases, name))
                if entry not in self._damaged and not self._is_loaded(entry):
                    await self._load(entry)
            except PlayserveError as error:
                self._refuse(entry, "served", error)
        self._unload()

    async def watch(self, poll_s: float) -> None:
        """Refresh for ever; a store that cannot be reached is tried again, what is loaded stays."""
        while True:
            await asyncio.sleep(poll_s)
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 - whatever a store does, sessions go on
                _log.exception("the store could not be read; what is loaded stays")

    def _read_specs(self, entries: Sequence[Entry]) -> None:
        assert self._store is not None  # noqa: S101 - the caller checked
        for gone in self._known.keys() - set(entries):
            del self._known[gone]
        for entry in entries:
            if entry not in self._known and entry not in self._damaged:
                try:
                    self._known[entry] = self._store.manifest(entry.policy, entry.version).policy_spec()
                except PlayserveError as error:
                    self._refuse(entry, "read", error)

    def _refuse(self, entry: Entry, what: str, error: PlayserveError) -> None:
        self._damaged.add(entry)
        self._on_refused(entry.policy)
        _log.error("policy %s version %s cannot be %s: %s", entry.policy, entry.version, what, error)

    def _is_loaded(self, entry: Entry) -> bool:
        return any(p.spec.version == entry.version for p in self._catalog.versions(entry.policy))

    async def _load(self, entry: Entry) -> LoadedPolicy:
        """Load once, however many ask; one who stops waiting does not stop the others."""
        task = self._loading.get(entry)
        if task is None:
            task = self._loading[entry] = asyncio.create_task(self._load_now(entry))
            task.add_done_callback(lambda _: self._loading.pop(entry, None))
        return await asyncio.shield(task)

    async def _load_now(self, entry: Entry) -> LoadedPolicy:
        loop = asyncio.get_running_loop()
        policy, spec = await loop.run_in_executor(self._threads, self._read, entry)
        pool = self._factory.pool(policy, entry.policy)
        loaded = await loop.run_in_executor(self._threads, self._factory.make, spec, policy, pool)
        self._add(loaded)
        return loaded

    def _read(self, entry: Entry) -> tuple[Policy, PolicySpec]:
        assert self._store is not None  # noqa: S101 - the caller checked
        return self._factory.read(self._store, entry, self._cache_dir)

    def _add(self, policy: LoadedPolicy) -> None:
        self._catalog.add(policy)
        _log.info("policy %s version %s is ready", policy.spec.name, policy.spec.version)
        self._on_ready(policy)

    def _unload(self) -> None:
        store_has = {(entry.policy, entry.version) for entry in self._known}
        for name in {p.spec.name for p in self._catalog}:
            for policy in self._catalog.versions(name)[self._keep :]:
                idle = policy.sessions == 0 and not self._catalog.aliases_of(policy)
                if idle and (name, policy.spec.version) in store_has:
                    self._catalog.remove(policy)
                    _log.info("policy %s version %s is unloaded", name, policy.spec.version)
