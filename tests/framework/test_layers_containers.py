"""Sequential, ModuleList, ModuleDict."""

import pytest

import framework as fw
from framework.layers import Linear, Module, ModuleDict, ModuleList, ReLU, Sequential


def test_sequential_is_a_list_of_modules():
    a, b, c = Linear(3, 2), ReLU(), Linear(2, 1)
    model = Sequential(a, b).append(c)
    assert len(model) == 3
    assert model[0] is a
    assert model[-1] is c
    assert list(model) == [a, b, c]
    assert model(fw.ones(4, 3)).shape == (4, 1)
    model[1] = d = ReLU()
    assert model[1] is d
    with pytest.raises(IndexError, match="index 3 into Sequential of 3 modules"):
        model[3]


def test_slices_share_the_modules_and_leave_their_mode():
    model = Sequential(Linear(3, 2), ReLU(), Linear(2, 1)).eval()
    model[2].train()
    part = model[1:]
    assert isinstance(part, Sequential)
    assert part[1] is model[2]
    assert [m.training for m in part.modules()] == [False, False, True]
    assert list(part.state_dict()) == ["1.weight", "1.bias"]


def test_sequential_with_names():
    model = Sequential({"hidden": Linear(3, 2), "out": Linear(2, 1)})
    assert list(model.state_dict()) == ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]
    assert model.hidden is model[0]


def test_module_list():
    layers = ModuleList([Linear(2, 2), Linear(2, 2)]).extend([Linear(2, 3)])
    assert len(layers) == 3
    assert len(layers[1:]) == 2
    assert list(layers.state_dict())[-1] == "2.bias"
    with pytest.raises(NotImplementedError):
        layers(fw.ones(1, 2))


def test_module_dict():
    heads = ModuleDict({"a": Linear(2, 1)})
    heads["b"] = Linear(2, 2)
    assert list(heads) == heads.keys() == ["a", "b"]
    assert "a" in heads
    assert "c" not in heads
    assert len(heads) == len(heads.values()) == 2
    assert heads.items()[1][1] is heads["b"]
    assert list(heads.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    del heads["a"]
    assert heads.keys() == ["b"]
    with pytest.raises(KeyError, match="no module named 'a'; there are: b"):
        heads["a"]
    with pytest.raises(TypeError, match="name 3 is a int"):
        heads[3] = ReLU()


@pytest.mark.parametrize("name", ["keys", "values", "update"])
def test_module_dict_refuses_names_of_its_methods(name):
    heads = ModuleDict({"a": Linear(2, 1)})
    with pytest.raises(ValueError, match=f"'{name}' is taken by ModuleDict.{name}; choose another"):
        heads[name] = ReLU()
    with pytest.raises(ValueError, match="'training' is taken by Module.training"):
        heads["training"] = ReLU()
    heads["a"] = ReLU()  # replaced
    assert heads.eval().keys() == list(heads) == ["a"]
    assert heads["a"].training is False


@pytest.mark.parametrize("container", [Sequential, lambda m: ModuleList([m])])
def test_only_modules(container):
    with pytest.raises(TypeError, match="holds modules, got <class .*ReLU.*; give an instance"):
        container(ReLU)
    with pytest.raises(TypeError, match="holds modules, got 3"):
        container(3)


def test_module_names_reach_the_error_path():
    class Net(Module):
        def __init__(self):
            super().__init__()
            self.layers = ModuleList([Linear(2, 2), Linear(3, 3)])

        def forward(self, x):
            return self.layers[1](self.layers[0](x))

    with pytest.raises(ValueError, match="features") as caught:
        Net()(fw.ones(1, 2))
    assert caught.value.__notes__ == ["in layers.1 (Linear) given (1, 2)"]
