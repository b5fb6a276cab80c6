"""MLP: shapes, every option, one batch overfitted, and configurations that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import layers, optimizers
from framework.functional import cross_entropy, mse_loss
from models import ZOO, MLPConfig, build, configure, entry
from models.mlp import ACTIVATIONS, NORMS

RNG = np.random.default_rng(0)
on_each_device = pytest.mark.usefixtures("device")


def moved(array):
    """A tensor on the device of the test."""
    return fw.tensor(array, device=fw.default_device())


@pytest.mark.parametrize("hidden", [(), (7,), (6, 6, 5)])
@pytest.mark.parametrize("residual", [False, True])
@on_each_device
def test_shapes_and_depth(hidden, residual):
    model = build("mlp", inputs=12, hidden=hidden, outputs=3, residual=residual)
    for shape in ((4, 12), (4, 3, 2, 2)):
        assert model(moved(RNG.normal(size=shape).astype(np.float32))).shape == (4, 3)
    linear = [m for m in model.blocks.modules() if isinstance(m, layers.Linear)]
    projections = sum(a != b for a, b in zip((12, *hidden), hidden, strict=False)) * residual
    assert len(linear) == len(hidden) + projections


@pytest.mark.parametrize("activation", ACTIVATIONS)
@on_each_device
def test_activations(activation):
    check_that_everything_learns(build("mlp", inputs=6, hidden=(8,), activation=activation))


@pytest.mark.parametrize("norm", [*NORMS, None])
@pytest.mark.parametrize("residual", [False, True])
@on_each_device
def test_norms_and_residual(norm, residual):
    model = build("mlp", inputs=6, hidden=(8, 8), norm=norm, residual=residual)
    check_that_everything_learns(model)
    assert (model.blocks[0].linear.bias is None) == (norm == "batch")


def check_that_everything_learns(model):
    x = moved(RNG.normal(size=(16, 6)).astype(np.float32))
    cross_entropy(model(x), moved(np.arange(16) % 10)).backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.numpy()
        assert np.isfinite(gradient).all(), name
        assert abs(gradient).max() > 0, name


@on_each_device
def test_residual_adds_the_input():
    model = build("mlp", inputs=4, hidden=(4,), norm=None, dropout=0.0, residual=True).eval()
    block, x = model.blocks[0], moved(RNG.normal(size=(3, 4)).astype(np.float32))
    plain = block.activation(block.linear(x))
    got, expected = (t.detach().numpy() for t in (block(x), plain + x))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("task", ["classification", "regression"])
@on_each_device
def test_one_batch_can_be_overfitted(task):
    fw.manual_seed(0)
    x = moved(RNG.normal(size=(16, 6)).astype(np.float32))
    if task == "classification":
        outputs, loss, target = 4, cross_entropy, moved(RNG.integers(0, 4, 16))
    else:
        outputs, loss = 2, mse_loss
        target = moved(RNG.normal(size=(16, 2)).astype(np.float32))
    model = build("mlp", inputs=6, hidden=(32, 32), outputs=outputs, task=task, dropout=0.0)
    optimizer = optimizers.AdamW(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(model(x), target)
        value.backward()
        optimizer.step()
    assert value.item() < 1e-3


@on_each_device
def test_same_seed_same_weights():
    def weights(seed):
        fw.manual_seed(seed)
        return [p.detach().numpy().tobytes() for p in build("mlp").parameters()]

    assert weights(1) == weights(1)
    assert weights(1)[0] != weights(2)[0]


def test_configuration_for_data():
    config = MLPConfig.for_data((1, 8, 8), 10, "classification", dropout=0.5)
    assert (config.inputs, config.outputs, config.dropout) == (64, 10, 0.5)
    config = MLPConfig.for_data((10,), None, "regression")
    assert (config.inputs, config.outputs, config.task) == (10, 1, "regression")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": 0}, "inputs is 0"),
        ({"hidden": (3, -1)}, "hidden is -1"),
        ({"hidden": (2.0,)}, "hidden is 2.0"),
        ({"outputs": True}, "outputs is True"),
        ({"activation": "rleu"}, "activation is 'rleu', expected one of relu"),
        ({"norm": "group"}, "expected one of batch, layer, rms, none"),
        ({"task": "ranking"}, "task is 'ranking'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"residual": 1}, "residual is 1"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        MLPConfig(**options)


@on_each_device
def test_wrong_input():
    with pytest.raises(ValueError, match="5"):
        build("mlp", inputs=6)(moved(np.zeros((2, 5), np.float32)))


def test_the_zoo():
    assert entry("mlp") is ZOO["mlp"]
    with pytest.raises(ValueError, match=r"unknown model 'mpl' \(did you mean mlp\?\); there are:"):
        build("mpl")
    with pytest.raises(ValueError, match=r"mlp has no 'droput' \(did you mean dropout\?\)"):
        configure("mlp", droput=0.5)
    for name, family in ZOO.items():
        assert "\n" not in family.description
        assert isinstance(build(name), layers.Module)
