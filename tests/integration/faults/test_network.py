"""Clients that do not read, and connections that die without a word: they cost their own session, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from bystander import Bystander
from contract_kit.servers import serving
from contract_kit.streams import Play, comparable
from half_open_proxy import half_open_proxy

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub

Read = Callable[[Any], dict[str, float]]
_PINGS = 4_000
_FLAGS = ("--max-batch", "4", "--fixed-batch", "--slots", "8", "--metrics-port", "0")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serving(["memory"], *_FLAGS, "--idle-timeout-s", "2") as process:
        yield process


def test_slow_client(server: Any, metrics: Read, eventually: Any) -> None:
    # A client with little room for what it does not read; others would take megabytes first.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    with Bystander(server.address) as bystander, grpc.insecure_channel(server.address, options) as narrow:
        eventually(lambda: metrics(server)['playserve_sessions_open{policy="memory"}'] == 1, "the others to be gone")
        eventually(lambda: metrics(server)["playserve_tasks"] > 0, "the server to have looked")
        before = metrics(server)
        session = Play(PolicyServiceStub(narrow).Play, open=ps.Open(policy="memory")).open()
        session.step(1)

        def stalled() -> bool:
            for nonce in range(_PINGS):  # each is answered, and nobody reads that
                session.send(ping={"nonce": nonce})
            return metrics(server)["playserve_streams_stalled"] == 1

        eventually(stalled, "its answers to pile up")
        bystander.plays_on()
        grown = metrics(server)["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
        assert grown < 64 << 20  # it is not read either, so that little waits here
        # What it says does not reach us any more: it counts as silent, and its slot is somebody else's.
        ended = 'playserve_sessions_ended_total{policy="memory",reason="expired"}'
        eventually(lambda: metrics(server).get(ended, 0.0) == before.get(ended, 0.0) + 1, "it to expire")
        narrow.close()
        eventually(lambda: metrics(server)["playserve_streams_stalled"] == 0, "its stream to be gone")
        eventually(lambda: metrics(server)["playserve_tasks"] <= before["playserve_tasks"], "nothing to be left of it")


def test_half_open_tcp(server: Any, connect: Any, metrics: Read, eventually: Any) -> None:
    undisturbed = connect(server.address).play("memory")
    wanted = [comparable(undisturbed.step(seq)) for seq in range(1, 7)]
    assert undisturbed.close() == "OK"
    resumed = 'playserve_sessions_resumed_total{policy="memory"}'
    before = metrics(server).get(resumed, 0.0)
    with (
        Bystander(server.address) as bystander,
        half_open_proxy(server.ports["port"]) as proxy,
        grpc.insecure_channel(proxy.address, [("grpc.use_local_subchannel_pool", 1)]) as anew,
    ):
        session = connect(proxy.address).play("memory")
        answers = [comparable(session.step(seq)) for seq in (1, 2, 3)]
        proxy.freeze()
        # Neither side can know. The client, which misses its answers, dials anew; the server takes the newer stream.
        again = Play(PolicyServiceStub(anew).Play, open=ps.Open(resume_token=session.opened.resume_token)).open()
        assert again.opened.last_seq == 3
        answers += [comparable(again.step(seq)) for seq in (4, 5, 6)]
        assert answers == wanted
        assert metrics(server)[resumed] == before + 1
        assert again.close() == "OK"
        bystander.plays_on()


def test_half_open_tcp_of_nobody_who_comes_back(server: Any, connect: Any, metrics: Read, eventually: Any) -> None:
    ended = 'playserve_sessions_ended_total{policy="memory",reason="expired"}'
    before = metrics(server).get(ended, 0.0)
    with Bystander(server.address) as bystander, half_open_proxy(server.ports["port"]) as proxy:
        connect(proxy.address).play("memory").step(1)
        proxy.freeze()
        eventually(lambda: metrics(server).get(ended, 0.0) == before + 1, "the slot to be free again")
        bystander.plays_on()


@pytest.mark.slow
def test_a_dead_connection_is_closed_by_keepalive(connect: Any, metrics: Read, eventually: Any) -> None:
    with (
        serving(
            ["memory"], "--max-batch", "4", "--fixed-batch", "--metrics-port", "0", "--detach-window-s", "1"
        ) as server,
        Bystander(server.address) as bystander,
        half_open_proxy(server.ports["port"]) as proxy,
    ):
        metrics(server)  # the scraper's own connection is none of the difference
        before = metrics(server)
        connect(proxy.address).play("memory").step(1)
        assert metrics(server)["process_open_fds"] > before["process_open_fds"]
        proxy.freeze()
        lost = 'playserve_streams_lost_total{policy="memory"}'
        eventually(lambda: metrics(server).get(lost), "the loss to be noticed after 30 s and 10 s")
        eventually(lambda: metrics(server)["process_open_fds"] <= before["process_open_fds"], "it to be closed")
        bystander.plays_on()
