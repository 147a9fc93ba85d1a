from pathlib import Path

import pytest

from playserve.errors import ServerFault
from playserve_trainer.processes import run_command, serve, shown


def test_a_command_is_shown_as_one_would_type_it() -> None:
    assert shown(["data", "record", "--out", "my demo"]) == "playserve data record --out 'my demo'"


def test_a_command_gives_its_status() -> None:
    assert run_command(["--version"]) == 0
    assert run_command(["no-such-command"]) == 2


def test_a_server_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFault, match=r"status 2 before it was ready:\n.*nothing to serve"),
        serve(["serve", "--port", "0"], tmp_path / "logs" / "serve.log"),
    ):
        pass
