"""How many passes of the action decoder a frame takes when the action before is guessed, on recorded play.

The policy answers each frame of recordings with the past that was recorded, and draws from its distribution; the guess
is the recorded action before. One token at a time would be as many passes as the action has heads, 8.

    playserve data record doom --frames 2500 --min-frames 200 --out runs/guesses/data
    python tests/bench/bench_p2p_guesses.py CHECKPOINT runs/guesses/data
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import machine, report_console, write_json
from torch import Tensor

from playserve_trainer.causality.clips import Clip, ClipReader, Subject, Window, open_subject
from playserve_trainer.models.p2p.decoder import ActionDecoder
from playserve_trainer.models.p2p.drawing import draw_action


class _Counting:
    """A decoder that counts its passes."""

    def __init__(self, decoder: ActionDecoder) -> None:
        self._decoder, self.num_actions, self.begin, self.passes = decoder, decoder.num_actions, decoder.begin, 0

    def advance(self, *args: Any) -> Tensor:
        self.passes += 1
        return self._decoder.advance(*args)


def _draw(logits_BA: Tensor, head: int) -> Tensor:
    return torch.multinomial(logits_BA.softmax(-1), 1).squeeze(1)


def _count(subject: Subject, clip: Clip, seen: Counter[int]) -> None:
    policy, length = subject.answers.policy, len(clip.actions_TH)
    instruction = None if clip.instruction_TW is None else clip.instruction_TW.unsqueeze(0)
    out_TD = subject.answers.out(
        clip.image_TD.unsqueeze(0), instruction, clip.actions_TH.unsqueeze(0), clip.first_T.unsqueeze(0), range(length)
    )[0]
    for t in range(1, length):
        decoder: Any = _Counting(policy.decoder)
        draw_action(out_TD[t : t + 1], (decoder, policy.embedding, policy.logits), _draw, clip.actions_TH[t - 1 : t])
        seen[decoder.passes] += 1


def main(argv: Sequence[str] | None = None) -> int:
    """Count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", type=int, default=200, help="of each recording (default %(default)s)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"benchmark": "p2p_guesses", "arguments": {k: str(v) for k, v in vars(args).items()}}
    seen: Counter[int] = Counter()
    with machine(report), torch.inference_mode():
        torch.manual_seed(0)
        subject = open_subject(args.checkpoint, args.data, held_out=0)
        reader = ClipReader(subject, args.frames)
        for recording in subject.chosen:
            if subject.recordings.lengths_R[recording] >= args.frames:
                _count(subject, reader.read(Window(int(recording), 0)), seen)
        reader.close()
    frames = seen.total()
    report |= {"frames": frames, "passes": dict(sorted(seen.items()))}
    report["mean"] = sum(passes * count for passes, count in seen.items()) / frames
    shares = ", ".join(f"{passes}: {count / frames:.0%}" for passes, count in sorted(seen.items()))
    report_console().print(f"{report['mean']:.2f} passes a frame over {frames:,} frames ({shares})")
    write_json(args.out, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
