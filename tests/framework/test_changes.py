"""Values that a gradient needs and that were changed in place: an error, never a wrong gradient."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
import framework.functional as F
from framework import optimizers
from framework.autograd import changes
from framework.layers import Linear


def param(*values: float) -> fw.Tensor:
    return fw.tensor([float(v) for v in values], requires_grad=True)


def test_an_input_changed_in_place_is_an_error():
    w, x = param(1, 2, 3), fw.tensor([4.0, 5.0, 6.0])
    y = (w * x).sum()
    x += 1
    with pytest.raises(RuntimeError, match=r"multiply needs .*\(3,\) \(float32\).*\+=.*clone"):
        y.backward()


def test_a_parameter_changed_under_no_grad_is_an_error_that_names_the_input():
    w, x = param(1, 2, 3), param(4, 5, 6)
    y = (w * x).sum()
    with fw.no_grad():
        x *= 2
    with pytest.raises(RuntimeError, match=r"its input 1, .*\*="):
        y.backward()


@pytest.mark.parametrize(
    "alias", [lambda x: x.detach(), lambda x: x[1:], lambda x: x.reshape(3, 1), lambda x: x[::-1]]
)
def test_views_and_detached_tensors_share_their_changes(alias):
    w, x = param(1, 2, 3), fw.tensor([4.0, 5.0, 6.0])
    y = (w * x).sum()
    view = alias(x)
    view -= 1
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_result_that_is_saved_counts():
    x = param(1, 2)
    y = x.exp()
    z = y.sum()
    with fw.no_grad():
        y += 1
    with pytest.raises(RuntimeError, match="exp needs"):
        z.backward()


def test_what_a_gradient_does_not_need_may_change():
    w, x = param(1, 2, 3), fw.tensor([4.0, 5.0, 6.0])
    y = (w + x).sum() + (w * fw.tensor([1.0, 1.0, 1.0])).sum()
    other = fw.tensor([1.0, 2.0])
    x += 1
    other += 1
    with fw.no_grad():
        w *= 2
    y.backward()
    np.testing.assert_array_equal(w.grad.data, [2, 2, 2])


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: x @ w,
        lambda x, w: F.linear(x, w.T),
        lambda x, w: fw.einsum("ij,jk->ik", x, w),
    ],
)
def test_a_weight_whose_input_wants_no_gradient_may_change(product):
    w, x = fw.tensor([[1.0], [2.0]], requires_grad=True), fw.tensor([[4.0, 5.0]])
    y = product(x, w).sum()
    with fw.no_grad():
        w += 1
    y.backward()
    np.testing.assert_array_equal(w.grad.data, [[4], [5]])


def test_changes_before_the_forward_pass_are_fine():
    w, x = param(1, 2), fw.tensor([3.0, 4.0])
    x += 1
    (w * x).sum().backward()
    np.testing.assert_array_equal(w.grad.data, [4, 5])


def test_other_columns_of_one_array_are_other_memory():
    w, table = param(1, 2), fw.tensor([[1.0, 2.0], [3.0, 4.0]])
    y = (w * table[0]).sum()
    row = table[1]
    row += 1
    y.backward()
    np.testing.assert_array_equal(w.grad.data, [1, 2])


def test_a_step_between_forward_and_backward_is_an_error():
    layers = [Linear(2, 3), Linear(3, 1)]
    sgd = optimizers.SGD([p for layer in layers for p in layer.parameters()], lr=0.1)

    def loss() -> fw.Tensor:
        return layers[1](layers[0](fw.ones(4, 2))).sum()

    loss().backward()
    early = loss()
    sgd.step()
    with pytest.raises(RuntimeError, match="linear needs .* an optimizer's step"):
        early.backward()
    sgd.zero_grad()
    for _ in range(2):  # gradients of several batches, then a step
        loss().backward()
    sgd.step()


def test_loading_between_forward_and_backward_is_an_error():
    layer = Linear(2, 2)
    x = fw.ones(1, 2, requires_grad=True)
    y = layer(x).sum()
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="load_state_dict"):
        y.backward()


def test_an_index_array_may_change_after_it_was_used():
    x, i, mask = param(1, 2, 3), np.array([0, 0]), np.array([True, False, False])
    j = fw.tensor([2])
    y = x[i].sum() + x[mask].sum() + x[(j,)].sum()
    i[:], mask[:] = 1, True
    j -= 1
    y.backward()
    np.testing.assert_array_equal(x.grad.data, [3, 0, 1])


def test_the_memory_of_changes_is_bounded(monkeypatch):
    monkeypatch.setattr(changes, "REMEMBERED", 3)
    monkeypatch.setattr(changes, "_changes", {})
    kept = [fw.zeros(2) for _ in range(5)]
    for x in kept:
        x += 1
        x += 1
    assert len(changes._changes) == 3
