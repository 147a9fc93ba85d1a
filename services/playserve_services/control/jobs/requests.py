"""What a job may be asked to do. A command is built from checked fields, one argument each, and never by a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

from playserve.errors import BadSettingError, NotFoundError
from playserve.specs import check_policy_name

__all__ = ["EvaluationRequest", "GridRequest", "JobRequest", "command_of", "parse_request", "report_command"]

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@][A-Za-z0-9_@-]{0,63}$")]
HostPort = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$")
]
PolicyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]


class EvaluationRequest(BaseModel):
    """Play episodes through the endpoint, as ``playserve rollout``; its results are recorded when it is done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["evaluation"]
    family: Literal["atari", "nethack", "doom"]
    game: Word
    """Atari: the game; NetHack: the character; Doom: the scenario."""
    goal: Word | None = None
    """Doom only: what the instruction asks for."""
    policy: PolicyName
    version: PolicyName
    """A version or an alias."""
    server: HostPort | None = None
    """Where to play; none: at a replica that has the policy."""
    tls: bool = False
    """Dial with TLS."""
    episodes: int = Field(100, ge=1, le=100_000)
    """Of the sampled agent, at each stickiness."""
    argmax_episodes: int = Field(0, ge=0, le=100_000)
    """Of the agent without sampling."""
    baseline_episodes: int = Field(0, ge=0, le=100_000)
    """Of each baseline; 0: none play."""
    envs: int = Field(16, ge=1, le=1024)
    workers: int = Field(1, ge=1, le=256)
    """Processes that play, in each shard."""
    shards: int = Field(1, ge=1, le=1024)
    """Pods that share the episodes; above 1 only where jobs run in a cluster."""
    stickiness: list[Annotated[float, Field(ge=0, lt=1)]] = Field([], max_length=8)
    """Atari only; empty: the family's own."""
    max_steps: int | None = Field(None, ge=1, le=10_000_000)
    seed_start: int = Field(1_000_000, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _family(self) -> EvaluationRequest:
        if self.stickiness and self.family != "atari":
            raise ValueError(f"stickiness has no meaning in {self.family}")
        if self.goal is not None and self.family != "doom":
            raise ValueError(f"goal has no meaning in {self.family}")
        return self

    def command(self, out: str) -> list[str]:
        """Return the arguments of ``playserve``; results go to the folder `out`."""
        assert self.server is not None  # noqa: S101 - filled in when the job was taken
        game = {"atari": "--game", "nethack": "--character", "doom": "--scenario"}[self.family]
        options: dict[str, Any] = {
            game: self.game, "--goal": self.goal, "--server": self.server, "--policy": self.policy,
            "--version": self.version, "--episodes": self.episodes, "--argmax-episodes": self.argmax_episodes,
            "--baseline-episodes": self.baseline_episodes or None, "--envs": self.envs, "--workers": self.workers,
            "--max-steps": self.max_steps, "--seed-start": self.seed_start, "--out": out,
        }  # fmt: skip
        # NAME=VALUE is one argument: no value can be taken for an option.
        given = [f"{name}={value}" for name, value in options.items() if value is not None]
        flags = [flag for flag, on in (("--no-baselines", not self.baseline_episodes), ("--tls", self.tls)) if on]
        return ["rollout", self.family, *given, *(f"--stickiness={value}" for value in self.stickiness), *flags]


class GridRequest(BaseModel):
    """Train the runs of a planned grid that are not done, as ``playserve grid run``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["grid"]
    grid: PolicyName
    """Name of a folder in the control plane's folder of grids."""
    workers: int = Field(1, ge=1, le=256)
    """Runs at once: processes of this machine, or pods of a cluster."""
    minutes: float | None = Field(None, gt=0, le=1_000_000)
    """Save what there is after so long, and end. On this machine only: a cluster's deadline is a setting."""
    retry_failed: bool = False
    """Try failed runs again. In a cluster each pod does so anyway."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def folder(self, grids: Path | None) -> Path:
        """Return the grid's folder.

        Raises:
            BadSettingError: The name is none, or this control plane has no grids.
            NotFoundError: There is no plan of that name.
        """
        if grids is None:
            raise BadSettingError("this control plane was given no folder of grids (--grids)")
        folder = (grids / check_policy_name(self.grid)).absolute()
        if not (folder / "plan.json").is_file():
            raise NotFoundError(f"no planned grid {self.grid!r}: the folder of grids has no {self.grid}/plan.json")
        return folder

    def command(self, grids: Path | None) -> list[str]:
        """Return the arguments of ``playserve``."""
        minutes = [] if self.minutes is None else [f"--minutes={self.minutes:g}"]
        retry = ["--retry-failed"] if self.retry_failed else []
        return ["grid", "run", str(self.folder(grids)), f"--workers={self.workers}", f"--device={self.device}",
                *minutes, *retry]  # fmt: skip


JobRequest = Annotated[EvaluationRequest | GridRequest, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[EvaluationRequest | GridRequest] = TypeAdapter(JobRequest)


def parse_request(value: Any) -> EvaluationRequest | GridRequest:
    """Return the request that was stored as JSON."""
    return _ADAPTER.validate_python(value)


def command_of(request: EvaluationRequest | GridRequest, folder: Path, grids: Path | None) -> list[str]:
    """Return the arguments of ``playserve`` for a job.

    Args:
        request: What is asked.
        folder: Of the job.
        grids: Folder of grids, or none.
    """
    return request.command(str(folder / "run")) if isinstance(request, EvaluationRequest) else request.command(grids)


def report_command(request: GridRequest, grids: Path | None) -> list[str]:
    """Return the arguments that print a grid's status as JSON."""
    return ["grid", "status", str(request.folder(grids)), "--json", f"--workers={request.workers}"]
