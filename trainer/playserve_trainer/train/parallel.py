"""A run over several processes under torchrun: who they are, what they agree on, how the policy is spread over them.

Every process takes its rows of each batch. Losses are divided by what the whole batch holds, so that gradients are
summed, not averaged, and the result is that of one process on the whole batch, up to the order of sums.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from playserve.errors import BadSettingError
from playserve_trainer.models.policy import ForwardOutput, Policy

__all__ = ["GONE", "Forward", "Group", "full", "local_device", "processes", "shard_like", "split", "spread",
           "whole_policy"]  # fmt: skip

Forward = Callable[..., ForwardOutput]

# Reading a large data set for the first time happens in one process while the others wait.
_TIMEOUT = datetime.timedelta(hours=6)
# Nobody needs so long to start; torch's own rendezvous would wait as long as for a collective.
_MEET_S = 600.0
_LOOK_S = 0.1

#: Key in the store of the rendezvous by which whoever started the processes says that one of them has ended.
GONE = "playserve/gone"


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run: one, unless :func:`processes` found more.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to people."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def most(self, *values: float) -> list[float]:
        """Return the highest of each value over all processes, so that all decide alike."""
        if self.size == 1:
            return list(values)
        highest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return [float(value) for value in highest]

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return each process's tensor of one shape, on the CPU."""
        value = value.detach().cpu().contiguous()
        if self.size == 1:
            return [value]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return parts

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Return the rows of a batch that are this process's."""
        return batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body in the main process before it runs in the others: what it leaves on disk is there for them."""
        waits = self.rank > 0
        if waits:
            dist.barrier()
        yield
        if self.size > 1 and not waits:
            dist.barrier()


@contextlib.contextmanager
def processes() -> Iterator[Group]:
    """Join the processes that torchrun started; without torchrun a group of one.

    A context manager: the group ends with it.

    Raises:
        RuntimeError: Some did not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Group()
        return
    _meet()
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _meet() -> None:
    """Have the first process wait until all are there, or one is known to have ended; with it the others would wait."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # then the store is the first process's own, and begins with torch's rendezvous
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(  # type: ignore[attr-defined]  # it is public, but not listed
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    here = f"playserve/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/here"
    store.set(f"{here}/{rank}", "")
    deadline = time.monotonic() + _MEET_S
    while rank == 0 and (missing := [i for i in range(size) if not store.check([f"{here}/{i}"])]):
        if store.check([GONE]) or time.monotonic() > deadline:
            raise RuntimeError(f"processes {missing} of {size} did not come")
        time.sleep(_LOOK_S)


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: "cuda" alone means the one of its local rank."""
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def spread(policy: Policy, forward: Forward, how: str, group: Group) -> tuple[Forward, Callable[[bool], None]]:
    """Spread a policy over the processes.

    Args:
        policy: On its device, before its optimizer is made; "fsdp" replaces its parameters by shards.
        forward: The policy, or what was compiled from it.
        how: "ddp", "fsdp" or "none"; "auto" is "ddp" where there are several processes.
        group: The processes.

    Returns:
        The forward pass to train with, and a function to be told before each pass whether it is the last one of the
        step, after which gradients are exchanged.
    """
    if how == "auto":
        how = "ddp" if group.size > 1 else "none"
    if how == "none" and group.size > 1:
        raise BadSettingError(f"parallel is 'none', but torchrun started {group.size} processes: choose ddp or fsdp")
    if how == "none" or (group.size == 1 and how == "ddp"):
        return forward, lambda last: None
    if how == "fsdp":
        return _shard(policy, forward, group)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise BadSettingError("nothing of the policy is left to train")
    # Parameters may go unused: a value head, the text of data without text.
    wrapped = nn.parallel.DistributedDataParallel(_Plain(forward), find_unused_parameters=True)

    def ddp_forward(*args: object) -> ForwardOutput:
        return ForwardOutput(*wrapped(*args))

    def before_pass(last: bool) -> None:
        wrapped.require_backward_grad_sync = last

    return ddp_forward, before_pass


class _Plain(nn.Module):
    """Gives tuples, whose tensors DistributedDataParallel finds."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self._inner = forward

    def forward(self, *args: object) -> tuple[tuple[Tensor, ...], Mapping[str, Tensor]]:
        output = self._inner(*args)
        return output.logits, output.state


def _shard(policy: Policy, forward: Forward, group: Group) -> tuple[Forward, Callable[[bool], None]]:
    """Shard with FSDP2: each item of a list of layers is gathered when it is needed, the rest with the policy."""
    if not dist.is_initialized():
        raise BadSettingError("parallel is 'fsdp', but this process is alone: start it under torchrun")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(policy.device().type, (group.size,))
    # Shards stay float32, and so does what is gathered: autocast alone decides what is computed in bfloat16, as it does
    # in one process.
    for layer in _layers(policy):
        fully_shard(layer, mesh=mesh)
    # Gathered weights must not outlive a forward pass: an evaluation of the moving average has no backward pass.
    sharded: FSDPModule = fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    return forward, sharded.set_requires_gradient_sync


def _layers(policy: nn.Module) -> list[nn.Module]:
    """Return the items of every list of modules, inner ones first."""
    lists = [module for module in policy.modules() if isinstance(module, nn.ModuleList)]
    return [layer for items in reversed(lists) for layer in items]


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor (all processes must call it), or the tensor itself."""
    whole: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return whole


def whole_policy(policy: Policy, twin: Policy | None) -> Policy:
    """Return the policy, or where its parameters are shards a whole one on the CPU; all processes must call it.

    Args:
        policy: As it was spread.
        twin: What it was before it was sharded, on the meta device; None: it was not.
    """
    if twin is None:
        return policy
    weights = {name: full(tensor.detach()).cpu() for name, tensor in policy.state_dict().items()}
    whole = copy.deepcopy(twin).to_empty(device="cpu")
    whole.load_state_dict(weights)
    return whole.eval()


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor as `like` is spread; each process has all of `value`."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    spread_as = cast(DTensor, like)
    return distribute_tensor(value.to(like.device), spread_as.device_mesh, spread_as.placements, src_data_rank=None)


def split(count: int, parts: int) -> Sequence[tuple[int, int]]:
    """Return `parts` spans of about equal length that cover 0 to `count`."""
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]
