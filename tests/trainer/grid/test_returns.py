"""Returns of cells: where they learnt and where they did not, each once, and on with what is missing."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from playserve_trainer.grid import returns
from playserve_trainer.grid.folder import GridFolder


class Player:
    """Stands for ``playserve serve`` and ``playserve rollout``: where the word "far" is played all scores are lower."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []

    def run(self, command: Sequence[str]) -> int:
        self.commands.append(tuple(command))
        given = dict(itertools.pairwise(command))
        score = 1.0 if "far" in command else 5.0
        episodes = [{"row": "sample", "score": score + number % 2} for number in range(int(given["--episodes"]))]
        path = Path(given["--out"]) / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"complete": True, "protocol": ["p"], "episodes": episodes}))
        return 0

    @contextlib.contextmanager
    def serve(self, command: Sequence[str], log: Path) -> Iterator[str]:
        yield "localhost:1"


def test_a_second_return_is_measured_where_nothing_was_learnt(
    finished_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = Player()
    monkeypatch.setattr(returns, "run_command", player.run)
    monkeypatch.setattr(returns, "serve", player.serve)
    folder = GridFolder(tmp_path / "grid")
    shutil.copytree(finished_grid, folder.root)
    cells = sorted(path.stem for path in folder.cells.glob("*.json"))
    plan = json.loads((folder.root / "plan.json").read_text())
    plan["study"]["returns"] |= {"command": ["doom", "near"], "episodes": 2, "cap": 2}
    (folder.root / "plan.json").write_text(json.dumps(plan))
    said: list[str] = []
    assert returns.measure_returns(folder, say=said.append) == len(cells)
    plan["study"]["transfer"] |= {"command": ["doom", "far"], "episodes": 2, "cap": 2, "seed_start": 7}
    (folder.root / "plan.json").write_text(json.dumps(plan))
    assert returns.measure_returns(folder, say=said.append) == len(cells)  # only what is missing
    assert len(player.commands) == 2 * len(cells)
    assert returns.measure_returns(folder, say=said.append) == 0
    for cell in cells:
        near, far = (
            json.loads((folder.returns / part / f"{cell}.json").read_text()) for part in (Path(), Path("transfer"))
        )
        assert (near["return_mean"], far["return_mean"], far["seed_start"]) == (5.5, 1.5, 7)
    assert f"1/{len(cells)} {cells[0]} transfer: 1.500 +- 0.500, 2 episodes" in said
