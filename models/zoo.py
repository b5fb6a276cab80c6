"""The families by name: configuration, builder, what data they are for, and how to train them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from framework.layers import Module
from models.convnext import ConvNeXt, ConvNeXtConfig
from models.gpt import GPT, GPTConfig
from models.lenet import LeNet, LeNetConfig
from models.mlp import MLP, MLPConfig
from models.mobilenet import MobileNetV2, MobileNetV2Config
from models.nplm import NPLM, NPLMConfig
from models.resnet import ResNet, ResNet18Config, ResNet34Config, ResNet50Config
from models.rnn import CharRNN, CharRNNConfig, RNNClassifier, RNNClassifierConfig
from models.rnn_seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig
from models.vgg import VGG, VGGConfig
from models.vit import ViT, ViTConfig


@dataclass(frozen=True)
class Entry:
    """A family of models.

    Args:
        config: a dataclass with ``for_data(shape, classes, task, **settings)``, and `of_data`, the
            names of the fields that the data set decides.
        build: makes a model from one.
        description: one line.
        tasks: what kinds of data it is for: classification, regression, language; none where
            `train` has no data for it.
        recipe: settings of the `Recipe` with which `train` begins where they differ from its
            defaults; the user's come on top.
        augments: of images: it begins with the augmentation that suits the data set, too.
        carries: of language: its ``forward(ids, fresh)`` carries a state over streams
            (``sampling=stream``).
    """

    config: type[Any]
    build: Callable[[Any], Module]
    description: str
    tasks: tuple[str, ...] = ("classification", "regression")
    recipe: Mapping[str, Any] = field(default_factory=dict)
    augments: bool = False
    carries: bool = False


#: How networks for photographs are trained from scratch.
PHOTOGRAPHS = {
    "batch_size": 128,
    "epochs": 30,
    "lr": 0.1,
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "warmup": 0.2,
}


def _for_images(config: type[Any], build: Any, description: str, **recipe: Any) -> Entry:
    return Entry(config, build, description, ("classification",), recipe, augments=True)


ZOO: dict[str, Entry] = {
    "charlstm": Entry(
        CharRNNConfig,
        CharRNN,
        "recurrent language model, of characters or words: LSTM, GRU or plain RNN",
        tasks=("language",),
        recipe={
            "lr": 3e-3,
            "batch_size": 32,
            "epochs": 20,
            "clip_norm": 1.0,
            "sampling": "stream",
        },
        carries=True,
    ),
    "gpt": Entry(
        GPTConfig,
        GPT,
        "transformer for text: the layout of GPT-2, or Llama's by its settings",
        tasks=("language",),
        recipe={
            "batch_size": 12,
            "steps": 2000,
            "epochs": 8,
            "lr": 1e-3,
            "final_lr": 0.1,
            "beta2": 0.99,
            "weight_decay": 0.1,
            "decay": "matrices",
            "clip_norm": 1.0,
        },
    ),
    "mlp": Entry(
        MLPConfig, MLP, "multilayer perceptron: any depth, activation, norm, dropout, residual"
    ),
    "nplm": Entry(
        NPLMConfig,
        NPLM,
        "neural language model over the last few tokens (Bengio et al. 2003)",
        tasks=("language",),
        recipe={"lr": 2e-3, "batch_size": 32, "epochs": 5, "clip_norm": 1.0},
        carries=True,
    ),
    "lenet": _for_images(
        LeNetConfig, LeNet, "LeNet-5 (LeCun et al. 1998)", epochs=15, lr=5e-3, warmup=0.2
    ),
    "vgg": _for_images(
        VGGConfig, VGG, "a small VGG (Simonyan & Zisserman 2015), batch norm", **PHOTOGRAPHS
    ),
    "resnet18": _for_images(
        ResNet18Config,
        ResNet,
        "ResNet-18 (He et al. 2016): 18 layers, 11.2 M weights",
        **PHOTOGRAPHS,
    ),
    "resnet34": _for_images(ResNet34Config, ResNet, "ResNet-34 (He et al. 2016)", **PHOTOGRAPHS),
    "resnet50": _for_images(
        ResNet50Config, ResNet, "ResNet-50 (He et al. 2016): bottlenecks", **PHOTOGRAPHS
    ),
    "mobilenetv2": _for_images(
        MobileNetV2Config,
        MobileNetV2,
        "MobileNetV2 (Sandler et al. 2018): depthwise",
        **PHOTOGRAPHS,
    ),
    "convnext": _for_images(
        ConvNeXtConfig,
        ConvNeXt,
        "ConvNeXt-Tiny (Liu et al. 2022)",
        **PHOTOGRAPHS
        | {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "decay": "matrices"},
    ),
    "vit": Entry(
        ViTConfig,
        ViT,
        "transformer for images: patches as a sequence (Dosovitskiy et al. 2021)",
        recipe={"weight_decay": 0.05, "decay": "matrices", "clip_norm": 1.0},
    ),
    "rnnclassifier": Entry(
        RNNClassifierConfig,
        RNNClassifier,
        "recurrent classifier of sequences; images are read row by row",
        recipe={"clip_norm": 1.0},
    ),
    "rnnseq2seq": Entry(
        RNNSeq2SeqConfig,
        RNNSeq2Seq,
        "encoder-decoder with additive attention (Bahdanau et al. 2015), to be trained from Python",
        tasks=(),
    ),
}


def entry(name: str) -> Entry:
    """The family called `name`; ValueError lists what there is."""
    if name not in ZOO:
        raise ValueError(
            f"unknown model {name!r}{hint(name, ZOO)}; there are: {', '.join(sorted(ZOO))}"
        )
    return ZOO[name]


def configure(name: str, **overrides: Any) -> Any:
    """The configuration of a family, its defaults changed by `overrides`; ValueError names a wrong
    one.
    """
    kind = entry(name).config
    known = [field.name for field in fields(kind)]
    for option in overrides:
        if option not in known:
            raise ValueError(
                f"{name} has no {option!r}{hint(option, known)}; it has: {', '.join(known)}"
            )
    return kind(**overrides)


def build(name: str, **overrides: Any) -> Module:
    """A new model of a family, with the defaults of its configuration changed by `overrides`.

    >>> build("mlp", inputs=4, hidden=(8,), outputs=3).head.out_features
    3
    """
    return entry(name).build(configure(name, **overrides))


def hint(name: str, known: Any) -> str:
    """The words " (did you mean x?)" where a name is close to a known one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
