"""PyTorch's counterpart of each kernel, called as directly as it can be.

Gradients are aten's backward operations where there is one; where not, autograd's backward alone,
through a graph recorded beforehand. The text of each is shown beside its row. Optimizers stand in
torch_calls.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from bench.torch_calls import PREPARED, Peer, direct, prepared, through_autograd

aten = torch.ops.aten


# Activations --------------------------------------------------------------------------------------

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

direct("relu", "torch.relu", torch.relu)
direct("relu6", "F.relu6", F.relu6)
direct("hardtanh", "F.hardtanh", F.hardtanh)
direct("leaky_relu", "F.leaky_relu", F.leaky_relu)
direct("hardsigmoid", "F.hardsigmoid", F.hardsigmoid)
direct("hardswish", "F.hardswish", F.hardswish)
direct("elu", "F.elu", F.elu)
direct("selu", "F.selu", F.selu)
direct("celu", "F.celu", F.celu)
direct("sigmoid", "torch.sigmoid", torch.sigmoid)
direct("tanh", "torch.tanh", torch.tanh)
direct("softsign", "F.softsign", F.softsign)
direct("softplus", "F.softplus", F.softplus)
direct("logsigmoid", "F.logsigmoid", F.logsigmoid)
direct("gelu", "F.gelu", F.gelu)
direct("gelu_tanh", "F.gelu(approximate='tanh')", lambda x: F.gelu(x, approximate="tanh"))
direct("silu", "F.silu", F.silu)
direct("mish", "F.mish", F.mish)
direct("erf", "torch.erf", torch.erf)
direct("glu", "F.glu", F.glu)
direct("prelu", "F.prelu", F.prelu)

direct("relu_grad", "aten.threshold_backward", lambda dy, x: aten.threshold_backward(dy, x, 0))
direct("relu6_grad", "aten.hardtanh_backward", lambda dy, x: aten.hardtanh_backward(dy, x, 0, 6))
direct(
    "hardtanh_grad",
    "aten.hardtanh_backward",
    lambda dy, x, low=-1.0, high=1.0: aten.hardtanh_backward(dy, x, low, high),
)
direct(
    "leaky_relu_grad",
    "aten.leaky_relu_backward",
    lambda dy, x, slope=0.01: aten.leaky_relu_backward(dy, x, slope, False),
)
direct("hardsigmoid_grad", "aten.hardsigmoid_backward", aten.hardsigmoid_backward)
direct("hardswish_grad", "aten.hardswish_backward", aten.hardswish_backward)
direct(
    "elu_grad",
    "aten.elu_backward",
    lambda dy, x, alpha=1.0: aten.elu_backward(dy, alpha, 1, 1, False, x),
)
direct(
    "selu_grad",
    "aten.elu_backward",
    lambda dy, x: aten.elu_backward(dy, _SELU_ALPHA, _SELU_SCALE, 1, False, x),
)
direct(
    "celu_grad",
    "aten.elu_backward",
    lambda dy, x, alpha=1.0: aten.elu_backward(dy, alpha, 1, 1 / alpha, False, x),
)
direct(
    "softplus_grad",
    "aten.softplus_backward",
    lambda dy, x, beta=1.0, threshold=20.0: aten.softplus_backward(dy, x, beta, threshold),
)
direct("gelu_grad", "aten.gelu_backward", aten.gelu_backward)
direct(
    "gelu_tanh_grad",
    "aten.gelu_backward(approximate='tanh')",
    lambda dy, x: aten.gelu_backward(dy, x, approximate="tanh"),
)
direct("silu_grad", "aten.silu_backward", aten.silu_backward)
direct("mish_grad", "aten.mish_backward", aten.mish_backward)
direct("glu_grad", "aten.glu_backward", lambda dy, x, axis=-1: aten.glu_backward(dy, x, axis))


@prepared("sigmoid_grad", "aten.sigmoid_backward, from the saved output (ours: from the input)")
def _(dy, x):
    y = torch.sigmoid(x)
    return lambda: aten.sigmoid_backward(dy, y)


@prepared("tanh_grad", "aten.tanh_backward, from the saved output (ours: from the input)")
def _(dy, x):
    y = torch.tanh(x)
    return lambda: aten.tanh_backward(dy, y)


@prepared("logsigmoid_grad", "aten.log_sigmoid_backward, with its saved buffer")
def _(dy, x):
    _, buffer = aten.log_sigmoid_forward(x)
    return lambda: aten.log_sigmoid_backward(dy, x, buffer)


def _swiglu(x, axis=-1):
    a, b = x.chunk(2, axis)
    return F.silu(a) * b


direct("swiglu", "F.silu(a) * b (two operations)", _swiglu)
through_autograd("swiglu_grad", "F.silu(a) * b", _swiglu)
through_autograd("softsign_grad", "F.softsign", F.softsign)
through_autograd("erf_grad", "torch.erf", torch.erf)
through_autograd("prelu_grad", "F.prelu", F.prelu, n_inputs=2)


# Softmax ------------------------------------------------------------------------------------------

direct("softmax", "torch.softmax", lambda x, axis=-1: torch.softmax(x, axis))
direct(
    "softmax-masked",
    "x.masked_fill, then torch.softmax (two operations)",
    lambda x, axis, mask: torch.softmax(x.masked_fill(~mask, -torch.inf), axis),
)
direct("log_softmax", "torch.log_softmax", lambda x, axis=-1: torch.log_softmax(x, axis))
direct(
    "logsumexp",
    "torch.logsumexp",
    lambda x, axis=-1, keepdims=False: torch.logsumexp(x, axis, keepdims),
)
direct(
    "softmax_grad",
    "aten._softmax_backward_data",
    lambda dy, y, axis=-1: aten._softmax_backward_data(dy, y, axis, y.dtype),
)
direct(
    "log_softmax_grad",
    "aten._log_softmax_backward_data",
    lambda dy, y, axis=-1: aten._log_softmax_backward_data(dy, y, axis, y.dtype),
)
direct(
    "logsumexp_grad",
    "dy * torch.exp(x - y), as autograd's backward",
    lambda dy, x, y: dy[:, None] * torch.exp(x - y[:, None]),
)


# Losses -------------------------------------------------------------------------------------------


@prepared("cross_entropy", "F.cross_entropy(reduction='none') and its autograd backward")
def _(logits, targets):
    logits.requires_grad_()
    ones = logits.new_ones(len(targets))

    def step():
        with torch.enable_grad():
            losses = F.cross_entropy(logits, targets, reduction="none")
        return losses, torch.autograd.grad(losses, logits, ones)[0]

    return step


direct(
    "cross_entropy-loss_only",
    "F.cross_entropy(reduction='none')",
    lambda x, t, *_: F.cross_entropy(x, t, reduction="none"),
)


@prepared("linear_cross_entropy", "F.linear, F.cross_entropy, sum and their autograd backward")
def _(x, weight, targets, bias=None, ignore_index=-100, smoothing=0.0, with_grad=True):
    inputs = [t.requires_grad_() for t in (x, weight, bias) if t is not None]

    def step():
        with torch.enable_grad():
            losses = F.cross_entropy(F.linear(*inputs), targets, reduction="none")
            total = losses.sum()
        return losses, *torch.autograd.grad(total, inputs)

    return step


direct("cross_entropy_grad", "dlogits * dy[:, None]", lambda dy, g: g * dy[:, None])
direct("nll", "F.nll_loss(reduction='none')", lambda x, t: F.nll_loss(x, t, reduction="none"))


@prepared("nll_grad", "aten.nll_loss_backward")
def _(dy, targets, classes):
    log_p, weight = dy.new_zeros(len(dy), classes), dy.new_zeros(())
    return lambda: aten.nll_loss_backward(dy, log_p, targets, None, 0, -100, weight)


def _hinge(x, target, margin=1.0):
    return torch.clamp(margin - target * x, min=0)


def _bce(x, target, pos_weight=1.0):
    weight = None if pos_weight == 1.0 else x.new_tensor(pos_weight)
    return F.binary_cross_entropy_with_logits(x, target, reduction="none", pos_weight=weight)


def _unreduced(function: Peer, **options: Any) -> Peer:
    return lambda x, target: function(x, target, reduction="none", **options)


_LOSSES: dict[str, tuple[str, Peer]] = {
    "mse": ("F.mse_loss", _unreduced(F.mse_loss)),
    "l1": ("F.l1_loss", _unreduced(F.l1_loss)),
    "huber": ("F.huber_loss", _unreduced(F.huber_loss)),
    "smooth_l1": ("F.smooth_l1_loss", _unreduced(F.smooth_l1_loss)),
    "binary_cross_entropy_with_logits": ("F.binary_cross_entropy_with_logits", _bce),
    "kl_div": ("F.kl_div", _unreduced(F.kl_div)),
    "kl_div_log_target": ("F.kl_div(log_target=True)", _unreduced(F.kl_div, log_target=True)),
    "hinge": ("torch.clamp(1 - t * x, min=0)", _hinge),
}
for _name, (_text, _loss) in _LOSSES.items():
    direct(_name, _text, _loss)
    through_autograd(f"{_name}_grad", _text, _loss)

for _name, _backward, _options in (
    ("mse_grad", aten.mse_loss_backward, ()),
    ("huber_grad", aten.huber_loss_backward, (1.0,)),
    ("smooth_l1_grad", aten.smooth_l1_loss_backward, (1.0,)),
):
    del PREPARED[_name]
    direct(
        _name,
        f"aten.{_backward.__name__}",
        lambda dy, x, t, f=_backward, options=_options: f(dy, x, t, 0, *options),
    )


# Normalisation ------------------------------------------------------------------------------------

direct("layer_norm", "F.layer_norm", lambda x, w, b, eps=1e-5: F.layer_norm(x, w.shape, w, b, eps))
direct("rms_norm", "F.rms_norm", lambda x, w, eps=1e-6: F.rms_norm(x, w.shape, w, eps))


def _add_layer_norm(x, r, w, b, eps=1e-5):
    total = x + r
    return total, F.layer_norm(total, w.shape, w, b, eps)


def _add_rms_norm(x, r, w, eps=1e-6):
    total = x + r
    return total, F.rms_norm(total, w.shape, w, eps)


direct("add_layer_norm", "x + residual, F.layer_norm", _add_layer_norm)
direct("add_rms_norm", "x + residual, F.rms_norm", _add_rms_norm)
direct(
    "batch_norm",
    "F.batch_norm(training=True)",
    lambda x, w, b, eps=1e-5: F.batch_norm(x, None, None, w, b, True, 0.1, eps),
)
direct(
    "batch_norm_inference",
    "F.batch_norm(training=False)",
    lambda x, w, b, mean, var, eps=1e-5: F.batch_norm(x, mean, var, w, b, False, 0.1, eps),
)
direct(
    "group_norm",
    "F.group_norm",
    lambda x, groups, w, b, eps=1e-5: F.group_norm(x, groups, w, b, eps),
)


@prepared("layer_norm_grad", "aten.native_layer_norm_backward")
def _(dy, x, w, mean, rstd):
    args = dy, x, list(w.shape), mean[:, None], rstd[:, None], w, w, [True] * 3
    return lambda: aten.native_layer_norm_backward(*args)


@prepared("rms_norm_grad", "autograd backward of F.rms_norm")
def _(dy, x, w, rstd):
    inputs = x.requires_grad_(), w.requires_grad_()
    with torch.enable_grad():
        y = F.rms_norm(x, w.shape, w, 1e-6)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


@prepared("add_layer_norm_grad", "aten.native_layer_norm_backward, + dtotal")
def _(dy, dtotal, x, w, mean, rstd):
    args = dy, x, list(w.shape), mean[:, None], rstd[:, None], w, w, [True] * 3

    def step():
        dx, dw, db = aten.native_layer_norm_backward(*args)
        return dx.add_(dtotal), dw, db

    return step


@prepared("add_rms_norm_grad", "autograd backward of F.rms_norm, + dtotal")
def _(dy, dtotal, x, w, rstd):
    inputs = x.requires_grad_(), w.requires_grad_()
    with torch.enable_grad():
        y = F.rms_norm(x, w.shape, w, 1e-6)

    def step():
        dx, dw = torch.autograd.grad(y, inputs, dy, retain_graph=True)
        return dx.add_(dtotal), dw

    return step


@prepared("batch_norm_grad", "aten.native_batch_norm_backward")
def _(dy, x, w, mean, var, eps):
    args = dy, x, w, None, None, mean, 1 / torch.sqrt(var + eps), True, eps, [True] * 3
    return lambda: aten.native_batch_norm_backward(*args)


@prepared("batch_norm_relu", "F.batch_norm(training=True), +=, relu_ (three operations)")
def _(x, w, b, residual=None, eps=1e-5):
    def step():
        y = F.batch_norm(x, None, None, w, b, True, 0.1, eps)
        return (y if residual is None else y.add_(residual)).relu_()

    return step


@prepared("batch_norm_relu_grad", "aten.threshold_backward, aten.native_batch_norm_backward")
def _(dy, x, y, w, mean, var, eps=1e-5, residual=True):
    rstd = 1 / torch.sqrt(var + eps)

    def step():
        g = aten.threshold_backward(dy, y, 0)
        args = g, x, w, None, None, mean, rstd, True, eps, [True] * 3
        dx, dw, db = aten.native_batch_norm_backward(*args)
        return (dx, g, dw, db) if residual else (dx, dw, db)

    return step


@prepared("batch_norm_inference_grad", "aten.native_batch_norm_backward(train=False)")
def _(dy, x, w, mean, var, eps=1e-5):
    args = dy, x, w, mean, var, None, None, False, eps, [True] * 3
    return lambda: aten.native_batch_norm_backward(*args)


@prepared("group_norm_grad", "aten.native_group_norm_backward")
def _(dy, x, groups, w, mean, rstd):
    N, C, H, W = x.shape
    args = dy, x, mean, rstd, w, N, C, H * W, groups, [True] * 3
    return lambda: aten.native_group_norm_backward(*args)


# Pooling ------------------------------------------------------------------------------------------

_SLIDE = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")


def _pool(kind: str, x, windows):
    """F.max_pool2d, F.adaptive_avg_pool1d, ...: what has made `windows`."""
    options, dims = windows.options, windows.dims
    if "output_size" in options:
        name, args = f"adaptive_{kind}_pool{dims}d", [options["output_size"]]
    else:
        name = f"{kind}_pool{dims}d"
        args = [options[key] for key in (_SLIDE if kind == "max" else _AVERAGE)]
    return getattr(F, name)(x, *args, *([True] if kind == "max" else []))


def _before(dy, windows):
    """An image that is pooled to dy's shape, laid out like dy."""
    last = dy.ndim == 4 and dy.stride(1) == 1 and dy.shape[1] > 1
    x = dy.new_zeros(*dy.shape[:2], *windows.sizes)
    return x.contiguous(memory_format=torch.channels_last) if last else x


direct("max_pool", "F.max_pool2d(return_indices=True)", lambda x, w: _pool("max", x, w))
direct("avg_pool", "F.avg_pool2d, F.adaptive_avg_pool2d", lambda x, w: _pool("avg", x, w))
direct(
    "max_unpool",
    "F.max_unpool2d",
    lambda x, places, sizes: F.max_unpool2d(x, places.long(), 2, 2, 0, sizes),
)
direct(
    "max_unpool_grad",
    "torch.gather",
    lambda dy, places: dy.flatten(2).gather(2, places.flatten(2).long()).view(places.shape),
)


@prepared("max_pool_grad", "aten.max_pool2d_with_indices_backward")
def _(dy, places, windows):
    args = [windows.options[key] for key in _SLIDE]
    x, places = _before(dy, windows), places.long()
    return lambda: aten.max_pool2d_with_indices_backward(dy, x, *args, places)


@prepared("avg_pool_grad", "aten.avg_pool2d_backward, aten._adaptive_avg_pool2d_backward")
def _(dy, windows):
    x = _before(dy, windows)
    if "output_size" in windows.options:
        return lambda: aten._adaptive_avg_pool2d_backward(dy, x)
    args = [windows.options[key] for key in _AVERAGE]
    return lambda: aten.avg_pool2d_backward(dy, x, *args, None)


def _interpolated(x, sampling):
    """F.interpolate in the sampling's mode."""
    corners, linear = sampling.options["align_corners"], sampling.options["linear"]
    mode = ("linear", "bilinear", "trilinear")[sampling.dims - 1] if linear else "nearest"
    return F.interpolate(x, sampling.outputs, mode=mode, align_corners=corners if linear else None)


direct("upsample_nearest", "F.interpolate(mode='nearest')", _interpolated)
direct("upsample_linear", "F.interpolate(mode='bilinear')", _interpolated)


@prepared("upsample_nearest_grad", "autograd backward of F.interpolate(mode='nearest')")
@prepared("upsample_linear_grad", "autograd backward of F.interpolate(mode='bilinear')")
def _(dy, sampling):
    x = _before(dy, sampling).requires_grad_()
    with torch.enable_grad():
        y = _interpolated(x, sampling)
    return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)


_UNFOLD = ("kernel_size", "dilation", "padding", "stride")


def _unfold_arguments(windows):
    return [windows.options[key] for key in _UNFOLD]


direct("unfold", "F.unfold", lambda x, w: F.unfold(x, *_unfold_arguments(w)))
direct("fold", "F.fold", lambda y, w: F.fold(y, w.sizes, *_unfold_arguments(w)))
# Attention ----------------------------------------------------------------------------------------

_SDPA = "F.scaled_dot_product_attention"


def _attention(q, k, v, mask=None, lengths=None, slopes=None, causal=False, *_):
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


direct("attention", _SDPA, _attention)


@prepared("attention_grad", f"autograd backward of {_SDPA}")
def _(dout, q, k, v, out, lse, *options):
    mask, *others = options or (None,)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    if len(others) == 13:  # with a place for its gradient
        inputs.append(mask.requires_grad_())
    with torch.enable_grad():
        y = _attention(*inputs[:3], mask, *others)
    return lambda: torch.autograd.grad(y, inputs, dout, retain_graph=True)


def _rotary(x, cos, sin, interleaved=False):
    a, b = x.chunk(2, -1)
    return x * torch.cat((cos, cos), -1) + torch.cat((-b, a), -1) * torch.cat((sin, sin), -1)


direct("rotary", "x * cos + cat(-b, a) * sin", _rotary)
direct("rotary_grad", "the same, with -sin", lambda dy, cos, sin, *_: _rotary(dy, cos, -sin))


# Random draws: other streams, so nothing to compare -----------------------------------------------

direct("dropout", "F.dropout", lambda x, p, *_: F.dropout(x, p, True), comparable=False)
direct("uniform", "Tensor.uniform_", lambda x, _s, _o, a, b: x.uniform_(a, b), comparable=False)
direct("normal", "Tensor.normal_", lambda x, _s, _o, a, b: x.normal_(a, b), comparable=False)
direct("bernoulli", "Tensor.bernoulli_", lambda x, _s, _o, p: x.bernoulli_(p), comparable=False)
direct("randint", "Tensor.random_", lambda x, _s, _o, a, b: x.random_(a, b), comparable=False)
direct(
    "permutation",
    "torch.randperm",
    lambda x, *_: torch.randperm(len(x), device=x.device),
    comparable=False,
)


@prepared("dropout_grad", "aten.native_dropout_backward, with its saved mask", comparable=False)
def _(dy, p, *_):
    _, mask = aten.native_dropout(dy, p, True)
    return lambda: aten.native_dropout_backward(dy, mask, 1 / (1 - p))


# Reductions ---------------------------------------------------------------------------------------


def _over(function: Peer) -> Peer:
    """A torch reduction that takes (x, dim, keepdim) as a kernel that takes (x, axis, keepdims)."""
    return lambda x, axis=None, keepdims=False: function(x, axis, keepdim=keepdims)


def _extreme(function: Peer) -> Peer:
    return lambda x, axis=None, keepdims=False: function(x, () if axis is None else axis, keepdims)


def _var(x, axis=None, correction=1, keepdims=False):
    return torch.var(x, axis, correction=correction, keepdim=keepdims)


def _norm(x, axis=None, keepdims=False):
    return torch.linalg.vector_norm(x, 2, axis, keepdims)


direct("sum", "torch.sum", _over(torch.sum))
direct("mean", "torch.mean", _over(torch.mean))
direct("var", "torch.var", _var)
direct("max", "torch.amax", _extreme(torch.amax))
direct("min", "torch.amin", _extreme(torch.amin))
direct("argmax", "torch.argmax", _over(torch.argmax))
direct("argmin", "torch.argmin", _over(torch.argmin))
direct("cumsum", "torch.cumsum", lambda x, axis=-1: torch.cumsum(x, axis))
direct("norm", "torch.linalg.vector_norm", _norm)
direct("sum_of_squares", "torch.dot(x, x)", lambda x: torch.dot(x.view(-1), x.view(-1)))
through_autograd("var_grad", "torch.var", _var)
through_autograd("max_grad", "torch.amax", _extreme(torch.amax), skip=1)
through_autograd("norm_grad", "torch.linalg.vector_norm", _norm, skip=1)
direct(
    "cumsum_grad",
    "flip, cumsum, flip (as autograd's backward)",
    lambda dy, axis=-1: dy.flip(axis).cumsum(axis).flip(axis),
)


# Convolution --------------------------------------------------------------------------------------


def _faster_layout(make: Callable[[torch.memory_format], Peer]) -> Peer:
    """The faster of two calls: with images and weights channels-last, and in the default order."""

    def fastest(call: Peer) -> float:
        taken = []
        for _ in range(6):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return min(taken[1:])

    calls = [make(layout) for layout in (torch.channels_last, torch.contiguous_format)]
    return min(calls, key=fastest)


def _convolution_backward(index, dy, x, w, stride, padding, dilation, groups):
    """aten.convolution_backward for one of (input, weight)."""
    pairs, mask = ([n, n] for n in (stride, padding, dilation)), [index == i for i in range(3)]
    options = (None, *pairs, False, [0, 0], groups, mask)

    def make(layout):
        arrays = [t.contiguous(memory_format=layout) for t in (dy, x, w)]
        return lambda: aten.convolution_backward(*arrays, *options)[index]

    return _faster_layout(make)


@prepared("convolution", "F.conv2d, the faster of channels_last and default")
def _(x, w, bias, *options):
    def make(layout):
        arrays = [t.contiguous(memory_format=layout) for t in (x, w)]
        return lambda: F.conv2d(*arrays, bias, *options)

    return _faster_layout(make)


@prepared("convolution_input_grad", "aten.convolution_backward, the faster layout")
def _(dy, w, size, *options):
    x = dy.new_empty(len(dy), w.shape[1] * options[-1], *size)
    return _convolution_backward(0, dy, x, w, *options)


@prepared("convolution_weight_grad", "aten.convolution_backward, the faster layout")
def _(dy, x, kernel, *options):
    w = dy.new_empty(dy.shape[1], x.shape[1] // options[-1], *kernel)
    return _convolution_backward(1, dy, x, w, *options)


# Matrices and tables ------------------------------------------------------------------------------


@prepared("matmul", "torch.matmul, torch.addmm with a bias")
def _(a, b, transpose_a=False, transpose_b=False, bias=None):
    a = a.mT if transpose_a else a
    b = b.mT if transpose_b else b
    if bias is None:
        return lambda: torch.matmul(a, b)
    return lambda: torch.addmm(bias, a, b)


direct("linear_weight_grad", "dy.T @ x, dy.sum(0)", lambda dy, x, out=None: (dy.T @ x, dy.sum(0)))


@prepared("linear_gelu", "F.linear, F.gelu(approximate='tanh')")
def _(x, weight, bias):
    def step():
        pre = F.linear(x, weight, bias)
        return F.gelu(pre, approximate="tanh"), pre

    return step


@prepared("linear_gelu_grad", "dy @ W, aten.gelu_backward(approximate='tanh'), sum(0)")
def _(dy, weight, pre):
    def step():
        dpre = aten.gelu_backward(dy @ weight, pre, approximate="tanh")
        return dpre, dpre.sum(0)

    return step


direct("scale_", "Tensor.mul_", lambda x, factor: x.mul_(factor))
direct("lerp_", "Tensor.lerp_", lambda a, b, weight: a.lerp_(b, weight))
direct("embedding", "F.embedding", lambda w, i, *_: F.embedding(i, w))
direct(
    "embedding_at_positions",
    "F.embedding + positions",
    lambda w, i, positions: F.embedding(i, w) + positions,
)
direct(
    "embedding_grad",
    "aten.embedding_dense_backward",
    lambda dy, i, rows, padding=None: aten.embedding_dense_backward(
        dy, i, rows, -1 if padding is None else padding, False
    ),
)


# Recurrent layers ---------------------------------------------------------------------------------


def _recurrent(name: str) -> None:
    """The peers of a layer and its gradient: torch's function for whole sequences, which keeps what
    the gradient needs, and autograd's backward through it.
    """
    function = getattr(torch, "rnn_tanh" if name == "rnn" else name)

    def layer(x, *weights):
        h = x.new_zeros(1, x.shape[1], weights[1].shape[1])
        states = (h, h) if name == "lstm" else h
        with torch.enable_grad():
            return function(x, states, weights, True, 1, 0.0, True, False, False)

    @prepared(name, f"torch.{function.__name__}, recording for autograd")
    def _(x, *weights):
        leaves = [w.requires_grad_() for w in (x, *weights)]
        return lambda: layer(*leaves)

    @prepared(f"{name}_grad", f"autograd backward of torch.{function.__name__}")
    def _(dy, *args):
        x, weight_ih, weight_hh = args[2 if name == "lstm" else 1 :][:3]
        biases = [x.new_zeros(weight_ih.shape[0]) for _ in range(2)]
        leaves = [w.requires_grad_() for w in (x, weight_ih, weight_hh, *biases)]
        y = layer(*leaves)[0]
        return lambda: torch.autograd.grad(y, leaves[:4], dy, retain_graph=True)


for _name in ("rnn", "lstm", "gru"):
    _recurrent(_name)


# Finite -------------------------------------------------------------------------------------------


@prepared("mark_nonfinite_", "torch.isfinite(x).all()", comparable=False)
def _(x, found):
    return lambda: torch.isfinite(x).all()


# Loss scaling -------------------------------------------------------------------------------------


@prepared("unscale_", "torch._amp_foreach_non_finite_check_and_unscale_", comparable=False)
def _(g, state):
    found, factor = torch.zeros(1, device=g.device), 1 / state[:1]
    return lambda: torch._amp_foreach_non_finite_check_and_unscale_([g], found, factor)


@prepared("update_scale_", "torch._amp_update_scale_", comparable=False)
def _(state, growth=2.0, backoff=0.5, interval=2000, *_):
    scale, found = state[:1], torch.zeros(1, device=state.device)
    good = torch.zeros(1, dtype=torch.int32, device=state.device)
    return lambda: torch._amp_update_scale_(scale, good, found, growth, backoff, interval)
