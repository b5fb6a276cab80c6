"""Attention: functions and layers against PyTorch, masks, gradients, dropout, bad input."""

import tracemalloc

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


#: query, key, value, mask
SHAPES = {
    "2": ((5, 6), (7, 6), (7, 3), (5, 7)),
    "3": ((2, 5, 6), (2, 7, 6), (2, 7, 9), (2, 5, 7)),
    "3 shared": ((4, 5, 6), (1, 7, 6), (1, 7, 6), (7,)),
    "4 values": ((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 40), (2, 1, 1, 7)),
    "4 batch": ((2, 4, 5, 6), (1, 4, 7, 6), (1, 4, 7, 6), (1, 4, 5, 7)),
    "4 heads": ((2, 1, 5, 6), (2, 4, 7, 6), (2, 1, 7, 6), (2, 4, 1, 7)),
    "4 and 2": ((2, 4, 5, 6), (7, 6), (7, 6), (5, 7)),
    "5": ((2, 3, 4, 5, 6), (2, 3, 4, 7, 6), (2, 3, 4, 7, 2), (3, 1, 5, 7)),
    "5 broadcast": ((2, 1, 4, 5, 6), (3, 4, 7, 6), (2, 3, 4, 7, 6), (2, 1, 1, 1, 7)),
    "6": ((1, 2, 1, 2, 5, 6), (2, 2, 1, 2, 7, 6), (2, 1, 7, 6), (1, 1, 1, 2, 5, 7)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["numbers", "booleans"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes_are_torchs(torch, shapes, kind, dtype):
    arrays = [normal(*shape).astype(dtype) for shape in shapes]
    if kind == "booleans":
        mask = arrays.pop() < 1
        mask[..., 0] = True
        masks = [fw.tensor(mask)], [torch.tensor(mask)]
    else:
        masks = [], []
    xs, ts = [leaf(x) for x in arrays], [torch.tensor(x, requires_grad=True) for x in arrays]
    y = F.scaled_dot_product_attention(*xs, *masks[0])
    # the formula: torch's function does not take all that broadcasts
    scores = ts[0] @ ts[1].transpose(-1, -2) / shapes[0][-1] ** 0.5
    if kind == "booleans":
        scores = scores.masked_fill(~masks[1][0], -torch.inf)
    else:
        scores = scores + ts[3]
    z = scores.softmax(-1) @ ts[2]
    assert y.shape == tuple(z.shape)
    dy = normal(*y.shape).astype(dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    close = {"rtol": 1e-9, "atol": 1e-11} if dtype == "float64" else {"rtol": 2e-5, "atol": 2e-5}
    np.testing.assert_allclose(y.data, z.detach(), **close)
    for a, b in zip(xs, ts, strict=True):
        np.testing.assert_allclose(a.grad.data, b.grad, **close)


def test_lengths_are_of_the_axes_before_the_heads():
    q, k, v = normal(2, 3, 4, 5, 6), normal(2, 3, 4, 7, 6), normal(2, 3, 4, 7, 6)
    lengths = np.array([[1, 2, 3], [4, 5, 7]])
    y = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)), lengths=fw.tensor(lengths))
    three = [fw.tensor(x[:, 1, 2]) for x in (q, k, v)]  # (B, T, D), without heads
    z = F.scaled_dot_product_attention(*three, lengths=fw.tensor(lengths[:, 1]))
    np.testing.assert_allclose(y.data[:, 1, 2], z.data, rtol=1e-12)
    mask = np.arange(7) < lengths[..., None, None, None]
    w = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)), fw.tensor(mask))
    np.testing.assert_allclose(y.data, w.data, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 7), (2, 1, 1, 7), (2, 4, 5, 7), (1, 4, 1, 7)])
def test_a_learned_bias_gets_the_gradient_that_torch_gives(torch, shape, dtype):
    arrays = [x.astype(dtype) for x in (*qkv(), normal(*shape))]
    arrays[3].flat[1] = -np.inf
    xs, ts = [leaf(x) for x in arrays], [torch.tensor(x, requires_grad=True) for x in arrays]
    y = F.scaled_dot_product_attention(*xs)
    z = torch.nn.functional.scaled_dot_product_attention(*ts)
    dy = normal(*y.shape).astype(dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    close = {"rtol": 1e-9, "atol": 1e-11} if dtype == "float64" else {"rtol": 2e-5, "atol": 5e-6}
    for a, b in zip(xs, ts, strict=True):
        np.testing.assert_allclose(a.grad.data, b.grad, **close)


def test_a_learned_bias_of_packed_attention():
    packed, bias = normal(2, 5, 3 * 8), normal(4, 5, 5)
    assert fw.gradcheck(
        lambda x, m: F.packed_attention(x, 4, attn_mask=m), [leaf(packed), leaf(bias)]
    )
    x, m = fw.tensor(packed), leaf(bias)  # the bias alone
    F.packed_attention(x, 4, attn_mask=m).sum().backward()
    assert m.grad.shape == bias.shape
    with fw.autocast("bfloat16"):
        m = leaf(bias.astype("float32"))
        y = F.packed_attention(leaf(packed.astype("float32")), 4, attn_mask=m)
    y.sum().backward()
    assert m.grad.dtype == np.float32


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
    "bias_kv": ({"add_bias_kv": True}, 1),
    "zero": ({"batch_first": True, "add_zero_attn": True}, 2),
    "more": ({"kdim": 5, "vdim": 3, "add_bias_kv": True, "add_zero_attn": True}, 3),
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


def test_added_keys_are_seen_by_every_query():
    layer = L.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    x = fw.tensor(normal(2, 3, 8).astype("float32"))
    y, w = layer(x, x, x, is_causal=True, average_attn_weights=False)
    assert w.shape == (2, 2, 3, 5)
    assert (w.data[..., :3][..., np.triu(np.ones((3, 3), bool), 1)] == 0).all()
    assert (w.data[..., 3:] > 0).all()
    hidden = fw.tensor(np.triu(np.ones((3, 3), bool), 1))
    for mask in (hidden, L.Transformer.generate_square_subsequent_mask(3)):
        z, _ = layer(x, x, x, attn_mask=mask, need_weights=False)
        np.testing.assert_allclose(z.data, y.data, rtol=1e-6, atol=1e-7)
    for mask in (fw.tensor(np.zeros((3, 3), bool)), fw.tensor(np.zeros((3, 3), "float32"))):
        z, _ = layer(x, x, x, attn_mask=mask, is_causal=True)
        np.testing.assert_allclose(z.data, y.data, rtol=1e-6, atol=1e-7)
    y.sum().backward()
    assert layer.bias_k.grad is not None and layer.bias_v.grad is not None


def test_a_learned_mask_of_a_layer_gets_a_gradient():
    layer, mask = L.MultiheadAttention(8, 2), leaf(normal(3, 3).astype("float32"))
    x = fw.tensor(normal(3, 2, 8).astype("float32"))
    layer(x, x, x, attn_mask=mask, need_weights=False)[0].sum().backward()
    assert (mask.grad.data != 0).any()


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


@pytest.mark.parametrize("shape", [(5, 7), (2, 4, 1, 7), (4, 1, 1), (1, 4, 5, 7)])
def test_gradients_of_learned_biases_by_central_differences(shape):
    xs = [leaf(x) for x in (*qkv(G=2, D=3), normal(*shape))]
    window = {"window": 4, "lengths": fw.tensor(np.array([6, 7]))}
    assert fw.gradcheck(lambda *a: F.scaled_dot_product_attention(*a, **window), xs)


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


@pytest.mark.parametrize("is_causal", [False, True])
def test_memory_is_linear_in_the_length(is_causal):
    """4 times for 8,192 tokens of what 2,048 take; (T, T) of them would be 256 MiB, 16 times."""

    def peak(T):
        q, k, v = (leaf(normal(1, 2, T, 32).astype("float32")) for _ in range(3))

        def step():
            F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).sum().backward()

        step()  # compiled, and with room for gradients
        tracemalloc.start()
        try:
            step()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    short, long = peak(2048), peak(8192)
    assert long < 5 * short
    assert long < 32 * 2**20


@pytest.mark.parametrize("hide", ["lengths", "bool", "float", "causal"])
def test_nan_in_a_key_that_is_not_seen(hide):
    """Beyond `lengths` it counts nothing; else its score counts nothing, and its value does."""
    seen = np.ones((20, 20), bool)
    seen[:, -1] = False
    options = {
        "lengths": {"lengths": fw.tensor(np.array([19]))},
        "bool": {"attn_mask": fw.tensor(seen)},
        "float": {"attn_mask": fw.tensor(np.where(seen, 0, -np.inf).astype("float32"))},
        "causal": {"is_causal": True},
    }[hide]
    for spoilt in ("k", "v", "kv"):
        x = {name: normal(1, 2, 20, 8).astype("float32") for name in "qkv"}
        for name in spoilt:
            x[name][..., -1, :] = np.nan
        x = {name: leaf(a) for name, a in x.items()}
        out = F.scaled_dot_product_attention(*x.values(), **options)[:, :, :19]
        if hide == "lengths" or spoilt == "k":
            assert np.isfinite(out.data).all()
        if hide == "lengths":
            out.sum().backward()
            assert all(np.isfinite(t.grad.data).all() for t in x.values())


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
    r"key has shape \(2, 4, 7, 6\), value \(2, 4, 5, 6\): the axes before the last": (
        [*tensors()[:2], fw.tensor(normal(2, 4, 5, 6))],
        {},
    ),
    r"query has shape \(2, 4, 5, 6\), key \(2, 4, 7, 5\): the last axes": (
        [tensors()[0], fw.tensor(normal(2, 4, 7, 5)), tensors()[2]],
        {},
    ),
    r"query has shape \(6,\), key \(2, 4, 7, 6\), value \(2, 4, 7, 6\): expected": (
        [fw.tensor(normal(6)), *tensors()[1:]],
        {},
    ),
    r"query has shape \(3, 4, 5, 6\), key \(2, 4, 7, 6\), value .*do not broadcast": (
        [fw.tensor(normal(3, 4, 5, 6)), *tensors()[1:]],
        {},
    ),
    r"attn_mask has shape \(3, 4, 5, 7\), query \(2, 4, 5, 6\), key .*\(2, 4, 5, 7\)": (
        tensors(),
        {"attn_mask": fw.tensor(normal(3, 4, 5, 7))},
    ),
    r"lengths have shape \(2,\), query \(1, 2, 4, 5, 6\), .*expected \(1, 2\)": (
        [x.unsqueeze(0) for x in tensors()],
        {"lengths": fw.tensor(np.array([3, 3]))},
    ),
    r"attn_mask has shape \(5, 6\), query \(2, 4, 5, 6\), key \(2, 4, 7, 6\): expected": (
        tensors(),
        {"attn_mask": fw.tensor(normal(5, 6))},
    ),
    r"lengths are 3 to 99, expected 0 to \d+, the number of keys": (
        tensors(),
        {"lengths": fw.tensor(np.array([3, 99]))},
    ),
    r"lengths are int64\(3,\), expected integers \(2,\)": (
        tensors(),
        {"lengths": fw.tensor(np.arange(3))},
    ),
    r"slopes have shape \(3,\), expected \(4,\)": (tensors(), {"slopes": F.alibi_slopes(3)}),
    "window=0, expected at least 1": (tensors(), {"window": 0}),
    "start=-1": (tensors(), {"start": -1}),
    "p=1.5": (tensors(), {"dropout_p": 1.5}),
    "slopes requires a gradient": (tensors(), {"slopes": leaf(normal(4))}),
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
    with pytest.raises(TypeError, match="scaled_dot_product_attention: scale='a', expected a num"):
        F.scaled_dot_product_attention(*tensors(), scale="a")
    with pytest.raises(TypeError, match="packed_attention: scale='a', expected a number"):
        F.packed_attention(fw.tensor(normal(2, 5, 24)), 2, scale="a")


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
    with pytest.raises(ValueError, match=r"query \(2, 3, 8\), key \(1, 3, 8\): axis 0, the batch"):
        layer(x, x[:1], x[:1])
    with pytest.raises(TypeError, match="MultiheadAttention: key must be a Tensor, got a ndarray"):
        layer(x, x.data, x)
    with pytest.raises(TypeError, match="attn_mask must be a Tensor, got a ndarray"):
        layer(x, x, x, attn_mask=np.zeros((3, 3), bool))
    with pytest.raises(TypeError, match="key_padding_mask is int64, expected booleans"):
        layer(x, x, x, fw.tensor(np.zeros((2, 3), int)))
    with pytest.raises(ValueError, match=r"packed_attention: qkv has shape \(2, 3, 8\)"):
        F.packed_attention(x, 3)


# --- positions, cache, checkpoint -----------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs_and_keeps_distances(interleaved):
    cos, sin = F.rotary_angles(6, 4)
    q, k = normal(1, 1, 6, 4), normal(1, 1, 6, 4)
    q[:], k[:] = q[:, :, :1], k[:, :, :1]  # the same vector at every position
    a, b = (F.rotary(fw.tensor(x), cos, sin, interleaved).data[0, 0] for x in (q, k))
    scores = a @ b.T
    for distance in range(6):  # a product depends on the distance alone
        np.testing.assert_allclose(np.diagonal(scores, distance), scores[0, distance], rtol=1e-6)
    angle = 3 * 10000**-0.5  # position 3, the second pair
    i, j = (2, 3) if interleaved else (1, 3)
    x = q[0, 0, 0]
    expected = x[i] * np.cos(angle) - x[j] * np.sin(angle)
    np.testing.assert_allclose(a[3, i], expected, rtol=1e-6)
    assert fw.gradcheck(lambda x: F.rotary(x, cos, sin, interleaved), [leaf(normal(2, 3, 6, 4))])


def test_positions_are_added_from_a_start():
    table = L.SinusoidalPositions(10, 6)
    x = fw.tensor(np.zeros((2, 3, 6), "float32"))
    y = table(x, start=4).data
    np.testing.assert_allclose(
        y[1, 2],
        [f(6 / 10000 ** (i / 6)) for i in (0, 2, 4) for f in (np.sin, np.cos)],
        rtol=1e-5,
        atol=1e-6,
    )
    assert not list(table.state_dict())
    learned = L.LearnedPositions(10, 6)
    assert (learned(x, 7).data == learned.weight.data[7:10]).all()
    learned(x, 7).sum().backward()
    assert learned.weight.grad.data.sum() == 2 * 3 * 6
    turned = L.RotaryPositions(10, 6)
    q = fw.tensor(normal(1, 2, 3, 6))
    later = F.rotary(q, *F.rotary_angles(3, 6, start=4))
    np.testing.assert_allclose(turned(q, 4).data, later.data, rtol=1e-6)
    for layer in (table, learned, turned):
        with pytest.raises(ValueError, match="positions 8 to 10 do not fit max_length=10"):
            layer(fw.tensor(np.zeros((1, 1, 3, 6), "float32")), 8)


def test_embedding_at_positions_is_a_sum_of_rows():
    weight, positions = leaf(normal(11, 4)), leaf(normal(9, 4))
    tokens = RNG.integers(0, 11, (3, 5))
    i = fw.tensor(tokens)
    y = F.embedding_at_positions(i, weight, positions, start=2)
    np.testing.assert_array_equal(y.data, weight.data[tokens] + positions.data[2:7])
    dy = normal(3, 5, 4)
    y.backward(dy)
    expected = np.zeros((9, 4))
    expected[2:7] = dy.sum(0)
    np.testing.assert_allclose(positions.grad.data, expected)
    np.testing.assert_allclose(weight.grad.data[4], dy[tokens == 4].sum(0), atol=1e-12)
    with pytest.raises(ValueError, match="positions 5 to 9 of indices"):
        F.embedding_at_positions(i, weight, positions, start=5)
    with pytest.raises(IndexError, match="expected 0 <= index < 4"):
        F.embedding_at_positions(i, weight[:4], positions)


@pytest.mark.parametrize("groups", [4, 2])
def test_a_cache_gives_what_the_whole_sequence_gives(groups):
    q, k, v = (x.astype("float32") for x in qkv(T=9, S=9, G=groups))
    whole = F.scaled_dot_product_attention(*map(fw.tensor, (q, k, v)), is_causal=True)
    cache = L.KVCache(2, groups, 9, 6)
    rows = []
    for t, n in ((0, 4), (4, 1), (5, 1), (6, 3)):
        new = [fw.tensor(x[:, :, t : t + n]) for x in (q, k, v)]
        keys, values = cache.append(*new[1:])
        rows.append(
            F.scaled_dot_product_attention(new[0], keys, values, is_causal=True, start=t).data
        )
    np.testing.assert_allclose(np.concatenate(rows, 2), whole.data, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="1 positions more than the 9 there are exceed"):
        cache.append(*(fw.tensor(x[:, :, :1]) for x in (k, v)))
    with pytest.raises(ValueError, match=r"KVCache: key \(2, 3, 1, 6\)"):
        cache.append(*[fw.tensor(np.zeros((2, 3, 1, 6), "float32"))] * 2)
    cache.reset()
    assert cache.append(*(fw.tensor(x[:, :, :2]) for x in (k, v)))[0].shape == (2, groups, 2, 6)


def block(seed=0):
    fw.manual_seed(seed)
    return L.TransformerEncoderLayer(16, 4, 32, dropout=0.3, batch_first=True)


@pytest.mark.parametrize("nested", [False, True], ids=["one", "nested"])
def test_checkpoint_equals_plain_bit_for_bit(nested):
    x = normal(2, 5, 16).astype("float32")

    def run(call):
        layer, other, inputs = block(), block(), leaf(x)
        fw.manual_seed(7)
        y = call(layer, other, inputs * 2.0)
        after = fw.rand(3).data
        (y * y).sum().backward()
        assert (fw.rand(3).data != after).all()
        return [y.data, after, inputs.grad.data, *(p.grad.data for p in layer.parameters())]

    def inner(layer, other, x):
        return fw.checkpoint(other, fw.checkpoint(layer, x) if nested else layer(x))

    def saved(layer, other, x):
        return fw.checkpoint(lambda x: inner(layer, other, x), x)

    plain = run(lambda layer, other, x: other(layer(x)))
    for a, b in zip(plain, run(saved), strict=True):
        assert (a == b).all()


def test_checkpoint_without_gradients_is_a_plain_call():
    layer, x = block().eval(), fw.tensor(normal(2, 5, 16).astype("float32"))
    with fw.no_grad():
        y = fw.checkpoint(layer, x)
    assert not y.requires_grad
    assert (y.data == layer(x).data).all()
    y = fw.checkpoint(layer, x, is_causal=True)  # the parameters alone want gradients
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    with pytest.raises(TypeError, match="returned a tuple within a tuple"):
        fw.checkpoint(lambda x: (x, (x, x)), x)


def test_checkpoint_notices_a_changed_argument():
    x = leaf(normal(3)) * 1.0
    y = fw.checkpoint(lambda x: x * x, x)
    with fw.no_grad():
        x += 1.0
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


# --- transformer layers ---------------------------------------------------------------------------

SRC, TGT = normal(2, 5, 8), normal(2, 3, 8)
STACKS = {
    "encoder_layer": ("TransformerEncoderLayer", (8, 2, 16), [SRC]),
    "decoder_layer": ("TransformerDecoderLayer", (8, 2, 16), [TGT, SRC]),
    "transformer": ("Transformer", (8, 2, 2, 2, 16), [SRC, TGT]),
}
KINDS = {
    "post": {},
    "pre": {"norm_first": True},
    "gelu": {"norm_first": True, "activation": "gelu", "bias": False},
}


def both(torch, name, args, arrays, options, calls):
    theirs = getattr(torch.nn, name)(*args, dropout=0.0, batch_first=True, **options).double()
    ours = getattr(L, name)(*args, dropout=0.0, batch_first=True, **options).to("float64")
    ours.load_state_dict(theirs.state_dict())
    xs, ts = [leaf(x) for x in arrays], [torch.tensor(x, requires_grad=True) for x in arrays]
    y = ours(*xs, **{k: fw.tensor(v) for k, v in calls.items()})
    z = theirs(*ts, **{k: torch.tensor(v) for k, v in calls.items()})
    dy = normal(*y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    np.testing.assert_allclose(y.data, z.detach(), rtol=1e-8, atol=1e-10)
    gradients = dict(theirs.named_parameters())
    pairs = [(a.grad, b.grad) for a, b in zip(xs, ts, strict=True)]
    pairs += [(p.grad, gradients[name].grad) for name, p in ours.named_parameters()]
    for a, b in pairs:
        np.testing.assert_allclose(a.data, b, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("name", "args", "arrays"), STACKS.values(), ids=STACKS)
def test_layers_equal_torch(torch, name, args, arrays, options):
    both(torch, name, args, arrays, options, {})
    causal = np.triu(np.ones((len(arrays[-1][0]),) * 2, bool), 1)
    padding = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], bool)
    calls = {
        "encoder_layer": {"src_mask": causal, "src_key_padding_mask": padding},
        "decoder_layer": {"tgt_mask": causal[:3, :3], "memory_key_padding_mask": padding},
        "transformer": {
            "tgt_mask": causal,
            "src_key_padding_mask": padding,
            "memory_key_padding_mask": padding,
        },
    }[next(key for key, value in STACKS.items() if value[0] == name)]
    both(torch, name, args, arrays, options, calls)


def test_causal_needs_no_mask():
    layer = block().eval()
    x = fw.tensor(normal(2, 5, 16).astype("float32"))
    mask = fw.tensor(np.triu(np.ones((5, 5), bool), 1))
    np.testing.assert_allclose(layer(x, mask).data, layer(x, is_causal=True).data, atol=1e-6)


class Twice(L.Module):
    """In place of a stack: takes what that takes."""

    def __init__(self, *names):
        super().__init__()
        self.names = names

    def forward(self, x, *memory, **options):
        assert set(options) == set(self.names)
        return x * 2.0 if not memory else x + memory[0].sum()


def test_custom_encoders_and_decoders_stand_in_for_the_stacks():
    encoder = Twice("mask", "src_key_padding_mask", "is_causal")
    masks = [f"{x}_{kind}" for x in ("tgt", "memory") for kind in ("mask", "key_padding_mask")]
    decoder = Twice(*masks, "tgt_is_causal", "memory_is_causal")
    model = L.Transformer(8, 2, custom_encoder=encoder, custom_decoder=decoder)
    assert model.encoder is encoder
    assert model.decoder is decoder
    src, tgt = (fw.tensor(normal(n, 2, 8).astype("float32")) for n in (3, 4))
    np.testing.assert_allclose(
        model(src, tgt).data, tgt.data + 2 * src.data.sum(), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(TypeError, match="custom_encoder is a function, expected a Module"):
        L.Transformer(8, 2, custom_encoder=test_bad_transformers_are_named)


def test_a_square_mask_hides_later_keys(torch):
    mask = L.Transformer.generate_square_subsequent_mask(4)
    expected = torch.nn.Transformer.generate_square_subsequent_mask(4)
    np.testing.assert_array_equal(mask.data, expected)
    assert mask.dtype == np.float32
    assert L.Transformer.generate_square_subsequent_mask(2, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="size=0, expected an integer of at least 1"):
        L.Transformer.generate_square_subsequent_mask(0)


def test_bad_transformers_are_named():
    with pytest.raises(ValueError, match="activation='tanh', expected 'relu', 'gelu'"):
        L.TransformerEncoderLayer(8, 2, activation="tanh")
    with pytest.raises(ValueError, match="embed_dim=8 is not a multiple of num_heads=3"):
        L.TransformerDecoderLayer(8, 3)
    model = L.Transformer(8, 2, 1, 1, 16, batch_first=True)
    a, b = (fw.tensor(np.zeros((n, 3, 8), "float32")) for n in (2, 1))
    with pytest.raises(ValueError, match=r"tgt has shape \(2, 3, 7\), expected .* the last of 8"):
        model(a, fw.tensor(np.zeros((2, 3, 7), "float32")))
    with pytest.raises(TypeError, match="Transformer: src must be a Tensor, got a list"):
        model([[1.0]], a)
    with pytest.raises(ValueError, match=r"src has shape \(2, 3, 8\), tgt \(1, 3, 8\): axis 0"):
        model(a, b)
