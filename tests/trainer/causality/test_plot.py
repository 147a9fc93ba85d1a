"""Measurements of several checkpoints in one figure, and those that do not belong into one."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_trainer.causality.plot import read_points
from playserve_trainer.commands import causality
from playserve_trainer.models.p2p import P2PPolicy


def _call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    causality.configure(parser)
    return causality.run(parser.parse_args(list(arguments)))


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, doom: Path, make_policy: Callable[..., P2PPolicy],
    save_policy: Callable[[P2PPolicy], Path],
) -> list[Path]:  # fmt: skip
    root, made = tmp_path_factory.mktemp("scores"), []
    for name, config in {"small": {}, "large": {"width": 64}}.items():
        folder = save_policy(make_policy(**config, size=name))
        for fraction in ("0.5", "1"):
            made.append(root / f"{name}-{fraction}.json")
            assert _call("score", str(folder), "--data", str(doom), "--held-out", "0", "--clips", "3", "--swaps", "1",
                         "--json", str(made[-1]), "--label", f"fraction={fraction}") == 0  # fmt: skip
    return made


def test_points_are_by_line_and_x(files: list[Path]) -> None:
    measure, points = read_points(files, "fraction", "size")
    assert measure == "causality score"
    assert [(p.line, p.x) for p in points] == [("large", 0.5), ("large", 1.0), ("small", 0.5), ("small", 1.0)]
    assert points[3].y == json.loads(files[1].read_text())["score"]
    assert all(p.low is not None and p.high is not None and p.low < p.y < p.high for p in points)
    by_size = read_points(files, "params", "fraction")[1]
    assert by_size[0].x < by_size[1].x


def test_what_cannot_be_compared_is_refused(files: list[Path], tmp_path: Path) -> None:
    value = json.loads(files[0].read_text())
    value["settings"]["clip_frames"] = 60
    (tmp_path / "other.json").write_text(json.dumps(value))
    with pytest.raises(BadSettingError, match="cannot be compared"):
        read_points([files[1], tmp_path / "other.json"], "fraction", "size")
    with pytest.raises(BadSettingError, match="has no 'colour'; it has folder, size, params"):
        read_points(files, "colour", "size")
    with pytest.raises(BadSettingError, match="size is 'small', wanted a number"):
        read_points(files, "size", "size")
    with pytest.raises(NotFoundError, match="is not there"):
        read_points([tmp_path / "none.json"], "fraction", "size")
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(DataLossError, match="no measurement"):
        read_points([tmp_path / "odd.json"], "fraction", "size")
    with pytest.raises(BadSettingError, match="label 'x', wanted KEY=VALUE"):
        _call("score", "c", "--data", "d", "--label", "x")


def test_the_command_draws(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="missing package: matplotlib")
    out = tmp_path / "new" / "figure"
    assert _call("plot", *map(str, files), "--x", "fraction", "--out", str(out)) == 0
    assert len(json.loads((out / "causality.json").read_text())["points"]) == 4
    assert (out / "causality.png").read_bytes().startswith(b"\x89PNG")
    assert "large" in capsys.readouterr().out
