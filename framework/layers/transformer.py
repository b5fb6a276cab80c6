"""TransformerEncoderLayer, TransformerDecoderLayer, stacks of them, and Transformer (Vaswani et al.
2017). Arguments and parameter names are PyTorch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from framework import functional as F
from framework.autograd import Tensor, tensor
from framework.backend.device import default_device
from framework.functional.check import tensor_argument
from framework.layers import init
from framework.layers.attention import MultiheadAttention
from framework.layers.checks import positive_integer
from framework.layers.containers import ModuleList
from framework.layers.dropout import Dropout
from framework.layers.linear import Linear
from framework.layers.module import Module
from framework.layers.normalization import LayerNorm

Activation = str | Callable[[Tensor], Tensor]


def _activation(layer: str, given: Activation) -> Callable[[Tensor], Tensor]:
    if callable(given):
        return given
    if given not in ("relu", "gelu"):
        raise ValueError(f"{layer}: activation={given!r}, expected 'relu', 'gelu' or a function")
    function: Callable[[Tensor], Tensor] = getattr(F, given)
    return function


class _Layer(Module):
    """What both kinds of layers share: self-attention and two linear layers, each added to what
    goes in, and normalised after the sum, or with `norm_first` before the part.
    """

    norms = 2

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        place = (device, dtype)

        def attention() -> MultiheadAttention:
            options: dict[str, Any] = {"device": device, "dtype": dtype}
            return MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, **options
            )

        self.norm_first = norm_first
        self.self_attn = attention()
        if self.norms == 3:
            self.multihead_attn = attention()
        self.linear1 = Linear(d_model, dim_feedforward, bias, *place)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, *place)
        for i in range(1, self.norms + 1):
            norm = LayerNorm(d_model, layer_norm_eps, True, bias, *place)
            setattr(self, f"norm{i}", norm)
            setattr(self, f"dropout{i}", Dropout(dropout))
        self.activation = _activation(type(self).__name__, activation)

    def _add(self, i: int, x: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        """x and what `part` makes of it, normalised before or after by norm i."""
        norm, dropout = getattr(self, f"norm{i}"), getattr(self, f"dropout{i}")
        if self.norm_first:
            return x + dropout(part(norm(x)))
        return norm(x + dropout(part(x)))  # type: ignore[no-any-return]

    def _attend(
        self, x: Tensor, mask: Tensor | None, padding: Tensor | None, causal: bool
    ) -> Tensor:
        return self.self_attn(x, x, x, padding, False, mask, is_causal=causal)[0]  # type: ignore[no-any-return]

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(x)))
        return self.linear2(hidden)  # type: ignore[no-any-return]


class TransformerEncoderLayer(_Layer):
    """Self-attention, then two linear layers with an activation between.

    src (T, B, d_model), or (B, T, d_model) with ``batch_first``; boolean masks are True where a key
    is not seen, as in `MultiheadAttention`.
    """

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Shape of src."""
        x = self._add(1, src, lambda x: self._attend(x, src_mask, src_key_padding_mask, is_causal))
        return self._add(2, x, self._feed_forward)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to `memory` (what an encoder made), and two linear layers."""

    norms = 3

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Shape of tgt."""

        def cross(x: Tensor) -> Tensor:
            y, _ = self.multihead_attn(
                x, memory, memory, memory_key_padding_mask, False, memory_mask,
                is_causal=memory_is_causal,
            )  # fmt: skip
            return y  # type: ignore[no-any-return]

        x = self._add(
            1, tgt, lambda x: self._attend(x, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        )
        return self._add(3, self._add(2, x, cross), self._feed_forward)


class _Stack(Module):
    """`num_layers` copies of a layer, with the same weights to begin with, and a norm behind."""

    def __init__(self, layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        n = positive_integer(type(self).__name__, "num_layers", num_layers)
        self.layers = ModuleList([copy.deepcopy(layer) for _ in range(n)])
        self.norm = norm

    def _run(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, *args, **options)
        return x if self.norm is None else self.norm(x)


class TransformerEncoder(_Stack):
    """Copies of a `TransformerEncoderLayer`, one after another."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Shape of src."""
        return self._run(src, mask, src_key_padding_mask, is_causal)


class TransformerDecoder(_Stack):
    """Copies of a `TransformerDecoderLayer`, one after another."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Shape of tgt."""
        masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        return self._run(tgt, memory, *masks, tgt_is_causal, memory_is_causal)


class Transformer(Module):
    """An encoder and a decoder that attends to what it makes, without embeddings and output layer.

    Weights of more than one axis start as Glorot's uniform. `custom_encoder` and `custom_decoder`
    are modules in place of the stacks, called with the arguments that those take.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, custom in (("encoder", custom_encoder), ("decoder", custom_decoder)):
            if custom is not None and not isinstance(custom, Module):
                raise TypeError(
                    f"Transformer: custom_{name} is a {type(custom).__name__}, expected a Module"
                )
        shared = (
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first,
            norm_first, bias, device, dtype,
        )  # fmt: skip

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, True, bias, device, dtype)

        self.encoder = custom_encoder or TransformerEncoder(
            TransformerEncoderLayer(*shared), num_encoder_layers, norm()
        )
        self.decoder = custom_decoder or TransformerDecoder(
            TransformerDecoderLayer(*shared), num_decoder_layers, norm()
        )
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for p in self.parameters():
            if p.ndim > 1:
                init.xavier_uniform_(p)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool = False,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """src (S, B, d_model) and tgt (T, B, d_model), or the batch first -> the shape of tgt."""
        for name, x in (("src", src), ("tgt", tgt)):
            tensor_argument("Transformer", name, x)
            if x.ndim not in (2, 3) or x.shape[-1] != self.d_model:
                raise ValueError(
                    f"Transformer: {name} has shape {x.shape}, expected 2 or 3 axes, the last of "
                    f"{self.d_model}"
                )
        batch = 0 if self.batch_first else 1
        if src.ndim == tgt.ndim == 3 and src.shape[batch] != tgt.shape[batch]:
            raise ValueError(
                f"Transformer: src has shape {src.shape}, tgt {tgt.shape}: axis {batch}, the "
                "batch, must be equal"
            )
        memory = self.encoder(
            src,
            mask=src_mask,
            src_key_padding_mask=src_key_padding_mask,
            is_causal=src_is_causal,
        )
        return self.decoder(  # type: ignore[no-any-return]
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )

    @staticmethod
    def generate_square_subsequent_mask(size: int, device: Any = None, dtype: Any = None) -> Tensor:
        """(size, size): -inf where a key is later than the query, else 0; to be added.

        ``is_causal=True`` hides the same without memory for it.
        """
        n = positive_integer("generate_square_subsequent_mask", "size", size)
        later = np.triu(np.full((n, n), -np.inf, np.float32), 1)
        return tensor(later, dtype=dtype, device=device or default_device())
