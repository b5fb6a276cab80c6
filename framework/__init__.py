"""A deep-learning framework on NumPy and CuPy.

import framework as fw
x = fw.tensor([[1.0, 2.0]], requires_grad=True)
(x @ x.T).backward(); x.grad
"""

from framework.startup import report_in_one_line

report_in_one_line()

# ruff: noqa: E402  (the hook and the check come first: they are about the imports below)
from framework.guard import refuse_shadowed_packages

refuse_shadowed_packages()

from importlib import import_module
from typing import Any

from framework.autograd import (
    Parameter as Parameter,
    Tensor as Tensor,
    autocast as autocast,
    from_dlpack as from_dlpack,
    gradcheck as gradcheck,
    is_grad_enabled as is_grad_enabled,
    no_grad as no_grad,
    set_grad_enabled as set_grad_enabled,
    tensor as tensor,
)
from framework.autograd.arithmetic import (
    einsum as einsum,
    maximum as maximum,
    minimum as minimum,
    where as where,
)
from framework.autograd.checkpoint import checkpoint as checkpoint
from framework.autograd.creation import (
    arange as arange,
    bernoulli as bernoulli,
    empty as empty,
    full as full,
    full_like as full_like,
    linspace as linspace,
    ones as ones,
    ones_like as ones_like,
    rand as rand,
    randint as randint,
    randn as randn,
    randperm as randperm,
    zeros as zeros,
    zeros_like as zeros_like,
)
from framework.autograd.shaping import (
    cat as cat,
    concatenate as concatenate,
    pad as pad,
    split as split,
    stack as stack,
)
from framework.backend import (
    Device as Device,
    DeviceError as DeviceError,
    cuda as cuda,
    default_device as default_device,
    set_default_device as set_default_device,
)
from framework.backend.memory import (
    keep_freed_memory,
    memory_used as memory_used,
    peak_memory as peak_memory,
    reset_peak_memory as reset_peak_memory,
)
from framework.backend.out_of_memory import OutOfMemoryError as OutOfMemoryError
from framework.backend.random import Generator as Generator, manual_seed as manual_seed
from framework.backend.threads import (
    get_num_threads as get_num_threads,
    set_num_threads as set_num_threads,
)
from kernels.checking import check_indices as check_indices
from kernels.precision import (
    exact_convolution as exact_convolution,
    get_float32_matmul_precision as get_float32_matmul_precision,
    set_float32_matmul_precision as set_float32_matmul_precision,
)

__version__ = "0.1.0"

keep_freed_memory()

_LAZY = ("functional", "layers", "optimizers", "data", "trainer", "interop")


def __getattr__(name: str) -> Any:
    """Load a subpackage on first use; `fw.save` and `fw.load` are safetensors' own, `fw.profile`
    the profiler's, `fw.generate` and `fw.generate_text` the generation's.
    """
    if name in ("save", "load"):
        return getattr(import_module("framework.interop.safetensors"), name)
    if name in ("generate", "generate_text"):
        return getattr(import_module("framework.generation"), name)
    if name == "profile":
        return import_module("framework.profiler").Profile
    if name in _LAZY:
        return import_module(f"framework.{name}")
    raise AttributeError(f"module 'framework' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "save", "load", "profile", "generate", "generate_text"])
