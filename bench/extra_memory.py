"""How much memory a call needs beyond its inputs and results, at its peak: scratch and temporaries.

Counted after the first calls, when what is made once is there, and after the timing. It is the most
that the call had in use, less what its results still hold, so inputs and results cancel:

- NumPy: tracemalloc, to which NumPy reports every array, whichever allocator it uses. Not seen:
  scratch of some KB that a compiled loop takes from malloc, and OpenBLAS's buffers, which stay.
- torch on the CPU: the allocations in its profiler's record. Not seen: scratch of oneDNN and MKL.
- CUDA: what is free in the pool after the call, which was emptied of free blocks before; torch has
  such a count of its own. Rounded up to blocks of 512 bytes.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

Step = Callable[[], Any]


def of_numpy(step: Step) -> int:
    """Bytes, on the CPU."""
    tracemalloc.start()
    try:
        held = step()  # kept until it is counted
        now, peak = tracemalloc.get_traced_memory()
        del held
    finally:
        tracemalloc.stop()
    return peak - now


def of_torch(step: Step) -> int:
    """Bytes, on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        held = step()
    assert record.profiler is not None
    events = record.profiler.kineto_results.events()
    found = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    in_use = list(accumulate((n for _, n in found), initial=0))
    del held
    return int(max(in_use) - in_use[-1])


def of_cupy(step: Step) -> int:
    """Bytes, of the default pool."""
    import cupy

    pool = cupy.get_default_memory_pool()

    def free() -> int:
        return int(pool.total_bytes() - pool.used_bytes())

    pool.free_all_blocks()
    before = free()  # parts of blocks whose other part is in use
    held = step()
    extra = free() - before
    del held
    return max(0, extra)


def of_torch_cuda(step: Step) -> int:
    """Bytes, of torch's allocator."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    held = step()
    extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    del held
    return int(extra)
