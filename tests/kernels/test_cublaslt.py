"""The binding of cuBLASLt: constants against NVIDIA's headers, signatures against the real library
(it makes descriptors without a driver), and where it is looked for.
"""

import ctypes
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernels.cuda import cublaslt as lt, nvrtc

#: Our prefix -> the header's, and the header that has it.
PREFIXES = {
    "DESC_": ("CUBLASLT_MATMUL_DESC_", "cublasLt.h"),
    "PREF_": ("CUBLASLT_MATMUL_PREF_", "cublasLt.h"),
    "LAYOUT_": ("CUBLASLT_MATRIX_LAYOUT_", "cublasLt.h"),
    "EPILOGUE_": ("CUBLASLT_EPILOGUE_", "cublasLt.h"),
    "REDUCTION_SCHEME_": ("CUBLASLT_REDUCTION_SCHEME_", "cublasLt.h"),
    "OP_": ("CUBLAS_OP_", "cublas_api.h"),
    "COMPUTE_": ("CUBLAS_COMPUTE_", "cublas_api.h"),
    "STATUS_": ("CUBLAS_STATUS_", "cublas_api.h"),
    "CUDA_R_": ("CUDA_R_", "library_types.h"),
}
CONSTANTS = sorted(
    name
    for name, value in vars(lt).items()
    if isinstance(value, int) and name.startswith(tuple(PREFIXES))
)


def headers(name):
    """Every copy of a header: of CUDA 12's wheel, of CUDA 13's, of a toolkit."""
    folders = ("include", "cublas/include")
    return [p for root in nvrtc.cuda_roots() for f in folders if (p := root / f / name).exists()]


def enumerators(text):
    """Name -> the text of its value, for every enumerator that states one."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    bodies = re.findall(r"enum\s*\w*\s*\{(.*?)\}", text, re.DOTALL)
    return dict(re.findall(r"(\w+)\s*=\s*([^,]+)", ",".join(bodies)))


def value_of(name, definitions):
    """A number, another name, or several of them joined by |."""
    value = 0
    for part in definitions[name].strip(" ()\n").split("|"):
        part = part.strip(" ()\n")
        value |= int(part, 0) if part[0].isdigit() else value_of(part, definitions)
    return value


def test_enumerators_of_a_header_are_read():
    text = "typedef enum { A = 2, /* B = 3, */ C = (A | 0x80), // D = 4\n E = 8 | 16 } t;"
    found = enumerators(text)
    assert {name: value_of(name, found) for name in found} == {"A": 2, "C": 130, "E": 24}


def test_constants_are_what_the_headers_of_12_9_and_13_10_say():
    """The next test reads them from headers, which most machines lack."""
    flags = {"GELU": 32, "DGELU": 64 | 128, "AUX": 128, "BIAS": 4, "BGRAD": 16}
    assert lt.EPILOGUE_GELU_AUX_BIAS == flags["GELU"] | flags["AUX"] | flags["BIAS"]
    assert lt.EPILOGUE_DGELU_BGRAD == flags["DGELU"] | flags["BGRAD"]
    assert (lt.EPILOGUE_DEFAULT, lt.EPILOGUE_BIAS, lt.EPILOGUE_BGRADB) == (1, 4, 512)
    assert (lt.CUDA_R_32F, lt.CUDA_R_64F, lt.CUDA_R_16F, lt.CUDA_R_16BF) == (0, 1, 2, 14)
    assert (lt.COMPUTE_32F, lt.COMPUTE_64F, lt.COMPUTE_32F_FAST_TF32) == (68, 70, 77)
    assert (lt.STATUS_SUCCESS, lt.STATUS_INVALID_VALUE, lt.STATUS_NOT_SUPPORTED) == (0, 7, 15)
    assert (lt.OP_N, lt.OP_T) == (0, 1)
    assert list(lt.DESC_TYPES) == [3, 4, 7, 8, 11, 12]
    assert list(lt.LAYOUT_TYPES) == [5, 6]
    assert list(lt.PREF_TYPES) == [1, 3, 5, 6, 7, 8]
    assert (lt.REDUCTION_SCHEME_NONE, lt.REDUCTION_SCHEME_COMPUTE_TYPE) == (0, 2)


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_the_headers(name):
    prefix = next(p for p in PREFIXES if name.startswith(p))
    theirs, header = PREFIXES[prefix]
    found = headers(header)
    if not found:
        pytest.skip(f"no {header}: it comes with the wheel nvidia-cublas (0.4 GB)")
    for path in found:
        full = theirs + name.removeprefix(prefix)
        assert value_of(full, enumerators(path.read_text())) == getattr(lt, name), f"{path}: {full}"


@pytest.mark.parametrize("function", lt.SIGNATURES)
def test_signatures_are_the_headers(function):
    found = headers("cublasLt.h")
    if not found:
        pytest.skip("no cublasLt.h: it comes with the wheel nvidia-cublas (0.4 GB)")
    sizes = {
        "int": 4,
        "cudaDataType": 4,
        "cudaDataType_t": 4,
        "cublasComputeType_t": 4,
        "cublasLtMatrixLayoutAttribute_t": 4,
        "cublasLtMatmulDescAttributes_t": 4,
        "cublasLtMatmulPreferenceAttributes_t": 4,
    }  # everything else is a pointer or has 64 bits
    for path in found:
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)
        arguments = re.search(rf"cublasStatus_t CUBLASWINAPI {function}\((.*?)\);", text, re.DOTALL)
        theirs = [sizes.get(a.split()[0], 8) for a in arguments[1].split(",")]
        assert theirs == [ctypes.sizeof(t) for t in lt.SIGNATURES[function]], path


def test_structures_have_the_librarys_sizes():
    assert ctypes.sizeof(lt.Algorithm) == 64
    assert ctypes.sizeof(lt.HeuristicResult) == 64 + 8 + 4 + 4 + 16


def test_the_real_library_takes_our_descriptors():
    if lt.missing():
        pytest.skip(lt.missing())
    assert lt.version()[0] in (12, 13)
    assert lt.status_name(15) == "CUBLAS_STATUS_NOT_SUPPORTED"
    product = lt.describe_product(lt.COMPUTE_32F, lt.CUDA_R_32F)
    layout = lt.describe_matrices(lt.CUDA_R_16BF, 8, 5, 16, 3, 80)
    preference = lt.preference()
    for descriptor, types in (
        (product, lt.DESC_TYPES),
        (layout, lt.LAYOUT_TYPES),
        (preference, lt.PREF_TYPES),
    ):
        for attribute, kind in types.items():
            value = 16 if attribute != lt.DESC_TRANSA else 1
            descriptor.set(attribute, value)
            read, size = kind(), ctypes.c_size_t()
            get = getattr(lt.library(), f"cublasLt{descriptor._kind}GetAttribute")
            where = descriptor.pointer, attribute, ctypes.byref(read), ctypes.sizeof(read)
            assert get(*where, ctypes.byref(size)) == 0
            assert (read.value, size.value) == (value, ctypes.sizeof(kind))
    unknown = lt.Descriptor("MatmulDesc", {999: ctypes.c_int32}, lt.COMPUTE_32F, lt.CUDA_R_32F)
    with pytest.raises(lt.CublasError, match=r"_VALUE from cublasLtMatmulDescSetAttribute\(999"):
        unknown.set(999, 1)


# Where it is --------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch):
    """No pathfinder, no wheels, no toolkit, no CuPy."""
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(lt, "cuda_roots", lambda: [])


def test_names_of_the_library():
    assert lt.library_name(13, "linux") == "libcublasLt.so.13"
    assert lt.library_name(12, "win32") == "cublasLt64_12.dll"


def test_the_linker_is_asked_last(nowhere):
    assert list(lt._candidates()) == [lt.library_name(13), lt.library_name(12)]


@pytest.mark.parametrize("folder", ["lib", "cublas/lib", "bin/x86_64", "cublas/bin"])
def test_wheels_and_toolkits_are_searched(folder, nowhere, monkeypatch, tmp_path):
    for major in (12, 13):
        path = tmp_path / folder / lt.library_name(major)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(lt, "cuda_roots", lambda: [tmp_path])
    found = [Path(p).name for p in list(lt._candidates())[:2]]
    assert found == [lt.library_name(13), lt.library_name(12)]


@pytest.mark.parametrize("own", [12, 13])
def test_cupys_version_goes_first(own, nowhere, monkeypatch):
    runtime = SimpleNamespace(runtimeGetVersion=lambda: own * 1000 + 90)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert next(iter(lt._candidates())) == lt.library_name(own)


def test_nvidias_finder_goes_before_all(nowhere, monkeypatch):
    loaded = SimpleNamespace(abs_path="/opt/libcublasLt.so.13")
    finder = SimpleNamespace(load_nvidia_dynamic_lib=lambda name: loaded)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(pathfinder=finder))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", finder)
    assert next(iter(lt._candidates())) == "/opt/libcublasLt.so.13"


def test_a_missing_library_is_one_sentence_with_the_remedy(nowhere, monkeypatch):
    monkeypatch.setattr(lt, "_candidates", lambda: iter(["no_such_library.so.13"]))
    lt._found.cache_clear()
    try:
        assert re.match(
            r"no cuBLASLt library \(no_such_library.so.13: .*pip install nv", lt.missing()
        )
        with pytest.raises(lt.CublasError, match="no cuBLASLt library"):
            lt.library()
    finally:
        lt._found.cache_clear()


def test_a_version_is_three_numbers(monkeypatch):
    for number, expected in ((131000, (13, 10, 0)), (120903, (12, 9, 3))):
        library = SimpleNamespace(cublasLtGetVersion=lambda number=number: number)
        monkeypatch.setattr(lt, "_found", lambda library=library: library)
        assert lt.version() == expected
