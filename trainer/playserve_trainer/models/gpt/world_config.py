"""Settings of the `wm-token` family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from playserve.errors import BadSettingError
from playserve_trainer.models.gpt.shape import CoreConfig, Shape

__all__ = ["WorldConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig(CoreConfig):
    """What a world is told beside the core's size.

    Attributes:
        tokenizer: {"family", "config"} of the frozen tokenizer.
        action: The game's actions as the token cache describes them: "spec", "heads", "combos".
        parallel_tokens: Image tokens that are drawn at once.
        reward_values: What each class of the reward stands for.
        starts: Starts that the checkpoint carries.
        start_frames: Frames of each, at most `context`.
        rate_hz: Of the game; 0: turn based.
        environment: What the spec says of the game.
    """

    tokenizer: Mapping[str, Any]
    action: Mapping[str, Any]
    parallel_tokens: int = 1
    reward_values: tuple[float, ...] = (-1.0, 0.0, 1.0)
    starts: int = 16
    start_frames: int = 4
    rate_hz: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.reward_values:
            raise BadSettingError("wm-token: reward_values is not empty")
        if self.starts < 1 or not 1 <= self.start_frames <= self.context:
            raise BadSettingError(
                f"wm-token: starts is at least 1 and start_frames 1 to context ({self.context}), not {self.starts}, "
                f"{self.start_frames}"
            )

    def shape(self, numbers: int, tokens: int) -> Shape:
        """Return the shape of the core for so many numbers of an action, and tokens of a frame.

        Raises:
            BadSettingError: The tokens are not drawn in equal groups.
        """
        drawn = self.parallel_tokens
        if drawn < 1 or tokens % drawn:
            raise BadSettingError(f"wm-token: parallel_tokens divides the {tokens} tokens of a frame, not {drawn}")
        if drawn == 1:
            seen = tuple(range(1, numbers + tokens + 1))
        else:  # the tokens of a group, and the blanks before the first, see each other
            lead = numbers + drawn
            groups = (lead + drawn * (group + 1) for group in range(tokens // drawn) for _ in range(drawn))
            seen = (*range(1, numbers + 1), *(lead,) * drawn, *groups)
        return self.core(seen)
