"""Settings of a run of reinforcement learning, checked when made, kept as JSON beside the run. Imports nothing heavy.

Defaults are those of IMPALA on Atari (Espeholt et al., 1802.01561) where nothing else is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from playserve.errors import BadSettingError
from playserve_trainer.train.checks import check_at_least, check_choices, check_resumes, settings_json

__all__ = ["OPTIMIZERS", "REWARDS", "RLConfig"]

OPTIMIZERS = ("adam", "rmsprop")
REWARDS = ("clip", "tanh", "raw")

# What a resumed run may set anew: where it runs, when it stops, how it reports.
_FREE_ON_RESUME = frozenset(
    {
        "out", "device", "threads", "actor_processes", "queue", "publish_every_s", "keep_versions", "save_every_s",
        "log_every_updates", "max_steps", "max_flops", "max_minutes", "silence_s",
    }
)  # fmt: skip

_AT_LEAST: Mapping[str, float] = {
    "seed": 0, "num_envs": 1, "actor_processes": 1, "unroll": 1, "batch": 1, "replay": 0, "replay_size": 0, "queue": 1,
    "entropy_cost": 0, "value_cost": 0, "clip_norm": 0, "critic_hidden": 1, "log_every_updates": 1, "keep_versions": 2,
    "save_every_s": 0, "threads": 0, "max_steps": 0, "max_flops": 0, "max_minutes": 0, "warmup_updates": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RLConfig:
    """Settings of one run. It stops at the first limit that it reaches; at least one must be given.

    Attributes:
        family: Model family of the registry.
        game: Game of the family ("breakout"; NetHack: the character), or of `env`.
        out: Folder of the run.
        env: Environments' family, or module:factory; "": the model's family.
        model: Settings of the family's model config that are chosen freely, such as {"width": 16}.
        env_options: Further arguments of the environments' factory, such as {"stickiness": 0.25}.
        seed: Of weights, environments, replay and sampling. What is learnt depends on the clock too: who acts when.
        num_envs: Environments, one session each.
        actor_processes: Processes that they are spread over.
        unroll: Steps of an unroll (T).
        batch: New unrolls of an update; at most num_envs.
        replay: Unrolls of an update that were learnt from before, drawn from the newest `replay_size`.
        replay_size: Unrolls kept for that.
        queue: Unrolls that may wait for the learner.
        discount: Gamma.
        reward: What becomes of rewards: "clip" to -1..1, "tanh" of reward / reward_scale, "raw" / reward_scale.
        reward_scale: See `reward`; no matter to "clip".
        life_ends: Whether the loss of a life ends what an action is worth, in games with lives; the game goes on.
        rho_clip: See `vtrace`.
        c_clip: See `vtrace`.
        entropy_cost: Nats of entropy that a unit of advantage is worth.
        value_cost: Weight of half the squared error of the values.
        critic_hidden: Units of the critic's one hidden layer.
        optimizer: "adam" or "rmsprop" (epsilon 0.01, IMPALA's).
        lr: Highest learning rate; the losses are means over steps, not sums.
        lr_final_fraction: What lr falls to, linearly, by the end of the run; under max_minutes it follows the clock.
        warmup_updates: Updates over which lr rises from 0.
        clip_norm: Largest norm of the gradient; 0: no clipping.
        publish_every_s: Seconds between two versions for the actors.
        keep_versions: Published versions that stay in the store; older ones of this run are removed.
        save_every_s: Seconds between saves of the whole state.
        log_every_updates: Updates behind one line of curve.jsonl.
        silence_s: Seconds without an unroll after which the run gives up.
        max_steps: Stop after this many steps of the environments; 0: no limit.
        max_flops: Stop after this many training FLOPs, replayed steps included; 0: no limit.
        max_minutes: Stop after this many minutes, time before a resume included; 0: no limit.
        device: torch device of the learner, or "auto": cuda if there is one.
        threads: CPU threads of the learner; 0: one for each core.
    """

    family: str
    game: str
    out: str
    env: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    env_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    num_envs: int = 16
    actor_processes: int = 1
    unroll: int = 20
    batch: int = 8
    replay: int = 8
    replay_size: int = 400
    queue: int = 16
    discount: float = 0.99
    reward: str = "clip"
    reward_scale: float = 1.0
    life_ends: bool = True
    rho_clip: float = 1.0
    c_clip: float = 1.0
    entropy_cost: float = 0.01
    value_cost: float = 0.5
    critic_hidden: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_final_fraction: float = 0.1
    warmup_updates: int = 20
    clip_norm: float = 1.0
    publish_every_s: float = 5.0
    keep_versions: int = 8
    save_every_s: float = 60.0
    log_every_updates: int = 50
    silence_s: float = 300.0
    max_steps: int = 0
    max_flops: float = 0.0
    max_minutes: float = 0.0
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, _AT_LEAST)
        for name in ("lr", "reward_scale", "rho_clip", "c_clip", "publish_every_s", "silence_s"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise BadSettingError(f"{name} is above 0, not {getattr(self, name)}")
        for name in ("discount", "lr_final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSettingError(f"{name} is between 0 and 1, not {getattr(self, name)}")
        check_choices(self, {"optimizer": OPTIMIZERS, "reward": REWARDS})
        if self.batch > self.num_envs:
            raise BadSettingError(f"batch ({self.batch}) is at most num_envs ({self.num_envs})")
        if self.replay > self.replay_size:
            raise BadSettingError(f"replay ({self.replay}) is at most replay_size ({self.replay_size})")
        if not (self.max_steps or self.max_flops or self.max_minutes):
            raise BadSettingError("give the run a limit: max_steps, max_flops or max_minutes")

    def fraction_done(self, *, steps: int, flops: int, elapsed_s: float) -> float:
        """Return how much of the run is done, by the limit that is nearest: 1 or more means stop."""
        pairs = ((steps, self.max_steps), (flops, self.max_flops), (elapsed_s / 60, self.max_minutes))
        return max(done / limit for done, limit in pairs if limit)

    def learning_rate(self, update: int, fraction: float) -> float:
        """Return the learning rate of the update after `update` others, when `fraction` of the run is done."""
        falling = 1.0 - (1.0 - self.lr_final_fraction) * min(1.0, fraction)
        return self.lr * falling * min(1.0, (update + 1) / max(1, self.warmup_updates))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with every setting."""
        return settings_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RLConfig:
        """Return the config of a JSON object; settings left out take their defaults.

        Raises:
            BadSettingError: A setting is unknown, missing, ill-typed, out of range, or contradicts another.
        """
        from playserve_trainer.models.registry import config_from_json

        return config_from_json(cls, value)

    def check_resumes(self, before: RLConfig) -> None:
        """Raise BadSettingError if a run begun with the settings `before` may not go on with these."""
        check_resumes(self, before, _FREE_ON_RESUME)
