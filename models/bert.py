"""BERT: an encoder that reads both ways (Devlin et al. 2019), with a head for hidden tokens, for
classes, or for one vector of a sentence (Reimers & Gurevych 2019).

model = BERT(BERTConfig(vocabulary=30522))
inputs, target = hide_tokens(ids, mask_id=103, vocabulary=30522, seed=0)
loss = model.loss(inputs, target)                         # of the hidden tokens
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import framework as fw
from framework import functional as F, layers
from framework.autograd import Parameter, Tensor
from framework.data import draws
from models import hugging_face
from models.hugging_face import Place, expect_values, one, one_dropout, several
from models.transformer import (
    Activation,
    BlockConfig,
    Blocks,
    activated,
    check_choice,
    check_integers,
    start_weights,
)

Head = Literal["masked", "classification", "embedding"]
HEADS = ("masked", "classification", "embedding")


@dataclass(frozen=True)
class BERTConfig:
    """What the model is made of, BERT-Base as it stands; ValueError names a setting that cannot be.

    Args:
        block: the most tokens that it reads.
        types: kinds of tokens, of the first and the second of two sentences say.
        head: masked: logits of every token; classification: of `classes`; embedding: the mean.
    """

    vocabulary: int = 30522
    block: int = 512
    types: int = 2
    depth: int = 12
    heads: int = 12
    width: int = 768
    hidden: int | None = None
    activation: Activation = "gelu"
    dropout: float = 0.1
    eps: float = 1e-12
    head: Head = "masked"
    classes: int = 2

    def __post_init__(self) -> None:
        check_integers(self, "vocabulary", "block", "types", "depth", "classes")
        check_choice("head", self.head, HEADS)
        self.blocks()
        check_choice("activation", self.activation, tuple(_ACTIVATIONS.values()))

    def blocks(self) -> BlockConfig:
        """The configuration of the blocks."""
        return BlockConfig(
            self.width, self.heads, None, self.hidden, self.activation, "layer", self.eps,
            dropout=self.dropout, post=True,
        )  # fmt: skip


class BERT(layers.Module):
    """Token ids (B, T) -> logits (B, T, vocabulary), or (B, classes), or vectors (B, width)."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config, self.block, C = config, config.block, config.width
        self.tokens = layers.Embedding(config.vocabulary, C)
        self.places = layers.Embedding(config.block, C)
        self.types = layers.Embedding(config.types, C)
        self.norm = config.blocks().new_norm()
        self.dropout = config.blocks().new_dropout()
        self.dense = self.dense_norm = self.output = None
        if config.head != "embedding":
            self.dense = layers.Linear(C, C)
        if config.head == "masked":
            self.dense_norm = layers.LayerNorm(C, config.eps)
            self.output_bias = Parameter(fw.zeros(config.vocabulary))  # the weight is the table
        elif config.head == "classification":
            self.output = layers.Linear(C, config.classes)
        start_weights(self)
        self.blocks = Blocks(config.blocks(), config.depth)

    def forward(
        self, ids: Tensor, lengths: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """Rows end at `lengths` (B,), padding follows; `types` (B, T), else all are of kind 0."""
        x, kind = self.features(ids, lengths, types), self.config.head
        if kind == "embedding":
            return mean_of_rows(x, lengths)
        if kind == "masked":
            return F.linear(self._said(x), self.tokens.weight, self.output_bias)  # (B, T, V)
        first = F.tanh(self.dense(x[:, 0]))  # (B, C)
        return self.output(self.dropout(first))

    def loss(self, ids: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The mean cross-entropy: of tokens (B, T), of which those that are -100 do not count, or
        of classes (B,). No logits of all tokens are in memory, and on the CPU the head reads only
        the places that count.
        """
        if self.config.head != "masked":
            return F.cross_entropy(self(ids, lengths), target)
        x = self.features(ids, lengths)
        if target.shape != ids.shape:
            raise ValueError(
                f"BERT: target has shape {target.shape}, ids have {ids.shape}: expected one target "
                "for each token"
            )
        x, target = x.reshape(-1, x.shape[-1]), target.reshape(-1)  # (B T, C), (B T,)
        if target.device.kind == "cpu":  # on CUDA to look which they are would wait for the device
            places = np.flatnonzero(target.data != -100)
            if len(places):
                x, target = F.embedding(Tensor(places), x), target[places]
        return F.linear_cross_entropy(self._said(x), self.tokens.weight, target, self.output_bias)

    def features(
        self, ids: Tensor, lengths: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """What the heads read, (B, T, C)."""
        if ids.ndim != 2 or ids.shape[1] > self.block:
            raise ValueError(
                f"BERT: ids have shape {ids.shape}, expected (B, T) with at most "
                f"block={self.block} tokens"
            )
        x = F.embedding_at_positions(ids, self.tokens.weight, self.places.weight)  # (B, T, C)
        x = x + (self.types.weight[0] if types is None else self.types(types))
        return self.blocks(self.dropout(self.norm(x)), lengths=lengths)

    def _said(self, x: Tensor) -> Tensor:
        return self.dense_norm(activated(self.dense(x), self.config.activation))  # (..., C)

    # Hugging Face ---------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, folder: str | Path, head: Head | None = None) -> BERT:
        """A BERT of the `transformers` library, in evaluation mode; `head` None is the one that
        config.json names, the mean of the tokens where it names none. Its dropout is
        hidden_dropout_prob, in all places; a warning is logged where that of attention differs.

        Raises:
            FileError: another architecture; a file or a tensor is missing, damaged or of another
                shape.
        """
        config = hugging_face.read_config(folder, ("bert",))
        model = hugging_face.build(folder, lambda: _read(config, head), cls)
        model.load_pretrained(folder)
        return model.eval()

    def load_pretrained(self, folder: str | Path) -> None:
        """Fill this model from such a folder; raises as `from_pretrained`, the model is then as it
        was.
        """
        hugging_face.read_config(folder, ("bert",))
        # other heads, and what is the table of tokens again
        spare = r"^cls\.|\.pooler\.|classifier\.|position_ids$"
        hugging_face.load(self, folder, self._places(), "bert.", spare)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `transformers` reads."""
        hugging_face.save(self, folder, self._places(), _written(self.config))

    def _places(self) -> Iterable[Place]:
        C = self.config.width
        for ours, theirs in (("tokens", "word"), ("places", "position"), ("types", "token_type")):
            yield Place(f"{ours}.weight", (f"bert.embeddings.{theirs}_embeddings.weight",))
        yield from one("norm", "bert.embeddings.LayerNorm")
        for i in range(self.config.depth):
            ours, theirs = f"blocks.each.{i}", f"bert.encoder.layer.{i}"
            qkv = [f"{theirs}.attention.self.{x}" for x in ("query", "key", "value")]
            yield from several(f"{ours}.attention.qkv", qkv, (C, C, C))
            yield from one(f"{ours}.attention.out", f"{theirs}.attention.output.dense")
            yield from one(f"{ours}.norm1", f"{theirs}.attention.output.LayerNorm")
            yield from one(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
            yield from one(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
            yield from one(f"{ours}.norm2", f"{theirs}.output.LayerNorm")
        if self.config.head == "masked":
            yield from one("dense", "cls.predictions.transform.dense")
            yield from one("dense_norm", "cls.predictions.transform.LayerNorm")
            yield Place("output_bias", ("cls.predictions.bias",))
        else:
            yield from one("dense", "bert.pooler.dense")
            yield from one("output", "classifier")


def mean_of_rows(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean (B, C) of x (B, T, C) over the rows before `lengths` (B,)."""
    if lengths is None:
        return x.mean(1)
    xp, n = x.device.module, lengths.data[:, None]
    inside = xp.arange(x.shape[1]) < n  # (B, T)
    share = Tensor((inside / xp.maximum(n, 1)).astype(x.dtype))
    return (share.unsqueeze(1) @ x).squeeze(1)  # (B, 1, T) @ (B, T, C)


def hide_tokens(
    ids: np.ndarray[Any, Any], mask_id: int, vocabulary: int, seed: int, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """What BERT learns from: ids (B, T) with some of them hidden, and those, -100 elsewhere.

    Of the tokens a `share` is to be said: 80% of them become `mask_id`, 10% any token, 10% stay
    (Devlin et al. 2019, section 3.1).
    """
    ids = np.asarray(ids, np.int64)
    chosen = draws.uniform(ids.shape, seed, "hidden tokens") < share
    how = draws.uniform(ids.shape, seed, "how they are hidden")
    other = draws.integers(vocabulary, ids.size, seed, "other tokens").reshape(ids.shape)
    inputs = np.where(chosen & (how < 0.8), mask_id, ids)
    inputs = np.where(chosen & (how >= 0.9), other, inputs)
    return Tensor(inputs), Tensor(np.where(chosen, ids, -100))


_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}


def _read(config: dict[str, Any], head: Head | None) -> BERTConfig:
    expect_values(config, position_embedding_type="absolute", is_decoder=False)
    expect_values(config, tie_word_embeddings=True)
    activation = config.get("hidden_act", "gelu")
    check_choice("hidden_act", activation, tuple(_ACTIVATIONS))
    named = " ".join(config.get("architectures") or ())
    if head is None:
        head = "embedding"
        if "MaskedLM" in named or "PreTraining" in named:
            head = "masked"
        elif "SequenceClassification" in named:
            head = "classification"
    return BERTConfig(
        vocabulary=config["vocab_size"],
        block=config["max_position_embeddings"],
        types=config.get("type_vocab_size", 2),
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        width=config["hidden_size"],
        hidden=config["intermediate_size"],
        activation=_ACTIVATIONS[activation],
        dropout=one_dropout(config, "hidden_dropout_prob", "attention_probs_dropout_prob"),
        eps=config.get("layer_norm_eps", 1e-12),
        head=head,
        classes=len(config.get("id2label") or (0, 1)),
    )


def _written(c: BERTConfig) -> dict[str, Any]:
    kinds = {
        "masked": "BertForMaskedLM",
        "classification": "BertForSequenceClassification",
        "embedding": "BertModel",
    }
    theirs = next(k for k, v in _ACTIVATIONS.items() if v == c.activation)
    return {
        "architectures": [kinds[c.head]],
        "model_type": "bert",
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.block,
        "type_vocab_size": c.types,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "hidden_size": c.width,
        "intermediate_size": c.hidden or 4 * c.width,
        "hidden_act": theirs,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
        "layer_norm_eps": c.eps,
        "id2label": {str(i): f"LABEL_{i}" for i in range(c.classes)},
        "label2id": {f"LABEL_{i}": i for i in range(c.classes)},
    }
