"""The `p2p` family's policy: frame, instruction and past actions in, keyboard and mouse out, token by token.

Shape legend: B rows, T steps, H heads of an action (8 in Open P2P), K = 4 + H tokens of a step, D width, W text width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from playserve import specs
from playserve.actions import Action, DesktopAction
from playserve.errors import BadActionError, BadSettingError, NotImplementedHereError
from playserve.p2p.vocabulary import MouseDecode, Vocabulary
from playserve.specs import Codec, GapMode, GapRule, ImageFormat, PolicySpec, TensorSpec
from playserve_trainer.models.p2p.backbone import Backbone
from playserve_trainer.models.p2p.config import P2PConfig
from playserve_trainer.models.p2p.decoder import make_decoder
from playserve_trainer.models.p2p.drawing import draw_action
from playserve_trainer.models.p2p.loss import LossParts, p2p_loss
from playserve_trainer.models.p2p.packed import can_pack, computes_bfloat16, fold_batch_norms, pack_linears
from playserve_trainer.models.p2p.ring import make_rings
from playserve_trainer.models.p2p.text import LazyEncoder
from playserve_trainer.models.p2p.tokens import ActionEmbedding, ActionLogits, TokenAssembly, groups
from playserve_trainer.models.p2p.trunk import ImageTokenizer
from playserve_trainer.models.policy import (
    IGNORED_LABEL,
    INSTRUCTION,
    TARGETS,
    ForwardOutput,
    LabelCounts,
    Memory,
    Policy,
    Sampler,
    StateTensor,
    StepOutput,
)

__all__ = ["P2PPolicy"]


class P2PPolicy(Policy):
    """Trunk, backbone and action decoder; see the module's docstring."""

    def __init__(self, config: P2PConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary.from_json(config.vocabulary)
        self._heads = self.vocabulary.heads
        self._groups = groups(self.vocabulary)
        # Action tokens of a past step that the backbone sees.
        self._past_heads = len(self._heads) if config.past_actions else 0
        self._idle_tokens = self.vocabulary.idle()
        self._encoder = LazyEncoder(config.text_encoder, config.text_width)
        self.image = ImageTokenizer(config)
        self.tokens = TokenAssembly(config.width, config.text_width, self._past_heads)
        self.embedding = ActionEmbedding(self.vocabulary, config.width)
        self.backbone = Backbone(config, self._past_heads)
        self.decoder = make_decoder(config, len(self._heads))
        self.logits = ActionLogits(self.vocabulary, config.width)

    def spec(self) -> PolicySpec:
        """Return the spec: one RGB frame in, keyboard and mouse out."""
        config = self.config
        side = config.frame_size
        frame = TensorSpec(
            name="frame", dtype="uint8", shape=(side, side, 3), image_format=ImageFormat.RGB8, resize_id=config.resize,
            codecs=(Codec.JPEG, Codec.LZ4),
        )  # fmt: skip
        return PolicySpec(
            name="",
            family="p2p",
            inputs=(frame,),
            action=dataclasses.replace(
                self.vocabulary.action_spec(), mouse_decode=specs.MouseDecode[config.mouse_decode.upper()]
            ),
            rate_hz=config.rate_hz,
            context_frames=1 + sum(config.histories),
            gap_rule=GapRule(mode=GapMode.CATCH_UP, catch_up_frames=config.catch_up_frames),
            takes_instruction=config.text_encoder != "none",
            uses_executed_actions=True,
            environment={
                "size": config.size,
                "trunk": config.trunk,
                "mouse_decode": config.mouse_decode,
                **({"inverse": "true"} if config.inverse else {}),
            },
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return keys and values of each layer, and the count of steps; nothing of an inverse model."""
        return {} if self.config.inverse else self.backbone.layout()

    def context_inputs(self) -> Mapping[str, StateTensor]:
        """Return the instruction's embedding, all zero where there is none, if the policy takes one."""
        if self.config.text_encoder == "none":
            return {}
        return {INSTRUCTION: StateTensor((self.config.text_width,), torch.float32)}

    def embed_instruction(self, text: str) -> Tensor:
        """Return the text encoder's vector; zeros for "". The first call loads the encoder."""
        return self._encoder.embed(text)

    def heads(self) -> tuple[int, ...]:
        """Return the choices of keys, buttons, dx and dy."""
        return self._heads

    def encode_action(self, action: Action) -> tuple[int, ...]:
        """Return the tokens of a desktop action; what the vocabulary lacks is left out."""
        if not isinstance(action, DesktopAction):
            raise BadActionError(f"action {action!r}, wanted a DesktopAction")
        return self.vocabulary.encode(action)

    def decode_action(self, values: Sequence[int], uniforms: Sequence[float], decode: str = "") -> Action:
        """Return the desktop action of tokens; `decode` is a MouseDecode value."""
        try:
            mode = MouseDecode(decode or self.config.mouse_decode)
        except ValueError:
            known = ", ".join(mode.value for mode in MouseDecode)
            raise BadSettingError(f"mouse decode {decode!r} is none of {known}") from None
        return self.vocabulary.decode(values, mode, uniforms)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """See :class:`Policy`. The actions of the steps are TARGETS, or else the executed actions of the steps after.

        With them as history and as what the decoder has drawn so far, the logits are those of :meth:`step`. A missing
        action is an idle one.

        Raises:
            NotImplementedHereError: A state is given where gradients are wanted: they do not flow through rings; or
                to an inverse model, which has none.
        """
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if self.config.inverse and state:
            self._refuse_play()
        if learns and state is not None:
            raise NotImplementedHereError("p2p learns from whole clips: a state between batches takes no gradient")
        targets = inputs.get(TARGETS)
        actions_BTH = executed_BTH.roll(-1, 1) if targets is None else targets
        actions_BTH = self._known(actions_BTH)
        if targets is None:
            actions_BTH[:, -1] = self._idle(actions_BTH)
        whole = learns or actions_BTH.device.type == "meta" or first_BT.shape[1] > 1
        if self.config.inverse or (state is None and whole):
            keep = not self.training and not self.config.inverse
            return self._forward_whole(inputs, actions_BTH, first_BT, keep=keep)
        return self._forward_steps(inputs, executed_BTH, actions_BTH, first_BT, state)

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """See :class:`Policy`: one pass over the executed action and the new tokens, then the decoder.

        Raises:
            NotImplementedHereError: This is an inverse model.
        """
        if self.config.inverse:
            self._refuse_play()
        executed_BH = self._known(executed_BH)
        actions_BHD = self._past(executed_BH)
        new_B4D = self.tokens(self.image(inputs["frame"]), inputs.get(INSTRUCTION))
        rings = make_rings(memory, self.config.histories, self._past_heads)
        out_BD = self.backbone.step(torch.cat([actions_BHD, new_B4D], dim=1), rings)
        looks = out_BD.device.type == "cpu" and not torch.compiler.is_compiling()
        parts = (self.decoder, self.embedding, self.logits)
        return StepOutput(draw_action(out_BD, parts, sample, executed_BH if looks else None))

    def loss(self, logits: Sequence[Tensor], labels_BTH: Tensor, counts: LabelCounts) -> Tensor:
        """See :class:`Policy`: Open P2P's loss."""
        return self.loss_parts(logits, labels_BTH, counts).total

    def loss_parts(self, logits: Sequence[Tensor], labels_BTH: Tensor, counts: LabelCounts | None = None) -> LossParts:
        """Return what :meth:`loss` is made of; `counts` of these labels if none are given."""
        counts = counts or LabelCounts.of(labels_BTH)
        return p2p_loss(logits, labels_BTH, counts, self._groups, self.config.z_weight)

    def prepare_for_play(self, precision: str) -> bool:
        """See :class:`Policy`. The trunk's BatchNorms are folded into its convolutions.

        "bfloat16" is bfloat16 weights on GPUs and on CPUs that compute in it; on other x86 CPUs float16 matrices
        computed in float32 (see :mod:`playserve_trainer.models.p2p.packed`); elsewhere nothing.

        Raises:
            NotImplementedHereError: This is an inverse model.
        """
        if self.config.inverse:
            self._refuse_play()
        self.eval().requires_grad_(False)
        fold_batch_norms(self.image.trunk)
        if precision == "float32":
            return True
        device = self.device()
        if device.type != "cpu" or computes_bfloat16():
            self.to(torch.bfloat16)
        elif can_pack():
            pack_linears(self)
        else:
            return False
        return True

    def action_out(self, inputs: Mapping[str, Tensor], actions_BTH: Tensor, first_BT: Tensor, *, keep: bool = False
                   ) -> tuple[Tensor, Mapping[str, Tensor]]:  # fmt: skip
        """Return the backbone's answer [B, T, D] for whole sequences from an empty memory, and the state if `keep`."""
        frames = inputs["frame"]
        image_BTD = self.image(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        new_BT4D = self.tokens(image_BTD, inputs.get(INSTRUCTION))
        tokens_BTKD = torch.cat([new_BT4D, self._past(actions_BTH)], dim=2)
        out: tuple[Tensor, Mapping[str, Tensor]] = self.backbone(tokens_BTKD, first_BT, keep=keep)
        return out

    def _forward_whole(
        self, inputs: Mapping[str, Tensor], actions_BTH: Tensor, first_BT: Tensor, *, keep: bool
    ) -> ForwardOutput:
        out_BTD, state = self.action_out(inputs, actions_BTH, first_BT, keep=keep)
        embedded_MHD = self.embedding(actions_BTH).flatten(0, 1)
        y_BTHD = self.decoder(out_BTD.flatten(0, 1), embedded_MHD).unflatten(0, first_BT.shape)
        return ForwardOutput(tuple(self.logits(y_BTHD[:, :, h], h) for h in range(len(self._heads))), state)

    def _forward_steps(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        actions_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None,
    ) -> ForwardOutput:
        """Compute a sequence from a state as play computes it, step by step."""
        rows, num_steps = first_BT.shape
        device = first_BT.device
        pools = {name: tensor.to(device, copy=True) for name, tensor in (state or {}).items()} or {
            n: torch.zeros(rows, *t.shape, dtype=t.dtype, device=device) for n, t in self.state_layout().items()
        }
        slots_B, seen = torch.arange(rows, device=device), []
        for t in range(num_steps):
            first_B = first_BT[:, t] if t or state is not None else torch.ones_like(first_BT[:, t])
            forced = _Forced(actions_BTH[:, t])
            now = {name: tensor[:, t] for name, tensor in inputs.items() if name != TARGETS}
            executed_BH = actions_BTH[:, t - 1] if t else executed_BTH[:, 0]
            self.step(now, executed_BH, Memory(pools, slots_B, first_B), forced)
            seen.append(forced.logits)
        logits = tuple(torch.stack([step[h] for step in seen], dim=1) for h in range(len(self._heads)))
        return ForwardOutput(logits, pools)

    def _refuse_play(self) -> NoReturn:
        raise NotImplementedHereError(
            "this p2p policy is an inverse model: it reads frames that are yet to come, so it labels recordings "
            "(`playserve data label`) and cannot play"
        )

    def _past(self, actions_XH: Tensor) -> Tensor:
        """Return the tokens [..., H, D] by which the backbone sees actions; none (H is 0) where it sees none."""
        tokens_XHD: Tensor = self.tokens.actions(self.embedding(actions_XH)[..., : self._past_heads, :])
        return tokens_XHD

    def _idle(self, like: Tensor) -> Tensor:
        """Return the tokens of an idle action [H], without a copy from the host."""
        idle_H = like.new_zeros(len(self._heads))
        for head, token in enumerate(self._idle_tokens):
            if token:
                idle_H[head].fill_(token)
        return idle_H

    def _known(self, actions_XH: Tensor) -> Tensor:
        """Return the actions with idle tokens where they are unknown."""
        return torch.where(actions_XH <= IGNORED_LABEL, self._idle(actions_XH), actions_XH)


class _Forced:
    """A sampler that draws given tokens, and keeps the logits."""

    def __init__(self, actions_BH: Tensor) -> None:
        self._actions_BH = actions_BH
        self.logits: list[Tensor] = []

    def __call__(self, logits_BA: Tensor, head: int) -> Tensor:
        """Return the tokens of a head [B]."""
        self.logits.append(logits_BA)
        return self._actions_BH[:, head]
