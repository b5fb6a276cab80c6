"""cuBLASLt through ctypes: where the library is, its constants, its signatures, its errors.

ctypes and not nvmath.bindings.cublasLt: both take raw pointers and can be captured, and a call of
cublasLtMatmul through ctypes costs 0.9 us, which a compiled binding can hardly improve on next to
the launch itself. The library comes with CuPy's [ctk] extra, so that nothing else has to be
installed, and nothing has to exist for each version of Python.

Constants are named as in cublasLt.h without the leading CUBLASLT_MATMUL_, CUBLASLT_ or CUBLAS_.
They are the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any

from kernels.cuda.nvrtc import cuda_roots

INSTALL = "pip install nvidia-cublas   (nvidia-cublas-cu12 for CUDA 12)"

#: Newest first; CuPy's own goes before them.
_MAJORS = (13, 12)

# cudaDataType_t
CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14

# cublasComputeType_t: accumulation, and what may be done to the factors before
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77

# cublasStatus_t
STATUS_SUCCESS, STATUS_INVALID_VALUE, STATUS_NOT_SUPPORTED = 0, 7, 15

# cublasLtMatmulDescAttributes_t
DESC_TRANSA, DESC_TRANSB, DESC_EPILOGUE, DESC_BIAS_POINTER = 3, 4, 7, 8
DESC_EPILOGUE_AUX_POINTER, DESC_EPILOGUE_AUX_LD = 11, 12

# cublasOperation_t
OP_N, OP_T = 0, 1

# cublasLtEpilogue_t
EPILOGUE_DEFAULT, EPILOGUE_BIAS, EPILOGUE_GELU_AUX_BIAS = 1, 4, 164
EPILOGUE_DGELU_BGRAD, EPILOGUE_BGRADB = 208, 512

# cublasLtMatrixLayoutAttribute_t
LAYOUT_BATCH_COUNT, LAYOUT_STRIDED_BATCH_OFFSET = 5, 6

# cublasLtMatmulPreferenceAttributes_t
PREF_MAX_WORKSPACE_BYTES, PREF_REDUCTION_SCHEME_MASK = 1, 3
PREF_MIN_ALIGNMENT_A_BYTES, PREF_MIN_ALIGNMENT_B_BYTES = 5, 6
PREF_MIN_ALIGNMENT_C_BYTES, PREF_MIN_ALIGNMENT_D_BYTES = 7, 8

# cublasLtReductionScheme_t
REDUCTION_SCHEME_NONE, REDUCTION_SCHEME_COMPUTE_TYPE = 0, 2

#: The type of each attribute; the library refuses a value of another size.
DESC_TYPES = {
    DESC_TRANSA: c_int32,
    DESC_TRANSB: c_int32,
    DESC_EPILOGUE: c_uint32,
    DESC_BIAS_POINTER: c_void_p,
    DESC_EPILOGUE_AUX_POINTER: c_void_p,
    DESC_EPILOGUE_AUX_LD: c_int64,
}
LAYOUT_TYPES = {LAYOUT_BATCH_COUNT: c_int32, LAYOUT_STRIDED_BATCH_OFFSET: c_int64}
PREF_TYPES = {
    PREF_MAX_WORKSPACE_BYTES: c_uint64,
    PREF_REDUCTION_SCHEME_MASK: c_uint32,
    PREF_MIN_ALIGNMENT_A_BYTES: c_uint32,
    PREF_MIN_ALIGNMENT_B_BYTES: c_uint32,
    PREF_MIN_ALIGNMENT_C_BYTES: c_uint32,
    PREF_MIN_ALIGNMENT_D_BYTES: c_uint32,
}

EPILOGUE_NAMES = {
    EPILOGUE_DEFAULT: "DEFAULT",
    EPILOGUE_BIAS: "BIAS",
    EPILOGUE_GELU_AUX_BIAS: "GELU_AUX_BIAS",
    EPILOGUE_DGELU_BGRAD: "DGELU_BGRAD",
    EPILOGUE_BGRADB: "BGRADB",
}


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t: an opaque choice of kernel, tiles and split."""

    _fields_ = [("data", c_uint64 * 8)]


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algo", Algorithm),
        ("workspace_size", c_size_t),
        ("state", c_int),
        ("waves_count", c_float),
        ("reserved", c_int * 4),
    ]


_OUT = POINTER(c_void_p)
_SET = (c_void_p, c_int, c_void_p, c_size_t)

#: Function -> argument types; all return a cublasStatus_t.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_OUT,),
    "cublasLtMatmulDescCreate": (_OUT, c_int, c_int),
    "cublasLtMatmulDescSetAttribute": _SET,
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatrixLayoutCreate": (_OUT, c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutSetAttribute": _SET,
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceCreate": (_OUT,),
    "cublasLtMatmulPreferenceSetAttribute": _SET,
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    # handle, description, layouts of A, B, C, D, preference, how many, results, how many came
    "cublasLtMatmulAlgoGetHeuristic": (
        *(c_void_p,) * 7,
        c_int,
        POINTER(HeuristicResult),
        POINTER(c_int),
    ),
    # handle, description, alpha, A, its layout, B, ., beta, C, ., D, ., algorithm, workspace and
    # its size, stream
    "cublasLtMatmul": (*(c_void_p,) * 14, c_size_t, c_void_p),
}


class CublasError(RuntimeError):
    """A call of cuBLASLt failed; the message has the status by name and what was asked for."""


def check(status: int, what: str) -> None:
    """CublasError unless `status` is success."""
    if status:
        raise CublasError(f"cuBLASLt: {status_name(status)} from {what}")


def status_name(status: int) -> str:
    """CUBLAS_STATUS_NOT_SUPPORTED for 15."""
    return (library().cublasLtGetStatusName(status) or b"").decode() or f"status {status}"


def missing() -> str | None:
    """Why there is no library, with what to install; None if there is one."""
    found = _found()
    return found if isinstance(found, str) else None


def version() -> tuple[int, int, int]:
    """(major, minor, patch) of the library."""
    number = int(library().cublasLtGetVersion())
    # one digit more for the major version since CUDA 12.x: 120903 is 12.9.3, 131000 is 13.10.0
    return number // 10000, number // 100 % 100, number % 100


def library() -> Any:
    """The library, its functions with their signatures. The one way to it."""
    found = _found()
    if isinstance(found, str):
        raise CublasError(found)
    return found


@cache
def _found() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    failures = []
    for name in _candidates():
        try:
            lt = ctypes.CDLL(name)
        except OSError as error:
            failures.append(f"{Path(name).name}: {error}")
            continue
        for function, types in SIGNATURES.items():
            getattr(lt, function).argtypes = types
            getattr(lt, function).restype = c_int
        lt.cublasLtGetVersion.restype = c_size_t
        lt.cublasLtGetStatusName.argtypes = (c_int,)
        lt.cublasLtGetStatusName.restype = c_char_p
        return lt
    return f"no cuBLASLt library ({'; '.join(failures)}): {INSTALL}"


def _candidates() -> Iterator[str]:
    """Paths and names to try: what NVIDIA's own finder says, pip wheels and toolkits, the system's
    linker.
    """
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        # the one that CuPy has loaded, if it has
        yield str(load_nvidia_dynamic_lib("cublasLt").abs_path)
    except Exception:  # noqa: S110 - not installed, or it found nothing: we look ourselves
        pass
    for major in _majors():
        for root in cuda_roots():
            for folder in ("lib", "lib64", "cublas/lib", "bin", "bin/x86_64", "cublas/bin"):
                path = root / folder / library_name(major)
                if path.exists():
                    yield str(path)
    for major in _majors():
        yield library_name(major)


def library_name(major: int, platform: str = sys.platform) -> str:
    """The file's name for CUDA `major`."""
    return f"cublasLt64_{major}.dll" if platform == "win32" else f"libcublasLt.so.{major}"


def _majors() -> list[int]:
    """CUDA versions to look for: CuPy's first, which is the driver's match."""
    try:
        own = sys.modules["cupy"].cuda.runtime.runtimeGetVersion() // 1000
    except Exception:  # no CuPy, or one without CUDA
        return list(_MAJORS)
    return sorted(_MAJORS, key=lambda major: major != own)


# Descriptors --------------------------------------------------------------------------------------


class Descriptor:
    """A description that the library made, and its attributes: of a product, a layout, or a
    preference. Freed with the object.
    """

    def __init__(self, kind: str, types: dict[int, Any], *args: Any) -> None:
        lt = library()
        self.pointer = c_void_p()
        self._types, self._kind = types, kind
        self._set = getattr(lt, f"cublasLt{kind}SetAttribute")
        self._destroy = getattr(lt, f"cublasLt{kind}Destroy")
        create = f"cublasLt{kind}Create"
        check(getattr(lt, create)(byref(self.pointer), *args), f"{create}{args}")

    def set(self, attribute: int, value: int) -> None:
        """Set an attribute."""
        held = self._types[attribute](value)
        status = self._set(self.pointer, attribute, byref(held), ctypes.sizeof(held))
        check(status, f"cublasLt{self._kind}SetAttribute({attribute}, {value})")

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self._destroy(self.pointer)


def describe_product(compute: int, scale: int) -> Descriptor:
    """cublasLtMatmulDesc_t."""
    return Descriptor("MatmulDesc", DESC_TYPES, compute, scale)


def describe_matrices(
    kind: int, rows: int, columns: int, ld: int, batch: int, stride: int
) -> Descriptor:
    """cublasLtMatrixLayout_t: `batch` column-major matrices, `stride` elements apart."""
    layout = Descriptor("MatrixLayout", LAYOUT_TYPES, kind, rows, columns, ld)
    if batch != 1:
        layout.set(LAYOUT_BATCH_COUNT, batch)
        layout.set(LAYOUT_STRIDED_BATCH_OFFSET, stride)
    return layout


def preference() -> Descriptor:
    """cublasLtMatmulPreference_t."""
    return Descriptor("MatmulPreference", PREF_TYPES)
