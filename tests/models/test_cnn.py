"""Convolutional families: shapes, learning, PyTorch's weights and names, configurations that cannot
be.
"""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import layers, optimizers
from framework.functional import cross_entropy
from kernels.precision import exact_convolution
from models import ConvNeXtConfig, LeNetConfig, ResNet18Config, build, entry

RNG = np.random.default_rng(0)
on_each_device = pytest.mark.usefixtures("device")

#: Small ones of every family, for 3x8x8 images of 5 classes.
SMALL = {
    "lenet": {},
    "vgg": {"channels": (8, 16), "hidden": 16, "dropout": 0.0},
    "resnet18": {"width": 8},
    "resnet50": {"width": 4, "blocks": (1, 1, 1, 1)},
    "mobilenetv2": {"width": 0.25, "dropout": 0.0},
    "convnext": {"blocks": (1, 1, 2, 1), "channels": (8, 16, 24, 32), "layer_scale": 0.1},
}


def moved(array):
    """A tensor on the device of the test."""
    return fw.tensor(array, device=fw.default_device())


def images(*shape):
    return moved(RNG.normal(size=shape).astype(np.float32))


def small(name, **settings):
    fw.manual_seed(0)
    return build(name, shape=(3, 8, 8), classes=5, **SMALL[name] | settings)


@pytest.mark.parametrize("name", SMALL)
@on_each_device
def test_a_batch_can_be_learnt(name):
    model = small(name)
    optimizer = optimizers.AdamW(model.parameters(), lr=3e-3)
    x, y = images(10, 3, 8, 8), moved(np.arange(10) % 5)
    losses = []
    for _ in range(40):
        logits = model(x)
        loss = cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logits.shape == (10, 5)
    assert losses[-1] < 0.2 * losses[0]
    for parameter_name, parameter in model.named_parameters():
        gradient = parameter.grad.numpy()
        assert np.isfinite(gradient).all() and gradient.any(), parameter_name


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [  # with 1000 classes those of torchvision
        ("resnet18", (3, 224, 224), 11_689_512),
        ("resnet34", (3, 224, 224), 21_797_672),
        ("resnet50", (3, 224, 224), 25_557_032),
        ("mobilenetv2", (3, 224, 224), 3_504_872),
        ("convnext", (3, 224, 224), 28_589_128),
    ],
)
def test_as_many_parameters_as_torchvision(name, shape, parameters, monkeypatch):
    monkeypatch.setattr(layers.init, "trunc_normal_", lambda weight, std: weight)  # 20 M draws
    model = build(name, shape=shape, classes=1000)
    assert sum(p.size for p in model.parameters()) == parameters


def test_names_are_those_of_torchvision():
    names = {
        "resnet18": ["conv1.weight", "bn1.running_mean", "layer2.0.downsample.1.bias", "fc.bias"],
        "resnet50": ["layer1.0.conv3.weight", "layer4.0.bn3.weight"],
        "mobilenetv2": [
            "features.0.1.bias",
            "features.1.conv.0.0.weight",
            "features.2.conv.1.1.running_var",
            "features.17.conv.3.weight",
            "features.18.0.weight",
            "classifier.1.weight",
        ],
        "convnext": [
            "features.0.1.weight",
            "features.1.0.layer_scale",
            "features.2.1.bias",
            "features.1.0.block.0.weight",
            "features.7.0.block.5.bias",
            "classifier.0.weight",
            "classifier.2.weight",
        ],
    }
    for name, expected in names.items():
        state = small(name).state_dict()
        assert set(expected) <= set(state), name


@on_each_device
def test_stems_by_the_size_of_the_images():
    assert build("resnet18", width=4).conv1.kernel_size == (3, 3)
    large = build("resnet18", width=4, shape=(3, 96, 96))
    assert large.conv1.kernel_size == (7, 7)
    assert large(images(2, 3, 96, 96)).shape == (2, 10)
    assert build("resnet18", width=4, stem="large").conv1.stride == (2, 2)
    assert [ConvNeXtConfig(shape=(3, n, n)).patch_size for n in (224, 32, 8)] == [4, 2, 1]


@on_each_device
def test_zero_init_begins_with_shortcuts_alone():
    fw.manual_seed(0)
    model = build("resnet18", width=4, shape=(3, 8, 8), zero_init=True).eval()
    block, x = model.layer1[1], images(2, 4, 8, 8)
    np.testing.assert_allclose(block(x).detach().numpy(), np.maximum(x.numpy(), 0))


@on_each_device
def test_stochastic_depth_leaves_out_whole_samples():
    from models.blocks import StochasticDepth

    fw.manual_seed(0)
    layer, x = StochasticDepth(0.25), moved(np.ones((400, 2, 3), np.float32))
    kept = layer(x).numpy()
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean() == pytest.approx(1, abs=0.1)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("size", [8, 12, 28])
@on_each_device
def test_lenet_takes_small_images(size):
    model = build("lenet", shape=(1, size, size))
    assert model(images(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet", {"shape": (1, 3, 9)}, "halves images of 3x9 pixels twice, expected at least 4x4"),
        ("lenet", {"channels": (6,)}, r"channels is \(6,\), expected 2 integers"),
        ("lenet", {"pooling": "min"}, "pooling is 'min', expected one of max, avg"),
        ("lenet", {"shape": (28, 28)}, r"expected \(channels, height, width\)"),
        ("vgg", {"shape": (3, 6, 6)}, r"shape is \(3, 6, 6\): 3 stages .* at least 8x8 pixels"),
        ("vgg", {"dropout": 1}, "dropout is 1, expected a probability"),
        ("vgg", {"channels": ()}, "expected at least one stage"),
        ("resnet18", {"blocks": (1, 2, 3)}, r"blocks is \(1, 2, 3\), expected 4 integers"),
        ("resnet18", {"stem": "tiny"}, "stem is 'tiny', expected one of small, large, none"),
        ("resnet18", {"zero_init": 1}, "zero_init is 1, expected True or False"),
        ("resnet18", {"width": 0}, "width is 0"),
        ("resnet50", {"classes": True}, "classes is True"),
        ("mobilenetv2", {"width": 0}, "width is 0, expected a number above 0"),
        ("convnext", {"shape": (3, 16, 7)}, "need at least 8x8 pixels"),
        ("convnext", {"layer_scale": 0}, "layer_scale is 0"),
    ],
)
def test_bad_configurations(name, options, message):
    with pytest.raises(ValueError, match=message):
        entry(name).config(**options)


def test_configuration_for_data():
    config = LeNetConfig.for_data((1, 8, 8), 10, "classification", hidden=(20, 10))
    assert (config.shape, config.classes, config.hidden) == ((1, 8, 8), 10, (20, 10))
    with pytest.raises(ValueError, match=r"inputs have shape \(2\): expected images"):
        ResNet18Config.for_data((2,), 2, "classification")


# PyTorch's own -----------------------------------------------------------------------------------


def torch_resnet18(nn, classes, width=64):
    """ResNet-18 with the small stem, from torch.nn alone."""

    def conv(inputs, outputs, kernel, stride):
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
                )

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(3, width, 3, 1), nn.BatchNorm2d(width)
            inputs = width
            for i in range(4):
                outputs = width * 2**i
                blocks = Block(inputs, outputs, 1 if i == 0 else 2), Block(outputs, outputs, 1)
                setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
                inputs = outputs
            self.fc = nn.Linear(inputs, classes)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            for i in range(4):
                x = getattr(self, f"layer{i + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return Net()


@on_each_device
def test_resnet18_agrees_with_torch():
    torch = pytest.importorskip("torch", reason="the peer of this test is made of torch.nn")
    fw.manual_seed(0)
    ours, theirs = build("resnet18", width=16), torch_resnet18(torch.nn, 10, 16)
    state = {name: torch.from_numpy(x.numpy().copy()) for name, x in ours.state_dict().items()}
    theirs.load_state_dict(state)
    x, y = RNG.normal(size=(4, 3, 32, 32)).astype(np.float32), np.array([3, 1, 4, 1])
    # Winograd's rounding errors of 1e-5, through 17 layers, would hide mistakes in a gradient.
    with exact_convolution():
        loss = cross_entropy(ours(moved(x)), moved(y))
        loss.backward()
    expected = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        want = q.grad.numpy()
        np.testing.assert_allclose(
            p.grad.numpy(), want, rtol=1e-3, atol=1e-3 * np.abs(want).max(), err_msg=name
        )
    # the running statistics have moved alike; evaluation uses them
    got = ours.eval()(moved(x)).detach().numpy()
    with torch.no_grad():
        want = theirs.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
