"""The `wm-token` family: a world that predicts the tokens of its next frame, the reward, and whether it is over.

A frame is the action before it (H tokens), then its K image tokens; those are drawn one after another, or, with
`parallel_tokens` G, in K / G groups: the tokens of a group are drawn at once and do not see each other, so a group's
tokens lie as far apart in the frame as they can. What the core makes of the last token tells the reward that came with
the frame, and whether the game ended there. The tokenizer is frozen and part of the checkpoint, and so are the frames
by which episodes begin.

Shape legend: B rows, T frames (steps), H numbers of an action, K image tokens, V codes, G tokens drawn at once,
P tokens of a frame, D width, R values of the reward, S starts, C frames of a start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from playserve.specs import GapRule, PolicyKind, PolicySpec, TensorSpec
from playserve_trainer.models.gpt.core import initialise
from playserve_trainer.models.gpt.game import Frozen, GameActions, GamePolicy
from playserve_trainer.models.gpt.policy import ActionEmbedding, known_actions
from playserve_trainer.models.gpt.ring import Slots, looks
from playserve_trainer.models.gpt.world_config import WorldConfig
from playserve_trainer.models.policy import UNKNOWN_ACTION, LabelCounts, Memory, Sampler, StateTensor, StepOutput

__all__ = ["TOKENS", "WorldPolicy"]

#: Name of the input that worlds, and agents on tokens, are trained on.
TOKENS = "tokens"


class WorldPolicy(GamePolicy):
    """Embeddings, core and heads; see the module's docstring."""

    def __init__(self, config: WorldConfig) -> None:
        tokenizer = Frozen(config.tokenizer)
        actions = GameActions(config.action)
        count, drawn = tokenizer.net.num_tokens, config.parallel_tokens
        super().__init__(config.shape(len(actions.heads), count), actions)
        self.config, self.tokenizer = config, tokenizer
        self._count, self._told = count, len(self.actions.heads)
        self._lead = self._told + (drawn if drawn > 1 else 0)  # tokens before the image's
        width, vocabulary = config.width, tokenizer.net.vocabulary
        self.embed_action = ActionEmbedding(self.actions.heads, width)
        self.embed_token = nn.Embedding(vocabulary, width)
        self.embed_place = nn.Embedding(self.core.shape.tokens, width)
        self.token_head = nn.Linear(width, vocabulary)
        self.reward_head = nn.Linear(width, len(config.reward_values))
        self.end_head = nn.Linear(width, 2)
        for module in (self.embed_token, self.embed_place, self.token_head, self.reward_head, self.end_head):
            initialise(module)
        # Place of the token that is drawn as number 0, 1, ... and the number by which each place is drawn.
        self.order_K: Tensor
        self.number_K: Tensor
        self.values_R: Tensor
        order_K = torch.arange(count).view(drawn, -1).T.flatten()
        self.register_buffer("order_K", order_K, persistent=False)
        self.register_buffer("number_K", order_K.argsort(), persistent=False)
        self.register_buffer("values_R", torch.tensor(config.reward_values), persistent=False)
        self.start_tokens_SCK: Tensor
        self.start_actions_SCH: Tensor
        starts = (config.starts, config.start_frames)
        self.register_buffer("start_tokens_SCK", torch.zeros(*starts, count, dtype=torch.int64))
        self.register_buffer("start_actions_SCH", torch.full((*starts, self._told), UNKNOWN_ACTION, dtype=torch.int64))

    def spec(self) -> PolicySpec:
        """Return the spec: no inputs but the action; frame, reward, end and uncertainty out."""
        config, frame = self.config, self.tokenizer.net.spec().inputs[0]
        return PolicySpec(
            name="",
            family="wm-token",
            kind=PolicyKind.WORLD,
            inputs=(),
            outputs=(
                TensorSpec(name="frame", dtype="uint8", shape=frame.shape, image_format=frame.image_format,
                           resize_id=frame.resize_id),
                TensorSpec(name="reward", dtype="float32", shape=()),
                TensorSpec(name="terminated", dtype="bool", shape=()),
                TensorSpec(name="uncertainty", dtype="float32", shape=()),
            ),
            action=self.actions.spec,
            rate_hz=config.rate_hz,
            context_frames=self.core.shape.layers * (config.context - 1) + 1,
            gap_rule=GapRule(),
            uses_executed_actions=True,
            environment={**config.environment, "tokens": str(self._count)},
        )  # fmt: skip

    def heads(self) -> tuple[int, ...]:
        """Return the choices of K tokens, the reward and the end; a start is drawn beside them, as head K + 2."""
        return (self.tokenizer.net.vocabulary,) * self._count + (len(self.config.reward_values), 2)

    def executed_size(self) -> int:
        """Return H."""
        return self._told

    def training_inputs(self) -> Mapping[str, StateTensor]:
        """Return the tokens of a frame."""
        return {TOKENS: StateTensor((self._count,), torch.int64)}

    def tokens(self, inputs: Mapping[str, Tensor], executed_BTH: Tensor, first_BT: Tensor) -> Tensor:
        """See :class:`GptPolicy`; `tokens` is int64 [B, T, K]."""
        tokens_BTK = inputs[TOKENS]
        if self.config.parallel_tokens > 1:
            tokens_BTK = tokens_BTK.index_select(2, self.order_K)
        lead_BTLD = self._lead_of(known_actions(executed_BTH, first_BT))
        x_BTPD: Tensor = torch.cat([lead_BTLD, self.embed_token(tokens_BTK)], dim=2) + self.embed_place.weight
        return x_BTPD

    def read(self, y_BTPD: Tensor) -> tuple[Tensor, ...]:
        """Return the logits [B, T, K, V] of the tokens, [B, T, R] of the reward and [B, T, 2] of the end."""
        before = self._lead - self.config.parallel_tokens
        logits_BTKV = self.token_head(y_BTPD[:, :, before : before + self._count])
        if self.config.parallel_tokens > 1:
            logits_BTKV = logits_BTKV.index_select(2, self.number_K)
        last_BTD = y_BTPD[:, :, -1]
        return logits_BTKV, self.reward_head(last_BTD), self.end_head(last_BTD)

    def loss(self, logits: Sequence[Tensor], labels_BTH: Tensor, counts: LabelCounts) -> Tensor:
        """See :class:`Policy`: the nats of a frame, its reward and end included, over its K tokens."""
        return super().loss(logits, labels_BTH, counts) / self._count

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """See :class:`Policy`: the frame after an action; an episode begins with the last frame of a start.

        Draws heads 0 to K + 1 and, where an episode begins, K + 2, one of the starts, before them.
        """
        slots, begins_B = self.core.open(memory), memory.reset_B
        forced_BK, executed_BH = self._begin(slots, begins_B, executed_BH, sample)
        drawn_BX, uncertainty_B = self.draw_frame(executed_BH, slots, sample, begins_B, forced_BK)
        slots.close()
        outputs = {
            "frame": self.tokenizer.decode(drawn_BX[:, : self._count]),
            "reward": self.values_R[drawn_BX[:, -2]].masked_fill(begins_B, 0.0),
            "terminated": (drawn_BX[:, -1] == 1) & ~begins_B,
            "uncertainty": uncertainty_B.masked_fill(begins_B, 0.0),
        }
        return StepOutput(drawn_BX, outputs=outputs)

    def draw_frame(
        self,
        executed_BH: Tensor,
        slots: Slots,
        sample: Sampler,
        begins_B: Tensor | None = None,
        forced_BK: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw a frame into the slots, group by group; return what was drawn and how uncertain that was.

        Args:
            executed_BH: int64, the action before the frame.
            slots: At the frame.
            sample: Draws.
            begins_B: bool, rows whose tokens are `forced_BK`.
            forced_BK: int64; None: no row's are.

        Returns:
            int64 [B, K + 2] tokens, index of the reward, end; float32 [B] mean entropy of the tokens, nats.
        """
        drawn = self.config.parallel_tokens
        place_PD = self.embed_place.weight
        x_BQD = self._lead_of(executed_BH) + place_PD[: self._lead]
        tokens: list[Tensor] = []
        logits: list[Tensor] = []
        begin = 0
        for group in range(self._count // drawn):
            y_BGD = self.core.advance(x_BQD, begin, slots)[:, -drawn:]
            begin += x_BQD.shape[1]
            logits_BGV = self.token_head(y_BGD).float()
            logits.append(logits_BGV)
            for number in range(group * drawn, (group + 1) * drawn):
                place = self._place(number)
                token_B = sample(logits_BGV[:, number - group * drawn], place)
                if begins_B is not None and forced_BK is not None:
                    token_B = torch.where(begins_B, forced_BK[:, place], token_B)
                tokens.append(token_B)
            x_BQD = self.embed_token(torch.stack(tokens[-drawn:], dim=1)) + place_PD[begin : begin + drawn]
        last_BD = self.core.advance(x_BQD, begin, slots)[:, -1]
        reward_B = sample(self.reward_head(last_BD).float(), self._count)
        end_B = sample(self.end_head(last_BD).float(), self._count + 1)
        in_order = [tokens[self._number(place)] for place in range(self._count)]
        spread_BKV = torch.cat(logits, dim=1).log_softmax(-1)
        entropy_B = -(spread_BKV.exp() * spread_BKV).sum((1, 2))
        return torch.stack([*in_order, reward_B, end_B], dim=1), entropy_B / self._count

    def _lead_of(self, executed_XH: Tensor) -> Tensor:
        """Return the vectors [..., D] of what comes before the image's tokens, without their places."""
        lead_XHD: Tensor = self.embed_action(executed_XH)
        if self._lead == self._told:
            return lead_XHD
        blank = lead_XHD.new_zeros(*lead_XHD.shape[:-2], self._lead - self._told, lead_XHD.shape[-1])
        return torch.cat([lead_XHD, blank], dim=-2)

    def _place(self, number: int) -> int:
        """Return the place in the frame of the token that is drawn as that number."""
        groups = self._count // self.config.parallel_tokens
        return number % self.config.parallel_tokens * groups + number // self.config.parallel_tokens

    def _number(self, place: int) -> int:
        groups = self._count // self.config.parallel_tokens
        return place % groups * self.config.parallel_tokens + place // groups

    def _begin(
        self, slots: Slots, begins_B: Tensor, executed_BH: Tensor, sample: Sampler
    ) -> tuple[Tensor | None, Tensor]:
        """Put the frames of a start, but the last, into the slots of rows that begin.

        Returns:
            The tokens of the last one, None where code may look and no row begins; the actions before this frame.
        """
        if looks(begins_B) and not bool(begins_B.any()):
            return None, executed_BH
        start_B = sample(self.values_R.new_zeros(len(begins_B), self.config.starts), self._count + 2)
        tokens_BCK, actions_BCH = self.start_tokens_SCK[start_B], self.start_actions_SCH[start_B]
        frames = self.config.start_frames
        if frames > 1:
            before, held_B = slots.copy(), slots.held_B
            x_BCPD = self.tokens({TOKENS: tokens_BCK}, actions_BCH, torch.zeros_like(actions_BCH[..., 0]).bool())
            for frame in range(frames - 1):
                slots.at(back=frames - 1 - frame, held_B=torch.full_like(held_B, frame))
                self.core.advance(x_BCPD[:, frame], 0, slots)
            slots.put_back(before, ~begins_B)
            slots.at(back=0, held_B=torch.where(begins_B, frames - 1, held_B))
        return tokens_BCK[:, -1], torch.where(begins_B.unsqueeze(1), actions_BCH[:, -1], executed_BH)
