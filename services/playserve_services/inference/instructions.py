"""Instructions as a policy reads them: embedded once for each text, away from the engine's thread.

Whoever changes an instruction calls :meth:`InstructionCache.prepare` in a thread that may wait; the engine then only
looks the text up. A session follows to a new version once that has read its instruction, and a step waits where so
many texts were read since its own that that was forgotten. Should the engine still meet a text that nobody prepared, it
embeds it, which costs that one batch its time and nothing else; warming up does so with "".
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from playserve.errors import StepFailedError
from playserve_services.inference.staging import Array
from playserve_trainer.models.policy import StateTensor

__all__ = ["GivenInstructions", "InstructionCache", "Instructions"]


class Instructions(Protocol):
    """What a runtime asks for the embeddings of its rows' instructions."""

    def get(self, text: str) -> Array:
        """Return the embedding of a text, [*shape]."""

    def prepare(self, text: str) -> None:
        """Do what takes time for a text, in a thread that may wait."""

    def knows(self, text: str) -> bool:
        """Return whether :meth:`get` takes no time."""


class InstructionCache:
    """The newest embeddings of one policy version. Any thread.

    Args:
        embed: Returns the embedding of a text; called by several threads at once.
        layout: Shape and dtype of an embedding.
        capacity: Most texts that are kept, at least as many as sessions can have at once.
    """

    def __init__(self, embed: Callable[[str], Tensor], layout: StateTensor, capacity: int) -> None:
        self._embed = embed
        self._layout = layout
        self._capacity = capacity
        self._lock = threading.Lock()
        self._arrays: OrderedDict[str, Array] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of texts that are kept."""
        return len(self._arrays)

    def knows(self, text: str) -> bool:
        """Return whether the embedding of a text is here; it then stays for as long as those of other texts do."""
        with self._lock:
            if text not in self._arrays:
                return False
            self._arrays.move_to_end(text)
            return True

    def prepare(self, text: str) -> None:
        """Embed a text, unless it is here already.

        Raises:
            StepFailedError: The policy's embedding has another shape than it declares.
        """
        self.get(text)

    def get(self, text: str) -> Array:
        """Return the embedding of a text, [*shape]; embed it if nobody has."""
        with self._lock:
            array = self._arrays.get(text)
            if array is not None:
                self._arrays.move_to_end(text)
                return array
        with torch.inference_mode():
            tensor = self._embed(text).detach().to("cpu", self._layout.dtype)
        if tuple(tensor.shape) != self._layout.shape:
            raise StepFailedError(
                f"the embedding of an instruction has shape {tuple(tensor.shape)}; the policy declares "
                f"{self._layout.shape}"
            )
        array = np.ascontiguousarray(tensor.numpy())
        with self._lock:
            self._arrays[text] = array
            while len(self._arrays) > self._capacity:
                self._arrays.popitem(last=False)
        return array


class GivenInstructions:
    """Embeddings that come with a batch, instead of texts: the text of row 3 is then "3". One thread.

    Args:
        layout: Shape and dtype of an embedding.
    """

    def __init__(self, layout: StateTensor) -> None:
        self._nothing = np.zeros(layout.shape, torch.empty(0, dtype=layout.dtype).numpy().dtype)
        self.rows: Array | None = None

    def get(self, text: str) -> Array:
        """Return the embedding of a row; zeros while there are none, as when a policy warms up."""
        if self.rows is None:
            return self._nothing
        found: Array = self.rows[int(text)]
        return found

    def prepare(self, text: str) -> None:
        """Do nothing."""

    def knows(self, text: str) -> bool:
        """Return True."""
        return True
