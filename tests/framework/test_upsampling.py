"""interpolate, pixel_shuffle, unfold, fold, channel dropout, local response norm against PyTorch;
gradients; bad input.
"""

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L

torch = pytest.importorskip("torch", reason='not installed: pip install ".[bench]"')
RNG = np.random.default_rng(6)
SIZES = {1: (7,), 2: (5, 6), 3: (3, 4, 5)}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def image(dims, columns=False, dtype="float64"):
    if columns:
        return np.moveaxis(RNG.standard_normal((2, *SIZES[dims], 19)).astype(dtype), -1, 1)
    return RNG.standard_normal((2, 3, *SIZES[dims])).astype(dtype)


def compare(ours, theirs, x, atol=1e-6):
    """Outputs and gradients of ours (of a Tensor) and theirs (of torch's)."""
    a, b = fw.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-5, atol=atol)
    dy = RNG.standard_normal(y.shape).astype(x.dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-5, atol=2 * atol)
    return y


def sizes(dims):
    yield {"scale_factor": 2}
    yield {"scale_factor": 1.7}
    yield {"scale_factor": 0.6}
    yield {"scale_factor": 1.7, "recompute_scale_factor": True}
    yield {"size": (9, 3, 4)[:dims]}
    yield {"size": 1}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_interpolate(dims, columns, dtype):
    modes = [("nearest", None), (LINEAR[dims], False), (LINEAR[dims], True)]
    for options in sizes(dims):
        for mode, corners in modes:
            more = options | {"mode": mode, "align_corners": corners}
            y = compare(
                lambda x, more=more: F.interpolate(x, **more),
                lambda x, more=more: torch.nn.functional.interpolate(x, **more),
                image(dims, columns, dtype),
            )
            if columns and min(y.shape[2:]) > 1 and dtype == "float32":
                assert np.moveaxis(y.detach().numpy(), 1, -1).flags.c_contiguous


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_gradient_of_interpolate(mode):
    x = fw.tensor(RNG.standard_normal((1, 2, 3, 4))).to(fw.default_device())
    x.requires_grad_()
    assert fw.gradcheck(lambda x: F.interpolate(x, (5, 7), mode=mode), [x])


def test_pixels_are_shuffled_and_back():
    x = RNG.standard_normal((2, 12, 3, 4))
    up, down = torch.nn.functional.pixel_shuffle, torch.nn.functional.pixel_unshuffle
    compare(lambda a: F.pixel_shuffle(a, 2), lambda a: up(a, 2), x)
    y = RNG.standard_normal((2, 3, 6, 4))
    compare(lambda a: F.pixel_unshuffle(a, 2), lambda a: down(a, 2), y)
    back = L.PixelUnshuffle(2)(L.PixelShuffle(2)(fw.tensor(x)))
    np.testing.assert_array_equal(back.numpy(), x)
    np.testing.assert_array_equal(F.pixel_shuffle(fw.tensor(x[0]), 2).shape, (3, 6, 8))


UNFOLDS = [(3,), (2, 1, 0, 2), ((3, 2), (1, 2), (1, 0), (2, 1)), (3, 2, 4, 3)]


@pytest.mark.parametrize("args", UNFOLDS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unfold_and_fold(args, dtype):
    x = RNG.standard_normal((2, 3, 7, 8)).astype(dtype)
    y = compare(
        lambda a: F.unfold(a, *args), lambda a: torch.nn.functional.unfold(a, *args), x, 1e-5
    )
    columns = RNG.standard_normal(y.shape).astype(dtype)
    compare(
        lambda a: F.fold(a, (7, 8), *args),
        lambda a: torch.nn.functional.fold(a, (7, 8), *args),
        columns,
        1e-5,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 4), (1, 3, 2, 3, 4)])
def test_local_response_norm(size, shape):
    args = size, 0.3, 0.6, 1.5
    compare(
        L.LocalResponseNorm(*args), torch.nn.LocalResponseNorm(*args), RNG.standard_normal(shape)
    )


LAYERS = [
    ("Upsample", (None, 2), 2),
    ("Upsample", ((7, 9), None, "bilinear", True), 2),
    ("Unfold", (2, 1, 1, 2), 2),
    ("BatchNorm2d", (3,), 2),
    ("BatchNorm3d", (3, 1e-3, None), 3),
    ("InstanceNorm3d", (3,), 3),
]


@pytest.mark.parametrize(("name", "args", "dims"), LAYERS)
def test_layers(name, args, dims):
    ours, theirs = getattr(L, name)(*args), getattr(torch.nn, name)(*args)
    compare(ours.to("float64"), theirs.double(), image(dims))
    state = {key: value.numpy() for key, value in ours.state_dict().items()}
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(state[key], value.numpy(), rtol=1e-6)
    assert repr(ours)


def test_fold_layer():
    x = fw.tensor(RNG.standard_normal((1, 2, 4, 4)))
    y = L.Fold((4, 4), 2, stride=2)(L.Unfold(2, stride=2)(x))
    np.testing.assert_array_equal(y.numpy(), x.numpy())


@pytest.mark.parametrize(("layer", "dims"), [("Dropout1d", 1), ("Dropout2d", 2), ("Dropout3d", 3)])
def test_dropout_of_channels(layer, dims):
    fw.manual_seed(3)
    drop = getattr(L, layer)(0.25)
    x = fw.ones(200, 50, *SIZES[dims], requires_grad=True)
    y = drop(x)
    flat = y.detach().numpy().reshape(200, 50, -1)
    assert (flat == flat[..., :1]).all()
    assert set(np.unique(flat)) == {0, np.float32(1 / 0.75)}
    assert abs((flat[..., 0] == 0).mean() - 0.25) < 0.02
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())
    assert drop.eval()(x) is x


ERRORS = [
    (lambda x: F.interpolate(x), "size=None, scale_factor=None: expected one of the two"),
    (lambda x: F.interpolate(x, 3, mode="cubic"), "mode='cubic', expected one of nearest"),
    (lambda x: F.interpolate(x, 3, mode="linear"), r"expected \(N, C, L\) for mode='linear'"),
    (lambda x: F.interpolate(x, 3, align_corners=True), "align_corners is for the linear modes"),
    (lambda x: F.interpolate(x, scale_factor=0), "scale_factor=0, expected a positive number"),
    (lambda x: F.interpolate(x, scale_factor=0.1), r"scale_factor=0.1 of \(4, 4\) is a size of"),
    (lambda x: F.pixel_shuffle(x, 2), "3 channels .* no multiple of upscale_factor squared, 4"),
    (lambda x: F.pixel_unshuffle(x, 3), "4 x 4 pixels"),
    (lambda x: F.unfold(x, 5), "the output would have size 0"),
    (lambda x: F.fold(x.reshape(1, 3, 16), 4, 2), r"expected \(N, C \* 4, 9\)"),
    (lambda x: F.channel_dropout(x.reshape(3, 16)), r"\(3, 16\), expected \(N, C, \*\)"),
    (lambda x: L.Dropout2d()(x.reshape(3, 16)), r"Dropout2d: .*expected \(N, C, H, W\)"),
    (lambda x: L.BatchNorm2d(4)(x), r"BatchNorm2d: .* expected \(N, 4, H, W\)"),
    (lambda x: L.BatchNorm3d(3)(x), r"BatchNorm3d: .* expected \(N, 3, D, H, W\)"),
    (lambda x: F.local_response_norm(x, 0), "size=0"),
]


@pytest.mark.parametrize(("call", "words"), ERRORS)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(fw.ones(1, 3, 4, 4))
