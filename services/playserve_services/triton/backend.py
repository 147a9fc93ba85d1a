"""What Triton's Python backend calls; `model.py` in a model repository imports one of the two classes.

Only here is `triton_python_backend_utils` known, which exists in Triton's own process alone. Tensors come and go by
DLPack: its own conversion to numpy is built against numpy 1, and under numpy 2 it repeats the first element.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch

from playserve.codec import Decoder, encode
from playserve.errors import PlayserveError
from playserve.specs import PolicySpec
from playserve_services.inference.staging import Array
from playserve_services.triton.host import HostSettings, SlotHost
from playserve_services.triton.sequence_config import SEED, TEXT
from playserve_services.triton.sequences import Sequences, SequenceStep
from playserve_trainer import checkpoint

__all__ = ["BatchModel", "SequenceModel"]

_log = logging.getLogger(__name__)
#: Triton's codes have names of their own.
_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_ARG",
    grpc.StatusCode.FAILED_PRECONDITION: "INVALID_ARG",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
}


def _utils() -> Any:
    import triton_python_backend_utils

    return triton_python_backend_utils


def _settings(args: Mapping[str, str]) -> tuple[HostSettings, dict[str, Any]]:
    config = json.loads(args["model_config"])
    given = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
    return HostSettings.from_parameters(given), config


def _tensor(utils: Any, name: str, array: Array) -> Any:
    """Return Triton's tensor of an array; by torch, whose capsules it knows how to let go."""
    return utils.Tensor.from_dlpack(name, torch.from_numpy(np.require(array, requirements=("C", "W"))))


def _error(utils: Any, error: PlayserveError) -> Any:
    """Return Triton's error of one of ours, with its code as far as Triton has it."""
    code = getattr(utils.TritonError, _CODES.get(error.code, "INTERNAL"))
    return utils.TritonError(f"{error.reason}: {error}", code)


class BatchModel:
    """Answers whole batches of a front; see :mod:`.tensors`."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Begin; no version is loaded before a front asks for it."""
        settings, config = _settings(args)
        self._host = SlotHost(settings)
        self._inputs = [tensor["name"] for tensor in config["input"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request in the order in which they came."""
        utils = _utils()
        return [self._answer(utils, request) for request in requests]

    def _answer(self, utils: Any, request: Any) -> Any:
        arrays: dict[str, Array] = {}
        for name in self._inputs:
            tensor = utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                arrays[name] = np.from_dlpack(tensor)
        try:
            answer = self._host.answer(arrays, json.loads(request.parameters() or "{}"))
        except PlayserveError as error:
            return utils.InferenceResponse(error=_error(utils, error))
        except Exception as error:  # noqa: BLE001 - logged, and told to whom it concerns
            _log.exception("a batch failed")
            return utils.InferenceResponse(error=utils.TritonError(f"{type(error).__name__}: {error}"))
        return utils.InferenceResponse([_tensor(utils, name, array) for name, array in answer.items()])

    def finalize(self) -> None:
        """End."""
        self._host.close()


class SequenceModel:
    """Plays sequences of plain Triton clients on the checkpoint that lies beside `model.py`."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the checkpoint."""
        settings, _ = _settings(args)
        folder = Path(args["model_repository"]) / args["model_version"] / "checkpoint"
        factory = settings.factory(translates=True)
        policy, manifest = checkpoint.load(folder, device=settings.device)
        self._spec: PolicySpec = manifest.policy_spec()
        self._decoder = Decoder(self._spec.inputs)
        runtime = factory.make_runtime(self._spec, policy, factory.pool(policy, settings.policy))
        self._sequences = Sequences(runtime)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Advance the sequences of all requests in one batch."""
        utils = _utils()
        read = [self._read(utils, request) for request in requests]
        played = iter(self._sequences.step([step for step in read if isinstance(step, SequenceStep)]))
        found = [step if isinstance(step, PlayserveError) else next(played) for step in read]
        return [
            utils.InferenceResponse(error=_error(utils, outputs))
            if isinstance(outputs, PlayserveError)
            else utils.InferenceResponse([_tensor(utils, name, array[None]) for name, array in outputs.items()])
            for outputs in found
        ]

    def _read(self, utils: Any, request: Any) -> SequenceStep | PlayserveError:
        """Return the frame of a request, or what is wrong with it: it must not cost its batch mates their answers."""
        try:
            return self._step(utils, request)
        except PlayserveError as error:
            return error

    def _step(self, utils: Any, request: Any) -> SequenceStep:
        def read(name: str) -> Array | None:
            tensor = utils.get_input_tensor_by_name(request, name)
            return None if tensor is None else np.from_dlpack(tensor)[0]

        # Triton counts a request's inputs, and does not look whether they are the right ones; nor does it know bounds.
        given = [(tensor.name, read(tensor.name)) for tensor in self._spec.inputs]
        control = {name: read(name) for name in ("START", "END", "CORRID")}
        text, seed = read(TEXT), read(SEED)
        parameters = json.loads(request.parameters() or "{}")
        return SequenceStep(
            sequence=int(np.asarray(control["CORRID"]).item()),
            start=bool(np.asarray(control["START"]).item()),
            end=bool(np.asarray(control["END"]).item()),
            inputs=self._decoder.decode_step(encode(array, name) for name, array in given if array is not None),
            instruction="" if text is None else text.tobytes().decode(errors="replace"),
            seed=None if seed is None else int(seed.item()),
            argmax=bool(parameters.get("argmax", False)),
        )

    def finalize(self) -> None:
        """End; the process goes, and all memory with it."""
