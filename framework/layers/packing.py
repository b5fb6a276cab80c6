"""Sequences of different lengths in one batch: padded, packed, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from framework import functional as F
from framework.autograd import Tensor
from framework.functional.recurrent import sequence_lengths
from kernels.arrays import to_numpy


class PackedSequence(NamedTuple):
    """A batch with the lengths of its rows, for a recurrent layer.

    Unlike PyTorch's it keeps the padding, which the kernels skip by the lengths, and the rows'
    order: nothing is sorted or gathered.
    """

    #: (T, B, *), steps first
    padded: Tensor
    #: (B,), int64
    lengths: Tensor


def pack_padded_sequence(
    x: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = False
) -> PackedSequence:
    """`x` (T, B, *), or (B, T, *) with `batch_first`, cut to the longest of `lengths` (B,).

    Rows may come in any order; with `enforce_sorted` those that are not longest first are an error.
    """
    if not isinstance(x, Tensor) or x.ndim < 2:
        given = x.shape if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"pack_padded_sequence: input is {given}, expected at least two axes")
    x = x.transpose(0, 1) if batch_first else x
    known = sequence_lengths("pack_padded_sequence", lengths, x, *x.shape[:2])
    here = to_numpy(known)  # on CUDA this waits for the device
    if enforce_sorted and (here[:-1] < here[1:]).any():
        raise ValueError(
            f"pack_padded_sequence: lengths {here.tolist()} are not sorted, longest first; "
            "enforce_sorted=False takes them in any order"
        )
    return PackedSequence(x[: int(here.max(initial=0))], Tensor(known))


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The padded batch, (T, B, *) or (B, T, *), and the lengths (B,).

    T is the longest length, or `total_length`; beyond its length a row is `padding_value`.
    """
    if not isinstance(sequence, PackedSequence):
        raise TypeError(
            f"pad_packed_sequence: expected a PackedSequence, got a {type(sequence).__name__}"
        )
    x, lengths = sequence
    T = x.shape[0]
    if total_length is not None and total_length < T:
        raise ValueError(
            f"pad_packed_sequence: total_length={total_length}, the longest row has {T} steps"
        )
    if total_length is not None:
        x = F.pad(x, [(0, total_length - T), *[(0, 0)] * (x.ndim - 1)])
    steps = x.device.module.arange(x.shape[0])[:, None]
    live = (steps < lengths.data[None]).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    x = F.where(Tensor(live), x, padding_value)
    return x.transpose(0, 1) if batch_first else x, lengths


def pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0
) -> Tensor:
    """Tensors (T_b, *) of different lengths as one (T, B, *), or (B, T, *)."""
    if not sequences:
        raise ValueError("pad_sequence: no sequences")
    T = max(s.shape[0] for s in sequences)
    padded = [
        F.pad(s, [(0, T - s.shape[0]), *[(0, 0)] * (s.ndim - 1)], padding_value) for s in sequences
    ]
    return F.stack(padded, 0 if batch_first else 1)


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = False) -> PackedSequence:
    """Tensors (T_b, *) of different lengths, packed."""
    lengths = [s.shape[0] for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)
