"""A crowd at a real server: random messages, sensible or not, in random order, over many sessions at once.

``python tests/fuzz/crowd.py --messages 1000000 --out crowd.json`` starts a server of its own beside a bystander.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from contract_kit.streams import observation, reason_of, status_of, world_action

from playserve.errors import REASONS
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

__all__ = ["Crowd", "Tally"]

#: Reasons that blame the server.
FAULTS = frozenset({"STEP_FAILED", "ENGINE_FAILED", "DATA_LOSS"})
_STREAM = 200  # messages of one stream, about
_WAIT_S = 60.0


@dataclass
class Tally:
    """What was sent and what came back."""

    sent: int = 0
    received: int = 0
    streams: int = 0
    resumed: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    in_band: Counter[str] = field(default_factory=Counter)

    def undocumented(self) -> set[str]:
        """Return reasons that no caller can look up, or that blame the server."""
        return (set(self.ends) | set(self.in_band)) - (set(REASONS) - FAULTS) - {"OK", "CANCELLED BY US"}


class Crowd:
    """Sends messages to one server.

    Args:
        address: Of the server.
        specs: Policies to play.
        messages: How many to send, about.
        lanes: Streams at once.
        seed: Of everything random.
        seconds: When to stop, whatever was sent.
    """

    def __init__(
        self,
        address: str,
        specs: list[pb.PolicySpec],
        messages: int,
        lanes: int,
        seed: int,
        seconds: float = math.inf,
    ) -> None:
        self._until = time.monotonic() + seconds
        self._address, self._specs, self._messages, self._lanes = address, specs, messages, lanes
        self._rng = random.Random(seed)
        self._steps = {spec.name: [observation(spec, index) for index in range(4)] for spec in specs}
        self._rows = {spec.name: observation(spec, 1, rows=2) for spec in specs}
        self.tally = Tally()

    async def run(self) -> Tally:
        """Send everything; return what came back."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            play = channel.stream_stream("/playserve.v1.PolicyService/Play")
            rollout = channel.stream_stream("/playserve.v1.PolicyService/Rollout")
            await asyncio.gather(*(self._lane(play, rollout) for _ in range(self._lanes)))
        return self.tally

    async def _lane(self, play: Any, rollout: Any) -> None:
        token = b""
        while self.tally.sent < self._messages and time.monotonic() < self._until:
            spec = self._rng.choice(self._specs)
            if self._rng.random() < 0.15:
                await self._stream(rollout(timeout=_WAIT_S), self._rollout(spec), ps.RolloutResponse)
            else:
                if token and self._rng.random() < 0.5:
                    first = ps.PlayRequest(open=ps.Open(resume_token=token))
                    self.tally.resumed += 1
                else:
                    pace = self._rng.choice([ps.PACE_LIVE, ps.PACE_LOCKSTEP])
                    first = ps.PlayRequest(open=ps.Open(policy=spec.name, pace=pace, codecs=[pb.CODEC_LZ4]))
                token = await self._stream(play(timeout=_WAIT_S), self._game(spec, first), ps.PlayResponse)

    def _game(self, spec: pb.PolicySpec, first: Any) -> list[bytes]:
        rng = self._rng
        messages = [] if rng.random() < 0.02 else [first.SerializeToString()]
        seq = 0
        for _ in range(rng.randint(1, 2 * _STREAM)):
            seq += rng.choice([0, 1, 1, 1, 1, 1, 3])
            data = self._message(spec, seq).SerializeToString()
            messages.append(_mutated(data, rng) if rng.random() < 0.05 else data)
        if rng.random() < 0.5:
            messages.append(ps.PlayRequest(close=ps.Close(reason="enough")).SerializeToString())
        return messages

    def _message(self, spec: pb.PolicySpec, seq: int) -> ps.PlayRequest:
        rng = self._rng
        kind = rng.randrange(20)
        if kind < 11:
            step = ps.Step(seq=seq, episode_id=rng.choice([0, 0, 0, 1, 2]), ticks=rng.randrange(4),
                           inputs=rng.choice(self._steps[spec.name]), observe_only=rng.random() < 0.1,
                           budget_us=rng.choice([0, 0, 1, 50_000]))  # fmt: skip
            if spec.kind == pb.POLICY_KIND_WORLD and rng.random() < 0.95:
                fits = rng.random() < 0.9
                step.action.CopyFrom(world_action(spec, seq) if fits else pb.Action(index=rng.choice([-1, 6, 1 << 30])))
            return ps.PlayRequest(step=step)
        if kind < 14:
            source = rng.choice([pb.ACTION_SOURCE_HUMAN, pb.ACTION_SOURCE_POLICY, pb.ACTION_SOURCE_NONE])
            action = pb.Action(index=rng.choice([0, 1, 2, 1000]))
            return ps.PlayRequest(
                executed=ps.Executed(seq=max(0, seq - rng.randrange(3)), action=action, source=source)
            )
        if kind == 14:
            return ps.PlayRequest(configure=ps.Configure(sampling=pb.Sampling(temperature=rng.choice([1, 2, -1, 0]))))
        if kind == 15:
            return ps.PlayRequest(reset=ps.Reset(episode_id=rng.randrange(4), seed=seq))
        if kind < 18:
            return ps.PlayRequest(ping=ps.Ping(nonce=seq))
        if kind == 18:
            return ps.PlayRequest(step=ps.Step(seq=seq, inputs=[pb.Tensor(name=rng.choice(["", "x", "observation"]))]))
        return rng.choice([ps.PlayRequest(), ps.PlayRequest(open=ps.Open(policy=spec.name))])

    def _rollout(self, spec: pb.PolicySpec) -> list[bytes]:
        rng = self._rng
        opening = ps.RolloutRequest(open=ps.RolloutOpen(policy=spec.name, num_envs=rng.choice([1, 2, 2, 2, 4000])))
        messages = [opening.SerializeToString()]
        for _ in range(rng.randint(1, _STREAM)):
            ids = rng.choice([[0, 1], [1, 0], [0, 0], [0, 7]])
            step = ps.RolloutStep(env_ids=ids, episode_ids=[rng.randrange(3) for _ in ids],
                                  inputs=self._rows[spec.name])  # fmt: skip
            data = ps.RolloutRequest(step=step).SerializeToString()
            messages.append(_mutated(data, rng) if rng.random() < 0.05 else data)
        return messages

    async def _stream(self, call: Any, messages: list[bytes], kind: Any) -> bytes:
        """Send, read to the end or hang up; return the session's token, where there is one."""
        tally, hang_up = self.tally, self._rng.random() < 0.3
        tally.streams += 1

        async def write() -> None:
            try:
                # Not call.write: where it fails it puts an INTERNAL of its own in the place of the server's status.
                await call.wait_for_connection()
                for data in messages:
                    await call._cython_call.send_serialized_message(data)
                    tally.sent += 1
                if hang_up:
                    call.cancel()
                else:
                    await call.done_writing()
            except (grpc.RpcError, grpc.aio.InternalError, asyncio.InvalidStateError, asyncio.CancelledError):
                pass  # it has ended, and whoever reads knows how

        writer, token = asyncio.create_task(write()), b""
        try:
            async for data in call:
                answer = kind.FromString(data)
                tally.received += 1
                if answer.HasField("error"):
                    tally.in_band[reason_of(answer.error.status)] += 1
                elif answer.HasField("opened") and kind is ps.PlayResponse:
                    token = answer.opened.resume_token
            tally.ends["OK"] += 1
        except asyncio.CancelledError:
            tally.ends["CANCELLED BY US"] += 1
        except grpc.RpcError as error:
            ours = error.code() is grpc.StatusCode.CANCELLED
            tally.ends["CANCELLED BY US" if ours else reason_of(status_of(error))] += 1
        await writer
        return token


def _mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    at = rng.randrange(len(changed)) if changed else 0
    if changed:
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def main() -> int:
    """Run against a server of its own; print and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, whatever was sent")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from crowd_run import run_beside_bystander

    started = time.monotonic()
    report = run_beside_bystander(args.messages, args.lanes, args.seed, args.minutes * 60)
    report["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(report, indent=2)
    if args.out is not None:
        args.out.write_text(text + "\n")
    print(text)  # noqa: T201 - a tool that talks to people
    return 0


if __name__ == "__main__":
    sys.exit(main())
