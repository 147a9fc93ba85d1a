"""The settings of `playserve serve` that one field cannot check alone."""

from __future__ import annotations

import argparse

import pytest
from pydantic import ValidationError

from playserve.errors import BadSettingError
from playserve_services.commands import serve
from playserve_services.inference.settings import ServeSettings


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.configure(parser)
    return parser.parse_args(arguments)


def test_graphs_are_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServeSettings().graphs == "auto"
    assert parsed("--graphs", "compile").graphs == "compile"
    assert parsed().graphs is None, "the default is the settings' own"
    monkeypatch.setenv("PLAYSERVE_GRAPHS", "off")
    assert ServeSettings().graphs == "off"


@pytest.mark.parametrize("value", ["on", "CUDA", ""])
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="invalid choice"):
        parsed("--graphs", value)
    with pytest.raises(ValidationError):
        ServeSettings(graphs=value)  # type: ignore[arg-type]


def test_cuda_graphs_need_a_cuda_device() -> None:
    assert ServeSettings(graphs="cuda", device="cuda:1").graphs == "cuda"
    with pytest.raises(ValidationError, match="need a CUDA device; the device is 'cpu'"):
        ServeSettings(graphs="cuda")


def test_every_flag_is_a_setting() -> None:
    flags = set(vars(parsed())) - {"policy_factories"}
    assert flags == set(ServeSettings.model_fields)


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_said_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(BadSettingError, match=device.partition(":")[0]):
        serve.run(argparse.Namespace(device=device, policy_factories=["a=nowhere:b"]))
