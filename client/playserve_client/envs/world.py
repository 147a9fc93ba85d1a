"""A served world as an environment: what an agent does goes to the world, and what that shows goes to the agent.

An episode is a function of its seed and its actions: the seed is that of the world's session, which draws from it.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from playserve.actions import Action, clip_action
from playserve.errors import BadActionError, UnsupportedError
from playserve.resize import AREA_V1, resize
from playserve.settings import Pace
from playserve.specs import DesktopActionSpec, DiscreteActionSpec, ImageFormat, PolicySpec
from playserve_client.channels import TlsConfig
from playserve_client.client import PolicyClient
from playserve_client.envs.desktop import DesktopSpace
from playserve_client.session import Session
from playserve_client.worlds.view import Shown, check_world, idle_action, show

__all__ = ["MAX_STEPS", "Eyes", "WorldEnv", "eyes_of"]

#: Steps after which an episode is cut: a world is believed for seconds, not for half an hour.
MAX_STEPS = 1000
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Eyes:
    """How an agent sees a game: what its environment would show it, made of a world's frame.

    Attributes:
        height: Pixels.
        width: Pixels.
        channels: 3: RGB; 1: grey.
        stack: Newest frames in one observation, the newest last; 0: one frame as it is.
        resize_id: How frames of another size are resized.
    """

    height: int
    width: int
    channels: int
    stack: int = 0
    resize_id: str = AREA_V1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an observation."""
        return self.height, self.width, self.stack or self.channels


def eyes_of(agent: PolicySpec) -> Eyes:
    """Return how an agent sees, by its one required input.

    Raises:
        UnsupportedError: That is no picture, or there are several.
    """
    inputs = [tensor for tensor in agent.inputs if not tensor.optional]
    if len(inputs) != 1 or inputs[0].dtype != "uint8" or len(inputs[0].shape) != 3 or min(inputs[0].shape) < 1:
        takes = [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in inputs]
        raise UnsupportedError(f"{agent.name!r} takes {takes}; a world shows one picture, uint8 [H, W, C]")
    height, width, channels = inputs[0].shape
    stacked = inputs[0].image_format is ImageFormat.GRAY8_STACK
    if not stacked and channels not in (1, 3):
        raise UnsupportedError(f"{agent.name!r} takes pictures of {channels} channels, which are no frame stack")
    return Eyes(
        height=height,
        width=width,
        channels=1 if stacked else channels,
        stack=channels if stacked else 0,
        resize_id=inputs[0].resize_id or AREA_V1,
    )


class WorldEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """One session of a world.

    Args:
        world: Its name at the server.
        server: "host:port", or several by commas.
        version: Version or alias; empty: the newest.
        max_steps: Steps after which an episode is truncated.
        eyes: How the agent sees, as fields of :class:`Eyes`; None: the world's frames as they are.
        api_key: Key or token for servers that want one.
        tls: Whether to dial with TLS, or what `TlsConfig.to_json` returns.
        allow_insecure_key: Send the key over plain text to another machine, too.

    Raises:
        UnsupportedError: It is no world, or none that shows frames.
    """

    def __init__(
        self,
        world: str,
        *,
        server: str = "127.0.0.1:50051",
        version: str = "",
        max_steps: int = MAX_STEPS,
        eyes: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        tls: bool | Mapping[str, Any] = False,
        allow_insecure_key: bool = False,
    ) -> None:
        self._client = PolicyClient(
            server,
            api_key=api_key,
            tls=tls if isinstance(tls, bool) else TlsConfig.from_json(tls),
            timeout_s=_TIMEOUT_S,
            allow_insecure_key=allow_insecure_key,
        )
        try:
            self.spec_of_world = self._client.get_policy(world, version).spec
            height, width = check_world(self.spec_of_world)
        except BaseException:
            self._client.close()
            raise
        self._world, self._version, self._max_steps = world, version, max_steps
        self._eyes = Eyes(height=height, width=width, channels=3) if eyes is None else Eyes(**eyes)
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=max(1, self._eyes.stack))
        self._session: Session | None = None
        self._shown: Shown | None = None
        self._steps, self._unsure, self._ended = 0, list[float](), True
        action = self.spec_of_world.action
        self.action_names: tuple[str, ...] = action.names if isinstance(action, DiscreteActionSpec) else ()
        self.action_space = (
            DesktopSpace(action) if isinstance(action, DesktopActionSpec) else gymnasium.spaces.Discrete(action.n)
        )
        self.observation_space = gymnasium.spaces.Box(0, 255, self._eyes.shape, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin the world of `seed` (None: of whatever its session draws next); return the observation and its info."""
        super().reset(seed=seed)
        if self._session is None:
            self._session = self._client.play(self._world, version=self._version, pace=Pace.LOCKSTEP, seed=seed)
        else:
            self._session.reset(seed=seed)
        self._steps, self._unsure, self._ended = 0, [], False
        shown = self._do(self._session, idle_action(self.spec_of_world.action))
        self._frames.extend([self._seen(shown.frame)] * (self._frames.maxlen or 1))
        return self._observation(), self._info(shown)

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Do something; return observation, reward, terminated, truncated and info with the world's `uncertainty`."""
        if self._session is None or self._ended:
            raise gymnasium.error.ResetNeeded("the episode has ended; call reset() before step()")
        spec = self.spec_of_world.action
        if isinstance(spec, DiscreteActionSpec) and not 0 <= action < spec.n:
            raise BadActionError(f"action {action} of {self._world} is not within 0 to {spec.n - 1}")
        done: Action = int(action) if isinstance(spec, DiscreteActionSpec) else clip_action(action, spec)
        shown = self._do(self._session, done)
        self._frames.append(self._seen(shown.frame))
        self._steps += 1
        truncated = self._steps >= self._max_steps and not shown.terminated
        self._ended = shown.terminated or truncated
        return self._observation(), shown.reward, shown.terminated, truncated, self._info(shown)

    def rgb(self) -> NDArray[np.uint8]:
        """Return the newest frame, uint8 [H, W, 3], for people to look at."""
        if self._shown is None:
            raise gymnasium.error.ResetNeeded("nothing was seen yet; call reset()")
        return self._shown.frame

    def close(self) -> None:
        """End the session."""
        if self._session is not None:
            self._session.close()
        self._client.close()

    def _do(self, session: Session, action: Action) -> Shown:
        self._shown = show(session.step_world(action))
        if self._shown.uncertainty is not None:
            self._unsure.append(self._shown.uncertainty)
        return self._shown

    def _info(self, shown: Shown) -> dict[str, Any]:
        info: dict[str, Any] = {} if shown.uncertainty is None else {"uncertainty": shown.uncertainty}
        if self._ended and self._unsure:
            info["episode_facts"] = {"uncertainty": float(np.mean(self._unsure))}
        return info

    def _seen(self, frame_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return one frame as the agent sees it, uint8 [height, width, channels]."""
        eyes, frame = self._eyes, frame_HW3
        if frame.shape[:2] != (eyes.height, eyes.width):
            larger = max(-(-eyes.height // frame.shape[0]), -(-eyes.width // frame.shape[1]))
            if larger > 1:  # resizes make smaller only
                frame = frame.repeat(larger, 0).repeat(larger, 1)
            frame = resize(frame, eyes.height, eyes.width, eyes.resize_id)
        if eyes.channels == 3:
            return frame
        if (frame == frame[:, :, :1]).all():  # grey already: weights that add up to one would still round
            return frame[:, :, :1]
        grey: NDArray[np.uint8] = (frame @ _LUMA + 0.5).astype(np.uint8)
        return grey[:, :, None]

    def _observation(self) -> NDArray[np.uint8]:
        return np.concatenate(list(self._frames), axis=-1)
