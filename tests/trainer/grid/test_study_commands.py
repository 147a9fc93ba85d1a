"""The commands that packaged studies hold are commands of this very version."""

from __future__ import annotations

import shlex

import pytest

from playserve.cli import build_parser
from playserve_trainer.grid.study import load_study, packaged_studies

_TIERS = ("smoke", "laptop", "gpu", "cluster")


@pytest.mark.parametrize("name", list(packaged_studies()))
def test_they_are_understood(name: str) -> None:
    parser = build_parser()
    for tier in _TIERS:
        study = load_study(name, tier)
        for text in study.data:
            parser.parse_args([part.format(task=study.tasks[0], data="data") for part in shlex.split(text)])
        for returns in (study.returns, study.transfer):
            if returns.command:
                played = [part.replace("{task}", study.tasks[0]) for part in returns.command]
                parser.parse_args(["rollout", *played, "--episodes", "1", "--argmax-episodes", "0", "--no-baselines"])
