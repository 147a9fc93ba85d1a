"""Clients of Open P2P, by raw sockets, at our servers through the adapter."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recap_client import RecapClient, Told, frame

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError, PolicyNotFoundError, ServerUnavailableError, StepFailedError
from playserve.settings import ActionSource
from playserve.testing import FakePolicy, FakePolicyServer, StepContext, default_spec, desktop_spec
from playserve_client.aio import PolicyClient
from playserve_client.commands import recap as command
from playserve_client.recap.adapter import RecapAdapter
from playserve_client.recap.connection import Limits

SPEC = desktop_spec("p", size=8)


def counting(inputs: dict[str, Any], context: StepContext) -> DesktopAction:
    """Move by the number of the step in the session's memory: what another session did would show."""
    return DesktopAction(frozenset({"KeyW"}), frozenset({0}), float(context.step), -1.0)


def fake(handler: Any = counting, **options: Any) -> FakePolicyServer:
    return FakePolicyServer({"p": FakePolicy(spec=SPEC, handler=handler)}, **options)


@asynccontextmanager
async def adapted(
    address: str, limits: Limits | None = None, **options: Any
) -> AsyncIterator[tuple[RecapAdapter, int]]:
    """Run an adapter; yield it and its TCP port."""
    async with (
        PolicyClient(address, timeout_s=30.0) as client,
        RecapAdapter(client, "p", limits=limits, **options) as adapter,
    ):
        yield adapter, await adapter.listen_tcp("127.0.0.1", 0)


def play(where: Path | int, ids: range, side: int = 8) -> list[Told | None]:
    """Play as a client does that waits for each answer."""
    with RecapClient(where) as client:
        answers = []
        for frame_id in ids:
            client.show(frame_id, side=side)
            answers.append(client.receive())
        return answers


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - another thread's, or another process's
            await asyncio.sleep(0.02)


async def test_two_clients_play_at_a_time_and_each_has_a_memory_of_its_own(tmp_path: Path) -> None:
    with fake() as server:
        async with adapted(server.address) as (adapter, port):
            await adapter.listen_unix(tmp_path / "uds.recap")
            by_tcp, by_unix = await asyncio.gather(
                asyncio.to_thread(play, port, range(100, 120)),
                asyncio.to_thread(play, tmp_path / "uds.recap", range(7, 27)),
            )
            assert by_tcp == [Told(100 + step, ("w",), ("0",), step, -1) for step in range(20)]
            assert by_unix == [Told(7 + step, ("w",), ("0",), step, -1) for step in range(20)]
            await until(lambda: len(adapter) == 0)
            await until(lambda: server.sessions() == [])
    assert not (tmp_path / "uds.recap").exists()


async def test_who_comes_again_begins_again() -> None:
    with fake() as server:
        async with adapted(server.address) as (_, port):
            for _ in range(3):
                answers = await asyncio.to_thread(play, port, range(3))
                assert [told.dx for told in answers if told] == [0, 1, 2]


async def test_who_only_looks_whether_somebody_is_there_costs_no_session() -> None:
    with fake() as server:
        async with adapted(server.address) as (adapter, port):
            with RecapClient(port):
                await until(lambda: len(adapter) == 1)
                assert server.sessions() == []
            await until(lambda: len(adapter) == 0)
        assert "Play" not in [method for method, _ in server.calls()]


BAD = {
    "a length of 4 GiB": b"\xff\xff\xff\xff",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "no protobuf": struct.pack("<I", 4) + b"\xff\xff\xff\xff",
    "an empty message": struct.pack("<I", 0),
    "too few pixels": struct.pack("<I", 12) + frame(8, 8, b"1234", 1)[:12],
    "a wrong size": (lambda message: struct.pack("<I", len(message)) + message)(frame(8, 8, bytes(100), 1)),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_client_is_ended_with_a_clear_word_and_a_good_one_beside_it_plays_on(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    def misbehave(port: int) -> None:
        with RecapClient(port) as bad:
            bad.send_raw(BAD[what])
            assert bad.receive() is None, "it is hung up on"

    with fake() as server:
        async with adapted(server.address) as (adapter, port):
            with RecapClient(port) as good:
                good.show(1, side=8)
                assert (await asyncio.to_thread(good.receive)) == Told(1, ("w",), ("0",), 0, -1)
                await asyncio.to_thread(misbehave, port)
                await until(lambda: len(adapter) == 1)
                good.show(2, side=8)
                assert (await asyncio.to_thread(good.receive)) == Told(2, ("w",), ("0",), 1, -1)
                assert len(server.sessions()) == 1, "what is no frame costs no session"
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "recap client 2 ended" in warning.getMessage()
    assert any(word in warning.getMessage() for word in ("wanted", "no Frame"))


async def test_a_bad_frame_in_the_middle_of_a_game_ends_its_session(caplog: pytest.LogCaptureFixture) -> None:
    with fake() as server:
        async with adapted(server.address) as (_, port):
            with RecapClient(port) as client:
                client.show(1, side=8)
                assert await asyncio.to_thread(client.receive)
                client.send(frame(8, 8, b"few", 2))
                assert await asyncio.to_thread(client.receive) is None
            await until(lambda: server.sessions() == [])
    assert "SIZE_MISMATCH" in caplog.text


async def test_a_message_that_breaks_off_is_told_from_one_that_never_began(caplog: pytest.LogCaptureFixture) -> None:
    with fake() as server:
        async with adapted(server.address) as (adapter, port):
            for cut in (struct.pack("<I", 300)[:2], struct.pack("<I", 300) + b"abc"):
                with RecapClient(port) as client:
                    client.send_raw(cut)
                    client.socket.shutdown(socket.SHUT_WR)
                    assert await asyncio.to_thread(client.receive) is None
            await until(lambda: len(adapter) == 0)
    assert "after 2 of the 4 bytes of a length" in caplog.text
    assert "after 3 of the 300 bytes of a message" in caplog.text


async def test_no_memory_is_taken_for_a_length_beyond_the_limit() -> None:
    with fake() as server:
        async with adapted(server.address, Limits(max_message_bytes=1000)) as (_, port):
            assert await asyncio.to_thread(play, port, range(2)) == [
                Told(0, ("w",), ("0",), 0, -1), Told(1, ("w",), ("0",), 1, -1),
            ]  # fmt: skip
            assert await asyncio.to_thread(play, port, range(1), 32) == [None]


async def test_frames_are_resized_as_their_client_would_have_done() -> None:
    pytest.importorskip("PIL")
    from playserve.resize import HAMMING_V1, resize

    seen: list[np.ndarray] = []

    def look(inputs: dict[str, Any], context: StepContext) -> DesktopAction:
        seen.append(inputs["frame"].copy())
        return DesktopAction()

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with fake(look) as server:
        async with adapted(server.address) as (_, port):
            with RecapClient(port) as client:
                client.send(frame(30, 20, pixels.tobytes(), 5))
                assert await asyncio.to_thread(client.receive) == Told(5, (), (), 0, 0)
    assert (seen[0] == resize(pixels, 8, 8, HAMMING_V1)).all()


async def test_the_policy_is_told_that_its_answers_were_done() -> None:
    told: list[tuple[Any, ActionSource]] = []

    def listen(inputs: dict[str, Any], context: StepContext) -> DesktopAction:
        told.append((context.executed, context.source))
        return counting(inputs, context)

    with fake(listen) as server:
        async with adapted(server.address, instruction="go north") as (_, port):
            await asyncio.to_thread(play, port, range(3))
    held = (frozenset({"KeyW"}), frozenset({0}))
    assert [action for action, _ in told[1:]] == [DesktopAction(*held, 0.0, -1.0), DesktopAction(*held, 1.0, -1.0)]
    assert [source for _, source in told[1:]] == [ActionSource.POLICY] * 2


async def test_a_step_that_fails_gets_no_answer_and_the_game_goes_on() -> None:
    with fake() as server:
        server.fail_step(2, StepFailedError("this one"))
        async with adapted(server.address) as (_, port):
            with RecapClient(port) as client:
                client.show(10, side=8)
                assert (await asyncio.to_thread(client.receive)) == Told(10, ("w",), ("0",), 0, -1)
                client.show(11, side=8)
                client.show(12, side=8)
                answer = await asyncio.to_thread(client.receive)
                assert answer is not None
                assert answer.id == 12


async def test_frames_that_come_faster_than_answers_are_answered_by_the_newest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with fake(delay_s=0.05) as server:
        async with adapted(server.address) as (_, port):
            with RecapClient(port) as client:
                for frame_id in range(30):
                    client.show(frame_id, side=8)
                ids = []
                while not ids or ids[-1] != 29:
                    answer = await asyncio.to_thread(client.receive)
                    assert answer is not None
                    ids.append(answer.id)
    assert ids == sorted(set(ids)), "in order, each once; those that were left out have none"


async def test_no_more_clients_than_are_allowed_and_none_that_sleeps(caplog: pytest.LogCaptureFixture) -> None:
    with fake() as server:
        async with adapted(server.address, Limits(max_clients=1, idle_s=0.5)) as (adapter, port):
            with RecapClient(port) as first:
                await until(lambda: len(adapter) == 1)
                with RecapClient(port) as second:
                    assert await asyncio.to_thread(second.receive) is None
                assert await asyncio.to_thread(first.receive) is None
            assert "refused: 1 clients" in caplog.text
            assert "no whole frame came for 0.5 s" in caplog.text
            await until(lambda: len(adapter) == 0)
            assert await asyncio.to_thread(play, port, range(1)) == [Told(0, ("w",), ("0",), 0, -1)]


async def test_a_client_is_hung_up_on_when_no_slot_is_free_and_when_its_session_is_ended() -> None:
    with FakePolicyServer({"p": FakePolicy(spec=SPEC, handler=counting, slots=1)}) as server:
        async with adapted(server.address) as (_, port):
            with RecapClient(port) as first:
                first.show(1, side=8)
                assert await asyncio.to_thread(first.receive)
                assert await asyncio.to_thread(play, port, range(1)) == [None]
                server.end_session(server.sessions()[0])
                assert await asyncio.to_thread(first.receive) is None


async def test_the_socket_is_the_owners_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "uds.recap"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with fake() as server:
        async with adapted(server.address) as (adapter, _):
            await adapter.listen_unix(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert await asyncio.to_thread(play, path, range(1)) == [Told(0, ("w",), ("0",), 0, -1)]
            with pytest.raises(ServerUnavailableError, match="already"):
                await adapter.listen_unix(path)
            (tmp_path / "file").write_text("mine")
            with pytest.raises(BadSettingError, match="no socket"):
                await adapter.listen_unix(tmp_path / "file")
            with pytest.raises(ServerUnavailableError, match="cannot listen"):
                await adapter.listen_unix(tmp_path / "no such folder" / "socket")
            await adapter.listen_unix(tmp_path / "all", 0o666)
            assert stat.S_IMODE((tmp_path / "all").stat().st_mode) == 0o666
    assert (tmp_path / "file").read_text() == "mine"


async def test_it_listens_for_others_only_when_that_is_said_and_plays_only_what_can_be_played() -> None:
    discrete = FakePolicy(spec=default_spec("d", shape=(8, 8, 3)), handler=lambda inputs, context: 0)
    policies = {"p": FakePolicy(spec=SPEC, handler=counting), "d": discrete}
    with FakePolicyServer(policies) as server:
        async with PolicyClient(server.address) as client:
            async with RecapAdapter(client, "p") as adapter:
                with pytest.raises(BadSettingError, match="--insecure-listen"):
                    await adapter.listen_tcp("0.0.0.0", 0)
                assert await adapter.listen_tcp("0.0.0.0", 0, insecure=True)
            for name, error in (("d", BadSettingError), ("nope", PolicyNotFoundError)):
                with pytest.raises(error):
                    async with RecapAdapter(client, name):
                        pass


async def test_two_clients_a_bad_one_and_a_returning_one_at_the_real_server_with_a_p2p_policy() -> None:
    torch = pytest.importorskip("torch")
    from playserve_services.inference.app import InferenceServer
    from playserve_services.inference.settings import ServeSettings
    from playserve_trainer.models.p2p.config import config_of_size
    from playserve_trainer.models.p2p.policy import P2PPolicy

    torch.manual_seed(0)
    small = config_of_size("1m", layers=2, width=32, heads=2, decoder_layers=1, history=(3,), text_encoder="words",
                           text_width=16, catch_up_frames=4)  # fmt: skip
    side = small.frame_size
    async with (
        InferenceServer(ServeSettings(port=0, slots=3), {"p": lambda: P2PPolicy(small).eval()}) as server,
        adapted(f"127.0.0.1:{server.port}", instruction="collect the medkits") as (adapter, port),
    ):

        def misbehave() -> None:
            with RecapClient(port) as bad:
                bad.show(1, side=side)
                assert bad.receive() is not None
                bad.send(b"\x0a")
                assert bad.receive() is None

        first, second, _ = await asyncio.gather(
            asyncio.to_thread(play, port, range(8), side),
            asyncio.to_thread(play, port, range(50, 58), side * 2),  # resized on the way
            asyncio.to_thread(misbehave),
        )
        assert [told.id for told in first if told] == list(range(8))
        assert [told.id for told in second if told] == list(range(50, 58))
        names = {
            "Space",
            *"1234adefqsw",
            "z",
            "DownArrow",
            "UpArrow",
            "LeftArrow",
            "RightArrow",
            "LeftShift",
            "RightShift",
        }
        for told in (*first, *second):
            assert told is not None
            assert set(told.keys) <= names
            assert set(told.buttons) <= {"0", "1", "2"}
            assert max(abs(told.dx), abs(told.dy)) <= 501
        await until(lambda: len(adapter) == 0)
        await until(lambda: len(server.core) == 0)
        assert len(await asyncio.to_thread(play, port, range(2), side)) == 2


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(list(given))


def test_what_makes_no_sense_is_refused() -> None:
    for given in (["--socket-mode", "rw"], ["--socket-mode", "7777"], ["--tcp", "9000"], ["--tcp", "a:99999"],
                  ["--max-clients", "0"], ["--idle-s", "0"]):  # fmt: skip
        with pytest.raises(BadSettingError):
            command.run(arguments("127.0.0.1:1", "--policy", "p", *given))


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    program = (
        "import argparse, sys; from playserve_client.commands import recap; parser = argparse.ArgumentParser(); "
        "recap.configure(parser); sys.exit(recap.run(parser.parse_args()))"
    )
    path = tmp_path / "uds.recap"
    with fake() as server:
        with subprocess.Popen(
            [sys.executable, "-c", program, server.address, "--policy", "p", "--unix", str(path)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == f"playserve recap ready unix={path}\n"
            assert play(path, range(2)) == [Told(0, ("w",), ("0",), 0, -1), Told(1, ("w",), ("0",), 1, -1)]
            with RecapClient(path) as client:
                client.show(1, side=8)
                assert client.receive() is not None
                process.send_signal(signal.SIGTERM)
                assert client.receive() is None
            assert process.wait(60) == 0
        while server.sessions():
            time.sleep(0.02)
    assert not path.exists()
