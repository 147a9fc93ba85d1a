"""Settings of a training run as one frozen dataclass, checked when it is made and kept as JSON beside the run.

Imports nothing heavy: the command line needs it to know its flags.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin, get_type_hints

from playserve.errors import BadSettingError
from playserve_trainer.train.checks import check_at_least, check_choices, check_resumes, settings_json

__all__ = ["OPTIMIZERS", "PARALLEL", "PRECISIONS", "SCHEDULES", "TrainConfig"]

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
PARALLEL = ("auto", "none", "ddp", "fsdp")

# What a resumed run may set anew: where it runs, when it stops, how it reports. Everything else decides the weights.
_FREE_ON_RESUME = frozenset(
    {
        "data", "out", "device", "threads", "compile", "max_steps", "max_samples", "max_flops", "max_minutes",
        "eval_samples", "eval_every_steps", "log_every_steps", "save_every_s", "save_every_steps", "prefetch",
        "memory_limit_mib", "parallel",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of one run. The run stops at the first limit that it reaches; at least one must be given.

    Attributes:
        family: Model family, a recipe's name.
        task: What of the family's world is learnt, such as the game "breakout".
        data: Directory of the recorded episodes.
        out: Directory of the run: config.json, metrics.jsonl, state.safetensors, summary.json, checkpoint/.
        model: Settings of the family's model config that are chosen freely, such as {"width": 34}.
        options: Settings that only this family's recipe knows, such as how its data are augmented.
        init_from: Folder of a checkpoint whose weights the run begins with; "": fresh ones.
        freeze: Parameters that are not trained: prefixes of their names, separated by commas; "": none.
        seed: Of the initial weights and of the order of the data.
        batch_size: Sequences in the batch of one optimizer step (B), over all processes and passes.
        accumulate: Passes of a step: each takes its share of the batch's rows, and their gradients add up.
        sequence_length: Steps of a sequence (T); 1 for memoryless policies.
        optimizer: "adamw" or "adam".
        lr: Highest learning rate.
        weight_decay: Decoupled for adamw; of matrices and kernels only, not of biases and gains.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        clip_norm: Largest norm of the whole gradient; 0: no clipping.
        warmup_steps: Steps over which the learning rate rises linearly to `lr`.
        schedule: Afterwards: "cosine" towards the end of the run, or "constant". With max_minutes a cosine follows the
            clock, so that two runs differ; under the other limits a run is a function of its settings.
        final_lr_fraction: What a cosine ends at, as a share of `lr`.
        ema_decay: Share that a moving average of the weights keeps at each step; the average is then what is evaluated
            and published. 0: no average.
        max_steps: Stop after this many optimizer steps.
        max_samples: Stop after this many samples (D).
        max_flops: Stop after this many training FLOPs, counted layer by layer.
        max_minutes: Stop after this many minutes of training, time before a resume included.
        precision: "bf16" computes in bfloat16 under autocast, weights stay float32; "auto" does so where the hardware
            is made for it.
        device: torch device, or "auto": cuda if there is one.
        threads: CPU threads; 0: one for each core.
        compile: Whether the forward pass goes through torch.compile.
        parallel: How the policy is spread over the processes that torchrun started: "ddp" (a copy each) or "fsdp"
            (sharded, FSDP2); "auto": "ddp" if there are several.
        held_out: Share of the episodes that is held out, by a hash of their seeds.
        data_share: Share of the samples to learn from that is learnt from, in whole episodes; what a smaller share
            takes lies within what a larger one takes, and the held-out side stays.
        eval_samples: About how many held-out samples an evaluation takes.
        eval_every_steps: Steps between evaluations; 0: only at the end.
        log_every_steps: Steps behind one line of metrics.jsonl.
        save_every_s: Seconds between saves of the whole state; 0: not by time.
        save_every_steps: Steps between saves of the whole state; 0: not by steps.
        prefetch: Batches made ahead.
        memory_limit_mib: Decoded frames beyond this go to a scratch file instead of memory; where they are streamed,
            batches that would hold more are refused.
    """

    family: str
    task: str
    data: str
    out: str
    model: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    init_from: str = ""
    freeze: str = ""
    seed: int = 0
    batch_size: int = 128
    accumulate: int = 1
    sequence_length: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    warmup_steps: int = 50
    schedule: str = "cosine"
    final_lr_fraction: float = 0.0
    ema_decay: float = 0.0
    max_steps: int | None = None
    max_samples: int | None = None
    max_flops: int | None = None
    max_minutes: float | None = None
    precision: str = "auto"
    device: str = "auto"
    threads: int = 0
    compile: bool = False
    parallel: str = "auto"
    held_out: float = 0.1
    data_share: float = 1.0
    eval_samples: int = 2048
    eval_every_steps: int = 250
    log_every_steps: int = 10
    save_every_s: float = 30.0
    save_every_steps: int = 0
    prefetch: int = 3
    memory_limit_mib: int = 4096

    def __post_init__(self) -> None:
        hints = get_type_hints(TrainConfig)
        for name in hints:
            _check_type(name, getattr(self, name), hints[name])
        named = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "parallel": PARALLEL}
        check_choices(self, named)
        self._check_ranges()
        if all(limit is None for limit in (self.max_steps, self.max_samples, self.max_flops, self.max_minutes)):
            raise BadSettingError("give the run a limit: max_steps, max_samples, max_flops or max_minutes")

    def _check_ranges(self) -> None:
        at_least: dict[str, float] = {
            "batch_size": 1, "sequence_length": 1, "log_every_steps": 1, "prefetch": 1, "memory_limit_mib": 1,
            "seed": 0, "weight_decay": 0, "clip_norm": 0, "warmup_steps": 0, "threads": 0, "eval_samples": 1,
            "eval_every_steps": 0, "save_every_s": 0, "save_every_steps": 0, "accumulate": 1,
        }  # fmt: skip
        check_at_least(self, at_least)
        for name in ("lr", "max_steps", "max_samples", "max_flops", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise BadSettingError(f"{name} is above 0, not {value}")
        for name in ("beta1", "beta2", "held_out", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise BadSettingError(f"{name} is at least 0 and below 1, not {getattr(self, name)}")
        if not 0 < self.data_share <= 1:
            raise BadSettingError(f"data_share is above 0 and at most 1, not {self.data_share}")
        if not 0 <= self.final_lr_fraction <= 1:
            raise BadSettingError(f"final_lr_fraction is between 0 and 1, not {self.final_lr_fraction}")
        if self.final_lr_fraction and self.schedule == "constant":
            raise BadSettingError("final_lr_fraction has no effect under the constant schedule: leave one of them out")
        if self.batch_size % self.accumulate:
            raise BadSettingError(f"batch_size ({self.batch_size}) is a multiple of accumulate, not {self.accumulate}")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with every setting."""
        return settings_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainConfig:
        """Return the config of a JSON object; settings left out take their defaults.

        Raises:
            BadSettingError: A setting is unknown, missing, ill-typed, out of range, or contradicts another.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(value) - set(fields))
        missing = [name for name in ("family", "task", "data", "out") if name not in value]
        if unknown or missing:
            raise BadSettingError(
                f"training settings: unknown {unknown}, missing {missing}; known are {', '.join(fields)}"
            )
        hints = get_type_hints(cls)
        # An integral float is an int in JSON and on the command line.
        return cls(**{name: _widened(hints[name], item) for name, item in value.items()})

    def check_resumes(self, before: TrainConfig) -> None:
        """Raise BadSettingError if a run begun with the settings `before` may not go on with these."""
        check_resumes(self, before, _FREE_ON_RESUME)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _widened(hint: Any, value: Any) -> Any:
    return float(value) if type(value) is int and float in _kinds(hint) else value


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Raise unless the value has the type of the field; bool is no int here, and int is a float."""
    for kind in _kinds(hint):
        base = get_origin(kind) or kind
        if type(value) is base or (base is float and type(value) is int):
            return
        if base is Mapping and isinstance(value, Mapping):
            return
    raise BadSettingError(f"{name} is {hint if not isinstance(hint, type) else hint.__name__}, not {value!r}")
