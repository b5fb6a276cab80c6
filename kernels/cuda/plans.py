"""Plans for cuBLASLt: a product made ready once, and run as often as it comes.

A plan holds descriptions, layouts and the algorithm that the library's heuristic names, for sizes,
layouts, types, alignments and precision. Making one asks the library; running one allocates
nothing, waits for nothing and asks nothing, so that it may be captured into a CUDA graph. The first
call of each kind must come before the capture, on its stream (the workspace is made then too):
newer libraries refuse to choose an algorithm during one.

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

from kernels.cuda import cublaslt as lt

log = logging.getLogger("framework")

#: Bytes; what NVIDIA recommends for Hopper. One is allocated for each stream that needs it.
WORKSPACE = 32 << 20

#: cudaStreamPerThread: one name for as many streams as there are threads.
_PER_THREAD = 2

#: Plans kept; a program with more different shapes than this makes the oldest anew.
_MOST_PLANS = 4096

#: NumPy's name of a type -> the library's number.
TYPES = {
    "float32": lt.CUDA_R_32F,
    "float16": lt.CUDA_R_16F,
    "bfloat16": lt.CUDA_R_16BF,
    "float64": lt.CUDA_R_64F,
}
_NAMES = {kind: name for name, kind in TYPES.items()}

# Factors of the product and of what was in y before, in the type of accumulation.
_ONE_ZERO = {
    lt.CUDA_R_32F: (c_float(1), c_float(0)),
    lt.CUDA_R_64F: (c_double(1), c_double(0)),
}


# Handles and workspaces ---------------------------------------------------------------------------


@cache
def handle(device: int) -> c_void_p:
    """The library's state on `device`, which is the current one. Lives as long as the process."""
    made = c_void_p()
    lt.check(lt.library().cublasLtCreate(byref(made)), f"cublasLtCreate on device {device}")
    return made


def current_device() -> int:
    """CuPy's."""
    return int(sys.modules["cupy"].cuda.runtime.getDevice())


_workspaces: dict[tuple[int, int], Any] = {}


def workspace(device: int, stream: int) -> int:
    """Address of the workspace for `stream`.

    One for each stream: kernels of two streams may run at the same time. It is taken from the
    device and not from CuPy's pool, and never given back, so that a captured graph may keep its
    address; such a graph is replayed on the stream it was captured on.
    """
    key = device, -threading.get_ident() if stream == _PER_THREAD else stream
    memory = _workspaces.get(key)
    if memory is None:
        memory = _workspaces[key] = _from_device(WORKSPACE)
    return int(memory.ptr)


#: cudaErrorMemoryAllocation
_OUT_OF_MEMORY = 2


def _from_device(size: int) -> Any:
    """Memory from the device, if need be after CuPy's pool has given back what it does not use;
    CuPy's OutOfMemoryError, a MemoryError, where there is none.
    """
    cupy = sys.modules["cupy"]
    try:
        return cupy.cuda.Memory(size)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status != _OUT_OF_MEMORY:
            raise
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    try:
        return cupy.cuda.Memory(size)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status != _OUT_OF_MEMORY:
            raise
        raise cupy.cuda.memory.OutOfMemoryError(size, pool.total_bytes()) from error


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
        self.handle, self.multiply = handle(problem.device), lt.library().cublasLtMatmul
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
        at_workspace = workspace(self.problem.device, stream) if self.workspace else 0
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
                at_workspace,
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


def find(problem: Problem, bias: int, aux: int) -> Plan | str:
    """The plan for a problem, or why there is none. Either is final: a problem that was computed
    one way is computed that way for the rest of the process. (A plan that had to make room is made
    again by the same heuristic.)
    """
    known = _plans.get(problem)
    if known is not None:
        return known
    try:
        plan: Plan | str = Plan(problem, bias, aux)
    except Unsupported as error:
        log.debug("%s", error)
        plan = str(error)
    while len(_plans) >= _MOST_PLANS:
        _plans.pop(next(iter(_plans)), None)
    return _plans.setdefault(problem, plan)
