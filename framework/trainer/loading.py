"""The loaders of a run, as its recipe has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data import (
    Compose,
    CutOut,
    DataLoader,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomHorizontalFlip,
    Splits,
    Standardise,
    TokenSplits,
    Transform,
    random_split,
)
from framework.trainer.config import Recipe
from framework.trainer.language import token_loaders


@dataclass
class Data:
    """The loaders of a run, and what was fitted on its training split: transforms and the inputs'
    range (text has neither).
    """

    train: DataLoader
    validation: DataLoader | None
    test: DataLoader
    inputs: Transform | None = None
    targets: Transform | None = None
    input_range: tuple[float, float] | None = None


def fit_transforms(splits: Splits) -> tuple[Transform, Transform | None]:
    """Standardise inputs (images as a whole, other features one by one) and regression targets."""
    per = "all" if len(splits.shape) > 1 else "feature"
    inputs = Standardise(per=per).fit(splits.train)  # type: ignore[arg-type]
    if splits.task == "classification":
        return inputs, None
    targets = splits.train.batch(np.arange(len(splits.train)))[1]
    return inputs, Standardise(per="feature").fit(targets)


def augmentations(splits: Splits, recipe: Recipe) -> list[Transform]:
    """What happens at random to training images, in this order."""
    steps: list[Transform] = []
    size = splits.shape[1:]
    for name in ("shift", "cutout"):
        pixels = getattr(recipe, name)
        if pixels and pixels >= min(size):
            raise ValueError(
                f"{name} is {pixels}, but the images of {splits.name} have {size[0]}x{size[1]} "
                f"pixels: expected at most {min(size) - 1}"
            )
    if recipe.shift:
        steps.append(RandomCrop((size[0], size[1]), padding=recipe.shift))
    if recipe.flip:
        steps.append(RandomHorizontalFlip())
    if recipe.rand_augment:
        steps.append(RandAugment(magnitude=recipe.rand_augment))
    if recipe.cutout:
        steps.append(CutOut(recipe.cutout))
    return steps


def load_data(
    splits: Splits,
    recipe: Recipe,
    seed: int,
    device: str,
    inputs: Transform | None = None,
    targets: Transform | None = None,
) -> Data:
    """Loaders as the recipe has them; the transforms are fitted unless they are given."""
    recipe.check_data(splits.task, splits.shape, splits.name)
    if isinstance(splits, TokenSplits):
        return Data(*token_loaders(splits, recipe, seed, device))
    if inputs is None:
        inputs, targets = fit_transforms(splits)
    train: Any = splits.train
    held_out = None
    if recipe.validation:
        train, held_out = random_split(train, [1 - recipe.validation, recipe.validation], seed)
    # A last batch of a single sample has no variance for batch norm: leave it out.
    single = len(train) % recipe.batch_size == 1 and len(train) > recipe.batch_size
    training = DataLoader(
        train,
        recipe.batch_size,
        shuffle=True,
        drop_last=single,
        seed=seed,
        transform=Compose(*augmentations(splits, recipe), inputs),
        target_transform=targets,
        mix=MixUp(len(splits.classes), recipe.mixup) if recipe.mixup and splits.classes else None,
        device=device,
    )
    everything = {"transform": inputs, "target_transform": targets, "device": device}
    x = splits.train.batch(np.arange(min(len(splits.train), 10_000)))[0]
    return Data(
        training,
        None if held_out is None else DataLoader(held_out, EVALUATED, **everything),  # type: ignore[arg-type]
        DataLoader(splits.test, EVALUATED, **everything),  # type: ignore[arg-type]
        inputs,
        targets,
        (float(x.min()), float(x.max())),
    )


#: Samples of a batch in evaluation: few enough for a small model's loops to stay on one thread, so
#: that a first run compiles no parallel twins (2 s less).
EVALUATED = 128
