"""Steps as factories for a worker (bench/peer.py): checked against float64, then ready to run."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from bench.cases import error
from bench.ladder.steps import OPERATIONS, Step
from bench.peer import Work
from bench.sides import COPY_BYTES

#: Bytes that an iteration on CUDA touches: several times what an L2 holds, so that each launch
#: finds its arrays in memory, as it would within a model.
TOUCHED = 1 << 29

#: Times that an iteration goes through its arrays: the first launch has nothing to hide behind.
ROUNDS = 4

Grid = tuple[tuple[int, ...], tuple[int, ...]]


def _flat(rows_a_block: int) -> Callable[[int, int], Grid]:
    """Blocks of 256 threads with so many rows each."""
    return lambda rows, columns: ((-(-rows // rows_a_block),), (256,))


def _tiles(high: int, wide: int, *block: int) -> Callable[[int, int], Grid]:
    """A block for each tile of high x wide elements."""
    return lambda rows, columns: ((-(-columns // wide), -(-rows // high)), block)


#: Grid and block of each CUDA source.
LAUNCHES: dict[tuple[str, str], Callable[[int, int], Grid]] = {
    ("softmax", "cuda_1_thread"): _flat(256),
    ("softmax", "cuda_2_block"): _flat(1),
    ("softmax", "cuda_3_warp"): _flat(8),
    ("softmax", "cuda_4_online"): _flat(8),
    ("softmax", "cuda_5_registers"): _flat(8),
    ("layer_norm", "cuda_1_thread"): _flat(256),
    ("layer_norm", "cuda_2_block"): _flat(1),
    ("layer_norm", "cuda_3_warp"): _flat(8),
    ("layer_norm", "cuda_4_packs"): _flat(8),
    ("layer_norm", "cuda_5_registers"): _flat(8),
    ("transpose", "cuda_1_thread"): _tiles(8, 32, 32, 8),
    ("transpose", "cuda_2_tile"): _tiles(32, 32, 32, 32),
    ("transpose", "cuda_3_padded"): _tiles(32, 32, 32, 32),
    ("transpose", "cuda_4_four"): _tiles(32, 32, 32, 8),
    ("transpose", "cuda_5_registers"): _tiles(64, 64, 256),
}


def cuda_source(step: Step) -> str:
    """The whole text of a step in CUDA C++, with kernels/cuda/common.cuh before it."""
    from kernels.cuda import compiler

    return compiler.common() + step.source


def function(step: Step) -> Callable[..., Any]:
    """The step as a function of arrays, which makes its result."""
    if step.path.suffix == ".py":
        run: Callable[..., Any] = import_module(step.module).run
        return run

    def launch(x: Any, *others: Any) -> Any:
        import cupy

        from kernels.cuda import compiler

        rows, columns = x.shape
        y = cupy.empty((columns, rows) if step.operation == "transpose" else x.shape, x.dtype)
        if y.size:
            kernel = compiler.compiled(cuda_source(step), step.operation)
            grid, block = LAUNCHES[step.operation, step.path.stem](rows, columns)
            kernel(grid, block, (x, *others, y, np.int64(rows), np.int64(columns)))
        return y

    return launch


def cpu(step: Step, rows: int, columns: int) -> Work:
    """A step on the CPU, with the first `rows` it is willing to do; "scale" makes up for it."""
    from framework.backend.memory import keep_freed_memory
    from kernels.cpu.alignment import align_arrays

    keep_freed_memory()  # the steps are compared here, not the pages of their results
    align_arrays()
    done = min(rows, getattr(import_module(step.module), "ROWS", rows))
    args, truth = _arguments(step, rows, columns, done)
    run = function(step)
    facts = {"error": error([run(*args)], [truth]), "scale": rows / done}
    return Work(lambda: run(*args), facts)


def cuda(step: Step, rows: int, columns: int) -> Work:
    """A step on the GPU. An iteration is as many launches, each on arrays of its own, as TOUCHED
    makes, ROUNDS times; its laps are the seconds between two events around them, and the rest.

    The host launches ahead of the device. Where a launch takes longer than the work, with arrays of
    less than some 10 MB, the launch is what is measured.
    """
    import cupy

    args, truth = _arguments(step, rows, columns, rows)
    run = function(step)
    device = [cupy.asarray(a) for a in args]
    facts = {"error": error([run(*device).get()], [truth])}
    copies = math.ceil(TOUCHED / max(1, 2 * args[0].nbytes))
    sets = [device, *([device[0].copy(), *device[1:]] for _ in range(copies - 1))]
    facts["scale"] = 1 / (ROUNDS * len(sets))

    def launches() -> None:
        for _ in range(ROUNDS):
            results = [run(*arrays) for arrays in sets]  # kept: each has memory of its own
            results.clear()

    return Work(_timed(cupy, launches), facts, laps=("kernels", "host"))


def cuda_copy() -> Work:
    """A plain copy on the GPU: what its memory gives at best."""
    import cupy

    source = cupy.ones(COPY_BYTES * 4, "uint8")
    target = cupy.empty_like(source)
    step = _timed(cupy, lambda: cupy.copyto(target, source))
    return Work(step, {"bytes": 2 * source.nbytes}, laps=("kernels", "host"))


def _timed(cupy: Any, launches: Callable[[], None]) -> Callable[[], tuple[float, float]]:
    """An iteration: seconds on the device, and what else passed on the host."""
    import time

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        begin.record()
        launches()
        end.record()
        end.synchronize()
        device = cupy.cuda.get_elapsed_time(begin, end) / 1e3
        return device, max(0.0, time.perf_counter() - start - device)

    return step


def _arguments(step: Step, rows: int, columns: int, done: int) -> tuple[list[Any], np.ndarray]:
    """The first `done` rows of the arguments, and the result in float64."""
    operation = OPERATIONS[step.operation]
    x, *others = operation.arguments(rows, columns)
    args = [np.ascontiguousarray(x[:done]), *others]
    return args, operation.truth(*(a.astype(np.float64) for a in args))
