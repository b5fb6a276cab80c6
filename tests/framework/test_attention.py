"""Attention: functions and layers against PyTorch, masks, gradients, dropout, bad input."""

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L

RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.standard_normal(shape)


def qkv(B=2, H=4, T=5, S=7, D=6, G=4):
    return normal(B, H, T, D), normal(B, G, S, D), normal(B, G, S, D)


def leaf(x):
    return fw.tensor(x, requires_grad=True)


# --- PyTorch --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[bench]"')


CALLS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": RNG.random((2, 1, 5, 7)) < 0.6},
    "added": {"attn_mask": normal(4, 5, 7)},
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_equals_torch(torch, options, groups, dtype):
    arrays = [x.astype(dtype) for x in qkv(G=groups)]
    options = {
        k: v.astype(dtype) if getattr(v, "dtype", None) == np.float64 else v
        for k, v in options.items()
    }
    xs, ts = [leaf(x) for x in arrays], [torch.tensor(x, requires_grad=True) for x in arrays]

    def given(make):
        return {k: make(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}

    y = F.scaled_dot_product_attention(*xs, **given(fw.tensor))
    z = torch.nn.functional.scaled_dot_product_attention(
        *ts, **given(torch.tensor), enable_gqa=groups < 4
    )
    dy = normal(*y.shape).astype(dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    close = {"rtol": 1e-9, "atol": 1e-11} if dtype == "float64" else {"rtol": 2e-5, "atol": 5e-6}
    np.testing.assert_allclose(y.data, z.detach(), **close)
    for a, b in zip(xs, ts, strict=True):
        np.testing.assert_allclose(a.grad.data, b.grad, **close)


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": np.array([[0, 0, 1], [0, 0, 0]], bool)},
    "mask": {"attn_mask": np.triu(np.ones((3, 3), bool), 1)},
    "added": {"attn_mask": normal(3, 3)},
    "by_head": {"attn_mask": RNG.random((4, 3, 3)) > 0.9},
    "both": {
        "key_padding_mask": np.array([[0, 0, 1], [0, 1, 0]], bool),
        "attn_mask": np.eye(3, k=2).astype(bool),
    },
    "both_added": {
        "key_padding_mask": np.array([[0.0, 0.5, -1], [0, 1, 0]]),
        "attn_mask": normal(3, 3),
    },
}

LAYERS = {
    "self": ({}, 1),
    "batch_first": ({"batch_first": True}, 1),
    "no_bias": ({"bias": False, "batch_first": True}, 1),
    "cross": ({"batch_first": True}, 2),
    "kdim": ({"batch_first": True, "kdim": 5, "vdim": 3}, 3),
}


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "no_weights"])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("options", "inputs"), LAYERS.values(), ids=LAYERS)
def test_multihead_equals_torch(torch, options, inputs, masks, weights):
    theirs = torch.nn.MultiheadAttention(8, 2, **options).double()
    for p in theirs.parameters():
        p.data = torch.tensor(normal(*p.shape))
    ours = L.MultiheadAttention(8, 2, **options).to("float64")
    ours.load_state_dict(theirs.state_dict())
    shape = (2, 3) if options.get("batch_first") else (3, 2)
    arrays = [normal(*shape, 8), normal(*shape, options.get("kdim", 8)), normal(*shape, 8)]
    arrays = [arrays[0]] + arrays[1:inputs]
    if inputs == 3:
        arrays[2] = normal(*shape, 3)
    xs, ts = [leaf(x) for x in arrays], [torch.tensor(x, requires_grad=True) for x in arrays]

    def three(x):
        return [x[0], x[min(1, inputs - 1)], x[inputs - 1]]

    y, w = ours(*three(xs), need_weights=weights, **{k: fw.tensor(v) for k, v in masks.items()})
    z, u = theirs(
        *three(ts), need_weights=weights, **{k: torch.tensor(v) for k, v in masks.items()}
    )
    dy = normal(*y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    np.testing.assert_allclose(y.data, z.detach(), rtol=1e-9, atol=1e-11)
    if weights:
        np.testing.assert_allclose(w.data, u.detach(), rtol=1e-9, atol=1e-11)
    else:
        assert w is None
    for a, b in zip(xs, ts, strict=True):
        np.testing.assert_allclose(a.grad.data, b.grad, rtol=1e-8, atol=1e-10)
    theirs_by_name = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad.data, theirs_by_name[name].grad, rtol=1e-8, atol=1e-10)


def test_multihead_without_a_batch_equals_torch(torch):
    theirs, ours = torch.nn.MultiheadAttention(8, 2).double(), L.MultiheadAttention(8, 2)
    ours.to("float64").load_state_dict(theirs.state_dict())
    x = normal(3, 8)
    y, w = ours(*[fw.tensor(x)] * 3, average_attn_weights=False)
    z, u = theirs(*[torch.tensor(x)] * 3, average_attn_weights=False)
    np.testing.assert_allclose(y.detach().data, z.detach(), rtol=1e-9)
    np.testing.assert_allclose(w.data, u.detach(), rtol=1e-9)


# --- gradients ------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "start": 2},
    "window": {"is_causal": True, "window": 3, "start": 2},
    "both_sides": {"window": 3},
    "lengths": {"lengths": fw.tensor(np.array([3, 7]))},
    "alibi": {"slopes": F.alibi_slopes(4)},
    "mask": {"attn_mask": fw.tensor(RNG.random((5, 7)) < 0.5)},
    "bias": {"attn_mask": fw.tensor(normal(2, 1, 5, 7))},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_by_central_differences(options):
    xs = [leaf(x) for x in qkv(G=2, D=3)]
    assert fw.gradcheck(lambda *a: F.scaled_dot_product_attention(*a, **options), xs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_masks_spelled_out(options):
    """Each equals the softmax with a mask or bias written by hand."""
    q, k, v = qkv()
    t, s = np.arange(5)[:, None] + options.get("start", 0), np.arange(7)
    bias = np.zeros((2, 4, 5, 7))
    if options.get("is_causal"):
        bias[..., s > t] = -np.inf
    if "window" in options:
        bias[..., abs(s - t) >= options["window"]] = -np.inf
    if "lengths" in options:
        bias[0, ..., 3:] = -np.inf
    if "slopes" in options:
        bias -= np.array([0.25, 0.0625, 1 / 64, 1 / 256])[:, None, None] * abs(s - t)
    mask = options["attn_mask"].data if "attn_mask" in options else np.zeros(())
    bias += np.where(mask, 0, -np.inf) if mask.dtype == bool else mask
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(6) + bias
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(-1, keepdims=True))
        expected = np.nan_to_num(e / e.sum(-1, keepdims=True)) @ v
    y = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)), **options)
    np.testing.assert_allclose(y.data, expected, rtol=1e-9, atol=1e-12)


# --- details --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_query_that_sees_no_key_gives_zeros(dtype):
    xs = [leaf(x.astype(dtype)) for x in qkv()]
    mask = np.ones((5, 7), bool)
    mask[1] = False
    y = F.scaled_dot_product_attention(*xs, fw.tensor(mask))
    assert (y.data[:, :, 1] == 0).all()
    y.sum().backward()
    for x in xs:
        assert np.isfinite(x.grad.data).all()
    assert (xs[0].grad.data[:, :, 1] == 0).all()


def test_packed_equals_unpacked_bit_for_bit():
    for H, G, D in ((4, 4, 16), (4, 2, 16), (2, 1, 5)):
        packed = normal(3, 20, (H + 2 * G) * D).astype("float32")
        x = leaf(packed)
        y = F.packed_attention(x, H, G, is_causal=True)
        parts = [
            leaf(np.ascontiguousarray(p.reshape(3, 20, -1, D).swapaxes(1, 2)))
            for p in np.split(packed, [H * D, (H + G) * D], -1)
        ]
        z = F.scaled_dot_product_attention(*parts, is_causal=True)
        assert y.data.flags.c_contiguous
        assert (y.data.reshape(3, 20, H, D).swapaxes(1, 2) == z.data).all()
        dy = normal(*y.shape).astype("float32")
        y.backward(dy)
        z.backward(dy.reshape(3, 20, H, D).swapaxes(1, 2))
        together = [p.grad.data.swapaxes(1, 2).reshape(3, 20, -1) for p in parts]
        assert (x.grad.data == np.concatenate(together, -1)).all()


def test_dropout_drops_weights_and_replays():
    B, H, T, D = 2, 2, 40, 8
    q, k, v = (normal(B, H, T, D).astype("float32") for _ in range(3))
    v = np.broadcast_to(np.eye(T, dtype="float32"), (B, H, T, T))[..., :T]
    q, k = (np.concatenate([x, np.zeros((B, H, T, T - D), "float32")], -1) for x in (q, k))
    fw.manual_seed(3)
    once = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)), dropout_p=0.25)
    other = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)), dropout_p=0.25)
    fw.manual_seed(3)
    again = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)), dropout_p=0.25)
    full = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)))
    assert (once.data == again.data).all()
    kept = once.data != 0  # v is the identity: the output is the weights themselves
    assert (kept != (other.data != 0)).any()
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(once.data[kept], full.data[kept] / 0.75, rtol=1e-5)


def test_slopes_of_alibi():
    assert F.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    np.testing.assert_allclose(
        F.alibi_slopes(6).data, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    )


def test_autocast_computes_in_16_bits():
    xs = [leaf(x.astype("float32")) for x in qkv()]
    with fw.autocast("bfloat16"):
        y = F.scaled_dot_product_attention(*xs)
    assert y.dtype.name == "bfloat16"
    y.sum().backward()
    assert xs[0].grad.dtype == np.float32


# --- bad input ------------------------------------------------------------------------------------


def tensors(**sizes):
    return [fw.tensor(x) for x in qkv(**sizes)]


BAD = {
    "3 heads of keys and values do not divide 4": ((tensors(G=3)), {}),
    r"q \(2, 4, 5, 6\), k \(2, 4, 7, 6\), v \(2, 4, 5, 6\)": (
        [*tensors()[:2], fw.tensor(normal(2, 4, 5, 6))],
        {},
    ),
    r"mask has shape \(5, 6\), which does not broadcast to \(2, 4, 5, 7\)": (
        tensors(),
        {"attn_mask": fw.tensor(normal(5, 6))},
    ),
    r"lengths are int64\(3,\), expected integers \(2,\)": (
        tensors(),
        {"lengths": fw.tensor(np.arange(3))},
    ),
    r"slopes have shape \(3,\), expected \(4,\)": (tensors(), {"slopes": F.alibi_slopes(3)}),
    "window=0, expected at least 1": (tensors(), {"window": 0}),
    "start=-1": (tensors(), {"start": -1}),
    "p=1.5": (tensors(), {"dropout_p": 1.5}),
    "attn_mask requires a gradient": (tensors(), {"attn_mask": leaf(normal(5, 7))}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    xs, options = BAD[message]
    with pytest.raises(ValueError, match=message):
        F.scaled_dot_product_attention(*xs, **options)


def test_bad_types_are_named():
    with pytest.raises(TypeError, match="attn_mask is int64"):
        F.scaled_dot_product_attention(*tensors(), fw.tensor(np.ones((5, 7), int)))
    with pytest.raises(TypeError, match="query is float32, key float64"):
        F.scaled_dot_product_attention(tensors()[0].to("float32"), *tensors()[1:])


def test_bad_layers_are_named():
    with pytest.raises(ValueError, match="embed_dim=10 is not a multiple of num_heads=3"):
        L.MultiheadAttention(10, 3)
    layer = L.MultiheadAttention(8, 2, batch_first=True)
    x = fw.tensor(np.zeros((2, 3, 8), "float32"))
    with pytest.raises(ValueError, match=r"the last of 8, 8 and 8"):
        layer(x, x, fw.tensor(np.zeros((2, 3, 7), "float32")))
    with pytest.raises(ValueError, match=r"key_padding_mask has shape \(3, 2\)"):
        layer(x, x, x, fw.tensor(np.zeros((3, 2), bool)))
    with pytest.raises(ValueError, match=r"attn_mask has shape \(3, 4\)"):
        layer(x, x, x, attn_mask=fw.tensor(np.zeros((3, 4), bool)))
    with pytest.raises(ValueError, match=r"packed_attention: qkv has shape \(2, 3, 8\)"):
        F.packed_attention(x, 3)
