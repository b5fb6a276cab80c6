"""Tensor: values in and out, dtypes, devices, comparison, creation, repr."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest

import framework as fw
from framework.autograd import Parameter

on_each_device = pytest.mark.usefixtures("device")


@on_each_device
def test_lists_become_float32_and_arrays_keep_their_dtype():
    assert fw.tensor([1.0, 2.0]).dtype == np.float32
    assert fw.tensor([1, 2]).dtype == np.int64
    assert fw.tensor([True]).dtype == bool
    assert fw.tensor(np.ones(2)).dtype == np.float64
    assert fw.tensor([1.0], dtype="bfloat16").dtype == ml_dtypes.bfloat16
    assert fw.tensor(2.5).shape == ()


@on_each_device
def test_tensor_copies_its_input():
    array = np.ones(3, np.float32)
    x = fw.tensor(array)
    array[0] = 5
    np.testing.assert_array_equal(x.numpy(), [1, 1, 1])


@on_each_device
def test_bad_input_is_named():
    with pytest.raises(ValueError, match="cannot make a tensor of this list"):
        fw.tensor([[1.0], [1.0, 2.0]])
    with pytest.raises(TypeError, match="holds numbers"):
        fw.tensor(["a"])
    with pytest.raises(TypeError, match="dtype='float7': expected bool"):
        fw.tensor([1.0], dtype="float7")
    with pytest.raises(ValueError, match="device='gpu': expected 'auto', 'cpu', 'cuda'"):
        fw.tensor([1.0], device="gpu")
    with pytest.raises(TypeError, match="only floating-point tensors have gradients"):
        fw.tensor([1], requires_grad=True)
    with pytest.raises(TypeError, match="a parameter is floating-point"):
        Parameter(np.arange(3))


def test_numpy_in_and_out():
    x = fw.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert np.shares_memory(np.asarray(x), x.data)
    assert np.array(x, dtype=np.float64).dtype == np.float64
    assert np.array_equal(np.array(x, copy=True), x.numpy())
    assert not np.shares_memory(np.array(x, copy=True), x.data)
    assert isinstance(np.ones((2, 2), np.float32) + x, fw.Tensor)
    assert isinstance(np.float32(2) * x, fw.Tensor)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="detach"):
        x.numpy()


def test_dlpack_shares_memory_both_ways():
    x = fw.tensor([1.0, 2.0])
    array = np.from_dlpack(x)
    array_is_view = np.shares_memory(array, x.data)
    assert array_is_view
    back = fw.from_dlpack(array)
    assert np.shares_memory(back.data, array)
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(fw.tensor([1.0], requires_grad=True))


def test_dlpack_of_bfloat16_says_what_to_do():
    x = fw.tensor([1.0, 2.0], dtype="bfloat16")
    with pytest.raises(BufferError, match=r'bfloat16.*\.to\("float32"\)'):
        np.from_dlpack(x)
    with pytest.raises(TypeError, match="bfloat16.*float32"):
        fw.from_dlpack(x)

    class Foreign:
        dtype = "torch.bfloat16"

        def __dlpack__(self, **options):
            raise AssertionError("never asked for")

        def __dlpack_device__(self):
            return 1, 0

    for take in (fw.tensor, fw.from_dlpack):
        with pytest.raises(TypeError, match="Foreign of bfloat16.*float32"):
            take(Foreign())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 1000, 5000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_infinities_of_both_signs_are_reduced_silently(n, dtype):
    values = np.ones((n, 2))
    values[0], values[-1] = np.inf, -np.inf
    x = fw.tensor(values, dtype=dtype)
    for reduce in (fw.Tensor.sum, fw.Tensor.mean, fw.Tensor.var, fw.Tensor.std):
        for axis in (None, 0, (0, 1)):
            assert np.isnan(reduce(x, axis).numpy()).all()
            assert np.isnan(reduce(x[:, 0], None).numpy()).all()


@pytest.mark.filterwarnings("error")
def test_what_a_dtype_cannot_hold_is_converted_silently():
    big = [
        fw.tensor([1e6]).to("float16"),
        fw.tensor([1e6], dtype="float16"),
        fw.tensor(np.array([1e6]), dtype="float16"),
        fw.tensor([1e300]),
        fw.ones(1) + [1e300],
        fw.full((1,), 1e6, dtype="float16"),
        fw.arange(1e6, 2e6, 1e6, dtype="float16"),
        fw.linspace(1e6, 2e6, 1, dtype="float16"),
    ]
    for x in big:
        assert np.isposinf(x.numpy()).all()
    fw.tensor([float("nan")]).to("int64")


@on_each_device
def test_python_numbers():
    x = fw.tensor([3.0])
    assert x.item() == 3 and float(x) == 3 and int(x) == 3 and bool(x)
    assert fw.tensor([[1, 2]]).tolist() == [[1, 2]]
    assert [10, 20, 30][fw.tensor(1)] == 20
    with pytest.raises(TypeError, match="cannot be used as an index"):
        [1][fw.tensor(0.0)]
    with pytest.raises(ValueError, match=r"one element, this one has shape \(2,\)"):
        fw.tensor([1.0, 2.0]).item()
    with pytest.raises(TypeError, match="0-dimensional"):
        len(fw.tensor(1.0))


@on_each_device
def test_comparison_gives_booleans():
    x = fw.tensor([1.0, 2.0, 3.0])
    for result, expected in [
        (x == 2, [False, True, False]),
        (x != 2, [True, False, True]),
        (x < 2, [True, False, False]),
        (x <= 2, [True, True, False]),
        (x > 2, [False, False, True]),
        (x >= 2, [False, True, True]),
        (~(x > 2), [True, True, False]),
        ((x > 1) & (x < 3), [False, True, False]),
        ((x < 2) | (x > 2), [True, False, True]),
    ]:
        assert result.dtype == bool
        assert result.tolist() == expected
    assert (x > 0).all().item() and not (x > 3).any().item()
    assert len({x, x}) == 1


@on_each_device
def test_integer_results_of_reductions():
    x = fw.tensor([[1.0, 5.0], [7.0, 2.0]])
    assert x.argmax().item() == 2 and x.argmin(1).tolist() == [0, 1]
    assert x.argmax(0).dtype == np.int64
    assert x.sum().shape == () and hasattr(x.sum().data, "strides")  # an array


def test_repr_shows_values_dtype_and_origin():
    x = fw.tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == "tensor([1., 2.], requires_grad=True)"
    assert repr(fw.tensor([1, 2])) == "tensor([1, 2])"
    assert repr(fw.tensor(np.ones(1))) == "tensor([1.], dtype=float64)"
    assert "from=multiply" in repr(x * 2)
    big = repr(fw.zeros(1000, 1000))
    assert "..." in big and "shape=(1000, 1000)" in big and len(big) < 800
    assert "shape=(0, 3)" in repr(fw.zeros(0, 3))


def test_to_changes_dtype_and_keeps_the_graph():
    x = fw.tensor([1.5], requires_grad=True)
    assert x.to("float32") is x and x.to("cpu") is x and x.cpu() is x
    y = x.to("float64") * 2
    y.backward()
    assert x.grad.dtype == np.float32 and x.grad.item() == 2
    assert x.to("int64").dtype == np.int64 and not x.to("int64").requires_grad


def test_deepcopy_copies_leaves_only():
    x = Parameter(np.ones(2, np.float32))
    y = copy.deepcopy(x)
    assert isinstance(y, Parameter) and y.requires_grad and not np.shares_memory(x.data, y.data)
    with pytest.raises(RuntimeError, match="detach"):
        copy.deepcopy(x * 2)


@on_each_device
def test_requires_grad_only_on_leaves():
    x = fw.tensor([1.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="detach"):
        (x * 2).requires_grad_(False)
    with pytest.raises(RuntimeError, match="needs no gradient"):
        fw.tensor([1.0]).register_hook(print)
    with pytest.raises(RuntimeError, match="needs no gradient"):
        fw.tensor([1.0]).retain_grad()
    assert x.is_leaf and not (x * 2).is_leaf


@on_each_device
def test_creation():
    assert fw.zeros(2, 3).shape == (2, 3) and fw.ones((2, 3)).numpy().sum() == 6
    assert fw.full((2,), 7, dtype="int64").tolist() == [7, 7]
    assert fw.arange(3).tolist() == [0, 1, 2] and fw.arange(3).dtype == np.int64
    assert fw.arange(1, 2, 0.5).tolist() == [1.0, 1.5]
    assert fw.linspace(0, 1, 3).tolist() == [0, 0.5, 1]
    assert fw.empty(2, dtype="float16").dtype == np.float16
    assert fw.ones(2, requires_grad=True).requires_grad
    with pytest.raises(ValueError, match="expected integers of at least 0"):
        fw.zeros(-1)
    with pytest.raises(ValueError, match="step=0"):
        fw.arange(0, 1, 0)


@on_each_device
def test_random_draws_repeat_by_seed():
    def draws():
        fw.manual_seed(7)
        return [
            fw.rand(3, 5),
            fw.randn(7),
            fw.randint(2, 9, (50,)),
            fw.randperm(20),
            fw.bernoulli(0.3, (100,)),
        ]

    first, second = draws(), draws()
    for a, b in zip(first, second, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    uniform, normal, integers, order, flips = (t.numpy() for t in first)
    assert (0 <= uniform).all() and (uniform < 1).all()
    assert normal.std() > 0.2
    assert set(integers) <= set(range(2, 9))
    assert sorted(order) == list(range(20))
    assert set(flips) == {0, 1} and 0.1 < flips.mean() < 0.5
    assert not np.array_equal(fw.rand(5).numpy(), fw.rand(5).numpy())


@on_each_device
def test_random_state_is_two_integers():
    generator = fw.Generator(3)
    fw.rand(10, generator=generator)
    state = generator.state()
    assert set(state) == {"seed", "counter"} and all(type(v) is int for v in state.values())
    after = fw.rand(4, generator=generator)
    generator.load_state(state)
    assert fw.rand(4, generator=generator).tolist() == after.tolist()
    assert repr(fw.Generator(3)) == "Generator(seed=3, counter=0)"


@pytest.mark.parametrize("seed", [-1, 1.5, True, 1 << 64])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="expected an integer from 0 to"):
        fw.manual_seed(seed)


@on_each_device
def test_bad_draws_are_refused():
    with pytest.raises(ValueError, match="low=3 is not below high=3"):
        fw.randint(3, 3, (2,))
    with pytest.raises(ValueError, match="p=2"):
        fw.bernoulli(2, (2,))
    with pytest.raises(TypeError, match="expected a floating-point type"):
        fw.rand(2, dtype="int64")


@on_each_device
def test_lists_of_axes_and_numpys_integers():
    x = fw.tensor(np.arange(24.0).reshape(2, 3, 4), device=fw.default_device(), requires_grad=True)
    for name in ("sum", "mean", "var", "std", "max", "min", "norm", "all", "any"):
        method = getattr(x, name)
        np.testing.assert_array_equal(
            method([0, 1]).detach().numpy(), method((0, 1)).detach().numpy()
        )
    x.sum([0, -1]).sum().backward()
    assert (x.grad.numpy() == 1).all()
    assert [part.shape for part in x.split(np.int64(2), 2)] == [(2, 3, 2)] * 2
    assert [part.shape for part in x.split(np.array([1, 3]), 2)] == [(2, 3, 1), (2, 3, 3)]


def test_errors_name_what_was_given(tmp_path):
    x = fw.tensor(np.zeros((2, 3), np.uint8))
    with pytest.raises(TypeError, match="sum: axis='a', expected an integer"):
        x.sum("a")
    with pytest.raises(ValueError, match="any: axis 2 does not exist"):
        x.any(2)
    with pytest.raises(TypeError, match="split: size=2.5, expected an integer or a list"):
        x.split(2.5)
    with pytest.raises(TypeError, match="save: tensors is a list, expected a dict of names"):
        fw.save([1], tmp_path / "x.safetensors")
    with pytest.raises(
        OverflowError, match="number 300 does not fit into the tensor's dtype uint8"
    ):
        x + 300
    with pytest.raises(OverflowError, match="number -1 does not fit into the tensor's dtype uint8"):
        x += -1
    with pytest.raises(TypeError, match=r"to\('gpu'\): expected a device \('auto', 'cpu', 'cuda'"):
        x.to("gpu")


@on_each_device
def test_filled_like_another():
    x = fw.tensor([[1, 2, 3]], device=fw.default_device())
    for made, value in ((fw.zeros_like(x), 0), (fw.ones_like(x), 1), (fw.full_like(x, 7), 7)):
        assert (made.dtype, made.device, made.tolist()) == (x.dtype, x.device, [[value] * 3])
    assert fw.ones_like(x, dtype="float32", requires_grad=True).requires_grad
    assert fw.zeros_like(fw.tensor(2.0)).shape == ()
    with pytest.raises(TypeError, match="x is a list, expected a tensor"):
        fw.zeros_like([1, 2])


@on_each_device
def test_pytorchs_names():
    x = fw.tensor([[1.0, 2.0]], device=fw.default_device())
    assert fw.cat([x, x], dim=1).tolist() == [[1, 2, 1, 2]]
    assert x.long().dtype == np.int64
    assert x.long().tolist() == [[1, 2]]
