"""How large the cases are, on each device.

On the CPU: rows of a small transformer (768 x 65, 768 x 128), and 4M elements, which no cache of a
core holds. On CUDA: 64 MB an array at least, beyond every L2 cache when it is flushed, and small
ones that show what a launch costs.
"""

from __future__ import annotations

import math
from typing import Literal

Device = Literal["cpu", "cuda"]
Shape = tuple[int, ...]
#: device -> the sizes of a case, or of all cases of a family.
Sizes = dict[Device, list[Shape]]

#: (rows, columns) by family or kernel; what is not here has those of "".
BY_FAMILY: dict[Device, dict[str, list[Shape]]] = {
    "cpu": {
        "": [(4096, 1024)],
        "softmax": [(768, 65), (4096, 1024)],
        "losses": [(768, 65), (4096, 1024)],
        "normalization": [(768, 128), (4096, 1024)],
        "residual_norm": [(768, 128), (4096, 1024)],
        "channel_norm": [(4096, 1024)],
        "positions": [(768, 64)],
        "permutation": [(1024, 1024)],
    },
    "cuda": {
        "": [(4096, 4096), (768, 128)],
        # rows that one block holds in registers, and rows of a large vocabulary
        "softmax": [(16384, 1024), (512, 32768), (768, 65)],
        "losses": [(16384, 1024), (512, 32768), (768, 65)],
        "normalization": [(16384, 1024), (4096, 4096), (768, 128)],
        "residual_norm": [(16384, 1024), (4096, 4096), (768, 128)],
        "positions": [(2048, 128)],
        "permutation": [(4096, 1024)],
    },
}

#: With --quick: 256k elements, 1 MB an array; on CUDA 16 MB.
QUICK: dict[Device, list[Shape]] = {"cpu": [(1024, 256)], "cuda": [(4096, 1024)]}

#: (N, C, H, W)
IMAGES: Sizes = {"cpu": [(32, 64, 32, 32)], "cuda": [(64, 64, 64, 64), (32, 64, 8, 8)]}

#: Convolutions. The 3x3 layers of ResNet-18 for small images, where they become wider, its first
#: one, and the two of LeNet-5.
IMAGES_3X3: Sizes = {
    "cpu": [
        (32, 64, 32, 32),
        (32, 128, 16, 16),
        (32, 256, 8, 8),
        (32, 512, 4, 4),
        (64, 32, 32, 32),
        (64, 128, 8, 8),
    ],
    "cuda": [(256, 64, 32, 32), (64, 64, 56, 56), (256, 512, 4, 4)],
}
IMAGES_WIDER: Sizes = {
    "cpu": [(32, 64, 32, 32), (32, 128, 16, 16), (32, 256, 8, 8)],
    "cuda": [(256, 64, 32, 32), (64, 256, 56, 56)],
}
IMAGES_COLOUR: Sizes = {"cpu": [(32, 3, 32, 32)], "cuda": [(256, 3, 32, 32)]}
IMAGES_GREY: Sizes = {"cpu": [(64, 1, 28, 28)], "cuda": [(256, 1, 28, 28)]}
IMAGES_LENET2: Sizes = {"cpu": [(64, 6, 14, 14)], "cuda": [(256, 6, 14, 14)]}

#: m x k x n: the layers of the 784-512-256-10 network at batch 128, and squares.
PRODUCTS: Sizes = {
    "cpu": [(128, 784, 512), (128, 512, 256), (512, 512, 512), (1024, 1024, 1024)],
    "cuda": [(4096, 4096, 4096), (1024, 1024, 1024), (128, 784, 512)],
}

#: sequences x heads x length x width of a head: nanoGPT on a CPU, and a longer one; GPT-2's.
ATTENTION: Sizes = {
    "cpu": [(12, 4, 64, 32), (8, 8, 512, 64)],
    "cuda": [(16, 12, 1024, 64), (12, 4, 64, 32)],
}

#: tokens x vocabulary x features
LOOKUPS: Sizes = {
    "cpu": [(768, 65, 128), (8192, 16384, 256)],
    "cuda": [(65536, 32768, 256), (768, 65, 128)],
}

#: steps x rows x units, of which the input has as many
SEQUENCES: Sizes = {
    "cpu": [(64, 32, 128), (64, 32, 256), (64, 32, 512)],
    "cuda": [(64, 32, 256), (64, 32, 1024)],
}

#: tokens x features x vocabulary of a language model's last layer
VOCABULARIES: Sizes = {
    "cpu": [(768, 128, 65), (1024, 256, 16384)],
    "cuda": [(16384, 768, 50304)],
}

#: parameters x tensors that the peer has them in: a small network, and 10M or 16M at once
FLAT: Sizes = {
    "cpu": [(800_000, 40), (10_000_000, 1)],
    "cuda": [(16_777_216, 1), (800_000, 40)],
}

#: Kernels in README's table of the CPU: those that a network of today spends its time in.
CPU_KERNELS = (
    *("softmax", "cross_entropy", "layer_norm", "layer_norm_grad", "rms_norm", "batch_norm"),
    *("gelu", "gelu_grad", "silu", "relu", "dropout", "sum", "matmul", "adam_step"),
    *("convolution", "lstm", "attention", "attention_grad"),
)


def by_family(device: Device, kernel: str, family: str) -> list[Shape]:
    """The (rows, columns) of a kernel's samples."""
    known = BY_FAMILY[device]
    return known.get(kernel) or known.get(family) or known[""]


def as_large(shape: Shape, itemsize: int) -> Shape:
    """`shape`, which is meant for float32, with its first axis as much longer as elements are
    shorter: a large array of 16-bit elements has as many bytes.
    """
    grow = 4 // itemsize if math.prod(shape) >= 1 << 22 else 1
    return (shape[0] * grow, *shape[1:])
