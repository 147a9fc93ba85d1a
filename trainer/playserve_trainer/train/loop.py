"""The training loop: behaviour cloning of any policy on any batch source, resumable at every save.

It knows neither families nor files of data. Shape legend: B rows, T steps, H heads, A actions, M = B * T.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from playserve.errors import BadSettingError
from playserve_trainer.data.batches import Batch, BatchSource
from playserve_trainer.data.prefetch import Prefetcher
from playserve_trainer.flops import count_flops, flops_6nd
from playserve_trainer.models.device import resolve_device
from playserve_trainer.models.policy import LabelCounts, Policy
from playserve_trainer.train.by_episode import EpisodeLosses
from playserve_trainer.train.compute import resolve_precision, set_threads, synchronize
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.ema import MovingAverage
from playserve_trainer.train.errors import DataChangedError, TrainingDivergedError
from playserve_trainer.train.evaluate import Evaluation, Scores, evaluate, evaluation_batches
from playserve_trainer.train.metrics import METRICS_NAME, Means, MeanValues, MetricsLog, NoLog
from playserve_trainer.train.optimize import freeze, learning_rate, make_optimizer
from playserve_trainer.train.parallel import Forward, Group, full, local_device, spread, whole_policy
from playserve_trainer.train.passes import Parts, count_labels, run_pass
from playserve_trainer.train.progress import Reporter, Silent, Status
from playserve_trainer.train.state import TrainState, capture, read_state, restore, write_state
from playserve_trainer.train.stop import fraction_done

__all__ = ["Evaluation", "Trainer"]


class Trainer:
    """One run: a policy, its data, and everything that changes from step to step.

    With a fixed seed and number of threads a run on a CPU is a function of its settings, also across resumes (but for
    a cosine under max_minutes, which follows the clock).

    Args:
        config: The settings; `config.out` must exist.
        policy: Freshly initialised; it is moved to the device and trained in place.
        source: Batches to learn from.
        held_out: Batches to evaluate on, or None.
        data_digest: Digest of the data behind the sources.
        reporter: Is told how far the run is.
        should_stop: Asked between steps; True saves the state and ends :meth:`run`.
        group: The processes of the run, each of which has a trainer like this one.
        scores: What an evaluation measures beside loss and accuracy.
        by_episode: Adds up the held-out loss of each episode, or None.

    Attributes:
        data_wait_s: Seconds of this process in which the loop waited for batches.
        loop_s: Seconds of this process in the loop, evaluations included.
        evaluation_s: Seconds of this process in evaluations.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        source: BatchSource,
        held_out: BatchSource | None = None,
        *,
        data_digest: str = "",
        reporter: Reporter | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        group: Group | None = None,
        scores: Scores | None = None,
        by_episode: EpisodeLosses | None = None,
    ) -> None:
        self.config = config
        self.group = group = group or Group()
        self.out = Path(config.out)
        self.device = local_device(resolve_device(config.device))
        self.precision = resolve_precision(config.precision, self.device)
        self.threads = set_threads(config.threads, group.size)
        self.flops_per_sample = count_flops(policy, config.sequence_length).training
        self.num_params = policy.num_params()
        self.policy = policy.to(device=self.device)
        if config.parallel != "fsdp":  # which wants its tensors contiguous
            self.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # kernels only
        self.last_evaluation: Evaluation | None = None
        self.data_wait_s = 0.0
        self.loop_s = 0.0
        self.evaluation_s = 0.0
        self._source = _divisible(source, config.accumulate * group.size)
        self._frozen = freeze(policy, config.freeze)
        self._forward: Forward = torch.compile(policy) if config.compile else policy
        self._twin = copy.deepcopy(policy).to("meta") if config.parallel == "fsdp" else None
        self._train_forward, self._before_pass = spread(policy, self._forward, config.parallel, group)
        self._held_out = held_out
        self._scores = scores
        self._by_episode = by_episode
        self._optimizer = make_optimizer(policy, config)
        self._average = MovingAverage(policy, config.ema_decay) if config.ema_decay else None
        self._memory: Mapping[str, Tensor] = {}
        self._means = Means(self.device)
        self._norm = torch.zeros((), device=self.device)
        self._reporter = reporter or Silent()
        self._should_stop = should_stop
        self._state = TrainState(data_digest=data_digest, config=config.to_json())
        self._resumed = False
        self._began = time.monotonic()

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._state.step

    @property
    def samples(self) -> int:
        """D: samples seen, repeats counted."""
        return self._state.samples

    @property
    def flops(self) -> int:
        """Training FLOPs so far, counted layer by layer."""
        return self.flops_per_sample * self._state.samples

    @property
    def flops_6nd(self) -> int:
        """6ND so far."""
        return flops_6nd(self.num_params, self.tokens)

    @property
    def tokens(self) -> int:
        """D in tokens: of a sample there may be several."""
        return self._state.samples * self.policy.tokens_per_sample()

    @property
    def data_digest(self) -> str:
        """Digest of the data behind the sources."""
        return self._state.data_digest

    @property
    def elapsed_s(self) -> float:
        """Seconds inside :meth:`run` so far, over all resumes."""
        return self._state.elapsed_s

    @property
    def best(self) -> Mapping[str, float]:
        """Step, loss and accuracy of the evaluation with the lowest held-out loss; empty before the first."""
        return self._state.best

    def resume(self) -> None:
        """Take up the state that an earlier run saved in `config.out`.

        Raises:
            NotFoundError: There is none.
            DataLossError: It is damaged.
            BadSettingError: It was made with other settings.
            DataChangedError: It was made with other data.
            StateError: It was made with another model.
        """
        state, tensors = read_state(self.out)
        self.config.check_resumes(TrainConfig.from_json(state.config))
        if state.data_digest != self._state.data_digest:
            raise DataChangedError(
                f"the run began on data with the digest {state.data_digest[:16]}, now it is "
                f"{self._state.data_digest[:16]}: give it the same episodes, or begin a new run"
            )
        self._memory = restore(tensors, self.policy, self._optimizer, self.device, self._average, self.group)
        state.config = self.config.to_json()
        self._state = state
        self._resumed = True

    def go_on_with(self, config: TrainConfig) -> None:
        """Take other limits, or other settings that a resume may change; the next :meth:`run` goes on under them.

        Raises:
            BadSettingError: Other settings differ, too.
        """
        config.check_resumes(self.config)
        self.config = config
        self._state.config = config.to_json()

    def run(self) -> bool:
        """Train until a limit of the settings; return False if `should_stop` ended it before. The state is saved.

        Raises:
            TrainingDivergedError: The loss is not finite; the last saved state is from before that.
        """
        config, state, group = self.config, self._state, self.group
        self._began = time.monotonic() - state.elapsed_s
        last_save = last_log = time.monotonic()
        log_at_samples, waited = state.samples, 0.0
        self._train_mode()
        if not self._resumed:
            if group.rank:  # processes drop out different things
                torch.manual_seed(config.seed + group.rank * 1_000_003)
            self.save_state()  # from now on there is something to resume
        with self._open_log() as log, self._open_batches() as batches:
            began_loop = time.monotonic()
            while self._fraction() < 1 and not any(group.most(self._should_stop())):
                rate = self._train_step([batches.next() for _ in range(config.accumulate)])
                now = time.monotonic()
                (state.elapsed_s,) = group.most(now - self._began)
                done = self._fraction() >= 1
                if done or state.step % config.log_every_steps == 0:
                    values = self._means.take(group)
                    speed = (state.samples - log_at_samples) / (now - last_log)
                    wait = (batches.waited_s - waited) / (now - last_log)
                    self._log(log, values, rate, speed, wait)
                    last_log, log_at_samples, waited = now, state.samples, batches.waited_s
                if done or (config.eval_every_steps and state.step % config.eval_every_steps == 0):
                    self._evaluate_and_log(log)
                    last_log += time.monotonic() - now
                if self._save_is_due(*group.most(time.monotonic() - last_save)):
                    log.sync()
                    self.save_state()
                    last_save = time.monotonic()
            self._check_finite()
            log.sync()
            self.save_state()
            self.loop_s += time.monotonic() - began_loop
            self.data_wait_s += batches.waited_s
        self._resumed = True  # another call of run goes on
        return self._fraction() >= 1

    def evaluate(self) -> Evaluation | None:
        """Return the means over about `eval_samples` held-out samples, always the same; None without held-out data."""
        if self._held_out is None:
            return None
        began = time.monotonic()
        self.policy.eval()
        with self._published_weights():
            evaluation = evaluate(
                self._forward,
                self.policy,
                self._held_out,
                batches=evaluation_batches(self._held_out, self.config.eval_samples),
                precision=self.precision,
                prefetch=self.config.prefetch,
                group=self.group,
                scores=self._scores,
                by_episode=self._by_episode,
            )
        self._train_mode()
        self.evaluation_s += time.monotonic() - began
        return evaluation

    @contextlib.contextmanager
    def published_policy(self) -> Iterator[Policy | None]:
        """Give the policy with the weights that are published; all processes must ask, the main one alone gets it."""
        with self._published_weights():
            policy = whole_policy(self.policy, self._twin)
            yield policy if self.group.is_main else None

    def _published_weights(self) -> contextlib.AbstractContextManager[None]:
        """Have the policy hold what is evaluated and published: the moving average, if the run keeps one."""
        return self._average.applied() if self._average else contextlib.nullcontext()

    def save_state(self) -> None:
        """Write everything that :meth:`resume` needs to `config.out`, atomically."""
        tensors = capture(self.policy, self._optimizer, self._memory, self.device, self._average, self.group)
        if self.group.is_main:
            write_state(self.out, self._state, tensors)

    def _open_log(self) -> MetricsLog:
        resume_at = self._state.step if self._resumed else None
        return MetricsLog(self.out / METRICS_NAME, resume_at) if self.group.is_main else NoLog()

    def _open_batches(self) -> Prefetcher:
        passes, pin = self.config.accumulate, self.device.type == "cuda"
        parts = Parts(self._source, self.group, passes)
        return Prefetcher(parts, start=self._state.step * passes, depth=self.config.prefetch, pin=pin)

    def _train_mode(self) -> None:
        self.policy.train()
        for module in self._frozen:
            module.eval()  # batch statistics are frozen, too

    def _train_step(self, parts: Sequence[Batch]) -> float:
        """Learn from one batch, in parts; return the learning rate."""
        rate = learning_rate(self.config, self._state.step, self._fraction())
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        counts, samples = count_labels(parts, self.group, self.device)
        loss = self._passes(parts, counts)
        clip = self.config.clip_norm or math.inf
        self._norm = full(nn.utils.clip_grad_norm_(self.policy.parameters(), clip))
        if self.device.type == "cpu":
            # Of several processes one alone sees its loss, but all see the norm.
            self._raise_unless_finite(loss.item() if self.group.size == 1 else self._norm.item(), self._state.step + 1)
        self._optimizer.step()
        self._state.step += 1
        self._state.samples += samples
        if self._average is not None:
            self._average.update(self._state.step)
        return rate

    def _passes(self, parts: Sequence[Batch], counts: LabelCounts) -> Tensor:
        """Leave the gradients of the parts' losses in the parameters, and the memory behind them; return the loss."""
        loss, after = torch.zeros((), device=self.device), []
        weight, first = counts.labels_H.sum(), 0
        for number, part in enumerate(parts):
            rows = slice(first, first + len(part.first_BT))
            memory = self._memory if len(parts) == 1 else {name: of[rows] for name, of in self._memory.items()}
            self._before_pass(number == len(parts) - 1)
            done = run_pass(self._train_forward, self.policy, part.to(self.device), memory, counts, self.precision)
            # Gradients are averaged over the processes where they are exchanged; what is wanted is their sum.
            scaled = done.loss * self.group.size if self.group.size > 1 else done.loss
            scaled.backward()  # type: ignore[no-untyped-call]
            self._means.add(done.loss, done.hits, done.labels, weight)
            loss, first = loss + done.loss.detach(), rows.stop
            after.append(done.output.state)
        if self._source.carries_state:
            self._memory = {
                name: torch.cat([state[name].detach() for state in after]) if len(after) > 1 else tensor.detach()
                for name, tensor in after[0].items()
            }
        return loss

    def _fraction(self) -> float:
        state = self._state
        return fraction_done(
            self.config, steps=state.step, samples=state.samples, flops=self.flops, elapsed_s=state.elapsed_s
        )

    def _save_is_due(self, since_s: float) -> bool:
        config = self.config
        by_time = bool(config.save_every_s) and since_s >= config.save_every_s
        by_steps = bool(config.save_every_steps) and self._state.step % config.save_every_steps == 0
        if by_time or by_steps:
            self._check_finite()
        return by_time or by_steps

    def _check_finite(self) -> None:
        """Raise if the weights are spoilt; on a GPU the loop does not look at each loss."""
        synchronize(self.device)
        norm = float(self._norm)
        if not math.isfinite(norm):
            self._raise_unless_finite(norm, self._state.step)

    def _raise_unless_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            hint = f"lower lr ({self.config.lr}) or clip_norm ({self.config.clip_norm}), or look at the data"
            raise TrainingDivergedError(step, loss, hint)

    def _log(self, log: MetricsLog, values: MeanValues | None, rate: float, speed: float, wait: float) -> None:
        """Write a line of running means and tell the reporter."""
        state = self._state
        if values is None:
            return
        self._raise_unless_finite(values.loss, state.step)
        log.write(
            kind="train", step=state.step, samples=state.samples, flops=self.flops, elapsed_s=round(state.elapsed_s, 3),
            loss=values.loss, accuracy=values.accuracy, lr=rate, grad_norm=float(self._norm),
            samples_per_s=round(speed, 1), data_wait_fraction=round(wait, 5),
        )  # fmt: skip
        held_out = self.last_evaluation
        self._reporter.update(
            Status(
                step=state.step,
                samples=state.samples,
                fraction=self._fraction(),
                elapsed_s=state.elapsed_s,
                samples_per_s=speed,
                loss=values.loss,
                accuracy=values.accuracy,
                held_out_loss=held_out.loss if held_out else None,
                held_out_accuracy=held_out.accuracy if held_out else None,
            )
        )

    def _evaluate_and_log(self, log: MetricsLog) -> None:
        evaluation, state = self.evaluate(), self._state
        (state.elapsed_s,) = self.group.most(time.monotonic() - self._began)
        if evaluation is None:
            return
        self.last_evaluation = evaluation
        if not state.best or evaluation.loss < state.best["loss"]:
            state.best = {"step": state.step, "loss": evaluation.loss, "accuracy": evaluation.accuracy}
        log.write(
            kind="eval", step=state.step, samples=state.samples, flops=self.flops, elapsed_s=round(state.elapsed_s, 3),
            held_out_loss=evaluation.loss, held_out_accuracy=evaluation.accuracy, labels=evaluation.labels,
            **evaluation.scores,
        )  # fmt: skip


def _divisible(source: BatchSource, parts: int) -> BatchSource:
    if source.batch_size % parts:
        raise BadSettingError(
            f"batch_size ({source.batch_size}) is a multiple of processes times accumulate ({parts}), which it is not"
        )
    return source
