"""Budget 2 of issue 6: what keys, metrics and TLS add to a step of 110 KB.

``python tests/bench/bench_security.py --rounds 7 --seconds 3 --out security.json``

Four servers, alike but for what guards them: nothing; a key with quotas, and /metrics read every second; TLS; all of
it. Every round measures each of them, in an order that turns from round to round; differences and ratios are taken
within a round, and judged by their median. The server without guards is also the probe of the machine: where its own
p50 varies by more than ``--jitter`` between rounds, the verdict is "inconclusive".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import math
import os
import shlex
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from drivers.lanes import CHANNEL_OPTIONS, PlayLane
from drivers.loads import closed_loop, paced
from harness import BENCH_DIR, cpus_of, machine, report_console, run_async, write_json
from peers.process import ServerProcess, free_port
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from playserve.v1 import policy_service_pb2 as pb

Figures = dict[str, Any]
#: Name of each server, and what guards it.
SERVERS: Mapping[str, frozenset[str]] = {
    "plain": frozenset(), "keys": frozenset({"keys"}), "tls": frozenset({"tls"}), "all": frozenset({"keys", "tls"}),
}  # fmt: skip
POLICY = "desktop"
LIVE_SESSIONS = 8


@dataclass(slots=True)
class Budget:
    """One line of the budgets.

    Attributes:
        load: "single" (lockstep, as fast as it goes) or "live" (20 Hz).
        server: Which server.
        limit: Most of `ratio` or of milliseconds.
        ratio: Whether p50 is divided by the plain server's, else subtracted.
        text: For people.
        values: One a round.
        status: "met", "missed", "inconclusive" or "not run".
    """

    load: str
    server: str
    limit: float
    ratio: bool
    text: str
    values: list[float] = field(default_factory=list)
    status: str = "not run"

    def judge(self, rounds: Sequence[Mapping[str, Mapping[str, Figures]]], steady: bool) -> None:
        """Fill in values and status."""
        for measured in rounds:
            ours, plain = (measured[self.load][name]["p50_ms"] for name in (self.server, "plain"))
            self.values.append(ours / plain if self.ratio else ours - plain)
        if self.values:
            held = statistics.median(self.values) <= self.limit
            self.status = ("met" if held else "missed") if steady else "inconclusive"


def budgets() -> list[Budget]:
    """Return the lines of budget 2."""
    return [
        Budget("live", "keys", 1.10, True, "key check and metrics: p50 of a live step at most 1.1x"),
        Budget("single", "keys", 1.10, True, "the same, one lockstep stream"),
        Budget("single", "tls", 0.15, False, "TLS: p50 at most 0.15 ms more at 110 KB"),
        Budget("single", "all", 0.20, False, "all together: p50 at most 1% of a 20 ms step more"),
    ]


class Contender:
    """One server, and how it is dialled.

    Args:
        guards: "keys", "tls", both or none.
        folder: Holds its key file and certificates.
        cpus: Cores, or None.
    """

    def __init__(self, name: str, guards: frozenset[str], folder: Path, cpus: Sequence[int] | None) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.guards = guards
        self._root: bytes | None = None
        self.metadata: tuple[tuple[str, str], ...] = ()
        command = [
            str(Path(sys.executable).with_name("playserve")), "serve", "--policy", f"{POLICY}=bench_policies:{POLICY}",
            "--port", str(self.port),
            "--health-port", "{port}",  # the one in plain text, by which the harness sees that the server is up
        ]  # fmt: skip
        if "keys" in guards:
            command += ["--keys", str(self._issue(folder)), "--metrics-port", str(self.metrics_port)]
        if "tls" in guards:
            command += ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]
            self._root = (folder / "cert.pem").read_bytes()
        path = os.pathsep.join(filter(None, [str(BENCH_DIR), os.environ.get("PYTHONPATH", "")]))
        self.process = ServerProcess(command, name=name, env={"PYTHONPATH": path}, cpus=cpus, ready_s=120.0)

    def _issue(self, folder: Path) -> Path:
        from playserve_services.auth.keyring import KeyFile
        from playserve_services.auth.keys import Quota, Scope, issue_key

        # Limits that are never reached: that they are looked at is what is measured.
        text, kept = issue_key("bench", frozenset({Scope.PLAY}), Quota(sessions=64, frames_per_s=1e6))
        file = folder / "keys.json"
        KeyFile(file).change(lambda keys: [*keys, kept], missing_ok=True)
        self.metadata = (("authorization", f"Bearer {text}"),)
        return file

    def channel(self) -> grpc.aio.Channel:
        """Return a connection of its own."""
        address = f"127.0.0.1:{self.port}"
        if self._root is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self._root), options=CHANNEL_OPTIONS)

    def lane(self, connection: grpc.aio.Channel, pace: pb.Pace, rate_hz: float) -> PlayLane:
        """Return a session that shows the key."""
        lane = PlayLane(connection, POLICY, pace, rate_hz)
        if self.metadata:
            lane._stub = SimpleNamespace(Play=functools.partial(lane._stub.Play, metadata=self.metadata))  # type: ignore[assignment]
        return lane


def make_certificate(folder: Path) -> None:
    """Write a certificate for 127.0.0.1, signed by itself, as `cert.pem` and `key.pem`."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(encoding))
    (folder / "key.pem").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@asynccontextmanager
async def scraped(contender: Contender) -> AsyncIterator[None]:
    """Read /metrics every second, as Prometheus would, only more often."""

    def read() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{contender.metrics_port}/metrics", timeout=5) as answer:
            answer.read()

    async def scrape() -> None:
        while True:
            await asyncio.to_thread(read)
            await asyncio.sleep(1.0)

    task = asyncio.create_task(scrape()) if "keys" in contender.guards else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def measure(contender: Contender, load: str, seconds: float, seed: int) -> Figures:
    """Measure one load on one server."""
    async with contender.channel() as connection, scraped(contender):
        if load == "single":
            lanes = [contender.lane(connection, pb.PACE_LOCKSTEP, 0.0)]
            return (await closed_loop(lanes, seconds, cpu=contender.process.cpu_s)).summary()
        lanes = [contender.lane(connection, pb.PACE_LIVE, 20.0) for _ in range(LIVE_SESSIONS)]
        return (await paced(lanes, seconds, seed=seed, cpu=contender.process.cpu_s)).summary()


async def wait_until_ready(contender: Contender) -> None:
    """Return when a session can be opened."""
    async with contender.channel() as connection, asyncio.timeout(120):
        while True:
            lane = contender.lane(connection, pb.PACE_LOCKSTEP, 0.0)
            try:
                await lane.open()
                await lane.close()
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
                    raise
                await asyncio.sleep(0.2)


def measure_rounds(
    args: argparse.Namespace, contenders: Mapping[str, Contender]
) -> list[dict[str, dict[str, Figures]]]:
    """Measure every load on every server, `args.rounds` times."""
    rounds: list[dict[str, dict[str, Figures]]] = []
    names = list(contenders)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("rounds", total=args.rounds * len(names) * 2)
        for number in range(args.rounds):
            turn = number % len(names)
            measured: dict[str, dict[str, Figures]] = {"single": {}, "live": {}}
            for load, figures in measured.items():
                for name in names[turn:] + names[:turn]:
                    figures[name] = run_async(measure(contenders[name], load, args.seconds, number))
                    progress.advance(bar)
            rounds.append(measured)
    return rounds


def show(console: Console, rounds: Sequence[Mapping[str, Mapping[str, Figures]]], lines: Sequence[Budget]) -> None:
    """Print the tables."""
    table = Table(title="best / median over rounds", title_justify="left")
    for column in ("load", "server", "p50 ms", "p99 ms", "server CPU us/step"):
        table.add_column(column, justify="left" if column in ("load", "server") else "right")
    for load in ("single", "live"):
        for name in SERVERS:
            rows = [measured[load][name] for measured in rounds]
            cells = []
            for figure in ("p50_ms", "p99_ms", "server_cpu_us_per_step"):
                values = [row[figure] for row in rows if row[figure] is not None]
                cells.append(f"{min(values):.3f} / {statistics.median(values):.3f}" if values else "-")
            table.add_row(load, name, *cells)
        table.add_section()
    console.print(table)
    verdicts = Table(title="budgets (within a round)", title_justify="left")
    for column in ("budget", "limit", "best", "median", "verdict"):
        verdicts.add_column(column, justify="left" if column in ("budget", "verdict") else "right")
    for line in lines:
        unit = "x" if line.ratio else " ms"
        best, median = (f(line.values) if line.values else math.nan for f in (min, statistics.median))
        verdicts.add_row(line.text, f"{line.limit:g}{unit}", f"{best:.3f}{unit}", f"{median:.3f}{unit}", line.status)
    console.print(verdicts)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of each server, load and round")
    parser.add_argument("--jitter", type=float, default=1.5, help="allowed max/min of the plain server's p50")
    parser.add_argument("--pin", action="store_true", help="servers on core 0, driver on core 1 (default: unpinned)")
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a budget is missed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    args = parse(argv)
    console, lines = report_console(), budgets()
    report: Figures = {"arguments": shlex.join(sys.argv[1:]), "rounds_wanted": args.rounds}
    with tempfile.TemporaryDirectory(prefix="playserve-bench-security-") as folder, ExitStack() as stack:
        make_certificate(Path(folder))
        cpus = cpus_of(args.pin)
        contenders = {}
        for name, guards in SERVERS.items():
            place = Path(folder) / name
            place.mkdir()
            for file in ("cert.pem", "key.pem"):
                (place / file).write_bytes((Path(folder) / file).read_bytes())
            contenders[name] = Contender(name, guards, place, cpus)
            stack.enter_context(contenders[name].process)
            run_async(wait_until_ready(contenders[name]))
        with machine(report):
            rounds = measure_rounds(args, contenders)
    spreads = {}
    for load in ("single", "live"):
        values = [measured[load]["plain"]["p50_ms"] for measured in rounds]
        spreads[load] = max(values) / min(values)
    for line in lines:
        line.judge(rounds, spreads[line.load] <= args.jitter)
    show(console, rounds, lines)
    console.print(f"probe (plain) max/min over rounds: {', '.join(f'{k} {v:.2f}x' for k, v in spreads.items())}")
    report |= {"rounds": rounds, "probe_spread": spreads, "budgets": [asdict(line) for line in lines]}
    write_json(args.out, report)
    return int(args.strict and any(line.status == "missed" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
