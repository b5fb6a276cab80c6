"""EMA of weights: the average, swapping, saving."""

import numpy as np
import pytest

import framework as fw
from framework.layers import BatchNorm1d, Linear, Sequential
from framework.optimizers import EMA, SGD


def model(seed=0):
    fw.manual_seed(seed)
    return Sequential(Linear(3, 4), BatchNorm1d(4))


def move(m, seed):
    rng = np.random.default_rng(seed)
    for p in m.parameters():
        p.data[...] = rng.standard_normal(p.shape)
    m.train()(fw.tensor(rng.standard_normal((8, 3)).astype("float32")))


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_average(warmup, flat):
    m = model()
    if flat:
        SGD(m.parameters())
    ema = EMA(m, decay=0.9, warmup=warmup)
    expected = {name: x.data.astype("f8") for name, x in m.state_dict().items()}
    for n in range(6):
        move(m, n)
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
        for name, x in m.state_dict().items():
            if x.dtype.kind == "f":
                expected[name] = decay * expected[name] + (1 - decay) * x.data
            else:
                expected[name] = x.data
    assert ema.updates == 6
    for name, x in ema.average.items():
        np.testing.assert_allclose(x.data, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert int(ema.average["1.num_batches_tracked"]) == 6


def test_the_model_is_not_touched_by_updates():
    m = model()
    ema = EMA(m, 0.5)
    move(m, 1)
    before = {name: x.data.copy() for name, x in m.state_dict().items()}
    ema.update()
    for name, x in m.state_dict().items():
        np.testing.assert_array_equal(x.data, before[name])


def test_swap_and_back_even_after_an_error():
    m = model()
    optimizer = SGD(m.parameters(), lr=1.0)
    ema = EMA(m, 0.5)
    move(m, 1)
    ema.update()
    own = {name: x.data.copy() for name, x in m.state_dict().items()}
    arrays = [p.data for p in m.parameters()]
    with pytest.raises(KeyError), ema.swap() as inside:
        assert inside is m
        for name, x in m.state_dict().items():
            np.testing.assert_array_equal(x.data, ema.average[name].data)
        raise KeyError
    for name, x in m.state_dict().items():
        np.testing.assert_array_equal(x.data, own[name])
    assert all(p.data is a for p, a in zip(m.parameters(), arrays, strict=True))  # still views
    assert arrays[0].base is optimizer._flat[0][0].data


def test_state_round_trip():
    m = model()
    ema = EMA(m, 0.9, warmup=True)
    for n in range(3):
        move(m, n)
        ema.update()
    state = ema.state_dict()
    arrays = {name: x.data.copy() for name, x in state["average"].items()}
    other = EMA(model(1), 0.9, warmup=True)
    other.load_state_dict({"updates": state["updates"], "average": arrays})
    other.model.load_state_dict(m.state_dict())
    for e in (ema, other):
        e.update()
    for name, x in other.average.items():
        np.testing.assert_array_equal(x.data, ema.average[name].data)


def test_errors():
    m = model()
    with pytest.raises(ValueError, match="decay=1.5, expected a number from 0 to 1"):
        EMA(m, 1.5)
    with pytest.raises(ValueError, match="decay='x', expected a number from 0 to 1"):
        EMA(m, "x")
    ema = EMA(m)
    with pytest.raises(ValueError, match=r"updates and average, got \['x'\]"):
        ema.load_state_dict({"x": 1})
    average = dict(ema.average)
    average["0.bias"] = np.zeros(9)
    average["extra"] = average.pop("0.weight")
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        ema.load_state_dict({"updates": 1, "average": average})
    assert "0.bias: shape (9,) in the state, (4,) here" in str(caught.value)
    assert "0.weight: missing" in str(caught.value)
    assert "extra: unexpected" in str(caught.value)
    m.append(Linear(4, 1))
    with pytest.raises(ValueError, match=r"changed since the EMA was made: 2\.bias, 2\.weight"):
        ema.update()
