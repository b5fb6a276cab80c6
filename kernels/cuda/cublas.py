"""Matrix products on CUDA: NVIDIA's cuBLASLt, with handles, workspaces and plans of our own.

CuPy's products cannot be captured into a CUDA graph, widen batched float16 and refuse batched
bfloat16. Here every product, plain, batched or fused with what follows it, is one call on CuPy's
current stream.

Row-major arrays in a column-major library: the memory of a row-major (m, n) array is that of a
column-major (n, m) matrix, so the library computes y^T = b^T a^T with our b as its A, our a as its
B. Its rows are then our columns, which is where its epilogues want them: a bias is added along
rows of y^T, one number per feature.

A plan (descriptions, layouts and the algorithm that the library's heuristic names) is made once for
sizes, layouts, types, alignments and precision, and kept. After that a call allocates nothing,
waits for nothing and asks nothing, so it may be captured. The first call of each kind must come
before the capture: newer libraries refuse to choose an algorithm during one.

Same input, same bits: sums that are split over k are added in a separate step in the type of
accumulation, never in place, and equal problems always run the algorithm that was chosen first.
"""

from __future__ import annotations

import logging
import sys
import threading
from ctypes import byref, c_double, c_float, c_int, c_void_p
from functools import cache
from typing import Any, NamedTuple

from kernels.arrays import Array, array_module
from kernels.cuda import cublaslt as lt
from kernels.precision import tf32_is_allowed

log = logging.getLogger("framework")

#: Bytes; what NVIDIA recommends for Hopper. One is allocated for each stream that needs it.
WORKSPACE = 32 << 20

#: Bytes beyond which an alignment makes no difference to the library.
_ALIGNMENT = 256

#: cudaStreamPerThread: one name for as many streams as there are threads.
_PER_THREAD = 2

#: Plans kept; a program with more different shapes than this makes the oldest anew.
_MOST_PLANS = 4096

_TYPES = {
    "float32": lt.CUDA_R_32F,
    "float16": lt.CUDA_R_16F,
    "bfloat16": lt.CUDA_R_16BF,
    "float64": lt.CUDA_R_64F,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}

#: What may follow a product y = a b in the same kernel.
BIAS = lt.EPILOGUE_BIAS  # y + bias
GELU_AUX_BIAS = lt.EPILOGUE_GELU_AUX_BIAS  # gelu_tanh(aux) with aux = y + bias kept
DGELU_BGRAD = lt.EPILOGUE_DGELU_BGRAD  # y = gelu_tanh_grad(y, aux), bias = sum of y's rows
SUM_A = lt.EPILOGUE_BGRADB  # y, bias = sum of a over the axis that the product sums over

# Factors of the product and of what was in y before, in the type of accumulation.
_ONE_ZERO = {
    lt.CUDA_R_32F: (c_float(1), c_float(0)),
    lt.CUDA_R_64F: (c_double(1), c_double(0)),
}


# Is it there? -------------------------------------------------------------------------------------


def usable() -> bool:
    """Do products on the current device go through cuBLASLt? Where not, the reason is logged once,
    and CuPy multiplies.
    """
    return _found() and _starts(_device())


@cache
def _found() -> bool:
    """Is the library installed?"""
    reason = lt.missing()
    if reason is not None:
        _report(reason)
    return reason is None


@cache
def _starts(device: int) -> bool:
    """Does the library start on `device`?"""
    try:
        _handle(device)
    except lt.CublasError as error:
        _report(str(error))
        return False
    return True


def _report(reason: str) -> None:
    log.warning("matrix products on CUDA go through CuPy and cannot be captured: %s", reason)


@cache
def _handle(device: int) -> c_void_p:
    """The library's state on `device`, which is the current one. Lives as long as the process."""
    handle = c_void_p()
    lt.check(lt.library().cublasLtCreate(byref(handle)), f"cublasLtCreate on device {device}")
    return handle


def _device() -> int:
    return int(sys.modules["cupy"].cuda.runtime.getDevice())


_workspaces: dict[tuple[int, int], Any] = {}


def _workspace(device: int, stream: int) -> int:
    """Address of the workspace for `stream`.

    One for each stream: kernels of two streams may run at the same time. It is taken from the
    device and not from CuPy's pool, and never given back, so that a captured graph may keep its
    address; such a graph is replayed on the stream it was captured on.
    """
    key = device, -threading.get_ident() if stream == _PER_THREAD else stream
    memory = _workspaces.get(key)
    if memory is None:
        memory = _workspaces[key] = sys.modules["cupy"].cuda.Memory(WORKSPACE)
    return int(memory.ptr)


# Operands -----------------------------------------------------------------------------------------


def _layout(x: Array) -> tuple[int, bool, int] | None:
    """How the matrices of `x` (..., rows, columns) lie in memory.

    Returns (leading dimension, columns instead of rows?, distance between matrices) in elements,
    or None if they lie in a way that the library cannot read.
    """
    size, shape, strides = x.itemsize, x.shape, x.strides
    rows, columns = shape[-2:]
    row, column = strides[-2:]
    if columns == 1 or column == size:
        ld, turned, least = (row if rows > 1 else columns * size), False, columns * size
    elif rows == 1 or row == size:
        ld, turned, least = column, True, rows * size
    else:
        return None
    if ld < least or ld % size:
        return None
    if len(shape) == 2:
        return ld // size, turned, 0
    count, distance = 1, 0
    for n, stride in zip(shape[-3::-1], strides[-3::-1], strict=True):
        if n == 1:
            continue
        if count == 1:
            distance = stride
        elif stride != count * distance:
            return None
        count *= n
    return None if distance < 0 or distance % size else (ld // size, turned, distance // size)


def _operand(x: Array) -> tuple[Array, int, bool, int]:
    """`x`, or a contiguous copy where it cannot be read as it lies, and its layout."""
    layout = _layout(x)
    if layout is None:
        x = array_module(x).ascontiguousarray(x)
        layout = _layout(x)
        assert layout is not None
    return x, *layout


_kinds: dict[Any, int] = {}


def _kind(dtype: Any) -> int:
    """The library's number for a dtype, whose name NumPy takes 1 us to spell out."""
    kind = _kinds.get(dtype)
    if kind is None:
        kind = _kinds[dtype] = _TYPES[dtype.name]
    return kind


def writable(y: Array | None) -> bool:
    """May a product be written into `y` directly: does it have rows in memory?"""
    if y is None:
        return False
    layout = _layout(y)
    return layout is not None and not layout[1] and (layout[2] > 0 or _matrices(y) == 1)


def _matrices(x: Array) -> int:
    count = 1
    for n in x.shape[:-2]:
        count *= n
    return count


def _alignment(pointer: int) -> int:
    """The largest power of two up to 256 that divides an address; 256 for none at all."""
    return pointer & -pointer & (_ALIGNMENT - 1) or _ALIGNMENT


# Plans --------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Everything that a plan depends on. Rows and columns are the library's: those of y^T."""

    device: int
    rows: int
    columns: int
    inner: int
    batch: int
    a: tuple[int, bool, int]  # leading dimension, transposed?, distance from matrix to matrix
    b: tuple[int, bool, int]
    y: tuple[int, int]
    dtype: int
    result: int
    epilogue: int
    aux_ld: int
    alignments: tuple[int, int, int, int, int]  # of A, B, y, bias, aux
    tf32: bool

    def __str__(self) -> str:
        batch = f"{self.batch} x " if self.batch > 1 else ""
        a, b = (" transposed" if side[1] else "" for side in (self.b, self.a))
        types = f"{_NAMES[self.dtype]} to {_NAMES[self.result]}"
        aligned = "/".join(map(str, self.alignments))
        return (
            f"{batch}({self.columns}, {self.inner}){a} times ({self.inner}, {self.rows}){b} in "
            f"{types}, epilogue {lt.EPILOGUE_NAMES[self.epilogue]}, "
            f"addresses aligned to {aligned} bytes"
        )


class Plan:
    """A problem made ready: what to pass to cublasLtMatmul besides addresses."""

    def __init__(self, problem: Problem, bias: int, aux: int) -> None:
        kind, result = problem.dtype, problem.result
        scale = lt.CUDA_R_64F if kind == lt.CUDA_R_64F else lt.CUDA_R_32F
        self.problem = problem
        self.product = lt.describe_product(_compute(kind, problem.tf32), scale)
        self.product.set(lt.DESC_TRANSA, lt.OP_T if problem.a[1] else lt.OP_N)
        self.product.set(lt.DESC_TRANSB, lt.OP_T if problem.b[1] else lt.OP_N)
        self.product.set(lt.DESC_EPILOGUE, problem.epilogue)
        if aux:
            self.product.set(lt.DESC_EPILOGUE_AUX_LD, problem.aux_ld)
        self.bias = self.aux = 0
        self._point(bias, aux)
        m, n, k = problem.rows, problem.columns, problem.inner
        self.layouts = [
            lt.describe_matrices(kind, *((k, m) if problem.a[1] else (m, k)), *self._side("a")),
            lt.describe_matrices(kind, *((n, k) if problem.b[1] else (k, n)), *self._side("b")),
            lt.describe_matrices(result, m, n, problem.y[0], problem.batch, problem.y[1]),
        ]
        self.factors = tuple(map(byref, _ONE_ZERO[scale]))
        self.handle, self.multiply = _handle(problem.device), lt.library().cublasLtMatmul
        self.algorithm, self.workspace = _choose(self)
        # One description serves all calls and holds the addresses of the vectors: no other thread
        # may set its own between ours and the call.
        self.lock = threading.Lock()

    def _side(self, name: str) -> tuple[int, int, int]:
        ld, _, distance = getattr(self.problem, name)
        return ld, self.problem.batch, distance

    def _point(self, bias: int, aux: int) -> None:
        """Name the vectors and matrices of the epilogue."""
        if bias != self.bias:
            self.product.set(lt.DESC_BIAS_POINTER, bias)
            self.bias = bias
        if aux != self.aux:
            self.product.set(lt.DESC_EPILOGUE_AUX_POINTER, aux)
            self.aux = aux

    def run(self, a: int, b: int, y: int, bias: int, aux: int) -> None:
        """Multiply, on CuPy's current stream."""
        stream = int(sys.modules["cupy"].cuda.get_current_stream().ptr)
        workspace = _workspace(self.problem.device, stream) if self.workspace else 0
        one, zero = self.factors
        of_a, of_b, of_y = (layout.pointer for layout in self.layouts)
        with self.lock:
            self._point(bias, aux)
            status = self.multiply(
                self.handle,
                self.product.pointer,
                one,
                a,
                of_a,
                b,
                of_b,
                zero,
                y,
                of_y,
                y,
                of_y,
                byref(self.algorithm),
                workspace,
                self.workspace,
                stream,
            )
        if status:
            lt.check(status, f"the product {self.problem}")


class Unsupported(RuntimeError):
    """The library has no algorithm for a problem."""


def _compute(kind: int, tf32: bool) -> int:
    if kind == lt.CUDA_R_64F:
        return lt.COMPUTE_64F
    return lt.COMPUTE_32F_FAST_TF32 if tf32 else lt.COMPUTE_32F


def _choose(plan: Plan) -> tuple[lt.Algorithm, int]:
    """The algorithm that the library expects to be fastest, and the workspace it needs."""
    of_a, of_b, of_y, *_ = plan.problem.alignments
    preference = lt.preference()
    preference.set(lt.PREF_MAX_WORKSPACE_BYTES, WORKSPACE)
    preference.set(lt.PREF_REDUCTION_SCHEME_MASK, lt.REDUCTION_SCHEME_COMPUTE_TYPE)
    preference.set(lt.PREF_MIN_ALIGNMENT_A_BYTES, of_a)
    preference.set(lt.PREF_MIN_ALIGNMENT_B_BYTES, of_b)
    preference.set(lt.PREF_MIN_ALIGNMENT_C_BYTES, of_y)
    preference.set(lt.PREF_MIN_ALIGNMENT_D_BYTES, of_y)
    results, found = (lt.HeuristicResult * 8)(), c_int()
    a, b, y = (layout.pointer for layout in plan.layouts)
    status = lt.library().cublasLtMatmulAlgoGetHeuristic(
        plan.handle,
        plan.product.pointer,
        a,
        b,
        y,
        y,
        preference.pointer,
        len(results),
        results,
        byref(found),
    )
    if status not in (lt.STATUS_SUCCESS, lt.STATUS_NOT_SUPPORTED, lt.STATUS_INVALID_VALUE):
        # not "there is none": asking itself failed, as it does while a stream is captured
        raise lt.CublasError(
            f"cuBLASLt: {lt.status_name(status)} while choosing an algorithm for {plan.problem}. "
            "Inside the capture of a CUDA graph? Run the step once before capturing it"
        )
    for result in results[: found.value if status == lt.STATUS_SUCCESS else 0]:
        if result.state == lt.STATUS_SUCCESS and result.workspace_size <= WORKSPACE:
            # a copy: `results` would be kept alive by a view into it
            return lt.Algorithm.from_buffer_copy(result.algo), int(result.workspace_size)
    raise Unsupported(
        f"cuBLASLt has no algorithm ({lt.status_name(status)}) for the product {plan.problem}"
    )


_plans: dict[Problem, Plan | str] = {}


def _plan(problem: Problem, bias: int, aux: int) -> Plan | str:
    """The plan for a problem, or why there is none. Either is final: a problem that was computed
    one way is computed that way for the rest of the process.
    """
    try:
        plan: Plan | str = Plan(problem, bias, aux)
    except Unsupported as error:
        log.debug("%s", error)
        plan = str(error)
    while len(_plans) >= _MOST_PLANS:
        _plans.pop(next(iter(_plans)), None)
    return _plans.setdefault(problem, plan)


# Products -----------------------------------------------------------------------------------------


def product(
    a: Array,
    b: Array,
    transpose_a: bool,
    transpose_b: bool,
    y: Array,
    epilogue: int = lt.EPILOGUE_DEFAULT,
    bias: Array | None = None,
    aux: Array | None = None,
) -> bool:
    """y = epilogue(a b) over the last two axes, on the current stream.

    Shapes are those of `kernels.matmul.matmul`, nothing empty; y is `writable` and may be float32
    for 16-bit a and b. `bias` (n,) and `aux` (m, n), both with neighbouring elements, are what the
    epilogue reads or writes. False, and nothing written, where the library does not have the
    epilogue for this problem; CublasError where it cannot multiply at all.
    """
    (m, n), k = y.shape[-2:], a.shape[-2 if transpose_a else -1]
    aux_ld = 0 if aux is None else aux.strides[0] // aux.itemsize
    if aux_ld % 8:  # the library's rule
        return False
    a, a_ld, a_turned, a_distance = _operand(a)
    b, b_ld, b_turned, b_distance = _operand(b)
    layout = _layout(y)
    assert layout is not None
    batch = _matrices(y) if y.ndim > 2 else 1
    at_a, at_b, at_y = a.data.ptr, b.data.ptr, y.data.ptr
    at_bias = 0 if bias is None else bias.data.ptr
    at_aux = 0 if aux is None else aux.data.ptr
    kind = _kind(a.dtype)
    problem = Problem(
        _device(),
        n,
        m,
        k,
        batch,
        (b_ld, transpose_b != b_turned, b_distance),
        (a_ld, transpose_a != a_turned, a_distance),
        (layout[0], layout[2]),
        kind,
        _kind(y.dtype),
        epilogue,
        aux_ld,
        (
            _alignment(at_b),
            _alignment(at_a),
            _alignment(at_y),
            _alignment(at_bias),
            _alignment(at_aux),
        ),
        kind == lt.CUDA_R_32F and tf32_is_allowed(),
    )
    plan = _plans.get(problem)
    if plan is None:
        plan = _plan(problem, at_bias, at_aux)
    if isinstance(plan, str):
        if epilogue == lt.EPILOGUE_DEFAULT:
            raise lt.CublasError(plan)
        return False
    plan.run(at_b, at_a, at_y, at_bias, at_aux)
    return True
