"""A `cudnn` that runs graphs of convolutions and of attention on the emulator's memory: tensors by
the sizes, strides and types they were described with, operations by the references of
kernels/convolution.py and kernels/attention.py.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from kernels import convolution
from tests.cuda_emulator.cudnn_sdpa import Attention


class data_type(Enum):
    FLOAT = np.dtype(np.float32)
    HALF = np.dtype(np.float16)
    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
    INT32 = np.dtype(np.int32)


class cudnnGraphNotSupportedError(RuntimeError):
    pass


class Tensor:
    def __init__(self, dim=None, stride=None, data_type=None, compute=None) -> None:
        self.dim, self.stride, self.kind, self.compute = dim, stride, data_type, compute
        self.is_output = False

    def set_output(self, is_output: bool) -> Tensor:
        self.is_output = is_output
        return self

    def set_dim(self, dim) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride) -> Tensor:
        self.stride = stride
        return self

    def set_data_type(self, kind: data_type) -> Tensor:
        self.kind = kind
        return self

    def view(self, pointer: int) -> np.ndarray:
        """The memory at `pointer` as this tensor was described."""
        dtype = self.kind.value
        extent = 1 + sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True))
        memory = (ctypes.c_ubyte * (extent * dtype.itemsize)).from_address(pointer)
        strides = [s * dtype.itemsize for s in self.stride]
        return np.ndarray(self.dim, dtype, memory, strides=strides)


class Graph:
    """A pygraph: every operation is a function of the tensors' values, in float64."""

    def __init__(self, cudnn: Any, **types: Any) -> None:
        self.cudnn = cudnn
        assert types["compute_data_type"] == data_type.FLOAT
        self.left_out: list[str] = []
        self.tensors: list[Tensor] = []
        self.workspace = 64

    def tensor(self, name, dim, stride, data_type) -> Tensor:
        self.tensors.append(Tensor(dim, stride, data_type))
        return self.tensors[-1]

    def conv_fprop(self, image, weight, **options) -> Tensor:
        return Tensor(compute=lambda of: convolution.convolution.reference(
            of(image), of(weight), None, *geometry(image, weight, options)))  # fmt: skip

    def conv_dgrad(self, loss, **options) -> Tensor:
        dx, weight = Tensor(), options.pop("filter")
        dx.compute = lambda of: convolution.convolution_input_grad.reference(
            of(loss), of(weight), tuple(dx.dim[2:]), *geometry(dx, weight, options)
        )
        return dx

    def conv_wgrad(self, image, loss, **options) -> Tensor:
        dw = Tensor()
        dw.compute = lambda of: convolution.convolution_weight_grad.reference(
            of(loss), of(image), tuple(dw.dim[2:]), *geometry(image, dw, options)
        )
        return dw

    def bias(self, **operands) -> Tensor:
        return Tensor(compute=lambda of: of(operands["input"]) + of(operands["bias"]))

    def relu(self, **operands) -> Tensor:
        return Tensor(compute=lambda of: np.maximum(of(operands["input"]), 0))

    def sdpa(self, generate_stats, **options) -> list[Tensor]:
        assert generate_stats is True
        return self._attention("forward", 2, options)

    def sdpa_backward(self, use_deterministic_algorithm, **options) -> list[Tensor]:
        assert use_deterministic_algorithm is True
        self.workspace = self.cudnn.workspace
        return self._attention("backward", 3, options)

    def _attention(self, name: str, count: int, options: dict[str, Any]) -> list[Tensor]:
        call = Attention(**options)
        self.check = call.check
        results: dict[int, Any] = {}

        def result(i: int, of: Any) -> np.ndarray:
            if i not in results:
                results.update(enumerate(getattr(call, name)(of)))
            return results.pop(i)

        return [Tensor(compute=lambda of, i=i: result(i, of)) for i in range(count)]

    def check(self) -> None:
        """What only attention's graphs are asked."""

    def validate(self) -> None:
        self.check()

    def build_operation_graph(self) -> None:
        pass

    check_support = build_operation_graph

    def create_execution_plans(self, heuristics) -> None:
        if self.cudnn.unsupported:
            raise cudnnGraphNotSupportedError("no engine")

    def deselect_numeric_notes(self, notes) -> None:
        self.left_out += notes

    def build_plans(self) -> None:
        self.cudnn.built.append(self)

    def get_workspace_size(self) -> int:
        return self.workspace

    def execute(self, pointers, workspace, handle) -> None:
        assert workspace and handle == self.cudnn.handle and self.cudnn.stream is not None
        values: dict[Tensor, np.ndarray] = {}

        def of(tensor: Tensor) -> np.ndarray:
            if tensor not in values:
                values[tensor] = (
                    tensor.view(pointers[tensor]).astype(np.float64)
                    if tensor.compute is None
                    else tensor.compute(of)
                )
            return values[tensor]

        assert not set(self.tensors) - set(pointers), "a tensor has no memory"
        assert all(p % 16 == 0 for p in pointers.values()), "memory that is not on 16 bytes"
        for result in (t for t in pointers if t.is_output):
            value = of(result)
            written = ~np.ma.getmaskarray(value)
            result.view(pointers[result])[written] = np.asarray(value)[written].astype(
                result.kind.value
            )
        self.cudnn.executed += 1


def geometry(image: Tensor, weight: Tensor, options: dict[str, Any]) -> tuple[Any, ...]:
    padding = zip(options["pre_padding"], options["post_padding"], strict=True)
    groups = image.dim[1] // weight.dim[1]
    return tuple(options["stride"]), tuple(padding), tuple(options["dilation"]), groups


def stand_in() -> Any:
    """The module; what it was asked for is in `built`, `executed`, `stream`."""
    module: Any = ModuleType("cudnn")
    module.built, module.executed, module.stream, module.unsupported = [], 0, None, False
    module.handle, module.workspace = 77, 64
    module.diagonal_alignment = SimpleNamespace(TOP_LEFT="TOP_LEFT", BOTTOM_RIGHT="BOTTOM_RIGHT")
    module.data_type = data_type
    module.cudnnGraphNotSupportedError = cudnnGraphNotSupportedError
    notes = ("NONDETERMINISTIC", "TENSOR_CORE")
    module.numerical_note = SimpleNamespace(**dict(zip(notes, notes, strict=True)))
    module.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
    module.pygraph = lambda **types: Graph(module, **types)
    module.create_handle = lambda: module.handle

    def set_stream(handle: int, stream: int) -> None:
        assert handle == module.handle
        module.stream = stream

    module.set_stream = set_stream
    return module
