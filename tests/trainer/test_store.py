import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import pytest
import torch

from playserve.errors import (
    BadSettingError,
    DataLossError,
    NotFoundError,
    PolicyNotFoundError,
    VersionNotFoundError,
)
from playserve_trainer.checkpoint import MANIFEST_NAME, WEIGHTS_NAME, Manifest, is_complete, load, save
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.registry import build
from playserve_trainer.store import CheckpointStore, Entry


def _save(directory: Path, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    policy = build("tiny_recurrent", {"hidden": 8})
    save(directory, policy, Manifest.describe(policy, seed=seed))
    return policy


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    _save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "store" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/store")


@pytest.fixture
def folder_store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "store")


@pytest.fixture
def remote(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(f"memory://{uuid.uuid4().hex}")


def test_a_store_that_is_not_there_is_empty(store: CheckpointStore) -> None:
    assert store.list() == []
    with pytest.raises(PolicyNotFoundError, match="it has: none"):
        store.latest("breakout")


def test_versions_count_from_1_for_each_policy(store: CheckpointStore, checkpoint: Path) -> None:
    assert [store.publish("pong", checkpoint) for _ in range(11)] == [str(i) for i in range(1, 12)]
    assert store.publish("breakout", checkpoint) == "1"
    assert store.latest("pong") == "11"
    assert store.list() == [Entry("breakout", "1"), *(Entry("pong", str(i)) for i in range(1, 12))]


def test_what_is_published_is_fetched(store: CheckpointStore, tmp_path: Path) -> None:
    policies = [_save(tmp_path / f"c{seed}", seed) for seed in range(2)]
    versions = [store.publish("pong", tmp_path / f"c{seed}") for seed in range(2)]
    for policy, version in zip(policies, versions, strict=True):
        loaded, manifest = load(store.fetch("pong", version, tmp_path / "cache"))
        assert (manifest.policy_spec().name, manifest.policy_spec().version) == ("pong", version)
        assert manifest == store.manifest("pong", version)
        assert torch.equal(loaded.head.weight, policy.head.weight)


def test_a_local_store_is_read_in_place(folder_store: CheckpointStore, checkpoint: Path, tmp_path: Path) -> None:
    folder_store.publish("pong", checkpoint)
    assert folder_store.fetch("pong", "1", tmp_path / "cache") == tmp_path / "store" / "pong" / "1"
    assert not (tmp_path / "cache").exists()


def test_a_remote_version_is_fetched_once(remote: CheckpointStore, checkpoint: Path, tmp_path: Path) -> None:
    remote.publish("pong", checkpoint)
    folder = remote.fetch("pong", "1", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "pong" / "1"
    written = (folder / WEIGHTS_NAME).stat().st_mtime_ns
    assert remote.fetch("pong", "1", tmp_path / "cache") == folder
    assert (folder / WEIGHTS_NAME).stat().st_mtime_ns == written
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_a_damaged_cache_is_fetched_again(remote: CheckpointStore, checkpoint: Path, tmp_path: Path) -> None:
    remote.publish("pong", checkpoint)
    folder = remote.fetch("pong", "1", tmp_path / "cache")
    (folder / WEIGHTS_NAME).write_bytes(b"rust")
    load(remote.fetch("pong", "1", tmp_path / "cache"))
    (folder / MANIFEST_NAME).unlink()
    load(remote.fetch("pong", "1", tmp_path / "cache"))


def test_a_damaged_version_is_not_handed_out(store: CheckpointStore, checkpoint: Path, tmp_path: Path) -> None:
    store.publish("pong", checkpoint)
    with fsspec.open(f"{store.url}/pong/1/{WEIGHTS_NAME}", "wb") as file:
        file.write(b"rust")
    with pytest.raises(DataLossError, match=WEIGHTS_NAME):
        store.fetch("pong", "1", tmp_path / "cache")
    assert not (tmp_path / "cache" / "pong" / "1").exists()


def test_only_whole_checkpoints_are_published(store: CheckpointStore, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        store.publish("pong", tmp_path / "nothing")
    (checkpoint / WEIGHTS_NAME).write_bytes(b"rust")
    with pytest.raises(DataLossError):
        store.publish("pong", checkpoint)
    assert store.list() == []


def test_an_unfinished_version_is_not_there_and_its_number_not_used_again(
    folder_store: CheckpointStore, checkpoint: Path, tmp_path: Path
) -> None:
    folder_store.publish("pong", checkpoint)
    folder_store.publish("pong", checkpoint)
    (tmp_path / "store" / "pong" / "2" / MANIFEST_NAME).unlink()  # as if its publisher had been killed
    assert folder_store.list() == [Entry("pong", "1")]
    assert folder_store.latest("pong") == "1"
    with pytest.raises(VersionNotFoundError, match="it has: 1"):
        folder_store.fetch("pong", "2", tmp_path / "cache")
    assert folder_store.publish("pong", checkpoint) == "3"


def test_concurrent_publishers_each_get_a_version(
    folder_store: CheckpointStore, checkpoint: Path, tmp_path: Path
) -> None:
    def publish(_: int) -> str:
        return CheckpointStore(folder_store.url).publish("pong", checkpoint)

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(publish, range(24)))
    assert sorted(map(int, versions)) == list(range(1, 25))
    assert all(is_complete(tmp_path / "store" / "pong" / version) for version in versions)


def test_a_number_is_taken_once_whoever_comes_at_the_same_instant(tmp_path: Path) -> None:
    """The window of a claim that looks and then writes is microseconds: too small for whole publications to hit."""
    rounds, claimants = 100, 8
    together = Barrier(claimants)
    stores = [CheckpointStore(tmp_path / "store") for _ in range(claimants)]

    def claim(store: CheckpointStore) -> list[Entry]:
        entries = []
        for i in range(rounds):
            together.wait(timeout=60)
            entries.append(Entry(f"pong{i}", store._claim(f"pong{i}")))
        return entries

    with ThreadPoolExecutor(claimants) as pool:
        entries = [entry for part in pool.map(claim, stores) for entry in part]
    assert len(set(entries)) == rounds * claimants


def test_concurrent_setters_of_aliases_lose_none(folder_store: CheckpointStore, checkpoint: Path) -> None:
    folder_store.publish("pong", checkpoint)

    def set_alias(i: int) -> None:
        CheckpointStore(folder_store.url).set_alias("pong", f"alias{i}", "1")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(set_alias, range(24)))
    assert folder_store.aliases("pong") == {f"alias{i}": "1" for i in range(24)}


def test_another_store_object_sees_what_is_new(store: CheckpointStore, checkpoint: Path) -> None:
    watcher = CheckpointStore(store.url)
    assert watcher.list() == []
    store.publish("pong", checkpoint)
    assert watcher.list() == [Entry("pong", "1")]
    store.publish("pong", checkpoint)
    assert watcher.latest("pong") == "2"


def test_aliases(store: CheckpointStore, checkpoint: Path) -> None:
    for _ in range(2):
        store.publish("pong", checkpoint)
    assert store.aliases("pong") == {}
    store.set_alias("pong", "prod", "1")
    store.set_alias("pong", "canary", "2")
    assert store.aliases("pong") == {"prod": "1", "canary": "2"}
    assert [store.resolve("pong", r) for r in ("prod", "canary", "latest", "", "1")] == ["1", "2", "2", "2", "1"]
    store.set_alias("pong", "prod", "2")
    assert store.resolve("pong", "prod") == "2"
    assert store.list() == [Entry("pong", "1"), Entry("pong", "2")]


def test_references_that_mean_nothing_are_refused(store: CheckpointStore, checkpoint: Path) -> None:
    store.publish("pong", checkpoint)
    store.set_alias("pong", "prod", "1")
    with pytest.raises(VersionNotFoundError, match=r"'beta'.*versions 1 and aliases prod"):
        store.resolve("pong", "beta")
    with pytest.raises(VersionNotFoundError):
        store.set_alias("pong", "beta", "9")
    with pytest.raises(PolicyNotFoundError, match="it has: pong"):
        store.resolve("breakout")
    for alias in ("3", "latest", "../up", ""):
        with pytest.raises(BadSettingError):
            store.set_alias("pong", alias, "1")


@pytest.mark.parametrize("name", ["..", "../pong", "a/b", "/etc", "", ".hidden", "Pong", "a..b"])
def test_names_that_leave_the_store_are_refused(
    store: CheckpointStore, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    for call in (
        lambda: store.publish(name, checkpoint),
        lambda: store.latest(name),
        lambda: store.manifest(name, "1"),
        lambda: store.fetch(name, "1", tmp_path / "cache"),
        lambda: store.aliases(name),
    ):
        with pytest.raises(BadSettingError, match="name"):
            call()


@pytest.mark.parametrize("version", ["..", "../1", "1/../1", "", "01", "-1", "1.0", "²"])
def test_versions_that_are_no_numbers_are_refused(
    store: CheckpointStore, checkpoint: Path, tmp_path: Path, version: str
) -> None:
    store.publish("pong", checkpoint)
    with pytest.raises(VersionNotFoundError):
        store.fetch("pong", version, tmp_path / "cache")


def test_foreign_files_are_ignored(folder_store: CheckpointStore, checkpoint: Path, tmp_path: Path) -> None:
    folder_store.publish("pong", checkpoint)
    for path in ("README", "Not A Policy/1/manifest.json", "pong/drafts/manifest.json", "pong/notes.txt"):
        (tmp_path / "store" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / path).write_text("x")
    assert folder_store.list() == [Entry("pong", "1")]


def test_damaged_aliases_are_data_loss(folder_store: CheckpointStore, checkpoint: Path, tmp_path: Path) -> None:
    folder_store.publish("pong", checkpoint)
    for text in ("{", "[]", '{"prod": 1}'):
        (tmp_path / "store" / "pong" / "aliases.json").write_text(text)
        with pytest.raises(DataLossError, match=r"aliases\.json"):
            folder_store.aliases("pong")
