"""Who computes batches: an engine, and the factory of what it runs, as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from playserve_services.inference.engine import Batch, BatchResult, Engine, ThreadEngine
from playserve_services.inference.graphs import resolve_graphs
from playserve_services.inference.loader import Factory, RuntimeFactory
from playserve_services.inference.settings import ServeSettings

__all__ = ["make_computing"]


async def make_computing(
    settings: ServeSettings,
    on_result: Callable[[Batch, BatchResult], None],
    on_death: Callable[[], None],
    stack: contextlib.AsyncExitStack,
) -> tuple[Engine, Factory]:
    """Return both; what they hold is let go by the stack.

    Args:
        settings: All settings.
        on_result: Called with each batch and its result, on the loop's thread.
        on_death: Called there once if no batch will be answered any more.
        stack: Takes what is to be done at the end.

    Raises:
        ServerUnavailableError: Triton is to compute, and does not answer.
    """
    loop = asyncio.get_running_loop()
    if settings.engine == "triton":
        from playserve_services.triton.engine import TritonEngine
        from playserve_services.triton.front import TritonFactory
        from playserve_services.triton.link import TritonLink

        link = TritonLink(settings.triton_url, on_death)
        stack.push_async_callback(link.close)
        await link.start()
        front = TritonEngine(on_result, link)
        stack.push_async_callback(loop.run_in_executor, None, front.close)
        return front, TritonFactory(link, settings.slots, settings.triton_front * settings.slots)
    engine = ThreadEngine(
        on_result,
        loop.call_soon_threadsafe,
        on_death,
        # A GPU's step ends in a wait, which is no work for the loop's thread.
        inline_s=settings.inline_ms / 1e3 if settings.device == "cpu" else 0.0,
    )
    stack.push_async_callback(loop.run_in_executor, None, engine.close)
    return engine, RuntimeFactory(
        slots=settings.slots, session_bytes=settings.session_bytes, max_batch=settings.max_batch,
        buckets=_buckets(settings), device=settings.device, autocast=settings.precision == "bfloat16",
        graphs=resolve_graphs(settings.graphs, settings.device),
    )  # fmt: skip


def _buckets(settings: ServeSettings) -> list[int] | None:
    if settings.fixed_batch:
        return [settings.max_batch]
    if settings.device == "cpu" and resolve_graphs(settings.graphs, settings.device) == "off":
        return None
    sizes = [1 << i for i in range((settings.max_batch - 1).bit_length())]
    return [*sizes, settings.max_batch]
