"""Module: registration, walking, state, moving, hooks, and where an error came from."""

import copy

import ml_dtypes
import numpy as np
import pytest

import framework as fw
from framework.layers import (
    BatchNorm1d,
    Dropout,
    Linear,
    Module,
    ReLU,
    Sequential,
    Tanh,
    new_buffer,
    new_parameter,
)


class Block(Module):
    def __init__(self, width=3):
        super().__init__()
        self.inner = Sequential(Linear(width, width), BatchNorm1d(width), Dropout(0.5))
        self.scale = fw.Parameter(np.full(1, 2.0, "float32"))
        self.register_buffer("offset", fw.tensor([1.0]))
        self.register_buffer("cache", fw.tensor([5.0]), persistent=False)

    def forward(self, x):
        return self.inner(x) * self.scale + self.offset


def test_attributes_register_themselves_by_kind():
    block = Block()
    assert [n for n, _ in block.named_parameters()] == [
        "scale",
        "inner.0.weight",
        "inner.0.bias",
        "inner.1.weight",
        "inner.1.bias",
    ]
    assert [n for n, _ in block.named_buffers()] == [
        "offset",
        "cache",
        "inner.1.running_mean",
        "inner.1.running_var",
        "inner.1.num_batches_tracked",
    ]
    paths = [n for n, _ in block.named_modules()]
    assert paths == ["", "inner", "inner.0", "inner.1", "inner.2"]
    assert [n for n, _ in block.named_children()] == ["inner"]
    assert len(list(block.parameters())) == 5
    assert len(list(block.buffers())) == 5
    assert list(block.children()) == [block.inner]
    assert len(list(block.modules())) == 5


def test_shared_modules_and_parameters_are_counted_once():
    shared = Linear(2, 2)
    model = Sequential(shared, shared)
    assert len(list(model.parameters())) == 2
    assert len(list(model.modules())) == 2
    assert len(model.state_dict()) == 4  # under both names, as in PyTorch


def test_replacing_registered_attributes():
    block = Block()
    block.scale = fw.Parameter(np.zeros(1, "float32"))
    assert dict(block.named_parameters())["scale"].data[0] == 0
    block.scale = None
    assert "scale" not in dict(block.named_parameters())
    block.offset = fw.tensor([3.0])
    assert dict(block.named_buffers())["offset"].data[0] == 3
    with pytest.raises(TypeError, match="'scale' is a parameter: assign a Parameter or None"):
        block.scale = fw.tensor([1.0])
    with pytest.raises(TypeError, match="'inner' is a module: .* not a int"):
        block.inner = 3
    del block.inner
    assert [n for n, _ in block.named_modules()] == [""]


def test_assigning_before_init_says_what_to_do():
    class Early(Module):
        def __init__(self):
            self.weight = fw.Parameter(np.ones(1, "float32"))

    class Never(Module):
        def __init__(self):
            self.width = 3

    with pytest.raises(AttributeError, match=r"'weight' yet: Early.__init__ must call super"):
        Early()
    with pytest.raises(AttributeError, match=r"Never.__init__ must call super"):
        Never()(1)


@pytest.mark.parametrize("name", ["train", "forward", "parameters", "training", "_hooks"])
def test_names_of_module_methods_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is taken by Module.{name}"):
        setattr(Module(), name, Linear(1, 1))


def test_names_of_a_subclass():
    class Net(Module):
        head = None

        def extra(self):
            return 3

        @property
        def size(self):
            return 4

    net = Net()
    for name in ("extra", "size"):
        with pytest.raises(ValueError, match=f"'{name}' is taken by Net.{name}"):
            net.register_parameter(name, fw.Parameter(np.ones(1, "float32")))
    net.head = Linear(1, 1)  # a default may be replaced, and what is registered too
    net.head = other = Linear(1, 2)
    assert list(net.children()) == [other]
    assert net.extra() == 3


def test_a_transient_buffer_that_becomes_a_parameter_is_in_the_state():
    module = Module()
    module.register_buffer("w", fw.tensor([1.0]), persistent=False)
    module.w = fw.tensor([2.0])
    assert list(module.state_dict()) == []
    module.w = fw.Parameter(np.ones(1, "float32"))
    assert list(module.state_dict()) == ["w"]
    module.register_buffer("w", fw.tensor([1.0]), persistent=False)
    assert list(module.state_dict()) == []


def test_names_with_dots_are_refused():
    with pytest.raises(ValueError, match=r"'a\.b': expected a name without dots"):
        Module().register_buffer("a.b", fw.tensor([1.0]))


def test_registering_the_wrong_type():
    with pytest.raises(TypeError, match="parameter 'w' is a Tensor"):
        Module().register_parameter("w", fw.tensor([1.0]))
    with pytest.raises(TypeError, match="buffer 'b' is a list"):
        Module().register_buffer("b", [1.0])


def test_missing_attribute_lists_close_names():
    with pytest.raises(AttributeError, match="Linear has no attribute 'wieght'.*weight"):
        Linear(2, 2).wieght  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'zzz'$"):
        Linear(2, 2).zzz  # noqa: B018
    assert not hasattr(Linear(2, 2), "wieght")


# State ------------------------------------------------------------------------------------------


def test_state_dict_round_trip():
    first, second = Block(), Block()
    first(fw.randn(8, 3))  # moves the running statistics
    state = first.state_dict()
    assert "cache" not in state
    assert list(state)[:2] == ["scale", "offset"]
    assert second.load_state_dict(state) == ([], [])
    for name, value in second.state_dict().items():
        np.testing.assert_array_equal(value.data, state[name].data)
    x = fw.randn(4, 3)
    np.testing.assert_array_equal(first.eval()(x).data, second.eval()(x).data)


def test_loading_copies_into_the_existing_arrays():
    layer = Linear(3, 2)
    weight, array = layer.weight, layer.weight.data
    new = np.ones((2, 3))  # float64: converted
    layer.load_state_dict({"weight": new, "bias": fw.zeros(2)})
    assert layer.weight is weight
    assert layer.weight.data is array
    assert array.dtype == np.float32
    new[:] = 7
    assert (array == 1).all()


def test_loading_what_does_not_fit_lists_everything_and_loads_nothing():
    model = Sequential(Linear(3, 2), Linear(2, 1))
    before = {name: x.data.copy() for name, x in model.state_dict().items()}
    state = {"0.weight": np.zeros((9, 3)), "0.bias": np.zeros(2), "extra": np.zeros(1)}
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        model.load_state_dict(state)
    text = str(caught.value)
    assert "0.weight: shape (9, 3) in the state, (2, 3) in the module" in text
    assert "1.weight: missing" in text
    assert "1.bias: missing" in text
    assert "extra: unexpected" in text
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.data, before[name])


def test_loading_not_strictly():
    model = Sequential(Linear(3, 2), Linear(2, 1))
    result = model.load_state_dict({"0.bias": np.full(2, 3.0), "extra": np.zeros(1)}, strict=False)
    assert result.missing == ["0.weight", "1.weight", "1.bias"]
    assert result.unexpected == ["extra"]
    assert (model[0].bias.data == 3).all()
    with pytest.raises(ValueError, match="0.bias: shape"):  # a wrong shape is never skipped
        model.load_state_dict({"0.bias": np.zeros(9)}, strict=False)


def test_loading_the_wrong_types():
    with pytest.raises(TypeError, match="state is a list"):
        Linear(1, 1).load_state_dict([])
    with pytest.raises(TypeError, match=r"state\['weight'\] is a str"):
        Linear(1, 1, bias=False).load_state_dict({"weight": "w"})


# Mode, place, gradients -------------------------------------------------------------------------


def test_train_and_eval_reach_every_module():
    block = Block()
    assert block.eval() is block
    assert not any(m.training for m in block.modules())
    block.train()
    assert all(m.training for m in block.modules())
    with pytest.raises(TypeError, match="mode='yes'"):
        block.train("yes")


def test_to_dtype_is_in_place_and_leaves_integers_alone():
    block = Block()
    weight = block.inner[0].weight
    block(fw.randn(4, 3)).sum().backward()
    assert block.to("float64") is block
    assert block.inner[0].weight is weight
    assert weight.dtype == np.float64
    assert weight.grad.dtype == np.float64
    assert block.inner[1].num_batches_tracked.dtype == np.int64
    assert block.to("bfloat16").scale.dtype == ml_dtypes.bfloat16
    assert block.to(dtype=np.float32, device="cpu").scale.dtype == np.float32
    with pytest.raises(TypeError, match="dtype='int32': a module's dtype is a floating-point one"):
        block.to("int32")
    with pytest.raises(ValueError, match="device='gpu'"):
        block.to(device="gpu")


def test_to_without_a_change_keeps_the_arrays():
    layer = Linear(2, 2)
    array = layer.weight.data
    layer.to("cpu").to("float32")
    assert layer.weight.data is array


def test_zero_grad_and_requires_grad():
    layer = Linear(2, 2)
    layer(fw.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad(set_to_none=False)
    assert (layer.weight.grad.data == 0).all()
    layer.zero_grad(set_to_none=True)
    assert layer.weight.grad is None
    layer.requires_grad_(False)
    assert not layer(fw.ones(1, 2)).requires_grad


def test_apply_visits_children_first():
    seen = []
    Block().apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "BatchNorm1d", "Dropout", "Sequential", "Block"]


# Calling ----------------------------------------------------------------------------------------


def test_forward_hooks_see_and_replace():
    layer, seen = Linear(2, 2), []
    remove_pre = layer.register_forward_pre_hook(lambda m, args: (args[0] * 0,))
    remove = layer.register_forward_hook(lambda m, args, y: seen.append((m, args[0], y)))
    remove_last = layer.register_forward_hook(lambda m, args, y: y + 1)
    y = layer(fw.ones(1, 2))
    np.testing.assert_array_equal(y.data, layer.bias.data[None] + 1)
    assert seen[0][0] is layer
    assert (seen[0][1].data == 0).all()
    for f in (remove_pre, remove, remove_last):
        f()
        f()  # twice is harmless
    layer(fw.ones(1, 2))
    assert len(seen) == 1
    with pytest.raises(TypeError, match="hook=3 cannot be called"):
        layer.register_forward_hook(3)


def test_an_error_says_in_which_module_it_arose():
    model = Sequential(Linear(4, 3), ReLU(), Sequential(Tanh(), Linear(2, 1)))
    with pytest.raises(ValueError, match="3 features") as caught:
        model(fw.ones(5, 4))
    assert caught.value.__notes__ == ["in 2.1 (Linear) given (5, 3)"]
    with pytest.raises(ValueError, match="features") as caught:
        model[0](fw.ones(5, 2))
    assert caught.value.__notes__ == ["in Linear given (5, 2)"]


def test_an_error_in_a_module_that_is_no_submodule():
    lonely = [Linear(2, 2)]

    class Holder(Module):
        def forward(self, x):
            return lonely[0](x)

    with pytest.raises(ValueError, match="features") as caught:
        Holder()(fw.ones(1, 3))
    assert caught.value.__notes__ == ["in Linear given (1, 3)"]


def test_forward_must_be_defined():
    with pytest.raises(NotImplementedError, match="Module does not define forward"):
        Module()(1)


# Copies and text --------------------------------------------------------------------------------


def test_deepcopy_is_independent_and_keeps_sharing_inside():
    model = Block()
    model.twin = model.inner
    other = copy.deepcopy(model)
    assert other.twin is other.inner
    assert other.inner is not model.inner
    other.scale.data[...] = 9
    assert model.scale.data[0] == 2
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in model.named_parameters()]
    other.inner.eval()
    assert model.inner.training


def test_repr_is_nested():
    assert repr(Sequential(Linear(3, 2), Sequential(ReLU(), Dropout(0.25)))) == (
        "Sequential(\n"
        "  (0): Linear(in_features=3, out_features=2, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Dropout(p=0.25)\n"
        "  )\n"
        ")"
    )


def test_new_parameters_go_where_and_are_what_was_asked():
    p = new_parameter((2, 3), dtype="float64", device="cpu")
    assert p.requires_grad
    assert (p.shape, p.dtype, str(p.device)) == ((2, 3), np.float64, "cpu")
    assert new_buffer((2,)).dtype == np.float32
    assert not new_buffer((2,)).requires_grad
    with pytest.raises(TypeError, match="a parameter is floating-point, got int64"):
        new_parameter((2,), dtype="int64")


@pytest.mark.cuda
def test_to_cuda_and_back():
    block = Block().to("cuda")
    assert all(str(x.device) == "cuda" for x in [*block.parameters(), *block.buffers()])
    y = block(fw.randn(8, 3, device="cuda"))
    y.sum().backward()
    assert str(block.cpu().inner[0].weight.grad.device) == "cpu"
