"""Convolutions on the CPU: each way to compute one, against the float64 reference."""

import numpy as np
import pytest

from kernels.convolution import (
    convolution,
    convolution_input_grad,
    convolution_weight_grad,
)
from kernels.convolution_shapes import geometry_of
from kernels.precision import exact_convolution
from kernels.registry import has_numba

RNG = np.random.default_rng(5)

#: x, output channels, kernel, stride, padding, dilation, groups
WAYS = {
    "winograd, blocks of tiles": ((3, 17, 9, 6), 40, (3, 3), 1, 1, 1, 1),
    "winograd, uneven borders": ((2, 32, 7, 13), 33, (3, 3), 1, ((0, 2), (1, 3)), 1, 1),
    "winograd, panels of few tiles": ((20, 256, 4, 4), 160, (3, 3), 1, 1, 1, 1),
    "winograd, groups of tiles": ((9, 190, 24, 20), 190, (3, 3), 1, 1, 1, 1),
    "gathered": ((2, 40, 9, 8), 70, (3, 3), 2, 1, 1, 1),
    "gathered in chunks": ((2, 300, 5, 5), 40, (5, 5), 1, 2, 1, 1),
    "gathered, most of it border": ((2, 20, 2, 3), 20, (3, 3), 3, 4, 2, 1),
    "gathered, fewer phases than the stride": ((2, 20, 9, 9), 20, (1, 1), 3, 0, 1, 1),
    "read where it lies": ((9, 6, 14, 13), 20, (5, 5), 1, 0, 1, 1),
    "read within borders": ((8, 20, 17, 16), 33, (3, 3), 2, 1, 1, 1),
    "read in bands": ((1, 33, 9, 9), 40, (1, 1), 1, 0, 1, 1),
    "planes": ((17, 1, 28, 28), 6, (5, 5), 1, 2, 1, 1),
    "planes, both gradients": ((5, 6, 14, 13), 20, (5, 5), 1, 0, 1, 1),
    "planes, dilated": ((3, 8, 9, 10), 5, (3, 2), 1, (2, 1), (2, 1), 1),
    "planes of single places": ((40, 4, 5, 5), 7, (1, 1), 1, 0, 1, 1),
    "depthwise": ((2, 37, 9, 8), 37, (3, 3), 1, 1, 1, 37),
    "depthwise, strided": ((2, 20, 9, 8), 20, (5, 3), 2, (3, 1), (1, 2), 20),
}


def drawn(x_shape, channels, kernel, *options):
    """x, weight, bias and dy, in float64."""
    weight = (channels, x_shape[1] // options[-1], *kernel)
    g = geometry_of("test", x_shape, weight, *options)
    scale = (weight[1] * np.prod(kernel)) ** -0.5
    w = RNG.standard_normal(weight) * scale
    return RNG.standard_normal(x_shape), w, RNG.standard_normal(channels), g


def errors(args, options, g):
    """Of y, dx and dw, over their largest elements."""
    x, w, b = args
    dy = RNG.standard_normal(g.y_shape)
    pairs = [
        (convolution, (x, w, b, *options)),
        (convolution_input_grad, (dy, w, g.size, *options)),
        (convolution_weight_grad, (dy, x, g.kernel, *options)),
    ]
    for kernel, given in pairs:
        narrow = [a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in given]
        truth, got = kernel.reference(*given), kernel(*narrow)
        assert got.dtype == np.float32
        yield np.abs(got - truth).max() / np.abs(truth).max()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_compute_it(way):
    *args, g = drawn(*WAYS[way])
    assert max(errors(args, WAYS[way][3:], g)) < 1e-5


@pytest.mark.skipif(not has_numba(), reason="without numba the reference runs")
def test_the_exact_path_has_smaller_errors():
    case = WAYS["winograd, blocks of tiles"]
    *args, g = drawn(*case)
    winograd = list(errors(args, case[3:], g))
    with exact_convolution():
        exact = list(errors(args, case[3:], g))
    assert max(exact) < 1e-6
    assert max(winograd) > max(exact)


def test_relu_and_bias_are_part_of_it():
    for name in ("winograd, uneven borders", "gathered", "planes", "depthwise"):
        x, w, b, _ = (
            a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in drawn(*WAYS[name])
        )
        options = WAYS[name][3:]
        plain = convolution(x, w, b, *options)
        np.testing.assert_array_equal(convolution(x, w, b, *options, True), np.maximum(plain, 0))
        x[0, 0, 0, 0] = np.nan
        assert np.isnan(convolution(x, w, b, *options, True)).any()


@pytest.mark.parametrize("way", WAYS)
def test_the_layout_of_the_input_does_not_matter(way):
    x, w, b, _ = drawn(*WAYS[way])
    x, w, b = (a.astype(np.float32) for a in (x, w, b))
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y, z = (convolution(a, w, b, *WAYS[way][3:]) for a in (x, last))
    np.testing.assert_array_equal(y, z)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous


def test_the_gradient_goes_where_it_is_asked_to():
    x, w, _, g = drawn(*WAYS["winograd, blocks of tiles"])
    x, dy = x.astype(np.float32), RNG.standard_normal(g.y_shape).astype(np.float32)
    out = np.empty(w.shape, np.float32)
    assert convolution_weight_grad(dy, x, (3, 3), 1, 1, 1, 1, out) is out
    np.testing.assert_array_equal(out, convolution_weight_grad(dy, x, (3, 3), 1, 1))


def test_what_does_not_fit_is_said():
    x, w = np.zeros((2, 3, 5, 5)), np.zeros((4, 3, 3, 3))
    with pytest.raises(ValueError, match=r"bias is float64\(3,\), expected float64\(4,\)"):
        convolution(x, w, np.zeros(3))
    with pytest.raises(ValueError, match=r"dy has shape \(2, 4, 5, 5\), the output of the .* 3, 3"):
        convolution_input_grad(np.zeros((2, 4, 5, 5)), w, (5, 5))
    with pytest.raises(ValueError, match=r"out is float64\(4, 3, 3\), expected"):
        convolution_weight_grad(np.zeros((2, 4, 3, 3)), x, (3, 3), out=np.zeros((4, 3, 3)))
