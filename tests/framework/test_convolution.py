"""Convolutions: gradients over a grid of geometries, PyTorch's results, errors that say what does
not fit.
"""

import itertools

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L
from framework.autograd import gradcheck
from framework.optimizers import SGD

RNG = np.random.default_rng(8)


def leaf(*shape):
    return fw.tensor(RNG.standard_normal(shape), requires_grad=True)


def fits(stride, padding, dilation, groups):
    """An odd and an even side, a kernel of 3 and 2."""
    return 5 + 2 * padding - dilation * 2 >= 1


GRID = [g for g in itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (1, 2)) if fits(*g)]


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), GRID)
def test_gradients_over_the_grid(stride, padding, dilation, groups):
    x, w, b = leaf(1, 2, 5, 4), leaf(2, 2 // groups, 3, 2), leaf(2)
    options = stride, padding, dilation, groups
    assert gradcheck(lambda *a: F.conv2d(*a, *options), [x, w, b])
    w = leaf(2, 2 // groups, 3, 2)
    x = leaf(1, 2, 3, 3)
    extra = stride - 1
    if (3 - 1) * stride + 1 + dilation + extra > 2 * padding:
        options = stride, padding, extra, groups, dilation
        assert gradcheck(lambda *a: F.conv_transpose2d(*a, *options), [x, w, b])


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("padding", ["same", 1])
def test_gradients_in_one_and_three_axes(axes, padding):
    x, w = leaf(2, 2, *(4, 3, 2)[:axes]), leaf(3, 2, *(2, 3, 2)[:axes])
    assert gradcheck(lambda *a: getattr(F, f"conv{axes}d")(*a, padding=padding), [x, w])
    x, w = leaf(2, 3, *(3, 2, 2)[:axes]), leaf(3, 1, *(2, 3, 2)[:axes])
    transposed = getattr(F, f"conv_transpose{axes}d")
    assert gradcheck(lambda *a: transposed(*a, stride=2, output_padding=1, groups=1), [x, w])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_relu_behind_a_convolution_in_one_pass(kernel, groups, dtype):
    convolution = L.Conv2d(32, 32, kernel, padding="same", groups=groups)
    x = fw.tensor(RNG.standard_normal((2, 32, 9, 8)).astype("float32"))
    if dtype == "float64":
        convolution, x = convolution.to("float64"), x.to("float64")
    x.requires_grad = True

    def run(compute):
        convolution.zero_grad()
        x.grad = None
        with fw.autocast("bfloat16", enabled=dtype == "bfloat16"):
            y = compute()
        (y * y).sum().backward()
        return [a.astype(np.float64) for a in (y.data, x.grad.data, convolution.weight.grad.data)]

    together = run(lambda: convolution(x, "relu"))
    apart = run(lambda: F.relu(convolution(x)))
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-2 if dtype == "bfloat16" else 1e-5)


def test_an_activation_that_there_is_not():
    with pytest.raises(ValueError, match="conv2d: activation='tanh', expected 'relu' or None"):
        F.conv2d(zeros(1, 1, 3, 3), zeros(1, 1, 3, 3), activation="tanh")


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_gradients_of_padding(mode):
    x = leaf(2, 3, 4)
    assert gradcheck(lambda a: F.pad(a, [(0, 0), (1, 2), (3, 1)], mode=mode), [x])


def test_padding_keeps_the_order_in_memory():
    x = F.conv2d(zeros(2, 3, 4, 5), zeros(3, 3, 1, 1))
    for mode in ("constant", "reflect"):
        y = F.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], mode=mode)
        assert y.shape == (2, 3, 6, 7)
        assert y.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_results_lie_channels_last():
    y = L.Conv2d(3, 8, 3)(fw.tensor(np.ones((2, 3, 7, 7), np.float32)))
    assert y.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_a_tensor_convolved_with_itself():
    x = leaf(2, 2, 3, 3)
    assert gradcheck(lambda a: F.conv2d(a, a, padding=1), [x])


def test_weights_gradients_go_into_the_optimizers_buffer():
    conv = L.Conv2d(3, 4, 3)
    optimizer = SGD(conv.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        conv(fw.tensor(np.ones((2, 3, 5, 5), np.float32))).sum().backward()
        optimizer.step()
    assert conv.weight.grad.data is conv.weight.slot


def test_autocast_computes_in_16_bits_and_keeps_float32_gradients():
    conv, x = L.Conv2d(3, 4, 3), fw.tensor(np.ones((2, 3, 5, 5), np.float32), requires_grad=True)
    exact = conv(x)
    with fw.autocast("bfloat16"):
        y = conv(x)
    assert y.dtype.name == "bfloat16"
    np.testing.assert_allclose(y.data.astype(np.float32), exact.data, atol=0.02)
    y.to("float32").sum().backward()
    assert {p.grad.dtype.name for p in (x, conv.weight, conv.bias)} == {"float32"}
    up = L.ConvTranspose2d(3, 4, 3)
    with fw.autocast("bfloat16"):
        assert up(x).dtype.name == "bfloat16"


def test_summary_counts_multiply_adds():
    model = L.Sequential(L.Conv2d(3, 8, 3, padding=1, groups=1), L.ConvTranspose2d(8, 2, 2, 2))
    rows = model.summary((5, 3, 6, 6)).rows
    assert rows[0].multiply_adds == 5 * 8 * 36 * 27
    assert rows[1].multiply_adds == 5 * 8 * 36 * 2 * 4


# Errors -------------------------------------------------------------------------------------------


def zeros(*shape):
    return fw.tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: F.conv2d(zeros(2, 3, 8, 8), zeros(6, 4, 3, 3)),
            r"conv2d: .*has 3 channels.*\(6, 4, 3, 3\) with groups=1 expects .*= 4.*"
            r"would be \(2, 6, 6, 6\)",
        ),
        (
            lambda: F.conv2d(zeros(2, 4, 8, 8), zeros(5, 2, 3, 3), groups=2),
            r"5 output channels, which groups=2 does not divide",
        ),
        (
            lambda: F.conv2d(zeros(2, 4, 3, 9), zeros(4, 4, 3, 3), padding=1, dilation=4),
            r"input of 3x9 \(5x11 with padding\) is smaller than the kernel of 3x3 "
            r"\(9x9 with dilation\): the output would be -3x3",
        ),
        (
            lambda: F.conv2d(zeros(2, 4, 3), zeros(4, 4, 3)),
            r"conv2d: the input has shape \(2, 4, 3\), the weight \(4, 4, 3\)",
        ),
        (
            lambda: F.conv1d(zeros(2, 4, 9), zeros(4, 4, 3), zeros(3)),
            r"bias has shape \(3,\), the 4 output channels need \(4,\)",
        ),
        (
            lambda: F.conv2d(zeros(1, 1, 9, 9), zeros(1, 1, 3, 3), padding="same", stride=2),
            r'padding="same" with stride=2',
        ),
        (
            lambda: F.conv2d(zeros(1, 1, 9, 9), zeros(1, 1, 3, 3), padding="full"),
            r"padding='full', expected an integer, 2 of them",
        ),
        (
            lambda: F.conv2d(zeros(1, 1, 9, 9), zeros(1, 1, 3, 3), stride=(1, 0)),
            r"stride=\(1, 0\), expected an integer of at least 1, or 2 of them",
        ),
        (
            lambda: F.conv_transpose2d(zeros(2, 3, 4, 4), zeros(4, 6, 3, 3)),
            r"has 3 channels, the weight \(4, 6, 3, 3\) expects 4; .*would be \(2, 6, 6, 6\)",
        ),
        (
            lambda: F.conv_transpose1d(zeros(2, 3, 4), zeros(3, 6, 3), stride=2, output_padding=2),
            r"output_padding=2, expected less than stride=2",
        ),
        (
            lambda: F.conv_transpose1d(zeros(2, 3, 1), zeros(3, 6, 3), padding=2),
            r"would give an output of size -1",
        ),
        (lambda: L.Conv2d(6, 4, 3, groups=4), r"Conv2d: in_channels=6 is not divisible by groups"),
        (lambda: L.Conv2d(6, 4, (3, 3, 3)), r"kernel_size=\(3, 3, 3\).* or 2 of them"),
        (lambda: L.Conv2d(6, 4, 3, padding_mode="mirror"), r"padding_mode='mirror', expected one"),
        (
            lambda: L.ConvTranspose1d(1, 1, 3, 2)(zeros(1, 1, 4), output_size=(11,)),
            r"output_size=\(11,\) .* from \(9,\) to \(10,\)",
        ),
        (lambda: F.pad(zeros(2, 3), 3, mode="reflect"), r"axis 0: mode='reflect' adds at most 1"),
    ],
)
def test_what_does_not_fit_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_dtypes_are_not_mixed():
    with pytest.raises(TypeError, match="input is float64, weight float32"):
        F.conv2d(leaf(1, 1, 3, 3), zeros(1, 1, 3, 3))
