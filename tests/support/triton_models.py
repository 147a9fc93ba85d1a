"""A real Triton on repositories of ours; the marker `triton` skips tests by name where there is none."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_PEER = Path(__file__).resolve().parents[1] / "bench" / "peers" / "triton.py"


@contextlib.contextmanager
def triton_server(repository: Path) -> Iterator[str]:
    """Serve every model of a repository; yield the gRPC address."""
    spec = importlib.util.spec_from_file_location("playserve_bench_triton", _PEER)
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    with peer.TritonServer(repository, ready_s=200.0) as server:
        yield server.address
