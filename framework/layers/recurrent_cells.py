"""RNNCell, LSTMCell, GRUCell: one step, for loops of one's own (a decoder with attention, say).

PyTorch's names, shapes and gate orders. A cell runs the kernel of its layer over one step.
"""

from __future__ import annotations

import math
from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.layers import init
from framework.layers.checks import one_of, positive_integer
from framework.layers.module import Module
from framework.layers.storage import new_parameter


class RecurrentCellBase(Module):
    """Parameters and checks of the cells; they start as U(-k, k), k = 1 / sqrt(hidden_size)."""

    gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        self.input_size = positive_integer(kind, "input_size", input_size)
        self.hidden_size = positive_integer(kind, "hidden_size", hidden_size)
        G = self.gates * self.hidden_size
        self.weight_ih = new_parameter((G, self.input_size), device, dtype)
        self.weight_hh = new_parameter((G, self.hidden_size), device, dtype)
        for name in ("bias_ih", "bias_hh"):
            parameter = new_parameter((G,), device, dtype) if bias else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        k = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -k, k)

    def _one_step(self, x: Tensor, *states: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """x as (1, B, D), states as (B, H), checked."""
        kind = type(self).__name__
        if not isinstance(x, Tensor) or x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            given = x.shape if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{kind}: input is {given}, expected a tensor (rows, features) or (features,) with "
                f"{self.input_size} features"
            )
        for name, s in zip(("h", "c"), states, strict=False):
            expected = (*x.shape[:-1], self.hidden_size)
            if s is not None and (not isinstance(s, Tensor) or s.shape != expected):
                given = s.shape if isinstance(s, Tensor) else type(s).__name__
                raise ValueError(f"{kind}: state {name} is {given}, expected a tensor {expected}")
        if x.ndim == 1:
            x, states = x.unsqueeze(0), tuple(None if s is None else s.unsqueeze(0) for s in states)
        return x.unsqueeze(0), list(states)

    def _weights(self) -> list[Any]:
        return [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]

    def extra_repr(self) -> str:
        """The arguments."""
        bias = "" if self.bias_ih is not None else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """The two products, for every row."""
        rows = inputs[0].size // self.input_size
        G = self.gates * self.hidden_size
        return int(rows * G * (self.input_size + self.hidden_size))


class RNNCell(RecurrentCellBase):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu."""

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = one_of("RNNCell", "nonlinearity", nonlinearity, ("tanh", "relu"))

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        """x (B, input_size), h (B, hidden_size) -> h' (B, hidden_size); all without B as well."""
        steps, states = self._one_step(x, hx)
        y, _ = F.rnn(steps, *self._weights(), *states, nonlinearity=self.nonlinearity)
        return y[0].reshape(*x.shape[:-1], self.hidden_size)


class LSTMCell(RecurrentCellBase):
    """One step of an LSTM, gates i, f, g, o."""

    gates = 4

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """x (B, input_size), (h, c) each (B, hidden_size) -> (h', c'); all without B as well."""
        if hx is not None and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            raise TypeError(f"LSTMCell: the state is a {type(hx).__name__}, expected a pair (h, c)")
        steps, states = self._one_step(x, *(hx or (None, None)))
        y, _, c = F.lstm(steps, *self._weights(), *states)
        shape = (*x.shape[:-1], self.hidden_size)
        return y[0].reshape(*shape), c.reshape(*shape)


class GRUCell(RecurrentCellBase):
    """One step of a GRU, gates r, z, n, the reset gate after the product."""

    gates = 3

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        """x (B, input_size), h (B, hidden_size) -> h' (B, hidden_size); all without B as well."""
        steps, states = self._one_step(x, hx)
        y, _ = F.gru(steps, *self._weights(), *states)
        return y[0].reshape(*x.shape[:-1], self.hidden_size)
