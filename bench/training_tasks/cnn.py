"""Convolutional networks, models/lenet.py and models/resnet.py."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.training_tasks.task import Task, prototypes


@dataclass(frozen=True, kw_only=True)
class LeNetTask(Task):
    """LeNet-5 with ReLU and max pooling, on noisy prototypes of each class."""

    images: ClassVar[bool] = True

    batch: int = 64
    size: int = 28
    classes: int = 10

    @property
    def title(self) -> str:
        return f"LeNet-5 on 1x{self.size}x{self.size}"

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        shape = (1, self.size, self.size)
        return prototypes(self.batches * self.batch, shape, self.classes, self.seed)

    def our_model(self) -> Any:
        from models import LeNet, LeNetConfig

        return LeNet(LeNetConfig((1, self.size, self.size), self.classes))

    def torch_model(self) -> Any:
        from torch import nn

        features = 16 * ((self.size // 2 - 4) // 2) ** 2
        relu, pool = nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 6, 5, padding=2),
                pool1=pool,  # before ReLU, as ours has it: the same, and less to do
                relu1=relu,
                conv2=nn.Conv2d(6, 16, 5),
                pool2=pool,
                relu2=relu,
                flatten=nn.Flatten(),
                fc1=nn.Linear(features, 120),
                relu3=relu,
                fc2=nn.Linear(120, 84),
                relu4=relu,
                fc3=nn.Linear(84, self.classes),
            )
        )


@dataclass(frozen=True, kw_only=True)
class ResNet18Task(Task):
    """ResNet-18, with the stem for small images, on noisy prototypes of each class."""

    images: ClassVar[bool] = True
    optimizer_name: ClassVar[str] = "SGD with momentum"

    batch: int = 32
    size: int = 32
    classes: int = 10
    lr: float = 0.01
    batches: int = 4

    @property
    def title(self) -> str:
        return f"ResNet-18 on 3x{self.size}x{self.size}"

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        shape = (3, self.size, self.size)
        return prototypes(self.batches * self.batch, shape, self.classes, self.seed)

    def optimizer(self, optimizers: Any, model: Any, **options: Any) -> Any:
        return optimizers.SGD(model.parameters(), lr=self.lr, momentum=0.9, **options)

    def our_model(self) -> Any:
        from models import ResNet, ResNet18Config

        return ResNet(ResNet18Config((3, self.size, self.size), self.classes, stem="small"))

    def torch_model(self) -> Any:
        from torch import nn

        names = {"conv1": _conv(3, 64, 3), "bn1": nn.BatchNorm2d(64), "relu": nn.ReLU()}
        inputs = 64
        for i in range(4):
            outputs = 64 << i
            blocks = [_basic_block(inputs, outputs, 1 if i == 0 else 2)]
            names[f"layer{i + 1}"] = nn.Sequential(*blocks, _basic_block(outputs, outputs, 1))
            inputs = outputs
        names |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        return nn.Sequential(OrderedDict(**names, fc=nn.Linear(inputs, self.classes)))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
    from torch import nn

    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _basic_block(inputs: int, outputs: int, stride: int) -> Any:
    from torch import nn

    class BasicBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
            self.relu, self.downsample = nn.ReLU(inplace=True), None
            if stride != 1 or inputs != outputs:
                shortcut = _conv(inputs, outputs, 1, stride)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(y + (x if self.downsample is None else self.downsample(x)))

    return BasicBlock()
