"""What is explained: a model, an image, and what the model makes of it; or a model and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from framework import functional as F
from framework.autograd import Tensor, no_grad
from framework.data import Tokenizer, Transform
from framework.interop.atomic import FileError, read_bytes
from framework.layers import Module
from framework.trainer.drawing import INSTALL, has_matplotlib
from framework.trainer.inputs import read_inputs

#: Tokens of a text that can be told apart in a picture.
MOST_TOKENS = 32


@dataclass
class Subject:
    """A trained classifier, which is set to evaluation, and an image (C, H, W) from 0 to 1.

    `inputs` is the transform of its training, `truth` the image's class where that is known.
    """

    model: Module
    image: np.ndarray
    inputs: Transform
    classes: tuple[str, ...]
    device: str = "cpu"
    truth: int | None = None
    probabilities: np.ndarray = field(init=False)  # (classes,)

    def __post_init__(self) -> None:
        self.model.eval()
        with no_grad():
            self.probabilities = F.softmax(self.model(self.batch()), -1).cpu().numpy()[0]

    def batch(self) -> Tensor:
        """The image as the model takes it, (1, C, H, W)."""
        x = self.inputs(self.image[None].astype(np.float32))
        return Tensor(x).to(self.device)

    def ranked(self) -> list[int]:
        """Classes, the most probable first."""
        return [int(i) for i in np.argsort(-self.probabilities, kind="stable")]


@dataclass
class TextSubject:
    """A trained language model and a text as token ids (T,), of which the first `MOST_TOKENS` are
    looked at, or as many as the model reads; `total` is how many there were.
    """

    model: Module
    ids: np.ndarray
    tokenizer: Tokenizer
    device: str = "cpu"
    total: int = field(init=False)
    tokens: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.total = len(self.ids)
        block = getattr(self.model, "block", None) or MOST_TOKENS
        self.ids = self.ids[: min(block, MOST_TOKENS)]
        self.tokens = [self.tokenizer.decode([i]) for i in self.ids]

    def batch(self, count: int) -> Tensor:
        """The first `count` tokens as the model takes them, (1, count)."""
        return Tensor(np.asarray(self.ids[None, :count], np.int64)).to(self.device)


def read_image(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The only input of a .npy or .png file, (C, H, W); see `read_files`.

    Raises:
        FileError: several images, and what `read_files` raises; one line.
    """
    x = read_files([file], shape)
    if len(x) != 1:
        raise FileError(f"{file} holds {len(x)} images, expected one")
    return x[0]


def read_files(files: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """The inputs (N, *shape) of .npy and .png files, float32, one after the other; PNG from 0 to 1.

    Colours become grey, and grey colours, as `shape` has it; what is transparent shows white.

    Raises:
        FileError: missing, neither, damaged, or of another size; one line.
    """
    return np.concatenate(
        [
            _read_png(file, shape)[None]
            if file.suffix.lower() == ".png"
            else read_inputs(file, shape)
            for file in files
        ]
    )


def _read_png(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) != 3:
        raise FileError(f"{file} is an image, but the model takes inputs {shape}")
    if not has_matplotlib():
        raise FileError(f"{file} is read with matplotlib, which is not installed: {INSTALL}")
    from matplotlib.image import imread

    read_bytes(file)  # its errors, where the file cannot be read
    try:
        pixels = np.asarray(imread(file), np.float32)  # (H, W), (H, W, 3) or (H, W, 4)
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise FileError(f"{file} is no PNG, or a damaged one ({error})") from None
    channels, height, width = shape
    if pixels.shape[:2] != (height, width):
        found = "x".join(map(str, pixels.shape[:2]))
        raise FileError(f"{file} has {found} pixels, expected {height}x{width}")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (2, 4):
        opaque = pixels[..., -1:]
        pixels = pixels[..., :-1] * opaque + (1 - opaque)
    if channels == 1 and pixels.shape[2] == 3:
        pixels = pixels @ np.float32([[0.299], [0.587], [0.114]])  # luma, ITU-R BT.601
    if channels == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] != channels:
        raise FileError(f"{file} has {pixels.shape[2]} channels, expected {channels}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
