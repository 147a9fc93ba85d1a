"""What an environment shows and takes, whether that is what the policy wants, and the shared memory it goes through."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import shared_memory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import (
    BadActionError,
    BadSettingError,
    DTypeMismatchError,
    InputMissingError,
    InputUnknownError,
    ShapeMismatchError,
)
from playserve.specs import DTYPES, DesktopActionSpec, DiscreteActionSpec, MouseDecode, PolicySpec

__all__ = ["EnvSpec", "SharedRows", "match_inputs"]

# Each input begins at a multiple of this many bytes.
_ALIGN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSpec:
    """Observations and actions of an environment.

    Attributes:
        inputs: (dtype name, shape) of each observation array by name; the name is "" where there is but one array.
        num_actions: Number of discrete actions; 0 where the environment takes keyboard and mouse.
        first_action: The environment's own number of action 0.
        action_names: Names by index, or empty.
        desktop: The keys, buttons and motion that mean something in the environment; None: its actions are discrete.
    """

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    num_actions: int
    first_action: int = 0
    action_names: tuple[str, ...] = ()
    desktop: DesktopActionSpec | None = None

    @classmethod
    def of(cls, env: Any) -> EnvSpec:
        """Return the spec of a Gymnasium environment; BadSettingError where it cannot be evaluated.

        One that takes a `playserve.actions.DesktopAction` says so by a `DesktopActionSpec`, the `spec` of its action
        space (:class:`playserve_client.envs.desktop.DesktopSpace`) or its attribute `desktop_actions`.
        """
        space, actions = getattr(env, "observation_space", None), getattr(env, "action_space", None)
        parts = getattr(space, "spaces", None)
        named = dict(parts.items()) if isinstance(parts, Mapping) else {"": space}
        inputs = {}
        for name, part in named.items():
            dtype, shape = getattr(part, "dtype", None), getattr(part, "shape", None)
            if dtype is None or shape is None or np.dtype(dtype).name not in DTYPES:
                raise BadSettingError(
                    f"observation {name or 'space'} is {part}; wanted arrays of {', '.join(DTYPES)}, alone or in a Dict"
                )
            inputs[str(name)] = (np.dtype(dtype).name, tuple(int(dim) for dim in shape))
        desktop = getattr(env, "desktop_actions", None) or getattr(actions, "spec", None)
        if isinstance(desktop, DesktopActionSpec):
            return cls(inputs=inputs, num_actions=0, desktop=desktop)
        if not hasattr(actions, "n"):
            raise BadSettingError(f"the action space is {actions}; wanted Discrete")
        count, first = int(actions.n), int(getattr(actions, "start", 0))  # type: ignore[union-attr]
        names = tuple(getattr(env, "action_names", ()))
        return cls(inputs=inputs, num_actions=count, first_action=first, action_names=names)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        inputs = {name: [dtype, list(shape)] for name, (dtype, shape) in self.inputs.items()}
        return {
            "inputs": inputs,
            "num_actions": self.num_actions,
            "first_action": self.first_action,
            "action_names": list(self.action_names),
            "desktop": None if self.desktop is None else asdict(self.desktop),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EnvSpec:
        """Return the spec of a JSON value."""
        inputs = {name: (dtype, tuple(shape)) for name, (dtype, shape) in value["inputs"].items()}
        desktop = value.get("desktop")
        if desktop is not None:
            keys, buttons = tuple(desktop["keys"]), tuple(desktop["buttons"])
            decode = MouseDecode(desktop["mouse_decode"])
            desktop = DesktopActionSpec(**{**desktop, "keys": keys, "buttons": buttons, "mouse_decode": decode})
        names = tuple(value["action_names"])
        return cls(**{**value, "inputs": inputs, "action_names": names, "desktop": desktop})


def match_inputs(env: EnvSpec, policy: PolicySpec) -> dict[str, str]:
    """Return the environment's observation name of each policy input; a typed error where they do not fit.

    An environment may show more than the policy takes. A single array is the policy's one required input.
    """
    _match_actions(env, policy)
    required = [spec.name for spec in policy.inputs if not spec.optional]
    names = {name: name for name in env.inputs}
    if set(env.inputs) == {""}:
        if len(required) != 1:
            raise InputMissingError(f"the environment shows one array; policy {policy.name!r} takes {required}")
        names = {required[0]: ""}
    matched = {}
    for spec in policy.inputs:
        if spec.name not in names:
            if spec.optional:
                continue
            raise InputMissingError(
                f"policy {policy.name!r} takes input {spec.name!r}; the environment shows {sorted(env.inputs)}"
            )
        dtype, shape = env.inputs[names[spec.name]]
        if dtype != spec.dtype:
            raise DTypeMismatchError(
                f"input {spec.name!r}: the environment shows {dtype}, the policy takes {spec.dtype}"
            )
        fits = len(shape) == len(spec.shape) and all(w in (-1, d) for d, w in zip(shape, spec.shape, strict=True))
        if not fits:
            raise ShapeMismatchError(
                f"input {spec.name!r}: the environment shows {list(shape)}, the policy takes {list(spec.shape)}"
            )
        matched[spec.name] = names[spec.name]
    if not matched:
        raise InputUnknownError(
            f"policy {policy.name!r} takes nothing that the environment shows: {sorted(env.inputs)}"
        )
    return matched


def _match_actions(env: EnvSpec, policy: PolicySpec) -> None:
    action, desktop = policy.action, env.desktop
    if isinstance(action, DiscreteActionSpec):
        if desktop is None and action.n == env.num_actions:
            return
        came = f"{action.n} actions"
    else:
        # What else the policy presses does nothing in the environment.
        if desktop is not None and {*action.keys, *action.buttons} & {*desktop.keys, *desktop.buttons}:
            return
        came = f"desktop actions (keys {list(action.keys)[:8]}, buttons {list(action.buttons)})"
    takes = f"{env.num_actions}" if desktop is None else f"desktop actions ({list(desktop.keys)[:8]})"
    raise BadActionError(f"policy {policy.name!r} has {came}; the environment takes {takes}")


class SharedRows:
    """One array [rows, *shape] for each observation, in memory that the workers write and the parent reads.

    A row belongs to its worker while the environment steps, and to the parent from the report that it is ready until
    its action is sent. The parent makes it (`create`) and destroys it; workers `attach`.
    """

    def __init__(self, memory: shared_memory.SharedMemory, spec: EnvSpec, rows: int) -> None:
        self._memory = memory
        self.arrays: dict[str, NDArray[Any]] = {}
        for name, (offset, dtype, shape) in _layout(spec, rows)[0].items():
            self.arrays[name] = np.ndarray((rows, *shape), dtype, memory.buf, offset)
        # A view of each row is made once: it costs more than copying what a row holds.
        self._views = [[(name, array[row, ...]) for name, array in self.arrays.items()] for row in range(rows)]

    @classmethod
    def create(cls, spec: EnvSpec, rows: int) -> SharedRows:
        """Return new memory."""
        return cls(shared_memory.SharedMemory(create=True, size=_layout(spec, rows)[1]), spec, rows)

    @classmethod
    def attach(cls, name: str, spec: EnvSpec, rows: int) -> SharedRows:
        """Return the memory that the parent made."""
        return cls(shared_memory.SharedMemory(name=name), spec, rows)

    @property
    def name(self) -> str:
        """Return the name to attach to."""
        return self._memory.name

    def write(self, row: int, observation: Any) -> None:
        """Copy one observation into its row."""
        if type(observation) is dict or isinstance(observation, Mapping):
            for name, view in self._views[row]:
                view[...] = observation[name]
        else:
            self._views[row][0][1][...] = observation

    def read(self, name: str, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of some rows of one observation, [n, *shape]."""
        return self.arrays[name][rows]

    def close(self, *, destroy: bool = False) -> None:
        """Let go of the memory; the parent also destroys it."""
        self.arrays.clear()
        self._views.clear()
        with contextlib.suppress(BufferError):
            self._memory.close()
        if destroy:
            with contextlib.suppress(FileNotFoundError):
                self._memory.unlink()


def _layout(spec: EnvSpec, rows: int) -> tuple[dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]], int]:
    """Return (offset, dtype, shape) by name, and the size of the whole."""
    offset, layout = 0, {}
    for name, (dtype_name, shape) in spec.inputs.items():
        dtype = np.dtype(dtype_name)
        layout[name] = (offset, dtype, shape)
        offset += -(-math.prod((rows, *shape)) * dtype.itemsize // _ALIGN) * _ALIGN
    return layout, max(offset, _ALIGN)
