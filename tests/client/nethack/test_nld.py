from __future__ import annotations

import bz2
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.cli import main
from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_client.nethack.nld import import_nld
from playserve_client.nethack.nld_layouts import find_games, foreign_keys
from playserve_client.nethack.shards import TtyDataset
from playserve_client.nethack.ttyrec_import import check_stream

nle = pytest.importorskip("nle")

_FOLDER = "20261120-215912_7wgrz352"
_XLOG = "nle.3257.xlogfile"
_SHORT = "nle.3257.1.ttyrec3.bz2"  # seed 1025: 2,240 steps, then its recorder quit
_SPACE, _ESC, _QUIT = 32, 27, 241
_MAIN = "import sys; from playserve.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def one_game(tmp_path: Path, shared_data: Path) -> Path:
    """Return a folder in NLD-AA's layout with one short game (its xlogfile has lines of others too)."""
    folder = tmp_path / "one" / "nle_data" / _FOLDER
    folder.mkdir(parents=True)
    for name in (_XLOG, _SHORT):
        shutil.copy(shared_data / "nld-aa-mini" / "nle_data" / _FOLDER / name, folder)
    return tmp_path / "one"


def _decoded(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return all frames of a ttyrec as nle's converter gives them."""
    from nle import _pyconverter

    count = 20_000
    arrays = {
        "chars": np.zeros((count, 24, 80), np.uint8),
        "colors": np.zeros((count, 24, 80), np.int8),
        "cursor": np.zeros((count, 2), np.int16),
        "times": np.zeros(count, np.int64),
        "keys": np.zeros(count, np.uint8),
        "scores": np.zeros(count, np.int32),
    }
    converter = _pyconverter.Converter(24, 80, 3)
    converter.load_ttyrec(str(path), gameid=1, part=0)
    left = converter.convert(*arrays.values())
    return {name: array[: count - left] for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("keys", "quit_game", "foreign"),
    [
        ([104, 106, _SPACE, _SPACE], False, 2),
        ([104, 106, _SPACE, _ESC, _SPACE], False, 3),
        ([104, _QUIT, 121, _SPACE], True, 3),
        ([104, _QUIT, 121, _SPACE], False, 1),  # it went on after that quit
        ([104, _QUIT, 110, _SPACE], True, 1),
        ([104, 106], False, 0),
        ([_SPACE] * 3, True, 3),
        ([104] + [_SPACE] * 200, False, 64),  # no game closes with so many
        ([], False, 0),
    ],
)
def test_which_last_keys_are_not_learnt(keys: list[int], quit_game: bool, foreign: int) -> None:
    assert foreign_keys(np.array(keys, np.uint8), quit_game=quit_game) == foreign


def test_a_game_is_imported_frame_by_frame(one_game: Path, tmp_path: Path) -> None:
    report = import_nld(one_game, tmp_path / "out", workers=0)
    wanted = _decoded(one_game / "nle_data" / _FOLDER / _SHORT)
    assert (report.imported, report.frames, report.masked, report.damaged) == (1, 2250, 10, [])
    dataset = TtyDataset.open(tmp_path / "out")
    chunk = dataset.read(0)
    for name in ("chars", "colors", "cursor", "keys", "scores"):
        np.testing.assert_array_equal(getattr(chunk, name), wanted[name], err_msg=name)
    # 2,240 steps of the bot, then M-q, y and eight closing screens.
    assert chunk.expert.tolist() == [True] * 2240 + [False] * 10
    meta = dataset.games[0]
    assert (meta.name, meta.character, meta.source) == (f"{_FOLDER}/nle.3257.1", "mon-hum-neu-mal", "nld-aa")
    assert (meta.score, meta.steps, meta.turns, meta.depth, meta.experience_level) == (402, 2240, 1280, 2, 3)
    assert (meta.end, meta.seed, meta.has_keys) == ("quit", None, True)
    assert json.loads((tmp_path / "out" / "import.json").read_text())["frames"] == 2250


def test_a_second_import_keeps_what_is_there(one_game: Path, tmp_path: Path) -> None:
    import_nld(one_game, tmp_path / "out", workers=0)
    before = TtyDataset.open(tmp_path / "out").digest
    report = import_nld(one_game, tmp_path / "out", workers=0)
    assert (report.imported, report.kept, report.frames) == (0, 1, 0)
    assert TtyDataset.open(tmp_path / "out").digest == before


def test_a_game_has_one_name_whatever_folder_is_imported(one_game: Path, tmp_path: Path) -> None:
    folder = one_game / "nle_data" / _FOLDER
    names = [find_games(path).games[0].meta.name for path in (one_game, folder.parent, folder)]
    assert names == [f"{_FOLDER}/nle.3257.1"] * 3
    shutil.copytree(folder, one_game / "again" / _FOLDER)
    assert [game.meta.name for game in find_games(one_game).games] == [
        f"again/{_FOLDER}/nle.3257.1",
        f"nle_data/{_FOLDER}/nle.3257.1",
    ]


def test_damaged_games_are_named_counted_and_skipped(one_game: Path, tmp_path: Path) -> None:
    good = one_game / "nle_data" / _FOLDER / _SHORT
    content = good.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0xFF
    stream = bz2.decompress(content)
    cases = {
        "cut": content[: len(content) // 2],
        "flipped": bytes(flipped),
        "record": bz2.compress(stream[: len(stream) // 2]),
        "empty": b"",
        "garbage": b"no ttyrec" * 100,
    }
    for name, damaged in cases.items():
        folder = one_game / name
        shutil.copytree(good.parent, folder)
        (folder / _SHORT).write_bytes(damaged)
    broken = one_game / "xlog"
    shutil.copytree(good.parent, broken)
    (broken / _XLOG).write_text((broken / _XLOG).read_text().replace("points=", "points=x"))
    killed = one_game / "killed"
    shutil.copytree(good.parent, killed)
    (killed / "nle.3257.77.ttyrec3.bz2").write_bytes(content)
    report = import_nld(one_game, tmp_path / "out", workers=0)
    assert report.imported == 2
    assert {Path(path).name if path.endswith("xlog") else Path(path).parent.name for path, _ in report.damaged} == {
        *cases,
        "xlog",
    }
    assert report.unfinished == [str(killed / "nle.3257.77.ttyrec3.bz2")]
    assert [meta.name for meta in TtyDataset.open(tmp_path / "out").games] == [
        f"{_FOLDER}/nle.3257.1",
        "killed/nle.3257.1",
    ]


def test_streams_are_read_whole(one_game: Path, tmp_path: Path) -> None:
    good = one_game / "nle_data" / _FOLDER / _SHORT
    check_stream(good, 3)
    stream = bz2.decompress(good.read_bytes())
    path = tmp_path / "bad.bz2"
    path.write_bytes(bz2.compress(stream[:-1]))
    with pytest.raises(DataLossError, match="within a record"):
        check_stream(path, 3)


def test_limits_of_games_and_steps(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some" / _FOLDER
    shutil.copytree(
        shared_data / "nld-aa-mini" / "nle_data" / _FOLDER,
        folder,
        ignore=lambda _, names: [
            name for name in names if name not in (_XLOG, _SHORT, "nle.3257.0.ttyrec3.bz2", "nle.3257.2.ttyrec3.bz2")
        ],
    )
    found = find_games(tmp_path / "some")
    assert [game.meta.name for game in found.games] == [f"{_FOLDER}/nle.3257.{number}" for number in (0, 1, 2)]
    (folder / "nle.3257.0.ttyrec3.bz2").write_bytes((folder / _SHORT).read_bytes())  # shorter to read
    report = import_nld(tmp_path / "some", tmp_path / "out", games=1, workers=0)
    assert (report.imported, report.found) == (1, 3)
    report = import_nld(tmp_path / "some", tmp_path / "out", steps=2251, workers=0)
    assert (report.imported, report.kept) == (1, 1)
    report = import_nld(tmp_path / "some", tmp_path / "out", steps=4000, workers=0)
    assert report.imported == 0
    with pytest.raises(BadSettingError, match="at least 1"):
        import_nld(tmp_path / "some", tmp_path / "out", games=0)


def test_the_command_imports_with_workers_and_shows_statistics(
    one_game: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    second = one_game / "nle_data" / "20270101-000000_bad"
    shutil.copytree(one_game / "nle_data" / _FOLDER, second)
    (second / _SHORT).write_bytes(b"")
    assert main(["data", "import", "nld", str(one_game), "--out", str(out), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "2,250" in printed
    assert f"{second / _SHORT}" in printed.replace("\n", "")
    assert main(["data", "stats", str(out), "--json", str(tmp_path / "stats.json")]) == 0
    assert "Command.SEARCH" in capsys.readouterr().out
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["games"], stats["frames"], stats["expert_frames"], stats["masked_frames"]) == (1, 2250, 2240, 10)
    assert stats["score"]["median"] == 402
    assert sum(stats["keys"].values()) == 2240
    assert main(["data", "import", "nld", str(tmp_path / "nothing"), "--out", str(out)]) == 2


def _as_altorg(source: Path, target: Path) -> None:
    """Write what NLD-NAO has: the same screens without channels, in two parts, named by their time."""
    stream, parts, at = bz2.decompress(source.read_bytes()), [b"", b""], 0
    screens = []
    while at < len(stream):
        seconds, micro, length, channel = struct.unpack_from("<iiiB", stream, at)
        if channel == 0:
            screens.append(struct.pack("<iii", seconds, micro, length) + stream[at + 13 : at + 13 + length])
        at += 13 + length
    half = len(screens) // 2
    parts = [b"".join(screens[:half]), b"".join(screens[half:])]
    player = target / "ann"
    player.mkdir(parents=True)
    for name, part in zip(("2020-01-01.10:00:00", "2020-01-01.11:00:00"), parts, strict=True):
        (player / f"{name}.ttyrec.bz2").write_bytes(bz2.compress(part))
    start = 1577872000  # 2020-01-01 09:46:40 UTC
    (target / "xlogfile.1").write_text(
        f"version=3.6.6\tpoints=402\tdeathdnum=0\tdeathlev=1\tmaxlvl=2\thp=1\tmaxhp=9\tdeaths=0\tdeathdate=20200101\t"
        f"birthdate=20200101\tuid=5\trole=Val\trace=Dwa\tgender=Fem\talign=Law\tname=ann\tdeath=quit\tconduct=0x0\t"
        f"turns=1280\tachieve=0x0\trealtime=99\tstarttime={start}\tendtime={start + 9000}\tgender0=Fem\talign0=Law\t"
        "flags=0x4\n"
    )
    (target / "blacklist.txt").write_text("")


def test_nao_is_read_without_keys(one_game: Path, tmp_path: Path) -> None:
    _as_altorg(one_game / "nle_data" / _FOLDER / _SHORT, tmp_path / "nao")
    report = import_nld(tmp_path / "nao", tmp_path / "out", workers=0)
    assert (report.layout, report.imported, report.damaged) == ("altorg", 1, [])
    dataset = TtyDataset.open(tmp_path / "out")
    meta = dataset.games[0]
    assert (meta.source, meta.has_keys, meta.steps) == ("nld-nao", False, 0)
    assert (meta.character, meta.score, meta.turns) == ("val-dwa-law-fem", 402, 1280)
    assert "ann" not in meta.name
    assert not dataset.expert(0).any()
    assert dataset.lengths[0] > 1000
    (tmp_path / "nao" / "blacklist.txt").unlink()
    with pytest.raises(NotFoundError, match=r"blacklist\.txt"):
        import_nld(tmp_path / "nao", tmp_path / "out", workers=0)


def test_an_imported_game_is_the_game_played_again(one_game: Path, tmp_path: Path) -> None:
    """Keys answer the frame beside them: played again from its seed, the game shows the same frames."""
    from playserve_client.nethack.games import GameRecord
    from playserve_client.nethack.replay import replay_game

    import_nld(one_game, tmp_path / "out", workers=0)
    dataset = TtyDataset.open(tmp_path / "out")
    steps = dataset.games[0].steps
    wanted = dataset.read(0, 0, steps)
    line = next(line for line in (one_game / "nle_data" / _FOLDER / _XLOG).read_text().splitlines() if _SHORT in line)
    game = GameRecord(
        seed=1025,
        character="mon-hum-neu-mal",
        score=int(wanted.scores[-1]),
        steps=steps,
        turns=1280,
        experience_level=3,
        max_depth=2,
        end="stopped",
        keys=wanted.keys,
        birthday=int(line.partition("starttime=")[2].split("\t")[0]),
    )
    at = 0
    for chunk in replay_game(game, chunk=500):
        for name in ("chars", "colors", "cursor", "keys", "scores"):
            part = getattr(wanted, name)[at : at + len(chunk)]
            np.testing.assert_array_equal(getattr(chunk, name), part, err_msg=f"{name} from frame {at}")
        at += len(chunk)
    assert at == steps


def test_games_that_we_record_are_imported(tmp_path: Path) -> None:
    from playserve_client.nethack.games import carried_games, read_games
    from playserve_client.nethack.replay import Replayer

    game = next(game for game in read_games(carried_games()) if game.seed == 30030)
    replayer = Replayer(game.character, ttyrec_dir=tmp_path / "recorded")
    try:
        wanted = list(replayer.replay(game))
    finally:
        replayer.close()
    report = import_nld(tmp_path / "recorded", tmp_path / "out", source="recorded", workers=0)
    assert (report.imported, report.damaged) == (1, [])
    dataset = TtyDataset.open(tmp_path / "out")
    chunk, meta = dataset.read(0), dataset.games[0]
    assert (meta.source, meta.turns, meta.depth) == ("recorded", game.turns, game.max_depth)
    for name in ("chars", "colors", "cursor", "keys", "scores"):
        value = np.concatenate([getattr(part, name) for part in wanted])
        np.testing.assert_array_equal(getattr(chunk, name)[: game.steps], value, err_msg=name)
    assert not chunk.expert[game.steps :].any()
    assert chunk.expert[: game.steps].mean() > 0.9


def test_a_killed_import_goes_on(shared_data: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "some" / _FOLDER, tmp_path / "out"
    shutil.copytree(shared_data / "nld-aa-mini" / "nle_data" / _FOLDER, folder)
    for number, path in enumerate(sorted(folder.glob("*.ttyrec3.bz2"))):
        if number < 3:  # short games, then long ones
            path.write_bytes((shared_data / "nld-aa-mini" / "nle_data" / _FOLDER / _SHORT).read_bytes())
    command = [sys.executable, "-c", _MAIN, "data", "import", "nld", str(tmp_path / "some"), "--out", str(out)]
    with subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.DEVNULL) as process:
        while not any(len(path.read_text().splitlines()) > 1 for path in out.glob("*.part/journal.jsonl")):
            time.sleep(0.02)
            assert process.poll() is None
        process.kill()
    for _ in range(1000):  # the worker finds its parent gone, and finishes its shard
        if not list(out.glob("*.part")):
            break
        time.sleep(0.02)
    before = len(TtyDataset.open(out).games)
    assert 1 <= before < len(list(folder.glob("*.ttyrec3.bz2")))
    report = import_nld(tmp_path / "some", out, games=before + 1, workers=0)
    assert (report.kept, report.imported) == (before, 1)
