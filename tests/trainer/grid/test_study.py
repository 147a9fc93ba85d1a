"""Studies: read from TOML, wrong keys named, packaged ones whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError, PlayserveError
from playserve_trainer.grid.study import Sizes, Study, load_study, packaged_studies
from playserve_trainer.grid.tables import parse, to_json

_TIERS = ("smoke", "laptop", "gpu", "cluster")
_STUDIES = ["atari-isoflop", "bc-token-vs-cnn", "char-mechanism", "doom-data", "doom-decoder", "doom-inverse",
            "nethack-data", "wm-parallel", "wm-tokens"]  # fmt: skip
# Nobody plays characters, and a world is judged by what it shows.
_WITHOUT_RETURNS = {"char-mechanism", "wm-parallel", "wm-tokens"}


@pytest.mark.parametrize("tier", _TIERS)
@pytest.mark.parametrize("name", _STUDIES)
def test_every_packaged_study_has_every_tier(name: str, tier: str) -> None:
    study = load_study(name, tier)
    assert (study.study, study.tier) == (name, tier)
    assert study.data
    assert study.returns.command or name in _WITHOUT_RETURNS
    assert parse(Study, to_json(study), "again") == study


def test_the_packaged_studies_are_those_of_the_issue() -> None:
    assert list(packaged_studies()) == _STUDIES
    laptop = load_study("atari-isoflop", "laptop")
    assert laptop.tasks == ("freeway", "breakout")
    assert laptop.budgets == (1e11, 2e11, 5e11, 1e12, 2e12, 5e12, 1e13)
    assert laptop.hold_out == (3e13,)
    assert 8 in laptop.size.listed()
    assert laptop.seeds[:3] == (3, 3, 3)
    doom = load_study("doom-data", "laptop")
    assert (len(doom.unique), len(doom.size.listed()), doom.stop.rule) == (6, 3, "held-out")
    agents = load_study("bc-token-vs-cnn", "laptop")
    assert [agents.family_of(name) for name in agents.variants] == ["bc-token", "bc-cnn"]
    for name in ("bc-token-vs-cnn", "char-mechanism", "wm-tokens"):
        study = load_study(name, "laptop")
        assert study.hold_out == (10 * study.budgets[-1],)
        assert study.seeds == (3,)


def test_a_tier_is_laid_over_the_rest(toy_study: Path) -> None:
    study = load_study(str(toy_study), "long")
    assert study.budgets == (2e8, 6e9)
    assert study.tuning.candidates == ()
    assert study.variants["broken"].sizes == (1,)
    assert study.training["batch_size"] == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("studdy = 1\n", r"unknown \['studdy'\].*known are study, tier, family"),
        ('seeds = "many"\n', "seeds is a list, not 'many'"),
        ("seeds = [1, 2]\n", "seeds is one number, or one for each of 1 budgets"),
        ("window = 2\n", "a window of sizes wants a centre"),
        ("unique = [0.0]\n", "shares above 0"),
        ('stop = { rule = "tomorrow" }\n', "stop.rule is one of budget, held-out, not 'tomorrow'"),
        ('stop = { rule = "held-out" }\nhold_out = [9e9]\n', "one budget"),
        ("[variants.a]\nsizes = [1]\ncentre = { n0 = 1, c0 = 1, exponent = 1 }\n", "variant a has sizes, and a centre"),
        ("centre = { n0 = 1.0, c0 = 1.0 }\n", r"centre: unknown \[\], missing \['exponent'\]"),
        ("evaluation = { samples = 1.5 }\n", "evaluation.samples is int, not 1.5"),
    ],
)
def test_wrong_keys_and_values_are_named(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "study.toml"
    head = 'study = "x"\nfamily = "atari"\ntasks = ["toy"]\nsize = { dial = "width", values = [1] }\n'
    path.write_text(head + change + "[tiers.t]\nbudgets = [1e9]\n")
    with pytest.raises(BadSettingError, match=message):
        load_study(str(path), "t")


@pytest.mark.parametrize(
    ("text", "tier", "error", "message"),
    [
        (None, "smoke", NotFoundError, "neither a file nor a packaged study: atari-isoflop, bc-token-vs-cnn"),
        ("a = [", "t", DataLossError, "no TOML"),
        ("[tiers.a]\n[tiers.b]\n", "c", BadSettingError, "no tier 'c'; it has a, b"),
    ],
)
def test_missing_studies_and_tiers_are_typed_errors(
    tmp_path: Path, text: str | None, tier: str, error: type[PlayserveError], message: str
) -> None:
    path = tmp_path / "study.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        load_study(str(path), tier)


def test_a_geometric_dial_is_rounded_and_has_no_value_twice() -> None:
    assert Sizes(dial="width", first=8, ratio=1.4142, count=5).listed() == (8, 11, 16, 23, 32)
    assert Sizes(dial="width", first=1, ratio=1.2, count=4).listed() == (1, 2)
    assert Sizes(dial="width", first=32, ratio=1.5, count=4, multiple=32).listed() == (32, 64, 96)
    with pytest.raises(BadSettingError, match="give values, or first"):
        Sizes(dial="width", values=(1,), first=3)
