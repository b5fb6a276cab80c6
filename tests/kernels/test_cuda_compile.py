"""Every CUDA kernel compiles for every type and architecture, without a warning. Needs no GPU."""

import importlib
import pkgutil

import pytest

import kernels
from kernels.cuda import compiler, nvrtc
from kernels.elementwise import Elementwise
from kernels.registry import all_kernels

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]

OPTIONS = (*compiler.OPTIONS, "-Werror=all-warnings", "-Werror=deprecated-declarations")

# Not a skipif mark on the module: that the sources are listed at all is tested without a compiler.
needs_nvrtc = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))


def families() -> dict[str, tuple[str, ...]]:
    """The names of templates over the element type, by family."""
    modules = [
        importlib.import_module(f"kernels.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)
    ]
    return {
        m.__name__.rpartition(".")[2]: m.CUDA_KERNELS for m in modules if hasattr(m, "CUDA_KERNELS")
    }


def instantiations(names) -> list[str]:
    return [f"{name}<{kind}>" for name in names for kind in compiler.TYPES.values()]


def elementwise_kernels() -> list[Elementwise]:
    return [k for k in all_kernels().values() if isinstance(k, Elementwise) and k.version("cuda")]


def compile_all(text: str, names, arch: str) -> None:
    cubin, lowered = nvrtc.compile(text, instantiations(names), arch, OPTIONS)
    assert cubin.startswith(b"\x7fELF")
    missing = [e for e, symbol in lowered.items() if symbol.encode() not in cubin]
    assert not missing


def test_every_source_is_listed_by_its_family():
    sources = {path.stem for path in compiler.FOLDER.glob("*.cu")}
    assert sources == set(families())


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("family", sorted(families()))
def test_family_compiles(family, arch):
    compile_all(compiler.source(family), families()[family], arch)


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_elementwise_kernels_compile(arch):
    operations = elementwise_kernels()
    assert operations
    text = compiler.common() + "".join(k.cuda_source() for k in operations)
    compile_all(text, [f"{k.name}_kernel" for k in operations], arch)


@needs_nvrtc
def test_an_error_shows_the_compilers_words():
    with pytest.raises(nvrtc.CompileError, match="undefined"):
        nvrtc.compile("__global__ void f() { undefined_name(); }", ["f"], "sm_80")


@needs_nvrtc
def test_a_warning_is_an_error():
    with pytest.raises(nvrtc.CompileError, match="unused"):
        nvrtc.compile("__global__ void f() { int unused; }", ["f"], "sm_80", OPTIONS)
