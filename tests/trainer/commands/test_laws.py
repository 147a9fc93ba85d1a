import argparse
import csv
import json

import pytest
from surfaces import SMALL, grid

from playserve.errors import BadSettingError
from playserve_trainer.commands import laws
from playserve_trainer.laws.refusals import TooFarError, TooFewCellsError

BUDGETS = (1e10, 2e10, 5e10, 1e11, 2e11, 5e11, 1e12)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table as others publish them: C, N, D and loss, nothing of ours."""
    cells = grid(SMALL, BUDGETS, noise=0.003)
    path = tmp_path_factory.mktemp("table") / "published.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["C", "Model Size", "Training Tokens", "loss"])
        writer.writerows(zip(cells.flops, cells.params, cells.samples, cells.loss, strict=True))
    return path


@pytest.fixture
def call(capsys):
    def run(*arguments):
        parser = argparse.ArgumentParser()
        laws.configure(parser)
        assert laws.run(parser.parse_args([*map(str, arguments), "--processes", "1"])) == 0
        return capsys.readouterr().out

    return run


def test_a_published_table_is_refitted_by_one_command(call, table, tmp_path):
    out = call("fit", table, "--resamples", 6, "--starts", 4, "--json", tmp_path / "fit.json")
    assert "parabola" in out
    assert "a + b = 1 by definition" in out
    assert "variable projection and 4 starts: " in out
    value = json.loads((tmp_path / "fit.json").read_text())
    number = value["groups"][0]["laws"]["parabola"]["numbers"]["n_exponent"]["value"]
    assert number == pytest.approx(0.6, abs=0.06)


def test_a_forecast_names_size_data_and_loss_with_intervals(call, table):
    out = call("forecast", table, "--flops", "1e13", "--resamples", 6)
    assert "10.0x" in out
    assert "parametric" in out


def test_far_forecasts_want_a_flag(call, table):
    with pytest.raises(TooFarError, match="--beyond"):
        call("forecast", table, "--flops", "1e15", "--resamples", 2)
    assert "1e+15" in call("forecast", table, "--flops", "1e15", "--resamples", 2, "--beyond")


def test_a_report_is_written(call, table, tmp_path):
    pytest.importorskip("matplotlib")
    out = call("report", table, "--out", tmp_path / "r", "--resamples", 2, "--starts", 0, "--title", "Mine")
    assert "index.html" in out
    assert "<h1>Mine</h1>" in (tmp_path / "r" / "index.html").read_text()
    assert json.loads((tmp_path / "r" / "report.json").read_text())["title"] == "Mine"


@pytest.mark.parametrize("window", ["0", "0.5x", "wide", "-1"])
def test_a_window_that_is_none_is_refused(call, table, window):
    with pytest.raises(BadSettingError, match="--window"):
        call("fit", table, f"--window={window}")


@pytest.mark.parametrize("window", ["1", "1.5x", "all"])
def test_windows(call, table, window):
    assert "parabola" in call("fit", table, "--window", window, "--resamples", 2, "--starts", 0)


def test_bad_settings_are_named(call, table):
    with pytest.raises(BadSettingError, match="--flops"):
        call("forecast", table, "--flops", "-1")
    with pytest.raises(BadSettingError, match="--expert"):
        call("fit", table, "--expert", "breakout=much")
    with pytest.raises(BadSettingError, match="--resamples"):
        call("fit", table, "--resamples", "-1")
    with pytest.raises(TooFewCellsError, match="no cell with task 'pong'"):
        call("fit", table, "--task", "pong")
