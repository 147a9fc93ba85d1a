"""A load against servers: what is sent, what is counted, and what the command says."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.actions import DesktopAction
from playserve.errors import (
    BadSettingError,
    DataLossError,
    PolicyNotFoundError,
    StepFailedError,
    UnauthenticatedError,
)
from playserve.settings import Pace
from playserve.specs import DiscreteActionSpec, GapMode, GapRule, PolicyKind, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakePolicyServer, FakeReply, StepContext, default_spec, desktop_spec
from playserve_client.commands import load as command
from playserve_client.load.frames import random_frames, recorded_frames
from playserve_client.load.plan import LoadShape, sessions
from playserve_client.load.player import Player, PlayRules
from playserve_client.load.report import report_of, screen_of
from playserve_client.load.run import LoadConfig, LoadRun, drive, make_pool
from playserve_client.load.tally import Ledger, Tally, merged, whole_of

SPEC = default_spec("p", shape=(4, 4, 3))


def config(address: str, rules: dict[str, Any] | None = None, **fields: Any) -> LoadConfig:
    shape = LoadShape(**{"seconds": 0.6, "warmup_s": 0.1, "first": 3, "last": 3, **fields.pop("shape", {})})
    playing = PlayRules(**{"policy": "p", "rate_hz": 50.0, "deadline_ns": 10**10, **(rules or {})})
    return LoadConfig(address=address, shape=shape, rules=playing, interval_s=0.3, **fields)


def play(load: LoadConfig) -> LoadRun:
    """Drive a load in this process."""
    run = LoadRun(load)

    async def main() -> None:
        pool = await make_pool(load)
        run.begin_ns = time.monotonic_ns() + int(load.shape.warmup_s * 1e9)
        await drive(load, pool, run.begin_ns, lambda changed: run.take(0, json.loads(json.dumps(changed))))

    asyncio.run(main())
    return run


def whole(run: LoadRun) -> Tally:
    return whole_of(run.intervals())


class Seen:
    """A fake policy that keeps what it was told."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.contexts: list[StepContext] = []

    def __call__(self, inputs: dict[str, Any], context: StepContext) -> int:
        self.frames.append(inputs["frame"].copy())
        self.contexts.append(context)
        return 1


def served(handler: Any, spec: PolicySpec = SPEC, **options: Any) -> FakePolicyServer:
    slots = options.pop("slots", 16)
    return FakePolicyServer({"p": FakePolicy(spec=spec, handler=handler, slots=slots)}, **options)


def test_every_session_sends_its_frames_when_they_are_due_and_closes() -> None:
    seen = Seen()
    with served(seen) as server:
        total = whole(play(config(server.address)))
        assert server.sessions() == []
    assert 3 < total.counts["frames"] <= 3 * (0.6 * 50 + 1), "those that were due before it began are not measured"
    assert total.counts["answers"] + total.total("drops") + total.counts["unanswered"] == total.counts["frames"]
    assert (total.counts["opens"], total.counts["opened"], total.counts["ended"]) == (3, 3, 3)
    assert total.times["age"].count == total.counts["frames"]
    assert total.times["open"].count == 3
    assert not total.errors
    assert not total.refused
    assert len({context.seed for context in seen.contexts}) == 3


def test_a_server_that_stands_still_makes_every_frame_old_that_was_due_meanwhile() -> None:
    # One answer comes after the pause, to the newest frame. All those that were due before it are as old as they are.
    paused = threading.Event()

    def stand_still(inputs: dict[str, Any], context: StepContext) -> int:
        if context.step == 10 and not paused.is_set():
            paused.set()
            time.sleep(0.4)
        return 0

    skip = dataclasses.replace(SPEC, gap_rule=GapRule(mode=GapMode.SKIP))
    with served(stand_still, skip) as server:
        total = whole(
            play(config(server.address, {"deadline_ns": 100_000_000}, shape={"first": 1, "last": 1, "seconds": 1.0}))
        )
    assert total.counts["superseded"] > 3, "some 20 frames were due in the pause, and one of them was answered"
    assert total.counts["misses"] > 3
    assert total.times["answer"].count == total.counts["answers"]
    assert total.times["age"].count == total.counts["frames"] > total.counts["answers"]
    oldest = total.times["age"].maximum
    assert oldest is not None
    assert oldest > 400_000_000


def test_refused_opens_and_failed_steps_are_counted_by_their_reason() -> None:
    def fail(inputs: dict[str, Any], context: StepContext) -> int:
        if context.seq == 3:
            raise StepFailedError("this one")
        return 0

    with served(fail, slots=2) as server:
        total = whole(play(config(server.address)))
    assert dict(total.refused) == {"NO_FREE_SLOT": 1}
    assert dict(total.errors) == {"STEP_FAILED": 2}
    assert total.counts["frames"] > 6, "a failed step does not end the session"


def test_a_session_that_an_operator_ends_is_an_error_and_its_frames_are_not_forgotten() -> None:
    with served(lambda inputs, context: 0) as server:

        def end() -> None:
            while not server.sessions():
                time.sleep(0.01)
            time.sleep(0.2)
            server.end_session(server.sessions()[0])

        ending = threading.Thread(target=end)
        ending.start()
        total = whole(play(config(server.address, shape={"first": 1, "last": 1})))
        ending.join()
    assert dict(total.errors) == {"SESSION_ENDED": 1}
    assert total.times["age"].count == total.counts["frames"]


def test_a_lost_stream_is_resumed_and_counted() -> None:
    with served(lambda inputs, context: 0) as server:
        server.drop_stream_after(5)
        total = whole(play(config(server.address, shape={"first": 1, "last": 1})))
    assert total.counts["resumed"] == 1
    assert not total.errors


def test_churn_opens_and_closes_sessions_all_the_time() -> None:
    with served(lambda inputs, context: 0, slots=40) as server:
        load = config(server.address, shape={"first": 6, "last": 6, "lifetime_s": 0.2}, connections=2)
        run = play(load)
        assert server.sessions() == []
    total = whole(run)
    assert total.counts["opens"] == len(list(sessions(load.shape))) > 10
    assert total.counts["opened"] == total.counts["opens"] == total.counts["ended"]
    assert set(run.intervals()) == {-1, 0, 1}


@pytest.mark.parametrize("rate_hz", [0.0, 50.0])
def test_lockstep_waits_for_each_answer(rate_hz: float) -> None:
    seen = Seen()
    with served(seen) as server:
        rules = {"pace": Pace.LOCKSTEP, "rate_hz": rate_hz}
        run = play(config(server.address, rules, shape={"first": 1, "last": 1}))
    total = merged(run.intervals().values())
    assert total.counts["answers"] == total.counts["frames"] == len(seen.frames)
    assert total.total("drops") == 0
    assert total.counts["frames"] > 3


def test_a_lockstep_server_that_is_too_slow_has_every_due_frame_counted() -> None:
    with served(lambda inputs, context: 0, delay_s=0.5) as server:
        rules = {"pace": Pace.LOCKSTEP, "rate_hz": 50.0, "deadline_ns": 20_000_000}
        total = whole(play(config(server.address, rules, shape={"first": 1, "last": 1})))
    assert total.counts["answers"] < 10, "there was no time for more"
    assert total.counts["unanswered"] == total.counts["frames"] - total.counts["answers"] > 0
    assert total.counts["misses"] == total.times["age"].count == total.counts["frames"]


def test_what_was_executed_is_told_where_the_policy_wants_it() -> None:
    seen = Seen()
    spec = dataclasses.replace(SPEC, uses_executed_actions=True)
    with served(seen, spec) as server:
        play(config(server.address, shape={"first": 1, "last": 1}))
    assert any(context.executed == 1 for context in seen.contexts)


def test_frames_are_noise_within_the_bounds_of_the_spec() -> None:
    spec = PolicySpec(
        name="p",
        family="fake",
        inputs=(
            TensorSpec(name="image", dtype="uint8", shape=(-1, 8, 3)),
            TensorSpec(name="glyphs", dtype="int16", shape=(5,), minimum=-2, maximum=5976),
            TensorSpec(name="speed", dtype="float32", shape=(), minimum=-1, maximum=2),
            TensorSpec(name="on", dtype="bool", shape=(2,)),
            TensorSpec(name="count", dtype="int64", shape=(1,)),
            TensorSpec(name="extra", dtype="uint8", shape=(1,), optional=True),
        ),
        action=DiscreteActionSpec(n=2),
    )
    pool, same, other = random_frames(spec, 1), random_frames(spec, 1), random_frames(spec, 2)
    frame = pool.frame(3)
    assert set(frame) == {"image", "glyphs", "speed", "on", "count"}
    assert {name: (str(array.dtype), array.shape) for name, array in frame.items()} == {
        "image": ("uint8", (84, 8, 3)), "glyphs": ("int16", (5,)), "speed": ("float32", ()), "on": ("bool", (2,)),
        "count": ("int64", (1,)),
    }  # fmt: skip
    for index in range(len(pool)):
        assert ((pool.frame(index)["glyphs"] >= -2) & (pool.frame(index)["glyphs"] <= 5976)).all()
        assert -1 <= pool.frame(index)["speed"] <= 2
    assert (frame["image"] == same.frame(3)["image"]).all()
    assert (frame["image"] != other.frame(3)["image"]).any()


def test_recorded_frames_are_sent_as_they_are(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    np.savez(tmp_path / "frames.npz", frame=frames, other=np.zeros(3))
    for name in ("frames.npy", "frames.npz"):
        pool = recorded_frames(tmp_path / name, SPEC)
        assert len(pool) == 7
        assert (pool.frame(9)["frame"] == frames[2]).all()
    seen = Seen()
    with served(seen) as server:
        play(config(server.address, frames=tmp_path / "frames.npy", shape={"first": 1, "last": 1}))
    sent = {frame.tobytes() for frame in frames}
    assert seen.frames
    assert all(frame.tobytes() in sent for frame in seen.frames)


def test_files_that_hold_no_frames_of_the_policy_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((7, 2, 2, 3), np.uint8))
    np.save(tmp_path / "float.npy", np.zeros((7, 4, 4, 3)))
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "other.npz", picture=np.zeros((7, 4, 4, 3), np.uint8))
    for name in ("small.npy", "float.npy", "none.npy", "other.npz"):
        with pytest.raises(BadSettingError, match="wanted"):
            recorded_frames(tmp_path / name, SPEC)
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no")
    for name in ("objects.npy", "text.npz"):
        with pytest.raises(DataLossError):
            recorded_frames(tmp_path / name, SPEC)


def test_an_episode_that_was_recorded_for_training_is_stacked_as_the_policy_takes_it(tmp_path: Path) -> None:
    from playserve_client.recordings import Episode, EpisodeMeta, write_episode

    meta = EpisodeMeta(
        env="atari", game="pong", seed=1, steps=6, score=0.0, terminated=True, truncated=False, action_names=("a", "b")
    )
    frames = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((84, 84), np.uint8)
    zeros = np.zeros(6, np.int16)
    episode = Episode(
        meta=meta, frames=frames, executed=zeros, label=zeros, reward=np.zeros(6, np.float32),
        probes=np.zeros((6, 1), np.uint8),
    )  # fmt: skip
    write_episode(tmp_path / "episode-00000001.npz", episode)
    pool = recorded_frames(tmp_path / "episode-00000001.npz", default_spec("p", shape=(84, 84, 4)))
    assert pool.frame(5)["frame"][0, 0].tolist() == [2, 3, 4, 5]
    assert pool.frame(0)["frame"][0, 0].tolist() == [0, 0, 0, 0]


def test_a_video_is_resized_as_the_policy_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from playserve.resize import HAMMING_V1, resize
    from playserve_client.p2p.video import VideoReader, VideoSettings, VideoWriter

    path = tmp_path / "192x192.mp4"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    with VideoWriter(path, 16, 16, settings=VideoSettings(encoding="rgb", crf=0)) as video:
        for frame in pixels:
            video.write(frame)
    pool = recorded_frames(path, default_spec("p", shape=(8, 8, 3)))
    assert len(pool) == 3
    with VideoReader(path) as reader:
        assert (pool.frame(4)["frame"] == resize(reader.read(1, 1)[0], 8, 8, HAMMING_V1)).all()
    with pytest.raises(BadSettingError, match="video"):
        recorded_frames(path, default_spec("p", shape=(84, 84, 4)))
    path.write_bytes(b"no video")
    with pytest.raises(DataLossError):
        recorded_frames(path, default_spec("p", shape=(8, 8, 3)))


def test_a_config_survives_its_way_to_a_worker(tmp_path: Path) -> None:
    from playserve.specs import Codec
    from playserve_client.channels import TlsConfig

    tls = TlsConfig(root_certificates=tmp_path / "ca.pem", server_name="here")
    sent = config("a:1", frames=tmp_path / "f.npy", tls=tls, codec=Codec.LZ4)
    assert LoadConfig.from_json(json.loads(json.dumps(sent.to_json()))) == sent
    plain = config("a:1", api_key="secret")
    told = plain.to_json()
    assert "secret" not in json.dumps(told) + repr(plain), "the config is a part of the report"
    assert LoadConfig.from_json(json.loads(json.dumps(told | {"api_key": "secret"}))) == plain


def test_session_time_is_shared_between_the_intervals_that_it_lies_in() -> None:
    ledger = Ledger(1000, 100, 2)
    ledger.played(950, 1250, 3)
    assert {index: tally.session_ns for index, tally in ledger.intervals.items()} == {-1: 150, 0: 300, 1: 300}


def test_refusals_of_the_warm_up_count_and_its_frames_do_not() -> None:
    ledger = Ledger(1000, 100, 2)
    ledger.at(500).refused["NO_FREE_SLOT"] += 1
    ledger.at(500).counts["frames"] += 7
    ledger.at(1050).counts["frames"] += 1
    ledger.at(9999).counts["frames"] += 2
    assert set(ledger.intervals) == {-1, 0, 1}
    total = whole_of(ledger.intervals)
    assert (total.counts["frames"], dict(total.refused)) == (3, {"NO_FREE_SLOT": 1})
    assert set(ledger.take_changed()) == {"-1", "0", "1"}
    assert ledger.take_changed() == {}


# ---- the command


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(list(given))


def test_the_command_adds_up_what_its_processes_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "load.json"
    with served(lambda inputs, context: DesktopAction(), desktop_spec("p", size=8)) as server:
        args = arguments(
            server.address, "--policy", "p", "--sessions", "4", "--seconds", "2", "--warmup", "0.3", "--processes", "2",
            "--interval", "1", "--out", str(out), "--fail-on", "errors>0", "--fail-on", "p99.9>60s",
        )  # fmt: skip
        assert command.run(args) == 0
        assert server.sessions() == []
    report = json.loads(out.read_text())
    total = report["total"]
    assert report["policy"]["rate_hz"] == 20.0
    assert total["opened"] == 4
    assert 4 < total["frames"] <= 4 * 41
    assert total["histograms"]["age"]["count"] == total["frames"]
    assert [interval["from_s"] for interval in report["intervals"]] == [0.0, 1.0]
    assert sum(interval["frames"] for interval in report["intervals"]) == total["frames"]
    assert 0 < total["sessions_mean"] <= 4.01
    assert [goal["failed"] for goal in report["goals"]] == [False, False]
    printed, told = capsys.readouterr()
    assert "4 of 4 opened" in printed
    assert "passed  not errors>0" in printed
    assert "p99.9" in printed
    assert "warming up" in told, "stderr is no terminal here: lines, now and then"


def test_the_key_reaches_the_processes_that_play(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLAYSERVE_API_KEY", raising=False)
    with served(lambda inputs, context: 0, api_keys=["let-me-in"]) as server:
        given = [server.address, "--policy", "p", "--sessions", "1", "--seconds", "0.5", "--warmup", "0.1"]
        with pytest.raises(UnauthenticatedError):
            command.run(arguments(*given))
        assert command.run(arguments(*given, "--api-key", "let-me-in", "--fail-on", "refused>0")) == 0
    assert "1 of 1 opened" in capsys.readouterr().out


def test_a_missed_goal_is_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with served(lambda inputs, context: 0, slots=1) as server:
        args = arguments(
            server.address, "--policy", "p", "--sessions", "2", "--seconds", "0.5", "--warmup", "0.1",
            "--fail-on", "refused>0", "--fail-on", "errors>0",
        )  # fmt: skip
        assert command.run(args) == 1
    printed = capsys.readouterr().out
    assert "FAILED  not refused>0" in printed
    assert "passed  not errors>0" in printed


def test_a_world_is_played_with_random_actions(capsys: pytest.CaptureFixture[str]) -> None:
    spec = PolicySpec(
        name="w", family="fake", kind=PolicyKind.WORLD, inputs=(), action=DiscreteActionSpec(n=5), version="1",
        rate_hz=50.0, uses_executed_actions=True,
    )  # fmt: skip
    done: list[tuple[Any, Any]] = []

    def dream(inputs: Any, context: StepContext) -> FakeReply:
        done.append((context.session_id, context.action))
        return FakeReply(outputs={"frame": np.zeros((2, 2, 3), np.uint8)})

    with FakePolicyServer({"w": FakePolicy(spec=spec, handler=dream)}) as server:
        args = arguments(
            server.address, "--policy", "w", "--sessions", "2", "--seconds", "0.6", "--warmup", "0.1",
            "--fail-on", "errors>0", "--fail-on", "refused>0",
        )  # fmt: skip
        assert command.run(args) == 0, capsys.readouterr().out
    assert len({session for session, _ in done}) == 2
    assert {action for _, action in done} <= set(range(5))
    assert len({action for _, action in done}) > 1


def test_what_makes_no_sense_is_refused_before_a_session_is_opened(tmp_path: Path) -> None:
    world = PolicySpec(
        name="w", family="fake", kind=PolicyKind.WORLD, inputs=(), action=DiscreteActionSpec(n=2), version="1"
    )
    seen = Seen()
    policies = {"p": FakePolicy(spec=SPEC, handler=seen), "w": FakePolicy(spec=world, handler=seen)}
    frames = tmp_path / "frames.npy"
    np.save(frames, np.zeros((1, 2), np.uint8))
    with FakePolicyServer(policies) as server:
        with pytest.raises(PolicyNotFoundError):
            command.run(arguments(server.address, "--policy", "nope"))
        with pytest.raises(BadSettingError, match="world"):
            recorded_frames(frames, world)
        for given in (["--session-rate", "3"], ["--ramp", "1:2:3", "--sessions", "3"], ["--rate-hz", "0"],
                      ["--processes", "0"], ["--fail-on", "p99"], ["--ramp", "1:2"], ["--seconds", "0"]):  # fmt: skip
            with pytest.raises(BadSettingError):
                command.run(arguments(server.address, "--policy", "p", *given))
    assert seen.contexts == []


def test_ctrl_c_closes_the_sessions_and_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    program = (
        "import argparse, sys; from playserve_client.commands import load; parser = argparse.ArgumentParser(); "
        "load.configure(parser); sys.exit(load.run(parser.parse_args()))"
    )
    with served(lambda inputs, context: 0) as server:
        given = [server.address, "--policy", "p", "--sessions", "2", "--seconds", "600", "--warmup", "0.1"]
        with subprocess.Popen(
            [sys.executable, "-c", program, *given, "--out", str(out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ, start_new_session=True,
        ) as process:  # fmt: skip
            while len(server.sessions()) < 2:
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        assert server.sessions() == []
    report = json.loads(out.read_text())
    assert report["interrupted"]
    assert report["total"]["frames"] > 0
    assert report["total"]["ended"] == 0, "an interrupt is not the planned end"


def test_the_screen_of_a_run_that_measured_nothing_shows_dashes() -> None:
    lines = screen_of(report_of(LoadRun(config("a:1")), {"name": "p", "version": "1"}))
    assert any("-" in line for line in lines)


def test_a_load_against_the_real_server() -> None:
    pytest.importorskip("torch")
    from desktop_policy import DesktopPolicy

    from playserve_services.inference.app import InferenceServer
    from playserve_services.inference.settings import ServeSettings

    async def main() -> None:
        policy = DesktopPolicy(rate_hz=20.0, catch_up_frames=4)
        async with InferenceServer(ServeSettings(port=0), {"p": lambda: policy}) as server:
            args = arguments(
                f"127.0.0.1:{server.port}", "--policy", "p", "--sessions", "3", "--lifetime", "1", "--seconds", "2",
                "--warmup", "0.5", "--budget-ms", "5000", "--fail-on", "errors>0", "--fail-on", "refused>0",
                "--fail-on", "unanswered>0",
            )  # fmt: skip
            assert await asyncio.to_thread(command.run, args) == 0
            assert len(server.core) == 0

    with pytest.MonkeyPatch.context() as patch:
        # The command runs in a thread here, where no handler of SIGTERM can be set.
        patch.setattr(signal, "signal", lambda number, handler: None)
        asyncio.run(main())


def test_a_frame_is_never_sent_before_it_is_due_though_event_loops_wake_early() -> None:
    original = asyncio.sleep

    async def early(seconds: float) -> None:
        await original(seconds / 2)

    with served(lambda inputs, context: 0) as server:
        load = config(server.address, {"deadline_ns": 10**10})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("playserve_client.load.player.asyncio.sleep", early)
            total = merged(play(load).intervals().values())
    assert total.counts["answers"] == total.times["answer"].count > 3
    assert not total.errors


def test_a_fault_of_this_programs_own_is_no_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(self: Any, result: Any, now_ns: int) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Player, "_answered", fault)
    with served(lambda inputs, context: 0) as server, pytest.raises(ExceptionGroup) as caught:
        play(config(server.address))
    assert caught.group_contains(RuntimeError, match="a fault of ours")


def test_live_frames_carry_the_intended_time_of_capture() -> None:
    captured: list[int] = []

    with served(lambda inputs, context: 0) as server:
        load = config(server.address, shape={"first": 1, "last": 1, "warmup_s": 0.0})

        async def main() -> None:
            from playserve_client.aio import session as sessions

            original = sessions.Session.send_step

            async def spy(self: Any, frame: Any, **options: Any) -> int:
                captured.append(options["capture_time_ns"])
                return await original(self, frame, **options)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sessions.Session, "send_step", spy)
                pool = await make_pool(load)
                await drive(load, pool, time.monotonic_ns(), lambda changed: None)

        asyncio.run(main())
    gaps = {round((b - a) / 1e6) for a, b in pairwise(captured)}
    assert gaps == {20}, "exactly one period apart, however late each was sent"
