"""The outbox: everything put is written once, in its order, by one writer at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from playserve.errors import EngineFailedError
from playserve_services.inference.outbox import Outbox


class _Stream:
    """A stream whose writes take `delay` turns of the loop."""

    def __init__(self, delays: list[int]) -> None:
        self.written: list[Any] = []
        self._delays = delays
        self._busy = False

    async def write(self, message: Any) -> None:
        assert not self._busy, "two writes at once"
        self._busy = True
        for _ in range(self._delays.pop(0) if self._delays else 0):
            await asyncio.sleep(0)
        self.written.append(message)
        self._busy = False


# What happens between two turns of the loop: "held" messages come between hold and flush, as a reader's answers do.
_ACTS = st.lists(st.tuples(st.sampled_from(["put", "held", "turn"]), st.integers(1, 3)), max_size=30)


@settings(max_examples=150, deadline=None)
@given(acts=_ACTS, delays=st.lists(st.integers(0, 4), max_size=40))
def test_every_message_is_written_once_and_in_order(acts: list[tuple[str, int]], delays: list[int]) -> None:
    async def main() -> tuple[list[Any], int]:
        stream = _Stream(delays)
        outbox, count = Outbox(stream), 0  # type: ignore[arg-type]
        writer = asyncio.create_task(outbox.run())

        async def reader() -> None:
            nonlocal count
            for act, times in acts:
                if act == "held":
                    outbox.hold()
                for _ in range(times):
                    if act == "turn":
                        await asyncio.sleep(0)
                    else:
                        outbox.put(count)
                        count += 1
                if act == "held":
                    await outbox.flush()

        await reader()
        outbox.close()
        async with asyncio.timeout(5):
            await writer
        return stream.written, count

    written, count = asyncio.run(main())
    assert written == list(range(count))


def test_a_close_under_hold_ends_the_writer_with_its_error() -> None:
    async def main() -> None:
        stream = _Stream([])
        outbox = Outbox(stream)  # type: ignore[arg-type]
        writer = asyncio.create_task(outbox.run())
        await asyncio.sleep(0)
        outbox.hold()
        outbox.put("last")
        outbox.close(EngineFailedError("over"))
        outbox.put("too late")
        await outbox.flush()
        async with asyncio.timeout(5):
            await writer
        assert stream.written == ["last"]
        assert isinstance(outbox.error, EngineFailedError)

    asyncio.run(main())


def test_a_reader_waits_while_too_much_is_unwritten() -> None:
    async def main() -> None:
        stream = _Stream([3] * 10)
        outbox = Outbox(stream, limit=2)  # type: ignore[arg-type]
        writer = asyncio.create_task(outbox.run())
        for i in range(4):
            outbox.put(i)
        assert outbox.full
        async with asyncio.timeout(5):
            await outbox.room()
        assert not outbox.full
        assert len(stream.written) >= 3
        outbox.close()
        await writer
        assert stream.written == [0, 1, 2, 3]

    asyncio.run(main())
