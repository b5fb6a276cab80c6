"""The whole framework on the emulator: tensors, layers, optimizers and the trainer on "cuda".

    with whole.device():
        model = MLP(8, [16], 3).to("cuda")

Nothing of the framework is replaced. `cupy` is the emulator's, and the framework probes it as it
probes a GPU: an allocation, a kernel from source, a product. Matrix products are calls of cuBLASLt,
which tests/kernels/host_cublas.py carries out, and which a capture keeps like any kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from framework.backend import device as devices, graph
from kernels.cuda import cublaslt as lt, plans
from tests.cuda_emulator import cupy_module, memory, streams
from tests.kernels import host_cublas


class _LiveMemory:
    """Where host_cublas looks up addresses: the emulator's memory as it is now."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for m in memory.live():
            yield np.frombuffer(memory.buffer_of(m), np.uint8)

    def append(self, array: Any) -> None:
        """Arrays of host_cublas itself, of which there are none here."""


class CublasLt(host_cublas.HostCublasLt):
    """The library on the emulator: a product belongs to a stream."""

    @property
    def capturing(self) -> bool:  # it chooses no algorithm then
        return streams.is_capturing()

    @capturing.setter
    def capturing(self, value: bool) -> None:
        """The stream decides."""

    def cublasLtMatmul(self, handle: Any, product: Any, *args: Any) -> int:
        stream = args[-1]
        assert stream == streams.current().ptr
        # A description is set anew for every call: what is kept is how it was at this one.
        described = dict(self.objects[product.value])

        def run() -> int:
            now, self.objects[product.value] = self.objects[product.value], described
            try:
                return super(CublasLt, self).cublasLtMatmul(handle, product, *args)
            finally:
                self.objects[product.value] = now

        def again() -> None:
            run()

        status = run()
        addresses = [*(a for a in args if isinstance(a, int)), *self._vectors(described)]
        streams.did(again, *streams.memories_at(addresses))
        return status

    def _vectors(self, described: dict[Any, Any]) -> list[int]:
        names = (lt.DESC_BIAS_POINTER, lt.DESC_EPILOGUE_AUX_POINTER)
        return [described[name] for name in names if described.get(name)]


@contextmanager
def device() -> Iterator[ModuleType]:
    """Within the block the framework finds a CUDA device, the emulator."""
    with pytest.MonkeyPatch.context() as patch, cupy_module.installed() as cupy:
        library = CublasLt()
        patch.setattr(lt, "_found", lambda: library)
        patch.setattr(plans, "_plans", {})
        patch.setattr(plans, "_workspaces", {})
        patch.setattr(host_cublas.ndarray, "memory", _LiveMemory())
        patch.setattr(devices, "_default", devices.CPU)
        _forget()
        try:
            yield cupy
        finally:
            _forget()


def _forget() -> None:
    """What was found out about the device."""
    host_cublas.forget()
    devices.probe_cuda.cache_clear()
    graph._capture_stream.cache_clear()
