"""Whole-model optimizer steps: one pass, in place, over flat buffers that hold all parameters of a
model.

All arrays are (n,), one dtype, C-contiguous. p are the parameters, g their gradient (read only),
the rest is the optimizer's state. `scale` multiplies the gradient first (clipping, loss scaling): a
number, or an array of one element, which on CUDA stays on the device. `live` is for a step that is
captured into a CUDA graph, and so launched with the same arguments every time: the numbers of
`adam_numbers` and its like in a float32 array, which hold instead of those among the arguments.
Within `held_by(found)` they change nothing where the device then finds found[0] set. The formulas,
names and defaults of the variants are PyTorch's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.registry import kernel

#: Names of the templates in kernels/cuda/optimizers.cu.
CUDA_KERNELS = ("sgd", "adam", "rmsprop", "adagrad", "scale_elements", "lerp_elements")


def _check(name: str, p: Array, **others: Array | None) -> None:
    """All arrays flat and of one size and dtype, and what is written (all but g and b)
    contiguous."""
    if p.ndim != 1 or not p.flags.c_contiguous:
        raise ValueError(f"{name}: p has shape {p.shape}, expected a contiguous flat buffer")
    for key, x in others.items():
        if x is None:
            continue
        if x.shape != p.shape or x.dtype != p.dtype:
            raise ValueError(
                f"{name}: {key} is {x.dtype}{x.shape}, p is {p.dtype}{p.shape}: "
                "expected flat buffers of one size and dtype"
            )
        if key not in ("g", "b") and not x.flags.c_contiguous:
            raise ValueError(f"{name}: {key} has strides {x.strides}, expected a contiguous buffer")


def _is_positive_step(step: int) -> None:
    if step < 1:
        raise ValueError(f"step is {step}, expected 1 for the first step")


class _Held(threading.local):
    by: Array | None = None


_held = _Held()


@contextmanager
def held_by(found: Array) -> Iterator[None]:
    """Within the block the kernels of this file (on CUDA, as this thread calls them) change nothing
    where found[0] is not 0 when they run: int32 (1,), of `mark_nonfinite_`. The host need not know.
    """
    if found.shape != (1,) or found.dtype != np.int32:
        raise ValueError(f"held_by: found is {found.dtype}{found.shape}, expected int32 (1,)")
    previous, _held.by = _held.by, found
    try:
        yield
    finally:
        _held.by = previous


def held() -> Array | None:
    """What this thread's steps are held by, None outside of `held_by`."""
    return _held.by


def _not_held(name: str, p: Array) -> None:
    """Only the CUDA versions look at what holds them."""
    if _held.by is not None:
        raise NotImplementedError(f"{name}: {p.dtype} on this device cannot be held by a flag")


def _not_live(name: str, p: Array, live: Array | None) -> None:
    """The references compute in the precision of p, in which `live` does not hold its numbers."""
    _not_held(name, p)
    if live is not None:
        raise NotImplementedError(
            f"{name}: numbers that are read from the device need a version for {p.dtype}, "
            "and there is none"
        )


def _gradient(g: Array, scale: Any) -> Array:
    """g times scale, in g's dtype."""
    if isinstance(scale, (int, float)):
        return g if scale == 1 else g * g.dtype.type(scale)
    return g * scale.reshape(()).astype(g.dtype)


# SGD ----------------------------------------------------------------------------------------------


@kernel(inplace=("p", "buf"))
def sgd_step(
    p: Array,
    g: Array,
    buf: Array | None,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    scale: Any = 1.0,
    first: bool = False,
    live: Array | None = None,
) -> Array:
    """p -= lr d, with momentum buf = momentum buf + (1 - dampening) g and d = buf (Nesterov: g +
    momentum buf).

    Sutskever et al. 2013 as PyTorch has it: the first time buf = g. `buf` may be None without
    momentum. Weight decay adds weight_decay p to g, or with `decoupled` shrinks p by lr
    weight_decay (Loshchilov and Hutter 2019).
    """
    _check_sgd(p, g, buf, momentum)
    _not_live("sgd_step", p, live)
    g = _gradient(g, scale)
    if weight_decay and decoupled:
        p *= 1 - lr * weight_decay
    elif weight_decay:
        g = g + weight_decay * p
    if momentum:
        buf[...] = g if first else momentum * buf + (1 - dampening) * g
        g = g + momentum * buf if nesterov else buf
    p -= lr * g
    return p


def sgd_numbers(
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    decoupled: bool = False,
    first: bool = False,
) -> list[np.float32]:
    """What is added to g per p, what p and d are multiplied by, and momentum, old and new part."""
    keep, take = (0.0, 1.0) if first else (momentum, 1 - dampening)
    return [*_decay(lr, weight_decay, decoupled), *_f4(lr, momentum, keep, take)]


def _check_sgd(p: Array, g: Array, buf: Array | None, momentum: float) -> None:
    _check("sgd_step", p, g=g, buf=buf)
    if momentum and buf is None:
        raise ValueError(f"sgd_step: momentum is {momentum}, so buf is needed")


# Adam ---------------------------------------------------------------------------------------------


@kernel(inplace=("p", "m", "v", "vmax"))
def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
    decoupled: bool = False,
    vmax: Array | None = None,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    """p -= lr m^ / (sqrt(v^) + eps), m^ and v^ the bias-corrected means of g and g^2 (Kingma and Ba
    2015).

    `step` counts from 1. `vmax` turns on AMSGrad (Reddi et al. 2018): the largest v so far instead
    of v. Weight decay adds weight_decay p to g, or with `decoupled` (AdamW) shrinks p by lr
    weight_decay.
    """
    _check("adam_step", p, g=g, m=m, v=v, vmax=vmax)
    _not_live("adam_step", p, live)
    step_size, correction = _adam_constants(lr, beta1, beta2, step)
    xp = array_module(p)
    g = _gradient(g, scale)
    if weight_decay and decoupled:
        p *= 1 - lr * weight_decay
    elif weight_decay:
        g = g + weight_decay * p
    m += (1 - beta1) * (g - m)
    v[...] = beta2 * v + (1 - beta2) * g * g
    if vmax is not None:
        xp.maximum(vmax, v, out=vmax)
        v = vmax
    p -= step_size * (m / (xp.sqrt(v) * correction + eps))
    return p


def _adam_constants(lr: float, beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """lr / (1 - beta1^step) and 1 / sqrt(1 - beta2^step)."""
    _is_positive_step(step)
    return lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)


def adam_numbers(
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    decoupled: bool = False,
) -> list[np.float32]:
    """What is added to g per p and p is multiplied by, both constants, and new and old parts of the
    means.
    """
    constants = _adam_constants(lr, beta1, beta2, step)
    numbers = _f4(*constants, 1 - beta1, beta2, 1 - beta2, eps)
    return [*_decay(lr, weight_decay, decoupled), *numbers]


# RMSprop ------------------------------------------------------------------------------------------


@kernel(inplace=("p", "v", "buf", "mean_g"))
def rmsprop_step(
    p: Array,
    g: Array,
    v: Array,
    buf: Array | None,
    mean_g: Array | None,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    """p -= lr g / (sqrt(v) + eps), v the running mean of g^2 (Hinton, Coursera lecture 6e, 2012).

    `centered` (Graves 2013) takes the variance, v - mean_g^2, at least 0, which rounding may miss.
    With momentum buf = momentum buf + g / (...) is what is subtracted. `buf` and `mean_g` may be
    None where they are not used.
    """
    _check_rmsprop(p, g, v, buf, mean_g, momentum, centered)
    _not_live("rmsprop_step", p, live)
    xp = array_module(p)
    g = _gradient(g, scale)
    if weight_decay:
        g = g + weight_decay * p
    v[...] = alpha * v + (1 - alpha) * g * g
    variance = v
    if centered:
        mean_g += (1 - alpha) * (g - mean_g)
        variance = xp.maximum(v - mean_g * mean_g, 0)
    d = g / (xp.sqrt(variance) + eps)
    if momentum:
        buf[...] = momentum * buf + d
        d = buf
    p -= lr * d
    return p


def rmsprop_numbers(
    lr: float, alpha: float, eps: float, weight_decay: float, momentum: float
) -> list[np.float32]:
    """The learning rate, old and new part of the means, eps, weight decay, momentum."""
    return _f4(lr, alpha, 1 - alpha, eps, weight_decay, momentum)


def _check_rmsprop(
    p: Array, g: Array, v: Array, buf: Any, mean_g: Any, momentum: float, centered: bool
) -> None:
    _check("rmsprop_step", p, g=g, v=v, buf=buf, mean_g=mean_g)
    if momentum and buf is None:
        raise ValueError(f"rmsprop_step: momentum is {momentum}, so buf is needed")
    if centered and mean_g is None:
        raise ValueError("rmsprop_step: centered is True, so mean_g is needed")


# Adagrad ------------------------------------------------------------------------------------------


@kernel(inplace=("p", "v"))
def adagrad_step(
    p: Array,
    g: Array,
    v: Array,
    lr: float,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    step: int = 1,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    """p -= lr / (1 + (step - 1) lr_decay) g / (sqrt(v) + eps), v the sum of g^2 (Duchi et al.
    2011).

    `step` counts from 1.
    """
    _check("adagrad_step", p, g=g, v=v)
    _not_live("adagrad_step", p, live)
    rate = _adagrad_rate(lr, lr_decay, step)
    g = _gradient(g, scale)
    if weight_decay:
        g = g + weight_decay * p
    v += g * g
    p -= rate * (g / (array_module(p).sqrt(v) + eps))
    return p


def _adagrad_rate(lr: float, lr_decay: float, step: int) -> float:
    _is_positive_step(step)
    return lr / (1 + (step - 1) * lr_decay)


def adagrad_numbers(
    lr: float, lr_decay: float, eps: float, weight_decay: float, step: int
) -> list[np.float32]:
    """The rate, eps and weight decay."""
    return _f4(_adagrad_rate(lr, lr_decay, step), eps, weight_decay)


# Buffers ------------------------------------------------------------------------------------------


@kernel(inplace=("x",))
def scale_(x: Array, factor: Any) -> Array:
    """x *= factor in place, for clipping by the global norm; `factor` as `scale` above. Returns
    x."""
    _not_held("scale_", x)
    x[...] = _gradient(x, factor)
    return x


@kernel(inplace=("a",))
def lerp_(a: Array, b: Array, weight: Any) -> Array:
    """a += weight (b - a) in place: an exponential moving average of b. Returns a.

    `weight` is a number, or a float32 array of one element, which on CUDA stays on the device.
    """
    _check("lerp_", a, b=b)
    _not_held("lerp_", a)
    a += _gradient(b - a, weight)
    return a


# CPU ----------------------------------------------------------------------------------------------


def _f4(*values: Any) -> list[np.float32]:
    return [np.float32(value) for value in values]


def _number(scale: Any) -> np.float32:
    return np.float32(scale if isinstance(scale, (int, float)) else scale.reshape(()))


def _decay(lr: float, weight_decay: float, decoupled: bool) -> list[np.float32]:
    """What is added to g per p, and what p is multiplied by."""
    return _f4(0, 1 - lr * weight_decay) if decoupled else _f4(weight_decay, 1)


@sgd_step.cpu
def _(
    p: Array,
    g: Array,
    buf: Array | None,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    scale: Any = 1.0,
    first: bool = False,
    live: Array | None = None,
) -> Array:
    from kernels.cpu import optimizers as loops

    _check_sgd(p, g, buf, momentum)
    numbers = live
    if numbers is None:
        numbers = sgd_numbers(lr, momentum, dampening, weight_decay, decoupled, first)
    if not momentum:
        loops.sgd(p, np.ascontiguousarray(g), _number(scale), *numbers[:3])
    else:
        loops.sgd_momentum(
            p, np.ascontiguousarray(g), buf, _number(scale), *numbers, bool(nesterov)
        )
    return p


@adam_step.cpu
def _(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
    decoupled: bool = False,
    vmax: Array | None = None,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    from kernels.cpu import optimizers as loops

    _check("adam_step", p, g=g, m=m, v=v, vmax=vmax)
    numbers = live
    if numbers is None:
        numbers = adam_numbers(lr, beta1, beta2, eps, weight_decay, step, decoupled)
    if vmax is None:
        loops.adam(p, np.ascontiguousarray(g), m, v, _number(scale), *numbers)
    else:
        loops.amsgrad(p, np.ascontiguousarray(g), m, v, vmax, _number(scale), *numbers)
    return p


@rmsprop_step.cpu
def _(
    p: Array,
    g: Array,
    v: Array,
    buf: Array | None,
    mean_g: Array | None,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    from kernels.cpu import optimizers as loops

    _check_rmsprop(p, g, v, buf, mean_g, momentum, centered)
    numbers = rmsprop_numbers(lr, alpha, eps, weight_decay, momentum) if live is None else live
    if not momentum and not centered:
        loops.rmsprop(p, np.ascontiguousarray(g), v, _number(scale), *numbers[:-1])
    else:
        # The general loop; a state that is not used stands in for itself and is not written.
        loops.rmsprop_general(
            p, np.ascontiguousarray(g), v, buf if momentum else p, mean_g if centered else p,
            _number(scale), *numbers, bool(momentum), bool(centered),
        )  # fmt: skip
    return p


@adagrad_step.cpu
def _(
    p: Array,
    g: Array,
    v: Array,
    lr: float,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    step: int = 1,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    from kernels.cpu import optimizers as loops

    _check("adagrad_step", p, g=g, v=v)
    numbers = adagrad_numbers(lr, lr_decay, eps, weight_decay, step) if live is None else live
    loops.adagrad(p, np.ascontiguousarray(g), v, _number(scale), *numbers)
    return p


@scale_.cpu
def _(x: Array, factor: Any) -> Array:
    from kernels.cpu import optimizers as loops

    if not x.flags.c_contiguous:
        x *= _number(factor)
    else:
        loops.scale(x.reshape(-1), _number(factor))
    return x


@lerp_.cpu
def _(a: Array, b: Array, weight: Any) -> Array:
    from kernels.cpu import optimizers as loops

    _check("lerp_", a, b=b)
    loops.lerp(a, np.ascontiguousarray(b), _number(weight))
    return a


# CUDA ---------------------------------------------------------------------------------------------


def _launch(template: str, buffers: list[Array | None], *args: Any) -> Array:
    """Run a kernel over `buffers` (those that are None become null pointers)."""
    from kernels.cuda import launch

    p = buffers[0]
    xp = array_module(p)
    # null pointers, as 8 bytes
    pointers = [np.uint64(0) if x is None else xp.ascontiguousarray(x) for x in buffers]
    launch.run(
        "optimizers",
        f"{template}<{launch.type_name(p.dtype)}>",
        launch.grid_stride(p.size, p) if p.size else 0,
        launch.BLOCK,
        (*pointers, *args, _NULL if _held.by is None else _held.by, np.int64(p.size)),
    )
    return p


_NULL = np.uint64(0)


def _device_scale(scale: Any, p: Array) -> tuple[Any, np.float32]:
    """`scale` as the kernels take it: a pointer or null, and a number for null."""
    if isinstance(scale, (int, float, np.generic)):
        return _NULL, np.float32(scale)
    return array_module(p).asarray(scale, dtype=np.float32).reshape(1), np.float32(1)


def _numbers(live: Array | None, numbers: list[np.float32]) -> list[Any]:
    """The same for several: a pointer or null, and the numbers for null."""
    return [_NULL if live is None else live, *numbers]


@sgd_step.cuda
def _(
    p: Array,
    g: Array,
    buf: Array | None,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    scale: Any = 1.0,
    first: bool = False,
    live: Array | None = None,
) -> Array:
    _check_sgd(p, g, buf, momentum)
    numbers = sgd_numbers(lr, momentum, dampening, weight_decay, decoupled, first)
    args = (*_device_scale(scale, p), *_numbers(live, numbers), np.int32(nesterov))
    return _launch("sgd", [p, g, buf if momentum else None], *args)


@adam_step.cuda
def _(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
    decoupled: bool = False,
    vmax: Array | None = None,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    _check("adam_step", p, g=g, m=m, v=v, vmax=vmax)
    numbers = adam_numbers(lr, beta1, beta2, eps, weight_decay, step, decoupled)
    args = (*_device_scale(scale, p), *_numbers(live, numbers))
    return _launch("adam", [p, g, m, v, vmax], *args)


@rmsprop_step.cuda
def _(
    p: Array,
    g: Array,
    v: Array,
    buf: Array | None,
    mean_g: Array | None,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    _check_rmsprop(p, g, v, buf, mean_g, momentum, centered)
    numbers = rmsprop_numbers(lr, alpha, eps, weight_decay, momentum)
    buffers = [p, g, v, buf if momentum else None, mean_g if centered else None]
    return _launch("rmsprop", buffers, *_device_scale(scale, p), *_numbers(live, numbers))


@adagrad_step.cuda
def _(
    p: Array,
    g: Array,
    v: Array,
    lr: float,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    step: int = 1,
    scale: Any = 1.0,
    live: Array | None = None,
) -> Array:
    _check("adagrad_step", p, g=g, v=v)
    numbers = adagrad_numbers(lr, lr_decay, eps, weight_decay, step)
    return _launch("adagrad", [p, g, v], *_device_scale(scale, p), *_numbers(live, numbers))


@scale_.cuda
def _(x: Array, factor: Any) -> Array:
    if not x.flags.c_contiguous:
        return scale_.reference(x, factor)
    return _launch("scale_elements", [x], *_device_scale(factor, x))


@lerp_.cuda
def _(a: Array, b: Array, weight: Any) -> Array:
    _check("lerp_", a, b=b)
    return _launch("lerp_elements", [a, b], *_device_scale(weight, a))


# Samples ------------------------------------------------------------------------------------------


def _buffers(draw: Any, shape: tuple[int, ...], kinds: str) -> list[np.ndarray]:
    """Flat buffers, "n" of normal draws and "u" of positive ones."""
    n = math.prod(shape)
    return [draw.normal(n) if kind == "n" else draw.uniform(n, low=0.1, high=2.0) for kind in kinds]


@sgd_step.sample
def _(draw, shape):
    return *_buffers(draw, shape, "nn"), None, 0.1, 0.0, 0.0, 0.01


@sgd_step.sample
def nesterov(draw, shape):
    return *_buffers(draw, shape, "nnn"), 0.1, 0.9, 0.0, 0.01, True, True, 0.5


@adam_step.sample
def adamw(draw, shape):
    return *_buffers(draw, shape, "nnnu"), 0.01, 0.9, 0.99, 1e-8, 0.1, 7, True


@adam_step.sample
def amsgrad(draw, shape):
    p, g, m, v, vmax = _buffers(draw, shape, "nnnuu")
    return p, g, m, v, 0.01, 0.9, 0.99, 1e-8, 0.1, 7, False, vmax, 0.5


@rmsprop_step.sample
def _(draw, shape):
    return *_buffers(draw, shape, "nnu"), None, None, 0.01, 0.9, 1e-8, 0.1


@rmsprop_step.sample
def centered_with_momentum(draw, shape):
    p, g, v, buf, mean_g = _buffers(draw, shape, "nnunu")
    return p, g, v + mean_g**2, buf, mean_g, 0.01, 0.9, 1e-8, 0.1, 0.9, True, 0.5


@adagrad_step.sample
def _(draw, shape):
    return *_buffers(draw, shape, "nnu"), 0.1, 0.01, 1e-10, 0.1, 7


@scale_.sample
def _(draw, shape):
    return draw.normal(shape), 0.5


@lerp_.sample
def _(draw, shape):
    return *_buffers(draw, shape, "nn"), 0.01
