"""cuBLASLt on the host: an interpreter of what cublasLtMatmul is told, and arrays that count as
CuPy's.

`HostCublasLt` has the functions of the library. Descriptors are dictionaries; a product reads and
writes the host memory that its layouts name, column-major, in float64, and does what the epilogue
says. What the real library refuses or what would read or write elsewhere is an assertion here.
"""

import ctypes
import operator
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np

from kernels.cuda import cublas, cublaslt as lt, plans
from kernels.gates import gelu_tanh, gelu_tanh_grad
from kernels.registry import all_kernels

DTYPES = {
    lt.CUDA_R_32F: np.dtype(np.float32),
    lt.CUDA_R_64F: np.dtype(np.float64),
    lt.CUDA_R_16F: np.dtype(np.float16),
    lt.CUDA_R_16BF: np.dtype(ml_dtypes.bfloat16),
}
INTERNAL_ERROR = 14


# Arrays -------------------------------------------------------------------------------------------


class ndarray:  # noqa: N801 - CuPy's name
    """A NumPy array that says it is CuPy's."""

    #: memory that was handed out as addresses, kept so that addresses stay unique
    memory: list[np.ndarray] = []

    def __init__(self, host):
        self.host = host

    def __getattr__(self, name):
        value = getattr(self.host, name)
        return (lambda *a, **o: wrap(value(*a, **o))) if callable(value) else wrap(value)

    @property
    def data(self):
        self.memory.append(self.host)
        return SimpleNamespace(ptr=self.host.ctypes.data)

    def get(self):
        return self.host

    def __getitem__(self, index):
        return wrap(self.host[index])

    def __setitem__(self, index, value):
        self.host[index] = bare(value)


def _operator(function):
    return lambda self, other: wrap(function(self.host, bare(other)))


def _reflected(function):
    return lambda self, other: wrap(function(bare(other), self.host))


for _name in ("add", "sub", "mul", "truediv", "le", "lt", "eq", "pow", "iadd"):
    setattr(ndarray, f"__{_name}__", _operator(getattr(operator, _name)))
for _name in ("add", "sub", "mul"):
    setattr(ndarray, f"__r{_name}__", _reflected(getattr(operator, _name)))
ndarray.__neg__ = lambda self: wrap(-self.host)
ndarray.__module__ = "cupy"


def wrap(x):
    if isinstance(x, np.ndarray):
        return ndarray(x)
    return tuple(map(wrap, x)) if isinstance(x, tuple) and not hasattr(x, "_fields") else x


def bare(x):
    return x.host if isinstance(x, ndarray) else x


def device_array(x, offset=0):
    """A copy of `x` with its strides, at an address that 512 divides, `offset` elements on."""
    room = np.empty(x.nbytes + 1024 + offset * x.itemsize, np.uint8)
    start = -room.ctypes.data % 512 + offset * x.itemsize
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    flat = room[start : start + x.nbytes].view(x.dtype)
    y = flat.reshape([x.shape[axis] for axis in order]).transpose(np.argsort(order))
    y[...] = x
    return ndarray(y)


class FakeCupy(ModuleType):
    """What cublas.py and the references use of CuPy."""

    def __init__(self):
        super().__init__("cupy")
        self.ndarray = ndarray
        self.allocated = []
        self.stream = 7
        runtime = SimpleNamespace(getDevice=lambda: 0, runtimeGetVersion=lambda: 13000)
        self.cuda = SimpleNamespace(
            runtime=runtime,
            get_current_stream=lambda: SimpleNamespace(ptr=self.stream),
            Memory=self._memory,
        )

    def _memory(self, size):
        buffer = np.zeros(size, np.uint8)
        self.allocated.append(size)
        ndarray.memory.append(buffer)
        return SimpleNamespace(ptr=buffer.ctypes.data, buffer=buffer)

    def empty(self, shape, dtype):
        y = device_array(np.empty(shape, dtype))
        y.host.view(np.uint8)[...] = 0xFF  # NaN: what is not written shows
        return y

    def ascontiguousarray(self, x):
        return x if x.flags.c_contiguous else device_array(np.ascontiguousarray(x.host))

    def __getattr__(self, name):
        function = getattr(np, name)
        return lambda *a, **o: wrap(function(*map(bare, a), **{k: bare(v) for k, v in o.items()}))


# The library --------------------------------------------------------------------------------------


class HostCublasLt:
    """See the module's text. `calls` counts by function; tests set the other fields."""

    def __init__(self):
        self.calls = Counter()
        self.objects = {}
        self.unsupported = set()  # epilogues without an algorithm
        self.workspace_size = 0
        self.refusal = lt.STATUS_NOT_SUPPORTED
        self.capturing = self.broken = False
        self.products = []  # (description, layouts, addresses) of every product
        self.workspaces = set()

    def __getattr__(self, name):
        """Create, SetAttribute and Destroy of the three kinds of descriptors."""
        for kind in ("MatmulDesc", "MatrixLayout", "MatmulPreference"):
            action = name.removeprefix(f"cublasLt{kind}")
            if action in ("Create", "SetAttribute", "Destroy"):
                return lambda *args: self._counted(name, getattr(self, f"_{action}"), kind, *args)
        raise AttributeError(name)

    def _counted(self, name, function, *args):
        self.calls[name] += 1
        return function(*args)

    def _Create(self, kind, out, *args):
        out._obj.value = 1000 + sum(self.calls.values())
        self.objects[out._obj.value] = {"kind": kind, "args": args}
        return 0

    def _SetAttribute(self, kind, descriptor, attribute, value, size):
        types = {
            "MatmulDesc": lt.DESC_TYPES,
            "MatrixLayout": lt.LAYOUT_TYPES,
            "MatmulPreference": lt.PREF_TYPES,
        }
        assert size == ctypes.sizeof(types[kind][attribute])
        self.objects[descriptor.value][attribute] = value._obj.value or 0
        return 0

    def _Destroy(self, kind, descriptor):
        del self.objects[descriptor.value]
        return 0

    def cublasLtCreate(self, out):
        self.calls["cublasLtCreate"] += 1
        out._obj.value = 5
        return 1 if self.broken else 0

    def cublasLtGetStatusName(self, status):
        return {1: b"CUBLAS_STATUS_NOT_INITIALIZED", 13: b"CUBLAS_STATUS_EXECUTION_FAILED"}.get(
            status, b"status %d" % status
        )

    def cublasLtGetVersion(self):
        return 131000

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle, product, a, b, c, y, preference, wanted, results, found
    ):
        self.calls["heuristic"] += 1
        assert handle.value == 5
        assert c.value == y.value
        assert wanted == len(results)
        wishes = self.objects[preference.value]
        assert wishes[lt.PREF_MAX_WORKSPACE_BYTES] == 32 << 20
        assert wishes[lt.PREF_REDUCTION_SCHEME_MASK] == 2  # in a separate step, nothing in place
        if self.capturing:
            return INTERNAL_ERROR
        description = self.objects[product.value]
        if description[lt.DESC_EPILOGUE] in self.unsupported:
            return self.refusal
        names = "ABCD"
        description["aligned"] = [
            wishes[getattr(lt, f"PREF_MIN_ALIGNMENT_{name}_BYTES")] for name in names
        ]
        for result in results:
            result.state = lt.STATUS_NOT_SUPPORTED
        results[1].state, results[1].workspace_size = 0, self.workspace_size
        results[1].algo.data[0] = product.value
        found._obj.value = 2
        return 0

    def cublasLtMatmul(self, handle, product, one, a, of_a, b, of_b, zero, c, of_c, y, of_y, *rest):
        self.calls["product"] += 1
        algorithm, workspace, workspace_size, stream = rest
        assert algorithm._obj.data[0] == product.value, "another problem's algorithm"
        assert handle.value == 5
        assert workspace_size == self.workspace_size
        assert bool(workspace) == bool(workspace_size)
        self.workspaces.add((workspace, stream))
        description = self.objects[product.value]
        compute, scale = description["args"]
        number = np.float64 if scale == lt.CUDA_R_64F else np.float32
        assert (_value(one, number), _value(zero, number)) == (1, 0)
        assert (c, of_c.value) == (y, of_y.value)
        for address, alignment in zip((a, b, c, y), description["aligned"], strict=True):
            assert address % alignment == 0
        layouts = [self.objects[of.value] for of in (of_a, of_b, of_y)]
        self.products.append((dict(description), [dict(x) for x in layouts], (a, b, y)))
        A, B, Y = (_matrices(p, x) for p, x in zip((a, b, y), layouts, strict=True))
        A, B = A.astype(np.float64), B.astype(np.float64)
        if compute == lt.COMPUTE_32F_FAST_TF32:
            A, B = _tf32(A), _tf32(B)
        A = A.swapaxes(1, 2) if description[lt.DESC_TRANSA] else A  # (batch, m, k)
        B = B.swapaxes(1, 2) if description[lt.DESC_TRANSB] else B  # (batch, k, n)
        with np.errstate(all="ignore"):
            self._epilogue(description, A @ B, B, Y)
        return 0

    def _epilogue(self, description, product, B, Y):
        """Y (batch, m, n) and the vectors, from the product of A and B."""
        kind = description[lt.DESC_EPILOGUE]
        m, n = Y.shape[1:]

        def vector(length):
            return _memory(description[lt.DESC_BIAS_POINTER], (length,), (1,), Y.dtype)

        def aux():
            ld = description[lt.DESC_EPILOGUE_AUX_LD]
            assert ld % 8 == 0
            assert ld >= m
            assert len(Y) == 1
            return _memory(description[lt.DESC_EPILOGUE_AUX_POINTER], (m, n), (1, ld), Y.dtype)

        if kind == lt.EPILOGUE_BIAS:
            product = product + vector(m).astype(np.float64)[:, None]
        elif kind == lt.EPILOGUE_GELU_AUX_BIAS:
            pre = product + vector(m).astype(np.float64)[:, None]
            aux()[...] = pre[0]
            product = gelu_tanh.reference(pre)
        elif kind == lt.EPILOGUE_DGELU_BGRAD:
            product = gelu_tanh_grad.reference(product, aux().astype(np.float64))
            vector(m)[...] = product[0].sum(1)
        elif kind == lt.EPILOGUE_BGRADB:
            vector(n)[...] = B[0].sum(0)
        else:
            assert kind == lt.EPILOGUE_DEFAULT
        Y[...] = product


def _value(reference, dtype):
    assert ctypes.sizeof(reference._obj) == np.dtype(dtype).itemsize
    return reference._obj.value


def _matrices(address, layout):
    """(batch, rows, columns) as a layout describes them."""
    kind, rows, columns, ld = layout["args"]
    assert ld >= rows
    shape = layout.get(lt.LAYOUT_BATCH_COUNT, 1), rows, columns
    stride = layout.get(lt.LAYOUT_STRIDED_BATCH_OFFSET, 0)
    return _memory(address, shape, (stride, 1, ld), DTYPES[kind])


def _memory(address, shape, strides, dtype):
    """An array on memory that was handed out; strides in elements."""
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = (last + 1) * dtype.itemsize
    assert any(_holds(x, address, size) for x in ndarray.memory), "outside of every array"
    buffer = (ctypes.c_char * size).from_address(address)
    return np.ndarray(shape, dtype, buffer, 0, [s * dtype.itemsize for s in strides])


def _holds(x, address, size):
    low, high = np.lib.array_utils.byte_bounds(x)
    return low <= address and address + size <= high


def _tf32(x):
    """Rounded to 10 bits of mantissa."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent)


def install(monkeypatch):
    """The library and CuPy on the host; what other CUDA kernels would launch runs its reference."""
    library, cupy = HostCublasLt(), FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(lt, "_found", lambda: library)
    monkeypatch.setattr(plans, "_plans", {})
    monkeypatch.setattr(plans, "_workspaces", {})
    monkeypatch.setattr(ndarray, "memory", [])
    forget()
    for kernel in all_kernels().values():
        if kernel.family not in ("matmul", "linear"):
            for key in [key for key in kernel._versions if key[0] == "cuda"]:
                monkeypatch.delitem(kernel._versions, key)
    return library, cupy


def forget():
    """What cublas.py has found out about the library."""
    for function in (cublas._found, cublas._starts, plans.handle):
        function.cache_clear()
