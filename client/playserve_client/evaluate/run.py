"""One evaluation from beginning to end: the plan's missing episodes are played, kept, summed up and filmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from playserve.files import write_json
from playserve.settings import MouseDecode, Sampling, SamplingMode
from playserve.specs import Codec, PolicySpec
from playserve_client.channels import Tls
from playserve_client.client import PolicyClient
from playserve_client.evaluate.driver import Callbacks, Driver, PhaseReport, Tags
from playserve_client.evaluate.families.base import AGENTS, Recordings
from playserve_client.evaluate.journal import Journal, Result
from playserve_client.evaluate.plan import Assignment, Settings
from playserve_client.evaluate.pool import WorkerPool
from playserve_client.evaluate.progress import ProgressView, show_progress
from playserve_client.evaluate.report import build_report
from playserve_client.rollout import Rollout

__all__ = ["RunOptions", "evaluate"]

# Phases by the kind of their players; whoever is not here is played last, without a server.
_PHASES = {"sample": "agent (sampled)", "argmax": "agent (argmax)"}
_LOCAL_PHASE = "baselines"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What does not change the results.

    Attributes:
        out: Folder of the run.
        server: "host:port".
        version: Version or alias of the policy; empty: the newest, or the one that the folder was begun with.
        envs: Environments at a time.
        workers: Worker processes.
        reconnect_s: How long the server may be away.
        record: Episodes to film.
        api_key: Key of the server, if it wants one.
        tls: Whether, and how, to dial with TLS.
        allow_insecure_key: Send the key over plain text to another machine, too.
        codecs: Packings to offer.
        notes: Lines for the report.
        knowledge: Content of the file that baselines draw from; the settings hold its digest.
        dial: How workers dial an environment that is served; see `Choice`.
    """

    out: Path
    server: str = "127.0.0.1:50051"
    version: str = ""
    envs: int = 16
    workers: int = 2
    reconnect_s: float = 60.0
    record: int = 0
    api_key: str | None = None
    tls: Tls = False
    allow_insecure_key: bool = False
    codecs: tuple[Codec, ...] = ()
    notes: tuple[str, ...] = ()
    knowledge: bytes = b""
    dial: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class _State:
    """What a run learns."""

    policy: PolicySpec | None = None
    phases: dict[str, PhaseReport] = field(default_factory=dict)
    worker_restarts: int = 0
    interrupted: bool = False
    recordings: Recordings = field(default_factory=Recordings)
    notes: list[str] = field(default_factory=list)


def evaluate(settings: Settings, options: RunOptions) -> dict[str, Any]:
    """Play what is missing; return the report, which also lies in ``OUT/results.json``, finished or not.

    Raises:
        PlayserveError: The server stayed away, the policy does not fit, an environment failed, or the folder holds
            another run. Finished episodes are kept.
    """
    journal, state, started = Journal(options.out), _State(notes=list(options.notes)), time.monotonic()
    with journal.open(settings, _packages(settings), options.knowledge):
        if journal.damaged:
            state.notes.append(f"{journal.damaged} damaged lines of episodes.jsonl; those episodes are played again")
        failed = True
        try:
            _play(settings, options, journal, state)
            if options.record and not state.interrupted:
                with show_progress(options.record, 0) as progress:
                    progress.phase("recording")
                    rules = settings.env.rules
                    state.recordings = rules.record(settings, journal, options.record, progress.advance)
                state.notes += state.recordings.notes
            failed = False
        except KeyboardInterrupt:
            state.interrupted, failed = True, False
        finally:
            report = _report(settings, options, journal, state, time.monotonic() - started)
            report["failed"] = failed
            write_json(options.out / "results.json", report, allow_nan=True)
    return report


def _play(settings: Settings, options: RunOptions, journal: Journal, state: _State) -> None:
    rows = {row.key: row for row in settings.rows()}
    planned = [a for row in rows.values() for a in row.assignments(settings.seed_start, settings.shard)]
    missing = [a for a in planned if not journal.has(a)]
    if not missing:
        return
    names = [*_PHASES.values(), _LOCAL_PHASE]
    phases = [(name, [a for a in missing if _PHASES.get(rows[a.row].kind, _LOCAL_PHASE) == name]) for name in names]
    phases = [(name, queue) for name, queue in phases if queue]
    most = max(len(queue) for _, queue in phases)
    with ExitStack() as stack:
        progress = stack.enter_context(show_progress(len(planned), len(planned) - len(missing)))
        pool = stack.enter_context(
            WorkerPool(
                settings.env,
                stickiness=rows[missing[0].row].stickiness,
                rows=min(options.envs, most),
                workers=options.workers,
                actions_dir=journal.actions_dir,
                knowledge=journal.knowledge,
                dial=options.dial,
            )
        )
        client = stack.enter_context(
            PolicyClient(
                options.server,
                api_key=options.api_key,
                allow_insecure_key=options.allow_insecure_key,
                tls=options.tls,
                codecs=options.codecs,
            )
        )
        tags = Tags()
        try:
            for name, queue in phases:
                progress.phase(name)
                callbacks = _callbacks(settings, journal, state, progress)
                opener = _opener(settings, options, journal, client, queue, rows)
                driver = Driver(
                    pool,
                    rows,
                    callbacks,
                    tags,
                    open_rollout=opener,
                    reconnect_s=options.reconnect_s,
                    instruction=settings.instruction,
                )
                state.phases[name] = driver.report
                driver.play(queue)
        except KeyboardInterrupt:
            state.interrupted = True
        finally:
            state.worker_restarts = pool.restarts


def _callbacks(settings: Settings, journal: Journal, state: _State, progress: ProgressView) -> Callbacks:
    def opened(spec: PolicySpec) -> None:
        odd = settings.env.rules.check_policy(settings, spec)
        state.notes += [note for note in odd if note not in state.notes]
        journal.set_version(spec.version)
        state.policy = spec

    return Callbacks(
        finished=lambda finished: journal.add(Result.of(finished)),
        progress=progress.advance,
        note=progress.note,
        opened=opened,
    )


def _opener(
    settings: Settings,
    options: RunOptions,
    journal: Journal,
    client: PolicyClient,
    queue: Sequence[Assignment],
    rows: Mapping[str, Any],
) -> Callable[[int], Rollout] | None:
    kind = rows[queue[0].row].kind
    if kind not in AGENTS:
        return None
    mode = SamplingMode.SAMPLE if kind == "sample" else SamplingMode.ARGMAX

    def open_rollout(num_envs: int) -> Rollout:
        # Once it is known which version plays, no other may: not after a restart, not in a later run.
        return client.rollout(
            settings.policy,
            num_envs,
            version=options.version if not journal.version else journal.version,
            seed=settings.seed_start,
            sampling=Sampling(mode=mode, mouse_decode=MouseDecode[(settings.mouse_decode or "default").upper()]),
        )

    return open_rollout


def _packages(settings: Settings) -> dict[str, str]:
    """Return the versions that decide what an episode is."""
    found = {}
    for name in settings.env.rules.packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _report(settings: Settings, options: RunOptions, journal: Journal, state: _State, seconds: float) -> dict[str, Any]:
    phases = {
        name: {
            **asdict(phase),
            "seconds": round(phase.seconds, 3),
            "env_steps_per_s": round(phase.steps / phase.seconds, 1) if phase.steps and phase.seconds else None,
        }
        for name, phase in state.phases.items()
    }
    spec = state.policy
    extra = {
        "policy": {
            "name": settings.policy,
            "version": journal.version,
            "server": options.server if settings.policy else "",
            "spec": None if spec is None else spec.to_json(),
        },
        "packages": {**journal.packages, "playserve": version("playserve")},
        "run": {
            "envs": options.envs,
            "workers": options.workers,
            "seconds": round(seconds, 3),
            "phases": phases,
            "reconnects": sum(phase.reconnects for phase in state.phases.values()),
            "worker_restarts": state.worker_restarts,
            "interrupted": state.interrupted,
        },
        "videos": state.recordings.videos,
        "recordings": state.recordings.files,
        "notes": state.notes,
    }
    recorded = settings.env.rules.recorded(journal.knowledge) if journal.knowledge is not None else ()
    return build_report(settings, journal.results, extra, recorded)
