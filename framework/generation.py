"""Text from a language model, token by token.

    for token in fw.generate(model, [18, 47, 56], tokens=100, temperature=0.8, seed=1): ...
    for piece in fw.generate_text(model, tokenizer, "ROMEO:", tokens=100): print(piece, end="")

A language model is a Module with three methods:

    forward(ids) -> logits
        Token ids, int64 (B, T), to logits (B, T, V): those at place t, which depend on ids up to t
        only, are of the token at t + 1. This is what is trained.
    start(batch) -> state
        The state before the first token, for `batch` rows, on the model's device: Tensors, or
        tuples, lists and dicts of them; None where there is nothing yet.
    step(ids, state) -> (logits, state)
        Read ids (B, T), T >= 1, on after what the state has read: logits (B, T, V), or (B, 1, V)
        of the last place alone, and the state after them. ``step(ids, start(B))[0]`` is
        ``forward(ids)``; the prompt goes in as one step, and then one token after the other: a
        recurrent model's state is its hidden state, that of a transformer its cache of keys and
        values. Nothing is computed twice.

A model that can read no more than so many tokens from its start (a table of positions) says so as
``model.block``. When its state is full, `generate` starts anew with the last half of that many.

A recurrent model that is trained on streams takes another input, ``forward(ids, fresh)``: see
`framework.layers.Carry`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import kernels.random
from framework.autograd import Tensor, no_grad
from framework.backend.device import to_device
from framework.data.errors import DataError
from framework.data.tokenizers import Tokenizer
from framework.layers import Module

Floats = np.ndarray[Any, np.dtype[np.float64]]


class LogitsError(ValueError):
    """The model's logits hold NaN or infinity."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))


def _integer(name: str, value: Any, least: int, otherwise: str = "") -> int:
    """`value`, if it is an integer of whatever type."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, (bool, np.bool_)) or number < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}{otherwise}")
    return number


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits.

    Args:
        temperature: the logits are divided by it; 0 takes the highest (of equal ones the first).
        top_k: only so many of the most probable tokens.
        top_p: only the most probable tokens that together have this probability (nucleus sampling,
            Holtzman et al. 2020), at least one.
        repetition_penalty: logits of tokens that are there already are divided by it where they are
            positive, else multiplied (Keskar et al. 2019); 1: none.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and 0 <= self.temperature < float("inf")):
            raise ValueError(f"temperature is {self.temperature!r}, expected 0 or more")
        if self.top_k is not None:
            k = _integer("top_k", self.top_k, 1, ", or None")
            object.__setattr__(self, "top_k", k)  # of a frozen one
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p is {self.top_p!r}, expected above 0 to 1, or None")
        penalty = self.repetition_penalty
        if not (_is_number(penalty) and 0 < penalty < float("inf")):
            raise ValueError(f"repetition_penalty is {penalty!r}, expected above 0")

    def probabilities(self, logits: np.ndarray[Any, Any], seen: Sequence[int] = ()) -> Floats:
        """Of every token, float64 (V,), after the tokens `seen`; `logits` (V,)."""
        scores = np.asarray(logits, np.float64)
        if scores.ndim != 1 or not scores.size:
            raise ValueError(f"logits have shape {scores.shape}, expected (vocabulary,)")
        if np.isnan(scores).any() or scores.max() == np.inf:
            raise LogitsError("the logits hold NaN or infinity: the model has not learnt, or broke")
        if self.repetition_penalty != 1 and len(seen):
            there = np.unique(np.asarray(seen, np.int64))
            x = scores[there]
            scores = scores.copy()
            scores[there] = np.where(
                x > 0, x / self.repetition_penalty, x * self.repetition_penalty
            )
        if self.temperature == 0:
            return np.eye(1, scores.size, int(scores.argmax()))[0]
        with np.errstate(over="ignore"):  # a tiny temperature: -inf, of which exp is 0
            p = np.exp((scores - scores.max()) / self.temperature)
        if self.top_k is not None and self.top_k < p.size:
            least = np.partition(scores, -self.top_k)[-self.top_k]
            equal = np.flatnonzero(scores == least)
            p[scores < least] = 0
            p[equal[self.top_k - np.count_nonzero(scores > least) :]] = 0  # the first ones stay
        p /= p.sum()
        if self.top_p is not None:
            # All others together have less than 1 - top_p: no need to sort a whole vocabulary.
            likely = np.flatnonzero(p >= (1 - self.top_p) / p.size)
            order = likely[(-p[likely]).argsort(kind="stable")]  # the most probable first
            ahead = np.cumsum(p[order]) - p[order]
            nucleus = order[ahead < self.top_p]
            p, found = np.zeros(p.size), p[nucleus]
            p[nucleus] = found / found.sum()
        return p

    def choose(
        self, logits: np.ndarray[Any, Any], seed: int, position: int, seen: Sequence[int] = ()
    ) -> int:
        """A token drawn with these probabilities; the draw depends on (seed, position) alone."""
        p = self.probabilities(logits, seen)
        draws = np.empty(2, np.float64)
        kernels.random.uniform(draws, seed, position)
        u = draws[0] + draws[1] * 2.0**-24  # 48 random bits: rare tokens of a large vocabulary
        up_to = np.cumsum(p)
        token = int(np.searchsorted(up_to, u * up_to[-1], side="right"))
        return min(token, int(np.flatnonzero(p)[-1]))


def generate(
    model: Module,
    prompt: Sequence[int] | np.ndarray[Any, Any],
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    repetition_penalty: float = 1.0,
) -> Iterator[int]:
    """The `tokens` tokens with which `model` goes on after `prompt`, one at a time; see `Sampling`.

    The choice is made on the host in float64 from Philox draws: one seed, one text, on every
    device, up to what the rounding of the logits decides. The model is in evaluation mode while it
    computes.

    Raises:
        ValueError: the prompt is empty, or an argument is out of range.
        LogitsError: with a token whose logits hold NaN or infinity.
        TypeError: the model has no `start` and `step`.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    if not (hasattr(model, "start") and hasattr(model, "step")):
        raise TypeError(
            f"{type(model).__name__} is no language model: it has no start(batch) and "
            "step(ids, state), see framework.generation"
        )
    read = np.asarray(prompt)
    if read.ndim != 1 or not read.size or read.dtype.kind not in "iu":
        raise ValueError(
            f"prompt is {read.dtype} {read.shape}, expected at least one token: integers (n,)"
        )
    tokens, seed = _integer("tokens", tokens, 0), _integer("seed", seed, 0)
    return _continued(model, read.astype(np.int64).tolist(), tokens, sampling, seed)


def _continued(
    model: Any, text: list[int], tokens: int, sampling: Sampling, seed: int
) -> Iterator[int]:
    """`text` grows by what is yielded."""
    block = getattr(model, "block", None)
    device = next(model.parameters()).device
    state, unread, held = None, text if block is None else text[-block:], 0
    for position in range(tokens):
        if position == 0 or (block is not None and held + len(unread) > block):
            with inference(model), device.context():
                state, held = model.start(1), 0
            if position:
                unread = text[-max(1, block // 2) :]
        ids = Tensor(to_device(np.array([unread], np.int64), device))
        with inference(model), device.context():
            logits, state = model.step(ids, state)
        held += len(unread)
        last = logits[0, -1].numpy()  # waits for the device: the token is needed here
        token = sampling.choose(last, seed, position, text)
        text.append(token)
        unread = [token]
        yield token


def generate_text(
    model: Module, tokenizer: Tokenizer, prompt: str, tokens: int, **options: Any
) -> Iterator[str]:
    """The text with which `model` goes on after `prompt`, piece by piece; options as `generate` has
    them.

    Raises:
        DataError: the prompt has characters outside the vocabulary, or is empty.
    """
    ids = tokenizer.encode(prompt)
    if not len(ids):
        raise DataError(f"the prompt {prompt!r} has no tokens, expected at least one token")
    return tokenizer.stream(generate(model, ids, tokens, **options), ids.tolist())


@contextmanager
def inference(model: Module) -> Iterator[None]:
    """Within the block: evaluation mode, and no gradients."""
    modes = [(m, m.training) for m in model.modules()] if model.training else []
    if modes:
        model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
