"""The emulator itself: what it computes, and that it finds the mistakes it is there to find."""

import numpy as np
import pytest

from kernels.cuda import compiler, launch
from tests.cuda_emulator import cupy_module, launching, programs
from tests.cuda_emulator.launching import LaunchError


@pytest.fixture(autouse=True)
def _on_the_emulator(cupy):
    pass


def kernel(cupy, text, name="f"):
    """A kernel of a test's own, with kernels/cuda/common.cuh before it."""
    module = cupy.RawModule(
        code=compiler.common() + text, options=compiler.OPTIONS, name_expressions=(name,)
    )
    return module.get_function(name)


# --- what a GPU would do --------------------------------------------------------------------------


def test_grid_and_block_indices(cupy):
    f = kernel(
        cupy,
        """
        __global__ void f(int* out) {
            const int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
            const int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
            out[b * blockDim.x * blockDim.y * blockDim.z + t] = 1000 * b + t;
        }
        """,
    )
    out = cupy.empty(6 * 24, np.int32)
    f((3, 2, 1), (4, 3, 2), (out,))
    np.testing.assert_array_equal(out.get(), [1000 * b + t for b in range(6) for t in range(24)])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("__shfl_sync(FULL_WARP, x, 5)", lambda i: 50 + 0 * i),
        ("__shfl_sync(FULL_WARP, x, 9, 8)", lambda i: 10 * (i // 8 * 8 + 1)),
        ("__shfl_up_sync(FULL_WARP, x, 3)", lambda i: 10 * np.where(i < 3, i, i - 3)),
        ("__shfl_up_sync(FULL_WARP, x, 1, 4)", lambda i: 10 * np.where(i % 4 == 0, i, i - 1)),
        ("__shfl_down_sync(FULL_WARP, x, 30)", lambda i: 10 * np.where(i > 1, i, i + 30)),
        ("__shfl_xor_sync(FULL_WARP, x, 6)", lambda i: 10 * (i ^ 6)),
        ("__ballot_sync(FULL_WARP, x >= 290)", lambda i: 0xE0000000 + 0 * i),
        ("__any_sync(FULL_WARP, x == 310)", lambda i: 1 + 0 * i),
        ("__all_sync(FULL_WARP, x < 310)", lambda i: 0 * i),
        ("__syncthreads_count(x < 40)", lambda i: 4 + 0 * i),
        ("__syncthreads_and(x >= 0)", lambda i: 1 + 0 * i),
        ("__syncthreads_or(x > 310)", lambda i: 0 * i),
    ],
)
def test_shuffles_and_votes(cupy, call, expected):
    text = f"__global__ void f(i64* y) {{ i64 x = 10 * threadIdx.x; y[threadIdx.x] = {call}; }}"
    f = kernel(cupy, text)
    for seed in (0, 1):
        y = cupy.empty(32, np.int64)
        with launching.shuffled(seed):
            f((1,), (32,), (y,))
        np.testing.assert_array_equal(y.get(), expected(np.arange(32)))


def test_a_shuffle_within_a_mask_and_from_outside_it(cupy):
    f = kernel(
        cupy,
        """
        __global__ void f(float* y) {
            const int i = threadIdx.x;
            y[i] = 0.0f;
            if (i < 8) y[i] = __shfl_sync(0xffu, static_cast<float>(i), i == 7 ? 20 : 3);
        }
        """,
    )
    y = cupy.empty(32, np.float32)
    f((1,), (32,), (y,))
    np.testing.assert_array_equal(y.get()[:8], [3] * 7 + [np.nan])  # undefined: never a number


def test_atomics(cupy):
    f = kernel(
        cupy,
        """
        __global__ void f(int* y) {
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            atomicAdd(y, i);
            atomicMax(y + 1, i);
            atomicMin(y + 2, i);
            if (atomicCAS(y + 3, 0, 1) == 0) atomicExch(y + 4, 7);
        }
        """,
    )
    y = cupy.asarray(np.array([0, 0, 9, 0, 0], np.int32))
    f((3,), (64,), (y,))
    assert y.get().tolist() == [191 * 192 // 2, 191, 0, 1, 7]


def test_a_schedule_is_its_seed(cupy):
    f = kernel(
        cupy,
        "__global__ void f(int* n, int* order) { order[atomicAdd(n, 1)] = threadIdx.x; }",
    )

    def order(seed):
        n, y = cupy.zeros(1, np.int32), cupy.empty(64, np.int32)
        with launching.shuffled(seed):
            f((1,), (64,), (n, y))
        return y.get().tolist()

    assert order(0) == list(range(64))
    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(64))


# --- shared memory --------------------------------------------------------------------------------

READS_SHARED = """
__global__ void f(float* y) {
    __shared__ float kept[4];
    if (threadIdx.x < 4) y[4 * blockIdx.x + threadIdx.x] = kept[threadIdx.x];
    kept[threadIdx.x] = 1.0f;
}
"""


def test_static_shared_memory_is_new_in_every_block(cupy):
    y = cupy.empty(12, np.float32)
    kernel(cupy, READS_SHARED)((3,), (4,), (y,))
    assert np.isnan(y.get()).all()


def test_dynamic_shared_memory(cupy):
    f = kernel(
        cupy,
        """
        __global__ void f(float* y) {
            SHARED_MEMORY(float, s);
            y[threadIdx.x] = s[threadIdx.x];
            s[threadIdx.x] = static_cast<float>(threadIdx.x);
            __syncthreads();
            y[blockDim.x + threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
        }
        """,
    )
    y = cupy.empty(128, np.float32)
    f((1,), (64,), (y,), shared_mem=256)
    assert np.isnan(y.get()[:64]).all()
    np.testing.assert_array_equal(y.get()[64:], np.arange(64)[::-1])


# --- mistakes in kernels --------------------------------------------------------------------------

REVERSE = """
__global__ void f(int* y) {
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    %s
    y[threadIdx.x] = s[63 - threadIdx.x];
}
"""

#: Each thread reads what the one before it wrote: in order nothing is wrong.
FROM_THE_LEFT = """
__global__ void f(int* y) {
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    %s
    y[threadIdx.x] = s[threadIdx.x ? threadIdx.x - 1 : 0];
}
"""


@pytest.mark.parametrize(
    ("text", "seed"), [(REVERSE, 0), (REVERSE, 1), (FROM_THE_LEFT, 1)], ids=str
)
def test_a_missing_barrier_shows(cupy, text, seed):
    def result(barrier):
        y = cupy.empty(64, np.int32)
        with launching.shuffled(seed):
            kernel(cupy, text % barrier)((1,), (64,), (y,))
        return y.get().tolist()

    expected = list(range(64))[::-1] if text is REVERSE else [0, *range(63)]
    assert result("__syncthreads();") == expected
    assert result("") != expected


def deadlock(cupy, body, threads=64):
    f = kernel(cupy, "__global__ void f(float* y) {\n" + body + "\n}\n")
    with pytest.raises(LaunchError) as error:
        f((2,), (threads,), (cupy.empty(4, np.float32),))
    return str(error.value)


def test_a_barrier_that_some_left_out(cupy):
    message = deadlock(cupy, "if (threadIdx.x < 32) return;\n__syncthreads();")
    assert message.startswith("f, block (0, 0, 0), thread ")
    assert "thread 0 to 31 returned from the kernel" in message
    assert "thread 32 to 63 waits in __syncthreads at own.cu:3" in message


def test_two_barriers_that_do_not_meet(cupy):
    message = deadlock(cupy, "if (threadIdx.x == 0)\n__syncthreads();\nelse\n__syncthreads();")
    assert "thread 0 waits in __syncthreads at own.cu:3" in message
    assert "thread 1 to 63 waits in __syncthreads at own.cu:5" in message


def test_a_shuffle_that_not_all_of_its_mask_take_part_in(cupy):
    body = "if (threadIdx.x < 16)\n*y = __shfl_sync(FULL_WARP, 1.0f, 0);\n__syncthreads();"
    message = deadlock(cupy, body, threads=32)
    assert "thread 0 to 15 waits in __shfl_sync at own.cu:3 with mask 0xffffffff" in message
    assert "thread 16 to 31 waits in __syncthreads at own.cu:4" in message


def test_a_lane_outside_its_own_mask(cupy):
    message = deadlock(cupy, "__syncwarp(0xffff0000u);")
    assert "by a lane that its mask leaves out (own.cu:2)" in message


def test_the_emulator_goes_on_after_a_deadlock(cupy):
    deadlock(cupy, "if (threadIdx.x == 5) return;\n__syncthreads();")
    test_atomics(cupy)


def test_a_write_beyond_an_array(cupy):
    f = kernel(cupy, "__global__ void f(float* y, int i) { y[i] = 1.0f; }")
    f((1,), (1,), (cupy.empty(4, np.float32), np.int32(3)))
    for i, byte in ((4, 16), (-1, -4)):
        with pytest.raises(LaunchError, match=f"a write at byte {byte} of an array of 16 bytes"):
            f((1,), (1,), (cupy.empty(4, np.float32), np.int32(i)))


def test_a_variable_that_nobody_set_is_not_zero(cupy):
    y = cupy.empty(1, np.float32)
    kernel(cupy, "__global__ void f(float* y) { float x; *y = x; }")((1,), (1,), (y,))
    assert y.get()[0] != 0


def test_a_mistake_in_cuda_c_shows_the_compilers_words(cupy):
    with pytest.raises(RuntimeError, match=r"own\.cu:1.*undefined_name"):
        kernel(cupy, "__global__ void f() { undefined_name(); }")


# --- launches -------------------------------------------------------------------------------------


@pytest.fixture
def axpy(cupy):
    return kernel(
        cupy,
        """
        template <typename T> __global__ void f(T* y, const T* x, float a, i64 n, const bool* m) {
            for (i64 i = 0; i < n; ++i) if (!m || m[i]) y[i] = from_float<T>(a * to_float(x[i]));
        }
        """,
        "f<__half>",
    )


def test_arguments_of_the_kernels_types_are_taken(cupy, axpy):
    x, mask = (cupy.asarray(np.array(a)) for a in ([1, 2, 4], [True, False, True]))
    y = cupy.zeros(3, np.float16)
    axpy((1,), (1,), (y, x.astype(np.float16), np.float32(3), np.int64(3), mask))
    assert y.get().tolist() == [3, 0, 12]
    axpy((1,), (1,), (y, x.astype(np.float16), np.float32(2), 3, np.uintp(0)))
    assert y.get().tolist() == [2, 4, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.zeros(3, np.float16)}, "Unsupported type"),
        ({2: 3.0}, r"argument 2 is np.float64\(3.0\) \(float64\), the parameter float32"),
        ({3: np.int32(3)}, r"argument 3 is np.int32\(3\) \(int32\), the parameter int64"),
        ({4: np.uint64(8)}, r"argument 4 is np.uint64\(8\), the parameter bool\*"),
        ({4: None}, "Unsupported type"),
    ],
)
def test_other_arguments_are_refused(cupy, axpy, change, message):
    x = cupy.zeros(3, np.float16)
    args = [x, x, np.float32(3), np.int64(3), np.uint64(0)]
    for i, a in change.items():
        args[i] = a
    with pytest.raises((LaunchError, TypeError), match=message):
        axpy((1,), (1,), tuple(args))
    with pytest.raises(
        LaunchError, match="argument 1 is an array of float32, the parameter float16"
    ):
        axpy((1,), (1,), (x, x.astype(np.float32), *args[2:]))
    with pytest.raises(LaunchError, match="has 5 parameters, got 2 arguments"):
        axpy((1,), (1,), (x, x))


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0,), (1,), 0, r"grid \(0, 1, 1\) is outside"),
        ((1,), (1025,), 0, r"block \(1025, 1, 1\) is outside"),
        ((1,), (64, 32), 0, "more than 1024 threads"),
        ((1, 1, 2**16), (1,), 0, r"grid \(1, 1, 65536\) is outside"),
        ((1,), (1,), 49153, "49153 bytes of shared memory, limit 49152"),
    ],
)
def test_sizes_beyond_a_gpus_limits_are_refused(cupy, grid, block, shared, message):
    f = kernel(cupy, "__global__ void f() {}")
    with pytest.raises(LaunchError, match=message):
        f(grid, block, (), shared_mem=shared)


def test_more_shared_memory_where_it_was_asked_for(cupy):
    f = kernel(cupy, "__global__ void f() { SHARED_MEMORY(char, s); s[65535] = 1; }")
    f.max_dynamic_shared_size_bytes = 65536
    f((1,), (1,), (), shared_mem=65536)


# --- CuPy's rules ---------------------------------------------------------------------------------


def test_arrays_do_not_mix_with_numpys(cupy):
    a, b = cupy.ones(3), np.ones(3)
    refused = [
        lambda: a + b,
        lambda: b + a,
        lambda: np.asarray(a),
        lambda: cupy.sqrt(b),
        lambda: cupy.where(a > 0, a, b),
        lambda: cupy.ascontiguousarray(b),
        lambda: a.__setitem__(Ellipsis, b),
        lambda: a.max(initial=0),
    ]
    for attempt in refused:
        with pytest.raises(TypeError):
            attempt()
    assert (np.float32(2) * a + 1).get().tolist() == [3, 3, 3]
    assert isinstance(a.sum(), cupy.ndarray)


def test_new_memory_is_never_zero(cupy):
    assert np.isnan(cupy.empty(5, np.float16).get()).all()
    assert (cupy.empty(5, np.int64).get() == -1).all()


def test_cupy_is_the_emulators_for_a_while_only(cupy):
    import sys

    assert sys.modules["cupy"] is cupy
    assert launch.multiprocessors(0) == cupy_module.MULTIPROCESSORS
    with cupy_module.installed() as inner:
        assert sys.modules["cupy"] is inner is not cupy
    assert sys.modules["cupy"] is cupy


def test_without_a_compiler_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(programs, "compiler_path", lambda: None)
    assert "install g++" in (programs.missing.__wrapped__() or "")
