"""What a p2p policy answers at single steps of a clip, with its frames and its past actions given apart.

A frame becomes one image token by itself, so that frames are swapped as tokens: each is computed once, however often it
is shown. All is computed as :meth:`P2PPolicy.forward` computes it, by test.

Shape legend: B rows, T steps, H heads of an action, A choices of a head, D width, W text width, M answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.drawing import draw_action
from playserve_trainer.models.p2p.tokens import groups

__all__ = ["Answers", "kl_by_head"]

# Steps that pass through the backbone or the trunk at once: memory, and nothing else.
_STEPS_AT_ONCE = 512


class Answers:
    """Asks a policy.

    Args:
        policy: In eval mode.
    """

    def __init__(self, policy: P2PPolicy) -> None:
        self.policy = policy.eval()
        self.groups = groups(policy.vocabulary)
        self.num_heads = len(policy.heads())
        self._past_heads = self.num_heads if policy.config.past_actions else 0

    def weights(self) -> NDArray[np.float64]:
        """Return the weight of each head in a mean over them, float64 [H].

        Keys, buttons, dx and dy count alike, each head of a group as the others, and a divergence is in units of
        log(choices), as in the loss: guessing each head evenly instead of knowing it is a divergence of 1.
        """
        return np.array(
            [1.0 / (len(self.groups) * heads * np.log(n)) for _, n, heads in self.groups for _ in range(heads)]
        )

    @torch.inference_mode()
    def see(self, frames_TSS3: NDArray[np.uint8]) -> Tensor:
        """Return the image tokens of frames, float32 [T, D], on the policy's device."""
        device = self.policy.device()
        parts = [
            self.policy.image(torch.from_numpy(frames_TSS3[start : start + _STEPS_AT_ONCE]).to(device)).float()
            for start in range(0, len(frames_TSS3), _STEPS_AT_ONCE)
        ]
        return torch.cat(parts)

    @torch.inference_mode()
    def out(
        self,
        image_BTD: Tensor,
        instruction_BTW: Tensor | None,
        actions_BTH: Tensor,
        first_BT: Tensor,
        at: Sequence[int],
    ) -> Tensor:
        """Return what the backbone answers [B, len(at), D] at some steps, from an empty memory.

        Args:
            image_BTD: Image tokens.
            instruction_BTW: Vectors of the instruction, or None if the policy takes none.
            actions_BTH: int64, the action of each step; a step's answer sees those of the steps before it only.
            first_BT: bool, steps that begin an episode.
            at: Steps to answer.
        """
        policy = self.policy
        rows, found = max(1, _STEPS_AT_ONCE // image_BTD.shape[1]), []
        for start in range(0, len(image_BTD), rows):
            its = slice(start, start + rows)
            text = None if instruction_BTW is None else instruction_BTW[its]
            new_BT4D = policy.tokens(image_BTD[its], text)
            past_BTHD = policy.tokens.actions(policy.embedding(actions_BTH[its])[..., : self._past_heads, :])
            out_BTD, _ = policy.backbone(torch.cat([new_BT4D, past_BTHD], dim=2), first_BT[its], keep=False)
            found.append(out_BTD[:, list(at)])
        return torch.cat(found)

    @torch.inference_mode()
    def log_probs(self, out_MD: Tensor, actions_MH: Tensor) -> list[Tensor]:
        """Return log-probabilities float64 [M, A] of each head, given that the heads before it are as in an action."""
        y_MHD = self.policy.decoder(out_MD, self.policy.embedding(actions_MH))
        return [self.policy.logits(y_MHD[:, h], h).double().log_softmax(-1).cpu() for h in range(self.num_heads)]

    @torch.inference_mode()
    def choose(self, out_MD: Tensor) -> NDArray[np.int64]:
        """Return the action int64 [M, H] of which each head is the likeliest, given those before it."""
        policy = self.policy
        chosen_MH = draw_action(
            out_MD, (policy.decoder, policy.embedding, policy.logits), lambda logits_MA, _: logits_MA.argmax(-1)
        )
        found: NDArray[np.int64] = chosen_MH.cpu().numpy()
        return found


def kl_by_head(log_p: Sequence[Tensor], log_q: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return KL(p || q), nats, of each head [M, H], from log-probabilities [M, A] a head; equal ones give exactly 0."""
    columns = [(p.exp() * (p - q)).sum(-1) for p, q in zip(log_p, log_q, strict=True)]
    found: NDArray[np.float64] = torch.stack(columns, dim=-1).numpy()
    return found
