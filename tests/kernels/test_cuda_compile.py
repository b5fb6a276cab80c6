"""Every CUDA kernel compiles for every type and architecture, without a warning and without local
memory. Needs no GPU.
"""

import pytest

from kernels.cuda import compiler, cubin, nvrtc, report
from kernels.cuda.sources import Program, families, programs

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]

OPTIONS = (*compiler.OPTIONS, "-Werror=all-warnings", "-Werror=deprecated-declarations")

# Not on the module: that the sources are listed at all is tested without a compiler.
needs_nvrtc = pytest.mark.usefixtures("_nvrtc")


def test_every_source_is_listed_by_its_family():
    sources = {path.stem for path in compiler.FOLDER.glob("*.cu")}
    assert sources == set(families())


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("program", programs(), ids=lambda p: p.name)
def test_compiles_without_a_warning_and_without_spills(program, arch):
    found = report.measured(program, arch, OPTIONS)
    assert list(found) == list(program.expressions) != []
    spilled = {e: usage.local for e, usage in found.items() if usage.local}
    assert not spilled, "bytes of local memory a thread"


@pytest.mark.parametrize(
    ("setting", "outcome"), [("required", pytest.fail), ("", pytest.skip)], ids=["required", "not"]
)
def test_no_compiler_fails_where_it_is_required(request, monkeypatch, setting, outcome):
    monkeypatch.setenv("FRAMEWORK_EMULATOR", setting)
    monkeypatch.setattr(nvrtc, "missing", lambda: "no NVRTC library")
    with pytest.raises(BaseException, match="no NVRTC library") as caught:
        request.getfixturevalue("_nvrtc")
    assert caught.type is outcome.Exception


@needs_nvrtc
def test_an_error_shows_the_compilers_words():
    with pytest.raises(nvrtc.CompileError, match="undefined"):
        nvrtc.compile("__global__ void f() { undefined_name(); }", ["f"], "sm_80")


@needs_nvrtc
def test_a_warning_is_an_error():
    with pytest.raises(nvrtc.CompileError, match="unused"):
        nvrtc.compile("__global__ void f() { int unused; }", ["f"], "sm_80", OPTIONS)


# --- the report -----------------------------------------------------------------------------------

#: Static shared memory of 100 floats; 64 floats that 32 registers cannot hold; an array that is
#: indexed at run time.
KNOWN = """
__global__ void plain(float* y) { y[threadIdx.x] = 1.0f; }
__global__ void plain_and_more(float* y, double a, double b) { y[threadIdx.x] = a + b; }
__global__ void shared(float* y, int n) {
    __shared__ float s[100];
    s[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[n];
}
__global__ void held(float* y, int n) {
    float a[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) a[i] = y[i * n];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; ++i) y[i + n] = a[63 - i] * a[i];
}
__global__ void indexed(float* y, int n) {
    float a[64];
    for (int i = 0; i < 64; ++i) a[i] = y[i * n];
    for (int i = 0; i < 64; ++i) y[i] = a[i * n % 64];
}
"""
NAMES = ("plain", "plain_and_more", "shared", "held", "indexed")


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_report_finds_what_is_known(arch):
    program = Program("known", KNOWN, NAMES)
    roomy = report.measured(program, arch)
    assert {name: roomy[name].shared for name in NAMES} == dict.fromkeys(NAMES, 0) | {"shared": 400}
    assert [roomy[name].local for name in NAMES] == [0, 0, 0, 0, 256]
    assert roomy["plain"].registers < 32 < roomy["held"].registers
    # the arguments: a pointer, and a pointer and two doubles
    assert roomy["plain_and_more"].constant - roomy["plain"].constant == 16
    tight = report.measured(program, arch, (*compiler.OPTIONS, "-maxrregcount=32"))
    assert tight["held"].registers <= 32
    assert tight["held"].local > 0
    assert tight["plain"].local == 0


def test_only_a_cubin_is_read():
    with pytest.raises(ValueError, match="not a 64-bit ELF file"):
        cubin.usage(b"PK\x03\x04" + bytes(100))


@needs_nvrtc
@pytest.mark.parametrize(("text", "status"), [("plain", 0), ("indexed", 1)])
def test_the_command_fails_on_local_memory(monkeypatch, capsys, text, status):
    monkeypatch.setattr(report, "programs", lambda: (Program("known", KNOWN, (text,)),))
    assert report.main(["report", "--arch", "sm_80"]) == status
    out = capsys.readouterr().out
    assert "registers" in out
    assert text in out
    assert ("1 kernels use local memory" in out) == bool(status)
