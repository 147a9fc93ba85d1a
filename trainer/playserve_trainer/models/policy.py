"""The one interface of every policy: `forward` over sequences for training, `step` over slots for serving.

Shape legend: B rows of a batch, T steps of a sequence, H heads of an action, A choices of a head, S slots of a pool.

A policy's memory lives outside it, in preallocated tensors with one row a slot (:class:`Memory`), so that the service
can batch any sessions, export a slot and import it elsewhere. Slot 0 is scratch: padding rows point at it.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve.actions import Action
from playserve.errors import BadActionError
from playserve.specs import DiscreteActionSpec, PolicySpec

__all__ = [
    "IGNORED_LABEL",
    "INSTRUCTION",
    "TARGETS",
    "TICKS",
    "UNKNOWN_ACTION",
    "ForwardOutput",
    "LabelCounts",
    "Memory",
    "Policy",
    "Ring",
    "Sampler",
    "StateTensor",
    "StepOutput",
    "by_choices",
    "layout_digest",
]

#: Stands in `executed` where nothing was executed, or nobody knows what was; also at the first step of an episode.
UNKNOWN_ACTION = -1

#: Stands in labels where the expert's action is unknown or must not be learnt (padding, keys of a recorder).
IGNORED_LABEL = -1

#: Context input (:meth:`Policy.context_inputs`): int64, game ticks between the step before in the memory and this one,
#: at least 1; 1 at the first step of an episode. More than 1 where frames were missed or left out.
TICKS = "@ticks"

#: Context input: the embedding of the instruction in force, as :meth:`Policy.embed_instruction` made it.
INSTRUCTION = "@instruction"

#: Training input: int64 [B, T, H], the actions of the steps themselves, for policies whose later heads see the earlier
#: ones (`forward` only; never in `context_inputs`). IGNORED labels (-1) mean an idle action.
TARGETS = "@targets"

#: Draws actions: (logits_BA float32, head 0..H-1) -> int64 [B]. The caller owns seeds, temperatures and log-probs.
Sampler = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Ring:
    """Where the steps of an episode write a memory tensor that keeps the last of them: in places along one axis.

    Step t, counted from 0, writes the first `head` indices, and of the places behind them the one of t and the one of
    t - 1, modulo `places`; nothing else, but the first step of an episode may write everything. So whoever copies a
    slot while it plays knows what has changed since.

    Attributes:
        axis: Of a slot's row.
        places: Number of places.
        size: Indices of a place.
        head: Indices before the first place.
    """

    axis: int
    places: int
    size: int = 1
    head: int = 0

    def written(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges (first, last + 1) of indices that steps `begin` to `end` - 1 write; `begin` is not 0."""
        if end <= begin:
            return []
        if end - begin >= self.places:
            return [(0, self.head + self.places * self.size)]
        first, last = (begin - 1) % self.places, (end - 1) % self.places
        spans = [(first, last + 1)] if first <= last else [(0, last + 1), (first, self.places)]
        ranges = [(self.head + a * self.size, self.head + b * self.size) for a, b in spans]
        return [(0, self.head), *ranges] if self.head else ranges


@dataclass(frozen=True, slots=True)
class StateTensor:
    """Shape and dtype of one slot's row of a memory tensor; a fresh memory is all zeros.

    Attributes:
        shape: Of the row.
        dtype: Of the row.
        ring: What a step writes of it; None: anything.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    ring: Ring | None = None


def layout_digest(family: str, layout: Mapping[str, StateTensor]) -> str:
    """Return the digest of a memory layout: equal digests can take over each other's memory."""
    described = {name: [list(t.shape), str(t.dtype)] for name, t in sorted(layout.items())}
    return hashlib.sha256(json.dumps([family, described]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Memory:
    """The slots of one batch.

    Attributes:
        pools: One tensor [S, *shape] for each entry of the policy's state layout.
        slots_B: int64 [B], slot of each row; a slot appears once, except slot 0 (padding).
        reset_B: bool [B], rows whose memory is empty: their slot's old content must not matter.
    """

    pools: Mapping[str, Tensor]
    slots_B: Tensor
    reset_B: Tensor

    def read(self, name: str) -> Tensor:
        """Return a copy of the rows [B, *shape] of a pool, zeros where the row is reset.

        Large memories are not for this: a policy writes what is new into ``pools[name]`` at `slots_B`, and lets a reset
        row's old content be masked by its own count of steps. Nobody clears a slot between two owners.
        """
        rows = self.pools[name].index_select(0, self.slots_B)
        mask = self.reset_B.view(-1, *([1] * (rows.dim() - 1)))
        return rows.masked_fill_(mask, 0)

    def write(self, name: str, rows: Tensor) -> None:
        """Store the rows [B, *shape] of a pool."""
        self.pools[name].index_copy_(0, self.slots_B, rows.to(self.pools[name].dtype))


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step of B rows gives.

    Attributes:
        actions_BH: int64 [B, H], as the sampler drew them.
        value_B: float32 [B] value estimates, or None.
        outputs: Output tensors [B, ...] by name, as the spec's `outputs` declare.
    """

    actions_BH: Tensor
    value_B: Tensor | None = None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """What a forward pass over B sequences of T steps gives.

    Attributes:
        logits: One tensor [B, T, A] a head; or, for G heads in a row that have the same choices, one [B, T, G, A].
        state: Memory rows [B, *shape] after the last step, by name; empty for memoryless policies.
    """

    logits: tuple[Tensor, ...]
    state: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What a loss is divided by: the whole batch of an optimizer step, of which one call may see a part only.

    Attributes:
        labels_H: int64 [H], labels that are not IGNORED_LABEL, on the device of the loss.
        positions: B * T, steps of the whole batch, padding and ignored labels included.
    """

    labels_H: Tensor
    positions: int

    @classmethod
    def of(cls, labels_BTH: Tensor) -> LabelCounts:
        """Return the counts of labels int64 [B, T, H]."""
        return cls((labels_BTH != IGNORED_LABEL).sum((0, 1)), labels_BTH.shape[0] * labels_BTH.shape[1])


def by_choices(logits: Sequence[Tensor], labels_BTH: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yield logits [M * G, A] in float32, labels int64 [M * G] and the heads, for each tensor of a forward's logits.

    Args:
        logits: As :class:`ForwardOutput` has them.
        labels_BTH: One label a head; M is B * T.

    Raises:
        ValueError: There are more heads than labels, or fewer.
    """
    first = 0
    for tensor in logits:
        count = tensor.shape[2] if tensor.dim() == 4 else 1
        heads = slice(first, first + count)
        yield tensor.flatten(0, -2).float(), labels_BTH[..., heads].flatten(), heads
        first += count
    if first != labels_BTH.shape[-1]:
        raise ValueError(f"{first} heads of logits for {labels_BTH.shape[-1]} labels a step")


class Policy(nn.Module, ABC):
    """A policy of any family. `step`, repeated, equals `forward`, by test."""

    @abstractmethod
    def spec(self) -> PolicySpec:
        """Return the spec; name and version are filled in when it is published."""

    @abstractmethod
    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return the memory tensors of one slot; empty for memoryless policies."""

    def context_inputs(self) -> Mapping[str, StateTensor]:
        """Return what the policy wants to know beside its observation: rows of :data:`TICKS`, :data:`INSTRUCTION`.

        They come among `inputs`, under those names, [B, *shape] in `step` and [B, T, *shape] in `forward`; no client
        sends them as tensors. :data:`TICKS` is declared as int64 of shape (). A policy that declares
        :data:`INSTRUCTION` says `takes_instruction` in its spec and has :meth:`embed_instruction`.
        """
        return {}

    def embed_instruction(self, text: str) -> Tensor:
        """Return the embedding of an instruction, shaped as :meth:`context_inputs` declares; "" is the absence of one.

        The service calls it once for each new text, in a thread of its own while `step` runs in another: it must
        change nothing in the policy.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no instruction")

    def heads(self) -> tuple[int, ...]:
        """Return the number of choices of each of the H heads, in the order in which `step` draws them."""
        action = self.spec().action
        if isinstance(action, DiscreteActionSpec):
            return (action.n,)
        raise NotImplementedError(f"{type(self).__name__} has desktop actions and does not say its heads")

    def executed_size(self) -> int:
        """Return how many numbers `executed` is: one a head, but of a world, whose heads are no action's, otherwise."""
        return len(self.heads())

    def encode_action(self, action: Action) -> tuple[int, ...]:
        """Return H numbers, what `executed` is told of an action that fits the spec.

        A pure function: the service calls it in threads of its own. What the heads cannot express is left out.

        Raises:
            BadActionError: The action is of another kind.
        """
        if isinstance(action, bool) or not isinstance(action, int | np.integer):
            raise BadActionError(f"action {action!r}, wanted an index")
        return (int(action),)

    def decode_action(self, values: Sequence[int], uniforms: Sequence[float], decode: str = "") -> Action:
        """Return the action that H drawn numbers mean. A pure function of its arguments.

        Args:
            values: One number a head, as `step` drew them.
            uniforms: Two numbers in [0, 1), for decoding that draws within a bin; a pure function of the session's
                seed and counter, as the draws are.
            decode: How coarse mouse bins become pixels, by the policy's own names ("mean", "conservative",
                "truncated_normal"); "": the policy's default. Policies without mouse ignore it.
        """
        return int(values[0])

    @abstractmethod
    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """Compute logits for whole sequences.

        Args:
            inputs: Input tensors [B, T, *shape] in the dtypes of the spec, and those of :meth:`context_inputs`.
            executed_BTH: int64, the action executed before each step, UNKNOWN_ACTION where there is none.
            first_BT: bool, steps that begin an episode: the memory is empty before them.
            state: Memory rows before the first step; None: empty.
        """

    @abstractmethod
    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Advance the memory of B slots by one step, and draw actions.

        Args:
            inputs: Input tensors [B, *shape], and those of :meth:`context_inputs`.
            executed_BH: int64, the action executed before this step, UNKNOWN_ACTION where there is none.
            memory: The slots of the rows; advanced in place.
            sample: Draws the actions, called once a head in order.
        """

    def loss(self, logits: Sequence[Tensor], labels_BTH: Tensor, counts: LabelCounts) -> Tensor:
        """Return what training makes small, a scalar: here the mean cross-entropy of each head, summed over the heads.

        The losses of the parts of a batch add up to the loss of the batch, because `counts` is the whole batch's: rows
        may lie on other processes, or come in another pass.

        Args:
            logits: As :meth:`forward` gave them.
            labels_BTH: int64, the expert's actions, IGNORED_LABEL where there is none to learn.
            counts: Of the whole batch of this step.
        """
        total = torch.zeros((), device=labels_BTH.device)
        for logits_MA, labels_M, heads in by_choices(logits, labels_BTH):
            if heads.stop - heads.start == 1:
                summed = F.cross_entropy(logits_MA, labels_M, ignore_index=IGNORED_LABEL, reduction="sum")
            else:
                nats_M = F.cross_entropy(logits_MA, labels_M, ignore_index=IGNORED_LABEL, reduction="none")
                summed = nats_M.view(-1, heads.stop - heads.start).sum(0)
            # A batch without a label gives no gradient, not 0 / 0.
            total = total + (summed / counts.labels_H[heads].clamp(min=1)).sum()
        return total

    def count_hits(self, logits: Sequence[Tensor], labels_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many labels are hit, here by the likeliest choice, and how many there are: int64, on the device.

        Args:
            logits: As :meth:`forward` gave them.
            labels_BTH: int64, IGNORED_LABEL where there is none.
        """
        hits = torch.zeros((), dtype=torch.int64, device=labels_BTH.device)
        with torch.no_grad():
            for logits_MA, labels_M, _ in by_choices(logits, labels_BTH):
                hits = hits + ((logits_MA.argmax(-1) == labels_M) & (labels_M != IGNORED_LABEL)).sum()
            return hits, (labels_BTH != IGNORED_LABEL).sum()

    def prepare_for_play(self, precision: str) -> bool:
        """Change the weights, on their device, into what computes steps fastest; return whether that was done.

        The policy can play afterwards, and neither learn nor be saved. Where it has no way of its own, the service
        computes "bfloat16" under autocast, which casts float32 weights at each step.

        Args:
            precision: "float32" or "bfloat16": 8 bits of precision or more.
        """
        return False

    def layout(self) -> str:
        """Return the digest of the memory layout."""
        return layout_digest(self.spec().family, self.state_layout())

    def training_inputs(self) -> Mapping[str, StateTensor]:
        """Return the inputs of a step that training batches hold: those of the spec, unless a policy says others.

        A policy on frozen tokens is trained on the tokens, and plays from frames. Open dimensions are -1, as there.
        """
        return {spec.name: StateTensor(spec.shape, getattr(torch, spec.dtype)) for spec in self.spec().inputs}

    def tokens_per_sample(self) -> int:
        """Return how many tokens a sample (a step) is, where D is counted in tokens, as 6ND does."""
        return 1

    def num_params(self) -> int:
        """Return N, the number of parameters; what is frozen for good, such as a tokenizer, is not among them."""
        return sum(p.numel() for p in self.parameters())

    def num_params_without_embeddings(self) -> int:
        """Return N less what embeds the inputs: the embedding tables, unless a policy says more."""
        return self.num_params() - sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Embedding))

    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device
