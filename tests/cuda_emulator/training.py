"""A small training run, for comparisons: eager and captured, on the CPU and on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import framework as fw
from framework import functional as F, layers, optimizers
from framework.optimizers import EMA, schedules
from framework.trainer import Accuracy, Callback, Trainer
from kernels.arrays import is_array, to_numpy

FEATURES, CLASSES = 8, 3

OPTIMIZERS: dict[str, Callable[[Any], optimizers.Optimizer]] = {
    "adam": lambda ps: optimizers.Adam(ps, lr=0.02, weight_decay=0.01),
    "amsgrad": lambda ps: optimizers.Adam(ps, lr=0.02, amsgrad=True),
    "adamw": lambda ps: optimizers.AdamW(ps, lr=0.02),
    "sgd": lambda ps: optimizers.SGD(ps, lr=0.1),
    "momentum": lambda ps: optimizers.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "rmsprop": lambda ps: optimizers.RMSprop(ps, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda ps: optimizers.Adagrad(ps, lr=0.05, lr_decay=0.1),
}


def model() -> layers.Module:
    """With everything that counts or draws."""
    fw.manual_seed(3)
    return layers.Sequential(
        layers.Linear(FEATURES, 16),
        layers.BatchNorm1d(16),
        layers.ReLU(),
        layers.Dropout(0.3),
        layers.Linear(16, CLASSES),
    )


def batches(sizes: Sequence[int] = (16, 16, 16, 16, 9)) -> list[Any]:
    """On the CPU: they are copied to the device as those of a loader are."""
    draw = np.random.default_rng(7)
    return [
        (
            fw.tensor(draw.standard_normal((n, FEATURES)).astype(np.float32), device="cpu"),
            fw.tensor(draw.integers(0, CLASSES, n), device="cpu"),
        )
        for n in sizes
    ]


def trainer(
    device: str,
    capture: bool | str = "auto",
    optimizer: str = "adamw",
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Trainer:
    """Schedule, both clippings, EMA and a metric."""
    net = model().to(device)
    return Trainer(
        net,
        F.cross_entropy,
        OPTIMIZERS[optimizer](net.parameters()),
        schedules.linear_warmup(4, then=schedules.cosine(20)),
        metrics=[Accuracy()],
        callbacks=callbacks,
        device=device,
        clip_norm=0.5,
        clip_value=0.2,
        ema=EMA(net, 0.9, warmup=True),
        capture=capture,
        **options,
    )


def bits(run: Trainer) -> dict[str, Any]:
    """Everything that a run has come to, as bytes and plain values, without its speed."""
    state = run.state_dict()
    optimizer, ema = state["optimizer"], state["ema"]
    arrays = {f"model {name}": x for name, x in state["model"].items()}
    arrays |= {f"optimizer {name}": x.data for name, x in optimizer["arrays"].items()}
    arrays |= {f"ema {name}": x.data for name, x in ema["average"].items()}
    times = ("seconds", "samples_per_second")
    history = [{k: v for k, v in r.items() if k not in times} for r in state["history"]]
    return {
        **{name: to_numpy(x).tobytes() for name, x in arrays.items()},
        "steps": optimizer["steps"],
        "lr": [group["lr"] for group in optimizer["groups"]],
        "updates": ema["updates"],
        "generator": state["generator"],
        "step": state["step"],
        "history": _plain(history),
        "gathered": _plain(state["gathered"]),
    }


def _plain(value: Any) -> Any:
    """For comparison, arrays too; without the speed."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items() if key != "seconds"}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    return repr(to_numpy(value).tolist() if is_array(value) else value)


def differences(a: Trainer, b: Trainer) -> list[str]:
    """The names of what is not equal, bit for bit."""
    x, y = bits(a), bits(b)
    assert x.keys() == y.keys()
    return [name for name in x if x[name] != y[name]]
