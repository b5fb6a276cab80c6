"""Threads that make things ahead, in order: they end with the iteration, and one that is stuck is
found.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from framework.data.errors import LoaderError

T = TypeVar("T")


class _Job(Future[Any]):
    """A call for one of the threads."""

    thread: threading.Thread | None = None  # that runs it

    def __init__(self, call: Callable[[], Any], name: Callable[[], str]) -> None:
        super().__init__()
        self.name = name
        # In a copy of the caller's context, to which NumPy's allocator belongs: the batches are
        # aligned as its own arrays are. A copy each, since one cannot be entered twice.
        self._call, self._context = call, copy_context()

    def run(self) -> None:
        self.thread = threading.current_thread()
        try:
            self.set_result(self._context.run(self._call))
        except BaseException as error:
            self.set_exception(error)


def in_order(
    make: Callable[[int], T],
    numbers: range,
    workers: int,
    prefetch: int,
    timeout: float | None,
    name: Callable[[int], str],
) -> Generator[T, None, None]:
    """``make(n)`` for all `numbers`, in order, made ahead by threads that end with the iterator.

    Raises:
        LoaderError: after `timeout` seconds without the next one; says which, by ``name(n)``, and
            where its thread is. That thread is left behind: it does not hold up the end of the
            process.
    """
    if workers == 0:
        yield from map(make, numbers)
        return
    jobs: SimpleQueue[_Job | None] = SimpleQueue()
    threads = [
        # not ThreadPoolExecutor: the interpreter waits for its threads at the end, stuck or not
        threading.Thread(target=_work, args=(jobs,), name=f"framework-loader-{i}", daemon=True)
        for i in range(workers)
    ]
    for thread in threads:
        thread.start()
    waiting: deque[_Job] = deque()
    try:
        for number in numbers:
            waiting.append(job := _Job(partial(make, number), partial(name, number)))
            jobs.put(job)
            if len(waiting) > workers * prefetch:
                yield _result(waiting.popleft(), timeout)
        while waiting:
            yield _result(waiting.popleft(), timeout)
    except _Stuck as stuck:
        threads.remove(stuck.thread)
        raise stuck.error from None
    finally:  # also when the caller breaks off or drops the iterator
        _clear(jobs)
        for _ in range(workers):
            jobs.put(None)
        for thread in threads:
            thread.join(timeout)


class _Stuck(Exception):
    def __init__(self, thread: threading.Thread, error: LoaderError) -> None:
        self.thread, self.error = thread, error


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # its result is the iterator's


def _clear(jobs: SimpleQueue[_Job | None]) -> None:
    """Leave out what no thread has begun."""
    try:
        while True:
            jobs.get_nowait()
    except Empty:
        pass


def _result(job: _Job, timeout: float | None) -> Any:
    try:
        return job.result(timeout)
    except TimeoutError:
        if job.done():  # it is its own error
            raise
    assert job.thread is not None  # the oldest job: some thread has begun it
    frame = sys._current_frames().get(job.thread.ident or 0)
    stack = traceback.extract_stack(frame)
    calls = [f for f in stack if f.filename not in (__file__, threading.__file__)]
    places = " > ".join(f"{f.filename}:{f.lineno} in {f.name}" for f in calls)
    error = LoaderError(
        f"{job.name()} is not made after {timeout:g} s (timeout); its thread is at {places}"
    )
    error.add_note("the thread's stack:\n" + "".join(traceback.format_list(stack)).rstrip())
    raise _Stuck(job.thread, error)
