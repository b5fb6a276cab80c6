"""The emulator's capture: what it keeps, and that it refuses what a GPU or CuPy would."""

import gc

import numpy as np
import pytest

import framework as fw
from kernels import optimizers, random
from kernels.cuda import launch, plans
from tests.cuda_emulator.streams import CUDARuntimeError, NoMemory


@pytest.fixture(autouse=True)
def _on_the_emulator(cupy):
    pass


@pytest.fixture
def stream(cupy):
    with cupy.cuda.Stream(non_blocking=True) as made:
        yield made
        if made.is_capturing():
            with pytest.raises(CUDARuntimeError):
                made.synchronize()
            with pytest.raises(CUDARuntimeError, match="Invalidated"):
                made.end_capture()


def captured(cupy, stream, function):
    """A graph of `function`, and the pool that its memory is from."""
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        result = function()
        return stream.end_capture(), pool, result


def test_nothing_is_run_by_a_capture_and_all_by_a_launch(cupy, stream):
    x, y = cupy.ones(4, np.float32), cupy.ones(4, np.float32)

    def work():
        z = cupy.sqrt(x) + 1
        y[1:] = z[1:]
        optimizers.scale_(y, 3.0)  # a kernel
        return z.reshape(2, 2)

    graph, pool, z = captured(cupy, stream, work)
    assert y.get().tolist() == [1, 1, 1, 1]
    assert np.isnan(z.get()).all()
    x[...] = 16.0
    graph.launch(stream)
    assert (y.get().tolist(), z.get().tolist()) == ([3, 15, 15, 15], [[5, 5], [5, 5]])
    graph.launch()
    assert y.get().tolist() == [9, 15, 15, 15]
    assert pool is not None


@pytest.mark.parametrize("key", [lambda i: i, lambda i: (slice(1), i), lambda i: (i, i)])
def test_elements_that_arrays_name_are_taken_anew(cupy, stream, key):
    host = np.arange(16, dtype=np.float32).reshape(4, 4)
    x, i = cupy.asarray(host), cupy.asarray(np.array([3, 0]))
    graph, pool, y = captured(cupy, stream, lambda: x[key(i)])
    x[...] = cupy.asarray(host * 2)
    i[...] = cupy.asarray(np.array([1, 2]))
    graph.launch(stream)
    assert y.get().tolist() == (host * 2)[key(np.array([1, 2]))].tolist()
    assert pool is not None


def test_a_mask_waits_and_is_refused(cupy, stream):
    x = cupy.arange(4, dtype=np.float32)
    assert x[x > 1].get().tolist() == [2, 3]
    with pytest.raises(RuntimeError, match="mask"):
        captured(cupy, stream, lambda: x[x > 1])


def test_numbers_are_kept_as_they_were(cupy, stream):
    x = cupy.zeros(3, np.float32)
    step, rate = cupy.zeros(1, np.float32), 2.0

    def work():
        x[...] = x + rate
        optimizers.lerp_(x, step + x + 1, step)  # which reads the device's number

    rate += 1
    graph, pool, _ = captured(cupy, stream, work)
    rate = 100.0
    graph.launch()
    step.fill(1.0)
    graph.launch()
    assert x.get().tolist() == [3 + 3 + 1 + 1] * 3
    assert pool is not None


@pytest.mark.parametrize(
    "wait",
    [
        lambda cupy, x: x.get(),
        lambda cupy, x: float(x.sum()),
        lambda cupy, x: bool((x > 0).all()),
        lambda cupy, x: x.set(np.zeros(3, np.float32)),
        lambda cupy, x: cupy.asarray(np.zeros(3)),
        lambda cupy, x: x.argsort(),
        lambda cupy, x: cupy.stack([x] * 9),
        lambda cupy, x: cupy.cuda.Device().synchronize(),
    ],
)
def test_waiting_is_refused(cupy, stream, wait):
    x = cupy.ones(3, np.float32)
    with (
        pytest.raises(RuntimeError, match="is capturing"),
        cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc),
    ):
        stream.begin_capture()
        wait(cupy, x)


def test_the_common_pool_and_the_default_stream_are_refused(cupy, stream):
    x = cupy.ones(3, np.float32)
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="from the common pool"):
        cupy.empty(3)
    with cupy.cuda.Stream.null, pytest.raises(CUDARuntimeError, match="default stream"):
        x += 1
    with pytest.raises(CUDARuntimeError, match="Invalidated"):
        stream.end_capture()
    assert x.get().tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cupy.cuda.Stream.null.begin_capture()


def test_a_graph_owns_no_memory(cupy, stream):
    x, y = cupy.ones(3, np.float32), cupy.ones(3, np.float32)
    graph, pool, _ = captured(cupy, stream, lambda: y.__iadd__(x * 2))
    graph.launch()
    kept, pool = pool, None
    del kept
    gc.collect()
    with pytest.raises(CUDARuntimeError, match="uses 12 bytes which have been freed"):
        graph.launch()
    graph, pool, _ = captured(cupy, stream, lambda: y.__iadd__(x))
    x = cupy.zeros(3, np.float32)  # the one that was captured is gone
    with pytest.raises(CUDARuntimeError, match="have been freed"):
        graph.launch()
    assert (pool is not None, x.get().tolist()) == (True, [0, 0, 0])


def test_the_stream_tells_kernels_that_it_is_captured(stream):
    assert not launch.is_capturing()
    stream.begin_capture()
    assert launch.is_capturing()


# --- kernels that read their numbers from the device ----------------------------------------------


def steps(draw):
    """For each rule: buffers, the numbers of a step by value, and the same as an array."""
    p, g, m, v, w = (np.abs(draw.standard_normal(1037)).astype(np.float32) for _ in range(5))
    adam, sgd = (0.01, 0.9, 0.99, 1e-8, 0.1, 7), (0.1, 0.9, 0.1, 0.01)
    return {
        optimizers.adam_step: ([p, g, m, v], (*adam, True), optimizers.adam_numbers(*adam, True)),
        optimizers.sgd_step: ([p, g, m], sgd, optimizers.sgd_numbers(*sgd)),
        optimizers.rmsprop_step: (
            [p, g, v, m, w],
            (0.01, 0.9, 1e-8, 0.1, 0.9, True),
            optimizers.rmsprop_numbers(0.01, 0.9, 1e-8, 0.1, 0.9),
        ),
        optimizers.adagrad_step: (
            [p, g, v],
            (0.1, 0.01, 1e-10, 0.1, 7),
            optimizers.adagrad_numbers(0.1, 0.01, 1e-10, 0.1, 7),
        ),
    }


@pytest.mark.parametrize("module", ["numpy", "cupy"])
@pytest.mark.parametrize("rule", list(steps(np.random.default_rng(0))), ids=lambda k: k.name)
def test_numbers_on_the_device_give_the_same_bits(cupy, module, rule):
    xp = np if module == "numpy" else cupy
    buffers, numbers, live = steps(np.random.default_rng(0))[rule]
    wrong = tuple(3 * n if type(n) is float and n < 0.3 else n for n in numbers)

    def run(numbers, **options):
        arrays = [xp.array(x) for x in buffers]
        rule(*arrays, *numbers, **options)
        return [x.tolist() for x in arrays]

    expected = run(numbers)
    assert run(wrong, live=xp.asarray(np.array(live, np.float32))) == expected
    assert run(wrong) != expected
    with pytest.raises(NotImplementedError, match="float64"):
        wide = [xp.array(x.astype(np.float64)) for x in buffers]
        rule(*wide, *numbers, live=xp.asarray(np.array(live)))


@pytest.mark.parametrize("module", ["numpy", "cupy"])
def test_a_place_on_the_device_draws_the_same(cupy, module):
    xp = np if module == "numpy" else cupy
    place = xp.asarray(np.array([2**40 + 7, 2**64 - 3], np.uint64))
    for kernel, options in (
        (random.uniform, (-1.0, 2.0)),
        (random.normal, (0.5, 2.0)),
        (random.bernoulli, (0.3,)),
    ):
        out = [kernel(xp.empty(50, np.float32), *where, *options).tolist() for where in (
            (2**40 + 7, 2**64 - 1), (place, 2)
        )]  # fmt: skip
        assert out[0] == out[1]
    integers = xp.empty(50, np.int64)
    first = random.randint(integers, 2**40 + 7, 0, 0, 1000).tolist()
    place = xp.asarray(np.array([2**40 + 7, 0], np.uint64))
    assert random.randint(integers, place, 0, 0, 1000).tolist() == first
    x = xp.ones(50, np.float32)
    assert (
        random.dropout(x, 0.4, place, 3).tolist()
        == random.dropout(x, 0.4, 2**40 + 7, 3).tolist()
    )  # fmt: skip


# --- memory from the device itself ----------------------------------------------------------------


class Full:
    """A device without memory until the pool gives back what it does not use, or for good."""

    def __init__(self, cupy, monkeypatch, gains):
        self.asked, self.freed, self.make = [], 0, cupy.cuda.Memory
        self.gains = gains
        monkeypatch.setattr(cupy.cuda, "Memory", self.allocate)
        monkeypatch.setattr(cupy.get_default_memory_pool(), "free_all_blocks", self.free)
        monkeypatch.setattr(plans, "_workspaces", {})

    def allocate(self, size):
        self.asked.append(size)
        if self.gains and self.freed:
            return self.make(size)
        raise NoMemory("cudaErrorMemoryAllocation: out of memory")

    def free(self):
        self.freed += 1


def test_a_workspace_gets_what_the_pool_does_not_use(cupy, monkeypatch):
    device = Full(cupy, monkeypatch, gains=True)
    assert plans.workspace(0, 0) == plans.workspace(0, 0) != 0
    assert device.asked == [plans.WORKSPACE] * 2


def test_a_workspace_that_does_not_fit_is_out_of_memory(cupy, monkeypatch):
    Full(cupy, monkeypatch, gains=False)
    with pytest.raises(MemoryError) as caught:
        plans.workspace(0, 0)
    explained = fw.OutOfMemoryError.of(caught.value)
    assert explained.requested == plans.WORKSPACE == 32 << 20
    assert not plans._workspaces


def test_other_errors_of_the_runtime_are_not_out_of_memory(cupy, monkeypatch):
    def fail(size):
        raise CUDARuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(cupy.cuda, "Memory", fail)
    monkeypatch.setattr(plans, "_workspaces", {})
    with pytest.raises(CUDARuntimeError, match="Illegal"):
        plans.workspace(0, 0)


def test_powers_are_captured(cupy, stream):
    x = cupy.full(2, 2.0, np.float32)
    graph, pool, y = captured(cupy, stream, lambda: cupy.power(x, 3))
    x[...] = 3.0
    graph.launch(stream)
    assert y.get().tolist() == [27, 27]
    assert pool is not None
