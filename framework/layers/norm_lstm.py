"""LSTM with layer norm inside its cell (Ba, Kiros and Hinton 2016)."""

from __future__ import annotations

from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.layers import init
from framework.layers.recurrent import RecurrentBase, Shapes


class LayerNormLSTM(RecurrentBase):
    """i, f, g, o from norm(W_ih x) + norm(W_hh h) + b; h = o tanh(norm(c)).

    Parameters beside the weights: scales ``norm_ih_l0`` and ``norm_hh_l0`` (4 hidden_size,), scale
    and shift ``norm_c_l0`` and ``norm_c_bias_l0`` (hidden_size,), which start as 1 and 0; the
    shifts of the other two are the biases. Made of single operations at every step: a pass of
    64 steps, 32 rows, 128 units takes 6 times as long as that of `LSTM`.
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
        *,
        eps: float = 1e-5,
        locked_dropout: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.eps = eps
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            locked_dropout, None, device, dtype,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Draw new weights; norms begin with scale 1 and shift 0."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("norm"):
                init.constant_(parameter, 0.0 if "bias" in name else 1.0)

    def _further(self) -> Shapes:
        G, H = 4 * self.hidden_size, self.hidden_size
        return {"norm_ih": (G,), "norm_hh": (G,), "norm_c": (H,), "norm_c_bias": (H,)}

    def _run(self, x, weights, first, lengths, reverse):  # type: ignore[no-untyped-def]
        (T, B, _), H = x.shape, self.hidden_size
        zeros = Tensor(x.device.module.zeros((B, H), x.dtype))
        h, c = (zeros if s is None else s for s in first)
        bias = weights["bias_ih"] + weights["bias_hh"] if self.bias else None
        inputs = F.linear(x, weights["weight_ih"])  # (T, B, 4 H)
        inputs = F.layer_norm(inputs, 4 * H, weights["norm_ih"], bias, self.eps)
        outputs: list[Any] = [None] * T
        for t in reversed(range(T)) if reverse else range(T):
            z = F.linear(h, weights["weight_hh"])  # (B, 4 H)
            z = inputs[t] + F.layer_norm(z, 4 * H, weights["norm_hh"], None, self.eps)
            i, f, g, o = z.chunk(4, -1)
            new = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
            normed = F.layer_norm(new, H, weights["norm_c"], weights["norm_c_bias"], self.eps)
            y = F.sigmoid(o) * F.tanh(normed)
            if lengths is None:
                h, c, outputs[t] = y, new, y
            else:
                live = Tensor((lengths.data > t)[:, None])
                h, c, outputs[t] = F.where(live, y, h), F.where(live, new, c), F.where(live, y, 0.0)
        return F.stack(outputs), h, c

    def _own_work(self) -> int:
        return 0
