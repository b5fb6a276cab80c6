"""Flat buffers: what is a view of what, groups, moved parameters, saved state, memory."""

import copy
import gc
import pickle
import sys
import weakref

import numpy as np
import pytest

import framework as fw
from framework.layers import Linear, ReLU, Sequential
from framework.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from framework.optimizers.flat import joined


def model(dtype="float32"):
    fw.manual_seed(0)
    return Sequential(Linear(5, 7), ReLU(), Linear(7, 3)).to(dtype)


def backward(m, seed=0):
    x = np.random.default_rng(seed).standard_normal((4, 5)).astype(m[0].weight.dtype)
    (m(fw.tensor(x)) ** 2.0).mean().backward()


def weights(m):
    return {name: x.data.copy() for name, x in m.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Views ------------------------------------------------------------------------------------------


def test_parameters_become_views_with_their_values():
    m = model()
    before, modules = weights(m), list(m.parameters())
    optimizer = Adam(m.parameters())
    same(weights(m), before)
    flat = optimizer._flat[0][0]
    assert all(a is b for a, b in zip(m.parameters(), modules, strict=True))
    for p in m.parameters():
        assert p.data.base is flat.data
        assert p.data.flags.c_contiguous
        offset = p.data.__array_interface__["data"][0] - flat.data.__array_interface__["data"][0]
        assert offset % 64 == 0


def test_backward_writes_into_the_flat_gradients():
    m = model()
    optimizer = Adam(m.parameters())
    backward(m)
    flat = optimizer._flat[0][0]
    for p in m.parameters():
        assert p.grad.data.base is flat.grad
    (gradients,) = optimizer.flat_gradients()
    assert gradients.base is flat.grad
    total = sum(float((p.grad.data.astype("f8") ** 2).sum()) for p in m.parameters())
    assert float((gradients.astype("f8") ** 2).sum()) == pytest.approx(total, rel=1e-12)
    assert flat.steps == [0, 0, 0, 0]  # asking counts no step
    optimizer.zero_grad()
    assert all(p.grad is None for p in m.parameters())
    assert optimizer.flat_gradients() == []


@pytest.mark.parametrize("through_the_model", [False, True])
def test_a_gradient_that_somebody_holds_outlives_zero_grad(through_the_model):
    m = model()
    optimizer = SGD(m.parameters())
    backward(m, 1)
    kept = m[0].weight.grad
    values = kept.data.copy()
    buffer = optimizer._flat[0][0].grad
    assert kept.data.base is buffer
    (m if through_the_model else optimizer).zero_grad()
    backward(m, 2)
    np.testing.assert_array_equal(kept.data, values)
    assert not np.array_equal(m[0].weight.grad.data, values)
    assert m[0].weight.grad.data.base is buffer


def test_zero_grad_copies_no_gradient_that_nobody_holds():
    m = model()
    optimizer = SGD(m.parameters())
    backward(m)
    watched = [weakref.ref(p.grad) for p in m.parameters()]
    copied = []

    class Spy(np.ndarray):
        def copy(self, *args):
            copied.append(self)
            return super().copy(*args)

    for p in m.parameters():
        p.slot = p.grad.data = p.slot.view(Spy)
    optimizer.zero_grad()
    assert copied == []
    assert all(w() is None for w in watched)


def test_zero_grad_to_zero():
    m = model()
    optimizer = SGD(m.parameters())
    backward(m)
    m[0].bias.grad = None
    optimizer.zero_grad(set_to_none=False)
    assert m[0].bias.grad is None
    assert (m[0].weight.grad.data == 0).all()
    optimizer.zero_grad(set_to_none=True)
    assert m[0].weight.grad is None


def test_gradients_accumulate_over_backward_passes():
    one, two = model(), model()
    a, b = SGD(one.parameters(), 0.1), SGD(two.parameters(), 0.1)
    backward(one, 1)
    backward(one, 2)
    backward(two, 1)
    kept = [p.grad.data.copy() for p in two.parameters()]
    two.zero_grad()
    backward(two, 2)
    for p, g in zip(two.parameters(), kept, strict=True):
        p.grad = fw.Tensor(p.grad.data + g)  # assigned: no view any more
    a.step()
    b.step()
    for x, y in zip(weights(one).values(), weights(two).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_assigned_data_and_gradients_are_taken_up():
    p = fw.Parameter(np.ones(3, "float32"))
    optimizer = SGD([p], lr=1.0)
    p.data = np.full(3, 5.0, "float32")
    p.grad = fw.Tensor(np.full(3, 2.0, "float32"))
    optimizer.step()
    assert (p.data == 3).all()
    assert p.data.base is optimizer._flat[0][0].data
    assert p.grad.data.base is optimizer._flat[0][0].grad
    p.data[...] = 1  # in place works of course
    optimizer.step()
    assert (p.data == -1).all()


def test_a_parameter_of_another_shape_is_an_error():
    p = fw.Parameter(np.ones(3, "float32"))
    optimizer = SGD([p], lr=1.0)
    p.data = np.ones(4, "float32")
    with pytest.raises(
        ValueError, match=r"shape \(3,\) when the optimizer was made and has \(4,\)"
    ):
        optimizer.step()
    p.data = np.ones(3, "float32")
    p.grad = fw.Tensor(np.ones(4, "float32"))
    with pytest.raises(ValueError, match=r"gradient of shape \(4,\) for \(3,\)"):
        optimizer.step()


def test_two_optimizers_can_share_a_parameter():
    p = fw.Parameter(np.zeros(2, "float32"))
    first, second = SGD([p], lr=1.0), SGD([p], lr=10.0)
    for optimizer in (first, second, first):
        optimizer.zero_grad()
        p.sum().backward()
        optimizer.step()
    assert (p.data == -12).all()


def test_loading_weights_after_the_optimizer_was_made():
    m = model()
    optimizer = SGD(m.parameters(), lr=0.0)
    state = {name: x + 1 for name, x in weights(m).items()}
    m.load_state_dict(state)
    backward(m)
    optimizer.step()
    same(weights(m), state)


def test_parameters_of_mixed_dtypes_get_a_buffer_each():
    a, b = fw.Parameter(np.ones(2, "float32")), fw.Parameter(np.ones(3, "float64"))
    optimizer = SGD([a, b], lr=1.0, momentum=0.5)
    for p in (a, b):
        p.grad = fw.Tensor(np.ones_like(p.data))
    optimizer.step()
    assert (a.dtype, b.dtype) == (np.float32, np.float64)
    assert (a.data == 0).all()
    assert (b.data == 0).all()


def test_the_optimizer_follows_a_model_to_another_dtype():
    m, other = model(), model("float64")
    optimizer, reference = Adam(m.parameters(), 0.01), Adam(other.parameters(), 0.01)
    backward(m)
    optimizer.step()
    backward(other)
    reference.step()
    m.to("float64")
    for i in (m, other):
        i.zero_grad()
        backward(i, 1)
    optimizer.step()
    reference.step()
    assert optimizer._flat[0][0].dtype == np.float64
    assert optimizer._flat[0][0].state["exp_avg"].dtype == np.float64
    for x, y in zip(weights(m).values(), weights(other).values(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    m[0].to("float32")
    with pytest.raises(ValueError, match="are now float32 on cpu, float64 on cpu"):
        optimizer.step()
    m.to("float16")
    with pytest.raises(TypeError, match="float16 parameters, whose rounding"):
        optimizer.step()


@pytest.mark.cuda
def test_the_optimizer_follows_a_model_to_cuda():
    m, other = model(), model()
    optimizer, reference = Adam(m.parameters(), 0.01), Adam(other.parameters(), 0.01)
    for i in (m, other):
        backward(i)
    optimizer.step()
    reference.step()
    m.to("cuda")
    for p, q in zip(m.parameters(), other.parameters(), strict=True):
        p.grad = fw.tensor(q.grad.data, device="cuda")
    optimizer.step()
    reference.step()
    for x, y in zip(m.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(x.data.get(), y.data, rtol=1e-5, atol=1e-6)


def slotted(slot):
    p = fw.Parameter(np.zeros(slot.shape, "float32"))
    p.slot, p.grad = slot, fw.Tensor(slot)
    return p


def test_joined_gradients():
    buffer = np.arange(1, 101, dtype="float32")
    slots = [buffer[0:10], buffer[16:20].reshape(2, 2), buffer[20:30], buffer[60:70]]
    parts = [slotted(slot) for slot in slots]
    alone = fw.Parameter(np.ones((2, 2), "float32"))
    alone.grad = fw.ones(2, 2)
    none = fw.Parameter(np.ones(2, "float32"))
    runs = joined([*parts, alone, none, slotted(buffer[80:90])])
    assert [r.shape for r in runs] == [(30,), (10,), (2, 2), (10,)]
    assert runs[0].base is buffer
    expected = np.arange(1, 31, dtype="float32")
    expected[10:16] = 0  # the gap
    np.testing.assert_array_equal(runs[0], expected)
    assert joined([parts[2], parts[0]])[0].shape == (10,)  # not in order
    assert joined([]) == []


def test_gradients_of_somebody_elses_array_are_not_joined():
    whole = np.arange(8, dtype="float32")
    p, q, r = (fw.Parameter(np.zeros(3, "float32")) for _ in range(3))
    p.grad, q.grad = fw.Tensor(whole[:3]), fw.Tensor(whole[5:])
    r.grad = fw.Tensor(np.frombuffer(bytearray(12), "float32"))  # its base is no array
    assert [a.tolist() for a in joined([p, q, r])] == [[0, 1, 2], [5, 6, 7], [0, 0, 0]]
    assert whole[3:5].tolist() == [3, 4]


# Groups -----------------------------------------------------------------------------------------


def test_groups_have_their_own_options():
    a, b = fw.Parameter(np.zeros(2, "float32")), fw.Parameter(np.zeros(2, "float32"))
    optimizer = SGD([{"params": [a], "lr": 1.0}, {"params": b}], lr=0.1)
    optimizer.add_param_group({"params": [c := fw.Parameter(np.zeros(1, "float32"))], "lr": 5.0})
    for p in (a, b, c):
        p.grad = fw.Tensor(np.ones_like(p.data))
    optimizer.step()
    assert a.data[0] == -1
    assert b.data[0] == np.float32(-0.1)
    assert c.data[0] == -5
    optimizer.scale_lr(0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.05, 2.5]
    optimizer.scale_lr(2)  # of the initial rates, not of the current ones
    assert [g["lr"] for g in optimizer.param_groups] == [2.0, 0.2, 10.0]
    assert optimizer.lr == 2.0
    optimizer.lr = 3
    assert {g["lr"] for g in optimizer.param_groups} == {3.0}
    assert "group 2: 1 parameters, lr=3.0" in repr(optimizer)
    with pytest.raises(ValueError, match="lr=-1"):
        optimizer.lr = -1
    with pytest.raises(ValueError, match="multiplier=nan"):
        optimizer.scale_lr(float("nan"))


def test_numpy_numbers_as_options():
    p = parameter()
    optimizer = Adam([p], lr=np.float32(0.5), betas=[np.float64(0.5), 0.9], eps=np.int64(1))
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.5, 0.9), 1)
    assert [type(x) for x in (group["lr"], group["betas"][0], group["eps"])] == [float, float, int]
    optimizer.lr = np.float16(0.25)
    assert type(group["lr"]) is float
    group["lr"] = np.float32(2)
    optimizer.step()
    assert type(group["lr"]) is float


def test_options_set_out_of_range_change_nothing():
    p, q = parameter(), parameter()
    optimizer = SGD([{"params": [p]}, {"params": [q]}], lr=1.0)
    optimizer.param_groups[1]["lr"] = -1.0
    p.grad = q.grad = fw.ones(2)
    with pytest.raises(ValueError, match="lr=-1.0, expected a finite number of at least 0"):
        optimizer.step()
    assert (p.data == 1).all()


def test_turning_on_momentum_later():
    p = fw.Parameter(np.zeros(1, "float32"))
    optimizer = SGD([p], lr=1.0)
    optimizer.param_groups[0]["momentum"] = 0.5
    for _ in range(2):
        p.grad = fw.Tensor(np.ones(1, "float32"))
        optimizer.step()
    assert p.data[0] == -2.5


def parameter():
    return fw.Parameter(np.ones(2, "float32"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD([]), ValueError, "got no parameters"),
        (lambda: SGD([{"params": []}]), ValueError, "group has no parameters"),
        (lambda: SGD([{"lr": 1.0}]), ValueError, r"keys \['lr'\], expected 'params'"),
        (lambda: SGD(parameter()), TypeError, "is one tensor"),
        (lambda: SGD([np.ones(2)]), TypeError, "parameter 0 is a ndarray"),
        (lambda: SGD([{"params": [parameter()]}, parameter()]), TypeError, "mixes groups"),
        (lambda: SGD([{"params": [parameter()], "rate": 1}]), ValueError, "no option rate; .* lr,"),
        (lambda: SGD([fw.tensor([1, 2])]), TypeError, "given int64 parameters, expected float32"),
        (lambda: SGD([parameter() * 2.0]), ValueError, "result of an operation"),
        (lambda: SGD([parameter().to("float64")]), ValueError, "result of an operation"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_parameter_given_twice():
    p = parameter()
    with pytest.raises(ValueError, match=r"parameter 1 \(shape \(2,\)\) is in the optimizer"):
        SGD([p, p])
    with pytest.raises(ValueError, match="is in the optimizer already"):
        SGD([p]).add_param_group({"params": [p]})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_parameters(dtype):
    with pytest.raises(TypeError, match=f"{dtype} parameters, .* mixed precision"):
        SGD(model(dtype).parameters())


# State ------------------------------------------------------------------------------------------

MAKES = [
    lambda ps: SGD(ps, 0.1, momentum=0.9),
    lambda ps: Adam(ps, 0.1, amsgrad=True),
    lambda ps: AdamW(ps, 0.1),
    lambda ps: RMSprop(ps, 0.1, momentum=0.9, centered=True),
    lambda ps: Adagrad(ps, 0.1, lr_decay=0.1),
]


@pytest.mark.parametrize("make", MAKES)
def test_saved_and_loaded_goes_on_bit_for_bit(make):
    m = model()
    optimizer = make(m.parameters())
    for seed in range(3):
        optimizer.zero_grad()
        backward(m, seed)
        optimizer.step()
    optimizer.lr = 0.05
    saved = optimizer.state_dict()
    saved["arrays"] = {name: x.data.copy() for name, x in saved["arrays"].items()}  # as from a file
    fresh = model()
    fresh.load_state_dict(weights(m))
    other = make(fresh.parameters())
    other.load_state_dict(saved)
    assert other.lr == 0.05
    for seed in range(3, 6):
        for mm, oo in ((m, optimizer), (fresh, other)):
            oo.zero_grad()
            backward(mm, seed)
            oo.step()
    same(weights(m), weights(fresh))


def test_state_is_plain_values_and_named_arrays():
    import json

    m = model()
    optimizer = Adam(m.parameters())
    backward(m)
    optimizer.step()
    state = optimizer.state_dict()
    plain = json.loads(json.dumps({k: v for k, v in state.items() if k != "arrays"}))
    assert plain["name"] == "Adam"
    assert plain["steps"] == [1, 1, 1, 1]
    assert plain["groups"][0]["betas"] == [0.9, 0.999]
    assert plain["groups"][0]["parameters"] == 4
    assert state["arrays"]["exp_avg_sq.2"].shape == (3, 7)
    optimizer.load_state_dict({**plain, "arrays": state["arrays"]})
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_states_that_do_not_fit():
    m = model()
    optimizer = Adam(m.parameters())
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="not an optimizer's state_dict"):
        optimizer.load_state_dict({})
    with pytest.raises(ValueError, match="state is of Adam, the optimizer is SGD"):
        SGD(m.parameters()).load_state_dict(state)
    with pytest.raises(ValueError, match=r"groups of \[4\] parameters, the optimizer of \[2\]"):
        Adam(m[0].parameters()).load_state_dict(state)
    arrays = dict(state["arrays"])
    arrays["exp_avg.0"] = np.zeros((2, 2))
    arrays["other.0"] = arrays.pop("exp_avg.1")
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        optimizer.load_state_dict({**state, "arrays": arrays})
    text = str(caught.value)
    assert "exp_avg.0: shape (2, 2) in the state, (7, 5) here" in text
    assert "exp_avg.1: missing" in text
    assert "other.0: unexpected" in text


def through_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("make", MAKES)
def test_a_copy_of_model_and_optimizer_trains_alike(make, copied):
    m = model()
    optimizer = make(m.parameters())
    for seed in range(2):
        optimizer.zero_grad()
        backward(m, seed)
        optimizer.step()
    before = weights(m)
    m2, optimizer2 = copied((m, optimizer))
    same(weights(m2), before)
    for seed in range(2, 4):
        for mm, oo in ((m, optimizer), (m2, optimizer2)):
            oo.zero_grad()
            backward(mm, seed)
            oo.step()
        same(weights(m), weights(m2))
    assert not np.array_equal(m2[0].weight.data, before["0.weight"])
    assert not np.shares_memory(m2[0].weight.data, m[0].weight.data)
    assert m2[0].weight.grad.data.base is optimizer2._flat[0][0].grad


def test_a_pickled_optimizer_keeps_the_gradients():
    m = model()
    optimizer = SGD(m.parameters(), 0.1)
    backward(m)
    m2, optimizer2 = through_pickle((m, optimizer))
    optimizer.step()
    optimizer2.step()
    same(weights(m), weights(m2))


def test_a_copy_after_the_model_changed_its_dtype():
    m = model()
    optimizer = Adam(m.parameters(), 0.1)
    backward(m)
    optimizer.step()
    m.to("float64")
    m2, optimizer2 = copy.deepcopy((m, optimizer))
    assert optimizer2._flat[0][0].state["exp_avg"].dtype == np.float64
    for mm, oo in ((m, optimizer), (m2, optimizer2)):
        oo.zero_grad()
        backward(mm, 1)
        oo.step()
    same(weights(m), weights(m2))


# Training ---------------------------------------------------------------------------------------


def test_training_reduces_the_loss():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5)).astype("float32")
    target = fw.tensor(x @ rng.standard_normal((5, 3)).astype("float32"))
    m = model()
    optimizer = AdamW(m.parameters(), lr=0.02)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = fw.functional.mse_loss(m(fw.tensor(x)), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.02 * losses[0]


def test_memory_of_a_step_does_not_grow_without_the_collector():
    m = model()
    optimizer = Adam(m.parameters())

    def steps(n):
        for _ in range(n):
            optimizer.zero_grad()
            backward(m)
            optimizer.step()

    gc.disable()
    try:
        steps(2500)  # the interpreter's free lists fill up first: 2,000 tuples of each length
        before = sys.getallocatedblocks()
        steps(500)
        after = sys.getallocatedblocks()
    finally:
        gc.enable()
    assert after - before < 250  # one leaked object a step would be 500
