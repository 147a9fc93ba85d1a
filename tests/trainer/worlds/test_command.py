"""`playserve worlds`: from a checkpoint and a cache to tables, files and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from playserve.cli import main
from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.store import CheckpointStore
from playserve_trainer.worlds.strips import dream_beside
from playserve_trainer.worlds.subject import Subject


def test_a_world_of_a_store_is_judged_into_a_table_and_a_file(
    cache: TokenCache, world_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CheckpointStore(str(tmp_path / "store")).publish("bars", world_folder)
    command = ["worlds", "judge", "bars@1", "--store", str(tmp_path / "store"), "--data", str(cache.folder)]
    command += ["--starts", "12", "--horizons", "1,4", "--resamples", "50", "--json", str(tmp_path / "judged.json")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "start repeated" in out
    assert "seed 0, temperature 1" in out
    found = json.loads((tmp_path / "judged.json").read_text())
    assert set(found["at"]) == {"1", "4"}
    assert found["at"]["1"]["starts"] == 12


def test_a_strip_shows_real_frames_above_dreamed_ones(cache: TokenCache, world_folder: Path, tmp_path: Path) -> None:
    strip, film = tmp_path / "strip.png", tmp_path / "film.gif"
    command = ["worlds", "strip", str(world_folder), "--data", str(cache.folder), "--out", str(strip)]
    assert main([*command, "--film", str(film), "--starts", "2", "--steps", "0,1,3"]) == 0
    with Image.open(strip) as picture:
        width, height = picture.size
        assert width == 6 + 3 * (96 + 6)
        assert height == 6 + 2 * (2 * 96 + 3 * 14 + 12)
        # The first tile is the start: black, but for its bar of a quarter.
        tile = picture.convert("L").crop((6, 6 + 28, 6 + 96, 6 + 28 + 96))
        assert tile.histogram()[255] == 96 * 24
    with Image.open(film) as moving:
        assert moving.format == "GIF"
        assert moving.width > 2 * moving.height
    assert main([*command[:-1], str(tmp_path / "strip.txt")]) == 2


def test_probes_are_told(cache: TokenCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worlds", "probe", "--data", str(cache.folder), "--json", str(tmp_path / "probes.json")]) == 0
    assert "column" in capsys.readouterr().out
    assert json.loads((tmp_path / "probes.json").read_text())["each"]["column"]["readable"]


def test_agents_are_ranked_from_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, title in (("real", "the game"), ("imagined", "the world")):
        for agent in range(10):
            value = {
                "policy": {"name": f"agent-{agent}", "version": "1"}, "title": title, "complete": True,
                "rows": [{"key": "sample", "role": "agent"}],
                "episodes": [{"row": "sample", "score": float(agent + at % 3)} for at in range(9)],
            }  # fmt: skip
            (tmp_path / f"{side}-{agent}").mkdir()
            (tmp_path / f"{side}-{agent}" / "results.json").write_text(json.dumps(value))
    folders = {side: [str(path) for path in sorted(tmp_path.glob(f"{side}-*"))] for side in ("real", "imagined")}
    command = ["worlds", "rank", "--real", *folders["real"], "--imagined", *folders["imagined"], "--resamples", "100"]
    assert main([*command, "--json", str(tmp_path / "ranks.json")]) == 0
    assert "rank correlation (Spearman): 1.000" in capsys.readouterr().out
    assert json.loads((tmp_path / "ranks.json").read_text())["spearman"]["value"] == pytest.approx(1.0)
    assert main(["worlds", "rank", "--real", *folders["real"][:5], "--imagined", *folders["imagined"]]) == 2
    assert "--few" in capsys.readouterr().err


def test_rows_of_a_strip_are_of_different_episodes_and_long_enough(subject: Subject) -> None:
    dreams = dream_beside(subject, starts=3, steps=4, seed=3)
    assert len({beside.title.partition(",")[0] for beside in dreams}) == 3
    for beside in dreams:
        assert len(beside.real_THWC) == len(beside.dream_THWC) == 1 + len(beside.uncertainty_T)
    assert max(len(beside.real_THWC) for beside in dreams) == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--horizons", "1,x"], "--horizons is a list of whole numbers from 1 on"),
        (["--starts", "0"], "starts and batch are at least 1"),
        (["--given", "1"], "the world begins with 2"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    flags: list[str], said: str, cache: TokenCache, world_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worlds", "judge", str(world_folder), "--data", str(cache.folder), *flags]) == 2
    assert said in capsys.readouterr().err
