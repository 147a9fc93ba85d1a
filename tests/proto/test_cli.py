"""The console command: it finds subcommands, and turns what a user can mend into one line and status 2."""

from __future__ import annotations

import argparse
from importlib.metadata import EntryPoint, entry_points
from types import SimpleNamespace

import pytest

from playserve import cli
from playserve.errors import PolicyNotFoundError


class Fake:
    """A subcommand whose work is to raise, or to return its argument."""

    SUMMARY = "does a thing"

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--status", type=int, default=0)

    def run(self, args: argparse.Namespace) -> int:
        if self.error is not None:
            raise self.error
        return int(args.status)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> object:
    def install(**commands: Fake) -> None:
        entries = [SimpleNamespace(name=name, load=lambda found=found: found) for name, found in commands.items()]
        monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == "playserve.commands" else [])

    return install


def test_help_lists_the_registered_subcommands_in_order(register, capsys) -> None:
    register(train=Fake(), data=Fake())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.index("data") < out.index("train")
    assert out.count("does a thing") == 2


def test_the_exit_status_is_the_subcommands(register) -> None:
    register(train=Fake())
    assert cli.main(["train"]) == 0
    assert cli.main(["train", "--status", "7"]) == 7


@pytest.mark.parametrize("argv", [[], ["nothing"], ["train", "--unknown"]])
def test_a_command_line_that_nobody_understands_exits_with_2(register, capsys, argv: list[str]) -> None:
    register(train=Fake())
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert "usage: playserve" in capsys.readouterr().err


def test_a_typed_error_is_one_line_and_no_traceback(register, capsys) -> None:
    register(train=Fake(PolicyNotFoundError("no policy 'brakeout'; there are breakout, freeway")))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "playserve: no policy 'brakeout'; there are breakout, freeway\n"


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "train"), ("ale_py.roms", "envs"), ("prometheus_client", "serve")]
)
def test_a_missing_extra_says_the_pip_command(register, capsys, module: str, extra: str) -> None:
    register(train=Fake(ModuleNotFoundError(f"No module named '{module}'", name=module)))
    assert cli.main(["train"]) == 2
    error = capsys.readouterr().err
    assert f"pip install 'playserve[{extra}]'" in error
    assert repr(module) in error


def broken(name: str) -> SimpleNamespace:
    def load() -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    return SimpleNamespace(name="serve", load=load)


def test_a_command_that_cannot_be_loaded_leaves_the_others_alone(monkeypatch, capsys) -> None:
    fine = SimpleNamespace(name="train", load=Fake)
    monkeypatch.setattr(cli, "entry_points", lambda group: [fine, broken("fastapi")])
    assert cli.main(["train", "--status", "3"]) == 3
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    assert "cannot be loaded" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["models", "--port", "1"]])
def test_a_command_that_cannot_be_loaded_says_why_when_it_is_called(monkeypatch, capsys, arguments) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: [broken("fastapi")])
    assert cli.main(["serve", *arguments]) == 2
    assert "pip install 'playserve[serve]'" in capsys.readouterr().err
    monkeypatch.setattr(cli, "entry_points", lambda group: [broken("our.own")])
    with pytest.raises(ModuleNotFoundError):
        cli.main(["serve", *arguments])


def test_a_missing_module_of_our_own_is_a_defect_and_is_shown_whole(register) -> None:
    register(train=Fake(ModuleNotFoundError("No module named 'playserve_trainer.x'", name="playserve_trainer.x")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["train"])


def test_an_unexpected_error_is_not_swallowed(register) -> None:
    register(train=Fake(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_control_c_exits_with_130(register) -> None:
    register(train=Fake(KeyboardInterrupt()))
    assert cli.main(["train"]) == 130


def registered() -> list[EntryPoint]:
    return sorted(entry_points(group="playserve.commands"), key=lambda entry: entry.name)


def test_commands_are_registered() -> None:
    assert {"data", "rollout", "policies", "train", "checkpoints", "serve"} <= {entry.name for entry in registered()}


@pytest.mark.parametrize("entry", registered(), ids=lambda entry: entry.name)
def test_every_registered_subcommand_has_its_three_parts(entry: EntryPoint, capsys) -> None:
    command = entry.load()
    assert command.SUMMARY == command.SUMMARY.strip() != ""
    assert "\n" not in command.SUMMARY
    assert callable(command.run)
    with pytest.raises(SystemExit) as stopped:
        cli.main([entry.name, "--help"])
    assert stopped.value.code == 0
    # argparse folds lines
    assert command.SUMMARY.split()[0] in capsys.readouterr().out
