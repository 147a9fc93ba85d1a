"""Many small networks that learn by plain SGD at batch 1, side by side in one stack of arrays.

A step of one such network is a hundred multiplications, and a call of a tensor library costs more than they do: three
million steps in torch take hours. Here the networks of all depths, replicas and learning rates make a step together,
and lie along the last axis of every array, so that each numpy call works on contiguous memory. Networks are sorted by
depth, deepest first: those that have a layer are the first so many of it. The update is torch's SGD on torch's initial
weights, by test.

Shape legend: N networks, O outputs and I inputs of a layer, P probes; N_l of the networks have a layer l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_trainer.causality.toy_world import NUM_INPUTS

__all__ = ["WIDTH", "Net", "NetStack"]

#: Units of a hidden layer.
WIDTH = 10

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A network.

    Attributes:
        depth: Hidden layers, of :data:`WIDTH` units and ReLU; 0: linear.
        bias: Whether its layers have biases.
        lr: Learning rate.
        replica: Which stream it learns from.
        seed: Of its initial weights.
    """

    depth: int
    bias: bool
    lr: float
    replica: int
    seed: int


class NetStack:
    """Networks that learn side by side.

    Args:
        nets: Sorted by depth, the deepest first.
        dtype: Of weights and arithmetic.

    Raises:
        BadSettingError: They are not sorted, or there is none.
    """

    def __init__(self, nets: Sequence[Net], dtype: type[np.floating[Any]] = np.float32) -> None:
        depths = [net.depth for net in nets]
        if not nets or depths != sorted(depths, reverse=True):
            raise BadSettingError(f"networks of depths {depths}, wanted at least one, the deepest first")
        self.nets = tuple(nets)
        # Networks that have layer l, 1 the first hidden one; [0] is all of them.
        self._having = [sum(d >= layer for d in depths) for layer in range(depths[0] + 1)]
        self._lr_N = np.array([net.lr for net in nets], dtype)
        self._bias_N = np.array([net.bias for net in nets], dtype)
        deep = self._having[1] if depths[0] else 0
        self._deep, self._dtype = deep, dtype
        #: Weights [O, I, N_l] and biases [O, N_l] of the hidden layers, from layer 1 on.
        self.weights: list[Array] = []
        self.biases: list[Array] = []
        for layer in range(1, depths[0] + 1):
            fan_in = NUM_INPUTS if layer == 1 else WIDTH
            self.weights.append(np.zeros((WIDTH, fan_in, self._having[layer]), dtype))
            self.biases.append(np.zeros((WIDTH, self._having[layer]), dtype))
        #: Weights of the output layer: of networks with hidden layers [WIDTH, N_1], of linear ones [I, N - N_1].
        self.out_deep = np.zeros((WIDTH, deep), dtype)
        self.out_linear = np.zeros((NUM_INPUTS, len(nets) - deep), dtype)
        self.out_bias_N = np.zeros(len(nets), dtype)
        for number, net in enumerate(nets):
            self._draw(number, net)
        # Scratch of a step: products of weights, what layers give, what the last hidden layer gives, logits; and how
        # many networks go on after each layer.
        self._products = [np.empty_like(weight) for weight in self.weights]
        self._hidden = [np.empty_like(bias) for bias in self.biases]
        self._last, self._logits_N = np.empty_like(self.out_deep), np.empty_like(self.out_bias_N)
        self._deeper = [*self._having[2:], 0][: len(self.weights)]

    def _draw(self, number: int, net: Net) -> None:
        """Draw initial weights as torch.nn.Linear does: uniform within 1 / sqrt(fan in), biases too."""
        rng = np.random.default_rng([net.seed, net.depth, net.bias])
        fan_in = NUM_INPUTS
        for layer in range(net.depth):
            bound = 1.0 / np.sqrt(fan_in)
            self.weights[layer][:, :, number] = rng.uniform(-bound, bound, (WIDTH, fan_in))
            self.biases[layer][:, number] = rng.uniform(-bound, bound, WIDTH) * net.bias
            fan_in = WIDTH
        bound = 1.0 / np.sqrt(fan_in)
        weights = rng.uniform(-bound, bound, fan_in)
        if net.depth:
            self.out_deep[:, number] = weights
        else:
            self.out_linear[:, number - self._deep] = weights
        self.out_bias_N[number] = rng.uniform(-bound, bound) * net.bias

    def learn(self, inputs_KIN: Array, targets_KN: Array) -> None:
        """Make K steps of SGD at batch 1 on the binary cross-entropy of each network's own inputs and target."""
        biased_lr_N = self._lr_N * self._bias_N
        half = self._dtype(0.5)
        for x_IN, y_N in zip(inputs_KIN, targets_KN, strict=True):
            self._forward(x_IN)
            logits_N = self._logits_N
            logits_N *= half
            # Logistic of the logits, less the target; an exponential could overflow, tanh cannot.
            error_N = half * (np.tanh(logits_N, out=logits_N) + 1) - y_N
            self.out_bias_N -= error_N * biased_lr_N
            # Gradients come times the learning rate from here on: all that is below is linear in them.
            error_N *= self._lr_N
            self._backward(x_IN, error_N)

    def _forward(self, x_IN: Array) -> None:
        """Compute what each layer gives, and the logits."""
        deep, last, logits_N = self._deep, self._last, self._logits_N
        below = x_IN[:, :deep]
        for weight, bias, product, here, more in zip(
            self.weights, self.biases, self._products, self._hidden, self._deeper, strict=True
        ):
            np.multiply(weight, below, out=product)
            np.add.reduce(product, axis=1, out=here)
            here += bias
            np.maximum(here, 0, out=here)
            last[:, more : here.shape[1]] = here[:, more:]  # networks that end here
            below = here[:, :more]
        np.add.reduce(self.out_deep * last, axis=0, out=logits_N[:deep])
        np.add.reduce(self.out_linear * x_IN[:, deep:], axis=0, out=logits_N[deep:])
        logits_N += self.out_bias_N

    def _backward(self, x_IN: Array, error_N: Array) -> None:
        """Move the weights, from the output down, by the error of the logits times the learning rate."""
        deep, hidden = self._deep, self._hidden
        back = self.out_deep * error_N[:deep]
        self._last *= error_N[:deep]
        self.out_deep -= self._last
        self.out_linear -= error_N[deep:] * x_IN[:, deep:]
        for layer in range(len(self.weights) - 1, -1, -1):
            weight, here = self.weights[layer], hidden[layer]
            count = here.shape[1]
            now = back[:, :count]  # of networks that end here; of deeper ones the layer above has put it there
            now *= here > 0
            below = hidden[layer - 1][:, :count] if layer else x_IN[:, :count]
            if layer:
                np.multiply(weight, now[:, None], out=self._products[layer])
                down = np.add.reduce(self._products[layer], axis=0)
            np.multiply(now[:, None], below, out=self._products[layer])
            weight -= self._products[layer]
            now *= self._bias_N[:count]
            self.biases[layer] -= now
            if layer:
                back[:, :count] = down

    def logits(self, probes_PI: Array) -> Array:
        """Return the logits [P, N] of inputs that all networks see."""
        found = []
        for x_I in np.asarray(probes_PI, self._dtype):
            below, last = np.repeat(x_I[:, None], self._deep, axis=1), np.zeros_like(self.out_deep)
            for weight, bias in zip(self.weights, self.biases, strict=True):
                below = np.maximum((weight * below[:, : weight.shape[2]]).sum(1) + bias, 0)
                last[:, : below.shape[1]] = below
            deep_N = (self.out_deep * last).sum(0)
            linear_N = (self.out_linear * x_I[:, None]).sum(0)
            found.append(np.concatenate([deep_N, linear_N]) + self.out_bias_N)
        return np.stack(found)
