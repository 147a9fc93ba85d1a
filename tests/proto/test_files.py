"""Files are there whole or not at all."""

import contextlib
import json
from pathlib import Path

import pytest

from playserve.files import replacing, write_json, write_text


def test_what_was_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    write_json(path, {"scores": [1.5, None], "name": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"scores": [1.5, None], "name": "é"}
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "frames.npz"
    path.write_bytes(b"old")
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".npz")
        temporary.write_bytes(b"half of")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_no_json_has_is_refused_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"mean": float("nan")})
    assert not path.exists()
    write_json(path, {"mean": float("nan")}, allow_nan=True)
    assert "NaN" in path.read_text()
