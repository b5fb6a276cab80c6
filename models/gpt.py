"""GPT: a language model of causal blocks (Radford et al. 2019), and with other settings the Llama
kind (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, grouped queries.

model = GPT(GPTConfig(vocabulary=65, block=64, depth=4, heads=4, width=128))
logits = model(ids)                                       # (B, T) -> (B, T, 65)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from framework import functional as F, layers
from framework.autograd import Tensor
from framework.layers import KVCache
from models import hugging_face
from models.hugging_face import Place, expect_values, one, one_dropout, several
from models.transformer import (
    ACTIVATIONS,
    Activation,
    BlockConfig,
    Blocks,
    check_choice,
    check_integers,
    new_caches,
    start_weights,
)

#: The sizes of GPT-2: depth, heads, width.
GPT2 = {"124M": (12, 12, 768), "355M": (24, 16, 1024), "774M": (36, 20, 1280), "XL": (48, 25, 1600)}


@dataclass(frozen=True)
class GPTConfig:
    """What the model is made of; ValueError names a setting that cannot be.

    Args:
        block: the most tokens that it reads from their start.
        groups: heads of keys and values, which queries share; None: as many as `heads`.
        hidden: the width within the feed-forward part; None: 4 `width`.
        rotary_base: of rotary positions, 10000 in Su et al. 2021.
        tied: the head is the table of tokens again.
        checkpoint: blocks are computed again in the backward pass, for less memory.
    """

    vocabulary: int = 65
    block: int = 64
    depth: int = 4
    heads: int = 4
    width: int = 128
    groups: int | None = None
    hidden: int | None = None
    dropout: float = 0.0
    bias: bool = False
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 10000.0
    activation: Activation = field(default="gelu_tanh", metadata={"choices": ACTIVATIONS})
    tied: bool = True
    checkpoint: bool = False

    of_data: ClassVar[tuple[str, ...]] = ("vocabulary", "block")

    def __post_init__(self) -> None:
        check_integers(self, "vocabulary", "block", "depth")
        check_choice("positions", self.positions, ("learned", "rotary"))
        self.blocks()
        if not isinstance(self.tied, bool):
            raise ValueError(f"tied is {self.tied!r}, expected True or False")
        base = self.rotary_base
        if not isinstance(base, (int, float)) or not 0 < base < float("inf"):
            raise ValueError(f"rotary_base is {self.rotary_base!r}, expected above 0")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"heads is {self.heads}: rotary positions need heads of an even width, width="
                f"{self.width} makes {self.width // self.heads}"
            )

    def blocks(self) -> BlockConfig:
        """The configuration of the blocks."""
        return BlockConfig(
            self.width, self.heads, self.groups, self.hidden, self.activation, self.norm,
            self.eps, self.bias, self.dropout, causal=True, checkpoint=self.checkpoint,
        )  # fmt: skip

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **overrides: Any
    ) -> GPTConfig:
        """The configuration for windows of `shape` (T,) and a vocabulary of `classes` tokens."""
        return cls(vocabulary=classes or 1, block=shape[0], **overrides)

    @classmethod
    def gpt2(cls, size: str = "124M", **overrides: Any) -> GPTConfig:
        """One of GPT-2's sizes: 124M, 355M, 774M, XL (1.5 billion parameters)."""
        check_choice("size", size, tuple(GPT2))
        depth, heads, width = GPT2[size]
        fixed = {"depth": depth, "heads": heads, "width": width, "bias": True}
        return cls(**({"vocabulary": 50257, "block": 1024} | fixed | overrides))

    @classmethod
    def llama(cls, **settings: Any) -> GPTConfig:
        """RMS norm, rotary positions, SwiGLU, no biases, a head of its own; `hidden` is 8/3 `width`
        rounded up to a multiple of 8 unless given.
        """
        if "hidden" not in settings:
            settings["hidden"] = -(-settings.get("width", cls.width) // 3) * 8
        kind = {"norm": "rms", "positions": "rotary", "activation": "swiglu"}
        plain = {"bias": False, "tied": False}
        return cls(**(kind | plain | settings))


class GPT(layers.Module):
    """Token ids (B, T), T up to ``config.block`` -> logits (B, T, vocabulary) of the next ones."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, self.block = config, config.block
        self.tokens = layers.Embedding(config.vocabulary, config.width)
        self.places, rotary = None, None
        if config.positions == "learned":
            self.places = layers.Embedding(config.block, config.width)
        else:
            width = config.width // config.heads
            rotary = layers.RotaryPositions(config.block, width, config.rotary_base)
        self.dropout = config.blocks().new_dropout()
        self.head = None
        if not config.tied:
            self.head = layers.Linear(config.width, config.vocabulary, bias=False)
        start_weights(self)
        self.blocks = Blocks(config.blocks(), config.depth, rotary)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.features(ids), self._output_weight())  # (B, T, V)

    def loss(self, ids: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of `target` (B, T), without the logits in memory."""
        x, weight = self.features(ids), self._output_weight()
        return F.linear_cross_entropy(x, weight, target, label_smoothing=label_smoothing)

    def features(self, ids: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        """What the head reads, (B, T, C); with `caches` ids go on behind what those hold."""
        start = caches[0].length if caches else 0
        if ids.ndim != 2 or start + ids.shape[1] > self.block:
            after = f" after {start}" if start else ""
            raise ValueError(
                f"GPT: ids have shape {ids.shape}{after}, expected (B, T) with at most "
                f"block={self.block} tokens in all"
            )
        if self.places is None:
            x = self.tokens(ids)  # (B, T, C)
        else:
            x = F.embedding_at_positions(ids, self.tokens.weight, self.places.weight, start)
        return self.blocks(self.dropout(x), caches)

    def _output_weight(self) -> Tensor:
        return self.tokens.weight if self.head is None else self.head.weight  # (V, C)

    def start(self, batch: int) -> list[KVCache]:
        """Empty caches of keys and values."""
        return new_caches(self.blocks, batch, self.block)

    def step(self, ids: Tensor, caches: list[KVCache]) -> tuple[Tensor, list[KVCache]]:
        """Logits (B, 1, vocabulary) of the last place alone; `caches` grow in place."""
        last = self.features(ids, caches)[:, -1:]  # (B, 1, C)
        return F.linear(last, self._output_weight()), caches

    # Hugging Face ---------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GPT:
        """A GPT-2 or Llama of the `transformers` library, config.json and model.safetensors (or its
        index and parts), in evaluation mode. Of a GPT-2's dropouts it has resid_pdrop, in all
        places, and logs a warning where others differ.

        Raises:
            FileError: another architecture; a file or a tensor is missing, damaged or of another
                shape.
        """
        config = hugging_face.read_config(folder, tuple(_READ))
        read = _READ[config["model_type"]]
        model = hugging_face.build(folder, lambda: read(config), cls)
        model.load_pretrained(folder)
        return model.eval()

    def load_pretrained(self, folder: str | Path) -> None:
        """Fill this model from such a folder; raises as `from_pretrained`, the model is then as it
        was.
        """
        kind = self._layout()
        hugging_face.read_config(folder, (kind,))
        prefix, spare = _FILES[kind]
        if self.head is None:
            spare += r"|^(model\.|transformer\.)?lm_head\.weight$"  # the table again
        hugging_face.load(self, folder, self._places(), prefix, spare)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `transformers` reads."""
        config = _WRITTEN[self._layout()](self.config)
        hugging_face.save(self, folder, self._places(), config)

    def _layout(self) -> str:
        """gpt2 or llama; ValueError where it is neither's."""
        c = self.config
        kind = c.norm, c.positions, c.activation
        if kind == ("layer", "learned", "gelu_tanh") and c.bias and c.groups in (None, c.heads):
            return "gpt2"
        if kind == ("rms", "rotary", "swiglu"):
            return "llama"
        raise ValueError(
            f"{c} is neither GPT-2's layout (norm=layer, positions=learned, activation=gelu_tanh, "
            "bias=True, no groups) nor Llama's (norm=rms, positions=rotary, activation=swiglu)"
        )

    def _places(self) -> Iterable[Place]:
        c = self.config
        if self._layout() == "gpt2":
            yield Place("tokens.weight", ("transformer.wte.weight",))
            yield Place("places.weight", ("transformer.wpe.weight",))
            yield from one("blocks.norm", "transformer.ln_f")
            for i in range(c.depth):
                ours, theirs = f"blocks.each.{i}", f"transformer.h.{i}"
                yield from one(f"{ours}.norm1", f"{theirs}.ln_1")
                yield from one(f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", True)
                yield from one(f"{ours}.attention.out", f"{theirs}.attn.c_proj", True)
                yield from one(f"{ours}.norm2", f"{theirs}.ln_2")
                yield from one(f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc", True)
                yield from one(f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj", True)
        else:
            each = (c.groups or c.heads) * (c.width // c.heads)
            hidden = c.hidden or 4 * c.width
            yield Place("tokens.weight", ("model.embed_tokens.weight",))
            yield from one("blocks.norm", "model.norm")
            for i in range(c.depth):
                ours, theirs = f"blocks.each.{i}", f"model.layers.{i}"
                qkv = [f"{theirs}.self_attn.{x}_proj" for x in "qkv"]
                gated = [f"{theirs}.mlp.{x}_proj" for x in ("gate", "up")]
                yield from one(f"{ours}.norm1", f"{theirs}.input_layernorm")
                yield from several(f"{ours}.attention.qkv", qkv, (c.width, each, each))
                yield from one(f"{ours}.attention.out", f"{theirs}.self_attn.o_proj")
                yield from one(f"{ours}.norm2", f"{theirs}.post_attention_layernorm")
                yield from several(f"{ours}.feed_forward.up", gated, (hidden, hidden))
                yield from one(f"{ours}.feed_forward.down", f"{theirs}.mlp.down_proj")
        yield Place("head.weight", ("lm_head.weight",))


# config.json of the two ---------------------------------------------------------------------------

#: The prefix that names may lack, and what files may hold beyond a model's tensors.
_FILES = {
    "gpt2": ("transformer.", r"\.attn\.(masked_)?bias$"),
    "llama": ("model.", r"\.rotary_emb\.inv_freq$"),
}


def _read_gpt2(config: dict[str, Any]) -> GPTConfig:
    expect_values(
        config, activation_function="gelu_new", scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False, add_cross_attention=False,
    )  # fmt: skip
    return GPTConfig(
        vocabulary=config["vocab_size"],
        block=config["n_positions"],
        depth=config["n_layer"],
        heads=config["n_head"],
        width=config["n_embd"],
        hidden=config.get("n_inner"),
        dropout=one_dropout(config, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        bias=True,
        eps=config.get("layer_norm_epsilon", 1e-5),
        tied=config.get("tie_word_embeddings", True),
    )


def _written_gpt2(c: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocabulary,
        "n_positions": c.block,
        "n_layer": c.depth,
        "n_head": c.heads,
        "n_embd": c.width,
        "n_inner": c.hidden,
        "activation_function": "gelu_new",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout),
        "layer_norm_epsilon": c.eps,
        "tie_word_embeddings": c.tied,
    }


def _read_llama(config: dict[str, Any]) -> GPTConfig:
    expect_values(config, hidden_act="silu")
    bias = config.get("attention_bias", False)
    expect_values(config, mlp_bias=bias)
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    expect_values({"rope_type": kind}, rope_type="default")
    found = GPTConfig.llama(
        vocabulary=config["vocab_size"],
        block=config["max_position_embeddings"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        width=config["hidden_size"],
        groups=config.get("num_key_value_heads"),
        hidden=config["intermediate_size"],
        bias=bias,
        eps=config.get("rms_norm_eps", 1e-6),
        rotary_base=rotary.get("rope_theta", config.get("rope_theta", 10000.0)),
        tied=config.get("tie_word_embeddings", False),
    )
    expect_values(config, head_dim=found.width // found.heads)
    return found


def _written_llama(c: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.block,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.groups or c.heads,
        "hidden_size": c.width,
        "intermediate_size": c.hidden or 4 * c.width,
        "hidden_act": "silu",
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
        "rms_norm_eps": c.eps,
        "rope_theta": c.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rotary_base},
        "tie_word_embeddings": c.tied,
    }


_READ = {"gpt2": _read_gpt2, "llama": _read_llama}
_WRITTEN = {"gpt2": _written_gpt2, "llama": _written_llama}
