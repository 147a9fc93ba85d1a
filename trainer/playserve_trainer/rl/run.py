"""One run: a server, actors that play through it, the learner between them, and what outlasts a kill."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve.files import write_json
from playserve_client import PolicyClient
from playserve_trainer.flops import CONVENTION
from playserve_trainer.models.device import resolve_device
from playserve_trainer.processes import serve
from playserve_trainer.rl.actors import ActorSettings
from playserve_trainer.rl.config import RLConfig
from playserve_trainer.rl.curve import Curve
from playserve_trainer.rl.errors import ActorsLostError, ActorsSilentError
from playserve_trainer.rl.families import begin
from playserve_trainer.rl.learner import Learner
from playserve_trainer.rl.pool import ActorPool
from playserve_trainer.rl.publishing import Publisher, write_policy
from playserve_trainer.rl.unrolls import Unroll
from playserve_trainer.train.compute import set_threads
from playserve_trainer.train.finish import CHECKPOINT_NAME, SUMMARY_NAME, publish
from playserve_trainer.train.state import TrainState, capture, read_state, restore, write_state

__all__ = ["LIVE_STORE", "RLRun", "Service"]

#: Folder of the run that holds the versions for the actors.
LIVE_STORE = "live"

_TICK_S = 0.2
_SAY_EVERY_S = 10.0
_READY_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where the actors' actions come from.

    Attributes:
        server: "host:port" of a server that watches `store`; "": the run starts one of its own on loopback.
        store: Folder of that server's store; "": the run's own.
        name: Name of the policy there.
        flags: More arguments of the server that the run starts.
    """

    server: str = ""
    store: str = ""
    name: str = "learner"
    flags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if bool(self.server) != bool(self.store):
            raise BadSettingError("--server and --live-store go together: the folder is the store that it watches")


class RLRun:
    """See the module's docstring.

    Its folder has state.safetensors, curve.jsonl, episodes.jsonl, serve.log and, at the end, summary.json, checkpoint/.

    Args:
        config: The settings.
        service: Where actions come from.
        resume: Go on with the run in the folder.
        say: Takes lines for people.

    Raises:
        NotFoundError: Nothing is there to resume.
    """

    def __init__(
        self,
        config: RLConfig,
        service: Service | None = None,
        *,
        resume: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config, self._service, self._say = config, service or Service(), say
        self._out = Path(config.out)
        self._out.mkdir(parents=True, exist_ok=True)
        set_threads(config.threads)
        self._start = begin(config)
        self.learner = Learner(config, self._start.policy, resolve_device(config.device))
        self._elapsed_before, self._began = 0.0, time.monotonic()
        self._attempt, self._versions = 0, dict[int, int]()
        self._resume_at: int | None = None
        self._scores: list[float] = []
        self._episodes = 0
        if resume:
            self._restore()
        self._waiting: deque[Unroll] = deque()
        self.curve: Curve | None = None

    # ---- what outlasts a kill

    def _restore(self) -> None:
        state, tensors = read_state(self._out)
        learner, extra = self.learner, state.config
        restore(tensors, learner.net, learner.optimizer, learner.device)
        learner.updates, learner.steps, learner.flops = state.step, state.samples, int(extra["flops"])
        self._elapsed_before, self._resume_at = state.elapsed_s, state.step
        self._attempt = int(extra["attempt"]) + 1
        self._versions = {int(version): update for version, update in extra["versions"].items()}
        self._scores, self._episodes = list(extra["scores"]), int(extra["episodes"])

    def _save(self, publisher: Publisher, curve: Curve) -> None:
        learner = self.learner
        state = TrainState(
            step=learner.updates,
            samples=learner.steps,
            elapsed_s=self.elapsed_s,
            config={
                "flops": learner.flops, "attempt": self._attempt, "versions": publisher.versions,
                "scores": list(curve.scores), "episodes": curve.episodes, "settings": self.config.to_json(),
            },
        )  # fmt: skip
        write_state(self._out, state, capture(learner.net, learner.optimizer, {}, learner.device))

    # ---- how far it is

    @property
    def elapsed_s(self) -> float:
        """Seconds so far, over all resumes."""
        return self._elapsed_before + time.monotonic() - self._began

    @property
    def fraction(self) -> float:
        """How much of the run is done."""
        learner = self.learner
        return self.config.fraction_done(steps=learner.steps, flops=learner.flops, elapsed_s=self.elapsed_s)

    # ---- the run

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Learn until a limit; return False if `should_stop` was first. Either way the state is saved.

        Raises:
            ActorsLostError: All actors are gone.
            ActorsSilentError: Nothing comes from those that live.
            TrainingDivergedError: The loss is no finite number; the state stays as it was saved last.
            ServerFault, NotReadyError: The server did not start.
        """
        config, service = self.config, self._service
        store = Path(service.store) if service.store else self._out / LIVE_STORE
        publisher = Publisher(store, service.name, self._out, config.keep_versions, self._versions)
        publisher.publish(self.learner)
        with contextlib.ExitStack() as stack:
            stack.callback(publisher.close)
            curve = stack.enter_context(Curve(self._out, self._resume_at, self._scores, self._episodes))
            self.curve = curve
            self._save(publisher, curve)
            address = stack.enter_context(self._served(store))
            pool = stack.enter_context(self._actors(address))
            self._say(f"{config.num_envs} environments play {service.name!r} at {address}")
            self._began = time.monotonic()
            try:
                finished = self._learn(pool, publisher, curve, should_stop)
            except (ActorsLostError, ActorsSilentError):
                self._save(publisher, curve)
                raise
            self._save(publisher, curve)
        return finished

    @contextlib.contextmanager
    def _served(self, store: Path) -> Iterator[str]:
        """Yield the address of a server that has the policy."""
        service = self._service
        if service.server:
            with PolicyClient(service.server) as client:
                client.wait_ready(_READY_S, policy=service.name)
            yield service.server
            return
        envs = self.config.num_envs
        command = (
            "serve", "--store", f"{store}", "--port", "0", "--poll-s", "0.5", "--keep-versions", "2", "--max-batch",
            f"{envs}", "--slots", f"{envs + 8}", "--idle-timeout-s", "600", *service.flags,
        )  # fmt: skip
        with serve(command, self._out / "serve.log") as address:
            yield address

    def _actors(self, address: str) -> ActorPool:
        config, start = self.config, self._start
        settings = ActorSettings(
            server=address,
            policy=self._service.name,
            env=start.env,
            game=config.game,
            env_options=start.env_options,
            unroll=config.unroll,
            life_ends=config.life_ends,
            seed=config.seed,
            attempt=self._attempt,
        )
        return ActorPool(
            settings,
            num_envs=config.num_envs,
            processes=config.actor_processes,
            queue_size=config.queue,
            note=self._say,
        )

    def _learn(self, pool: ActorPool, publisher: Publisher, curve: Curve, should_stop: Callable[[], bool]) -> bool:
        config, learner = self.config, self.learner
        published = saved = said = time.monotonic()
        line_at = (learner.steps, self.elapsed_s)
        while (fraction := self.fraction) < 1.0:
            fresh = self._fresh(pool, should_stop)
            if not fresh:
                return False
            learner.update(fresh, fraction)
            self._note(fresh, publisher, curve)
            now = time.monotonic()
            if now - published >= config.publish_every_s:
                publisher.publish(learner)
                published = now
            if learner.updates % config.log_every_updates == 0:
                line = self._line(curve, pool, line_at)
                line_at = (learner.steps, self.elapsed_s)
                if now - said >= _SAY_EVERY_S:
                    said = now
                    self._say(_spoken(line))
            if now - saved >= config.save_every_s:
                self._save(publisher, curve)
                saved = now
        return True

    def _fresh(self, pool: ActorPool, should_stop: Callable[[], bool]) -> list[Unroll]:
        """Return the new unrolls of an update; none when the run shall stop.

        For policies with memory they are of different environments: the second one would begin where the first ends.
        """
        fresh: list[Unroll] = []
        later: deque[Unroll] = deque()
        heard = time.monotonic()
        while len(fresh) < self.config.batch:
            if should_stop():
                return []
            unroll = self._waiting.popleft() if self._waiting else pool.take(_TICK_S)
            if unroll is None:
                if time.monotonic() - heard > self.config.silence_s:
                    raise ActorsSilentError(f"no actor has sent an unroll for {self.config.silence_s:g} s")
                continue
            heard = time.monotonic()
            taken = self.learner.recurrent and unroll.env_id in {u.env_id for u in fresh}
            (later if taken else fresh).append(unroll)
        self._waiting.extendleft(reversed(later))
        return fresh

    def _note(self, fresh: Sequence[Unroll], publisher: Publisher, curve: Curve) -> None:
        """Take down the episodes that ended, and how old the policies were that acted."""
        learner = self.learner
        for unroll in fresh:
            for episode in unroll.episodes:
                curve.add_episode(episode, update=learner.updates, steps=learner.steps)
        for version, steps in Counter(int(v) for unroll in fresh for v in unroll.versions).items():
            versions, updates = publisher.lag(version, learner.updates - 1)
            curve.add_lag(versions=versions, updates=updates, steps=steps)

    def _line(self, curve: Curve, pool: ActorPool, before: tuple[int, float]) -> dict[str, Any]:
        learner, elapsed_s = self.learner, self.elapsed_s
        seconds = max(1e-9, elapsed_s - before[1])
        return curve.line(
            {
                "step": learner.updates,
                "steps": learner.steps,
                "frames": learner.steps * self._start.frame_skip,
                "flops": learner.flops,
                "flops_acting": learner.acting_flops_per_step * learner.steps,
                "elapsed_s": round(elapsed_s, 1),
                "steps_per_s": round((learner.steps - before[0]) / seconds, 1),
                "lr": learner.optimizer.param_groups[0]["lr"],
                "queue": pool.waiting,
                "actors_lost": len(pool.lost),
            },
            learner.take_means(),
        )

    # ---- its end

    def finish(self, *, finished: bool, store: str = "", name: str = "") -> dict[str, Any]:
        """Write checkpoint/ (of a finished run) and summary.json, which is returned; publish where a store is given."""
        learner, curve = self.learner, self.curve
        scores = list(curve.scores) if curve is not None else []
        summary: dict[str, Any] = {
            "method": "rl", "finished": finished, "family": self.config.family, "game": self.config.game,
            "updates": learner.updates, "steps": learner.steps, "frames": learner.steps * self._start.frame_skip,
            "num_params": learner.policy.num_params(), "num_params_with_critic": learner.net.num_params(),
            "flops": learner.flops, "flops_acting": learner.acting_flops_per_step * learner.steps,
            "flops_convention": CONVENTION, "elapsed_s": self.elapsed_s,
            "episodes": curve.episodes if curve is not None else 0,
            "return_last": sum(scores) / len(scores) if scores else None, "return_last_n": len(scores),
            "checkpoint": None, "published": None, "config": self.config.to_json(),
        }  # fmt: skip
        if finished:
            directory = self._out / CHECKPOINT_NAME
            origin = {key: summary[key] for key in ("method", "updates", "steps", "frames", "return_last", "config")}
            write_policy(learner, directory, origin)
            summary["checkpoint"] = str(directory)
            if store:
                summary["published"] = publish(store, name, directory)
        write_json(self._out / SUMMARY_NAME, summary)
        return summary


def _spoken(line: dict[str, Any]) -> str:
    mean = line["return_mean"]
    return (
        f"{line['elapsed_s']:.0f} s: {line['frames']:,} frames, {line['steps_per_s']:.0f} steps/s, return "
        f"{'-' if mean is None else f'{mean:.2f}'} over the last episodes of {line['episodes']}, entropy "
        f"{line['entropy']:.3f}, {line['lag_updates']} updates behind"
    )
