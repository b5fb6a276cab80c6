"""RNN, LSTM, GRU: stacks of recurrent layers in one direction or both, with PyTorch's parameter
names, shapes and gate orders, so that weights move across unchanged.
"""

from __future__ import annotations

import math
from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.functional.recurrent import sequence_lengths
from framework.layers import init
from framework.layers.checks import in_range, one_of, positive_integer
from framework.layers.module import Module
from framework.layers.packing import PackedSequence
from framework.layers.storage import new_parameter

Shapes = dict[str, tuple[int, ...]]


class RecurrentBase(Module):
    """What the layers share. A subclass says how many gates it has, which parameters beyond the
    usual ones, and how one layer in one direction runs.

    All parameters start as U(-k, k), k = 1 / sqrt(hidden_size), as in PyTorch.
    """

    #: Gates, that is rows of the weights for each hidden unit.
    gates: int
    #: Does a state have a cell beside the output?
    has_cell = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        locked_dropout: bool,
        output_size: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        self.input_size = positive_integer(kind, "input_size", input_size)
        self.hidden_size = positive_integer(kind, "hidden_size", hidden_size)
        self.output_size = self.hidden_size if output_size is None else output_size
        self.num_layers = positive_integer(kind, "num_layers", num_layers)
        self.bias, self.batch_first = bool(bias), bool(batch_first)
        self.dropout = in_range(kind, "dropout", dropout, 0, 1)
        self.bidirectional, self.locked_dropout = bool(bidirectional), bool(locked_dropout)
        self.directions = 2 if bidirectional else 1
        for layer in range(self.num_layers):
            features = self.output_size * self.directions if layer else self.input_size
            for reverse in range(self.directions):
                for name, shape in (self._usual(features) | self._further()).items():
                    parameter = new_parameter(shape, device, dtype)
                    setattr(self, self._full_name(name, layer, reverse), parameter)
        self.reset_parameters()

    def _usual(self, features: int) -> Shapes:
        G = self.gates * self.hidden_size
        shapes: Shapes = {"weight_ih": (G, features), "weight_hh": (G, self.output_size)}
        return shapes | ({"bias_ih": (G,), "bias_hh": (G,)} if self.bias else {})

    def _further(self) -> Shapes:
        """Names and shapes of a layer's parameters beyond the weights and biases."""
        raise NotImplementedError

    def _run(
        self, x: Tensor, weights: dict[str, Tensor], first: tuple[Any, ...], lengths: Any,
        reverse: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """One layer in one direction: outputs (T, B, P), then its last states."""
        raise NotImplementedError

    def _own_work(self) -> int:
        """Multiply-adds of one step of one row beyond W_ih x and W_hh h."""
        raise NotImplementedError

    @staticmethod
    def _full_name(name: str, layer: int, reverse: int) -> str:
        return f"{name}_l{layer}{'_reverse' if reverse else ''}"

    def reset_parameters(self) -> None:
        """Draw new weights."""
        k = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -k, k)

    def flatten_parameters(self) -> None:
        """Does nothing: PyTorch's cuDNN wants weights side by side, the kernels here do not."""

    def forward(
        self, x: Tensor | PackedSequence, hx: Any = None, lengths: Any = None
    ) -> tuple[Any, Any]:
        """Outputs of the last layer, and the last state of every layer and direction.

        x is (T, B, input_size), (B, T, input_size) with `batch_first`, (T, input_size) without a
        batch, or a PackedSequence. `hx`, zeros if None, and the state that is returned are (layers
        * directions, B, size), for an LSTM a pair of these, without B where x has no batch.
        `lengths`: steps of each row, in any order; outputs beyond are 0, and the state is that at
        the row's end.
        """
        kind = type(self).__name__
        if isinstance(x, PackedSequence):
            if lengths is not None:
                raise ValueError(f"{kind}: a PackedSequence has lengths of its own")
            y, state = self._batched(x.padded, self._states(hx, x.padded.shape[1]), x.lengths)
            return PackedSequence(y, x.lengths), state
        if not isinstance(x, Tensor) or x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            given = x.shape if isinstance(x, Tensor) else type(x).__name__
            axes = "(rows, steps, features)" if self.batch_first else "(steps, rows, features)"
            raise ValueError(
                f"{kind}: input is {given}, expected a tensor {axes} or (steps, features) with "
                f"{self.input_size} features"
            )
        if x.ndim == 2:
            states = None if hx is None else self._pair(hx)
            states = None if states is None else tuple(s.unsqueeze(1) for s in states)
            y, state = self._batched(x.unsqueeze(1), self._checked(states, 1), lengths)
            state = tuple(s.squeeze(1) for s in self._pair(state))
            return y.squeeze(1), state if self.has_cell else state[0]
        x = x.transpose(0, 1) if self.batch_first else x  # (T, B, D)
        y, state = self._batched(x, self._states(hx, x.shape[1]), lengths)
        return y.transpose(0, 1) if self.batch_first else y, state

    def _pair(self, hx: Any) -> tuple[Tensor, ...]:
        """The states as a tuple of one or two tensors."""
        count = 2 if self.has_cell else 1
        states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        if len(states) != count or not all(isinstance(s, Tensor) for s in states):
            what = "a pair of tensors, output and cell" if self.has_cell else "a tensor"
            raise TypeError(
                f"{type(self).__name__}: the state is {_described(hx)}, expected {what}"
            )
        return states

    def _states(self, hx: Any, rows: int) -> tuple[Tensor, ...] | None:
        return self._checked(None if hx is None else self._pair(hx), rows)

    def _checked(self, states: tuple[Tensor, ...] | None, rows: int) -> tuple[Tensor, ...] | None:
        for name, s, size in zip(
            ("h0", "c0"), states or (), (self.output_size, self.hidden_size), strict=False
        ):
            expected = self.num_layers * self.directions, rows, size
            if s.shape != expected:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {s.shape}, expected {expected}: "
                    f"{self.num_layers} layers times {self.directions} directions, {rows} rows, "
                    f"{size} units"
                )
        return states

    def _batched(
        self, x: Tensor, states: tuple[Tensor, ...] | None, lengths: Any
    ) -> tuple[Tensor, Any]:
        """x (T, B, D) -> (T, B, directions * P), and the state."""
        if lengths is not None:
            lengths = Tensor(sequence_lengths(type(self).__name__, lengths, x, *x.shape[:2]))
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in range(self.directions):
                index = layer * self.directions + reverse
                first = (None, None) if states is None else tuple(s[index] for s in states)
                names = self._usual(0) | self._further()
                weights = {n: getattr(self, self._full_name(n, layer, reverse)) for n in names}
                y, *ends = self._run(x, weights, first, lengths, bool(reverse))
                outputs.append(y)
                last.append(tuple(ends))
            x = outputs[0] if self.directions == 1 else F.concatenate(outputs, -1)
            if layer < self.num_layers - 1 and self.training and self.dropout:
                dropout = F.locked_dropout if self.locked_dropout else F.dropout
                x = dropout(x, self.dropout)
        state = tuple(F.stack(ends) for ends in zip(*last, strict=True))
        return x, state if self.has_cell else state[0]

    def extra_repr(self) -> str:
        """The arguments that are not defaults."""
        defaults = {
            "num_layers": 1, "batch_first": False, "dropout": 0, "bidirectional": False,
            "locked_dropout": False, "nonlinearity": "tanh", "proj_size": 0, "peepholes": False,
            "reset_after": True,
        }  # fmt: skip
        given = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in defaults.items():
            value = getattr(self, name, default)  # a kind's own are on that kind alone
            given += [f"{name}={value!r}"] if value != default else []
        return ", ".join(given + ([] if self.bias else ["bias=False"]))

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """The products of every step, row, layer and direction."""
        x = inputs[0].padded if isinstance(inputs[0], PackedSequence) else inputs[0]
        G, P = self.gates * self.hidden_size, self.output_size
        features = self.input_size + (self.num_layers - 1) * P * self.directions
        each = G * (features + self.num_layers * P) + self.num_layers * self._own_work()
        return int(math.prod(x.shape[:-1]) * self.directions * each)


def _described(hx: Any) -> str:
    if isinstance(hx, (tuple, list)):
        return f"a {type(hx).__name__} of ({', '.join(map(_described, hx))})"
    return f"a tensor {hx.shape}" if isinstance(hx, Tensor) else f"a {type(hx).__name__}"


class RNN(RecurrentBase):
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu (Elman 1990).

    `dropout` between layers, with `locked_dropout` the same elements at every step.
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        locked_dropout: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            locked_dropout, None, device, dtype,
        )  # fmt: skip
        self.nonlinearity = one_of("RNN", "nonlinearity", nonlinearity, ("tanh", "relu"))

    def _further(self) -> Shapes:
        return {}

    def _run(self, x, weights, first, lengths, reverse):  # type: ignore[no-untyped-def]
        options = {"lengths": lengths, "reverse": reverse, "nonlinearity": self.nonlinearity}
        return F.rnn(x, **weights, h0=first[0], **options)

    def _own_work(self) -> int:
        return 0


class LSTM(RecurrentBase):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), gates i, f, g, o.

    `proj_size` > 0: outputs are W_hr times the cell's (Sak et al. 2014). `peepholes`: the gates see
    the cell (Gers and Schmidhuber 2000), parameters ``weight_peephole_l0`` (3, hidden_size) for i,
    f, o. `dropout` between layers, with `locked_dropout` the same elements at every step (Gal and
    Ghahramani 2016).
    """

    gates = 4
    has_cell = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peepholes: bool = False,
        locked_dropout: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
            raise ValueError(
                f"LSTM: proj_size={proj_size!r}, expected 0 for none or fewer than the "
                f"{hidden_size} hidden units"
            )
        self.proj_size, self.peepholes = proj_size, bool(peepholes)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            locked_dropout, proj_size or None, device, dtype,
        )  # fmt: skip

    def _further(self) -> Shapes:
        H = self.hidden_size
        projection = {"weight_hr": (self.proj_size, H)} if self.proj_size else {}
        return projection | ({"weight_peephole": (3, H)} if self.peepholes else {})

    def _run(self, x, weights, first, lengths, reverse):  # type: ignore[no-untyped-def]
        weights["peephole"] = weights.pop("weight_peephole", None)
        return F.lstm(x, **weights, h0=first[0], c0=first[1], lengths=lengths, reverse=reverse)

    def _own_work(self) -> int:
        return self.proj_size * self.hidden_size + 3 * self.hidden_size * self.peepholes


class GRU(RecurrentBase):
    """Gated recurrent unit (Cho et al. 2014), gates r, z, n.

    With `reset_after`, as in PyTorch, the reset gate multiplies W_hn h + b_hn, otherwise h.
    `dropout` between layers, with `locked_dropout` the same elements at every step.
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        locked_dropout: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            locked_dropout, None, device, dtype,
        )  # fmt: skip
        self.reset_after = bool(reset_after)

    def _further(self) -> Shapes:
        return {}

    def _run(self, x, weights, first, lengths, reverse):  # type: ignore[no-untyped-def]
        options = {"lengths": lengths, "reverse": reverse, "reset_after": self.reset_after}
        return F.gru(x, **weights, h0=first[0], **options)

    def _own_work(self) -> int:
        return 0


def detach_state(state: Any) -> Any:
    """A state, or nested tuples of them, cut off from the graph: between the windows of a long
    sequence, so that gradients go back to the window's start only (truncated back-propagation).

        state = None
        for x, y in windows:
            output, state = net(x, detach_state(state))
    """
    if isinstance(state, (tuple, list)):
        parts = map(detach_state, state)
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state.detach() if isinstance(state, Tensor) else state
