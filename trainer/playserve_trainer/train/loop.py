"""The training loop: behaviour cloning of any policy on any batch source, resumable at every save.

It knows neither families nor files of data. Shape legend: B rows, T steps, H heads, A actions, M = B * T.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve_trainer.data.batches import IGNORED_LABEL, Batch, BatchSource
from playserve_trainer.data.prefetch import Prefetcher
from playserve_trainer.flops import count_flops, flops_6nd
from playserve_trainer.models.policy import ForwardOutput, Policy
from playserve_trainer.train.compute import autocast, resolve_device, resolve_precision, set_threads, synchronize
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.errors import DataChangedError, TrainingDivergedError
from playserve_trainer.train.metrics import METRICS_NAME, Means, MeanValues, MetricsLog, score_labels
from playserve_trainer.train.optimize import learning_rate, make_optimizer
from playserve_trainer.train.progress import Reporter, Silent, Status
from playserve_trainer.train.state import TrainState, capture, read_state, restore, write_state
from playserve_trainer.train.stop import fraction_done

__all__ = ["Evaluation", "Trainer"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over held-out data.

    Attributes:
        loss: Nats a label.
        accuracy: Share of labels that the likeliest action hits.
        labels: How many labels were asked for.
    """

    loss: float
    accuracy: float
    labels: int


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
    ) -> None:
        self.config = config
        self.out = Path(config.out)
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.threads = set_threads(config.threads)
        self.flops_per_sample = count_flops(policy, config.sequence_length).training
        self.policy = policy.to(device=self.device)
        self.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # kernels only
        self.last_evaluation: Evaluation | None = None
        self.data_wait_s = 0.0
        self.loop_s = 0.0
        self._forward: Callable[..., ForwardOutput] = torch.compile(policy) if config.compile else policy
        self._source = source
        self._held_out = held_out
        self._optimizer = make_optimizer(policy, config)
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
        return flops_6nd(self.policy.num_params(), self._state.samples)

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
        self._memory = restore(tensors, self.policy, self._optimizer, self.device)
        state.config = self.config.to_json()
        self._state = state
        self._resumed = True

    def run(self) -> bool:
        """Train until a limit of the settings; return False if `should_stop` ended it before. The state is saved.

        Raises:
            TrainingDivergedError: The loss is not finite; the last saved state is from before that.
        """
        config, state = self.config, self._state
        self._began = time.monotonic() - state.elapsed_s
        last_save = last_log = time.monotonic()
        log_at_samples, waited = state.samples, 0.0
        self.policy.train()
        pin = self.device.type == "cuda"
        if not self._resumed:
            self.save_state()  # from now on there is something to resume
        resume_at = state.step if self._resumed else None
        with (
            MetricsLog(self.out / METRICS_NAME, resume_at) as log,
            Prefetcher(self._source, start=state.step, depth=config.prefetch, pin=pin) as batches,
        ):
            began_loop = time.monotonic()
            while self._fraction() < 1 and not self._should_stop():
                rate = self._train_step(batches.next())
                now = time.monotonic()
                state.elapsed_s = now - self._began
                done = self._fraction() >= 1
                if done or state.step % config.log_every_steps == 0:
                    values = self._means.take()
                    speed = (state.samples - log_at_samples) / (now - last_log)
                    wait = (batches.waited_s - waited) / (now - last_log)
                    self._log(log, values, rate, speed, wait)
                    last_log, log_at_samples, waited = now, state.samples, batches.waited_s
                if done or (config.eval_every_steps and state.step % config.eval_every_steps == 0):
                    self._evaluate_and_log(log)
                    last_log += time.monotonic() - now
                if self._save_is_due(time.monotonic() - last_save):
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
        source, means = self._held_out, Means(self.device)
        batch_samples = source.batch_size * source.sequence_length
        count = max(1, math.ceil(min(self.config.eval_samples, source.num_samples) / batch_samples))
        memory: Mapping[str, Tensor] = {}
        self.policy.eval()
        with torch.no_grad(), Prefetcher(source, depth=self.config.prefetch) as batches:
            for _ in range(count):
                loss, hits, labels, memory = self._loss(batches.next().to(self.device), memory)
                memory = memory if source.carries_state else {}
                means.add(loss, hits, labels)
            values = means.take()
        self.policy.train()
        return None if values is None else Evaluation(values.loss, values.accuracy, values.labels)

    def save_state(self) -> None:
        """Write everything that :meth:`resume` needs to `config.out`, atomically."""
        write_state(self.out, self._state, capture(self.policy, self._optimizer, self._memory, self.device))

    def _train_step(self, batch: Batch) -> float:
        """Learn from one batch; return the learning rate."""
        rate = learning_rate(self.config, self._state.step, self._fraction())
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, hits, labels, memory = self._loss(batch.to(self.device), self._memory)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip = self.config.clip_norm or math.inf
        self._norm = nn.utils.clip_grad_norm_(self.policy.parameters(), clip)
        if self.device.type == "cpu":
            self._raise_unless_finite(loss.item(), self._state.step + 1)
        self._optimizer.step()
        if self._source.carries_state:
            self._memory = {name: tensor.detach() for name, tensor in memory.items()}
        self._means.add(loss, hits, labels)
        self._state.step += 1
        self._state.samples += batch.samples
        return rate

    def _loss(self, batch: Batch, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Mapping[str, Tensor]]:
        """Return mean cross-entropy (summed over heads), hits, labels, and the memory afterwards."""
        with autocast(self.device, self.precision):
            output = self._forward(batch.inputs, batch.executed_BTH, batch.first_BT, memory or None)
        total = torch.zeros((), device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        known = torch.zeros((), dtype=torch.int64, device=self.device)
        for head, logits_BTA in enumerate(output.logits):
            logits_MA = logits_BTA.flatten(0, 1).float()
            labels_M = batch.labels_BTH[..., head].flatten()
            head_hits, head_known = score_labels(logits_MA, labels_M)
            summed = F.cross_entropy(logits_MA, labels_M, ignore_index=IGNORED_LABEL, reduction="sum")
            # A batch without a label gives no gradient, not 0 / 0.
            total = total + summed / head_known.clamp(min=1)
            hits, known = hits + head_hits, known + head_known
        return total, hits, known, output.state

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
        state.elapsed_s = time.monotonic() - self._began
        if evaluation is None:
            return
        self.last_evaluation = evaluation
        if not state.best or evaluation.loss < state.best["loss"]:
            state.best = {"step": state.step, "loss": evaluation.loss, "accuracy": evaluation.accuracy}
        log.write(
            kind="eval", step=state.step, samples=state.samples, flops=self.flops, elapsed_s=round(state.elapsed_s, 3),
            held_out_loss=evaluation.loss, held_out_accuracy=evaluation.accuracy, labels=evaluation.labels,
        )  # fmt: skip
