"""Recordings of every format are found, each once; what is none is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from playserve.errors import BadSettingError, DataLossError
from playserve_client.pushing.bundle import Bundle
from playserve_client.pushing.units import find_units
from playserve_client.recordings import Episode, EpisodeMeta, write_episode


def episode(path: Path) -> Path:
    arrays = {"executed": np.zeros(2, np.int16), "label": np.zeros(2, np.int16), "reward": np.zeros(2, np.float32),
              "probes": np.zeros((2, 1), np.uint8)}  # fmt: skip
    meta = EpisodeMeta(env="atari", game="pong", seed=1, steps=2, score=0.0, terminated=True, truncated=False,
                       action_names=("NOOP",))  # fmt: skip
    write_episode(path, Episode(meta=meta, **arrays))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "recordings"
    episode(root / "atari" / "pong" / "episode-1.npz")
    (root / "p2p" / "one").mkdir(parents=True)
    (root / "p2p" / "one" / "annotation.proto").write_bytes(b"\x0a\x00")
    (root / "p2p" / "one" / "192x192.mp4").write_bytes(b"film")
    (root / "shard-1").mkdir()
    (root / "shard-1" / "manifest.json").write_text(json.dumps({"format": "playserve-nethack-shard"}))
    (root / "shard-2").mkdir()
    (root / "shard-2" / "journal.jsonl").write_text("")  # is being written
    (root / "games").mkdir()
    (root / "games" / "a.ttyrec.bz2").write_bytes(b"x")
    (root / "games" / "summary.json").write_text("{}")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "b.ttyrec").write_bytes(b"x")
    (root / "round").symlink_to(root)
    return root


def test_each_recording_is_found_once_by_what_it_is(folder: Path) -> None:
    found = find_units([folder, folder / "p2p"])
    assert {(unit.format, unit.path.name) for unit in found} == {
        ("episode", "episode-1.npz"), ("p2p", "one"), ("nethack-shard", "shard-1"), ("ttyrec", "a.ttyrec.bz2"),
    }  # fmt: skip
    assert len(found) == 4
    (one,) = find_units([folder / "atari" / "pong" / "episode-1.npz"])
    assert one.name == "episode-1.npz"


def test_what_is_no_recording_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="nothing at"):
        find_units([tmp_path / "missing"])
    with pytest.raises(BadSettingError, match="holds no recording"):
        find_units([folder / "games" / "summary.json"])
    (folder / "broken.npz").write_bytes(b"PK")
    with pytest.raises(DataLossError, match=r"broken\.npz"):
        find_units([folder])


def test_a_folder_is_the_same_tar_at_every_time_and_from_every_offset(folder: Path) -> None:
    import io
    import os
    import tarfile

    recording = folder / "p2p" / "one"
    first = Bundle(recording)
    whole = first.read(0, first.size + 100)
    assert len(whole) == first.size
    os.utime(recording / "192x192.mp4", (1, 1))
    again = Bundle(recording)
    assert again.sha256() == first.sha256()
    pieces = b"".join(again.read(offset, 7) for offset in range(0, again.size, 7))
    assert pieces == whole
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert archive.getnames() == ["192x192.mp4", "annotation.proto"]
        member = archive.extractfile("192x192.mp4")
        assert member is not None
        assert member.read() == b"film"


def test_links_are_not_followed_out_of_a_recording(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "p2p" / "one" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BadSettingError, match="link"):
        Bundle(folder / "p2p" / "one")


def test_a_file_that_shrinks_meanwhile_is_said(folder: Path) -> None:
    bundle = Bundle(folder / "p2p" / "one")
    (folder / "p2p" / "one" / "192x192.mp4").write_bytes(b"")
    with pytest.raises(DataLossError, match="shorter"):
        bundle.sha256()
