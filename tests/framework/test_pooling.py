"""Pooling against PyTorch over a grid of arguments and both layouts; gradients; bad input."""

import itertools

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L

RNG = np.random.default_rng(4)
SIZES = {1: (11,), 2: (9, 8), 3: (5, 6, 7)}


def images(dims, columns, dtype="float64", batch=(2, 3)):
    """(N, C, *), channels last in memory or not; few different values, so that some are equal."""
    x = RNG.integers(-3, 4, (*batch, *SIZES[dims])).astype(dtype)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if columns else x


def compare(ours, theirs, x):
    """Outputs and gradients of two functions of x (ours of a Tensor, theirs of torch's)."""
    torch = pytest.importorskip("torch", reason='not installed: pip install ".[bench]"')
    a, b = fw.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    if isinstance(z, tuple):
        assert y[1].dtype == np.int64
        np.testing.assert_array_equal(y[1].numpy(), z[1].numpy())
        y, z = y[0], z[0]
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=2e-6, atol=1e-6)
    dy = RNG.standard_normal(y.shape).astype(x.dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=2e-6, atol=1e-6)


def torch_function(name):
    torch = pytest.importorskip("torch", reason='not installed: pip install ".[bench]"')
    return getattr(torch.nn.functional, name)


def slides(dims):
    """kernel, stride, padding, ceil_mode: sizes that divide and that do not."""
    for kernel, stride, ceil in itertools.product((1, 2, 3), (1, 2, 3), (False, True)):
        for padding in range(kernel // 2 + 1):
            yield kernel, stride, padding, ceil
    yield (2, 3, 1)[:dims], (1, 2, 3)[:dims], (1, 0, 0)[:dims], True


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_max_pool(dims, dtype, columns):
    name = f"max_pool{dims}d"
    for kernel, stride, padding, ceil in slides(dims):
        for dilation in (1, 2):
            args = kernel, stride, padding, dilation, ceil, True
            compare(
                lambda x, args=args: getattr(F, name)(x, *args),
                lambda x, args=args: torch_function(name)(x, *args),
                images(dims, columns, dtype),
            )


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_avg_pool(dims, dtype, columns):
    name = f"avg_pool{dims}d"
    for kernel, stride, padding, ceil in slides(dims):
        for more in ((True,), (False,), *([(True, 5)] if dims > 1 else [])):
            args = kernel, stride, padding, ceil, *more
            compare(
                lambda x, args=args: getattr(F, name)(x, *args),
                lambda x, args=args: torch_function(name)(x, *args),
                images(dims, columns, dtype),
            )


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_pool(dims, kind, columns):
    name = f"adaptive_{kind}_pool{dims}d"
    sizes = [1, 2, 5, 9]
    if dims > 1:  # torch takes None for two and three axes
        sizes += [(None, 4, 2)[:dims], (3, None, 9)[:dims]]
    for size in sizes:
        for dtype in ("float32", "float64"):
            compare(
                lambda x, size=size: getattr(F, name)(x, size),
                lambda x, size=size: torch_function(name)(x, size),
                images(dims, columns, dtype),
            )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unpooling_puts_elements_back(dims):
    x = RNG.standard_normal((2, 3, *SIZES[dims]))
    kernel, size = 2, SIZES[dims]

    def ours(a):
        y, indices = getattr(F, f"max_pool{dims}d")(a, kernel, return_indices=True)
        return getattr(F, f"max_unpool{dims}d")(y, indices, kernel, output_size=size)

    def theirs(a):
        y, indices = torch_function(f"max_pool{dims}d")(a, kernel, return_indices=True)
        return torch_function(f"max_unpool{dims}d")(y, indices, kernel, output_size=size)

    compare(ours, theirs, x)


def test_one_image_without_a_batch():
    x = fw.tensor(images(2, False))
    one = fw.tensor(x.numpy()[0], requires_grad=True)
    y = F.max_pool2d(one, 2)
    np.testing.assert_array_equal(y.detach().numpy(), F.max_pool2d(x, 2).numpy()[0])
    y.sum().backward()
    assert one.grad.shape == one.shape


@pytest.mark.parametrize("columns", [False, True])
def test_the_layout_stays_and_nan_comes_out(columns):
    x = images(2, columns, "float32", (2, 19))
    x[0, 1, 4, 4] = np.nan
    x[1, 18] = -np.inf
    a = fw.Tensor(x, requires_grad=True)  # fw.tensor copies in C order
    for pool in (F.max_pool2d, F.avg_pool2d):
        a.grad = None
        y = pool(a, 3, 2, 1)
        assert np.moveaxis(y.detach().numpy(), 1, -1).flags.c_contiguous == columns
        assert np.isnan(y.detach().numpy()[0, 1]).sum() == 1
        assert np.isneginf(y.detach().numpy()[1, 18]).all()
        y.backward(np.ones(y.shape, np.float32))
        assert np.isfinite(a.grad.numpy()).all()


def test_max_pool_of_equals_gives_the_first_of_them_the_gradient():
    x = fw.tensor(np.zeros((1, 1, 2, 2)), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad.numpy().ravel().tolist() == [1, 0, 0, 0]


GRADCHECKS = {
    "max_pool1d": lambda x: F.max_pool1d(x.reshape(2, 3, 30), 3, 2, 1, 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "avg_pool3d": lambda x: F.avg_pool3d(
        x.reshape(1, 3, 2, 5, 6), (1, 2, 3), 1, divisor_override=2
    ),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
}


@pytest.mark.parametrize("name", GRADCHECKS)
@pytest.mark.usefixtures("device")
def test_gradient_is_the_central_difference(name):
    x = fw.tensor(RNG.standard_normal((2, 3, 5, 6)), requires_grad=True).to(fw.default_device())
    assert fw.gradcheck(GRADCHECKS[name], [x.detach().requires_grad_()])


ERRORS = [
    (
        lambda x: F.max_pool2d(x, 9, 1),
        r"kernel_size=9.*axis 2, 5 \+ 2 \* 0 = 5.*would have size -3",
    ),
    (lambda x: F.max_pool2d(x, 3, padding=2), "padding=2 .* half of the kernel, which is 3"),
    (lambda x: F.max_pool2d(x, 3, dilation=3), r"dilation=3 \(over 7 elements\).*size 0"),
    (lambda x: F.avg_pool2d(x, (2, 3, 4)), r"kernel_size=\(2, 3, 4\).*or 2 of them"),
    (lambda x: F.avg_pool2d(x, 2, 0), "stride=0, expected an integer of at least 1"),
    (lambda x: F.avg_pool2d(x, 2, divisor_override=0), "divisor_override=0"),
    (lambda x: F.adaptive_avg_pool2d(x, (0, 2)), r"output_size=\[0, 2\]"),
    (lambda x: F.max_pool1d(x, 2), r"shape \(2, 3, 5, 6\), expected \(N, C, L\)"),
    (lambda x: L.MaxPool2d(0), "MaxPool2d: kernel_size=0"),
    (lambda x: L.AdaptiveAvgPool2d("all"), "AdaptiveAvgPool2d: output_size"),
    (
        lambda x: F.max_unpool2d(x, fw.tensor(np.zeros((2, 3, 5, 5), "int64")), 2),
        r"indices are int64 of shape \(2, 3, 5, 5\)",
    ),
    (
        lambda x: F.max_unpool2d(x, fw.tensor(np.zeros(x.shape, "int64")), 2, output_size=(5, 12)),
        r"output_size=\(5, 12\), expected each axis within a stride \(2, 2\) of \(10, 12\)",
    ),
]


@pytest.mark.parametrize(("call", "words"), ERRORS)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(fw.ones(2, 3, 5, 6))


def test_a_place_outside_is_an_error():
    places = fw.tensor(np.full((2, 3, 5, 6), 120, "int64"))
    with pytest.raises(IndexError, match="a place is 120, expected 0 <= place < 120"):
        F.max_unpool2d(fw.ones(2, 3, 5, 6), places, 2)


def test_a_window_of_padding_alone_is_an_error():
    with pytest.raises(ValueError, match="window 0 along axis 2 lies in the padding alone"):
        F.max_pool1d(fw.ones(1, 1, 1), 2, padding=1, dilation=2)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="max_pool2d: expected floating-point values"):
        F.max_pool2d(fw.tensor(np.zeros((1, 1, 4, 4), "int64")), 2)


LAYERS = [
    ("MaxPool1d", (3, 2, 1)),
    ("MaxPool2d", (2,)),
    ("MaxPool2d", (3, 2, 1, 1, False, True)),
    ("MaxPool3d", ((1, 2, 3), 2)),
    ("AvgPool1d", (3, 2, 1)),
    ("AvgPool2d", (2, None, 0, True, False)),
    ("AvgPool2d", (2, 1, 1, False, True, 3)),
    ("AvgPool3d", (2,)),
    ("AdaptiveAvgPool1d", (3,)),
    ("AdaptiveAvgPool2d", (1,)),
    ("AdaptiveAvgPool2d", ((None, 3),)),
    ("AdaptiveAvgPool3d", ((2, None, 1),)),
    ("AdaptiveMaxPool1d", (3,)),
    ("AdaptiveMaxPool2d", ((2, 3), True)),
    ("AdaptiveMaxPool3d", (2,)),
]


@pytest.mark.parametrize(("name", "args"), LAYERS)
def test_layers(name, args):
    torch = pytest.importorskip("torch", reason='not installed: pip install ".[bench]"')
    ours, theirs = getattr(L, name)(*args), getattr(torch.nn, name)(*args)
    compare(ours, theirs, images(int(name[-2]), False))
    assert repr(ours)


def test_unpooling_layer():
    pool, unpool = L.MaxPool2d(2, 2, return_indices=True), L.MaxUnpool2d(2, 2)
    x = fw.tensor(np.arange(32.0).reshape(1, 2, 4, 4))
    y = unpool(*pool(x))
    np.testing.assert_array_equal(y.numpy()[0, 0, 1], [0, 5, 0, 7])
    assert y.shape == x.shape
