"""RNN, LSTM, GRU and their cells: against PyTorch with copied weights, against central differences,
against themselves step by step; bad input."""

import itertools

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L
from framework.layers.packing import pack_padded_sequence, pad_packed_sequence

T, B, D, H = 5, 4, 3, 6
LENGTHS = [3, 5, 1, 4]
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order():
    global rng
    rng = np.random.default_rng(0)
    fw.manual_seed(0)


def values(*shape, requires_grad=False):
    return fw.tensor(rng.standard_normal(shape), requires_grad=requires_grad)


def tensors(state):
    return list(state) if isinstance(state, tuple) else [state]


# --- PyTorch --------------------------------------------------------------------------------------

KINDS = [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("LSTM", {}), ("GRU", {})]
COMBINATIONS = [
    (kind, options | {"num_layers": layers, "bidirectional": both}, lengths)
    for (kind, options), layers, both, lengths in itertools.product(
        [*KINDS, ("LSTM", {"proj_size": 2})], (1, 2), (False, True), (False, True)
    )
]


def equal_torch(ours, theirs, x, states, lengths, dtype, batch_first=False):
    """Outputs, states and all gradients of both, for random gradients of outputs and states."""
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[bench]"')
    ours.to(dtype)
    theirs.to(getattr(torch, dtype))
    ours.load_state_dict(theirs.state_dict())
    given = [fw.tensor(a.astype(dtype), requires_grad=True) for a in (x, *states)]
    theirs_given = [torch.tensor(a.astype(dtype), requires_grad=True) for a in (x, *states)]
    hx = [state_of(g[1:]) for g in (given, theirs_given)]
    y, last = ours(given[0], hx[0], lengths=lengths)
    if lengths is None:
        z, torch_last = theirs(theirs_given[0], hx[1])
    else:
        rnn = torch.nn.utils.rnn
        packed = rnn.pack_padded_sequence(
            theirs_given[0], torch.tensor(lengths), batch_first, enforce_sorted=False
        )
        z, torch_last = theirs(packed, hx[1])
        z, _ = rnn.pad_packed_sequence(z, batch_first, total_length=T)
    pairs = [(y, z), *zip(tensors(last), tensors(torch_last), strict=True)]
    draws = [rng.standard_normal(a.shape).astype(dtype) for a, _ in pairs]
    sum((a * fw.tensor(d)).sum() for (a, _), d in zip(pairs, draws, strict=True)).backward()
    sum((b * torch.tensor(d)).sum() for (_, b), d in zip(pairs, draws, strict=True)).backward()
    compared = [(a.detach(), b.detach()) for a, b in pairs]
    compared += [
        (a.grad, b.grad) for a, b in zip(given, theirs_given, strict=True) if b.grad is not None
    ]
    weights = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(weights)
    compared += [(p.grad, weights[name].grad) for name, p in ours.named_parameters()]
    close = {"rtol": 1e-9, "atol": 1e-10} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    for a, b in compared:
        np.testing.assert_allclose(a.numpy(), b.numpy(), **close)


def state_of(states):
    """None, a tensor or a pair."""
    return tuple(states) if len(states) == 2 else states[0] if states else None


def initial(kind, options):
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    sizes = [options.get("proj_size", 0) or H] + ([H] if kind == "LSTM" else [])
    return [rng.standard_normal((count, B, size)) for size in sizes]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("kind", "options", "with_lengths"), COMBINATIONS)
def test_equals_torch(kind, options, with_lengths, dtype):
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[bench]"')
    ours, theirs = getattr(L, kind)(D, H, **options), getattr(torch.nn, kind)(D, H, **options)
    lengths = LENGTHS if with_lengths else None
    equal_torch(
        ours, theirs, rng.standard_normal((T, B, D)), initial(kind, options), lengths, dtype
    )


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("with_lengths", [False, True])
def test_batch_first_without_biases_and_states_equals_torch(kind, options, with_lengths):
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[bench]"')
    options = options | {"batch_first": True, "bias": False}
    ours, theirs = getattr(L, kind)(D, H, **options), getattr(torch.nn, kind)(D, H, **options)
    lengths = LENGTHS if with_lengths else None
    x = rng.standard_normal((B, T, D))
    equal_torch(ours, theirs, x, [], lengths, "float64", True)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_cells_equal_torch(kind, options):
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[bench]"')
    name = f"{kind}Cell"
    ours, theirs = getattr(L, name)(D, H, **options), getattr(torch.nn, name)(D, H, **options)
    ours.to("float64").load_state_dict(theirs.double().state_dict())
    for rows in ((B,), ()):
        x, *s = (rng.standard_normal((*rows, n)) for n in (D, H, H))
        s = tuple(s) if kind == "LSTM" else s[0]
        a = ours(fw.tensor(x), tuple(map(fw.tensor, s)) if kind == "LSTM" else fw.tensor(s))
        b = theirs(
            torch.tensor(x), tuple(map(torch.tensor, s)) if kind == "LSTM" else torch.tensor(s)
        )
        for p, q in zip(tensors(a), tensors(b), strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-10)
        theirs.zero_grad()
        ours.zero_grad()
        sum((p * p).sum() for p in tensors(a)).backward()
        sum((q * q).sum() for q in tensors(b)).backward()
        for key, p in ours.named_parameters():
            expected = dict(theirs.named_parameters())[key].grad.numpy()
            np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-9, atol=1e-12)


# --- central differences --------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [2, 3]])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gru before", "lstm options"])
def test_gradients_are_slopes(kind, lengths, reverse):
    G = {"rnn": 1, "lstm": 4, "gru": 3}[kind.split()[0]]
    P = 2 if kind == "lstm options" else 3

    def small(*shape):
        return fw.tensor(rng.standard_normal(shape) * 0.5, requires_grad=True)

    layer = [small(3, 2, 2), small(3 * G, 2), small(3 * G, P), small(3 * G), small(3 * G)]
    states = [small(2, P)] + ([small(2, 3)] if G == 4 else [])
    options = {"lengths": lengths, "reverse": reverse}
    more = [small(P, 3), small(3, 3)] if kind == "lstm options" else []
    if kind == "gru before":
        options["reset_after"] = False

    def loss(*given):
        first, rest = given[: 5 + len(states)], given[5 + len(states) :]
        named = dict(zip(("weight_hr", "peephole"), rest, strict=False))
        results = getattr(F, kind.split()[0])(*first, **options, **named)
        return sum((r * r * (i + 1)).sum() for i, r in enumerate(results))

    assert fw.gradcheck(loss, [*layer, *states, *more])


def test_a_loss_of_the_last_state_alone_reaches_all_weights():
    net = L.LSTM(D, H)
    _, (h, c) = net(fw.tensor(rng.standard_normal((T, B, D)).astype("float32")))
    (h.sum() + c.sum()).backward()
    alone = {name: p.grad.numpy().copy() for name, p in net.named_parameters()}
    net.zero_grad()
    rng_again = np.random.default_rng(0)
    y, (_, c) = net(fw.tensor(rng_again.standard_normal((T, B, D)).astype("float32")))
    (y[-1].sum() + c.sum()).backward()
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), alone[name], rtol=1e-5, atol=1e-6)


# --- sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "LayerNormLSTM"])
def test_lengths_give_what_each_row_gives_alone(kind):
    net = getattr(L, kind)(D, H, num_layers=2, bidirectional=True).to("float64")
    x = values(T, B, D)
    y, state = net(x, lengths=LENGTHS)
    for b, n in enumerate(LENGTHS):
        alone, last = net(x[:n, b : b + 1])
        np.testing.assert_allclose(y.data[:n, b], alone.data[:, 0], rtol=1e-12)
        assert not y.data[n:, b].any()
        for s, t in zip(tensors(state), tensors(last), strict=True):
            np.testing.assert_allclose(s.data[:, b], t.data[:, 0], rtol=1e-12)


def test_what_lies_beyond_a_row_has_no_say_and_no_gradient():
    net = L.GRU(D, H, bidirectional=True).to("float64")
    a = rng.standard_normal((T, B, D))
    x = fw.tensor(a, requires_grad=True)
    y, h = net(x, lengths=LENGTHS)
    (y.sum() + h.sum()).backward()
    beyond = np.arange(T)[:, None] >= np.array(LENGTHS)
    assert not x.grad.data[beyond].any()
    assert x.grad.data[~beyond].any(-1).all()
    a[beyond] = 1e30
    again, _ = net(fw.tensor(a), lengths=LENGTHS)
    np.testing.assert_array_equal(again.data, y.data)


@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_sequences_are_lengths(batch_first):
    net = L.LSTM(D, H, bidirectional=True, batch_first=batch_first).to("float64")
    x = values(B, T, D) if batch_first else values(T, B, D)
    y, (h, c) = net(x, lengths=LENGTHS)
    packed, (hp, cp) = net(pack_padded_sequence(x, LENGTHS, batch_first))
    padded, lengths = pad_packed_sequence(packed, batch_first)
    assert lengths.tolist() == LENGTHS
    for a, b in ((y, padded), (h, hp), (c, cp)):
        np.testing.assert_array_equal(a.data, b.data)


def test_packing_cuts_and_pads():
    x = values(T, 3, 2)
    packed = pack_padded_sequence(x, [2, 3, 1])
    assert packed.padded.shape == (3, 3, 2)
    y, _ = pad_packed_sequence(packed, padding_value=7.0, total_length=4)
    assert y.shape == (4, 3, 2)
    np.testing.assert_array_equal(y.data[:2, 0], x.data[:2, 0])
    assert (y.data[2:, 0] == 7).all()
    parts = [x[:2, 0], x[:3, 1], x[:1, 2]]
    np.testing.assert_array_equal(
        pad_packed_sequence(L.pack_sequence(parts))[0].data, pad_packed_sequence(packed)[0].data
    )


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_windows_with_carried_state_are_one_sequence(kind):
    net = getattr(L, kind)(D, H, num_layers=2).to("float64")
    x = values(6, B, D)
    whole, _ = net(x)
    state, parts = None, []
    for start in (0, 2, 4):
        y, state = net(x[start : start + 2], L.detach_state(state))
        parts.append(y.data)
    np.testing.assert_allclose(np.concatenate(parts), whole.data, rtol=1e-12)


def test_detached_states_stop_the_gradient():
    net = L.LSTM(D, H)
    _, state = net(values(T, B, D).to("float32"))
    assert all(s.requires_grad for s in state)
    detached = L.detach_state((state, None, [state[0]]))
    assert isinstance(detached[2], list)
    assert detached[1] is None
    assert not any(s.requires_grad for s in (*detached[0], *detached[2]))


def test_without_a_batch():
    net = L.LSTM(D, H, num_layers=2).to("float64")
    x, h, c = values(T, D), values(2, H), values(2, H)
    y, (hn, cn) = net(x, (h, c))
    batched, _ = net(x.unsqueeze(1), (h.unsqueeze(1), c.unsqueeze(1)))
    assert hn.shape == cn.shape == (2, H)
    np.testing.assert_array_equal(y.data, batched.data[:, 0])


def test_cells_step_by_step_are_the_layer():
    layer, cell = L.LSTM(D, H), L.LSTMCell(D, H)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = values(T, B, D).to("float32")
    y, _ = layer(x)
    state = None
    for t in range(T):
        state = cell(x[t], state)
        np.testing.assert_allclose(state[0].data, y.data[t], rtol=1e-5, atol=1e-6)


def test_peepholes_of_zeros_are_none():
    plain, peeping = L.LSTM(D, H, 2), L.LSTM(D, H, 2, peepholes=True)
    state = plain.state_dict()
    state |= {f"weight_peephole_l{i}": np.zeros((3, H), "float32") for i in range(2)}
    peeping.load_state_dict(state)
    x = values(T, B, D).to("float32")
    np.testing.assert_array_equal(peeping(x)[0].data, plain(x)[0].data)
    peeping.weight_peephole_l0.data[...] = 0.5
    assert not np.allclose(peeping(x)[0].data, plain(x)[0].data)


def layer_norm(x, scale=1.0, shift=0.0):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-5
    ) * scale + shift


def test_layer_norm_lstm_is_its_formula():
    net = L.LayerNormLSTM(D, H).to("float64")
    for p in net.parameters():
        p.data[...] += rng.standard_normal(p.shape) * 0.1
    w = {name.removesuffix("_l0"): p.data for name, p in net.named_parameters()}
    x, h, c = rng.standard_normal((T, B, D)), np.zeros((B, H)), np.zeros((B, H))
    y, (hn, cn) = net(fw.tensor(x))
    for t in range(T):
        z = layer_norm(x[t] @ w["weight_ih"].T, w["norm_ih"], w["bias_ih"] + w["bias_hh"])
        z = z + layer_norm(h @ w["weight_hh"].T, w["norm_hh"])
        i, f, g, o = np.split(z, 4, 1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(layer_norm(c, w["norm_c"], w["norm_c_bias"]))
        np.testing.assert_allclose(y.data[t], h, rtol=1e-10)
    np.testing.assert_allclose(hn.data[0], h, rtol=1e-10)
    np.testing.assert_allclose(cn.data[0], c, rtol=1e-10)
    y.sum().backward()
    assert all(np.isfinite(p.grad.data).all() for p in net.parameters())


# --- dropout --------------------------------------------------------------------------------------


def test_locked_dropout_takes_the_same_elements_at_every_step():
    layer = L.LockedDropout(0.5)
    y = layer(fw.tensor(np.ones((7, 4, 50), "float32"))).data
    assert (y == y[0]).all()
    assert set(np.unique(y)) == {0.0, 2.0}
    other = L.LockedDropout(0.5, dim=1)(fw.tensor(np.ones((4, 7, 50), "float32"))).data
    assert (other == other[:, :1]).all()
    x = fw.tensor(np.ones((2, 3), "float32"))
    assert layer.eval()(x) is x


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_between_layers_in_training_only(locked):
    net = L.GRU(D, 32, num_layers=2, dropout=0.5, locked_dropout=locked)
    x = values(T, B, D).to("float32")
    assert not np.array_equal(net(x)[0].data, net(x)[0].data)
    net.eval()
    np.testing.assert_array_equal(net(x)[0].data, net(x)[0].data)


# --- the rest -------------------------------------------------------------------------------------


def test_autocast_computes_in_16_bits():
    net = L.LSTM(8, 16)
    x = values(T, B, 8).to("float32")
    exact, _ = net(x)
    with fw.autocast("bfloat16"):
        y, (_, c) = net(x)
    assert y.dtype.name == c.dtype.name == "bfloat16"
    np.testing.assert_allclose(y.data.astype("float32"), exact.data, atol=0.02)
    y.float().sum().backward()
    assert all(p.grad.dtype == np.float32 for p in net.parameters())


def test_summary_counts_the_products():
    net = L.LSTM(D, H, num_layers=2, bidirectional=True, proj_size=2)
    expected = T * B * 2 * (4 * H * (D + 2) + 4 * H * (4 + 2) + 2 * 2 * H)
    assert net.summary((T, B, D)).multiply_adds == expected
    assert L.GRUCell(D, H).summary((B, D)).multiply_adds == B * 3 * H * (D + H)


zeros = fw.zeros
X = zeros(T, B, D)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: L.LSTM(D, H)(X, lengths=[5, 6, 1, 9]), ValueError,
         r"LSTM: lengths\[1\]=6, lengths\[3\]=9: expected 1 to 5"),
        (lambda: L.GRU(D, H)(X, lengths=[5, 0, 1, 2]), ValueError,
         r"GRU: lengths\[1\]=0: expected 1 to 5"),
        (lambda: L.RNN(D, H)(X, lengths=[5, 1]), ValueError,
         r"RNN: lengths are int64 of shape \(2,\), expected an integer for each of the 4 rows"),
        (lambda: L.RNN(D, H)(X, lengths=[1.0] * 4), ValueError, "lengths are float64"),
        (lambda: L.GRU(D, H)(X, zeros(1, 3, H)), ValueError,
         r"GRU: h0 has shape \(1, 3, 6\), expected \(1, 4, 6\): 1 layers times 1 directions"),
        (lambda: L.LSTM(D, H)(X, (zeros(1, B, H),) * 2 + (X,)),
         TypeError, r"LSTM: the state is a tuple of .*, expected a pair of tensors"),
        (lambda: L.LSTM(D, H)(X, X), TypeError, "expected a pair of tensors, output and cell"),
        (lambda: L.LSTM(D, H, proj_size=2)(X, (zeros(1, B, 2), zeros(1, B, 2))), ValueError,
         r"c0 has shape \(1, 4, 2\), expected \(1, 4, 6\)"),
        (lambda: L.LSTM(D + 1, H)(X), ValueError, r"input is \(5, 4, 3\), expected .* 4 features"),
        (lambda: L.LSTM(D, H)(X.to("float64")), TypeError, "input is float64, weight_ih float32"),
        (lambda: L.LSTM(D, H, proj_size=6), ValueError, "proj_size=6, expected 0"),
        (lambda: L.RNN(D, H, nonlinearity="sin"), ValueError, "nonlinearity='sin'"),
        (lambda: L.RNN(D, 0), ValueError, "hidden_size=0"),
        (lambda: L.GRU(D, H, dropout=2), ValueError, "dropout=2"),
        (lambda: L.GRUCell(D, H)(X), ValueError, r"GRUCell: input is \(5, 4, 3\)"),
        (lambda: L.GRUCell(D, H)(X[0], X[0]), ValueError, r"state h is \(4, 3\), .* \(4, 6\)"),
        (lambda: L.LSTMCell(D, H)(X[0], X[0]), TypeError, "expected a pair"),
        (lambda: pack_padded_sequence(X, [5, 6, 1, 2]), ValueError, r"lengths\[1\]=6"),
        (lambda: pack_padded_sequence(X, LENGTHS, enforce_sorted=True), ValueError, "not sorted"),
        (lambda: pad_packed_sequence(pack_padded_sequence(X, LENGTHS), total_length=3),
         ValueError, "total_length=3, the longest row has 5"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (L.LSTM(3, 4, num_layers=2, proj_size=2), "LSTM(3, 4, num_layers=2, proj_size=2)"),
        (L.RNN(3, 4, nonlinearity="relu"), "RNN(3, 4, nonlinearity='relu')"),
        (L.GRU(3, 4, reset_after=False, bias=False), "GRU(3, 4, reset_after=False, bias=False)"),
    ],
)  # fmt: skip
def test_the_repr_shows_what_is_no_default(layer, expected):
    assert repr(layer) == expected
